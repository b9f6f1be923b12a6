import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biomedclip_ray.clip.tokenizer import Tokenizer, Ways, fit_tokenizer, load_tokenizer, openai_tokenizer

ODD = [
    "  Fig. 2:  caf\u00e9 &amp;amp; \u201cquoted\u201d  10^4 cells/\u00b5L ",
    "\u00e2\u20ac\u0153broken\u00e2\u20ac\x9d encoding",
    "",
    "lung " * 200,
    "\u03b2-catenin\u2009\u2265\u20095\u00a0mm \u4e2d\u6587 [SEP] & <b>",
]


def _open_clip_ids(folder: Path, texts: list[str], context: int) -> np.ndarray:
    from open_clip.tokenizer import HFTokenizer

    return HFTokenizer(str(folder), context_length=context)(texts).numpy()


def test_rows_start_with_cls_end_with_sep_and_are_padded(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["lung"])
    assert ids.shape == (1, 32) and ids.dtype == np.int64
    assert ids[0, 0] == 2 and ids[0, 2] == tokenizer.eos_id == 3 and tokenizer.pad_id == 0
    assert (ids[0, 3:] == 0).all()


def test_no_texts_give_no_rows(tokenizer: Tokenizer) -> None:
    assert tokenizer([]).shape == (0, 32)
    assert tokenizer.lengths([]).shape == (0,)


def test_each_text_says_whether_it_was_cut_and_what_it_used(tokenizer: Tokenizer) -> None:
    ids, truncated, n_tokens = tokenizer.encode(["lung", "", "lung " * 30, "lung " * 31])
    assert truncated == [False, False, False, True]
    assert n_tokens == [3, 2, 32, 32]
    assert (ids[2:, 31] == tokenizer.eos_id).all()
    assert tokenizer.lengths(["lung", "", "lung " * 30, "lung " * 31]).tolist() == n_tokens


def test_a_text_alone_and_in_a_list_give_the_same_row(tokenizer: Tokenizer, captions: list[str]) -> None:
    together = tokenizer([*captions[:20], *ODD])
    alone = np.concatenate([tokenizer([text]) for text in [*captions[:20], *ODD]])
    np.testing.assert_array_equal(together, alone)


def test_fitted_ids_are_those_of_plain_open_clip(tokenizer: Tokenizer, captions: list[str], tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    np.testing.assert_array_equal(_open_clip_ids(tmp_path, captions + ODD, 32), tokenizer(captions + ODD))


def test_a_bert_tokenizer_gives_open_clips_ids_before_and_after_saving(bert_folder: Path, tmp_path: Path) -> None:
    loaded = load_tokenizer(str(bert_folder), 48)
    expected = _open_clip_ids(bert_folder, ODD, 48)
    np.testing.assert_array_equal(loaded(ODD), expected)
    loaded.save(tmp_path)
    np.testing.assert_array_equal(_open_clip_ids(tmp_path, ODD, 48), expected)
    again = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(again(ODD), expected)
    assert (again.context_length, again.pad_id, again.eos_id) == (48, 0, 3)


def test_a_saved_tokenizer_comes_back_whole(tokenizer: Tokenizer, captions: list[str], tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.vocab_size, again.eos_id, again.pad_id, again.context_length) == (tokenizer.vocab_size, 3, 0, 32)
    np.testing.assert_array_equal(again(captions), tokenizer(captions))
    assert load_tokenizer(f"local-dir:{tmp_path}", 8)(captions).shape == (len(captions), 8)


def test_it_pickles_for_ray_tasks(tokenizer: Tokenizer, captions: list[str]) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again(captions), tokenizer(captions))
    assert again.eos_id == tokenizer.eos_id


def test_fitting_gives_the_same_vocabulary_in_every_process_and_needs_no_torch() -> None:
    program = (
        "import hashlib, random, sys\n"
        "from biomedclip_ray.clip.tokenizer import fit_tokenizer\n"
        "draw = random.Random(0)\n"
        "words = [''.join(draw.choice('abcdefghijklmnop') for _ in range(draw.randint(2, 9))) for _ in range(2000)]\n"
        "texts = [' '.join(draw.choice(words) for _ in range(20)) for _ in range(500)]\n"
        "tokenizer = fit_tokenizer(texts, 1500, 16)\n"
        "assert 'torch' not in sys.modules\n"
        "print(tokenizer.vocab_size, hashlib.sha256(tokenizer(texts).tobytes()).hexdigest())\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in range(4)
    ]
    assert len({run.stdout for run in runs}) == 1
    assert runs[0].stdout.startswith("1500 ")


def test_the_vocabulary_learns_frequent_words_and_spells_rare_ones() -> None:
    fitted = fit_tokenizer(["micrograph of a kidney"] * 5 + ["kid"], 60, 16)
    assert fitted.lengths(["micrograph", "kidney micrograph", "nek"]).tolist() == [3, 4, 5]


def test_too_small_a_vocabulary_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"model\.vocab_size=10 is less than the 12 entries"):
        fit_tokenizer(["abcd"], 10, 8)


def test_nothing_to_fit_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="captions are empty"):
        fit_tokenizer(["", "  "], 100, 8)


def test_a_name_that_cannot_be_reached_names_the_fix() -> None:
    with pytest.raises(ValueError, match=r"'nobody/nothing' cannot be loaded.*set model\.tokenizer"):
        load_tokenizer("nobody/nothing", 16)


# What open_clip's wrappers do beside the vocabulary
# --------------------------------------------------------------------

STRANGE = [
    *ODD,
    "A cat's <end_of_text> tail, DON'T",
    "hello <START_OF_TEXT>!!<end_of_text>x <start_of_text>",
    "\ufb01ne \uff21\uff22 &lt;b&gt; \u0130stanbul \U0001d400 \U0001f9ec x_y 3.5%",
    "a\x1cb\x85c\u200bd",
]


@pytest.mark.parametrize("way", ["lower", "whitespace", "canonicalize"])
@pytest.mark.parametrize("context", [77, 12])
def test_openais_bpe_gives_open_clips_ids_also_saved_and_pickled(
    captions: list[str], tmp_path: Path, way: str, context: int
) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    texts = [*captions[:50], *STRANGE]
    expected = SimpleTokenizer(context_length=context, clean=way)(texts).numpy()
    loaded = openai_tokenizer(context, way)
    loaded.save(tmp_path)
    for tokenizer in (loaded, load_tokenizer(tmp_path), pickle.loads(pickle.dumps(loaded))):
        np.testing.assert_array_equal(tokenizer(texts), expected)
        assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.fingerprint) == (49408, 49407, loaded.fingerprint)
    truncated = loaded.encode(texts).truncated
    assert truncated[texts.index("lung " * 200)] and not truncated[texts.index("")]


# the two libraries disagree on what no Unicode has named yet
ASSIGNED = st.characters(exclude_categories=("Cn", "Cs", "Co"))


@pytest.fixture(scope="module")
def openais() -> tuple[Tokenizer, Any]:
    from open_clip.tokenizer import SimpleTokenizer

    return openai_tokenizer(20), SimpleTokenizer(context_length=20)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(ASSIGNED, max_size=40), min_size=1, max_size=5))
def test_openais_bpe_gives_open_clips_ids_for_any_text(openais: tuple[Tokenizer, Any], texts: list[str]) -> None:
    ours, theirs = openais
    np.testing.assert_array_equal(ours(texts), theirs(texts).numpy())


def test_openais_bpe_needs_no_torch() -> None:
    code = (
        "import sys; from biomedclip_ray.clip.tokenizer import openai_tokenizer as t; t(77); assert 'torch' not "
        "in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("ways", "kwargs"),
    [
        (Ways("canonicalize"), {"clean": "canonicalize"}),
        (Ways("lower", strip_sep=True), {"clean": "lower", "strip_sep_token": True}),
        (Ways(mode="clips"), {"tokenizer_mode": "clips"}),
        (Ways("canonicalize", strip_sep=True), {"clean": "canonicalize", "strip_sep_token": True}),
    ],
)
def test_the_ways_of_siglip_and_clips_give_open_clips_ids(
    bert_folder: Path, captions: list[str], tmp_path: Path, ways: Ways, kwargs: dict[str, Any]
) -> None:
    from open_clip.tokenizer import HFTokenizer

    more = {"bos_token": "[MASK]", "eos_token": "."} if ways.mode == "clips" else {}
    texts = [*captions[:30], *STRANGE]
    expected = HFTokenizer(str(bert_folder), context_length=24, **kwargs, **more)(texts).numpy()
    loaded = load_tokenizer(bert_folder, 24, ways, **more)
    np.testing.assert_array_equal(loaded(texts), expected)
    loaded.save(tmp_path)
    np.testing.assert_array_equal(load_tokenizer(tmp_path)(texts), expected)
    assert loaded.fingerprint != load_tokenizer(bert_folder, 24).fingerprint


def test_a_tokenizer_that_pads_on_the_left_does_so_here_too(bert_folder: Path) -> None:
    from open_clip.tokenizer import HFTokenizer

    loaded = load_tokenizer(bert_folder, 24, padding_side="left")
    expected = HFTokenizer(str(bert_folder), context_length=24, padding_side="left")(ODD).numpy()
    np.testing.assert_array_equal(loaded(ODD), expected)
    assert loaded.ways.pad_left


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_a_bert_config_without_its_vocabulary_is_refused(
    bert_folder: Path, tmp_path: Path, left: tuple[str, ...]
) -> None:
    for name in ("config.json", *left):
        shutil.copy(bert_folder / name, tmp_path / name)
    with pytest.raises(
        ValueError, match=r"has \d entries where its config.json says 93: vocab.txt or tokenizer.json is missing"
    ):
        load_tokenizer(tmp_path, 24)
    shutil.copy(bert_folder / "vocab.txt", tmp_path / "vocab.txt")
    np.testing.assert_array_equal(load_tokenizer(tmp_path, 24)(ODD), load_tokenizer(bert_folder, 24)(ODD))
