#!/usr/bin/env bash
# Guess: a Lance table's `optimize_indices()` adds new rows to the partitions that a vector index has.
# Seen (pylance 14.0.2): called plainly it joins partitions that are small beside a target of its own, here 64 of 20,000 rows become a
# handful, and the probes that were tuned for 64 find fewer neighbours or read most of the table. With num_indices_to_merge=1 they stay.
# Matters for: whoever appends to an IVF index of a few hundred rows a partition and keeps its nprobes. lancedb's Table.optimize() does
# the same and takes no argument against it.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'pylance==14.0.2' 'pyarrow==26.0.1' 'numpy==2.4.6'
cd "$folder"
LANCE_LOG=error "$folder/venv/bin/python" - <<'PYTHON'
import sys

import lance
import numpy as np
import pyarrow as pa

WIDTH = 32
random = np.random.default_rng(0)


def table(rows):
    centres = np.random.default_rng(1).normal(size=(64, WIDTH))
    vectors = centres[random.integers(64, size=rows)] + 0.3 * random.normal(size=(rows, WIDTH))
    return pa.table({"v": pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), WIDTH)})


def partitions(**arguments):
    name = "-".join(arguments) or "plain"
    dataset = lance.write_dataset(table(20_000), name)
    dataset = dataset.create_index("v", "IVF_PQ", metric="cosine", num_partitions=64, num_sub_vectors=4)
    before = dataset.stats.index_stats("v_idx")["indices"][0]["num_partitions"]
    dataset = lance.write_dataset(table(100), name, mode="append")
    dataset.optimize.optimize_indices(**arguments)
    after = [index["num_partitions"] for index in lance.dataset(name).stats.index_stats("v_idx")["indices"]]
    print(f"{name}: {before} partitions, after optimize_indices {after}")
    return before, after


before, plain = partitions()
_, kept = partitions(num_indices_to_merge=1)
sys.exit(0 if max(plain) < before / 4 and kept == [before] else 1)
PYTHON
