"""Which kind of source a URI names: a bucket, a folder in its layout, legacy packages, or preprints."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from biomedclip_ray.config import Source, SourceResources
from biomedclip_ray.sources.bucket import INVENTORIES, Bucket, FolderBucket, SourceError
from biomedclip_ray.sources.meca import ENDING, FolderShelf, MecaBucket, S3Shelf
from biomedclip_ray.sources.oa_package import PackageBucket
from biomedclip_ray.sources.s3 import PAID_BUCKETS, S3Bucket

_PREPRINTS = frozenset({"meca", "Current_Content", "Back_Content"})


@lru_cache(maxsize=8)
def open_bucket(uri: str, resources: SourceResources) -> Bucket:
    """The bucket at a URI: `s3://NAME[/PREFIX]` or a folder. One per process, with its connections kept open.

    A folder that holds oa_file_list.csv is one of legacy packages (`oa_package.py`); one that holds .meca files is one
    of preprints (`meca.py`), and so are bioRxiv's and medRxiv's buckets and a copy below a prefix of the name meca.

    Raises:
        SourceError: no such folder, or a URI of another kind.
    """
    if uri.startswith("s3://"):
        bucket = S3Bucket(uri, resources)
        return MecaBucket(S3Shelf(bucket)) if _holds_packages(bucket) else bucket
    if "://" in uri and not uri.startswith("file://"):
        raise SourceError(f"source.uri={uri}: expected s3://BUCKET or a folder")
    folder = Path(uri.removeprefix("file://")).expanduser()
    if not folder.is_dir():
        raise SourceError(f"source.uri={uri}: no such folder; expected a bucket in the layout of the PMC Cloud Service")
    if (folder / "oa_file_list.csv").is_file():
        return PackageBucket(folder)
    if not (folder / INVENTORIES).is_dir() and next(folder.rglob(f"*{ENDING}"), None) is not None:
        return MecaBucket(FolderShelf(folder))
    return FolderBucket(folder)


def _holds_packages(bucket: S3Bucket) -> bool:
    """Whether a bucket is one of preprints, by its names: nothing is asked before the preflight asks."""
    return bucket.name in PAID_BUCKETS or not _PREPRINTS.isdisjoint(bucket.prefix.split("/"))


def unreachable(source: Source) -> list[str]:
    """What is wrong with a source that does not answer, one line; nothing where it does."""
    try:
        open_bucket(source.uri, source.resources).folders(f"{INVENTORIES}/")
    except SourceError as error:
        return [str(error)]
    return []
