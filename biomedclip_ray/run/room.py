"""A disk that is full: told in one line, with the place and the way on.

It shows in a dozen ways: an error number from a write, words from Lance, safetensors and Ray, a wrong position from
torch, numbers of bytes from numpy, or whatever fails next beside it. So errors are asked by number and by words, and
the disks themselves are looked at.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.exceptions import OutOfDiskError, RayTaskError

from biomedclip_ray.run import private
from biomedclip_ray.store.place import FULL, Place

MIN_FREE_BYTES, MIN_SCRATCH_BYTES = 1_000_000_000, 200_000_000
"""Before a run begins, in the root and in folders for temporary files."""
_FULL_BYTES = 1_000_000
_SHOWN = 300
_WORDS = re.compile(
    r"No space left on device|os error 28|Disk quota exceeded"
    r"|inline_container.*unexpected pos|requested and \d+ written"  # torch, numpy
)
_FILE = re.compile(r"(?:No space left on device|Disk quota exceeded): '(/[^'\n]+)'")
"""Out of the words alone: what Ray Data hands on of an OSError has other words where the file's name was."""
_NODE = re.compile(r"\(pid=\d+, ip=([^,)]+)")
"""In what Ray says of a task that failed."""


def lacking(root: str) -> list[str]:
    """The places with too little room to begin, one line each with the key and the fix."""
    found = []
    for path, key, fix in _places(root):
        least = MIN_FREE_BYTES if key == "root" else MIN_SCRATCH_BYTES
        if (free := _free(path)) < least:
            found.append(f"{key}={path}: only {_size(free)} are free, at least {_size(least)} are needed; {fix}")
    return found


def no_room(error: BaseException, root: str) -> str | None:
    """What to say where an error comes of a full disk, here or on another node; None where it does not."""
    chain = list(_chain(error))
    told = [each for each in chain if _says_so(each)]
    nodes = [found[1] for each in chain if (found := _NODE.search(str(each)))]
    elsewhere = bool(nodes) and ray.is_initialized() and nodes[0] != ray.util.get_node_ip_address()
    named = next((found[1] for each in told if (found := _FILE.search(str(each)))), None)
    places = list(_places(root))
    if any(isinstance(each, OutOfDiskError) for each in told):
        places = [place for place in places if place[1] == "RAY_TMPDIR"] or places[-1:]
    elif named is not None:
        within = [place for place in places if Path(named).is_relative_to(place[0]) and _one_disk(named, place[0])]
        places = within[:1] or [(Path(named).parent, "", "make room there")]
    else:
        full = [place for place in places if not elsewhere and _free(place[0]) < _FULL_BYTES]
        places = full or (places if told else [])
    if not places:
        return None
    where = " or ".join(str(path) for path, _, _ in places) + (f" on {nodes[0]}" if elsewhere else "")
    fixes = "; ".join(dict.fromkeys(fix for _, _, fix in places))
    first = told[-1] if told else error
    why = f"{type(first).__name__}: {first}".strip().splitlines()[0][:_SHOWN]
    return f"no room is left in {where}: {fixes}; what is done is kept, and the same command goes on from there ({why})"


def check_scratch() -> None:
    """Raises OSError where this machine has no room for temporary files: Ray then begins tasks that cannot write their
    logs again and again, without end and without an error.
    """
    for path, _, _ in _scratch():
        if _free(path) < _FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _places(root: str) -> Iterator[tuple[Path, str, str]]:
    """(folder, key, fix) of what a run writes to on this machine, the root first."""
    local = Place(root).local
    if local is not None:
        yield local, "root", "make room there (--list shows the products, --prune removes those that nothing refers to)"
    yield from _scratch()


def _scratch() -> Iterator[tuple[Path, str, str]]:
    scratch = Path(tempfile.gettempdir())
    spilled = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")  # as Ray looks for it
    if ray.is_initialized():  # what Ray spills goes there too
        spilled = private.logs_folder().parent
    if spilled != scratch:
        fix = "make room there, or give Ray a larger folder (RAY_TMPDIR; of a cluster ray start --temp-dir)"
        yield spilled, "RAY_TMPDIR", fix
    yield scratch, "TMPDIR", "make room there, or name a larger folder by TMPDIR on every node"


def _free(path: Path) -> float:
    """Bytes that are free in a folder, or in the nearest above that is there; without end where nobody says."""
    usage = shutil.disk_usage(_nearest(path))
    return usage.free if usage.total else math.inf


def _one_disk(file: str, folder: Path) -> bool:
    return _nearest(Path(file)).stat().st_dev == _nearest(folder).stat().st_dev


def _nearest(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OutOfDiskError) or (isinstance(error, OSError) and error.errno in FULL):
        return True
    return _WORDS.search(str(error)) is not None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error with those that led to it; Ray keeps a task's own as `cause`."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__context__, each.__cause__, each.cause if isinstance(each, RayTaskError) else None]


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
