"""`ray job submit` against a head that `ray start` has started, guarded by a token, as on a real cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from biomedclip_ray.sample import make_bucket
from tests.cluster.conftest import PATIENCE_S, Workflow, is_xml, tables
from tests.cluster.nodes import Cluster, kill_node
from tests.conftest import S3
from tests.processes import descendants, is_busy_worker


@pytest.fixture(scope="module")
def cluster(s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("home"), cpus=2)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "bucket"
    make_bucket(folder, n_articles=20, seed=4)
    return folder


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, bucket: Path) -> dict[str, tuple[int, str]]:
    """Exit code and output of two submitted jobs: one with an absolute root, one with a relative root."""
    common = ["python", "workflows/biomedclip.py", "workflows/configs/sample.yaml", f"source.uri={bucket}"]
    common += ["source.articles_per_part=5", "--until", "curate"]
    running = {
        "relative": cluster.submit(*common, "root=out"),
        "absolute": cluster.submit(*common, f"root={bucket.parent / 'root'}"),
    }
    return {name: (job.wait(PATIENCE_S), job.communicate()[0]) for name, job in running.items()}


def test_a_submitted_job_runs_the_workflow_and_leaves_its_record(
    jobs: dict[str, tuple[int, str]], bucket: Path
) -> None:
    code, output = jobs["absolute"]
    assert code == 0, output
    stages = json.loads((bucket.parent / "root" / "run.json").read_text())["stages"]
    assert [(stage["name"], stage["state"]) for stage in stages] == [
        (name, "ran") for name in ("catalog", "ingest", "preprocess", "curate")
    ]
    assert all(count["kept"] > 0 for stage in stages for count in stage["counts"])
    assert "Run in " in output


def test_a_relative_root_is_refused_in_a_submitted_job(jobs: dict[str, tuple[int, str]]) -> None:
    code, output = jobs["relative"]
    assert code == 1  # what `ray job submit` makes of every failure
    assert "exit code 2" in output
    assert "error: root=out is relative, but this job runs in Ray's unpacked copy of the code" in output
    assert "give an absolute path on shared storage or a URI" in output


def test_what_is_uploaded_is_the_code_and_nothing_that_was_built_or_written(
    jobs: dict[str, tuple[int, str]], cluster: Cluster
) -> None:
    [unpacked] = cluster.folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    top = {path.name for path in unpacked.iterdir()}
    assert {"biomedclip_ray", "workflows", "pyproject.toml"} <= top
    assert top.isdisjoint({".git", ".venv", ".demo", "tests", "build", "dist"})
    files = [path for path in unpacked.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert [path for path in files if path.suffix in (".pyc", ".parquet", ".safetensors")] == []


def test_more_cpus_than_the_cluster_has_are_refused_before_anything_runs(
    cluster: Cluster, source: str, tmp_path: Path
) -> None:
    workflow = Workflow(tmp_path, source)
    workflow.env |= cluster.env | {"RAY_ADDRESS": cluster.address}
    driver = workflow.start("--until curate ingest.resources.num_cpus=64")
    assert driver.wait() == 2, driver.output
    errors = [line for line in driver.output.splitlines() if line.startswith("error: ")]
    assert errors == ["error: ingest.resources.num_cpus=64, but the cluster has 2 CPUs; lower it"]
    assert "Traceback" not in driver.output
    assert [path for path in workflow.root.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_a_node_that_dies_in_ingest_costs_no_row(
    source: str, undisturbed: dict[str, pa.Table], s3_server: S3, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path, cpus=1)
    workflow = Workflow(tmp_path, source)
    workflow.env |= cluster.env | {"RAY_ADDRESS": cluster.address}
    try:
        node = cluster.start(f"--address={cluster.address}", "--num-cpus=2")
        too_much = workflow.start("--until curate ingest.resources.num_cpus=3")
        assert too_much.wait() == 2, too_much.output
        assert "ingest.resources.num_cpus=3, but no node has more than 2 CPUs; lower it" in too_much.output
        s3_server.hold(is_xml, after=12)
        driver = workflow.start()
        driver.until(lambda: len(workflow.done("ingest")) >= 2, "a part of ingest is done")
        driver.until(lambda: any(map(is_busy_worker, descendants(node.pid))), "the node works on a part")
        kill_node(node)
        s3_server.release()
        assert driver.wait() == 0, driver.output
    finally:
        s3_server.release()
        workflow.close()
        cluster.close()
    found = tables(workflow.root)
    assert set(found) == set(undisturbed)
    assert [name for name in found if not found[name].equals(undisturbed[name])] == []


@pytest.mark.slow
def test_a_node_that_does_not_see_the_root_is_found_before_anything_runs(source: str, tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, source)
    workflow.root.mkdir()
    apart = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {workflow.root} && exec "$@"', "sh")
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount of its own for one process is not allowed here")
    cluster = Cluster(tmp_path, cpus=0)  # as on Kubernetes: the head works on nothing itself
    workflow.env |= cluster.env | {"RAY_ADDRESS": cluster.address}
    try:
        cluster.start(f"--address={cluster.address}", "--num-cpus=1", prefix=apart)
        driver = workflow.start()
        assert driver.wait() == 2, driver.output
    finally:
        workflow.close()
        cluster.close()
    errors = [line for line in driver.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"root={workflow.root} is not shared storage: node " in errors[0]
    assert "use a mounted folder or s3://" in errors[0]
    assert not list(workflow.root.glob("catalog"))
