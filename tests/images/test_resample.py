import numpy as np
import pytest
from PIL import Image

from biomedclip_ray.images.resample import shrink


def _line_art(seed: int, width: int, height: int) -> np.ndarray:
    """Thin black lines and coloured blocks on white: the hardest images to shrink."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 255, np.uint8)
    for _ in range(60):
        x, y = int(rng.integers(0, width - 60)), int(rng.integers(0, height - 60))
        if rng.random() < 0.5:
            picture[y : y + 2, x : x + 60] = 0
        else:
            picture[y : y + 12, x : x + 9] = rng.integers(0, 255, 3)
    return picture


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("ratio", [1.1, 1.5, 2.0, 2.05, 2.5, 2.79, 2.81, 3.3, 4.1, 5.7, 9.3])
@pytest.mark.parametrize("side", [901, 1000])
def test_line_art_is_shrunk_as_pillow_shrinks_it(ratio: float, side: int) -> None:
    picture = _line_art(1, side + 77, side)
    width, height = round((side + 77) / ratio), round(side / ratio)
    expected = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    result = shrink(picture, width, height)
    assert result.shape == (height, width, 3)
    assert _psnr(result, expected) > 33


def test_an_even_colour_keeps_its_value() -> None:
    picture = np.full((517, 803, 3), (13, 200, 77), np.uint8)
    assert np.abs(shrink(picture, 123, 79).astype(int) - (13, 200, 77)).max() <= 1


def test_the_same_size_is_the_same_picture() -> None:
    picture = _line_art(2, 200, 100)
    assert np.array_equal(shrink(picture, 200, 100), picture)


def test_a_half_decoded_odd_picture_is_not_shifted() -> None:
    ramp = np.linspace(0, 255, 1001)
    whole = np.repeat(np.repeat(ramp[None, :, None], 801, 0), 3, 2).astype(np.uint8)
    padded = np.pad(whole, ((0, 1), (0, 1), (0, 0)), mode="edge").astype(float)
    half = padded.reshape(401, 2, 501, 2, 3).mean((1, 3)).round().astype(np.uint8)
    expected = shrink(whole, 150, 120)
    assert np.abs(shrink(half, 150, 120, source=(1001, 801)).astype(int) - expected).max() <= 1


def test_enlarging_is_refused() -> None:
    with pytest.raises(ValueError, match="100 x 50 to 120 x 50"):
        shrink(_line_art(3, 100, 150)[:50], 120, 50)
