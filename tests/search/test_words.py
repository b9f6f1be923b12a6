"""What a search by words finds and must not confuse: a table, an index of real captions, and any text at all."""

import json
import re
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biomedclip_ray.search import folding, words

PRIMER = "GATTACAGATTACAGATTACAGATTACAGATTACAGATTACA"

# what is asked, captions that must be found, captions that must not
TABLE = [
    ('"western blot"', ["Western blots of lysates", "a western-blot"], ["blot, western"]),
    ("ALL", ["Blasts of an ALL patient"], ["All mice are shown", "in all cases"]),
    ("all", ["Blasts of an ALL patient", "All mice are shown"], []),
    ("WHO grade", ["WHO grade III"], ["patients who had a grade"]),
    ("IT", ["IT injection"], ["it was injected"]),
    ("NO production", ["NO production by macrophages"], ["no production of IL-2"]),
    ("vitamin A", ["Vitamin A deficiency"], ["a patient with vitamin D deficiency"]),
    ("hepatitis B", ["Hepatitis B virus"], ["(B) hepatitis C virus"]),
    ("T cells", ["T cells", "CD4+ T-cell"], ["B cells at time T"]),
    ("type 2 diabetes", ["type 2 diabetes"], ["2 patients with diabetes of type 1"]),
    (PRIMER, [f"Primer 5'-{PRIMER}-3'"], ["Primer GATTACA"]),
    ("5 µm", ["Scale bar 5 μm", "scale bar: 5 µm", "5µm"], ["5 mm", "50 μm", "5 μM"]),
    ("5 mM", ["5 mM glucose"], ["5 mm", "5 μM"]),
    ("TNFα", ["TNF-α", "TNF-alpha", "TNFalpha", "tnf alpha", "TNFα"], ["TNF-β", "TNF", "IFNα"]),
    ("TNF-alpha", ["TNF-α", "TNFα"], ["TNF-beta"]),
    ("NFkappaB", ["NF-κB", "NF-kappa B", "NFκB"], ["NFAT"]),
    ("IL6", ["IL-6", "IL6", "IL 6", "IL‑6"], ["IL-16", "IL-60", "6 of IL"]),
    ("β-catenin", ["beta-catenin", "β catenin", "Beta-Catenin"], ["α-catenin"]),
    ("beta", ["TGF-β1", "IL-1beta", "β-actin"], ["diabetics", "alphabet"]),
    ("catenin", ["β-catenin"], ["concatenation"]),
    ("cells", ["a cell", "Cells", "CELL"], ["cellular"]),
    ("nuclei", ["the nucleus", "Nuclei"], ["nucleolus"]),
    ("metastasis", ["metastases"], ["metabolism"]),
    ("mice", ["a mouse", "Mice"], ["mite"]),
    ("stained", ["staining with DAPI"], ["strain"]),
    ("aids", ["AIDS patients", "hearing aids"], []),
    ("AIDS", ["AIDS patients"], ["a hearing aid"]),
    ("siRNAs", ["siRNA knock-down"], ["mRNA"]),
    ("APOE", ["Apoe-/- mice", "APOE4"], ["apical"]),
    ("ER+", ["ER+ tumours", "ER⁺"], ["ER- tumours", "ER−", "ER"]),
    ("ER-", ["ER- tumours", "ER− tumours", "ER–, PR–"], ["ER+ tumours", "ER-positive"]),
    ("ER", ["ER+ tumours", "ER- tumours"], ["HER2"]),
    ("Apoe-/-", ["Apoe−/− mice"], ["Apoe+/- mice", "Apoe+/+"]),
    ("CD4+ CD25-", ["CD4+CD25− cells"], ["CD4+CD25+ cells", "CD4-CD25+"]),
    ("< 0.05", ["p < 0.05", "P<0.05", "*p<.05"], ["p > 0.05", "p = 0.05", "p < 0.01"]),
    ("> 0.05", ["p>0.05"], ["p < 0.05"]),
    ("p ≤ 0.05", ["p <= 0.05", "p≤0.05"], ["p < 0.05", "p ≥ 0.05"]),
    ("0.5", ["0.5 mg"], ["0.05 mg", "5 mg"]),
    ("1000 cells", ["1,000 cells"], ["1 cell, 000"]),
    ("-80 °C", ["stored at −80 °C"], ["at 80 °C"]),
    ("10^6", ["10⁶ cells"], ["106 cells", "10^-6 M"]),
    ("CO2", ["CO₂", "5% CO2"], ["CO", "2 CO"]),
    ("Ca2+", ["Ca²⁺ influx"], ["Ca influx"]),
    ("V600E", ["p.V600E", "BRAF V600E"], ["V600K"]),
    ("HER2", ["HER2/neu", "HER-2"], ["her mother"]),
    ("Crohn", ["Crohn's disease", "Crohn’s"], ["chronic"]),
    ("Sjogren", ["Sjögren's syndrome"], ["Sjaelland"]),
    ("H&E", ["H&E stain", "H & E"], ["E and H"]),
    ("not", ["tumour is not malignant"], ["a knot"]),
    ("evidence of metastasis", ["evidence of metastasis"], ["evidence for toxicity"]),
    ('"evidence of metastasis"', ["evidence of metastasis"], ["evidence for metastasis"]),
]


def index_of(folder: Path, documents: list[str]) -> lance.LanceDataset:
    table = pa.table({folding.COLUMN: documents, "n": range(len(documents))})
    dataset = lance.write_dataset(table, str(folder / "words.lance"))
    dataset.create_scalar_index(folding.COLUMN, index_type="INVERTED", **folding.INVERTED_INDEX)
    return dataset


def found(dataset: lance.LanceDataset, query: str) -> set[int]:
    reading = words.read(query)
    if not reading.required:
        return set()
    scanner = dataset.scanner(columns=["n"], full_text_query=reading.all_of(), disable_scoring_autoprojection=True)
    return set(scanner.to_table()["n"].to_pylist())


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> tuple[lance.LanceDataset, list[str]]:
    captions = list(dict.fromkeys(text for _, good, bad in TABLE for text in good + bad))
    return index_of(tmp_path_factory.mktemp("table"), [folding.document(text) for text in captions]), captions


@pytest.mark.parametrize(("query", "good", "bad"), TABLE, ids=[row[0][:20] for row in TABLE])
def test_a_query_finds_what_is_meant_and_nothing_that_it_must_not_confuse(table, query, good, bad):
    dataset, captions = table
    hits = {captions[n] for n in found(dataset, query)}
    assert set(good) - hits == set()
    assert set(bad) & hits == set()


# what is asked, and by which words of the caption one tells by eye that it is meant
MEANT = [
    ("western blots", r"(?i)western[\s-]blots?\b|blot\w*.*western"),
    ("β-actin", r"(?i)(β|\bbeta)[\s-]?actin"),
    ("IL-6", r"\bIL[-‐–\s]?6\b"),
    ("TNFα", r"(?i)TNF[-‐–\s]?(α|alpha)"),
    ("scale bars", r"(?i)(?=.*\bscale)(?=.*\bbars?\b)"),
    ("mice", r"(?i)\b(mice|mouse)\b"),
    ("cell", r"(?i)\bcells?\b"),
    ("10 μm", r"(?<![\d.,])10[\s ]?[μµ]m\b"),
    ("p < 0.05", r"(?i)\bp\s*<\s*0?\.05(?!\d)"),
    ("CD4+", r"\bCD4\+"),
    ("DNA", r"\bDNAs?\b"),
    ("t-test", r"(?i)\bt[-‐–\s]tests?\b"),
    ("nuclei", r"(?i)\bnucle(us|i)\b"),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory, corpus) -> tuple[lance.LanceDataset, list[str]]:
    captions = []
    for name in ("expected/figures.jsonl", "expected/jats-2026-24.jsonl", "captions/subcaptions-dev.jsonl"):
        captions += [json.loads(line)["caption"] for line in (corpus / name).read_text().splitlines()]
    captions = [caption for caption in dict.fromkeys(captions) if caption]
    return index_of(tmp_path_factory.mktemp("real"), [folding.document(text) for text in captions]), captions


def test_recall_and_precision_over_real_captions(real):
    dataset, captions = real
    assert len(captions) > 250
    right = missed = wrong = 0
    for query, pattern in MEANT:
        hits = found(dataset, query)
        truth = {n for n, caption in enumerate(captions) if re.search(pattern, caption.replace("\n", " "))}
        right, missed, wrong = right + len(hits & truth), missed + len(truth - hits), wrong + len(hits - truth)
    assert right > 200
    assert right / (right + missed) >= 0.98, missed
    assert right / (right + wrong) >= 0.98, wrong


def test_highlights_are_the_words_that_were_asked_for():
    caption = "(A) TNF-α and IL6 in the nuclei of ER+ cells; (B) TNF-β."
    spans = words.highlights(caption, words.read('"nucleus of" TNFalpha ER+ IL-6'))
    assert [caption[start:end] for start, end in spans] == ["TNF-α", "IL6", "nuclei of", "ER+"]


@pytest.mark.parametrize(
    "query",
    [
        "PMC10009416",
        "pmc10009416.2",
        '"PMC10009416.1/F2#0"',
        "PMID: 36908351",
        "36908351",
        '"36908351"',
        "10.1371/Journal.pone.0091296",
        '"10.1371/journal.pone.0091296"',
        "doi:10.1371/journal.pone.0091296.",
        "https://doi.org/10.1371/journal.pone.0091296",
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC10009416/",
        "https://www.ncbi.nlm.nih.gov/pmc/articles/PMC10009416/figure/F2/",
        "https://pubmed.ncbi.nlm.nih.gov/36908351/",
        "https://europepmc.org/article/MED/36908351",
        "https://europepmc.org/article/PMC/PMC10009416",
        "gel PMC10009416",
    ],
)
def test_an_article_is_found_by_its_numbers_and_links(tmp_path, query):
    ids = ("PMC10009416.1", "36908351", "10.1371/journal.pone.0091296")
    documents = [folding.document("A gel.", *ids), folding.document("A gel of 36908352.", "PMC1.1", "2", "10.1/2")]
    assert found(index_of(tmp_path, documents), query) == {0}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> lance.LanceDataset:
    documents = [folding.document(text) for text in ("ER+ cells in vitamin A", "a < 0.05", "β-catenin µ")]
    return index_of(tmp_path_factory.mktemp("small"), documents)


TEXTS = st.one_of(
    st.text(max_size=80),
    st.text(alphabet="\"“”'+-−<>=≤%/^.,()&|*~!?\\:{}[] aA1µβ²⁺₂\u0301\x00\ud800\n\t", max_size=40),
    st.lists(st.sampled_from(["ALL", "a", "ER+", '"', "< 0.05", "10.1/x", "PMC1", "who", "β", "IL-6", "-", "²"])).map(
        " ".join
    ),
)


@settings(max_examples=300, deadline=None)
@given(query=TEXTS)
def test_no_text_is_an_error(small, query):
    assert found(small, query) <= {0, 1, 2}
    reading = words.read(query)
    if reading.required:
        small.scanner(columns=["n"], full_text_query=reading.any_of(), disable_scoring_autoprojection=True).to_table()
    for start, end in words.highlights(query, reading):
        assert 0 <= start < end <= len(query)


@settings(max_examples=200, deadline=None)
@given(caption=TEXTS)
def test_pieces_hold_no_blank_and_stand_where_they_say(caption):
    for piece in folding.pieces(caption):
        assert piece.text
        assert not re.search(r"\s", piece.text)
        assert 0 <= piece.start < piece.end <= len(caption)
    folding.document(caption).encode()


def test_a_caption_finds_itself_by_its_own_words():
    caption = "Expression of IL-1β in CD8+ T cells (mean ± SD, n = 12)."
    assert set(words.read(caption).required[0].phrases[0]) <= set(folding.document(caption).split())


@pytest.mark.parametrize("query", ["x" * 100_000, "a " * 50_000, '"' * 10_000, "gel " * 3_000])
def test_a_long_text_is_cut_not_refused(small, query):
    assert found(small, query) == set()
