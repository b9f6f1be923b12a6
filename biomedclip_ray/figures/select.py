"""Which figures are wanted by what their text says: patterns and a small classifier, judged before a byte of media is
fetched.

The classifier is an ONNX file, texts in and probabilities out: any library may have trained it, and unlike a pickle it
runs nothing but arithmetic. Texts reach it in lower case and on one line, because ONNX Runtime's own lower-casing wants
a locale that most containers lack. From scikit-learn, with `lowercase=False` in the vectorizer:

    skl2onnx.to_onnx(pipeline, initial_types=[("text", StringTensorType([None]))], options={id(pipeline): {"zipmap":
    False}})
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from biomedclip_ray.config import ConfigError, PreprocessSelect
from biomedclip_ray.figures.captions import training_text
from biomedclip_ray.schema import Reason
from biomedclip_ray.store.place import Place

_KEY = "preprocess.select.classifier"
_BATCH = 64  # a TF-IDF is a dense matrix in ONNX: 64 texts over 100,000 words are 26 MB

Figure = dict[str, Any]


def left_out(
    figures: Sequence[Figure], select: PreprocessSelect, classifier: Classifier | None = None
) -> dict[str, tuple[Reason, str]]:
    """Ids of the figures that are not wanted, with the reason and, from the classifier, the probability.

    Args:
        figures: `figures` of rows of ARTICLES.
        select: the patterns, one of which the figure's text or a mention must match, and the classifier's threshold.
        classifier: asked about what the patterns let through.
    """
    if not select.text and classifier is None:
        return {}
    patterns = [re.compile(pattern, re.IGNORECASE) for pattern in select.text]
    found: dict[str, tuple[Reason, str]] = {}
    passed = []
    for figure in figures:
        text = figure_text(figure)
        if patterns and not any(pattern.search(text) for pattern in patterns):
            found[figure["figure_id"]] = Reason.TEXT_FILTER, ""
        else:
            passed.append((figure["figure_id"], text))
    if classifier is not None and select.classifier is not None:
        odds = classifier.probabilities([text for _, text in passed])
        for (figure_id, _), probability in zip(passed, odds.tolist(), strict=True):
            if probability < select.classifier.threshold:
                found[figure_id] = Reason.TEXT_CLASSIFIER, f"{probability:.4f}"
    return found


def figure_text(figure: Figure) -> str:
    """What is judged: the text that trains, then each mention on a line of its own, repaired like it."""
    caption = training_text(figure["plain_caption"], figure["label"])
    return "\n".join([caption, *(training_text(mention["sentence"]) for mention in figure["mentions"])])


class Classifier:
    """An ONNX graph with one string tensor in, (n,) or (n, 1), and probabilities out: (n,), (n, 1), or (n, 2) of which
    the second column counts.
    """

    def __init__(self, data: bytes, uri: str) -> None:
        """Raises ConfigError: onnxruntime is not installed, or `data` is no such graph."""
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(
                f"{_KEY}.uri={uri} needs onnxruntime, on every node: pip install 'biomedclip-ray[classifier]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a task has one core
        options.log_severity_level = 4  # errors come as exceptions
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base class of their own
            hint = "; train with lowercase=False, texts come in lower case" if "locale" in str(error) else ""
            raise ConfigError(f"{_KEY}.uri={uri} cannot be loaded: {str(error).splitlines()[0]}{hint}") from error
        inputs = self._session.get_inputs()
        outputs = [out.name for out in self._session.get_outputs() if out.type in ("tensor(float)", "tensor(double)")]
        if len(inputs) != 1 or inputs[0].type != "tensor(string)" or not outputs:
            kinds = [[each.type for each in side] for side in (inputs, self._session.get_outputs())]
            raise ConfigError(
                f"{_KEY}.uri={uri} takes {kinds[0]} and gives {kinds[1]}; expected one tensor(string) in and a "
                "tensor(float) "
                "of probabilities out (skl2onnx: options zipmap=False)"
            )
        self._input, self._output = inputs[0], outputs[-1]
        shape = self._run(["a first text", "another"]).shape
        if shape not in ((2,), (2, 1), (2, 2)):
            raise ConfigError(
                f"{_KEY}.uri={uri} gives {shape} for 2 texts; expected one probability a text, or two classes"
            )

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n,), between 0 and 1: how surely each text is wanted; does not depend on the other texts."""
        parts = [
            self._run(texts[at : at + _BATCH]).reshape(len(texts[at : at + _BATCH]), -1)[:, -1]
            for at in range(0, len(texts), _BATCH)
        ]
        return np.concatenate([np.empty(0, np.float32), *parts]).astype(np.float32)

    def _run(self, texts: Sequence[str]) -> np.ndarray:
        batch = np.array([" ".join(text.lower().split()) for text in texts], dtype=object)
        if len(self._input.shape) == 2:
            batch = batch[:, None]
        result: np.ndarray = self._session.run([self._output], {self._input.name: batch})[0]
        return result


def classifier_sha256(uri: str) -> str:
    """The hash of a classifier's file, which stands for it in the fingerprint. Raises ConfigError where it cannot be
    read.
    """
    return hashlib.sha256(_read(uri)).hexdigest()


@lru_cache(maxsize=2)
def load_classifier(uri: str, sha256: str) -> Classifier:
    """The classifier with that hash; one per process. Raises ConfigError: not readable, no classifier,
    or another file.
    """
    data = _read(uri)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ConfigError(
            f"{_KEY}.uri={uri} is another file than when this run began; give the new one a name of its own"
        )
    return Classifier(data, uri)


def _read(uri: str) -> bytes:
    folder, _, name = uri.rpartition("/")
    try:
        return Place(folder or ".").read(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_KEY}.uri={uri} cannot be read: {error}; give a file that every node can read") from error
