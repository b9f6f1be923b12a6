#!/usr/bin/env bash
# Guess: infinity-emb installed with its extra `server` (and `vision`, which brings towers' code) embeds images that a request carries.
# Seen (infinity-emb 0.0.78): images, given as bytes too, are read by a module that wants aiohttp, and no extra, `all` included, names aiohttp. A server
# in a fresh environment starts, says that it is healthy, embeds texts, and answers 500 to the first image: "aiohttp is not available.
# install via `pip install infinity-emb[server]`", which is what was installed. It works where something else happened to bring aiohttp.
# Matters for: whoever serves a CLIP with infinity from an image of their own, and whoever compares with it: add aiohttp by name.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'infinity-emb[server]==0.0.78' 'pillow==12.0.0'
cd "$folder"
cat > image.py <<'PYTHON'
import asyncio
import io
import sys
from importlib.metadata import metadata

from infinity_emb.transformer.vision.utils import resolve_images
from PIL import Image

picture = io.BytesIO()
Image.new("RGB", (64, 48), "navy").save(picture, "PNG")
named = [line for line in metadata("infinity-emb").get_all("Requires-Dist") if line.startswith("aiohttp")]
try:
    said = f"{len(asyncio.run(resolve_images([picture.getvalue()])))} image"
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(f"requirements that name aiohttp: {named}; an image of {len(picture.getvalue())} bytes gives: {said}")
sys.exit(0 if not named and ("aiohttp is not available" in said) == (sys.argv[1] == "fails") else 1)
PYTHON
"$folder/venv/bin/python" image.py fails
"$folder/venv/bin/pip" install --quiet 'aiohttp==3.13.2'
"$folder/venv/bin/python" image.py works
