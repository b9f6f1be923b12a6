from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from biomedclip_ray.figures.captions import in_one_language, language, repair, training_text


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("Growth of\n  10⁴  cells\u00a0at 37\u2009°C.", "Growth of 10^4 cells at 37 °C."),
        ("at 10⁻⁶ M and 5 × 10⁷ cfu", "at 10^-6 M and 5 × 10^7 cfu"),
        ("H₂O, CO₂ and Ca²⁺ in cm²", "H2O, CO2 and Ca2+ in cm2"),
        ("H2O stays, 10^4 too.", "H2O stays, 10^4 too."),
        ("as described [], [ , ] and shown (; ; ), here .", "as described, and shown, here."),
        ("p < .05 (n = 3) [12]", "p < .05 (n = 3) [12]"),
        ("invisible\u2062 times, soft\u00adhyphen, \ufeffmark", "invisible times, softhyphen, mark"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_the_text_is_what_a_person_would_read(caption: str, expected: str) -> None:
    assert training_text(caption) == expected


@pytest.mark.parametrize(
    "caption", ["(-)-epicatechin in lane 2", "Lane 1 (–), lane 2 (+)", "The call f() ends", "(-) control"]
)
def test_brackets_that_mean_something_stay(caption: str) -> None:
    assert training_text(caption) == caption


def test_a_line_separator_keeps_words_apart() -> None:
    assert training_text("one\u2028two") == "one two"


@pytest.mark.parametrize(
    "label, caption",
    [("1", "1-year survival"), ("1", "1,000 cells"), ("2", "2.5-year follow-up"), ("A", "A gel of DNA")],
)
def test_a_number_or_letter_that_begins_the_sentence_is_no_label(label: str, caption: str) -> None:
    assert training_text(caption, label) == caption
    assert training_text(f"{label}. {caption}", label) == caption


@pytest.mark.parametrize(
    ("label", "caption"),
    [("Scheme", "Scheme of the pathway."), ("Figure 1", "Figure 1 shows the liver."), ("Map", "Map of Italy.")],
)
def test_a_label_that_the_sentence_needs_stays(label: str, caption: str) -> None:
    assert training_text(caption, label) == caption


def test_a_label_that_the_caption_repeats_is_dropped() -> None:
    assert training_text("Figure 1. Cells.", "Figure 1") == "Cells."
    assert training_text("FIG. 2 | Cells.", "Fig. 2.") == "Cells."
    assert training_text("Figure 10 shows cells.", "Figure 1") == "Figure 10 shows cells."
    assert training_text("Figure 1", "Figure 1") == "Figure 1"
    assert training_text("Cells.", None) == "Cells."


@pytest.mark.parametrize(
    "sound", ["Muñoz and l'été, l’été", "α–β “x” ≤ 5 µm ± 0.1 °C", "naïve Šmíd œdème", "日本語 текст", "‚quoted‘"]
)
def test_sound_text_is_not_repaired(sound: str) -> None:
    assert repair(sound) == sound


def test_utf8_read_as_mac_roman_or_windows_1252_is_repaired() -> None:
    sound = "TNFα and IFN‐β: 5–10 μm, “n” ≥ 3 × 10"
    assert repair(sound.encode().decode("mac_roman")) == sound
    assert repair("Î²-actin, 5â€“10 Âµm") == "β-actin, 5–10 µm"


def test_a_mixed_string_is_repaired_where_it_is_provable() -> None:
    assert repair("Muñoz: NF-Œ∫B 5‚Äì10") == "Muñoz: NF-κB 5–10"


@given(st.text(max_size=200))
def test_any_text_becomes_one_clean_line_and_stays_so(text: str) -> None:
    once = training_text(text)
    assert once == once.strip()
    assert "\n" not in once
    assert "  " not in once


@pytest.mark.parametrize(
    "text, code",
    [
        ("Expression of the gene in mice after treatment.", "en"),
        ("Expression du gène dans les cellules de souris après traitement avec le produit.", "fr"),
        ("Verteilung der Zellen in den Proben nach der Behandlung mit dem Wirkstoff.", "de"),
        ("Distribución de los pacientes por edad y sexo en el hospital de la ciudad.", "es"),
        ("Distribuição dos pacientes por idade e sexo no hospital da cidade em 2019.", "pt"),
        ("図1は細胞を示す", "ja"),
        ("图中显示了细胞的分布", "zh"),
        ("Распределение клеток по группам", "ru"),
        ("Panels (a), (e) and (o)", "en"),
        ("CT scan", None),
        ("12.5 (3)", None),
        ("", None),
    ],
)
def test_the_language_is_told_by_script_and_common_words(text: str, code: str | None) -> None:
    assert language(text) == code


@pytest.mark.parametrize(
    ("broken", "sound"),
    [
        ("│ Œ± and ‚Äì ─", "│ α and – ─"),
        ("caf√© │ 5 ¬µm", "café │ 5 µm"),
        ("β and Œ±-chain ‚â• 5 ¬∞C", "β and α-chain ≥ 5 °C"),
        ("‚îÄ Œ±", "─ α"),
        ("10 Â°C ─ 20 Â°C", "10 °C ─ 20 °C"),
        ("α ─ Mu√±oz", "α ─ Muñoz"),
    ],
)
def test_a_real_sign_that_no_accident_gives_does_not_stop_the_repair(broken: str, sound: str) -> None:
    assert repair(broken) == sound


@pytest.mark.parametrize(
    "text",
    ["5 Å² and 3 Å³", "Ø² of 3 Å° tilt", "2/√π of √π r", "5√Ω", "NESTLÉ®", "cœur®", "α─β │ Å", "REGIÃO – A", "≈±3"],
)
def test_a_real_letter_is_not_eaten(text: str) -> None:
    assert repair(text) == text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Radiografia de tórax mostrando opacidade em lobo inferior direito e derrame pleural", "pt"),
        ("Fluxograma do estudo com número de pacientes incluídos e excluídos em cada grupo", "pt"),
        ("Curva de sobrevida de Kaplan-Meier dos pacientes com câncer de mama tratados", "pt"),
        ("Radiographie du thorax montrant une opacité du lobe inférieur droit et un épanchement", "fr"),
        ("Curva de supervivencia de pacientes con cáncer de mama tratados con quimioterapia", "es"),
        ("Heterologous expression of PlHSP70 protein in E. coli. M: Protein marker, 1: induced", "en"),
    ],
)
def test_the_language_of_ten_words_and_more_is_told_where_common_words_tie_or_lack(text: str, code: str) -> None:
    assert language(text) == code


def test_every_mojibake_caption_of_the_corpus_is_repaired(corpus: Path) -> None:
    repaired = 0
    for path in sorted(corpus.glob("bucket/PMC*/*.xml")):
        if path.parent.name.startswith("PMC99"):
            continue
        for caption in etree.parse(path).iterfind(".//fig/caption"):
            text = "".join(map(str, caption.itertext()))
            if text.isascii():
                continue
            try:
                expected = text.encode("mac_roman").decode()
            except UnicodeError:
                continue
            repaired += 1
            assert repair(text) == expected
    assert repaired == 82


@pytest.mark.parametrize(
    ("english", "other"),
    [
        (
            "Distribution of the patients by age and by sex in the two groups.",
            "Distribución de los pacientes según la edad y el sexo en los dos grupos.",
        ),
        (
            "Chest radiograph showing an opacity in the right lower lobe.",
            "Radiografia de tórax mostrando opacidade em lobo inferior direito.",
        ),
        ("Age distribution of the patients in the study.", "患者的年龄分布。"),
        ("Distribution of the patients by age.", "Распределение пациентов по возрасту."),
        (
            "(A) Distribution of the cells. (B) Liver of the mice after treatment.",
            "(A) Verteilung der Zellen. (B) Leber der Mäuse nach der Behandlung.",
        ),
    ],
)
def test_of_a_caption_in_two_languages_that_nothing_marks_the_english_trains(english: str, other: str) -> None:
    for both in (f"{other} {english}", f"{english} {other}", f"{other} / {english}"):
        assert in_one_language(both) == english


@pytest.mark.parametrize(
    "text",
    [
        "Growth of E. coli in the medium. Data from the Universidad de los Andes y la Escuela.",
        "Map of the Rio de la Plata and the Sierra de los Padres in the region. Sampling sites are shown.",
        "Distribución de los pacientes según la edad y el sexo. En los dos grupos del estudio.",
        "使用 Western blot 检测 the protein 的表达 in the liver。",
        "Title page of La vida de los animales, in the library of the museum.",
    ],
)
def test_foreign_names_and_texts_of_one_language_stay(text: str) -> None:
    assert in_one_language(text) == text
