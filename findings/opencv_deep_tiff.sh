#!/usr/bin/env bash
# Guess: cv2.imdecode(IMREAD_UNCHANGED) gives the stored numbers of a 16-bit colour TIFF, whatever its layout and orientation.
# Seen (opencv-python-headless 5.0.0.93): planes stored one behind the other (PlanarConfiguration 2) come out as noise; a file with an orientation of
# 2 to 8 is turned although UNCHANGED was asked, so who applies the tag turns it twice. tifffile gives what was written.
# Matters for: whoever reads microscopes' and scanners' TIFFs with OpenCV: the noise has a plausible shape and type, and no error.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'opencv-python-headless==5.0.0.93' 'tifffile==2026.3.3' 'numpy==2.4.6'
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import cv2
import numpy as np
import tifffile

x, y = np.linspace(0, 4000, 60)[None, :], np.linspace(0, 4000, 40)[:, None]
values = np.stack([x + 0 * y, y + 0 * x, (x + y) / 2], 2).astype(np.uint16)


def file(pixels, **options):
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, photometric="rgb", metadata=None, **options)
    return out.getvalue()


def by_opencv(data):
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return None if found is None else found[:, :, ::-1]


def differs(found):
    return found is None or found.shape != values.shape or not np.array_equal(found, values)


planar = file(np.moveaxis(values, 2, 0), planarconfig="separate")
right = np.moveaxis(tifffile.imread(io.BytesIO(planar)), 0, 2)
turned = {n: by_opencv(file(values, extratags=[(274, "H", 1, n, True)])) for n in range(1, 9)}
print("contiguous right:", not differs(turned[1]), "| planar right:", not differs(by_opencv(planar)))
print("orientation -> shape", {n: None if found is None else found.shape for n, found in turned.items()})
still = (
    not differs(turned[1])
    and differs(by_opencv(planar))
    and np.array_equal(right, values)
    and all(turned[n] is not None and differs(turned[n]) for n in range(2, 9))
)
sys.exit(0 if still else 1)
PYTHON
