"""The image formats, each in one row: how it is told, how its files end, who decodes it, where it is taken.

Everything that lists formats reads this table: media names in articles, own files, decoding, serving and the page's
file picker. A new format is a row here, and where no decoder fits, one more in the tables of `image.py`. Pure, and
cheap to import.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.schema import Reason


class Decoder(Enum):
    """The module that decodes a format."""

    JPEG = auto()  # jpeg.py: libjpeg-turbo, straight to the stored size
    PILLOW = auto()  # pillow.py
    TIFF = auto()  # tiff.py: tifffile
    CODEC = auto()  # codecs.py: imagecodecs
    DICOM = auto()  # medical/dicom.py: pydicom, with the extra
    NIFTI = auto()  # medical/nifti.py: nibabel, with the extra
    SLIDE = auto()  # medical/slides.py: OpenSlide, with the extra


@dataclass(frozen=True, slots=True)
class Format:
    """One row of the table."""

    name: str
    """What `original_format` says; of Decoder.PILLOW also Pillow's own name."""
    extensions: tuple[str, ...]
    decoder: Decoder
    magic: Callable[[bytes], bool]
    media_type: str | None = None
    """IANA's name, for the page's file picker and data URIs."""
    in_articles: bool = True
    """A graphic in an article may be one; files of one stem are preferred in the order of the rows."""
    online: bool = True
    """The server takes it."""

    @property
    def is_medical(self) -> bool:
        """Whether its decoder comes with the extra."""
        return self.decoder in (Decoder.DICOM, Decoder.NIFTI, Decoder.SLIDE)


def _begins(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(starts)


def _is_nifti(data: bytes) -> bool:
    if data.startswith(b"\x1f\x8b"):
        try:
            data = zlib.decompressobj(31).decompress(data[:2048], 352)
        except zlib.error:
            return False
    return data[344:348] in (b"n+1\0", b"ni1\0") or data[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")


def _is_jpeg_ls(data: bytes) -> bool:
    """Its frame marker, first or behind the SPIFF header that CharLS writes."""
    return data.startswith(b"\xff\xd8\xff\xf7") or (
        data.startswith(b"\xff\xd8\xff\xe8") and data[6:11] == b"SPIFF" and b"\xff\xf7" in data[:256]
    )


def _is_dicom(data: bytes) -> bool:
    """The word behind the preamble; or, of a file without one, its first element: of group 2, or of group 8 and few
    digits.
    """
    if data[128:132] == b"DICM":
        return True
    group, element = data[:2], data[2:4]
    if group in (b"\x02\0", b"\0\x02"):
        return element == b"\0\0" and data[4:6] == b"UL"
    return len(data) > 132 and (
        (group == b"\x08\0" and element in (b"\0\0", b"\x01\0", b"\x05\0", b"\x08\0", b"\x16\0"))
        or (group == b"\0\x08" and element in (b"\0\0", b"\0\x01", b"\0\x05", b"\0\x08", b"\0\x16"))
    )


_JP2_BOX, _JXL_BOX = b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x0cJXL \r\n\x87\n"
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)

# In the order of preference among files of one stem in an article: a GIF beside a JPEG is its thumbnail.
FORMATS = (
    # before TIFF: the preamble of many a DICOM file is a TIFF's header
    Format(
        "DICOM",
        ("dcm", "dicom", "dcm.gz"),
        Decoder.DICOM,
        _is_dicom,
        "application/dicom",
        in_articles=False,
    ),
    # before JPEG, whose first bytes it shares
    Format("JPEG-LS", ("jls",), Decoder.CODEC, _is_jpeg_ls, "image/jls", False),
    Format("JPEG", ("jpg", "jpeg", "jpe", "jfif"), Decoder.JPEG, _begins(b"\xff\xd8\xff"), "image/jpeg"),
    Format("PNG", ("png",), Decoder.PILLOW, _begins(b"\x89PNG\r\n\x1a\n"), "image/png"),
    Format(
        "TIFF",
        ("tif", "tiff", "btf", "ome.tif", "ome.tiff"),
        Decoder.TIFF,
        _begins(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        "image/tiff",
    ),
    Format("WEBP", ("webp",), Decoder.PILLOW, lambda d: d.startswith(b"RIFF") and d[8:12] == b"WEBP", "image/webp"),
    Format(
        "JPEG 2000", ("jp2", "j2k", "jpx", "j2c"), Decoder.CODEC, _begins(_JP2_BOX, b"\xff\x4f\xff\x51"), "image/jp2"
    ),
    Format("JPEG XL", ("jxl",), Decoder.CODEC, _begins(_JXL_BOX, b"\xff\x0a"), "image/jxl"),
    Format(
        "BMP",
        ("bmp", "dib"),
        Decoder.PILLOW,
        lambda d: d.startswith(b"BM") and int.from_bytes(d[14:18], "little") in _BMP_HEADERS,
        "image/bmp",
    ),
    Format("GIF", ("gif",), Decoder.PILLOW, _begins(b"GIF87a", b"GIF89a"), "image/gif"),
    Format("NIfTI", ("nii", "nii.gz"), Decoder.NIFTI, _is_nifti, None, in_articles=False),
    # a TIFF by its bytes: tiff.py hands it over
    Format(
        "whole slide",
        ("svs", "ndpi", "scn", "bif"),
        Decoder.SLIDE,
        lambda data: False,
        None,
        in_articles=False,
        online=False,
    ),
)

# What is met in scientists' folders and is not read: told by name, so that the ledger can say the way out.
_UNREAD: tuple[tuple[str, str, Callable[[bytes], bool]], ...] = (
    ("HEIF or AVIF", "save it as PNG or TIFF", lambda d: d[4:8] == b"ftyp"),
    ("Zeiss CZI", "save it as OME-TIFF, e.g. with bfconvert", _begins(b"ZISRAWFILE")),
    ("Leica LIF", "save it as OME-TIFF, e.g. with bfconvert", _begins(b"\x70\0\0\0")),
    ("Nikon ND2", "save it as OME-TIFF, e.g. with bfconvert", _begins(b"\xda\xce\xbe\n")),
    ("HDF5 (MINC 2, Imaris)", "save it as NIfTI or OME-TIFF", _begins(b"\x89HDF\r\n\x1a\n")),
    (
        "MINC 1 or netCDF",
        "save it as NIfTI: nibabel.save(nibabel.load(FILE), 'FILE.nii.gz')",
        _begins(b"CDF\x01", b"CDF\x02"),
    ),
    ("ECAT", "save it as NIfTI: nibabel.save(nibabel.ecat.load(FILE), 'FILE.nii.gz')", _begins(b"MATRIX")),
    ("PAR/REC", "save it as NIfTI: parrec2nii FILE.PAR", _begins(b"# === DATA DESCRIPTION FILE")),
    (
        "Analyze 7.5",
        "save it as NIfTI: nibabel.save(nibabel.load(FILE), 'FILE.nii.gz')",
        lambda d: d[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and len(d) >= 348,
    ),
    (
        "MGH",
        "save it as NIfTI: mri_convert FILE.mgz FILE.nii.gz",
        lambda d: d[:4] == b"\0\0\0\x01" and len(d) > 284 and 0 < int.from_bytes(d[20:24], "big") < 20,
    ),
)

ARTICLE_EXTENSIONS = tuple(
    extension
    for row in sorted(FORMATS, key=lambda row: row.name == "JPEG-LS")
    if row.in_articles
    for extension in row.extensions
)
"""Of images in articles, the preferred first."""
EXTENSIONS = tuple(extension for row in FORMATS for extension in row.extensions)
"""Of all images; without a dot, in lower case."""
IMAGE_ENDINGS = tuple(
    f".{extension}" for extension in (*EXTENSIONS, *"avif heic heif mrxs czi lif nd2 mnc mgh mgz par ecat".split())
)
"""What an image's file among own pairs may end in, the formats that are known and not read among them."""
ONLINE_NAMES = ", ".join(row.name for row in FORMATS if row.online)
PICKER = ",".join(
    [row.media_type for row in FORMATS if row.online and row.media_type]
    + [f".{extension}" for row in FORMATS if row.online for extension in row.extensions]
)
"""What a browser's file picker offers: browsers know the media types of few."""


_UNPACKED_BYTES = 1 << 30


def unpacked(data: bytes) -> bytes:
    """What a gzip file holds, of which hospitals' archives have many; anything else, and NIfTI, as it is. Raises
    ImageError.
    """
    if not data.startswith(b"\x1f\x8b") or _is_nifti(data):
        return data
    try:
        unpacker = zlib.decompressobj(31)
        inner = unpacker.decompress(data, _UNPACKED_BYTES)
    except zlib.error as error:
        raise ImageError(Reason.BROKEN_IMAGE, f"gzip: {error}") from error
    if not unpacker.eof:
        raise ImageError(Reason.TRUNCATED_IMAGE, f"a gzip file that does not end within {_UNPACKED_BYTES:,} bytes")
    return inner


SLIDE = next(row for row in FORMATS if row.decoder is Decoder.SLIDE)


def identify(data: bytes) -> Format:
    """The row that the first bytes belong to, whatever the file is called.

    Raises:
        ImageError: NOT_SUPPORTED with the way out for a format that is known by name, else UNKNOWN_FORMAT.
    """
    for row in FORMATS:
        if row.magic(data):
            return row
    for name, way_out, magic in _UNREAD:
        if magic(data):
            raise ImageError(Reason.NOT_SUPPORTED, f"{name}: {way_out}")
    raise ImageError(Reason.UNKNOWN_FORMAT, f"{len(data)} bytes that begin with {data[:8].hex(' ') or 'nothing'}")


def has_extension(name: str, extensions: tuple[str, ...] = EXTENSIONS) -> bool:
    """Whether a file's name ends as images of these formats do, in whatever case."""
    return name.lower().endswith(tuple(f".{extension}" for extension in extensions))
