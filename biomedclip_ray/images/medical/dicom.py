"""DICOM by pydicom: stored values -> modality -> window -> 8 bits, as a viewer shows them; overlays are not drawn.

**Privacy.** Of a file's tags only those that decide its pixels are read, and only the kind of device (Modality), the
frame and the window are told. The patient's id leaves as `Decoded.patient`, for a keyed hash. What pydicom says of a
broken file may quote its values, so the ledger gets the kind of error and no word of its message.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np

from biomedclip_ray.images import jpeg
from biomedclip_ray.images.codecs import is_filled, is_whole
from biomedclip_ray.images.depth import Decoded, Values, rgb, to_8_bits
from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.reading import ONE, Reading, missing
from biomedclip_ray.schema import Reason

if TYPE_CHECKING:
    from pydicom import Dataset

_WAY_OUT = "give an image series, not the object that was made from it"
_NO_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "label map segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "surface segmentation",
    "1.2.840.10008.5.1.4.39.1": "colour palette",
}
_JPEGS = "1.2.840.10008.1.2.4"
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
# Who decodes what is settled here, not by what is installed: GDCM and one decoder for run lengths end the process where
# the bytes are broken, and with it the other images of the part.
_PLUGINS = {
    **dict.fromkeys((f"{_JPEGS}.50", f"{_JPEGS}.51"), "pillow"),
    **dict.fromkeys((f"{_JPEGS}.{n}" for n in (90, 91, 201, 202, 203)), "pylibjpeg"),
    "1.2.840.10008.1.2.5": "pydicom",
}
_CODECS = {
    **dict.fromkeys((f"{_JPEGS}.57", f"{_JPEGS}.70"), imagecodecs.jpegsof3_decode),
    **dict.fromkeys((f"{_JPEGS}.80", f"{_JPEGS}.81"), imagecodecs.jpegls_decode),
    **dict.fromkeys((f"{_JPEGS}.{n}" for n in (110, 111, 112)), imagecodecs.jpegxl_decode),
}
_OF_JPEG = (imagecodecs.jpegsof3_decode, imagecodecs.jpeg_decode)  # which say nothing of a scan that ends early
_EXTENDED = f"{_JPEGS}.51"
_VIDEO = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.10[0-8](\.1)?")
_PLAIN = re.compile(r"[A-Z]{1,16}")


def read(data: bytes, name: str, limits: Limits) -> Decoded:
    """The file's one image, or the middle one of its frames. Raises ImageError."""
    return next(decoded for _, decoded in each(data, limits, ONE))


def each(data: bytes, limits: Limits, reading: Reading) -> Iterator[tuple[str, Decoded]]:
    """The images of a file, each with what tells it from the others: nothing, or its frame. Raises ImageError."""
    with _each_fault_a_row():
        dataset = _opened(data)
        _judge(dataset, reading)
        limits.check(_number(dataset, "Columns"), _number(dataset, "Rows"))
        count = max(_number(dataset, "NumberOfFrames", 1), 1)
    frames = range(count) if reading.frames == "all" else [count // 2]
    for frame in frames:
        with _each_fault_a_row():
            decoded = _shown(dataset, frame, count)
        yield (f"frame-{frame + 1}" if len(frames) > 1 else ""), decoded


def size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) by the header. Raises ImageError."""
    with _each_fault_a_row():
        dataset = _opened(data, pixels=False)
        return _number(dataset, "Columns"), _number(dataset, "Rows")


@contextmanager
def _each_fault_a_row() -> Iterator[None]:
    """pydicom reads lazily, and its decoders and tables raise a dozen types on broken bytes, in words that may quote
    the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Exception as error:
        cut = isinstance(error, EOFError) or "less than expected" in str(error)
        reason = Reason.TRUNCATED_IMAGE if cut else Reason.BROKEN_IMAGE
        raise ImageError(reason, f"DICOM that cannot be decoded ({type(error).__name__})") from error


def _opened(data: bytes, pixels: bool = True) -> Dataset:
    try:
        import pydicom
    except ImportError as error:
        raise missing("DICOM", error) from error
    _quiet()
    dataset = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=not pixels)
    if not len(dataset):  # what pydicom gives of a file that ends within packed pixels
        raise ImageError(Reason.TRUNCATED_IMAGE, "DICOM that ends early")
    if "TransferSyntaxUID" not in dataset.file_meta:
        # what a file without its own header holds is how pydicom could read it
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(_syntax(dataset))
    return dataset


@lru_cache(maxsize=1)
def _quiet() -> None:
    """pydicom's warnings quote values, which do not belong into logs."""
    import logging

    from pydicom import config

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    config.settings.reading_validation_mode = config.IGNORE


def _syntax(dataset: Dataset) -> str:
    implicit, little = dataset.original_encoding
    if implicit:
        return "1.2.840.10008.1.2"
    return "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"


def _judge(dataset: Dataset, reading: Reading) -> None:
    """Whether there is an image for a caption, and whether it may be taken. Raises ImageError."""
    kind = str(dataset.get("SOPClassUID", ""))
    if kind in _NO_IMAGES:
        raise ImageError(Reason.NO_IMAGE, f"DICOM {_NO_IMAGES[kind]}: {_WAY_OUT}")
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError(Reason.NO_IMAGE, f"DICOM without pixels ({_class_name(kind)})")
    if kind == _WHOLE_SLIDE and _number(dataset, "NumberOfFrames", 1) > 1:
        raise ImageError(Reason.NOT_SUPPORTED, "whole-slide DICOM: save it as SVS or TIFF, or give its thumbnail")
    if _VIDEO.fullmatch(dataset.file_meta.TransferSyntaxUID):
        raise ImageError(Reason.NOT_SUPPORTED, "DICOM video: save its frames as images, e.g. with ffmpeg")
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES" and not reading.burned_in:
        raise ImageError(Reason.BURNED_IN, "own.burned_in=true takes such files")


def _class_name(kind: str) -> str:
    from pydicom.uid import UID_dictionary

    return str(UID_dictionary.get(kind, ("unknown class",))[0])


def _shown(dataset: Dataset, frame: int, count: int) -> Decoded:
    modality = str(dataset.get("Modality", ""))
    told = [modality if _PLAIN.fullmatch(modality) else "DICOM"]
    if count > 1:
        told.append(f"frame {frame + 1} of {count}")
    decoded = _rgb(dataset, _stored(dataset, frame), frame)
    if decoded.note:
        told.append(decoded.note)
    patient = str(dataset.get("PatientID") or "").strip()
    return Decoded(decoded.pixels, ", ".join(told), patient or None)


def _stored(dataset: Dataset, frame: int) -> Values:
    """(h, w) or (h, w, 3) as stored, YBR as RGB."""
    from pydicom.pixels import convert_color_space, pixel_array

    syntax = str(dataset.file_meta.TransferSyntaxUID)
    codec = _CODECS.get(syntax)
    if syntax == _EXTENDED and _number(dataset, "BitsAllocated") > 8:
        codec = imagecodecs.jpeg_decode  # of 12 bits, which Pillow refuses
    encoded = _encoded(dataset, frame) if codec is not None or _PLUGINS.get(syntax) == "pillow" else b""
    if encoded and codec is not imagecodecs.jpegxl_decode and not is_whole(encoded):
        raise ImageError(Reason.TRUNCATED_IMAGE, "DICOM frame that has no end")
    if codec is None:
        if encoded:
            jpeg.shrunken(encoded, jpeg.header(encoded), 1)  # which says so where the frame was cut
        values: Values = pixel_array(dataset, index=frame, decoding_plugin=_PLUGINS.get(syntax, ""))
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    values = codec(encoded)
    if codec in _OF_JPEG and is_filled(values, encoded, codec):
        raise ImageError(Reason.TRUNCATED_IMAGE, "DICOM frame that ends before its end marker")
    if values.shape[:2] != (_number(dataset, "Rows"), _number(dataset, "Columns")):
        raise ImageError(Reason.BROKEN_IMAGE, "DICOM whose pixels are not of the size that it states")
    kind = str(dataset.PhotometricInterpretation)
    if values.ndim == 3 and kind.startswith("YBR"):
        values = convert_color_space(values, kind, "RGB")
    if _number(dataset, "PixelRepresentation", 0) and values.dtype.kind == "u":
        values = _signed(values, _number(dataset, "BitsStored"))
    return values


def _encoded(dataset: Dataset, frame: int) -> bytes:
    from pydicom.encaps import generate_frames

    frames = generate_frames(dataset.PixelData, number_of_frames=max(_number(dataset, "NumberOfFrames", 1), 1))
    return next(data for n, data in enumerate(frames) if n == frame)


def _signed(values: Values, bits: int) -> Values:
    wide = values.astype(np.int32)
    return np.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide)


def _rgb(dataset: Dataset, values: Values, frame: int) -> Decoded:
    from pydicom.pixels import apply_color_lut

    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind == "PALETTE COLOR":
        coloured = apply_color_lut(values, dataset)[:, :, :3]
        # entries of 16 bits: some writers fill the upper byte only, and 65280 is as white as 65535
        deep = coloured.dtype != np.uint8 and int(coloured.max()) > 255
        return Decoded(np.ascontiguousarray((coloured >> 8 if deep else coloured).astype(np.uint8)))
    if values.ndim == 3:
        return rgb(np.ascontiguousarray(values[:, :, :3]))
    inverted = kind == "MONOCHROME1"
    grey, note = _windowed(dataset, values, frame)
    return Decoded(rgb(255 - grey if inverted else grey).pixels, note)


def _windowed(dataset: Dataset, values: Values, frame: int) -> tuple[Values, str]:
    """Grey values as the file's first window shows them; by their own range where it has none, or one that shows
    nothing.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    padding = _padding(dataset, values)
    modality = _group(dataset, frame, "PixelValueTransformationSequence")
    voi = _group(dataset, frame, "FrameVOILUTSequence")
    numbers = apply_modality_lut(values, modality)
    if voi.get("VOILUTSequence"):
        bits = int(voi.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = apply_voi_lut(
            numbers.astype(values.dtype) if "RescaleSlope" not in modality else numbers.astype(np.int64), voi
        )
        return np.rint(looked_up * (255 / ((1 << bits) - 1))).astype(np.uint8), "by its table"
    centre, width = _first(voi.get("WindowCenter")), _first(voi.get("WindowWidth"))
    if centre is not None and width is not None and width > 0:
        grey = _through(numbers, centre, width, str(voi.get("VOILUTFunction", "LINEAR")))
        if np.ptp(grey) > 4 or np.ptp(numbers) == 0:
            return grey, f"window {centre:g} / {width:g}"
    if numbers.dtype == np.uint8 and _number(dataset, "BitsStored") == 8:
        return numbers, ""  # made to be looked at, as a secondary capture is
    seen = None if padding is None or padding.all() else ~padding
    grey, window = to_8_bits(numbers, seen=seen)
    if padding is not None and seen is not None:
        grey[padding] = 0
    return grey, window.note


def _padding(dataset: Dataset, values: Values) -> Values | None:
    """Where stored values stand for none: one value, or all from it to the limit."""
    ends = [dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")]
    if not isinstance(ends[0], int):
        return None
    if not isinstance(ends[1], int):
        return values == ends[0]
    return (values >= min(ends)) & (values <= max(ends))


def _through(numbers: Values, centre: float, width: float, function: str) -> Values:
    """PS3.3 C.11.2.1.2: the three functions of a window."""
    numbers = numbers.astype(np.float64)
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (numbers - centre) / width))
    elif function == "LINEAR_EXACT" or width <= 1:
        share = (numbers - centre) / width + 0.5
    else:
        share = (numbers - (centre - 0.5)) / (width - 1) + 0.5
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _group(dataset: Dataset, frame: int, sequence: str) -> Any:
    """Where a frame's own values stand: enhanced files have them for each frame, or shared by all, and
    not at the top.
    """
    for groups, n in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = dataset.get(groups)
        if items and n < len(items) and items[n].get(sequence):
            return items[n][sequence].value[0]
    return dataset


def _first(value: Any) -> float | None:
    """Of several windows the first."""
    if value is None or value == "":
        return None
    if hasattr(value, "__len__") and not isinstance(value, str):
        value = value[0] if len(value) else None
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _number(dataset: Dataset, name: str, otherwise: int | None = None) -> int:
    value = dataset.get(name)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        if otherwise is not None:
            return otherwise
        raise ImageError(Reason.NO_IMAGE, f"DICOM without {name}") from error
