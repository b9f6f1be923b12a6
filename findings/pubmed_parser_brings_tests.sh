#!/usr/bin/env bash
# Guess: installing a parser of PubMed Central changes nothing for a project's own test folder.
# Seen (pubmed_parser 0.5.1): its wheel installs a top-level package named `tests`. A project whose tests/ has no __init__.py (a namespace
# package, as pytest's importlib mode likes it) can then not be imported as `tests` wherever site-packages is searched: functions
# that were pickled by name, as Ray and multiprocessing do, end with ModuleNotFoundError in the workers, though pytest itself runs.
# Matters for: whoever installs it beside a project with tests, for a comparison or as a dependency.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps 'pubmed_parser==0.5.1'
mkdir -p "$folder/project/tests/unit"
echo 'def work(): return 42' >"$folder/project/tests/unit/job.py"
cd "$folder/project"
"$folder/venv/bin/python" - <<'PYTHON'
import subprocess
import sys

ask = "import sys; sys.path.append('.'); from tests.unit.job import work; print(work())"
beside = subprocess.run([sys.executable, "-I", "-c", ask], capture_output=True, text=True)
alone = subprocess.run([sys.executable, "-I", "-S", "-c", ask], capture_output=True, text=True)
print("without site-packages:", alone.stdout.strip())
print("with pubmed_parser:", beside.stderr.strip().splitlines()[-1:] or beside.stdout.strip())
sys.exit(0 if alone.stdout.strip() == "42" and "No module named 'tests.unit'" in beside.stderr else 1)
PYTHON
