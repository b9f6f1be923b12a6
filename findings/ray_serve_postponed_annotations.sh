#!/usr/bin/env bash
# Guess: a Ray Serve application builder whose parameter is a pydantic model gets that model, checked and converted, as the guide to
# typed builders says.
# Seen (ray 2.60.0): not in a file that begins with `from __future__ import annotations`. There the annotation is text, Serve looks
# for a class, and the builder gets the plain dict: numbers stay words, required and forbidden fields are not checked, and nothing says
# so. The first sign is an AttributeError in the builder, or none where it takes `args["..."]` or hands the dict on.
# Matters for: whoever deploys by `serve run`, `serve deploy` or a RayService in a code base whose linter adds that import everywhere.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ray[serve]==2.60.0'
cd "$folder"
cat > plain.py <<'PYTHON'
from pydantic import BaseModel
from ray import serve


class Arguments(BaseModel):
    batch: int


@serve.deployment
class Model:
    def __init__(self, batch):
        self.batch = batch


def build(args: Arguments):
    batch = args["batch"] if isinstance(args, dict) else args.batch
    print(f"the builder got {type(args).__name__}, batch={batch!r}")
    return Model.bind(batch)
PYTHON
{ echo 'from __future__ import annotations'; cat plain.py; } > postponed.py
for module in plain postponed; do
    timeout 200 "$folder/venv/bin/serve" run --non-blocking "$module:build" batch=32 > "$module.txt" 2>&1 || { tail -20 "$module.txt"; exit 1; }
    echo "$module.py: $(grep -o 'the builder got.*' "$module.txt")"
done
grep -q 'the builder got Arguments, batch=32$' plain.txt && grep -q "the builder got dict, batch='32'$" postponed.txt
