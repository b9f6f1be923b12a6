"""Figures chosen by their text: patterns, and a real classifier exported to ONNX."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biomedclip_ray.config import ConfigError, PreprocessSelect, TextClassifier, parse
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.figures.select import Classifier, classifier_sha256, figure_text, left_out, load_classifier
from biomedclip_ray.schema import Reason
from biomedclip_ray.store.product import Product
from tests.text_classifier import fit_gel_classifier


def _figure(name: str, caption: str, *mentions: str) -> dict[str, Any]:
    sentences = [{"sentence": mention, "in_body": True} for mention in mentions]
    return {"figure_id": name, "label": "Figure 1", "caption": "raw", "plain_caption": caption, "mentions": sentences}


FIGURES = [
    _figure("gel", "Agarose GEL with  seven\nlanes and clear bands.", "See Figure 1."),
    _figure("mentioned", "A picture.", "The gel (Figure 2) has bands in seven lanes."),
    _figure("chart", "Bar chart of the mean score of four groups."),
]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("onnx") / "gel.onnx"
    return path, fit_gel_classifier(path)


def _classifier(path: Path) -> Classifier:
    return load_classifier(str(path), classifier_sha256(str(path)))


def test_a_pattern_is_looked_for_in_caption_and_mentions_in_any_case() -> None:
    assert left_out(FIGURES, PreprocessSelect(text=("gel", "nothing"))) == {"chart": (Reason.TEXT_FILTER, "")}
    assert left_out(FIGURES, PreprocessSelect()) == {}


@pytest.mark.parametrize("pattern", ["[α-ω]", r"10\^4", "^dose", "NF-κB"])
def test_what_is_judged_is_the_text_that_trains(pattern: str) -> None:
    """Mojibake repaired, powers with their sign, the label gone."""
    told = _figure("told", "Figure 1. Dose of 10^4 cells.", "NF-Œ∫B was seen.")
    other = _figure("other", "Figure 1. Of 104 cells, a dose.")
    assert list(left_out([told, other], PreprocessSelect(text=(pattern,)))) == ["other"]


def test_the_exported_classifier_gives_scikit_learns_probabilities(pipeline: tuple[Path, Any]) -> None:
    path, fitted = pipeline
    texts = [figure_text(figure) for figure in FIGURES] * 40 + [""]
    expected = fitted.predict_proba([" ".join(text.lower().split()) for text in texts])[:, 1]
    found = _classifier(path).probabilities(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert _classifier(path).probabilities([]).shape == (0,)


def test_below_the_threshold_a_figure_is_left_out_with_its_probability(pipeline: tuple[Path, Any]) -> None:
    path, fitted = pipeline
    odds = fitted.predict_proba([" ".join(figure_text(figure).lower().split()) for figure in FIGURES])[:, 1]
    assert odds[2] < 0.5 < min(odds[:2])
    select = PreprocessSelect(classifier=TextClassifier(uri=str(path)))
    assert left_out(FIGURES, select, _classifier(path)) == {"chart": (Reason.TEXT_CLASSIFIER, f"{odds[2]:.4f}")}
    both = PreprocessSelect(text=("agarose",), classifier=TextClassifier(uri=str(path), threshold=1.0))
    found = left_out(FIGURES, both, _classifier(path))
    assert [found[name][0] for name in ("gel", "mentioned", "chart")] == [
        Reason.TEXT_CLASSIFIER,
        Reason.TEXT_FILTER,
        Reason.TEXT_FILTER,
    ]


def test_a_column_of_texts_is_taken_as_well(tmp_path: Path, pipeline: tuple[Path, Any]) -> None:
    fit_gel_classifier(tmp_path / "column.onnx", shape=[None, 1])
    texts = [figure_text(figure) for figure in FIGURES]
    np.testing.assert_array_equal(
        _classifier(tmp_path / "column.onnx").probabilities(texts), _classifier(pipeline[0]).probabilities(texts)
    )


def _plan(uri: Path, threshold: float = 0.5) -> Product:
    raw = {"root": "r", "preprocess": {"select": {"classifier": {"uri": str(uri), "threshold": threshold}}}}
    config = parse(raw, "test")
    return preprocess.plan(config, Product.plan("r", "ingest", 1, {}, []))


def test_the_fingerprint_holds_what_the_file_says_and_not_where_it_lies(
    tmp_path: Path, pipeline: tuple[Path, Any]
) -> None:
    path, _ = pipeline
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    assert _plan(copy).fingerprint == _plan(path).fingerprint != _plan(path, 0.6).fingerprint
    copy.write_bytes(path.read_bytes() + b"\x12\x00")
    assert _plan(copy).fingerprint != _plan(path).fingerprint


def test_a_file_that_changes_during_a_run_is_refused(tmp_path: Path, pipeline: tuple[Path, Any]) -> None:
    path = tmp_path / "one.onnx"
    path.write_bytes(pipeline[0].read_bytes())
    planned = classifier_sha256(str(path))
    path.write_bytes(path.read_bytes() + b"\x12\x00")
    with pytest.raises(ConfigError, match="is another file than when this run began"):
        load_classifier(str(path), planned)


def test_what_is_no_classifier_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"classifier\.uri=.*missing\.onnx cannot be read"):
        _plan(tmp_path / "missing.onnx")
    with pytest.raises(ConfigError, match=r"classifier\.uri=x cannot be loaded"):
        Classifier(b"a pickle", "x")
    fit_gel_classifier(tmp_path / "maps.onnx", options={"zipmap": True})
    with pytest.raises(ConfigError, match=r"tensor\(float\) of probabilities out \(skl2onnx: options zipmap=False\)"):
        _classifier(tmp_path / "maps.onnx")


def test_without_onnxruntime_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what import sees where a package is not installed
    with pytest.raises(ConfigError, match=r"pip install 'biomedclip-ray\[classifier\]'"):
        Classifier(b"", "x")


@pytest.mark.parametrize(
    "select, words",
    [
        ({"text": ["gel("]}, "preprocess.select.text=['gel(']: 'gel(' is no regular expression"),
        ({"classifier": {"threshold": 0.5}}, "preprocess.select.classifier.uri is missing"),
        ({"classifier": {"uri": "x", "threshold": 2}}, "preprocess.select.classifier.threshold=2"),
        ({"classifier": {"uri": "x", "treshold": 0.2}}, "did you mean preprocess.select.classifier.threshold?"),
    ],
)
def test_a_wrong_selection_is_refused_by_its_key(select: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"root": "r", "preprocess": {"select": select}}, "run.yaml")
    assert words in str(caught.value)
