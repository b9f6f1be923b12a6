"""Too much lost to the network: the command says so with exit code 3, and the same command fetches exactly what is
missing.
"""

from __future__ import annotations

import pyarrow as pa

from tests.cluster.conftest import Workflow, is_picture, tables
from tests.conftest import S3


def test_exit_3_and_then_the_same_command_adds_the_missing_rows(
    workflow: Workflow, s3_server: S3, undisturbed: dict[str, pa.Table]
) -> None:
    rows = pa.concat_tables(
        table for name, table in undisturbed.items() if name.startswith("preprocess/") and "/data/" in name
    )
    pictures = sorted({f"{row['article_id']}/{row['media_name']}" for row in rows.to_pylist()})
    broken = pictures[:: len(pictures) // 3]  # few, so that some parts lose nothing
    s3_server.faults = {key: ["503"] * 100 for key in broken}
    first = workflow.start("--until curate source.resources.retries=1")
    assert first.wait() == 3, first.output
    [line] = [line for line in first.output.splitlines() if line.startswith("unfinished: ")]
    assert f"preprocess: {len(broken)} of " in line
    assert "run the same command again" in line
    assert not list(workflow.root.glob("preprocess/*/_MANIFEST.json"))
    s3_server.faults = {}
    s3_server.gets.clear()
    again = workflow.start("--until curate source.resources.retries=1")
    assert again.wait() == 0, again.output
    assert set(broken) <= set(s3_server.gets)
    assert not [key for key in s3_server.gets if not is_picture(key)]
    assert len(set(s3_server.gets)) < len(pictures)  # parts that lost nothing are not made again
    assert tables(workflow.root) == undisturbed
