import time
from collections import Counter

import numpy as np
import pytest

from biomedclip_ray.figures.kinds import KINDS, figure_kind
from biomedclip_ray.sample import plots

# What the sample draws, in the names of `KINDS`.
DRAWN = {
    "micrograph": "micrograph",
    "fluorescence": "fluorescence",
    "radiograph": "radiology",
    "gel": "gel",
    "histology": "histology",
    "ecg": "signal",
    "survival_curve": "chart",
    "bar_chart": "chart",
    "heat_map": "heat_map",
    "pathway": "diagram",
}


def _drawn(kind: str, n: int) -> list[tuple[np.ndarray, str]]:
    pictures = (plots.KINDS[kind](np.random.default_rng(100 + s), 480, 360) for s in range(n))
    return [(np.asarray(image.convert("RGB")), sentence) for image, sentence in pictures]


@pytest.mark.parametrize(
    "sentence, histology",
    [
        ("The patient before he was treated.", False),
        ("H&E, 200x.", True),
        ("HE staining of the section.", True),
        ("Hematoxylin and eosin.", True),
    ],
)
def test_he_is_a_pronoun_and_h_and_e_a_stain(sentence: str, histology: bool) -> None:
    picture = _drawn("histology", 1)[0][0]
    plain, told = figure_kind(picture, "")[1], figure_kind(picture, sentence)
    assert (told[0] == "histology" and told[1] > plain) is histology


@pytest.mark.parametrize("drawn, kind", DRAWN.items())
def test_the_samples_kinds_are_told_by_picture_and_caption(drawn: str, kind: str) -> None:
    answers = Counter(figure_kind(image, text)[0] for image, text in _drawn(drawn, 12))
    assert answers[kind] >= 9


def test_drawings_and_photographs_are_told_apart_without_a_caption() -> None:
    on_paper = {"chart", "signal", "diagram", "table", "sequence", "heat_map", "map", "chemical_structure", "equation"}
    for drawn in ("survival_curve", "bar_chart", "ecg", "pathway"):
        assert all(figure_kind(image, "")[0] in on_paper for image, _ in _drawn(drawn, 6))
    for drawn in ("micrograph", "fluorescence", "radiograph", "gel"):
        assert not any(figure_kind(image, "")[0] in on_paper for image, _ in _drawn(drawn, 6))


@pytest.mark.parametrize(
    "text, kind",
    [
        ("Sequence alignment of the conserved domain.", "sequence"),
        ("Phylogenetic tree of 16S rRNA.", "sequence"),
        ("Map of the study area with sampling sites.", "map"),
        ("Chemical structures of compounds 1-5.", "chemical_structure"),
        ("CONSORT flow diagram of the trial.", "diagram"),
        ("Kaplan–Meier survival curves.", "chart"),
        ("Mass spectrum of the peptide.", "signal"),
    ],
)
def test_among_drawings_the_caption_decides(text: str, kind: str) -> None:
    page = np.full((300, 400, 3), 255, np.uint8)
    page[40:260:20, 40:360:9] = 30
    assert figure_kind(page, text)[0] == kind


def test_the_score_is_a_share_and_the_kinds_are_sixteen_names() -> None:
    kind, score = figure_kind(np.zeros((40, 600, 3), np.uint8), "")
    assert kind in KINDS
    assert 1 / len(KINDS) <= score <= 1
    assert len(set(KINDS)) == 16


def test_a_picture_costs_a_few_milliseconds() -> None:
    image, text = _drawn("histology", 1)[0]
    began = time.process_time()
    for _ in range(20):
        figure_kind(image, text * 5)
    assert (time.process_time() - began) / 20 < 0.02


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (40, 1)])
def test_an_image_of_one_line_has_a_kind(shape: tuple[int, int]) -> None:
    kind, share = figure_kind(
        np.arange(shape[0] * shape[1] * 3, dtype=np.uint8).reshape(*shape, 3), "A chest radiograph"
    )
    assert kind == "radiology" and 0 < share <= 1
