"""The plan held to account: the sample's whole workflow on a small cluster, what was planned beside what it took.

    python benchmarks/plan.py [--articles 600]

A head without CPUs and a node with two, on this machine, where nothing else should run: rates.json was measured on a
quiet one. The plan is the one that the run itself makes before it begins, on `workflows/rates.json` and the assumptions
of `biomedclip_ray/cost/`. Prints each stage, and `plan_whole ratio=X`: seconds taken over seconds planned. Exit 1 where
the whole is off by more than a quarter, or a stage that is planned or took over 20 s by more than half.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from biomedclip_ray.cost.account import lines
from biomedclip_ray.sample import make_bucket

REPO = Path(__file__).resolve().parents[1]
WHOLE, STAGE, SHORT_S = 0.25, 0.5, 20.0


def ran(articles: int, folder: Path) -> dict[str, Any]:
    """The record of a run of the sample."""
    make_bucket(folder / "bucket", articles)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        config = ["workflows/configs/sample.yaml", f"root={folder / 'root'}", f"source.uri={folder / 'bucket'}"]
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        subprocess.run(
            [sys.executable, "workflows/biomedclip.py", *config],
            cwd=REPO,
            env=environment,
            check=True,
            stdout=sys.stderr,
        )
    finally:
        cluster.shutdown()
    [record] = (folder / "root" / "runs").glob("*.json")
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--articles", type=int, default=600)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = ran(options.articles, Path(folder))
    *stages, whole = lines(record["plan"], record["stages"])
    off = abs(whole["ratio"] - 1) > WHOLE
    for line in stages:
        print(f"  {line['name']}: planned {line['likely']:.1f} s ({line['low']:.0f} to {line['high']:.0f}), ", end="")
        print(f"took {line['took']:.1f} s, {line['ratio']:.2f}")
        off |= max(line["likely"], line["took"]) > SHORT_S and abs(line["ratio"] - 1) > STAGE
    print(f"plan_whole ratio={whole['ratio']:.2f} bound {1 - WHOLE:g} to {1 + WHOLE:g}")
    return int(off)


if __name__ == "__main__":
    sys.exit(main())
