import time

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
        ("A) liver and B) kidney", {"A": "liver", "B": "kidney"}),
        ("[A] Liver; [B] kidney", {"A": "Liver", "B": "kidney"}),
        ("Sections of liver (A) and kidney (B).", {"A": "Sections of liver.", "B": "kidney."}),
        ("Organs. Sections of liver (a); kidney (b).", {"a": "Organs. Sections of liver.", "b": "Organs. kidney."}),
        ("(A, B) Liver. (C) Kidney.", {"A": "Liver.", "B": "Liver.", "C": "Kidney."}),
        ("(A-C) Liver. (D) Kidney.", {"A": "Liver.", "B": "Liver.", "C": "Liver.", "D": "Kidney."}),
        ("(A) and (B) Liver. (C) Kidney.", {"A": "Liver.", "B": "Liver.", "C": "Kidney."}),
        ("Panel A shows liver. Panel B shows kidney.", {"A": "shows liver.", "B": "shows kidney."}),
        ("Liver (left, A) and kidney (panel B, 200×).", {"A": "Liver.", "B": "kidney."}),
        ("Whole liver (a). b Kidney", {"a": "Whole liver.", "b": "Kidney"}),
        ("a liver; b kidney; and c lung", {"a": "liver", "b": "kidney", "c": "lung"}),
        ("Liver (HE, A) and kidney (PAS, B).", {"A": "Liver (HE).", "B": "kidney (PAS)."}),
        ("Scan (panel (a)) and section (panel (b)).", {"a": "Scan.", "b": "section."}),
        ("A and C: Liver. B and D: Kidney.", {"A": "Liver.", "B": "Kidney.", "C": "Liver.", "D": "Kidney."}),
        ("(A, B) Sections of liver.", {"A": "Sections of liver.", "B": "Sections of liver."}),
        ("(B1) Liver. (B2) Kidney. (A) Mouse.", {"A": "Mouse.", "B1": "Liver.", "B2": "Kidney."}),
        ("(B1-B3) Liver. (A) Mouse.", {"A": "Mouse.", "B1": "Liver.", "B2": "Liver.", "B3": "Liver."}),
        ("(i) Liver. (ii) Kidney. (iii) Lung.", {"i": "Liver.", "ii": "Kidney.", "iii": "Lung."}),
        ("(A) Liver. Bar 5 µm (B) Kidney.", {"A": "Liver. Bar 5 µm", "B": "Kidney."}),
        ("(A) Liver. (B)-(D) Kidney. (E) Lung.", {"A": "Liver."} | dict.fromkeys("BCD", "Kidney.") | {"E": "Lung."}),
        ("A) Liver. B)–C) Kidney.", {"A": "Liver.", "B": "Kidney.", "C": "Kidney."}),
        ("(a) to (b) Liver. (c) Kidney.", {"a": "Liver.", "b": "Liver.", "c": "Kidney."}),
        ("(A through C) Liver. (D) Kidney.", dict.fromkeys("ABC", "Liver.") | {"D": "Kidney."}),
        ("(A)-(B) Liver (A), kidney (B).", {"A": "Liver.", "B": "kidney."}),
        ("Panel (A) Liver of mice; panel (B) kidney of rats.", {"A": "Liver of mice", "B": "kidney of rats."}),
        ("Organs. In (a) liver; in (b), kidney.", {"a": "Organs. liver", "b": "Organs. kidney."}),
        ("Figure 1(a) Liver. Figure 1(b) Kidney.", {"a": "Liver.", "b": "Kidney."}),
        ("Liver graph (A) and kidney image (B).", {"A": "Liver graph.", "B": "kidney image."}),
        ("Liver in panel (A), kidney in panel (B).", {"A": "Liver in panel.", "B": "kidney in panel."}),
        ("(A) Liver; B) kidney; C) lung.", {"A": "Liver", "B": "kidney", "C": "lung."}),
        ("（A） Liver. （B） Kidney.", {"A": "Liver.", "B": "Kidney."}),
        ("a)The liver. b)The kidney.", {"a": "The liver.", "b": "The kidney."}),
    ],
)
def test_each_form_of_label_gives_its_panels_text(caption: str, expected: dict[str, str]) -> None:
    assert subcaptions(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "A. Nerve, B. muscle, and C. bone.",
        "A. nerve, B. muscle and C. bone",
        "a. nerve, b. muscle, c. bone",
        "a. nerve; b. muscle; and c. bone.",
        "A: nerve, B: muscle and C: bone",
        "a: nerve; b: muscle; c: bone",
        "a) nerve, b) muscle and c) bone",
        "A – nerve, B – muscle, and C – bone.",
    ],
)
def test_the_items_of_one_sentence_are_panels(caption: str) -> None:
    texts = [text.lower().strip(".") for text in subcaptions(caption).values()]
    assert texts == ["nerve", "muscle", "bone"]


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("Sections of A. nerve, B. muscle.", {"A": "Sections of nerve", "B": "Sections of muscle."}),
        ("Stains: a. HE, b. PAS and c. GMS.", {"a": "Stains: HE", "b": "Stains: PAS", "c": "Stains: GMS."}),
        ("Mice. A. Skin, B. lung. C. Hair.", {"A": "Mice. Skin", "B": "Mice. lung.", "C": "Mice. Hair."}),
        ("A, B. Nerve, C. muscle.", {"A": "Nerve", "B": "Nerve", "C": "muscle."}),
        (
            "A. Nerve with E. coli, B. muscle approx. 3 mm thick.",
            {"A": "Nerve with E. coli", "B": "muscle approx. 3 mm thick."},
        ),
        ("Genes (A: ICS1, B: NPR1).", {"A": "Genes (ICS1)", "B": "Genes (NPR1)."}),
        ("A. Skin, B. Hair, C. Bone, D. Nerve.", {"A": "Skin", "B": "Hair", "C": "Bone", "D": "Nerve."}),
        # In title case they look like names, but that there are three words, or that they are a sentence.
        (
            "A. Normal Kidney Tissue, B. Diabetic Kidney Tissue.",
            {"A": "Normal Kidney Tissue", "B": "Diabetic Kidney Tissue."},
        ),
        (
            "Stains: A. Oil, B. Nile Red Dye and C. PAS.",
            {"A": "Stains: Oil", "B": "Stains: Nile Red Dye", "C": "Stains: PAS."},
        ),
        ("Eyes. A. Left Eye, B. Right Eye.", {"A": "Eyes. Left Eye", "B": "Eyes. Right Eye."}),
        # Letters listed within a lettered panel are none.
        ("(a) Plants: A. root, B. stem, C. leaf. (b) Mice.", {"a": "Plants: A. root, B. stem, C. leaf.", "b": "Mice."}),
    ],
)
def test_the_items_of_one_sentence_share_what_frames_them(caption: str, expected: dict[str, str]) -> None:
    assert subcaptions(caption) == expected


@pytest.mark.parametrize(
    "caption, expected",
    [
        # The end, and up to a colon the beginning, of a sentence is about all that it names.
        ("Liver (A) and kidney (B) of mice. Lung (C).", {"A": "Liver of mice.", "B": "kidney of mice.", "C": "Lung."}),
        ("Lung (A). Stains: HE (B), PAS (C).", {"A": "Lung.", "B": "Stains: HE.", "C": "Stains: PAS."}),
        (
            "(A) Lung. Stained with (B) HE and (C) PAS.",
            {"A": "Lung.", "B": "Stained with HE", "C": "Stained with PAS."},
        ),
        # A list is gone through once more, in its sentence or after it.
        (
            "(A, B) Sections of liver (A) and kidney (B). Both grew. (C) Lung.",
            {"A": "Sections of liver. Both grew.", "B": "kidney. Both grew.", "C": "Lung."},
        ),
        (
            "Liver (A, B) and lung (C). A: Cells. B: Veins. C: Air.",
            {"A": "Liver. Cells.", "B": "Liver. Veins.", "C": "lung. Air."},
        ),
        (
            "Liver (A, B) and lung (C, D) of mice (A, C) and rats (B, D).",
            {"A": "Liver of mice.", "B": "Liver rats.", "C": "lung of mice.", "D": "lung rats."},
        ),
        # What comes after one label and before another is parted at its last joint.
        ("(A) Liver of mice, and lung (B).", {"A": "Liver of mice", "B": "lung."}),
    ],
)
def test_text_about_several_panels_goes_to_each_of_them(caption: str, expected: dict[str, str]) -> None:
    assert subcaptions(caption) == expected


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("(A) Liver. (B) Kidney. Bars in the liver (A) are 5 µm.", ["A", "B"]),
        ("(A) Liver. (B) Model of AMPK (A), mTOR (R) and the drug (D).", ["A", "B"]),
        ("(A) Liver. (B) Kidney; a, b, c, d and e represent veins.", ["A", "B"]),
        ("(A) Liver (a, c) and lung (b, d). (B, C) Kidney. (D) Skin.", ["A", "B", "C", "D"]),
        ("Enrichment (C1) of cells. a Liver. b Kidney. c Lung.", ["a", "b", "c"]),
        ("Treatments were: (i) none, (ii) a net, (iii) a sheet.", []),
    ],
)
def test_letters_that_refer_back_or_stand_for_something_else_are_no_labels(caption: str, expected: list[str]) -> None:
    assert list(subcaptions(caption)) == expected


@pytest.mark.parametrize(
    "caption, expected",
    [
        # A letter is left out, as J often is: the list goes on.
        (
            "(A-H) Mice. (I) Liver. (K) Kidney. (L) Lung.",
            dict.fromkeys("ABCDEFGH", "Mice.") | {"I": "Liver.", "K": "Kidney.", "L": "Lung."},
        ),
        ("A) Skin. B) Liver. C) Lung. E) Bone.", {"A": "Skin.", "B": "Liver.", "C": "Lung.", "E": "Bone."}),
        (
            "Skin (a), liver (b), lung (c), bone (e) and hair (f).",
            {"a": "Skin.", "b": "liver.", "c": "lung.", "e": "bone.", "f": "hair."},
        ),
        ("(A) Skin. (B) Liver. (D) Bone. (E) Hair.", {"A": "Skin.", "B": "Liver.", "D": "Bone.", "E": "Hair."}),
        # Styles are mixed.
        ("(A) Liver. (B) Kidney. C) Lung. D. Skin.", {"A": "Liver.", "B": "Kidney.", "C": "Lung.", "D": "Skin."}),
        (
            "a Liver. b Kidney. Bars: 10 µm (a), 20 µm (b).",
            {"a": "Liver. Bars: 10 µm.", "b": "Kidney. Bars: 20 µm."},
        ),
        ("A) Liver. B) Kidney. C) Lung. D: Skin.", {"A": "Liver.", "B": "Kidney.", "C": "Lung.", "D": "Skin."}),
        ("(A) Liver. (B) Kidney. C: Lung.", {"A": "Liver.", "B": "Kidney.", "C": "Lung."}),
        ("A: Liver. B: Kidney. (C) Lung.", {"A": "Liver.", "B": "Kidney.", "C": "Lung."}),
        ("(A) Liver. (B) and C) Kidney.", {"A": "Liver.", "B": "Kidney.", "C": "Kidney."}),
        # Magnifications.
        ("Liver: a x10 b x40", {"a": "Liver: x10", "b": "Liver: x40"}),
        ("Liver. a ×10. b ×40. c ×100.", {"a": "Liver. ×10.", "b": "Liver. ×40.", "c": "Liver. ×100."}),
        ("Liver. a x10, b x40.", {"a": "Liver. x10", "b": "Liver. x40."}),
        ("A: ×10, B: ×40", {"A": "×10", "B": "×40"}),
        ("Liver a x10 and b x40", {"a": "Liver x10", "b": "Liver x40"}),
        ("Liver at low (a x10) and high (b ×40) power.", {"a": "Liver at low power.", "b": "high power."}),
        ("Liver (A-B x10). Lung (C x 40).", {"A": "Liver.", "B": "Liver.", "C": "Lung."}),
    ],
)
def test_a_list_with_a_gap_or_in_several_styles_is_one_list(caption: str, expected: dict[str, str]) -> None:
    assert subcaptions(caption) == expected


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("(A) Liver. (B) Kidney (A, B Hematoxylin).", {"A": "Liver.", "B": "Kidney (A, B Hematoxylin)."}),
        (
            "(A) Liver. (B) Kidney (A, B Hematoxylin; C PAS). (C) Lung.",
            {"A": "Liver.", "B": "Kidney (A, B Hematoxylin; C PAS).", "C": "Lung."},
        ),
        ("A Liver. B Kidney. (A, B Hematoxylin)", {"A": "Liver.", "B": "Kidney."}),
        ("(A) Liver. (B) Tumour of grade 3 (C3).", {"A": "Liver.", "B": "Tumour of grade 3 (C3)."}),
        ("(A) Liver of stage 2 (B2). (B) Kidney.", {"A": "Liver of stage 2 (B2).", "B": "Kidney."}),
        (
            "(A) Skin. (B) Liver. (C) Lung with vitamin (E).",
            {"A": "Skin.", "B": "Liver.", "C": "Lung with vitamin (E)."},
        ),
    ],
)
def test_a_remark_in_brackets_is_no_label_and_stays(caption: str, expected: dict[str, str]) -> None:
    assert subcaptions(caption) == expected


def test_a_remark_behind_labels_that_stand_nowhere_else_leaves_them_labels() -> None:
    caption = "Liver (A, B Hematoxylin) and kidney (C, D PAS)."
    assert subcaptions(caption) == {"A": "Liver.", "B": "Liver.", "C": "kidney.", "D": "kidney."}
    assert subcaptions("Blood (A, B cells) and lymph (B, T cells).") == {"A": "Blood.", "B": "lymph."}


def test_a_place_that_refers_back_stays_in_the_text_it_stands_in() -> None:
    assert subcaptions("(A) Liver. (B) Kidney like the liver (A). (C) Lung.")["B"] == "Kidney like the liver (A)."


@pytest.mark.parametrize("piece", ["(A) x (B) y. ", "A and B, C; ", "(A, B) x (A) y (B). ", "(((((A", "a and "])
def test_long_hostile_captions_take_no_long_time(piece: str) -> None:
    began = time.process_time()
    subcaptions(piece * 1000)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "A representative image of the liver.",
        "Liver (n = 3) of mice (p < 0.05), stained (H and E).",
        "Vitamin C. D-dimer was measured. E. coli was grown.",
        "(A) The only label.",
        "Cell(s) of the control (C) and of the mutant (M).",
        "Images were taken with a x10 and a x40 objective.",
        "Portraits of A. Smith, B. Jones, and C. Lee",
        "Mice. A. Smith and B. Jones took the photographs.",
        "Photographs by A. Garcia Marquez and B. van Dyck.",
        "Mice. A. Smith et al., B. Jones.",
        "Growth of A. niger, B. subtilis.",
        "Photographs by A. Smith, B. van Dyck and C. Lee.",
        "(A. Smith et al., B. Jones et al., unpublished)",
        "Drawn by A. B. Smith and C. D. Jones.",
        "Growth of E. coli, S. aureus and C. albicans.",
        "Growth of A. baumannii, B. cereus and C. albicans.",
        "Sources of vitamin A. B cells, C. elegans and D. melanogaster.",
        "Control group A: 5 mg, group B: 10 mg.",
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
