"""A run whose budget is spent ends resumably, says what is left, tells the webhook and leaves its log; the same command
goes on, and the records of both can be compared.
"""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pytest

from tests.cluster.conftest import Workflow, is_xml, tables
from tests.conftest import S3
from tests.run.test_notice import Hook


@pytest.mark.slow
def test_a_spent_budget_ends_the_run_with_3_and_the_same_command_makes_the_same_rows(
    workflow: Workflow, s3_server: S3, undisturbed: dict[str, pa.Table]
) -> None:
    hook = Hook()
    s3_server.hold(is_xml, after=12)
    try:
        arguments = f"--until curate notice.webhook={hook.url} budget.prices={{cpu: 3.6}}"
        first = workflow.start(f"{shell(arguments)} budget.hours=0.01")
        assert first.wait() == 3, first.output
    finally:
        s3_server.release()
    line = first.output.splitlines()[-1]
    assert line.startswith("unfinished: budget.hours=0.01 is spent (")
    assert re.search(r"left to do: ingest, \d+ of 16 parts; then preprocess, curate$", line)
    assert "Traceback" not in first.output
    assert list(workflow.root.rglob("_LEASE.json")) == []
    again = workflow.run(shell(arguments))
    assert tables(workflow.root) == undisturbed
    assert "ingest: goes on with " in again.output

    [one, two] = sorted(json.loads(path.read_text())["id"] for path in (workflow.root / "runs").iterdir())
    told = [(post["event"], post["run"], post["exit_code"]) for post in hook.posts]
    assert told == [("failed", one, 3), ("finished", two, 0)]
    assert line in hook.posts[0]["text"]
    log = (workflow.root / "logs" / one / "driver.log").read_text()
    assert "ingest: " in log
    assert line in log

    records = {name: json.loads((workflow.root / "runs" / f"{name}.json").read_text()) for name in (one, two)}
    ingest = next(stage for stage in records[two]["stages"] if stage["name"] == "ingest")
    before = next(entry for entry in records[one]["spent"] if entry["stage"] == "ingest")
    assert ingest["seconds"] >= before["seconds"] + ingest["this_run"]["seconds"] - 0.1 > before["seconds"]
    assert ingest["node_seconds"]["cpu"] > before["node_seconds"]["cpu"] > 0
    assert ingest["money"] > before["money"] > 0
    compared = workflow.run(f"--compare {one} {two}")
    assert "unfinished" in compared.output
    assert "node-seconds" in compared.output


def shell(arguments: str) -> str:
    return arguments.replace("{cpu: 3.6}", "'{cpu: 3.6}'")
