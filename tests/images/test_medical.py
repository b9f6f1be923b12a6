"""Hospitals' formats: the pixels of each field's own library, what is no image named, and no word of a patient."""

import gzip
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage, UltrasoundImageStorage

from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.image import Read, Recipe, each, prepare_each, read, size
from biomedclip_ray.images.reading import Reading
from biomedclip_ray.schema import Reason

ANY = Limits(1, 10**9, 1e9)
PYDICOMS = Path(pydicom.__file__).parent / "data"
NIBABELS = Path(nibabel.__file__).parent


def dicom(pixels: np.ndarray, **elements: Any) -> bytes:
    """A small file of one class; the last axis of 3 is colour."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = elements.pop("SOPClassUID", CTImageStorage)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    frames = pixels.ndim > (3 if colour else 2)
    dataset.Rows, dataset.Columns = pixels.shape[1 if frames else 0], pixels.shape[2 if frames else 1]
    if frames:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = elements.pop("kind", "RGB" if colour else "MONOCHROME2")
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = elements.pop("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PatientID, dataset.PatientName = "secret-17", "Doe^Jane"
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def ramp(low: float, high: float, dtype: Any = np.int16) -> np.ndarray:
    return np.tile(np.linspace(low, high, 256).astype(dtype), (40, 1))


def grey(data: bytes) -> np.ndarray:
    return read(data, ANY).pixels[:, :, 0].astype(int)


def refusal(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read(data, ANY)
    return caught.value


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


# -- DICOM ------------------------------------------------------------------------------------------------------------


def test_a_ct_is_shown_through_its_rescaling_and_first_window() -> None:
    stored = ramp(0, 3000, np.uint16)
    data = dicom(
        stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 500], WindowWidth=[400, 2000], BitsStored=12
    )
    expected = spread(stored - 1024.0, 39.5 - 199.5, 39.5 + 199.5)
    assert np.abs(grey(data) - expected).max() <= 1
    assert read(data, ANY).note == "DICOM, window 40 / 400"


def test_signed_values_padding_and_no_window_are_shown_by_their_range() -> None:
    stored = ramp(-900, 1100)
    stored[:10] = -2000
    data = dicom(stored, PixelPaddingValue=-2000, Modality="MR")
    assert np.abs(grey(data)[20] - spread(stored[20], -900, 1100)).max() <= 1
    assert grey(data)[:10].max() == 0 and read(data, ANY).note.startswith("MR, -900 to 1100")
    stored[5:10] = -1990
    assert np.array_equal(grey(dicom(stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900)), grey(data))


def test_monochrome1_is_inverted_behind_the_window() -> None:
    stored = ramp(0, 4095, np.uint16)
    data = dicom(stored, kind="MONOCHROME1", WindowCenter=2048, WindowWidth=4096, BitsStored=12)
    assert np.abs(grey(data) - (255 - spread(stored, 2047.5 - 2047.5, 2047.5 + 2047.5))).max() <= 1


@pytest.mark.parametrize(("function", "at"), [("LINEAR_EXACT", 0.25), ("SIGMOID", 1 / (1 + np.exp(1)))])
def test_each_function_of_a_window_is_the_standards(function: str, at: float) -> None:
    data = dicom(ramp(0, 200, np.uint16), WindowCenter=100, WindowWidth=100, VOILUTFunction=function)
    column = int(np.argmin(np.abs(ramp(0, 200, np.uint16)[0].astype(int) - 75)))
    assert abs(grey(data)[0, column] - 255 * at) <= 3


def test_a_window_that_shows_nothing_gives_way_to_the_values() -> None:
    data = dicom(ramp(0, 1000), WindowCenter=20000, WindowWidth=10)
    assert grey(data).max() == 255 and grey(data).min() == 0


def test_a_table_of_grey_is_looked_up() -> None:
    item = Dataset()
    item.LUTDescriptor = [256, 0, 8]
    item.LUTData = np.arange(255, -1, -1, dtype=np.uint16).tobytes()
    data = dicom(ramp(0, 255, np.uint8), VOILUTSequence=Sequence([item]))
    assert np.abs(grey(data) - (255 - ramp(0, 255, np.uint8).astype(int))).max() <= 1


def test_an_enhanced_file_gives_each_frame_its_own_rescaling_and_window() -> None:
    """pydicom looks for both at the top only, and says nothing."""
    stored = np.stack([ramp(0, 1000, np.uint16)] * 3)
    groups = []
    for n in range(3):
        group, values, window = Dataset(), Dataset(), Dataset()
        values.RescaleSlope, values.RescaleIntercept = n + 1, -100 * n
        window.WindowCenter, window.WindowWidth = 500, 400 + n
        group.PixelValueTransformationSequence = Sequence([values])
        group.FrameVOILUTSequence = Sequence([window])
        groups.append(group)
    data = dicom(stored, PerFrameFunctionalGroupsSequence=Sequence(groups))
    expected = spread(stored[1] * 2.0 - 100, 499.5 - 200, 499.5 + 200)
    assert np.abs(grey(data) - expected).max() <= 1
    assert read(data, ANY).note == "DICOM, frame 2 of 3, window 500 / 401"


@pytest.mark.parametrize("top", [255, 65280, 65535])
def test_palettes_of_eight_and_sixteen_bits_end_in_white(top: int) -> None:
    table = np.linspace(0, top, 256).astype(np.uint16)
    tables: dict[str, Any] = {}
    for name in ("Red", "Green", "Blue"):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8 if top == 255 else 16]
        tables[f"{name}PaletteColorLookupTableData"] = (table.astype(np.uint8) if top == 255 else table).tobytes()
    data = dicom(ramp(0, 255, np.uint8), kind="PALETTE COLOR", **tables)
    assert np.abs(grey(data) - ramp(0, 255, np.uint8)).max() <= 1


def test_frames_give_the_middle_one_or_each() -> None:
    stored = np.stack([np.full((40, 50, 3), 50 * n, np.uint8) for n in range(5)])
    stored[:, :5] = 255
    data = dicom(stored, SOPClassUID=UltrasoundImageStorage, Modality="US")
    assert read(data, ANY).pixels[20, 20, 0] == 100 and read(data, ANY).note == "US, frame 3 of 5"
    several = dict(each(data, ANY, None, Reading(frames="all")))
    assert [several[f"frame-{n + 1}"].pixels[20, 20, 0] for n in range(5)] == [0, 50, 100, 150, 200]
    stored_images = list(prepare_each(data, Reading(frames="all"), Recipe(32, 90, 8, 10**6, 12.0)))
    assert len({image.sha256 for image in stored_images if not isinstance(image, ImageError)}) == 5


def test_overlays_are_not_drawn() -> None:
    stored = ramp(0, 255, np.uint8)
    overlay = {"OverlayRows": 40, "OverlayColumns": 256, "OverlayType": "G", "OverlayOrigin": [1, 1]}
    dataset = pydicom.dcmread(io.BytesIO(dicom(stored)))
    for offset, (vr, value) in {
        0x10: ("US", 40),
        0x11: ("US", 256),
        0x40: ("CS", "G"),
        0x3000: ("OW", b"\xff" * 1280),
    }.items():
        dataset.add_new((0x6000, offset), vr, value)
    out = io.BytesIO()
    dataset.save_as(out)
    assert overlay and np.array_equal(grey(out.getvalue()), grey(dicom(stored)))


def test_objects_that_are_no_images_and_names_in_pixels_are_left_out() -> None:
    assert refusal(dicom(ramp(0, 1, np.uint8), SOPClassUID=SegmentationStorage)).reason is Reason.NO_IMAGE
    burned = dicom(ramp(0, 255, np.uint8), BurnedInAnnotation="YES")
    assert refusal(burned).reason is Reason.BURNED_IN
    assert [name for name, _ in each(burned, ANY, None, Reading(burned_in=True))] == [""]
    assert read(dicom(ramp(0, 255, np.uint8), BurnedInAnnotation="NO"), ANY).width == 256


def test_no_word_of_a_file_but_its_device_and_window_is_told(caplog: pytest.LogCaptureFixture) -> None:
    found = read(
        dicom(ramp(0, 255, np.uint8), Modality="CT", SeriesDescription="Doe knee", WindowCenter=9, WindowWidth=9), ANY
    )
    assert found.note == "CT, window 9 / 9" and found.patient == "secret-17"
    # errors and logs of a broken file quote none of its values either
    data = dicom(ramp(0, 255, np.uint8), Modality="DOE 1950-01-01")
    assert read(data, ANY).note.startswith("DICOM")
    broken = data[: len(data) - 5000].replace(b"MONOCHROME2 ", b"secret-17Doe")
    error = refusal(broken)
    assert "secret" not in f"{error}" and "Doe" not in f"{error}" and "secret" not in caplog.text


@pytest.mark.parametrize("name", ["MR_small", "MR_small_jp2klossless", "MR_small_RLE", "SC_rgb_jpeg_gdcm"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_a_cut_file_is_truncated(name: str, share: float) -> None:
    data = (PYDICOMS / "test_files" / f"{name}.dcm").read_bytes()
    assert refusal(data[: int(len(data) * share)]).reason is Reason.TRUNCATED_IMAGE


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
@pytest.mark.parametrize(
    ("syntax", "bits", "lossless", "lines"),
    [(50, 8, False, 0), (50, 8, False, 1), (51, 12, False, 0), (70, 12, True, 0)],
)
def test_a_jpeg_that_was_cut_within_a_whole_file_is_truncated(
    syntax: int, bits: int, lossless: bool, lines: int, end: bytes
) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, (80, 120)).astype(np.uint8 if bits == 8 else np.uint16)
    if bits == 8:
        sink = io.BytesIO()
        Image.fromarray(values).save(sink, "JPEG", restart_marker_rows=lines)
        frame = sink.getvalue()
    else:
        frame = bytes(imagecodecs.jpeg8_encode(values, bitspersample=bits, lossless=lossless))
    dataset = pydicom.dcmread(io.BytesIO(dicom(values, BitsStored=bits)))
    dataset.file_meta.TransferSyntaxUID = UID(f"1.2.840.10008.1.2.4.{syntax}")

    def packed(data: bytes) -> bytes:
        dataset.PixelData = encapsulate([data])
        out = io.BytesIO()
        dataset.save_as(out, enforce_file_format=True)
        return out.getvalue()

    assert read(packed(frame), ANY).pixels.shape == (80, 120, 3)
    for share in (0.5, 0.9):
        assert refusal(packed(frame[: int(len(frame) * share)] + end)).reason is Reason.TRUNCATED_IMAGE


def test_a_file_that_begins_as_a_tiff_is_still_dicom() -> None:
    data = dicom(ramp(0, 255, np.uint8))
    assert read(b"II*\0" + data[4:], ANY).format == "DICOM"
    assert read(gzip.compress(data), ANY).format == "DICOM"
    assert size(data) == (256, 40)


def _as_pydicom(path: Path) -> np.ndarray:
    """The middle frame by pydicom's own functions, as 8 bits."""
    data = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(gzip.decompress(data) if path.suffix == ".gz" else data))
        values = pixel_array(dataset, index=int(dataset.get("NumberOfFrames") or 1) // 2)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            coloured = apply_color_lut(values, dataset)
            return (coloured >> 8 if coloured.max() > 255 else coloured).astype(int)
        if values.ndim == 3:
            return (
                values.astype(int)
                if values.dtype == np.uint8
                else spread(values.astype(float), values.min(), values.max())
            )
        numbers = apply_modality_lut(values, dataset).astype(float)
        if "WindowWidth" in dataset and "VOILUTSequence" not in dataset:
            shown = apply_voi_lut(numbers, dataset)
            signed, bits = dataset.PixelRepresentation, dataset.BitsStored
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
            slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
            shown = spread(shown, low * slope + intercept, high * slope + intercept)
            if np.ptp(shown) > 4:
                return 255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown
        shown = numbers if values.dtype == np.uint8 and dataset.BitsStored == 8 else _by_window(numbers)
        return 255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def test_pydicoms_own_files_are_its_pixels_or_name_the_cause() -> None:
    files = [
        path
        for path in sorted(PYDICOMS.rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc", ".txt", ".md", ".json", ".dump", ".icc", ".sh")
    ]
    read_alone = {"JPEG-lossy.dcm", "JPGExtended.dcm"}  # 12 bits: pydicom's free decoders refuse them
    images, reasons = 0, {}
    for path in files:
        try:
            found = read(path.read_bytes(), ANY)
        except ImageError as error:
            assert error.detail, path
            reasons.setdefault(error.reason, []).append(path.name)
            continue
        images += 1
        if path.name in read_alone:
            continue
        expected = _as_pydicom(path)
        shown = found.pixels if expected.ndim == 3 else found.pixels[:, :, 0]
        assert np.abs(shown.astype(int) - expected).max() <= 2, path
    assert images >= 101
    assert set(reasons) <= {Reason.NO_IMAGE, Reason.UNKNOWN_FORMAT, Reason.BROKEN_IMAGE, Reason.TRUNCATED_IMAGE}
    assert sorted(reasons[Reason.BROKEN_IMAGE]) == ["JPEG2000-embedded-sequence-delimiter.dcm", "badVR.dcm"]
    assert reasons[Reason.TRUNCATED_IMAGE] == ["MR_truncated.dcm"]
    assert {"liver_1frame.dcm", "liver_expb_1frame.dcm", "hotiron.dcm"} <= set(reasons[Reason.NO_IMAGE])


# -- NIfTI ------------------------------------------------------------------------------------------------------------


def nifti(values: np.ndarray, affine: np.ndarray, kind: Any = nibabel.Nifti1Image) -> bytes:
    return bytes(kind(values, affine).to_bytes())


def marked() -> np.ndarray:
    """Right-front-head corners of a volume in RAS: right bright, front brighter, each told from the other."""
    values = np.zeros((40, 50, 30), np.int16)
    values[30:, :, :] = 400  # the patient's right
    values[:, 40:, :] += 600  # the front
    values[:, :, 25:] += 50  # the head
    return values


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_volume_is_shown_as_radiologists_look_at_it(flip: Any, order: Any, kind: Any) -> None:
    values = marked()[:: flip[0], :: flip[1], :: flip[2]].transpose(order)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, world in enumerate(order):
        affine[world, axis] = flip[world]
    data = nifti(values, affine, kind)
    found = read(data, ANY)
    assert (found.height, found.width) == (50, 40) and size(data) == (40, 50)
    pixels = found.pixels[:, :, 0].astype(int)
    assert pixels[25, 3] > pixels[25, 35]  # the patient's right at the viewer's left
    assert pixels[3, 35] > pixels[45, 35]  # the front up
    expected = marked()[::-1, ::-1, 15].T
    assert np.abs(pixels - spread(expected, 0, 1000)).max() <= 1
    assert found.note.startswith("axial slice")


def test_thick_slices_are_shown_in_the_plane_they_were_taken_in() -> None:
    affine = np.diag([5.0, 1, 1, 1])
    found = read(nifti(marked()[::4], affine), ANY)
    assert (found.height, found.width) == (30, 50) and found.note.startswith("sagittal slice 6 of 10")
    pixels = found.pixels[:, :, 0].astype(int)
    assert pixels[20, 3] > pixels[20, 40] and pixels[2, 30] > pixels[25, 30]  # front left, head up


def test_of_a_time_series_the_first_volume_is_shown_packed_or_not() -> None:
    values = np.stack([marked(), marked()[::-1]], axis=3)
    data = nifti(values, np.eye(4))
    for form in (data, gzip.compress(data)):
        found = read(form, ANY)
        assert found.note.startswith("axial slice 16 of 30, volume 1 of 2")
        assert np.abs(found.pixels[:, :, 0] - spread(marked()[::-1, ::-1, 15].T, 0, 1000)).max() <= 1
    for share in (0.1, 0.3, 0.49):  # of a file of two volumes
        assert refusal(data[: int(len(data) * share)]).reason is Reason.TRUNCATED_IMAGE
        assert refusal(gzip.compress(data)[: int(len(gzip.compress(data)) * share)]).reason is Reason.TRUNCATED_IMAGE


@pytest.mark.parametrize("kind", ["Nifti1Pair", "Nifti2Pair"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_whose_image_is_another_file_says_so(tmp_path: Path, kind: str, packed: bool) -> None:
    ending = ".gz" if packed else ""
    nibabel.save(getattr(nibabel, kind)(np.ones((4, 5, 6), np.int16), np.eye(4)), tmp_path / f"a.hdr{ending}")
    with pytest.raises(ImageError, match="NIfTI header without its image") as error:
        read((tmp_path / f"a.hdr{ending}").read_bytes(), ANY)
    assert error.value.reason is Reason.NOT_SUPPORTED


def test_nibabels_own_files_are_its_numbers_or_name_the_cause() -> None:
    files = [
        p
        for p in sorted(NIBABELS.rglob("data/*"))
        if p.is_file() and p.suffix not in (".py", ".pyc", ".rst", ".m", ".txt")
    ]
    volumes, dicoms = 0, 0
    for path in files:
        try:
            found = read(path.read_bytes(), ANY)
        except ImageError as error:
            assert error.detail, path
            continue
        if found.format == "DICOM":
            dicoms += 1
            continue
        volumes += 1
        volume = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asarray(volume.dataobj).reshape(*volume.shape[:3], -1)[:, :, :, 0].astype(float)
        plane, number = found.note.split(" slice ")[0], int(found.note.split(" slice ")[1].split(" ")[0]) - 1
        axis = ("sagittal", "coronal", "axial").index(plane)
        cuts = [values.take(at, axis) for at in {number, values.shape[axis] - 1 - number}]
        candidates = [cut[::-1, ::-1].T for cut in cuts]
        assert any(
            cut.shape == found.pixels.shape[:2] and np.abs(found.pixels[:, :, 0] - _by_window(cut)).max() <= 2
            for cut in candidates
        ), path
    assert (volumes, dicoms) == (7, 9)


def _by_window(values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values)]
    low, high = finite.min(), finite.max()
    robust = np.quantile(finite, [0.001, 0.999])
    if high - low > 2 * (robust[1] - robust[0]) > 0:
        low, high = robust
    return np.nan_to_num(spread(values, low, high)) if high > low else np.zeros(values.shape)


# -- whole slides -----------------------------------------------------------------------------------------------------


def slide() -> bytes:
    """An Aperio-like pyramid: white glass with a round piece of stained tissue."""
    y, x = np.mgrid[0:3072, 0:4096]
    full = np.full((3072, 4096, 3), 245, np.uint8)
    tissue = (x - 2600) ** 2 + (y - 1500) ** 2 < 1100**2
    full[tissue] = (190, 80, 150)
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        about = "Aperio Image Library v1\r\n4096x3072 |AppMag = 20|MPP = 0.5"
        writer.write(full, tile=(256, 256), photometric="rgb", compression="zlib", description=about, metadata=None)
        writer.write(
            full[::8, ::8], photometric="rgb", compression="zlib", description="Aperio thumbnail", metadata=None
        )
        for step in (4, 16):
            level = np.ascontiguousarray(full[::step, ::step])
            writer.write(
                level, tile=(256, 256), photometric="rgb", compression="zlib", description=about, metadata=None
            )
    return out.getvalue()


def test_a_whole_slide_gives_its_thumbnail_and_tiles_of_tissue() -> None:
    data = slide()
    alone = read(data, ANY)
    assert alone.format == "whole slide" and (alone.width, alone.height) == (2048, 1536)
    several: list[tuple[str, Read]] = list(each(data, ANY, None, Reading(tiles=3)))
    assert [name for name, _ in several] == ["", "tile-1", "tile-2", "tile-3"]
    for _, tile in several[1:]:
        assert tile.pixels.shape == (1024, 1024, 3)
        assert (tile.pixels[:, :, 1] < 120).mean() > 0.4


@pytest.mark.parametrize(
    ("library", "name"), [("pydicom", "DICOM"), ("nibabel", "NIfTI"), ("openslide", "a whole slide")]
)
def test_without_the_extra_each_names_the_command(monkeypatch: pytest.MonkeyPatch, library: str, name: str) -> None:
    data = {
        "pydicom": lambda: dicom(ramp(0, 255, np.uint8)),
        "nibabel": lambda: nifti(marked(), np.eye(4)),
        "openslide": slide,
    }[library]()
    monkeypatch.setitem(sys.modules, library, None)
    error = refusal(data)
    assert error.reason is Reason.NOT_SUPPORTED
    assert error.detail == f"{name} needs {library}: pip install 'biomedclip-ray[medical]'"
