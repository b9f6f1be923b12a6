#!/usr/bin/env bash
# Guess: PIL.Image.open gives the same pixels of a TIFF by its path and by its bytes.
# Seen (pillow 13.0.0): an uncompressed grey, RGBA or CMYK TIFF of one strip with an orientation of 5 to 8 is mapped from the file when it is opened by
# path, with width and height exchanged: rows are sheared. By bytes, or by an open file, it is right. No warning.
# Matters for: whoever opens scanners' and phones' TIFFs by path: the picture is there, its lines run aslant.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'pillow==13.0.0' 'numpy==2.4.6'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import numpy as np
from PIL import Image

ramp = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
wrong = {}
for mode in ("L", "RGBA", "RGB"):
    for orientation in range(1, 9):
        name = f"{mode}{orientation}.tif"
        Image.fromarray(ramp).convert(mode).save(name, tiffinfo={274: orientation})
        with open(name, "rb") as file:
            by_bytes = np.asarray(Image.open(io.BytesIO(file.read())))
        by_path = np.asarray(Image.open(name))
        if not np.array_equal(by_path, by_bytes):
            wrong.setdefault(mode, []).append(orientation)
print("sheared when opened by path:", wrong)
sys.exit(0 if wrong == {"L": [5, 6, 7, 8], "RGBA": [5, 6, 7, 8]} else 1)
PYTHON
