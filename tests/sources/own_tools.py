"""What the tests of own pairs share: shards made by hand, and everything that a folder gives."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.sources.own.images import read_image
from biomedclip_ray.sources.own.record import OwnFiles, Record
from biomedclip_ray.sources.own_files import find_files, records


def all_records(files: OwnFiles) -> list[Record]:
    return [record for piece in files.pieces for record in records(files, piece)]


def outcomes(files: OwnFiles) -> list[bytes | str]:
    """The bytes of each record's image, or the detail of why there are none."""
    found: list[bytes | str] = []
    for record in all_records(files):
        try:
            found.append(read_image(files, record))
        except ImageError as error:
            found.append(error.detail)
    return found


def pairs(folder: Path, per_part: int = 3, **columns: str) -> list[tuple[bytes | str, str]]:
    """(image or why there is none, text) of everything below a folder."""
    files = find_files(str(folder), per_part, columns)
    return list(zip(outcomes(files), [record.text for record in all_records(files)], strict=True))


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path
