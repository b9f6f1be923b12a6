"""Two bundles behind one address, asked at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import Config, Serve, ServedModel, ServeResources
from biomedclip_ray.serve import deploy as stage
from tests.ray.test_serve import drawn, free_port, make, uri

CALLERS, REQUESTS = 12, 120


class Two(NamedTuple):
    url: str
    encoders: dict[str, Encoder]
    images: list[bytes]
    captions: list[str]


@pytest.fixture(scope="module")
def two(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    from ray import serve

    root = tmp_path_factory.mktemp("two")
    images, captions = drawn()
    bundle, index, first = make(root, 0, images, captions)
    other_bundle, other_index, second = make(root, 1, images, captions)
    other = ServedModel(id="other", bundle=other_bundle.place.at("bundle").uri, index=other_index.uri)
    resources = ServeResources(port=free_port(), cpus_per_replica=0.5)
    settings = Serve(more=(other,), aliases={"text-embedding-3-small": "other"}, resources=resources)
    url = stage.deploy(Config(root=str(root), serve=settings), bundle, index).url
    yield Two(url, {"biomedclip": first, "other": second, "text-embedding-3-small": second}, images, captions)
    serve.shutdown()


def test_the_models_are_both_told_with_their_aliases(two):
    told = httpx.get(f"{two.url}/v1/models", timeout=60).json()["data"]
    assert [(model["id"], model["bundle"], model["aliases"]) for model in told] == [
        ("biomedclip", two.encoders["biomedclip"].bundle_id, []),
        ("other", two.encoders["other"].bundle_id, ["text-embedding-3-small"]),
    ]
    alias = httpx.get(f"{two.url}/v1/models/text-embedding-3-small", timeout=60).json()
    assert alias["bundle"] == two.encoders["other"].bundle_id


def test_each_answer_under_load_is_that_of_the_model_that_was_named(two):
    names = list(two.encoders)
    texts = {name: encoder.encode_text(two.captions) for name, encoder in two.encoders.items()}
    images = {name: encoder.encode_images(two.images) for name, encoder in two.encoders.items()}

    def ask(n: int) -> tuple[str, float, Any, Any]:
        """The model's name, how far the vector is from its own, the bundle told, and the first hit of a search."""
        name, row = names[n % 3], n % len(two.captions)
        item, own = ((two.captions[row], texts), (uri(two.images[row]), images))[n // 3 % 2]
        embedded = client.post("/v1/embeddings", json={"model": name, "input": item}).raise_for_status().json()
        body = {"model": name, "query": uri(two.images[row]), "k": 1}
        found = client.post("/v1/search", json=body).raise_for_status().json()
        assert embedded["bundle"] == found["bundle"] and found["data"][0]["score"] == pytest.approx(1, abs=1e-4)
        far = np.abs(np.array(embedded["data"][0]["embedding"], np.float32) - own[name][row]).max()
        return name, float(far), embedded["bundle"], found["data"][0]["pair_id"] == f"PMC{row}.1/F1#0"

    with httpx.Client(base_url=two.url, timeout=120) as client, ThreadPoolExecutor(CALLERS) as callers:
        answers = list(callers.map(ask, range(REQUESTS)))
    assert all(far < 1e-4 and itself for _, far, _, itself in answers)
    assert {(name, bundle) for name, _, bundle, _ in answers} == {
        (name, encoder.bundle_id) for name, encoder in two.encoders.items()
    }


def test_a_model_that_is_not_there_is_named_with_those_that_are(two):
    answer = httpx.post(f"{two.url}/v1/search", json={"model": "third", "query": "a gel"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "biomedclip, other, text-embedding-3-small" in answer.json()["error"]["message"]
