"""Hospitals' files as one's own pairs: each image counted, and no word of a patient in a product."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pydicom
import pytest
import tifffile

from biomedclip_ray.config import Config, ConfigError, parse
from biomedclip_ray.corpus.own import own_pairs
from biomedclip_ray.images.image import decode
from biomedclip_ray.run.parts import in_process
from biomedclip_ray.sources.own_files import find_files
from biomedclip_ray.store.product import Product


def _config(root: Path, uri: Path, **own: object) -> Config:
    whole = {"root": str(root), "own": {"uri": str(uri), "alone": True, **own}, "preprocess": {"min_side": 1}}
    return parse(whole, "test")


def _take(config: Config) -> Product:
    assert config.own.uri is not None
    return own_pairs.run(config, find_files(config.own.uri, config.own.pairs_per_part), runner=in_process).product


def _rows(product: Product) -> pd.DataFrame:
    return pd.concat([table.to_pandas() for table in product.scan()], ignore_index=True)


def test_dicom_goes_in_by_patient_and_no_word_of_a_patient_comes_out(tmp_path: Path) -> None:
    """pydicom's own files through the whole stage: counts add up, frames are pairs, and PatientID is
    only a keyed hash.
    """
    folder = tmp_path / "in"
    folder.mkdir()
    names = []
    for path in sorted((Path(pydicom.__file__).parent / "data").rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".pyc", ".txt", ".md", ".json", ".dump", ".icc", ".sh"):
            names.append(f"{len(names):03d}.dcm")
            (folder / names[-1]).write_bytes(path.read_bytes())
    lines = ["image,caption", *(f"{name},Scan number {n} of the phantom" for n, name in enumerate(names))]
    (folder / "pairs.csv").write_text("\n".join(lines))
    pairs = _take(_config(tmp_path / "root", folder, frames="all"))
    rows = _rows(pairs)
    [count] = pairs.manifest["counts"]
    assert count["in"] == count["kept"] + sum(count["dropped"].values()) and count["kept"] == len(rows)
    assert rows["media_name"].nunique() >= 101
    assert rows["media_name"].value_counts().iloc[0] == 30  # of examples_ybr_color.dcm, each frame
    assert (rows.groupby("media_name")["article_id"].nunique() == 1).all()
    assert set(count["dropped"]) <= {
        "no_image",
        "broken_image",
        "truncated_image",
        "too_small",
        "blank",
        "unknown_format",
        "duplicate",
    }
    # what stands in PatientID and PatientName stands in no product
    said = set()
    for name in names:
        with contextlib.suppress(Exception):
            dataset = pydicom.dcmread(folder / name)
            said |= {str(dataset.get("PatientID", "")), str(dataset.get("PatientName", ""))}
    said = {word.encode() for word in said if len(word) > 5}
    assert len(said) > 10
    for file in (tmp_path / "root").rglob("*"):
        if file.suffix == ".parquet":
            text = (
                pq.read_table(file)
                .drop_columns(["image"] if "data" in file.parts else [])
                .to_pandas()
                .to_csv()
                .encode()
            )
            assert not [word for word in said if word in text], file
    assert (tmp_path / "root" / "own_patient.key").stat().st_size == 32


def _listed(folder: Path, files: dict[str, bytes]) -> Path:
    """A folder with these files and a list that gives each a text."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    lines = ["image,caption", *(f"{name},File number {n}" for n, name in enumerate(files))]
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder


def test_nibabels_own_files_go_in_and_every_other_names_its_cause(tmp_path: Path) -> None:
    files = {}
    for path in sorted(Path(nibabel.__file__).parent.rglob("data/*")):
        if path.is_file() and path.suffix not in (".py", ".pyc", ".rst", ".m", ".txt"):
            ending = "".join(s for s in path.suffixes[-2:] if s in (".nii", ".gz")) or ".dcm"
            files[f"{len(files):03d}{ending}"] = path.read_bytes()
    pairs = _take(_config(tmp_path / "root", _listed(tmp_path / "in", files)))
    [count] = pairs.manifest["counts"]
    assert count["in"] == len(files) == count["kept"] + sum(count["dropped"].values())
    assert _rows(pairs)["original_format"].value_counts().to_dict() == {"NIfTI": 7, "DICOM": 5}
    assert count["dropped"].pop("blank") == 4  # DICOM without a value
    assert set(count["dropped"]) == {"no_image", "not_supported", "unknown_format"}
    assert all(pairs.ledger().to_pandas()["detail"].str.len() > 10)


def test_what_tifffile_writes_goes_in_as_it_reads_it(tmp_path: Path) -> None:
    """Each layout of 8 and 16 bits: what is stored is tifffile's image, mapped to 8 bits, but for JPEG's rounding."""
    y, x = np.mgrid[0:70, 0:90]
    ramp = np.stack([x / 89, y / 69, (x + y) / 158], 2)
    files: dict[str, bytes] = {}
    expected: list[np.ndarray] = []
    forms = itertools.product(
        ((np.uint8, 255), (np.uint16, 65535)),
        "<>",
        ("minisblack", "rgb"),
        ("contig", "separate"),
        (None, "lzw", "zstd"),
    )
    for (kind, top), order, colours, planes, packed in forms:
        if colours == "minisblack" and planes == "separate":
            continue
        tile = (32, 48) if order == "<" else None
        values = np.rint((ramp if colours == "rgb" else ramp[:, :, 0] * (0.99 - 0.01 * len(files))) * top).astype(kind)
        sink = io.BytesIO()
        tifffile.imwrite(
            sink,
            np.moveaxis(values, 2, 0) if planes == "separate" else values,
            photometric=colours,
            planarconfig=planes if colours == "rgb" else None,
            byteorder=order,
            compression=packed,
            tile=tile,
        )
        files[f"{len(files):03d}.tif"] = sink.getvalue()
        read = tifffile.imread(io.BytesIO(sink.getvalue())).astype(float)
        read = np.moveaxis(read, 0, 2) if planes == "separate" else read
        window = read if kind == np.uint8 else read / read.max() * 255
        expected.append(window if colours == "rgb" else np.stack([window] * 3, 2))
    config = _config(tmp_path / "root", _listed(tmp_path / "in", files), name="made")
    config = config.model_copy(update={"preprocess": config.preprocess.model_copy(update={"quality": 100})})
    pairs = _take(config)
    assert pairs.manifest["counts"] == [{"unit": "picture", "in": 36, "kept": 36, "dropped": {}}]
    for row in _rows(pairs).to_dict("records"):
        apart = np.abs(decode(row["image"]) - expected[int(row["media_name"][:3])])
        assert apart.mean() < 2 and apart.max() < 12, row["media_name"]


def test_the_key_decides_a_patients_group(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    source = Path(pydicom.__file__).parent / "data" / "test_files"
    for n, name in enumerate(("MR_small.dcm", "MR_small_RLE.dcm", "CT_small.dcm")):
        (folder / f"{n}.dcm").write_bytes((source / name).read_bytes())
    (folder / "pairs.csv").write_text("image,caption\n0.dcm,A first scan\n1.dcm,A second scan\n2.dcm,A third scan\n")
    groups = []
    for key in ("one", "one", "two"):
        (tmp_path / f"{key}.key").write_text(key)
        root = tmp_path / f"root{len(groups)}"
        rows = _rows(_take(_config(root, folder, patient_key=str(tmp_path / f"{key}.key"))))
        groups.append(rows.set_index("media_name")["article_id"].to_dict())
    assert groups[0] == groups[1] and not set(groups[0].values()) & set(groups[2].values())
    assert groups[0]["0.dcm"] == groups[0]["1.dcm"] != groups[0]["2.dcm"]
    with pytest.raises(ConfigError, match="own.patient_key"):
        _take(_config(tmp_path / "none", folder, patient_key=str(tmp_path / "no.key")))


_LARGE_SLIDE = """
import resource, sys
from pathlib import Path
import numpy as np, tifffile
from tests.corpus.test_own_medical import _config, _rows, _take

def taken(folder, side):
    folder.mkdir()
    about = f"Aperio Image Library v1\\r\\n{side}x{side} |AppMag = 20|MPP = 0.5"
    y, x = np.ogrid[: side // 4, : side // 4]
    level = np.full((side // 4, side // 4, 3), 245, np.uint8)
    level[(x - side // 8) ** 2 + (y - side // 8) ** 2 < (side // 10) ** 2] = (190, 80, 150)
    tile = np.random.default_rng(0).integers(120, 200, (256, 256, 3), np.uint8)
    with tifffile.TiffWriter(folder / "a.svs") as writer:
        how = {"tile": (256, 256), "photometric": "rgb", "description": about, "metadata": None}
        tiles = (tile for _ in range((side // 256) ** 2))
        writer.write(tiles, shape=(side, side, 3), dtype=np.uint8, **how)
        writer.write(level[::8, ::8], photometric="rgb", description="Aperio thumbnail", metadata=None)
        writer.write(level, **how)
        writer.write(np.ascontiguousarray(level[::4, ::4]), **how)
    (folder / "pairs.csv").write_text("image,caption\\na.svs,A slide of tissue\\n")
    rows = _rows(_take(_config(folder / "root", folder, tiles=2)))
    return (folder / "a.svs").stat().st_size, len(rows)

here = Path(sys.argv[1])
assert taken(here / "small", 2048)[1] == 3
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size, pairs = taken(here / "large", 12288)
print(size, pairs, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_large_slide_is_not_read_whole(tmp_path: Path) -> None:
    """480 MB on disk, and less than half of it in memory: the level of the thumbnail, and tiles."""
    told = subprocess.run([sys.executable, "-c", _LARGE_SLIDE, tmp_path], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    size, pairs, grown = map(int, told.stdout.split()[-3:])
    assert size > 400e6 and pairs == 3 and grown < 200e6, grown
    shutil.rmtree(tmp_path / "large")
