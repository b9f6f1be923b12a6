#!/usr/bin/env bash
# Guess: JPEG 2000 without loss (reversible=True, level=0) gives whole numbers of type uint32 back as they were, or an error: the standard has 38
# bits, OpenJPEG takes 32, and imagecodecs takes the type.
# Seen (imagecodecs 2026.3.6, OpenJPEG 2.5.4): a ramp of 16 bits is exact as uint16, and off by 1 as uint32, which is the same picture. Noise of 28
# bits comes back off by most of its range, noise of 32 bits too. Neither encoder nor decoder says a word.
# Matters for: whoever keeps label images, counts or float bits under JPEG 2000, in TIFF or alone, and trusts "lossless".
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'imagecodecs==2026.3.6' 'numpy==2.4.6'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import imagecodecs
import numpy as np


def off(values: np.ndarray) -> int:
    """How far the worst number is from what it was."""
    back = imagecodecs.jpeg2k_decode(imagecodecs.jpeg2k_encode(values, reversible=True, level=0))
    assert back.dtype == values.dtype and back.shape == values.shape
    return int(np.abs(back.astype(np.int64) - values.astype(np.int64)).max())


ramp = np.linspace(0, 2**16 - 1, 64 * 64).reshape(64, 64)
narrow, wide = off(ramp.astype(np.uint16)), off(ramp.astype(np.uint32))
print(f"a ramp of 16 bits: off by {narrow} as uint16, by {wide} as uint32")
noise = {}
for bits in (28, 32):
    drawn = np.random.default_rng(0).integers(0, 2**bits, (64, 64), dtype=np.uint64)
    noise[bits] = off(drawn.astype(np.uint32))
    print(f"noise of {bits} bits as uint32: off by {noise[bits]:,} of {2**bits:,}")
print(imagecodecs.jpeg2k_version())
sys.exit(0 if narrow == 0 and wide > 0 and all(most > 2 ** (bits - 1) for bits, most in noise.items()) else 1)
PYTHON
