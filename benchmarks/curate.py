"""Curate's decision on 25 million pairs: the memory of its largest task, and of the driver.

    python benchmarks/curate.py [--pairs 25000000] [--share 0.2]

Runs the tasks of `corpus/curate.py` as shipped, each in a process of its own whose inputs are mapped from files, as
Ray maps them from its store, so that its peak is all that it touches. Planted: a tenth of the images is a copy of
another, `--share` of the rest lies within 3 bits of another, one in fifty is in a crowd, as plots on white are. Reading
is left out (it is one chunk of parts at a time); of the second look one task that reads and one shard are run with
signatures of noise, the other shards are said to be alike.

Prints each task's seconds of a CPU and peak, and `curate_25m_gb ratio=X`: the largest peak in GB. Where fewer pairs are
asked for, a quarter and a half of them are run too, and each task's peak is carried on to 25 million by the straight
line through the three, whose misses are printed; the second look's is not: its shards are full from some 200,000 pairs
on. Exit 1 above 4 GB, or above 2 GB of the driver.
"""

from __future__ import annotations

import argparse
import mmap
import os
import pickle
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.config import PartResources, parse
from biomedclip_ray.corpus import curate, looks
from biomedclip_ray.corpus.near import SIGNATURE_SIDE
from biomedclip_ray.run.tasks import HereTasks

TARGET, BOUND_GB, DRIVER_GB = 25_000_000, 4.0, 2.0
PAIRS_PER_PART = 1390
Ids = NDArray[np.uint64]


@dataclass(frozen=True)
class Planted:
    """Stands for the pairs."""

    parts: int
    share: float


def mix(values: Ids, seed: int) -> Ids:
    """Splitmix64's numbers for some numbers."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def read(pairs: Planted, parts: range, config: Any) -> tuple[Any, ...]:
    """What `curate._read` gives."""
    number = np.arange(parts.start * PAIRS_PER_PART, parts.stop * PAIRS_PER_PART, dtype=np.uint64)
    all_of_them = np.uint64(pairs.parts * PAIRS_PER_PART)
    picture = np.where(mix(number, 1) % np.uint64(10) == 0, mix(number, 2) % all_of_them, number)
    near = mix(picture >> np.uint64(1), 3) < np.uint64(int(pairs.share * (2**64 - 1)))
    phash = mix(np.where(near, picture >> np.uint64(1), picture), 4)
    crowd = mix(picture, 5) % np.uint64(50) == 0
    phash = np.where(crowd, mix(mix(picture, 6) % np.uint64(20), 7), phash)
    for seed in (8, 9, 10):
        flip = np.uint64(1) << (mix(picture, seed) % np.uint64(64))
        phash = np.where(crowd | (near & (picture % np.uint64(2) == 1)), phash ^ flip, phash)
    article = mix(number // np.uint64(4), 11)
    split = (article % np.uint64(100) < 2).astype(np.int8) * 2
    marks = np.stack([np.full(len(number), -1, np.int8), split, np.full(len(number), -1, np.int8)])
    figure, text = mix(number * np.uint64(3) // np.uint64(5), 12), mix(picture >> np.uint64(2), 13)
    sizes = [PAIRS_PER_PART] * len(parts)
    return [], sizes, mix(number, 14), article, figure, mix(picture, 15), text, phash, marks


def noise(pairs: Any, parts: range, part_bounds: NDArray[np.int64], rows: NDArray[Any]) -> looks.Signatures:
    """What `looks._signatures` gives."""
    return (
        np.random.default_rng(parts.start).integers(0, 256, (len(rows), 3 * SIGNATURE_SIDE**2), np.uint8),
        np.ones(len(rows)),
    )


class Children(HereTasks):
    """Each function in a process of its own; what it gives lies in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.peaks: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.files = 0
        self.looked = False

    def put(self, value: Any) -> Path:
        self.files += 1
        return dump(value, self.folder / f"{self.files}")

    def submit(self, resources: PartResources, function: Callable[..., Any], *args: Any, outputs: int = 1) -> list[Any]:
        if function is looks.look_at and self.looked:
            return self._first_shard(args, outputs)
        if function is looks.compare and args[1]:
            plan: looks.Plan = load(args[0])
            return [self.put(np.ones(int(np.diff(plan.bounds)[args[1]]), bool))]
        self.looked |= function is looks.look_at
        if function is read:
            found = read(*self.get(args))
            return [self.put(one) for one in found]
        files = [self.folder / f"{self.files + n + 1}" for n in range(outputs)]
        self.files += outputs
        pid = os.fork()  # a process of its own, without importing everything once more
        if not pid:
            code = 1
            try:
                found = function(*self.get(args))
                for one, file in zip(found if outputs > 1 else [found], files, strict=True):
                    dump(one, file)
                code = 0
            finally:
                os._exit(code)
        _, status, usage = os.wait4(pid, 0)
        name = function.__name__
        if status:
            raise RuntimeError(f"{name} failed")
        self.peaks[name] = max(self.peaks.get(name, 0.0), usage.ru_maxrss / 1e6)
        self.seconds[name] = self.seconds.get(name, 0.0) + usage.ru_utime + usage.ru_stime
        return files

    def get(self, handles: Sequence[Any]) -> list[Any]:
        return [load(one) if isinstance(one, Path) else one for one in handles]

    def _first_shard(self, args: tuple[Any, ...], outputs: int) -> list[Any]:
        plan, parts = self.get(args[1:])
        first, last = np.searchsorted(plan.row, plan.part_bounds[[parts.start, parts.stop]])
        rows = plan.row[first:last][plan.shard[first:last] == 0]
        nothing = self.put(noise(None, parts, plan.part_bounds, rows[:0]))
        return [self.put(noise(None, parts, plan.part_bounds, rows)), *[nothing] * (outputs - 1)]


def dump(value: Any, path: Path) -> Path:
    """A value as a file: where its arrays lie, they, and last the length of all else."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    sizes = []
    with path.open("wb") as file:
        for buffer in buffers:
            raw = buffer.raw()
            sizes.append((file.tell(), len(raw)))
            file.write(raw)
            file.write(b"\0" * (-len(raw) % 64))
        at = file.tell()
        file.write(pickle.dumps((sizes, body)))
        file.write(at.to_bytes(8, "little"))
    return path


def load(path: Path) -> Any:
    """The value, its arrays mapped."""
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    at = int.from_bytes(whole[-8:], "little")
    sizes, body = pickle.loads(whole[at:-8])
    return pickle.loads(body, buffers=[whole[first : first + size] for first, size in sizes])


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Stub:
    """Stands for the attempt, which has nothing to write, and for who runs its parts."""

    parts = 0

    def __init__(self, tasks: Children) -> None:
        self.tasks = tasks

    def missing_parts(self) -> list[int]:
        return []


def measure(pairs: int, share: float, scratch: str | None) -> dict[str, float]:
    """GB of each task at most."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    curate._read, looks._signatures = read, noise
    tasks = Children(folder)
    stub: Any = Stub(tasks)
    try:
        config = parse({"root": str(folder)}, "benchmark")
        planted: Any = Planted(pairs // PAIRS_PER_PART, share)
        made = curate._work(stub, stub, config, planted)
    finally:
        shutil.rmtree(folder)
    for name, peak in sorted(tasks.peaks.items(), key=lambda one: -one[1]):
        print(f"  {pairs:,} pairs: {name.lstrip('_')} {tasks.seconds[name]:.0f} s, {peak:.2f} GB at most", flush=True)
    print(f"  {pairs:,} pairs: {made.facts['near']}")
    return tasks.peaks


def carried_on(sizes: list[int], found: list[dict[str, float]]) -> dict[str, float]:
    """GB of each task at 25 million pairs, by the straight line through its peaks at several sizes."""
    bounded = (looks.look_at.__name__, looks.compare.__name__)
    peaks = {}
    for name in found[-1]:
        of = [one[name] for one in found]
        slope, base = np.polyfit(sizes, of, 1)
        missed = max(abs(gb - base - slope * pairs) for pairs, gb in zip(sizes, of, strict=True))
        peaks[name] = max(of) if name in bounded else float(base + slope * TARGET)
        told = " of a full shard" if name in bounded else f", the line misses a peak by {missed:.2f} GB at most"
        print(f"  carried on to {TARGET:,}: {name.lstrip('_')} {peaks[name]:.2f} GB{told}")
    return peaks


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=TARGET)
    parser.add_argument("--share", type=float, default=0.2, help="of the images, that are near another")
    parser.add_argument("--scratch", help="folder for files: some 5 GB at 25 million")
    options = parser.parse_args()
    sizes = [options.pairs] if options.pairs >= TARGET else [options.pairs // 4, options.pairs // 2, options.pairs]
    found = [measure(pairs, options.share, options.scratch) for pairs in sizes]
    peaks = found[-1] if len(found) == 1 else carried_on(sizes, found)
    driver = peak_gb()
    print(f"  the driver: {driver:.2f} GB")
    print(f"curate_25m_gb ratio={max(peaks.values()):.2f} bound<={BOUND_GB:.0f}")
    return int(max(peaks.values()) > BOUND_GB or driver > DRIVER_GB)


if __name__ == "__main__":
    sys.exit(main())
