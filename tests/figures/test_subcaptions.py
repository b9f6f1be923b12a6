import pytest
from hypothesis import given
from hypothesis import strategies as st

from biomedclip_ray.figures.subcaptions import subcaptions


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("Organs. (A) Liver. (B) Kidney.", {"A": "Organs. Liver.", "B": "Organs. Kidney."}),
        ("a Liver of mice. b Kidney of rats.", {"a": "Liver of mice.", "b": "Kidney of rats."}),
        ("A. Liver. B. Kidney. C. Lung.", {"A": "Liver.", "B": "Kidney.", "C": "Lung."}),
        ("A: Liver; B: kidney", {"A": "Liver", "B": "kidney"}),
        ("A) liver and B) kidney", {"A": "liver and", "B": "kidney"}),
        ("[A] Liver; [B] kidney", {"A": "Liver", "B": "kidney"}),
        ("Sections of liver (A) and kidney (B).", {"A": "Sections of liver.", "B": "and kidney."}),
        ("Organs. Sections of liver (a); kidney (b).", {"a": "Organs. Sections of liver.", "b": "Organs. kidney."}),
        ("(A, B) Liver. (C) Kidney.", {"A": "Liver.", "B": "Liver.", "C": "Kidney."}),
        ("(A-C) Liver. (D) Kidney.", {"A": "Liver.", "B": "Liver.", "C": "Liver.", "D": "Kidney."}),
        ("(A) and (B) Liver. (C) Kidney.", {"A": "Liver.", "B": "Liver.", "C": "Kidney."}),
        ("Panel A shows liver. Panel B shows kidney.", {"A": "shows liver.", "B": "shows kidney."}),
        ("Liver (left, A) and kidney (panel B, 200×).", {"A": "Liver.", "B": "and kidney."}),
        ("Whole liver (a). b Kidney", {"a": "Whole liver.", "b": "Kidney"}),
    ],
)
def test_each_form_of_label_gives_its_panels_text(caption: str, expected: dict[str, str]) -> None:
    assert subcaptions(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "A representative image of the liver.",
        "Liver (n = 3) of mice (p < 0.05), stained (H and E).",
        "Vitamin C. D-dimer was measured. E. coli was grown.",
        "(A) The only label.",
        "Cell(s) of the control (C) and of the mutant (M).",
    ],
)
def test_what_is_no_sequence_of_labels_is_no_compound(caption: str) -> None:
    assert subcaptions(caption) == {}


def test_what_closes_the_caption_is_about_all_panels() -> None:
    texts = subcaptions("(A) Liver. (B) Kidney. Scale bars, 10 µm. Data are means of three mice.")
    assert texts["A"] == "Liver. Scale bars, 10 µm. Data are means of three mice."
    assert texts["B"] == "Kidney. Scale bars, 10 µm. Data are means of three mice."


def test_brackets_win_over_bare_letters_of_the_other_case() -> None:
    caption = "(A) The core; a, b, and c are branches. (B) The pathway."
    assert list(subcaptions(caption)) == ["A", "B"]


@given(st.text(alphabet="(AaBbCc)., -–and;:[]x1", max_size=80))
def test_any_text_gives_two_panels_or_none(caption: str) -> None:
    result = subcaptions(caption)
    assert len(result) != 1
    assert list(result) == sorted(result)
