"""The retrieval pool of a product: what is known of each pair in this process, the vectors in blocks wherever they are
needed.

At 725,739 pairs the vectors are 3 GB and a worker takes two blocks of them; this process holds ids, keys and counts. A
tile that was counted lies in tiles/ until the ranks are done, so a killed run counts none again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from biomedclip_ray.clip.vectors import to_matrix
from biomedclip_ray.config import PartResources
from biomedclip_ray.evaluate.ranks import TILE, Tile
from biomedclip_ray.evaluate.tiles import count_tile
from biomedclip_ray.run.capacity import known
from biomedclip_ray.run.placement import place as placement
from biomedclip_ray.store.ahead import each
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.place import Place

Floats = NDArray[np.floating[Any]]
VECTORS = ("text_vector", "image_vector")
_AHEAD = 2
"""Tiles submitted for each CPU, so that none waits for this process."""


class Pool:
    """The encoded pairs of an evaluation at work: whole figures, or their panels too."""

    def __init__(self, attempt: Attempt, panels: bool = False) -> None:
        self.attempt, self.panels = attempt, panels
        columns = [name for name in attempt.read(0).column_names if name not in VECTORS]
        tables = list(each(self._parts, lambda part: self._read(part, columns)))
        self.sizes = [table.num_rows for table in tables]
        self.meta: pa.Table = pa.concat_tables(tables)

    @property
    def _parts(self) -> range:
        return range(self.attempt.parts or 0)

    def _read(self, part: int, columns: Sequence[str]) -> pa.Table:
        return _rows(self.attempt, part, columns, self.panels)

    def __len__(self) -> int:
        return int(self.meta.num_rows)

    def blocks(self, column: str) -> Iterator[Floats]:
        """Vectors of one side, part by part."""
        for table in each(self._parts, lambda part: self._read(part, [column])):
            yield to_matrix(table[column])

    def take(self, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Text and image vectors of a few rows, in ascending order."""
        start, wanted = 0, {}
        for number, size in enumerate(self.sizes):
            mine = rows[(rows >= start) & (rows < start + size)] - start
            if len(mine):
                wanted[number] = mine
            start += size
        table = pa.concat_tables(each(wanted, lambda part: self._read(part, VECTORS).take(wanted[part])))
        return to_matrix(table["text_vector"]), to_matrix(table["image_vector"])

    def edges(self, tile: int = TILE) -> list[int]:
        """Row numbers at which blocks begin and end: whole parts, about `tile` rows each."""
        edges, start = [0], 0
        for size in self.sizes:
            start += size
            if start - edges[-1] >= tile:
                edges.append(start)
        return edges if edges[-1] == start else [*edges, start]

    def parts_of(self, low: int, high: int) -> tuple[int, ...]:
        """The parts whose rows are low..high."""
        ends = np.cumsum(self.sizes)
        return tuple(int(i) for i in np.flatnonzero((ends > low) & (ends - self.sizes < high)))

    def on_cluster(self, resources: PartResources) -> Callable[..., Iterable[tuple[Tile, Any]]]:
        """What `ranks.ranked` takes to run its tiles as Ray tasks, on GPUs where `resources` ask for them. Blocks are
        read by tasks and shared through the object store.
        """
        place = self.attempt.place
        where = placement(known(), resources.num_cpus, resources.num_gpus)
        load = ray.remote(**placement(known(), resources.num_cpus).options)(_block)
        refs: dict[tuple[str, int], Any] = {}

        def block(side: str, low: int, high: int) -> Any:
            if (side, low) not in refs:
                refs[side, low] = load.remote(self.attempt, side, self.parts_of(low, high), self.panels)
            return refs[side, low]

        def each(work: Callable[..., Any], jobs: Iterable[tuple[Tile, Any]]) -> Iterator[tuple[Tile, Any]]:
            task = ray.remote(**where.options)(_tile)
            room = max(2, int(_AHEAD * known().room(where.cpus, where.gpus, where.kinds)))
            waiting: dict[Any, Tile] = {}
            for at, argument in jobs:
                name = f"tiles/{work.__name__}-{_name(at, argument)}.npz"
                if place.exists(name):
                    yield at, _unpack(place.read(name))
                    continue
                pair = block(VECTORS[0], at.text, at.text_stop), block(VECTORS[1], at.image, at.image_stop)
                waiting[task.remote(work, *pair, argument, place.uri, name)] = at
                if len(waiting) >= room:
                    yield from _ready(waiting)
            while waiting:
                yield from _ready(waiting)

        return each

    def forget_tiles(self) -> None:
        """Remove what the ranks were made of."""
        self.attempt.place.at("tiles").delete_all()


def _ready(waiting: dict[Any, Tile]) -> Iterator[tuple[Tile, Any]]:
    done, _ = ray.wait(list(waiting), num_returns=1)
    for ref in done:
        yield waiting.pop(ref), ray.get(ref)


def _rows(attempt: Attempt, part: int, columns: Sequence[str], panels: bool) -> pa.Table:
    """Columns of a part's whole figures, or of its panels too."""
    table = attempt.read(part, list(dict.fromkeys([*columns, "panel"])))
    return (table if panels else table.filter(pc.equal(table["panel"], 0))).select(list(columns))


def _block(attempt: Attempt, column: str, parts: tuple[int, ...], panels: bool) -> Floats:
    return np.concatenate([to_matrix(_rows(attempt, part, [column], panels)[column]) for part in parts])


def _tile(work: Callable[..., Any], text: Floats, image: Floats, argument: Any, uri: str, name: str) -> Any:
    """One tile on a worker, and its counts in storage."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # a task was given one CPU; BLAS would take the machine
        if work is count_tile and ray.get_runtime_context().get_accelerator_ids().get("GPU"):
            found = _on_gpu(text, image, argument)
        else:
            found = work(text, image, argument)
    sink = io.BytesIO()
    np.savez(
        sink, **{f"{side}_{column}": array for side, pair in enumerate(found) for column, array in enumerate(pair)}
    )
    Place(uri).write(name, sink.getvalue())
    return found


def _on_gpu(text: Floats, image: Floats, argument: Any) -> Any:
    """The tile's counts by the GPU that this task was given; by the CPU where torch sees none."""
    from biomedclip_ray.clip.encoder import usual_device
    from biomedclip_ray.evaluate.tiles_gpu import count_tile_on

    device = usual_device()
    return count_tile(text, image, argument) if device == "cpu" else count_tile_on(device, text, image, argument)


def _unpack(data: bytes) -> Any:
    with np.load(io.BytesIO(data)) as arrays:
        return tuple(tuple(arrays[f"{side}_{column}"] for column in range(2)) for side in range(2))


def _name(at: Tile, argument: Any) -> str:
    """A tile's name: where it lies and what it is asked."""
    digest = hashlib.sha256(repr(tuple(at)).encode())
    for side in argument:
        for array in side if isinstance(side, tuple) else (side,):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]
