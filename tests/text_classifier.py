"""A real text classifier for tests: TF-IDF and logistic regression fitted on the sample's sentences,
exported to ONNX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from biomedclip_ray.sample.plots import KINDS


def fit_gel_classifier(path: Path, **export: Any) -> Any:
    """Write an ONNX file that gives the probability that a text speaks of a gel; returns scikit-learn's pipeline."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    drawn = [(name, draw(np.random.default_rng(seed), 60, 60)[1]) for name, draw in KINDS.items() for seed in range(8)]
    # "[a-z]+" on both sides: ONNX Runtime's words are not those of scikit-learn's default expression
    words = TfidfVectorizer(lowercase=False, token_pattern="[a-z]+")
    pipeline = make_pipeline(words, LogisticRegression(C=100)).fit(
        [sentence.lower() for _, sentence in drawn], [name == "gel" for name, _ in drawn]
    )
    options = {id(pipeline): {"zipmap": False} | export.pop("options", {})}
    model = to_onnx(pipeline, initial_types=[("text", StringTensorType(export.pop("shape", [None])))], options=options)
    path.write_bytes(model.SerializeToString())
    return pipeline
