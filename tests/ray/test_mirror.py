"""A mirror is a source: a run on the copy gives the rows of a run on the original, and a broken copy is completed."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import ray

from biomedclip_ray.config import Config, ConfigError, parse
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.pmc.mirror import mirror
from biomedclip_ray.run.room import no_room
from biomedclip_ray.run.stage import Outcome
from biomedclip_ray.sample import make_bucket
from biomedclip_ray.sources.bucket import INVENTORIES, SourceError
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.store.attempt import UnfinishedError
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product
from tests.conftest import S3
from tests.disks import fill, small_disk

pytestmark = pytest.mark.usefixtures("ray_cluster")

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "bucket"
    make_bucket(folder, n_articles=30, seed=3)
    return folder


def _config(root: Path, uri: Path | str, **source: object) -> Config:
    return parse({"root": str(root), "source": {"uri": str(uri), "articles_per_part": 12, **source}}, "test")


def _products(config: Config) -> list[Product]:
    versions = catalog.run(config, resolve_inventory(config)).product
    articles = ingest.run(config, versions).product
    return [versions, articles, preprocess.run(config, articles).product]


def _mirror(config: Config, out: Path | str, media: str = "figures") -> Outcome:
    inventory = resolve_inventory(config)
    versions = catalog.run(config, inventory).product
    articles = ingest.run(config, versions).product
    return mirror(config, inventory, versions, articles if media == "figures" else None, str(out))


def _rows(product: Product) -> pd.DataFrame:
    return pd.concat([table.to_pandas() for table in product.scan()], ignore_index=True)


def _same(first: list[Product], second: list[Product]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.fingerprint == other.fingerprint
        pd.testing.assert_frame_equal(_rows(one), _rows(other))
        columns = ["stage", "unit", "id", "reason"]
        # an object whose bytes are not what the metadata promises is not copied: there it is wrong, here it is missing
        expected = one.ledger().to_pandas()[columns].replace("md5_mismatch", "missing_object")
        pd.testing.assert_frame_equal(expected, other.ledger().to_pandas()[columns])


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("select", [{"licenses": "commercial"}, {"licenses": "all", "articles": 15}])
def test_a_run_on_the_copy_gives_the_rows_and_the_losses_of_the_original(
    bucket: Path, tmp_path: Path, s3: S3, select: dict[str, object]
) -> None:
    config = _config(tmp_path / "root", s3.upload(bucket), select=select)
    copy = _mirror(config, tmp_path / "copy")
    lost = {row["id"]: row["reason"] for row in copy.product.ledger().to_pylist()}
    assert set(lost.values()) <= {"missing_object", "md5_mismatch"}  # the sample's planted faults
    original = _files(bucket)
    copied = _files(tmp_path / "copy")
    assert {name: original[name] for name in copied} == copied
    assert len(copied) < len(original)
    _same(_products(config), _products(_config(tmp_path / "again", tmp_path / "copy", select=select)))


def test_all_media_are_the_supplements_too(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("PMC2924383\n")
    config = _config(tmp_path / "root", corpus / "bucket", select={"pmcids": str(tmp_path / "ids.txt")})
    _mirror(config, tmp_path / "figures")
    copy = _mirror(config, tmp_path / "all", "all")
    # the cited figures are JPEG with a GIF thumbnail beside; XML and two copies of the metadata come on top
    assert len(_files(tmp_path / "figures" / "PMC2924383.1")) == 4 + 2
    assert {"pone.0012255.s003.zip", "pone.0012255.s001.tif"} <= set(_files(tmp_path / "all" / "PMC2924383.1"))
    assert copy.product.manifest["counts"] == [{"unit": "object", "in": 12, "kept": 12, "dropped": {}}]


def test_legacy_packages_become_a_bucket(corpus: Path, tmp_path: Path) -> None:
    config = _config(tmp_path / "root", corpus / "oa_package")
    _mirror(config, tmp_path / "copy")
    _same(_products(config), _products(_config(tmp_path / "again", tmp_path / "copy")))
    rows = _rows(_products(config)[2])
    assert rows.groupby("article_id").size().to_dict() == {
        "PMC12419688.1": 1,
        "PMC2924383.1": 4,
        "PMC3532326.1": 2,
    }


def test_a_copy_that_failed_halfway_is_no_source_and_the_same_command_completes_it(
    bucket: Path, tmp_path: Path, s3: S3
) -> None:
    uri = s3.upload(bucket)
    config = _config(tmp_path / "root", uri, resources={"retries": 0, "deadline_s": 20})
    media = [
        medium["key"]
        for figures in _rows(_products(config)[1])["figures"]
        for figure in figures
        for medium in figure["media"]
        if medium["found"]
    ]
    broken = media[::9]
    s3.faults = {key: ["503"] for key in broken}
    with pytest.raises(UnfinishedError, match="run the same command again"):
        _mirror(config, tmp_path / "copy")
    with pytest.raises(SourceError, match="no inventory"):
        resolve_inventory(_config(tmp_path / "again", tmp_path / "copy"))
    assert not any((tmp_path / "copy" / key).exists() for key in broken)
    s3.gets.clear()
    copy = _mirror(config, tmp_path / "copy")
    assert copy.state == "resumed"
    missing = {row["id"] for row in copy.product.ledger().to_pylist()}
    fetched = {key for key in s3.gets if not key.startswith("inventory-reports/")}
    assert fetched <= {*broken, *missing}  # nothing that was there is fetched again
    assert set(broken) - missing <= set(s3.gets)
    _same(_products(config), _products(_config(tmp_path / "again", tmp_path / "copy")))


def test_a_copy_without_room_names_its_disk_and_with_room_the_same_command_completes_it(
    bucket: Path, tmp_path: Path
) -> None:
    config = _config(tmp_path / "root", bucket)
    originals = _products(config)
    with small_disk(tmp_path / "copy", 64) as out:
        filler = fill(out)
        with filler.open("r+b") as file:
            file.truncate(filler.stat().st_size - 1_500_000)  # for some of the 30 articles
        with pytest.raises(ray.exceptions.RayTaskError) as full:
            _mirror(config, out)
        told = no_room(full.value, config.root)
        assert told is not None and told.startswith(f"no room is left in {out}/"), told
        with pytest.raises(SourceError, match="no inventory"):
            resolve_inventory(_config(tmp_path / "again", out))
        kept = {name: data for name, data in _files(out).items() if name.startswith("PMC")}
        assert kept and list(out.rglob("*.tmp")) == []
        filler.unlink()
        assert _mirror(config, out).state == "resumed"
        whole = _files(out)
        assert len(whole) > len(kept) and {name: whole[name] for name in kept} == kept
        _same(originals, _products(_config(tmp_path / "again", out)))


def test_a_finished_copy_is_left_alone_until_its_inventory_is_removed(bucket: Path, tmp_path: Path) -> None:
    config = _config(tmp_path / "root", bucket)
    date = resolve_inventory(config).date
    _mirror(config, tmp_path / "copy")
    assert _mirror(config, tmp_path / "copy").state == "skipped"
    whole = _files(tmp_path / "copy")
    spoilt = next(tmp_path.glob("copy/PMC*/*.xml"))
    spoilt.write_bytes(b"spoilt")
    next(tmp_path.glob("copy/PMC*/*.jpg")).unlink()
    (tmp_path / "copy" / INVENTORIES / date / "manifest.json").unlink()
    again = _mirror(config, tmp_path / "copy")
    assert _files(tmp_path / "copy") == whole
    assert _rows(again.product)["copied"].sum() == 2


def test_a_copy_goes_to_s3_as_well(bucket: Path, tmp_path: Path, s3: S3) -> None:
    (tmp_path / "empty").mkdir()
    out = f"{s3.upload(tmp_path / 'empty')}/copy"
    config = _config(tmp_path / "root", bucket)
    _mirror(config, out)
    original = _files(bucket)
    place = Place(out)
    assert all(place.read(name) == original[name] for name in list(place.list())[::5])
    _same(_products(config), _products(_config(tmp_path / "again", out)))


def test_a_copy_into_the_source_is_refused(bucket: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the source itself"):
        _mirror(_config(tmp_path / "root", bucket), bucket)


def test_a_disk_that_cannot_be_written_leaves_the_copy_unfinished(bucket: Path, tmp_path: Path) -> None:
    config = _config(tmp_path / "root", bucket)
    article = next(
        folder
        for folder in sorted(bucket.glob("PMC*"))
        if folder.name in set(_rows(_products(config)[0])["article_id"])
    )
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / article.name).write_text("a file where a folder must be")
    with pytest.raises(UnfinishedError):
        _mirror(config, tmp_path / "copy")
    (tmp_path / "copy" / article.name).unlink()
    assert _mirror(config, tmp_path / "copy").state == "resumed"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The workflow in this process, on the session's cluster, which goes on after it."""
    spec = importlib.util.spec_from_file_location("workflow_under_test", REPO / "workflows" / "biomedclip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "connect", lambda: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return module


def test_the_command_line_copies_and_says_how_much(
    program: ModuleType, bucket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"root: {tmp_path / 'root'}\nsource: {{uri: {bucket}, articles_per_part: 12}}\n")
    arguments = [str(path), "--only", "mirror", "--out", str(tmp_path / "copy")]
    assert program.main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Mirrored to {tmp_path / 'copy'} (ran): " in said
    assert program.main(arguments) == 0
    assert "(skipped): " in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(tmp_path / "root")
    path.write_text(f"root: {tmp_path / 'root'}\nsource: {{uri: {tmp_path / 'copy'}, articles_per_part: 12}}\n")
    assert program.main([str(path), "--until", "preprocess"]) == 0
    assert program.main([*arguments[:-1], str(tmp_path / "whole"), "--media", "all"]) == 0
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "root" / "mirror").glob("*/_MANIFEST.json")]
    assert {manifest["config"]["out"]: manifest["config"]["media"] for manifest in manifests} == {
        str(tmp_path / "whole"): "all"  # the root of the first copy was removed above
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "mirror"], "--only mirror and --out"),
        (["--only", "ingest", "--out", "x"], "--only mirror and --out"),
        (["--only", "mirror", "--export", "datasets", "--out", "x"], "goes without --only"),
        (["--only", "mirror", "--until", "ingest", "--out", "x"], "--only goes without --from and --until"),
        (["--only", "ingest", "--media", "all"], "--media goes with --only mirror"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    program: ModuleType, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main(["config.yaml", *arguments])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_own_pairs_alone_have_no_source_to_copy(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"root: {tmp_path / 'root'}\nown: {{uri: {tmp_path}, alone: true}}\n")
    assert program.main([str(path), "--only", "mirror", "--out", str(tmp_path / "copy")]) == 2
    assert "--only mirror copies PubMed Central's articles, and own.alone=true reads none" in capsys.readouterr().err
