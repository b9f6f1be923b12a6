"""What may be asked of a file that holds more than one image, and what to say where a library is missing. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.schema import Reason


@dataclass(frozen=True, slots=True)
class Reading:
    """How own files of hospitals and pathology are read; see config `own`."""

    frames: Literal["middle", "all"] = "middle"
    """Of a DICOM file of many frames."""
    tiles: int = 0
    """Tiles of tissue beside the thumbnail of a whole slide."""
    burned_in: bool = False
    """Take DICOM files that say that a name may stand in their pixels."""


ONE = Reading()
"""One image a file."""


def missing(name: str, error: ImportError) -> ImageError:
    """The row for a format whose library is not there."""
    return ImageError(Reason.NOT_SUPPORTED, f"{name} needs {error.name}: pip install 'biomedclip-ray[medical]'")
