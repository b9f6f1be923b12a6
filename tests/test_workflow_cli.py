"""The command line: what is wrong is one line with the key and the fix, before Ray starts and before anything is
written.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from biomedclip_ray.config import Config, load
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run import room
from biomedclip_ray.run.record import Run
from biomedclip_ray.sample import make_bucket
from biomedclip_ray.schema import ARTICLES, CATALOG
from biomedclip_ray.sources.bucket import INVENTORIES
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Ledger
from biomedclip_ray.store.product import Product
from tests.conftest import S3

REPO = Path(__file__).resolve().parents[1]


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


Cli = Callable[..., Answer]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("workflow_under_test", REPO / "workflows" / "biomedclip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "bucket"
    make_bucket(folder, n_articles=12, seed=2)
    return folder


@pytest.fixture
def config(tmp_path: Path, bucket: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(f"root: {tmp_path / 'root'}\nsource: {{uri: {bucket}, articles_per_part: 6}}\n")
    return path


@pytest.fixture
def cli(
    program: ModuleType,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Cli:
    """Runs `biomedclip.py CONFIG ...` in this process; starting Ray fails the test."""
    monkeypatch.setattr(program, "connect", lambda: pytest.fail("Ray was started"))

    def run(*arguments: str, file: Path = config) -> Answer:
        capsys.readouterr()
        code = program.main([str(file), *arguments])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(cli: Cli, tmp_path: Path) -> Callable[..., str]:
    """The one line with which a command is refused; nothing may lie in the root afterwards."""

    def run(*arguments: str) -> str:
        answer = cli(*arguments)
        assert answer.code == 2, answer.err
        assert len(answer.errors) == 1, answer.err
        assert "Traceback" not in answer.err
        assert [path for path in (tmp_path / "root").rglob("*") if path.is_file()] == []
        return answer.errors[0]

    return run


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epoch=3", "unknown key train.epoch; did you mean train.epochs?"),
        ("source.select.license=all", "unknown key source.select.license; did you mean source.select.licenses?"),
        ("sauce.uri=x", "unknown key sauce; did you mean source?"),
        ("train.lr=fast", "train.lr='fast'"),
        ("train.batch=100", "train.batch=100 must be a multiple of train.micro_batches=8"),
        ("source.select.licenses=[CC-BY]", "'CC-BY' is no licence code; known: CC0, CC BY"),
        ("train.lr", "override 'train.lr' is not of the form key=value, for example train.lr=3e-4"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_fits(refused: Callable[..., str], override: str, said: str) -> None:
    assert said in refused(override)


def test_a_config_file_that_is_not_there_is_named_with_those_beside_it(cli: Cli, config: Path) -> None:
    answer = cli(file=config.with_name("confg.yaml"))
    assert answer.code == 2
    assert answer.errors == [f"error: config file {config.with_name('confg.yaml')} does not exist; beside it: {config}"]


def test_a_refusal_may_be_final_for_what_starts_failed_jobs_again(cli: Cli) -> None:
    answer = cli("train.lr=0", "--refusal-is-final")
    assert answer.code == 0
    assert len(answer.errors) == 1


def test_a_range_that_ends_before_it_begins_is_refused(refused: Callable[..., str]) -> None:
    assert refused("--from", "train", "--until", "ingest") == "error: --from train comes after --until ingest"


def test_only_goes_alone(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli("--only", "ingest", "--until", "curate")
    assert stopped.value.code == 2
    assert "--only goes without --from and --until" in capsys.readouterr().err


# -- the source -------------------------------------------------------------------------------------------------------


def test_a_source_folder_that_is_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert f"source.uri={tmp_path}/nowhere: no such folder; expected a bucket" in refused(
        f"source.uri={tmp_path}/nowhere"
    )


def test_a_source_that_is_a_file(refused: Callable[..., str], config: Path) -> None:
    assert f"source.uri={config}: no such folder" in refused(f"source.uri={config}")


def test_a_source_folder_of_another_kind(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    line = refused(f"source.uri={tmp_path}/other")
    assert f"source.uri={tmp_path}/other: no inventory below {INVENTORIES}/; is it a bucket in PMC's layout?" in line


def test_a_bucket_that_does_not_exist(refused: Callable[..., str], s3: S3) -> None:
    line = refused("source.uri=s3://nobody-has-this-one")
    assert "source.uri=s3://nobody-has-this-one cannot be reached" in line
    assert "NoSuchBucket" in line


def test_an_endpoint_that_is_down(refused: Callable[..., str], s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    line = refused("source.uri=s3://behind-a-dead-endpoint")
    assert "source.uri=s3://behind-a-dead-endpoint cannot be reached" in line
    assert "http://127.0.0.1:1" in line


def test_a_source_of_an_unknown_kind(refused: Callable[..., str]) -> None:
    assert "source.uri=ftp://ftp.example.org: expected s3://BUCKET or a folder" in refused(
        "source.uri=ftp://ftp.example.org"
    )


def test_an_inventory_that_the_source_does_not_have(refused: Callable[..., str], bucket: Path) -> None:
    newest = resolve_inventory(load_config(bucket)).date
    line = refused("source.inventory=2001-01-01T00-00Z")
    assert "source.inventory=2001-01-01T00-00Z: not in " in line
    assert newest in line


# -- the root and the rest --------------------------------------------------------------------------------------------


def test_a_root_that_cannot_be_written(refused: Callable[..., str], config: Path) -> None:
    line = refused(f"root={config}/root")
    assert f"root={config}/root cannot be read" in line
    assert "Not a directory" in line
    assert "give a place that this user may use" in line


def test_a_root_that_can_be_read_but_not_written(refused: Callable[..., str]) -> None:
    line = refused("root=/proc")
    assert "root: /proc cannot be written and read back" in line
    assert "give a place that this user may write" in line


def test_a_root_of_an_unknown_kind(refused: Callable[..., str]) -> None:
    assert "xyz://somewhere" in refused("root=xyz://somewhere")


def test_a_disk_that_is_nearly_full(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MIN_FREE_BYTES", 10**18)
    line = refused()
    assert f"root={tmp_path}/root: only " in line
    assert "GB are free, at least 1000000000.0 GB are needed; make room there" in line


def test_a_folder_for_temporary_files_that_is_nearly_full(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MIN_SCRATCH_BYTES", 10**18)
    line = refused()
    assert f"TMPDIR={tempfile.gettempdir()}: only " in line
    assert "name a larger folder by TMPDIR on every node" in line


def test_a_relative_root_in_a_submitted_job(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    line = refused("root=out")
    assert "root=out is relative" in line
    assert "give an absolute path on shared storage or a URI" in line


def test_a_tokenizer_that_does_not_load(refused: Callable[..., str]) -> None:
    line = refused("model.tokenizer=/nowhere/tokenizer", "model.init=random")
    assert "model.tokenizer=/nowhere/tokenizer cannot be loaded" in line
    assert "give a folder with tokenizer.json" in line


def test_a_text_classifier_or_a_bundle_of_kinds_that_does_not_load(refused: Callable[..., str], tmp_path: Path) -> None:
    data_side = ("--until", "curate")
    assert "classifier.uri=/nowhere/a.onnx cannot be read" in refused(
        "preprocess.select.classifier.uri=/nowhere/a.onnx", *data_side
    )
    (tmp_path / "a.onnx").write_bytes(b"a pickle")
    line = refused(f"preprocess.select.classifier.uri={tmp_path}/a.onnx", *data_side)
    assert line.startswith(f"error: preprocess.select.classifier.uri={tmp_path}/a.onnx cannot be loaded: ")
    line = refused("preprocess.kinds.bundle=/nowhere", *data_side)
    assert line.startswith("error: preprocess.kinds.bundle: /nowhere: no open_clip_config.json there")


@pytest.mark.parametrize("options", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_bad_labelled_set_is_a_line_before_anything_is_trained(
    refused: Callable[..., str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    folder = tmp_path / "lungs"
    folder.mkdir()
    told = {"name": "lungs", "task": "classification"}
    for classes, fault in (
        ("normal", "dataset.json: classes must be a list of texts, in the order of the classes"),
        (["normal", "ill"], "has no test table; evaluation needs one"),
    ):
        (folder / "dataset.json").write_text(json.dumps(told | {"classes": classes}))
        line = refused(f"evaluate.sets=[{folder}]", "model.init=random", *options)
        assert f"error: evaluate.sets: {folder}: {fault}" in line


def test_all_that_is_wrong_is_said_at_once(cli: Cli) -> None:
    answer = cli("root=/proc", "model.tokenizer=/nowhere/tokenizer", "model.init=random")
    assert answer.code == 2
    assert [line.split()[1].split("=")[0].rstrip(":") for line in answer.errors] == ["root", "model.tokenizer"]


def test_a_cluster_address_where_nobody_listens(
    program: ModuleType, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert program.main([str(config), "--until", "curate"]) == 2
    said = capsys.readouterr().err
    assert "error: RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there" in said
    assert "unset RAY_ADDRESS to run on a Ray of its own" in said


# -- what would run ---------------------------------------------------------------------------------------------------


def load_config(bucket: Path, root: str = "unused") -> Config:
    return Config.model_validate({"root": root, "source": {"uri": str(bucket), "articles_per_part": 6}})


def _finish(product: Product, schema: object, row: dict[str, object], parts: int, of: int) -> None:
    """Write `parts` of the `of` parts of a product, and its manifest where that is all of them."""
    import pyarrow as pa

    with attempt(product, of) as current:
        for part in range(parts):
            ledger = Ledger(product.stage)
            ledger.count("article", 1, 1)
            current.write_part(part, pa.Table.from_pylist([row], schema=schema), ledger.table(), ledger.counts)
        if parts == of:
            current.finish_parts(transient_limit=0)


@pytest.fixture
def begun(config: Path) -> tuple[Product, Product]:
    """A finished catalog, and two of three parts of ingest."""
    loaded = load(config)
    versions = catalog.plan(loaded, resolve_inventory(loaded))
    articles = ingest.plan(loaded, versions)
    _finish(versions, CATALOG, {"article_id": "PMC1.1"}, 3, of=3)
    _finish(articles, ARTICLES, {"article_id": "PMC1.1"}, 2, of=3)
    return versions, articles


def _table(out: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}


def test_a_dry_run_in_an_empty_root_would_run_everything_and_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    answer = cli("--dry-run")
    assert answer.code == 0
    table = _table(answer.out)
    stages = ("catalog", "ingest", "preprocess", "curate", "train", "evaluate", "embed", "deploy")
    assert {stage: table[stage][0] for stage in stages} == dict.fromkeys(stages, "run")
    assert not (tmp_path / "root").exists()


def test_a_dry_run_says_what_is_skipped_resumed_and_left_and_why(cli: Cli, begun: tuple[Product, Product]) -> None:
    catalog, articles = begun
    table = _table(cli("--dry-run", "--until", "preprocess").out)
    assert table["catalog"][:2] == ["skip", "finished"]
    assert table["catalog"][-1] == catalog.fingerprint
    assert table["ingest"] == ["resume", "2", "parts", "are", "done", articles.fingerprint]
    assert table["preprocess"][0] == "run"
    assert table["curate"][:4] == ["leave", "not", "asked", "for"]


def test_a_stage_without_parts_that_has_begun_is_resumed(
    cli: Cli, begun: tuple[Product, Product], tmp_path: Path
) -> None:
    train = _table(cli("--dry-run").out)["train"][-1]
    (tmp_path / "root" / "train" / train / "checkpoints").mkdir(parents=True)
    (tmp_path / "root" / "train" / train / "metrics.jsonl").write_text("{}")
    assert _table(cli("--dry-run").out)["train"] == ["resume", "begun,", "not", "finished", train]


def test_a_changed_setting_makes_a_new_product_and_speed_does_not(cli: Cli, begun: tuple[Product, Product]) -> None:
    changed = _table(cli("--dry-run", "source.select.retracted=true").out)
    assert changed["catalog"][0] == "run"
    faster = _table(cli("--dry-run", "catalog.resources.concurrency=9", "source.resources.retries=1").out)
    assert faster["ingest"][0] == "resume"


def test_a_dry_run_writes_nothing_into_a_root_that_is_in_use(
    cli: Cli, begun: tuple[Product, Product], tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}
    cli("--dry-run")
    cli("--list")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")} == before


@pytest.mark.parametrize("dry", [True, False])
def test_a_stage_alone_whose_input_is_not_finished_is_refused(
    cli: Cli, begun: tuple[Product, Product], dry: bool
) -> None:
    answer = cli("--only", "preprocess", *(["--dry-run"] if dry else []))
    assert answer.code == 2
    assert len(answer.errors) == 1
    assert f"ingest is not finished for this configuration ({begun[1].uri}), and preprocess builds on it" in answer.err
    assert "--from ingest" in answer.err


def test_from_a_stage_whose_inputs_are_there_asks_only_for_what_it_needs(
    cli: Cli, begun: tuple[Product, Product]
) -> None:
    table = _table(cli("--dry-run", "--from", "ingest", "--until", "ingest").out)
    assert [table[stage][0] for stage in ("catalog", "ingest", "preprocess")] == ["skip", "resume", "leave"]


def test_list_shows_every_product_with_its_rows_and_what_uses_it(
    cli: Cli, config: Path, begun: tuple[Product, Product]
) -> None:
    catalog, articles = begun
    _finish(articles, ARTICLES, {"article_id": "PMC1.1"}, 3, of=3)
    answer = cli("--list")
    assert answer.code == 0
    lines = [line.split() for line in answer.out.splitlines()]
    [first] = [line for line in lines if line[:1] == [f"catalog/{catalog.fingerprint}"]]
    [second] = [line for line in lines if line[:1] == [f"ingest/{articles.fingerprint}"]]
    assert first[2] == second[2] == "3"
    assert first[-1] == f"ingest/{articles.fingerprint}"
    assert second[-1] == "nothing"


def test_list_ends_with_the_uris_that_a_server_is_given(cli: Cli, begun: tuple[Product, Product]) -> None:
    root = begun[0].uri.rsplit("/", 2)[0]
    for stage in ("train", "embed"):
        _finish(Product.plan(root, stage, 1, {}, []), CATALOG, {"article_id": "PMC1.1"}, 1, of=1)
    bundle, index = sorted(cli("--list").out.splitlines()[-2:], reverse=True)
    assert re.fullmatch(rf"{root}/train/\w+/bundle", bundle) and re.fullmatch(rf"{root}/embed/\w+/index\.lance", index)


# -- which inventory --------------------------------------------------------------------------------------------------


def test_a_root_stays_with_its_inventory_until_it_is_told_to_move_on(
    cli: Cli, bucket: Path, config: Path, tmp_path: Path
) -> None:
    source = tmp_path / "bucket"
    shutil.copytree(bucket, source)
    loaded = load(config, [f"source.uri={source}"])
    first = resolve_inventory(loaded)
    Run(loaded, first, "catalog", "deploy").begin()  # as far as a run that is killed in its first stage has come
    later = source / INVENTORIES / "2099-01-01T01-00Z"
    shutil.copytree(source / INVENTORIES / first.date, later)
    assert resolve_inventory(loaded) == first
    assert resolve_inventory(loaded, sync=True).date == "2099-01-01T01-00Z"
    same = _table(cli("--dry-run", f"source.uri={source}").out)["catalog"][-1]
    moved = _table(cli("--dry-run", "--sync", f"source.uri={source}").out)["catalog"][-1]
    assert same != moved
    record = json.loads((tmp_path / "root" / "run.json").read_text())
    assert record["inventories"][str(source)]["date"] == first.date


# -- what a cluster can take, without one -----------------------------------------------------------------------------


def test_a_dry_run_says_what_the_cluster_of_a_file_cannot_take(cli: Cli) -> None:
    aws = REPO / "cluster" / "aws.yaml"
    assert cli("--dry-run", "--cluster", str(aws)).code == 0
    answer = cli("--dry-run", "--cluster", str(aws), "ingest.resources.num_cpus=33")
    assert answer.code == 2
    assert answer.errors == [
        f"error: ingest.resources.num_cpus=33, but no node of --cluster {aws} has more than 32 CPUs; lower it"
    ]


def test_a_dry_run_says_which_node_type_a_budget_has_no_price_for(cli: Cli) -> None:
    aws = str(REPO / "cluster" / "aws.yaml")
    budget = ("budget.money=500", "budget.prices={cpu: 1.4, head: 0.4}")
    answer = cli("--dry-run", "--cluster", aws, *budget)
    assert answer.code == 2
    [line] = answer.errors
    assert "node type gpu has no price; set budget.prices.gpu" in line
    assert (
        cli("--dry-run", "--cluster", aws, "budget.money=500", "budget.prices={cpu: 1.4, head: 0.4, gpu: 2}").code == 0
    )


def test_a_dry_run_refuses_a_file_that_describes_no_cluster(cli: Cli) -> None:
    answer = cli("--dry-run", "--cluster", str(REPO / "cluster" / "serve.yaml"))
    assert answer.code == 2
    assert "neither a launcher's file" in answer.errors[0]
