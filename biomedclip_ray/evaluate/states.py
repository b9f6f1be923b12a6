"""What a fusion head is given of images and questions: the token states that frozen towers make of them, or, of towers
that are trained, pixels and token ids.

States are kept beside the bundle's vectors, a file a block of images or of distinct questions: another split, seed or
recipe encodes none of them again, and a killed run loses one block. They are float16: a head of float32 makes nothing
of further digits.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.evaluate.heads import image_tokens, text_tokens
from biomedclip_ray.evaluate.sets import LabelledSet
from biomedclip_ray.evaluate.tasks import TooLittle
from biomedclip_ray.images.errors import UNREADABLE
from biomedclip_ray.store.place import Place

_BLOCK = 32
"""Images or questions that go through a tower at once, and are kept in one file: 10 MB of a ViT-B/16's patches."""


@dataclass
class Data:
    """One side of a split: questions with what the towers are given of them, or what they made of it."""

    questions: pa.Table
    ids: Tensor
    """(distinct questions, context) token ids."""
    question: Tensor
    """The same ids where the towers are trained, else (distinct questions, t, width) states."""
    asked: np.ndarray
    """(n,) which of the distinct questions each row asks."""
    images: Any
    """numpy, on disk: a row an image."""
    rows: np.ndarray
    """(n,) the image of each question."""
    pad_id: int

    def batch(self, rows: np.ndarray, device: torch.device, images: np.ndarray | None = None) -> tuple[Tensor, ...]:
        """Ids (n, t), question and image of some rows; t is what their longest question fills. `images`: others."""
        asked = self.asked[rows]
        used = _used(self.ids[asked], self.pad_id)
        question = self.question[asked]
        question = question[:, :used] if question.is_floating_point() else question  # causal towers want all of it
        shown = torch.from_numpy(np.ascontiguousarray(self.images[(self.rows if images is None else images)[rows]]))
        return tuple(part.to(device) for part in (self.ids[asked, :used], question, shown))


class States:
    """The kept states of one bundle at one place."""

    def __init__(self, encoder: Encoder, place: Place) -> None:
        self.encoder, self.place = encoder, place

    def block(self, kind: str, content: Sequence[bytes], make: Callable[[], Tensor]) -> np.ndarray:
        """(n, t, width) float16 of a block, made only where it is not kept."""
        digest = hashlib.sha256(b"".join(hashlib.sha256(one).digest() for one in content))
        name = f"{kind}/{digest.hexdigest()[:32]}.npy"
        if self.place.exists(name):
            return np.asarray(np.load(io.BytesIO(self.place.read(name))))
        with torch.inference_mode():
            made = make().to(torch.float16).cpu().numpy()
        sink = io.BytesIO()
        np.save(sink, made)
        self.place.write(name, sink.getvalue())
        return np.asarray(made)


def sides(labelled: LabelledSet, split: str, states: States, trained: bool, scratch: Path) -> tuple[Data, Data]:
    """Train and test of a split: pixels and ids where towers are `trained`, else what they make of them.

    An image is a row of a file below `scratch`, so that memory does not grow with the set.

    Raises:
        TooLittle: no train table, or no question of a side has an image that can be read.
    """
    parts = labelled.splits[split]
    if "train" not in parts:
        raise TooLittle("there is no train table, and the head learns its answers there")
    rows, images = _images(labelled, states, trained, scratch)
    found = []
    for part in ("train", "test"):
        questions = labelled.questions[parts[part]]
        questions = questions.filter(pa.array([name in rows for name in questions["image_id"].to_pylist()], pa.bool_()))
        if not questions.num_rows:
            raise TooLittle(f"no question of {part} has an image that can be read")
        asked = questions["question"].to_pylist()
        texts = sorted(set(asked), key=lambda text: (len(text), text))  # alike in length: blocks with little padding
        ids = torch.from_numpy(states.encoder.tokenizer(texts))
        question = ids if trained else _questions(states, texts, ids)
        place = {text: row for row, text in enumerate(texts)}
        numbers = np.array([place[text] for text in asked])
        where = np.array([rows[name] for name in questions["image_id"].to_pylist()])
        found.append(Data(questions, ids, question, numbers, images, where, states.encoder.tokenizer.pad_id))
    return found[0], found[1]


def _questions(states: States, texts: list[str], ids: Tensor) -> Tensor:
    """(texts, t, width) float16; t is what the longest text fills."""
    encoder = states.encoder
    out: Any = None
    for start in range(0, len(texts), _BLOCK):
        content = [text.encode() for text in texts[start : start + _BLOCK]]
        block = ids[start : start + _BLOCK].to(encoder.device)
        made = states.block("questions", content, partial(text_tokens, encoder.model, block))
        if out is None:
            out = np.zeros((len(texts), _used(ids, encoder.tokenizer.pad_id), made.shape[2]), np.float16)
        used = min(out.shape[1], made.shape[1])
        out[start : start + len(made), :used] = made[:, :used]
    return torch.from_numpy(out)


def _images(labelled: LabelledSet, states: States, trained: bool, scratch: Path) -> tuple[dict[str, int], Any]:
    """Row of each image that can be read, and what the model is given of it."""
    table, encoder = labelled.tables["images"], states.encoder
    rows: dict[str, int] = {}
    out: Any = None
    for start, files in table.images.parts(_BLOCK):
        content = [data or b"" for data in files]
        if trained:
            good, pixels = _pixels(encoder, content)
            made = encoder.normalised(pixels).float().cpu().numpy()
        else:
            block = states.block("images", content, partial(_patches, encoder, content))
            good = [row for row, found in enumerate(block) if found.size and np.isfinite(found).all()]
            made = block[good]
        if not good:
            continue
        if out is None:
            shape = (len(table.ids), *made.shape[1:])
            out = np.lib.format.open_memmap(scratch / "images.npy", mode="w+", dtype=made.dtype, shape=shape)
        out[len(rows) : len(rows) + len(good)] = made
        rows |= {table.ids[start + row]: len(rows) + i for i, row in enumerate(good)}
    if out is None:
        raise TooLittle("no image of the set can be read")
    return rows, out


def _patches(encoder: Encoder, content: list[bytes]) -> Tensor:
    """(n, patches, width); NaN where bytes are no image."""
    good, pixels = _pixels(encoder, content)
    if not good:
        return torch.empty((len(content), 0, 0))
    found = image_tokens(encoder.model, encoder.normalised(pixels))
    out = found.new_full((len(content), *found.shape[1:]), torch.nan)
    out[good] = found
    return out


def _pixels(encoder: Encoder, content: list[bytes]) -> tuple[list[int], Tensor]:
    """The rows that are images, and their uint8 pixels."""
    good, found = [], [encoder.pixels([])]
    for row, data in enumerate(content):
        try:
            found.append(encoder.pixels([data]))
        except UNREADABLE:  # named among the rows left out, by the features
            continue
        good.append(row)
    return good, torch.cat(found)


def _used(ids: Tensor, pad_id: int) -> int:
    """Tokens of the longest row without the padding behind it."""
    return int((ids != pad_id).any(dim=0).nonzero().max()) + 1
