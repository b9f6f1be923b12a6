"""Text to token ids: fit a WordPiece on the training captions, or load a published one.

Tokens are made in the feed's tasks, so nothing here imports torch. The ids are those that plain open_clip makes of the
saved folder (`open_clip.get_tokenizer("local-dir:...")`): its cleaning (ftfy, HTML entities, white space) is repeated
here. ftfy costs more than WordPiece itself; without it a bundle would read other tokens outside than it was trained on.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import ftfy
import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

PAD, UNKNOWN, START, END = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_CONTINUES = "##"
_ALPHABET = 1000  # characters a fitted vocabulary knows; rarer ones become [UNK]
_FITTED_CLASS = "PreTrainedTokenizerFast"


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

    def __init__(self, backend: tokenizers.Tokenizer, context_length: int, names: dict[str, str]) -> None:
        """`names` gives the tokens for pad_token, eos_token and, where there are, unk_, cls_ and sep_token.

        Raises ValueError when a named token is not in the vocabulary or the context has no room for a word.
        """
        if context_length < 3:
            raise ValueError(f"context_length={context_length} leaves no token between start and end")
        vocabulary = backend.get_vocab(with_added_tokens=True)
        for role in ("pad_token", "eos_token"):
            if names.get(role) not in vocabulary:
                raise ValueError(f"the tokenizer has no {role}; its tokenizer_config.json must name one")
        self._backend = backend
        self._names = dict(names)
        self.context_length = context_length
        self.pad_id: int = vocabulary[names["pad_token"]]
        self.eos_id: int = vocabulary[names["eos_token"]]
        self.vocab_size = len(vocabulary)
        backend.enable_truncation(context_length)
        backend.enable_padding(length=context_length, pad_id=self.pad_id, pad_token=names["pad_token"])
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()[:12]

    def __call__(self, texts: list[str]) -> np.ndarray:
        """int64 (n, context)."""
        return self._ids(self._backend.encode_batch_fast([clean(text) for text in texts]))

    def encode(self, texts: list[str]) -> Encoded:
        """Ids with what a caller must be told: which texts were cut, and how many tokens each used."""
        encodings = self._backend.encode_batch_fast([clean(text) for text in texts])
        return Encoded(
            self._ids(encodings),
            [bool(one.overflowing) for one in encodings],
            [sum(one.attention_mask) for one in encodings],
        )

    def lengths(self, texts: list[str]) -> np.ndarray:
        """int64 (n,): tokens used, with start and end, at most the context."""
        encodings = self._backend.encode_batch_fast([clean(text) for text in texts])
        return np.asarray([sum(one.attention_mask) for one in encodings], dtype=np.int64)

    def _ids(self, encodings: Sequence[tokenizers.Encoding]) -> np.ndarray:
        ids = np.asarray([one.ids for one in encodings], dtype=np.int64)
        return ids.reshape(len(encodings), self.context_length)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `load_tokenizer`, transformers and open_clip read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=False), encoding="utf-8")
        config = {
            "tokenizer_class": _FITTED_CLASS,
            "model_max_length": self.context_length,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            **self._names,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def clean(text: str) -> str:
    """What open_clip's HFTokenizer does to a text before the tokenizer sees it."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


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


def load_tokenizer(uri: str | Path, context_length: int | None = None) -> Tokenizer:
    """Load a tokenizer from a folder, or by its Hugging Face name (network or cache).

    Args:
        uri: a folder with tokenizer.json (or BERT's vocab.txt), a bundle, or a Hugging Face name.
        context_length: tokens of a row; None: what the folder says.

    Raises:
        ValueError: nothing there, no network, no padding or end token, or an unknown context.
    """
    folder = Path(str(uri).removeprefix("local-dir:"))
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    if config.get("tokenizer_class") == _FITTED_CLASS and (folder / "tokenizer.json").is_file():
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        names = {role: _content(config[role]) for role in _ROLES if config.get(role)}
        length = config.get("model_max_length")
    else:
        backend, names, length = _from_transformers(str(uri))
    names.setdefault("eos_token", names.get("sep_token", ""))
    if context_length is None:
        if not isinstance(length, int) or length > 1_000_000:  # transformers writes 1e30 for "unknown"
            raise ValueError(f"the tokenizer {uri} does not say its context length; give one")
        context_length = length
    return Tokenizer(backend, context_length, names)


_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "eos_token", "bos_token")


def _content(token: str | dict[str, str]) -> str:
    """A special token stands in tokenizer_config.json as text, or as a mapping with its `content`."""
    return token if isinstance(token, str) else token["content"]


def _from_transformers(uri: str) -> tuple[tokenizers.Tokenizer, dict[str, str], int | None]:
    """Any other tokenizer goes through transformers, which open_clip asks too; it may override tokenizer.json."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(uri.removeprefix("local-dir:"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer {uri!r} cannot be loaded ({str(error).splitlines()[0]}); set model.tokenizer to a folder with "
            "tokenizer.json or vocab.txt, to a Hugging Face name that can be reached, or to fit"
        ) from error
    if not loaded.is_fast:
        raise ValueError(f"the tokenizer {uri!r} has no tokenizer.json form; convert it with transformers first")
    names = {role: str(loaded.special_tokens_map[role]) for role in _ROLES if role in loaded.special_tokens_map}
    backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    return backend, names, int(loaded.model_max_length)
