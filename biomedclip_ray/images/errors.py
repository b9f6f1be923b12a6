"""Why an image is not kept, and what its header may claim. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from PIL.Image import DecompressionBombError

from biomedclip_ray.schema import Reason

UNREADABLE = (ArithmeticError, EOFError, DecompressionBombError, LookupError, OSError, SyntaxError, ValueError)
"""What decoders raise for bytes that are no whole image."""


class ImageError(ValueError):
    """An image that is not kept: `reason` for the ledger, `detail` for the reader."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.sentence}: {detail}" if detail else reason.sentence)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ImageError], tuple[Reason, str]]:
        return ImageError, (self.reason, self.detail)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image's header may claim; see `image.prepare`."""

    min_side: int
    max_pixels: int
    max_aspect: float

    def check(self, width: int, height: int) -> None:
        """Judge what a header claims. Raises ImageError."""
        claim = f"{width} x {height} pixels"
        if width * height > self.max_pixels:
            raise ImageError(Reason.TOO_MANY_PIXELS, claim)
        if min(width, height) < self.min_side:
            raise ImageError(Reason.TOO_SMALL, claim)
        if max(width, height) > self.max_aspect * min(width, height):
            raise ImageError(Reason.BAD_ASPECT, claim)
