from pathlib import Path

import numpy as np
import pytest

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.prompts import class_weights, classify


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder, "cpu")


def test_a_class_is_the_mean_of_its_prompts(encoder: Encoder) -> None:
    weights = class_weights(
        encoder, {"gel": ["western blot", "gel"], "x-ray": ["radiograph"]}, ["a {}", "{} of a lung"]
    )
    assert weights.shape == (2, 128) and weights.dtype == np.float32
    gel = encoder.encode_text(["a western blot", "western blot of a lung", "a gel", "gel of a lung"]).mean(axis=0)
    xray = encoder.encode_text(["a radiograph", "radiograph of a lung"]).mean(axis=0)
    np.testing.assert_allclose(weights[0], gel / np.linalg.norm(gel), atol=1e-6)
    np.testing.assert_allclose(weights[1], xray / np.linalg.norm(xray), atol=1e-6)


def test_a_list_of_labels_names_itself(encoder: Encoder) -> None:
    by_list = class_weights(encoder, ["gel", "chart"], ["a {}"])
    by_dict = class_weights(encoder, {"one": ["gel"], "two": ["chart"]}, ["a {}"])
    np.testing.assert_array_equal(by_list, by_dict)


def test_probabilities_are_the_softmax_of_scaled_cosines() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8]], dtype=np.float32)
    weights = np.array([[1, 0], [0, 1]], dtype=np.float32)
    found = classify(vectors, weights, 10.0)
    expected = [[1 / (1 + np.exp(-10)), 1 / (1 + np.exp(10))], [1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2))]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == np.float32
    assert np.isfinite(classify(vectors, weights, 1e4)).all()


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ({}, ["a {}"], "no classes"),
        ({"gel": []}, ["a {}"], "class 'gel' has no name"),
        (["gel"], ["a picture"], "a picture"),
        (["gel"], [], "needs {}"),
    ],
)
def test_prompts_that_cannot_work_are_an_error(
    encoder: Encoder, names: list[str], templates: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        class_weights(encoder, names, templates)
