"""NIfTI by nibabel: one slice of the volume, as radiologists look at it.

The middle axial slice, the patient's right at the viewer's left, front up. A volume of thick slices is cut in the plane
it was taken in: across the axis whose voxels are 1.5 times as long as the others. Of several volumes (time, directions)
the first.
"""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np

from biomedclip_ray.images.depth import Decoded, Values, rgb
from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.reading import missing
from biomedclip_ray.schema import Reason

_PLANES = ("sagittal", "coronal", "axial")
_THICK = 1.5


def read(data: bytes, name: str, limits: Limits) -> Decoded:
    """One slice. Raises ImageError."""
    image = _opened(data, limits)
    try:
        values, note = _slice(image)
    except Exception as error:  # nibabel raises a dozen types on broken bytes; each becomes one ledger row
        cut = isinstance(error, EOFError | OSError) or "not enough data" in str(error)
        reason = Reason.TRUNCATED_IMAGE if cut else Reason.BROKEN_IMAGE
        raise ImageError(reason, f"NIfTI: {type(error).__name__}: {error}".splitlines()[0]) from error
    if values.dtype.names:  # RGB and RGBA
        return Decoded(np.stack([values[channel] for channel in "RGB"], axis=2).astype(np.uint8), note)
    if values.dtype.kind == "c":
        raise ImageError(Reason.NOT_SUPPORTED, "NIfTI of complex numbers: save their magnitude")
    decoded = rgb(np.ascontiguousarray(values.astype(np.float64)))
    return Decoded(decoded.pixels, f"{note}, {decoded.note}")


def size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of the slice that `read` shows. Raises ImageError."""
    image = _opened(data, None)
    try:
        rows, columns, _ = _layout(image)
    except Exception as error:  # as above: an affine of no volume
        raise ImageError(Reason.BROKEN_IMAGE, f"NIfTI: {type(error).__name__}: {error}".splitlines()[0]) from error
    return image.shape[columns], image.shape[rows]


def _opened(data: bytes, limits: Limits | None) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise missing("NIfTI", error) from error
    head = zlib.decompressobj(31).decompress(data[:8192], 540) if data.startswith(b"\x1f\x8b") else data[:540]
    second = head[4:12] == b"n+2\0\r\n\x1a\n"
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        raise ImageError(Reason.NOT_SUPPORTED, "NIfTI header without its image: save both as one .nii.gz")
    try:
        kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
        header = kind.header_class.from_fileobj(io.BytesIO(head), check=False)
        if 3000 <= int(header["intent_code"]) < 3100:
            raise ImageError(Reason.NO_IMAGE, "CIFTI: a matrix over the brain's surface, no image")
        shape = header.get_data_shape()
        length = int(np.prod(shape[:3], dtype=np.float64)) * header.get_data_dtype().itemsize
        if limits is not None and (not shape or length > 32 * limits.max_pixels):
            raise ImageError(Reason.TOO_MANY_PIXELS, f"a volume of {' x '.join(map(str, shape))}")
        wanted = int(header["vox_offset"]) + length
        if data.startswith(b"\x1f\x8b"):
            # the first volume is enough, and a bomb ends there too
            unpacker = zlib.decompressobj(31)
            data = unpacker.decompress(data, max(wanted, 1))
        if len(data) < wanted:
            raise ImageError(
                Reason.TRUNCATED_IMAGE, f"a NIfTI of {len(data):,} bytes, whose first volume ends at {wanted:,}"
            )
        image = kind.from_stream(io.BytesIO(data))
    except ImageError:
        raise
    except Exception as error:  # as above
        raise ImageError(Reason.BROKEN_IMAGE, f"NIfTI: {type(error).__name__}: {error}".splitlines()[0]) from error
    if len(image.shape) < 2 or 0 in image.shape:
        raise ImageError(Reason.NO_IMAGE, f"NIfTI of the shape {image.shape}: no image")
    return image


def _layout(image: Any) -> tuple[int, int, int]:
    """Voxel axes of the shown rows and columns, and of the slices."""
    import nibabel

    axes = [int(axis) if axis == axis else n for n, axis in enumerate(nibabel.io_orientation(image.affine)[:, 0])]
    if len(image.shape) == 2:
        return 1, 0, 2
    sides = [float(zoom) for zoom in image.header.get_zooms()[:3]]
    longest = int(np.argmax(sides))
    others = max(side for n, side in enumerate(sides) if n != longest)
    across = longest if sides[longest] >= _THICK * others else axes.index(2)
    if image.shape[2] == 1:
        across = 2
    world = axes[across]  # 0: left-right, 1: back-front, 2: feet-head
    row_world = 1 if world == 2 else 2
    column_world = 1 if world == 0 else 0
    return axes.index(row_world), axes.index(column_world), across


def _slice(image: Any) -> tuple[Values, str]:
    import nibabel

    rows, columns, across = _layout(image)
    orientation = nibabel.io_orientation(image.affine)
    shape = image.shape
    if len(shape) == 2:
        return np.asarray(image.dataobj)[::-1, ::-1].T, "2 sides"
    middle = shape[across] // 2
    where: list[Any] = [slice(None)] * 3 + [0] * (len(shape) - 3)
    where[across] = middle
    plane: Values = np.asarray(image.dataobj[tuple(where)])
    plane = plane.T if rows > columns else plane
    # nibabel's axes run to the right, the front and the head: up is front or head, left is the patient's right or front
    if orientation[rows, 1] > 0:
        plane = plane[::-1]
    if orientation[columns, 1] > 0:
        plane = plane[:, ::-1]
    name = _PLANES[int(orientation[across, 0])] if orientation[across, 0] == orientation[across, 0] else "middle"
    note = f"{name} slice {middle + 1} of {shape[across]}"
    volumes = int(np.prod(shape[3:]))
    return plane, f"{note}, volume 1 of {volumes}" if volumes > 1 else note
