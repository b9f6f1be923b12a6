"""Legacy packages: real ones give what the cloud service's folder gives; hostile and damaged ones are refused with a
reason.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from biomedclip_ray.config import LICENSES, SourceResources
from biomedclip_ray.images.image import Recipe, decode, prepare
from biomedclip_ray.jats.article import parse_article
from biomedclip_ray.pmc.catalog import parse_metadata
from biomedclip_ray.pmc.ingest import article_row
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.bucket import Bucket, ObjectError, SourceError
from biomedclip_ray.sources.inventory import entries, find_inventory
from biomedclip_ray.sources.oa_package import PackageBucket, PackageError, read_package
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.store.ledger import Ledger

HEADER = "File,Citation,Accession_ID,Date,License,PMID\n"
XML = b"<article><front><article-meta><title-group><article-title>T</article-title></title-group></article-meta></front></article>"
Member = tuple[str | tarfile.TarInfo, bytes]


def _tar(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _package(*members: Member) -> bytes:
    return gzip.compress(_tar(*members), 1, mtime=0)


def _of_type(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _folder(tmp_path: Path, package: bytes, line: str = "a/PMC7.tar.gz,C,PMC7,2024-01-02,CC BY,9\n") -> Path:
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / "PMC7.tar.gz").write_bytes(package)
    (tmp_path / "oa_file_list.csv").write_text(HEADER + line)
    return tmp_path


def _reason(get: Callable[[], bytes]) -> tuple[Reason, str]:
    with pytest.raises(ObjectError) as caught:
        get()
    return caught.value.reason, caught.value.detail


# -- real packages ----------------------------------------------------------------------------------------------------


def _figures(bucket: Bucket) -> dict[str, list[tuple[str, str, list[tuple[str, str]]]]]:
    """Label, caption, and name and pixels' md5 of each image, of every figure that the inventory leads to."""
    found = {}
    for table in entries(bucket, find_inventory(bucket, "newest")):
        for entry in table.to_pylist():
            row = parse_metadata(bucket.get(entry["key"]), entry)
            if row["pmcid"] not in ("PMC2924383", "PMC3532326", "PMC12419688"):
                continue
            article = article_row(
                row | {"part": 0},
                parse_article(bucket.get(row["xml_key"], row["xml_md5"])),
                frozenset(LICENSES),
                Ledger(""),
            )
            found[row["article_id"]] = [
                (
                    figure["label"],
                    figure["caption"],
                    [(m["name"], _pixels(bucket.get(m["key"], m["md5"]))) for m in figure["media"] if m["found"]],
                )
                for figure in article["figures"]
            ]
    return found


def _pixels(data: bytes) -> str:
    picture = prepare(data, Recipe(384, 90, 8, 10**8, 20))
    return hashlib.md5(decode(picture.jpeg).tobytes(), usedforsecurity=False).hexdigest()


def test_real_packages_give_the_captions_and_pixels_of_the_bucket(corpus: Path) -> None:
    packages = open_bucket(str(corpus / "oa_package"), SourceResources())
    assert isinstance(packages, PackageBucket)
    found = _figures(packages)
    assert {article: len(figures) for article, figures in found.items()} == {
        "PMC2924383.1": 4,
        "PMC3532326.1": 2,
        "PMC12419688.1": 1,
    }
    assert found == _figures(open_bucket(str(corpus / "bucket"), SourceResources()))


def test_the_metadata_made_for_a_package_says_what_the_clouds_says(corpus: Path) -> None:
    packages = open_bucket(str(corpus / "oa_package"), SourceResources())
    made = json.loads(packages.get("PMC2924383.1/PMC2924383.1.json"))
    real = json.loads((corpus / "bucket/PMC2924383.1/PMC2924383.1.json").read_bytes())
    extra = [url for url in made["media_urls"] if url not in real["media_urls"]]
    assert [url.partition("?")[0].rpartition("/")[2] for url in extra] == ["pone.0012255.s002.mov"]
    for key in set(real) - {"media_urls", "pdf_url", "text_url"}:
        assert made[key] == real[key], key


def test_a_package_is_read_once_however_many_of_its_members_are_asked_for(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = PackageBucket(corpus / "oa_package")
    read: list[str] = []
    opened = bucket._opened
    monkeypatch.setattr(bucket, "_opened", lambda listed: (read.append(listed.pmcid), opened(listed))[1])
    for name in ("PMC2924383.1.xml", *(f"pone.0012255.g00{n}.jpg" for n in (1, 2, 3, 4))):
        assert len(bucket.get(f"PMC2924383.1/{name}")) > 30_000
    assert read == ["PMC2924383"]


# -- the list ---------------------------------------------------------------------------------------------------------


def test_the_checksum_changes_with_a_line_and_with_a_package(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _package(("p/a.nxml", XML)))
    first = find_inventory(PackageBucket(folder), "newest")
    assert first.date == "2024-01-02T00-00Z"
    assert find_inventory(PackageBucket(folder), "newest") == first
    _folder(tmp_path, _package(("p/a.nxml", XML), ("p/b.jpg", bytes(range(99)))))
    second = find_inventory(PackageBucket(folder), "newest")
    _folder(tmp_path, _package(("p/a.nxml", XML)), "a/PMC7.tar.gz,C,PMC7,2024-01-02,CC0,9\n")
    assert len({first.checksum, second.checksum, find_inventory(PackageBucket(folder), "newest").checksum}) == 3


def test_a_licence_that_the_list_does_not_know_comes_from_the_xml(corpus: Path, tmp_path: Path) -> None:
    package = (corpus / "oa_package/b7/7a/PMC12419688.tar.gz").read_bytes()
    folder = _folder(tmp_path, package, "a/PMC7.tar.gz,C,PMC7,2024-01-02,NO-CC CODE,9\n")
    assert json.loads(PackageBucket(folder).get("metadata/PMC7.1.json"))["license_code"] == "CC BY"


def test_later_spellings_of_the_header_and_the_retracted_column_are_understood(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _package(("p/a.nxml", XML)))
    (folder / "oa_package").mkdir()
    (folder / "a").rename(folder / "oa_package/a")
    (folder / "oa_file_list.csv").write_text(
        "Article File,Article Citation,AccessionID,Last Updated (YYYY-MM-DD HH:MM:SS),PMID,License,Retracted\n"
        'oa_package/a/PMC7.tar.gz,"J, 1:2",PMC7,2024-01-02 03:04:05,,CC BY-NC,yes\n'
    )
    bucket = PackageBucket(folder)
    made = json.loads(bucket.get("metadata/PMC7.1.json"))
    assert bucket.folders("inventory-reports/pmc-oa-opendata/metadata/") == ["2024-01-02T03-04Z"]
    assert (made["citation"], made["license_code"], made["is_retracted"]) == ("J, 1:2", "CC BY-NC", True)


def test_of_two_lines_for_an_article_the_last_counts(tmp_path: Path) -> None:
    lines = "a/gone.tar.gz,C,PMC7,2024-01-02,CC0,9\nx,y\n\na/PMC7.tar.gz,C,PMC7,2023-01-02,CC BY,9\n"
    bucket = PackageBucket(_folder(tmp_path, _package(("p/a.nxml", XML)), lines))
    tables = list(entries(bucket, find_inventory(bucket, "newest")))
    assert [entry["key"] for table in tables for entry in table.to_pylist()] == ["metadata/PMC7.1.json"]
    assert json.loads(bucket.get("metadata/PMC7.1.json"))["license_code"] == "CC BY"


@pytest.mark.parametrize("text", ["", "a,b,c\n1,2,3\n", HEADER])
def test_a_list_that_is_none_is_an_error_that_names_the_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / "oa_file_list.csv").write_text(text)
    with pytest.raises(SourceError, match=f"source.uri={tmp_path}: oa_file_list.csv"):
        find_inventory(open_bucket(str(tmp_path), SourceResources()), "newest")


def test_a_package_that_is_not_there_is_listed_and_missing(tmp_path: Path) -> None:
    folder = _folder(tmp_path, b"")
    (folder / "a/PMC7.tar.gz").unlink()
    bucket = PackageBucket(folder)
    assert sum(table.num_rows for table in entries(bucket, find_inventory(bucket, "newest"))) == 1
    for key in ("metadata/PMC7.1.json", "metadata/PMC8.1.json", "PMC7.2/x", "elsewhere"):
        assert _reason(lambda key=key: bucket.get(key))[0] is Reason.MISSING_OBJECT


@pytest.mark.parametrize("path", ["../PMC7.tar.gz", "/etc/hostname", "a/../../PMC7.tar.gz"])
def test_a_list_cannot_name_files_outside_its_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "PMC7.tar.gz").write_bytes(_package(("p/a.nxml", XML)))
    (tmp_path / "in").mkdir()
    bucket = PackageBucket(_folder(tmp_path / "in", b"", f"{path},C,PMC7,2024-01-02,CC BY,9\n"))
    reason, detail = _reason(lambda: bucket.get("metadata/PMC7.1.json"))
    assert (reason, detail) == (Reason.BAD_PACKAGE, f"{path!r} is outside the folder")


# -- hostile packages -------------------------------------------------------------------------------------------------


def test_members_elsewhere_are_no_part_of_the_package() -> None:
    package = read_package(
        _package(
            ("p/a.nxml", XML),
            ("/etc/passwd", b"1"),
            ("../up.jpg", b"2"),
            ("p/../up.jpg", b"3"),
            ("p/deeper/x.jpg", b"4"),
            ("p/", b""),
            ("p/line\nfeed.jpg", b"5"),
            ("./top.jpg", b"6"),
        )
    )
    assert {name: package.read(name) for name in package.members} == {"a.nxml": XML, "top.jpg": b"6"}
    assert package.refused == {}


def test_links_devices_and_sparse_files_are_refused_by_name(tmp_path: Path) -> None:
    sparse = _of_type("p/sparse.jpg", tarfile.REGTYPE)
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(10**13), "GNU.sparse.map": "0,1"}
    kinds = {
        "sym": tarfile.SYMTYPE,
        "hard": tarfile.LNKTYPE,
        "dev": tarfile.CHRTYPE,
        "block": tarfile.BLKTYPE,
        "fifo": tarfile.FIFOTYPE,
    }
    links = [(_of_type(f"p/{name}.jpg", kind, "/etc/passwd"), b"") for name, kind in kinds.items()]
    data = _package(("p/a.nxml", XML), *links, (sparse, b"x"), ("p/good.jpg", b"good"))
    bucket = PackageBucket(_folder(tmp_path, data))
    listed = json.loads(bucket.get("metadata/PMC7.1.json"))["media_urls"]
    assert len(listed) == 7
    for name in (*kinds, "sparse"):
        assert _reason(lambda name=name: bucket.get(f"PMC7.1/{name}.jpg")) == (
            Reason.BAD_PACKAGE,
            f"PMC7.1/{name}.jpg: a link, device or sparse file",
        )
    assert bucket.get("PMC7.1/good.jpg") == b"good"


def test_a_member_over_its_cap_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _package(("p/a.nxml", XML), ("p/big.mov", bytes(5000)), ("p/f.jpg", b"f")))
    bucket = PackageBucket(folder, member_bytes=4000)
    assert _reason(lambda: bucket.get("PMC7.1/big.mov"))[1] == "PMC7.1/big.mov: 5,000 bytes, more than 4,000"
    assert bucket.get("PMC7.1/f.jpg") == b"f"


def test_a_bomb_stops_at_the_packages_cap_and_not_later(tmp_path: Path) -> None:
    bomb = gzip.compress(_tar(("p/a.nxml", XML)) + bytes(300_000_000), 1)
    started = time.process_time()
    bucket = PackageBucket(_folder(tmp_path, bomb), package_bytes=10_000_000)
    reason, detail = _reason(lambda: bucket.get("metadata/PMC7.1.json"))
    assert (reason, detail) == (Reason.BAD_PACKAGE, "a/PMC7.tar.gz: more than 10,000,000 bytes when decompressed")
    assert time.process_time() - started < 3


def test_a_claimed_size_and_a_million_members_are_refused() -> None:
    lying = bytearray(_tar(("p/a.jpg", b"x")))
    info = tarfile.TarInfo("p/a.jpg")
    info.size = 1 << 60
    lying[:512] = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(PackageError):
        read_package(gzip.compress(bytes(lying)))
    with pytest.raises(PackageError, match="more than 20,000 members"):
        read_package(_package(*[(f"p/{n}", b"") for n in range(20_001)]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"<html>404</html>",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4],
        lambda data: data[:3000] + bytes([data[3000] ^ 1]) + data[3001:],
        lambda data: gzip.compress(gzip.decompress(data)[:20_000]),
        lambda data: gzip.compress(gzip.decompress(data).replace(b"ustar", b"usury")[:600_000] + b"x" * 1024),
    ],
)
def test_a_cut_or_damaged_package_is_one_reason(corpus: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    bucket = PackageBucket(_folder(tmp_path, damage((corpus / "oa_package/b7/7a/PMC12419688.tar.gz").read_bytes())))
    for key in ("metadata/PMC7.1.json", "PMC7.1/PMC7.1.xml", "PMC7.1/koaf197f1.jpg"):
        reason, detail = _reason(lambda key=key: bucket.get(key))
        assert reason is Reason.BAD_PACKAGE
        assert detail.startswith("a/PMC7.tar.gz: ")


def test_a_package_without_xml_is_refused(tmp_path: Path) -> None:
    bucket = PackageBucket(_folder(tmp_path, _package(("p/f.jpg", b"f"))))
    assert _reason(lambda: bucket.get("metadata/PMC7.1.json"))[1] == "a/PMC7.tar.gz: no .nxml in it"


def test_a_disk_that_fails_is_transient(tmp_path: Path) -> None:
    folder = _folder(tmp_path, b"")
    (folder / "a/PMC7.tar.gz").unlink()
    (folder / "a/PMC7.tar.gz").mkdir()
    reason, _ = _reason(lambda: PackageBucket(folder).get("metadata/PMC7.1.json"))
    assert reason.transient
