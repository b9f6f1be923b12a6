"""Text to token ids: fit a WordPiece on the training captions, or load a published one, OpenAI's BPE among them.

Tokens are made in the feed's tasks, so nothing here imports torch. The ids are those that plain open_clip makes of the
saved folder (`open_clip.get_tokenizer("local-dir:...")`): its cleaning (ftfy, HTML entities, white space) and the ways
of its wrappers (`Ways`) are repeated here. ftfy costs more than WordPiece itself; without it a bundle would read other
tokens outside than it was trained on.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ftfy
import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

PAD, UNKNOWN, START, END = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_CONTINUES = "##"
_ALPHABET = 1000  # characters a fitted vocabulary knows; rarer ones become [UNK]
_FITTED_CLASS = "PreTrainedTokenizerFast"
_OPENAI = ("<start_of_text>", "<end_of_text>")
_OPENAI_SPECIAL = re.compile("|".join(_OPENAI))
_OPENAI_WORDS = r"(?i:<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_OPENAI_MERGES = 49152 - 256 - 2
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WAYS = "open_clip"  # key of tokenizer_config.json


@dataclass(frozen=True)
class Ways:
    """What open_clip's wrappers do beside the vocabulary: `text_cfg.tokenizer_kwargs` and `tokenizer_mode`."""

    clean: Literal["whitespace", "lower", "canonicalize"] = "whitespace"
    strip_sep: bool = False
    """Put 0 in the place of the separator (CLIPA's strip_sep_token)."""
    mode: Literal["plain", "clips", "openai"] = "plain"
    """"clips": start, words, end, padding, and the class token in the last place; "openai": its BPE, which has no
    padding token.
    """
    pad_left: bool = False

    @property
    def text_cfg(self) -> dict[str, Any]:
        """What open_clip's model config must say of them."""
        usual = "lower" if self.mode == "openai" else "whitespace"
        kwargs: dict[str, Any] = {} if self.clean == usual else {"clean": self.clean}
        kwargs |= {"strip_sep_token": True} if self.strip_sep else {}
        says: dict[str, Any] = {"tokenizer_kwargs": kwargs} if kwargs else {}
        says |= {"tokenizer_mode": "clips"} if self.mode == "clips" else {}
        # of a Hugging Face tokenizer open_clip asks that a name be set, not what it says
        return says if self.mode == "openai" else says | {"hf_tokenizer_name": "in this folder"}


class Encoded(NamedTuple):
    ids: np.ndarray
    """int64 (n, context), padded with `pad_id`."""
    truncated: list[bool]
    """Whether the text was longer than the context."""
    n_tokens: list[int]
    """Tokens used, with start and end, at most the context."""


class Tokenizer:
    """Texts to token ids of one context length. Pickles, so that Ray tasks can hold one; threads may share it.

    Attributes: `pad_id`, `eos_id`, `vocab_size` (special tokens included), `context_length`, and `fingerprint`, a short
    hash of all that decides an id.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, context_length: int, names: dict[str, str], ways: Ways | None = None
    ) -> None:
        """`names` gives the tokens for pad_token, eos_token and, where there are, unk_, cls_, sep_ and bos_token.

        Raises ValueError when a named token is not in the vocabulary or the context has no room for a word.
        """
        if context_length < 3:
            raise ValueError(f"context_length={context_length} leaves no token between start and end")
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.ways = ways or Ways()
        needed = ("pad_token", "eos_token", *(("bos_token", "cls_token") if self.ways.mode == "clips" else ()))
        for role in needed + (("sep_token",) if self.ways.strip_sep else ()):
            if names.get(role) not in vocabulary:
                raise ValueError(f"the tokenizer has no {role}; its tokenizer_config.json must name one")
        self._backend = backend
        self._names = dict(names)
        self.context_length = context_length
        self.pad_id: int = vocabulary[names["pad_token"]]
        self.eos_id: int = vocabulary[names["eos_token"]]
        self.vocab_size = len(vocabulary)
        if self.ways.mode == "plain":
            backend.enable_truncation(context_length)
            side = "left" if self.ways.pad_left else "right"
            backend.enable_padding(
                direction=side, length=context_length, pad_id=self.pad_id, pad_token=names["pad_token"]
            )
        else:
            backend.no_truncation()
            backend.no_padding()
        self._special = {role: vocabulary[token] for role, token in names.items() if token in vocabulary}
        ways_text = "" if self.ways == Ways() else json.dumps(asdict(self.ways))
        self.fingerprint = hashlib.sha256((backend.to_str() + ways_text).encode()).hexdigest()[:12]

    def __call__(self, texts: list[str]) -> np.ndarray:
        """int64 (n, context)."""
        return self._encoded(texts).ids

    def encode(self, texts: list[str]) -> Encoded:
        """Ids with what a caller must be told: which texts were cut, and how many tokens each used."""
        return self._encoded(texts)

    def lengths(self, texts: list[str]) -> np.ndarray:
        """int64 (n,): tokens used, with start and end, at most the context."""
        return np.asarray(self._encoded(texts).n_tokens, dtype=np.int64)

    def _encoded(self, texts: list[str]) -> Encoded:
        cleaned = [clean(text, self.ways.clean) for text in texts]
        if self.ways.mode != "plain":
            return self._framed([self._words(text) for text in cleaned])
        encodings = self._backend.encode_batch_fast(cleaned)
        ids = np.asarray([one.ids for one in encodings], dtype=np.int64).reshape(len(encodings), self.context_length)
        if self.ways.strip_sep:
            ids[ids == self._special["sep_token"]] = 0
        cut = [bool(one.overflowing) for one in encodings]
        return Encoded(ids, cut, [sum(one.attention_mask) for one in encodings])

    def _words(self, text: str) -> list[int]:
        """The ids of a cleaned text without start and end. OpenAI's own markers inside a text are themselves."""
        if self.ways.mode != "openai" or not _OPENAI_SPECIAL.search(text):
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        vocabulary, model = self._backend.get_vocab(), self._backend.model
        pieces = [piece for piece, _ in self._backend.pre_tokenizer.pre_tokenize_str(text)]
        words = ([vocabulary[p]] if p in _OPENAI else [token.id for token in model.tokenize(p)] for p in pieces)
        return [number for word in words for number in word]

    def _framed(self, words: list[list[int]]) -> Encoded:
        """Rows of start, words and end; in CLIPS' mode the class token behind the padding."""
        clips = self.ways.mode == "clips"
        start, end = self._special["bos_token"], self._special["eos_token"]
        room = self.context_length - (3 if clips else 2)
        ids = np.full((len(words), self.context_length), self.pad_id, dtype=np.int64)
        for row, one in zip(ids, words, strict=True):
            row[: min(len(one), room) + 2] = [start, *one[:room], end]
            if clips:
                row[-1] = self._special["cls_token"]
        used = [self.context_length if clips else min(len(one), room) + 2 for one in words]
        return Encoded(ids, [len(one) > room for one in words], used)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `load_tokenizer`, transformers and open_clip read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=False), encoding="utf-8")
        config: dict[str, Any] = {
            "tokenizer_class": _FITTED_CLASS,
            "model_max_length": self.context_length,
            "padding_side": "left" if self.ways.pad_left else "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            **self._names,
        }
        if self.ways != Ways():
            config[_WAYS] = asdict(self.ways)
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def clean(text: str, way: str = "whitespace") -> str:
    """What open_clip's wrappers do to a text before the tokenizer sees it."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if way == "canonicalize":
        text = text.replace("_", " ").translate(_NO_PUNCTUATION).lower()
    text = " ".join(text.split())
    return text.lower() if way == "lower" else text


def fit_tokenizer(texts: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
    """Fit a WordPiece (lower case, accents stripped, BERT's pre-tokenizer) that gives the same ids in every process.

    The library numbers a word's inner letters in the order of a randomly seeded hash map, and breaks ties between
    merges by these numbers: two runs give two vocabularies. Naming every letter beforehand, sorted, removes that.

    Args:
        texts: captions, as they train; read once.
        vocab_size: tokens at most, special ones included; a small corpus may give fewer.
        context_length: tokens of a row, start and end included.

    Raises:
        ValueError: no text, or a vocabulary too small for the letters (names model.vocab_size).
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    normal = [normalizer.normalize_str(clean(text)) for text in texts]
    counts: Counter[str] = Counter()
    for text in normal:
        counts.update(text)
    for character in [c for c in counts if c.isspace()]:
        del counts[character]
    if not counts:
        raise ValueError("no text to fit a tokenizer on: the training captions are empty")
    letters = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:_ALPHABET])
    first = [*SPECIAL, *letters, *(_CONTINUES + c for c in letters)]
    if vocab_size < len(first):
        raise ValueError(
            f"model.vocab_size={vocab_size} is less than the {len(first)} entries that the captions' "
            f"{len(letters)} characters need; raise model.vocab_size"
        )
    draft = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    draft.normalizer, draft.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    draft.train_from_iterator(
        normal,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=first,
            limit_alphabet=len(letters),
            continuing_subword_prefix=_CONTINUES,
            show_progress=False,
        ),
    )
    # The letters were special only to the trainer: in the tokenizer itself they must not match inside raw text.
    backend = tokenizers.Tokenizer(models.WordPiece(draft.get_vocab(), unk_token=UNKNOWN))
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(list(SPECIAL))
    ends = [(token, backend.token_to_id(token)) for token in (START, END)]
    backend.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    names = {"pad_token": PAD, "unk_token": UNKNOWN, "cls_token": START, "sep_token": END, "eos_token": END}
    return Tokenizer(backend, context_length, names)


def openai_tokenizer(context_length: int, clean: Any = "lower") -> Tokenizer:
    """The BPE of OpenAI's CLIP, open_clip's default, from the list of merges that open_clip ships.

    One word can be one of two: `!` is number 0, which fills the rows too.
    """
    package = find_spec("open_clip")  # not imported: it loads torch
    assert package is not None and package.submodule_search_locations is not None
    packed = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")[1 : _OPENAI_MERGES + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    letters = [*map(chr, printed), *(chr(256 + n) for n in range(len(others)))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), *_OPENAI]
    vocabulary = {word: n for n, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    split = pre_tokenizers.Split(tokenizers.Regex(_OPENAI_WORDS), "removed", invert=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    names = {"pad_token": "!", "bos_token": _OPENAI[0], "eos_token": _OPENAI[1]}
    return Tokenizer(backend, context_length, names, Ways(clean, mode="openai"))


def load_tokenizer(
    uri: str | Path, context_length: int | None = None, ways: Ways | None = None, **kwargs: Any
) -> Tokenizer:
    """Load a tokenizer from a folder, or by its Hugging Face name (network or cache).

    Args:
        uri: a folder with tokenizer.json (or BERT's vocab.txt), a bundle, or a Hugging Face name.
        context_length: tokens of a row; None: what the folder says.
        ways: what open_clip's wrapper is told beside; None: what a folder of `Tokenizer.save` says, else the usual.
        kwargs: what transformers' AutoTokenizer is told beside.

    Raises:
        ValueError: nothing there, no network, no padding or end token, an unknown context, or a vocabulary that is not
            the model's.
    """
    folder = Path(str(uri).removeprefix("local-dir:"))
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    if config.get("tokenizer_class") == _FITTED_CLASS and (folder / "tokenizer.json").is_file() and not kwargs:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        names = {role: _content(config[role]) for role in _ROLES if config.get(role)}
        length = config.get("model_max_length")
        pad_left = config.get("padding_side") == "left"
        ways = ways or Ways(**config.get(_WAYS, {}))
    else:
        backend, names, length, pad_left = _from_transformers(str(uri), kwargs)
    ways = replace(ways or Ways(), pad_left=pad_left)
    names.setdefault("eos_token", names.get("sep_token", ""))
    if context_length is None:
        if not isinstance(length, int) or length > 1_000_000:  # transformers writes 1e30 for "unknown"
            raise ValueError(f"the tokenizer {uri} does not say its context length; give one")
        context_length = length
    return Tokenizer(backend, context_length, names, ways)


_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "eos_token", "bos_token")


def _content(token: str | dict[str, str]) -> str:
    """A special token stands in tokenizer_config.json as text, or as a mapping with its `content`."""
    return token if isinstance(token, str) else token["content"]


def _from_transformers(
    uri: str, kwargs: dict[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, str], int | None, bool]:
    """Any other tokenizer goes through transformers, which open_clip asks too; it may override tokenizer.json."""
    from transformers import AutoTokenizer

    name = uri.removeprefix("local-dir:")
    try:
        loaded = AutoTokenizer.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer {uri!r} cannot be loaded ({str(error).splitlines()[0]}); set model.tokenizer to a folder "
            "with "
            "tokenizer.json or vocab.txt, to a Hugging Face name that can be reached, or to fit"
        ) from error
    if not loaded.is_fast:
        raise ValueError(f"the tokenizer {uri!r} has no tokenizer.json form; convert it with transformers first")
    words = _words_of_model(name)
    if words is not None and len(loaded) < words / 2:
        # a BERT config without vocab.txt makes a tokenizer of five entries, and every word is unknown
        raise ValueError(
            f"the tokenizer {uri!r} has {len(loaded):,} entries where its config.json says {words:,}: vocab.txt or "
            "tokenizer.json is missing there; copy it from where the model is from"
        )
    names = {role: str(loaded.special_tokens_map[role]) for role in _ROLES if role in loaded.special_tokens_map}
    backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    return backend, names, int(loaded.model_max_length), loaded.padding_side == "left"


def _words_of_model(name: str) -> int | None:
    """The vocabulary that the config beside a tokenizer names, where there is one."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError):
        return None
    size = config.to_dict().get("vocab_size") or (config.to_dict().get("text_config") or {}).get("vocab_size")
    return int(size) if size else None
