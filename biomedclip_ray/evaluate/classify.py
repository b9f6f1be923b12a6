"""Zero-shot classification of a labelled set.

The figure is that of all prompts together (Radford et al. 2021); each template's own accuracy stands beside it, because
it swings by many points and the best one must not be picked on the test set. Logits are float64 products of the float32
vectors.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from biomedclip_ray.clip.prompts import class_weights
from biomedclip_ray.evaluate.metrics import Float64s, choices
from biomedclip_ray.evaluate.sets import LabelledSet
from biomedclip_ray.evaluate.tasks import Floats, Test, Vectors, answers


class ZeroShot:
    """One class an image, named by prompts."""

    name: ClassVar[str] = "zero_shot"
    kind: ClassVar[str] = "classification"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {"test": ("image", "label")}

    def run(self, vectors: Vectors, labelled: LabelledSet) -> pa.Table:
        test = Test.of(vectors, labelled)
        logits = self.logits(vectors, test.images, labelled, labelled.templates)
        return answers(test.ids, test.clusters, test.labels, logits)

    def logits(self, vectors: Vectors, images: Floats, labelled: LabelledSet, templates: list[str]) -> Float64s:
        """(n, classes) scaled cosines."""
        weights = class_weights(vectors, labelled.class_names, templates)
        out: Float64s = vectors.logit_scale * (images.astype(np.float64) @ weights.astype(np.float64).T)
        return out

    def about(self, vectors: Vectors, labelled: LabelledSet, rows: pa.Table) -> dict[str, Any]:
        """What a reader needs beside the figures: prompts, and the accuracy of each template alone."""
        test = Test.of(vectors, labelled)
        single = {}
        for template in labelled.templates:
            chosen = choices(self.logits(vectors, test.images, labelled, [template]))
            single[template] = float(chosen[np.arange(len(test.ids)), test.labels].mean())
        return {
            "class_names": labelled.class_names,
            "templates": labelled.templates,
            "accuracy_by_template": single,
        }


class PromptPairs:
    """Any number of labels an image; each is asked by itself, "the finding" against "no finding"."""

    name: ClassVar[str] = "zero_shot"
    kind: ClassVar[str] = "multilabel"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {"test": ("image", "labels")}

    def run(self, vectors: Vectors, labelled: LabelledSet) -> pa.Table:
        test = Test.of(vectors, labelled)
        scores = self.scores(vectors, test.images, labelled)
        rows = answers(test.ids, test.clusters, np.zeros(len(test.ids), int), scores)
        hot = np.array([[name in value for name in labelled.classes] for value in test.values])
        truth = pa.FixedSizeListArray.from_arrays(pa.array(hot.ravel()), len(labelled.classes))
        return rows.drop_columns(["label"]).append_column("labels", truth)

    def scores(self, vectors: Vectors, images: Floats, labelled: LabelledSet) -> Floats:
        """(n, classes): the positive prompts' logit less the negative ones'."""
        sides = []
        for names in (labelled.class_names, labelled.negative_names):
            sides.append(class_weights(vectors, names, labelled.templates))
        return vectors.logit_scale * (images.astype(np.float64) @ (sides[0].astype(np.float64) - sides[1]).T)

    def about(self, vectors: Vectors, labelled: LabelledSet, rows: pa.Table) -> dict[str, Any]:
        names = {label: [labelled.class_names[label], labelled.negative_names[label]] for label in labelled.classes}
        return {"prompt_pairs": names, "templates": labelled.templates}


class Options:
    """A question with options of its own: the option whose prompt lies nearest is the answer (MicroBench's closed
    form).
    """

    name: ClassVar[str] = "options"
    kind: ClassVar[str] = "options"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {"test": ("image", "options", "answer")}

    def run(self, vectors: Vectors, labelled: LabelledSet) -> pa.Table:
        test = Test.of(vectors, labelled)
        offered = [labelled.tables["test"].options[row] for row in test.rows]
        texts = sorted({option for options in offered for option in options})
        place = {text: number for number, text in enumerate(texts)}
        known = vectors.encode_text(texts).astype(np.float64)
        right, blind = [], []
        for options, value, image in zip(offered, test.values, test.images, strict=True):
            scores = known[[place[option] for option in options]] @ image.astype(np.float64)
            right.append(float(choices(scores[None])[0, options.index(value)]))
            blind.append(1 / len(options))
        return pa.table({"sample_id": test.ids, "cluster": test.clusters, "right": right, "blind": blind})

    def about(self, vectors: Vectors, labelled: LabelledSet, rows: pa.Table) -> dict[str, Any]:
        return {"options": "the option's text is the prompt"}
