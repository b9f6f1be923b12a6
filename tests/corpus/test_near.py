"""The banded search against brute force, and the second look on images that are and are not the same."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from biomedclip_ray.corpus.near import LINKS, look_alike, near_pairs, signature
from biomedclip_ray.images.phash import perceptual_hash
from biomedclip_ray.sample import plots


def _brute(hashes: NDArray[np.uint64], radius: int) -> set[tuple[int, int]]:
    close = np.bitwise_count(hashes[:, None] ^ hashes) <= radius
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(close), strict=True) if i < j}


def _found(hashes: NDArray[np.uint64], radius: int) -> list[tuple[int, int]]:
    pairs = near_pairs(hashes, radius, crowd=200)
    assert len(pairs.crowded) == 0
    return list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1 << 63, 2**64 - 1, 0x0123456789ABCDEF]), st.sets(st.integers(0, 63), max_size=5)
        ),
        max_size=40,
    ),
    st.integers(0, 8),
)
def test_few_bits_apart_is_found_as_brute_force_finds_it(rows: list[tuple[int, set[int]]], radius: int) -> None:
    hashes = np.array([base ^ sum(1 << bit for bit in flips) for base, flips in rows], np.uint64)
    found = _found(hashes, radius)
    assert found == sorted(_brute(hashes, radius))


@pytest.mark.parametrize("radius", [0, 1, 3, 4, 8])
def test_three_thousand_hashes_in_families_give_what_brute_force_gives(radius: int) -> None:
    rng = np.random.default_rng(radius)
    hashes = np.repeat(rng.integers(0, 2**64, 600, np.uint64), 5)
    for _ in range(5):
        hashes ^= (np.uint64(1) << rng.integers(0, 64, 3000, np.uint64)) * rng.integers(0, 2, 3000, np.uint64)
    found = _found(hashes, radius)
    assert set(found) == _brute(hashes, radius)
    assert len(found) == len(set(found)) > 0


def test_of_a_crowd_with_one_hash_each_is_paired_with_its_next_ones() -> None:
    hashes = np.array([5] * 100 + [4, 5 + 64, 1 << 40, 1 << 40], np.uint64)
    pairs = near_pairs(hashes, 1)
    in_crowd = pairs.right < 100
    assert len(pairs.crowded) == 100
    assert set((pairs.right - pairs.left)[in_crowd]) == set(range(1, LINKS + 1))
    assert in_crowd.sum() == sum(100 - k for k in range(1, LINKS + 1))
    assert list(zip(pairs.left[~in_crowd], pairs.right[~in_crowd], strict=True)) == [(102, 103)]


def test_a_dense_family_costs_its_size_and_not_its_square_and_hangs_together() -> None:
    rng = np.random.default_rng(0)
    hashes = np.zeros(20_000, np.uint64)
    for _ in range(4):
        hashes ^= np.uint64(1) << rng.integers(0, 64, len(hashes), np.uint64)
    pairs = near_pairs(hashes, 4)
    assert len(pairs.crowded) > 5_000
    assert len(pairs.left) < 100 * len(hashes)
    graph = coo_array((np.ones(len(pairs.left)), (pairs.left, pairs.right)), shape=(len(hashes), len(hashes)))
    sizes = np.bincount(connected_components(graph, directed=False)[1])
    assert sizes.max() > 0.9 * len(hashes)
    some = hashes[:600]  # what is missed has a member in the crowd
    missed = _brute(some, 4) - {(a, b) for a, b in zip(pairs.left, pairs.right, strict=True) if b < 600}
    crowded = set(pairs.crowded.tolist())
    assert missed and all(a in crowded or b in crowded for a, b in missed)


def test_a_radius_at_which_bands_say_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="radius=17"):
        near_pairs(np.zeros(2, np.uint64), 17)


def _plot(seed: int) -> NDArray[np.uint8]:
    """A line on white between two axes."""
    picture = np.full((288, 384), 255, np.uint8)
    cv2.line(picture, (40, 10), (40, 250), 0, 2)
    cv2.line(picture, (40, 250), (370, 250), 0, 2)
    heights = 120 + np.cumsum(np.random.default_rng(seed).normal(0, 9, 34))
    points = np.stack([40 + np.arange(34) * 10, heights.clip(15, 245)], axis=1).astype(np.int32)
    cv2.polylines(picture, [points], False, 60, 2)
    return picture


def _again(picture: NDArray[np.uint8], scale: float, quality: int) -> NDArray[np.uint8]:
    """The image shrunk and compressed by another program."""
    image = Image.fromarray(picture)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return np.array(Image.open(out).convert("L"))


def _grey(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(luma[:, :, None], 3, axis=2)


def test_plots_that_share_a_hash_are_not_the_same_and_copies_of_one_are() -> None:
    plots = [_plot(seed) for seed in range(300)]
    hashes = np.array([perceptual_hash(np.repeat(plot[:, :, None], 3, axis=2)) for plot in plots], np.uint64)
    signatures = np.stack([signature(_grey(plot)) for plot in plots])
    pairs = near_pairs(hashes, 6)
    assert len(pairs.left) > 50
    assert not look_alike(signatures[pairs.left], signatures[pairs.right]).any()
    copies = np.stack([signature(_grey(_again(plot, 0.5, 70))) for plot in plots])
    assert look_alike(signatures, copies).mean() > 0.99


def test_thumbnails_of_real_figures_are_found_and_look_alike(corpus: Path) -> None:
    folder = corpus / "bucket" / "PMC2924383.1"
    names = [f"pone.0012255.g00{n}.{kind}" for n in range(1, 5) for kind in ("jpg", "gif")]
    pictures = [np.array(Image.open(folder / name).convert("RGB")) for name in names]
    hashes = np.array([perceptual_hash(picture) for picture in pictures], np.uint64)
    assert _found(hashes, 4) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    signatures = np.stack([signature(picture) for picture in pictures])
    assert look_alike(signatures[0::2], signatures[1::2]).all()
    assert not look_alike(signatures[0::2], signatures[[3, 5, 7, 1]]).any()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_a_signature_keeps_the_mean_whatever_the_size(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    vector = signature(pixels)
    assert vector.shape == (6912,)
    assert abs(float(vector.mean()) - float(pixels.mean())) < 1


def test_a_signature_is_the_mean_of_each_cell() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (192, 144, 3)).astype(np.uint8)
    expected = pixels.reshape(48, 4, 48, 3, 3).mean(axis=(1, 3))
    assert np.abs(signature(pixels).reshape(48, 48, 3) - expected).max() <= 0.51


def test_flat_pictures_are_the_same_only_if_they_are_equal() -> None:
    flat = np.full((2, 6912), 200, np.uint8)
    speck = flat.copy()
    speck[1, 7] = 0
    assert look_alike(flat, speck).tolist() == [True, False]


def test_the_same_drawing_in_another_colour_is_another_picture() -> None:
    red, blue = (np.full((96, 96, 3), 255, np.uint8) for _ in range(2))
    for picture, colour in ((red, (200, 40, 40)), (blue, (40, 40, 200))):
        for bar, height in enumerate((20, 50, 80)):
            picture[95 - height :, 10 + 28 * bar : 30 + 28 * bar] = colour
    signatures = np.stack([signature(red), signature(blue)])
    assert look_alike(signatures, signatures[::-1]).tolist() == [False, False]


def _figures(corpus: Path) -> list[Image.Image]:
    """Real figures and drawings, as the pairs hold them."""
    drawn = [plots.KINDS[k](np.random.default_rng(3), 480, 360)[0].convert("RGB") for k in sorted(plots.KINDS)]
    names = sorted(corpus.glob("bucket/PMC[0-8]*/*.jpg"))[:60:2]
    real = [Image.open(name).convert("RGB") for name in names]
    for image in real:
        image.thumbnail((600, 600))
    return drawn + [image for image in real if min(image.size) >= 112]


def _marked(image: Image.Image, place: float, colour: tuple[int, int, int]) -> Image.Image:
    """A square of 0.2% of the area, at this part of the way from the upper left to the lower right; its contrast is
    sure.
    """
    pixels = np.array(image)
    side = round((0.002 * pixels.shape[0] * pixels.shape[1]) ** 0.5)
    y, x = (int(place * (size - side)) for size in pixels.shape[:2])
    part = pixels[y : y + side, x : x + side]
    far = np.abs(part.mean(axis=(0, 1)) - colour).max() > 90
    part[:] = colour if far else 255 - np.array(colour)
    return Image.fromarray(pixels)


def _signed(image: Image.Image, quality: int, scale: float = 1.0) -> NDArray[np.uint8]:
    size = (round(image.width * scale), round(image.height * scale))
    out = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=quality)
    return signature(np.array(Image.open(out).convert("RGB")))


def test_recompressed_and_shrunk_figures_are_the_same_image(corpus: Path) -> None:
    figures = _figures(corpus)
    whole = np.stack([_signed(image, 90) for image in figures])
    for quality, scale, least in ((30, 1.0, 1.0), (50, 1.0, 1.0), (70, 0.5, 1.0), (75, 1 / 3, 0.95)):
        again = np.stack([_signed(image, quality, scale) for image in figures])
        assert look_alike(whole, again).mean() >= least, (quality, scale)


@pytest.mark.parametrize("colour", [(220, 40, 40), (40, 120, 220), (15, 15, 15)])
def test_a_spot_of_a_five_hundredth_of_the_area_makes_another_image(corpus: Path, colour: tuple[int, int, int]) -> None:
    figures = _figures(corpus)
    whole = np.stack([_signed(image, 90) for image in figures])
    here = np.stack([_signed(_marked(image, 0.3, colour), 85) for image in figures])
    there = np.stack([_signed(_marked(image, 0.62, colour), 75) for image in figures])
    assert not look_alike(whole, here).any()
    assert not look_alike(here, there).any()


def test_bar_charts_of_one_template_and_other_data_are_different_images() -> None:
    def chart(seed: int) -> NDArray[np.uint8]:
        image = np.full((288, 384, 3), 255, np.uint8)
        for bar, height in enumerate(np.random.default_rng(seed).integers(90, 240, 4).tolist()):
            cv2.rectangle(image, (50 + 80 * bar, 270 - height), (100 + 80 * bar, 270), (90, 90, 90), -1)
        cv2.line(image, (40, 270), (375, 270), (0, 0, 0), 2)
        return image

    charts = [chart(seed) for seed in range(190)]
    pairs = near_pairs(np.array([perceptual_hash(each) for each in charts], np.uint64), 4)
    signatures = np.stack([signature(each) for each in charts])
    assert len(pairs.left) > 10
    assert not look_alike(signatures[pairs.left], signatures[pairs.right]).any()
    copies = np.stack([_signed(Image.fromarray(each), 60, 0.5) for each in charts])
    assert look_alike(signatures, copies).all()
