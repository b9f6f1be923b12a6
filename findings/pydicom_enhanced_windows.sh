#!/usr/bin/env bash
# Guess: pydicom's apply_modality_lut and apply_voi_lut show an enhanced CT or MR as its viewer does.
# Seen (pydicom 3.0.2): both look for slope and window at the top of the file only. An enhanced multi-frame file has them for each frame (PS3.3
# C.7.6.16), so stored values come back as they are, as if they were Hounsfield units in a window, and nothing is said.
# Matters for: whoever makes training images of enhanced CT, MR and PET with pydicom alone: 1,024 units off, or frames of different scale.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'pydicom==3.0.2' 'numpy==2.4.6'
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian

stored = np.array([[0, 1024, 2048]], np.uint16)
values, window = Dataset(), Dataset()
values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024, "HU"
window.WindowCenter, window.WindowWidth = 40, 400
shared = Dataset()
shared.PixelValueTransformationSequence, shared.FrameVOILUTSequence = Sequence([values]), Sequence([window])
enhanced = Dataset()
enhanced.file_meta = FileMetaDataset()
enhanced.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
enhanced.SOPClassUID = EnhancedCTImageStorage
enhanced.Rows, enhanced.Columns, enhanced.BitsAllocated, enhanced.BitsStored, enhanced.HighBit = 1, 3, 16, 12, 11
enhanced.PixelRepresentation, enhanced.SamplesPerPixel, enhanced.PhotometricInterpretation = 0, 1, "MONOCHROME2"
enhanced.SharedFunctionalGroupsSequence = Sequence([shared])

units = apply_modality_lut(stored, enhanced)
shown = apply_voi_lut(units, enhanced)
by_hand = apply_modality_lut(stored, values)
print("stored", stored.tolist(), "pydicom's units", np.asarray(units).tolist(), "right", by_hand.tolist())
print("pydicom's window leaves", np.asarray(shown).tolist())
still = np.array_equal(units, stored) and np.array_equal(shown, stored) and by_hand.tolist() == [[-1024, 0, 1024]]
sys.exit(0 if still else 1)
PYTHON
