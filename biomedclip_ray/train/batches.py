"""Ray Data feeds the training: spans of the order -> micro-batchs of uint8 pixels and tokens, in order, to ranks in
turn.

A span is a window of the order: its row groups are read once, its rows leave as micro-batchs of JPEG bytes; a second
operator decodes, crops and tokenizes block by block. Both are CPU tasks that scale apart from the training workers,
with fractional CPUs so that two of them run beside two workers on two cores. Order is kept (`preserve_order`), blocks
are dealt without equalising (`equal=True` would cut the tail), so block k of the sequence reaches rank k mod W.

Windows are multiples of a micro-batch and are cut without waiting for the next one (`repartition` not strict). Pixels
travel as uint8: a quarter of float32 through the object store and over the bus.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import ray
from ray.data import DataContext, DataIterator, Dataset, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train import DataConfig

from biomedclip_ray.clip.tokenizer import Tokenizer
from biomedclip_ray.config import TrainResources
from biomedclip_ray.images.image import decode
from biomedclip_ray.run import private
from biomedclip_ray.run.nodes import Demand, watch
from biomedclip_ray.store.parquet import row_group
from biomedclip_ray.store.product import Product
from biomedclip_ray.train.order import Order, mix
from biomedclip_ray.train.rows import SplitRows
from biomedclip_ray.train.texts import COLUMNS as TEXT_COLUMNS
from biomedclip_ray.train.texts import drawn_texts

Pixels = npt.NDArray[np.uint8]

MAX_RATIO = 4 / 3
"""Largest ratio of a crop's sides (that of torchvision's RandomResizedCrop)."""

WINDOW_CPUS = 0.25
"""Logical CPUs of a task that reads a window and cuts it into blocks: it waits for storage."""

_READ_THREADS = 16
_QUICK_ROUND_S, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.01, 0.5


@dataclass(frozen=True)
class Feed:
    """Everything a feed task needs; put once into the object store, where its arrays are read without a copy.

    Attributes:
        order: positions -> rows of `rows`; its window is a multiple of `micro_rows`.
        size: pixels of the square image that the tower takes.
        crop_scale: share of the area that a random crop keeps; (1, 1): the middle square, as in evaluation.
        micro_rows: pairs in a micro-batch.
        texts: which text of a pair a visit draws, with weights; empty: always its own.
    """

    pairs: Product
    rows: SplitRows
    order: Order
    tokenizer: Tokenizer
    size: int
    crop_scale: tuple[float, float]
    seed: int
    micro_rows: int
    texts: Mapping[Any, float] = field(default_factory=dict)


def batches(
    feed: ray.ObjectRef, start: int, stop: int, resources: TrainResources, demand: Demand | None = None
) -> Dataset:
    """The micro-batchs of positions [start, stop), both multiples of a micro-batch, in order.

    `demand`: where the feed's tasks run, and what nodes they may ask for; None: wherever there is room.

    A block has position, group and length (tokens without padding) int64 (n,), pixels uint8 (n, size, size, 3), tokens
    int32 (n, context).
    """
    spec: Feed = ray.get(feed)
    spans = [{"start": a, "stop": b} for a, b in spec.order.spans(start, stop)]
    read_cpus = min(WINDOW_CPUS, resources.feed_cpus)
    only = {} if demand is None else demand.work.only
    context = _context(resources)
    if demand is not None:
        watch(context, demand)
    with DataContext.current(context):
        if not spans:
            return ray.data.from_arrow(_EMPTY.empty_table())
        blocks = ray.data.from_items(spans, override_num_blocks=len(spans)).map_batches(
            _read_task,
            batch_size=1,
            batch_format="pyarrow",
            fn_args=(feed,),
            num_cpus=read_cpus,
            compute=TaskPoolStrategy(size=2),
            **only,
        )
        blocks = _light(blocks.repartition(target_num_rows_per_block=spec.micro_rows), {"num_cpus": read_cpus, **only})
        return blocks.map_batches(
            _decode_task,
            batch_size=None,
            batch_format="pyarrow",
            fn_args=(feed,),
            num_cpus=resources.feed_cpus,
            compute=TaskPoolStrategy(size=resources.feed_concurrency),
            **only,
        )


def _light(cut: Dataset, remote_args: dict[str, Any]) -> Dataset:
    """`repartition` with a share of a CPU: it takes no resources of its own (Ray 2.60), and its default of one CPU
    starves beside workers that leave the feed one.
    """
    private.remote_args(cut).update(remote_args)
    return cut


class InOrder(DataConfig):
    """Deals blocks to ranks in turn, in the order of the sequence."""

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: list[Any] | None,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        output: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            ordered = dataset.copy(dataset)
            ordered.context.execution_options = self.default_ingest_options()
            ordered.context.execution_options.preserve_order = True
            for rank, shard in enumerate(ordered.streaming_split(world_size, equal=False)):
                output[rank][name] = shard
        return output


def read_span(feed: Feed, start: int, stop: int) -> pa.Table:
    """The rows at positions [start, stop): position, group int64, image (JPEG bytes), text; in order."""
    rows = feed.order.rows(start, stop)
    chunks = feed.order.chunk_of(rows)
    wanted, inverse = np.unique(
        rows, return_inverse=True
    )  # a row may come twice where epochs are shorter than a window
    wanted_chunks = feed.order.chunk_of(wanted)
    by_part: dict[int, list[int]] = {}
    for chunk in np.unique(chunks):
        by_part.setdefault(int(feed.rows.part[chunk]), []).append(int(chunk))

    def read_part(item: tuple[int, list[int]]) -> list[tuple[int, pa.Table]]:
        part, its_chunks = item
        file = feed.pairs.file(part)
        return [(chunk, _rows_of(feed, file, chunk, wanted[wanted_chunks == chunk])) for chunk in its_chunks]

    with ThreadPoolExecutor(_READ_THREADS) as threads:
        tables = dict(pair for part in threads.map(read_part, sorted(by_part.items())) for pair in part)
    together = pa.concat_tables([tables[chunk] for chunk in sorted(tables)]).take(pa.array(inverse))
    positions = np.arange(start, stop)
    text: Any = together["text"]
    if feed.texts:
        told = together.select(["text", *TEXT_COLUMNS])
        text = pa.array(drawn_texts(told, positions, feed.seed, feed.texts), pa.string())
    marks = pa.table({"position": positions, "group": feed.rows.group[rows]})
    return marks.append_column(_EMPTY.field("image"), together["image"]).append_column("text", text)


def decode_block(feed: Feed, block: pa.Table) -> dict[str, np.ndarray]:
    """Pixels and tokens of a micro-batch; crops depend on seed and position alone."""
    positions = block["position"].to_numpy()
    pixels = np.empty((len(positions), feed.size, feed.size, 3), np.uint8)
    draws = np.stack([mix(feed.seed, positions, draw) for draw in range(3, 7)], axis=1) / 2.0**64
    for row, (jpeg, draw) in enumerate(zip(block["image"], draws, strict=True)):
        pixels[row] = crop(decode(jpeg.as_py()), feed.size, feed.crop_scale, draw)
    tokens = feed.tokenizer.encode(block["text"].to_pylist())
    return {
        "position": positions,
        "group": block["group"].to_numpy(),
        "pixels": pixels,
        "tokens": tokens.ids.astype(np.int32),
        "length": np.asarray(tokens.n_tokens, np.int64),  # a caption may hold the padding's own token
    }


def crop(pixels: Pixels, size: int, scale: tuple[float, float], draw: npt.NDArray[np.float64]) -> Pixels:
    """Random resized crop: a rectangle of a share of the area and a ratio up to 4:3, resized to a square.

    Args:
        image: uint8 (h, w, 3).
        scale: smallest and largest share of the area; (1, 1) takes the middle square.
        draw: float64 (4,) in [0, 1): area, ratio, left, top.

    Returns:
        uint8 (size, size, 3).
    """
    full_height, full_width = pixels.shape[:2]
    if scale == (1.0, 1.0):
        height = width = min(full_height, full_width)
        left, top = (full_width - width) // 2, (full_height - height) // 2
    else:
        area = full_height * full_width * (scale[0] + (scale[1] - scale[0]) * draw[0])
        ratio = MAX_RATIO ** (2 * draw[1] - 1)
        height = min(full_height, max(1, round((area / ratio) ** 0.5)))
        width = min(full_width, max(1, round((area * ratio) ** 0.5)))
        width = min(width, max(1, round(height * MAX_RATIO)))  # a strip would be squeezed beyond recognition
        height = min(height, max(1, round(width * MAX_RATIO)))
        left, top = int((full_width - width + 1) * draw[2]), int((full_height - height + 1) * draw[3])
    cut = pixels[top : top + height, left : left + width]
    shrinks = min(height, width) >= size
    resized = cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)


_EMPTY = pa.schema({"position": pa.int64(), "group": pa.int64(), "image": pa.large_binary(), "text": pa.string()})


def _rows_of(feed: Feed, file: ds.ParquetFileFragment, chunk: int, rows: npt.NDArray[np.int64]) -> pa.Table:
    told = ["text", *(TEXT_COLUMNS if feed.texts else ())]
    table = row_group(file, int(feed.rows.row_group[chunk]), ["image", *told])
    # large_binary: a window of images can pass the 2 GB that 32-bit offsets hold
    image = table["image"].cast(pa.large_binary())
    return table.select(told).append_column("image", image).take(pa.array(feed.rows.row[rows]))


class _Pauses(ExecutionCallback):
    """Pauses, longer and longer, between rounds of Ray Data's scheduling that neither waited nor moved anything.

    A round waits for running tasks. While the store is full, which in training is always, there is nothing to wait for,
    also where a task still runs whose blocks nobody takes: the next round begins at once, and the feed takes a core to
    do nothing (Ray 2.60). What moved is asked too, since after a pause short tasks are done and rounds are quick.
    """

    def __init__(self) -> None:
        self.moved: list[tuple[int, int, int]] = []
        self.pause = 0.0
        self.began = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        metrics = [operator.metrics for operator in private.operators(executor)]
        moved = [(m.num_tasks_submitted, m.num_task_outputs_generated, m.num_outputs_taken) for m in metrics]
        idle = moved == self.moved and time.monotonic() - self.began < _QUICK_ROUND_S
        self.pause = min(max(2 * self.pause, _FIRST_PAUSE_S), _LONGEST_PAUSE_S) if idle else 0.0
        self.moved = moved
        time.sleep(self.pause)
        self.began = time.monotonic()


def _context(resources: TrainResources) -> DataContext:
    context: DataContext = DataContext.get_current().copy()
    context.target_max_block_size = None  # a block is a micro-batch, whatever its bytes
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # an object store in trouble for a moment; without another try the whole group of workers would begin again
    context.retried_map_errors, context.max_map_retries = True, 3
    context.execution_no_progress_timeout_s = resources.no_progress_timeout_s
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Pauses]
    return context


@lru_cache(maxsize=2)
def _load(feed: ray.ObjectRef) -> Feed:
    """The feed, once per process: unpickling a tokenizer costs more than a block's tokens."""
    cv2.setNumThreads(1)  # a task is one CPU's work; OpenCV would take every core for each image
    loaded: Feed = ray.get(feed)
    return loaded


def _read_task(batch: pa.Table, feed: ray.ObjectRef) -> Iterator[pa.Table]:
    for span in batch.to_pylist():
        yield read_span(_load(feed), span["start"], span["stop"])


def _decode_task(batch: pa.Table, feed: ray.ObjectRef) -> dict[str, np.ndarray]:
    return decode_block(_load(feed), batch)
