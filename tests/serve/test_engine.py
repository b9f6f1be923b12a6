"""A real model and index behind a real HTTP server, in this process: what Ray adds is tested in tests/ray."""

import base64
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import Config, Serve, ServeResources
from biomedclip_ray.corpus.erase import erase
from biomedclip_ray.schema import LEDGER
from biomedclip_ray.search.index import Index
from biomedclip_ray.search.outputs import convert
from biomedclip_ray.serve.ingress import create_app
from biomedclip_ray.serve.replica import WITHDRAWN_S, Engine
from biomedclip_ray.store.attempt import attempt
from tests.ray.test_serve import drawn, make, uri
from tests.serve.live import running

SETTINGS = Serve(
    aliases={"text-embedding-3-small": "biomedclip"}, dimensions=(16, 64), resources=ServeResources(ready_within_s=0.2)
)


class Live(NamedTuple):
    url: str
    engine: Engine
    encoder: Encoder
    images: list[bytes]
    captions: list[str]
    schema: dict[str, Any]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    root: Path = tmp_path_factory.mktemp("live")
    images, captions = drawn()
    bundle, index, encoder = make(root, 0, images, captions)
    engine = Engine(bundle.place.at("bundle").uri, index.place.at("index.lance").uri, SETTINGS, "f1")
    with running(create_app({"biomedclip": engine}, SETTINGS)) as url:
        yield Live(url, engine, encoder, images, captions, httpx.get(f"{url}/openapi.json", timeout=60).json())


def post(live: Live, path: str, body: Any) -> httpx.Response:
    return httpx.post(live.url + path, json=body, timeout=60)


def vectors(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


def test_parts_uploads_and_data_uris_give_the_encoders_own_vectors(live):
    expected = live.encoder.encode_images(live.images[:2])
    coded = [base64.b64encode(image).decode() for image in live.images[:2]]
    parts = [{"type": "image_url", "image_url": {"url": uri(live.images[0])}}, {"image": coded[1]}]
    files = [("file", ("a.png", image, "application/octet-stream")) for image in live.images[:2]]
    uploaded = httpx.post(f"{live.url}/v1/embeddings/image", files=files, data={"model": "text-embedding-3-small"})
    for answer in (
        post(live, "/v1/embeddings", {"input": parts}),
        post(live, "/v1/embeddings", {"input": coded}),
        uploaded,
    ):
        assert np.abs(vectors(answer) - expected).max() < 1e-5
        assert (answer.json()["model"], answer.json()["usage"]["images"]) == ("biomedclip", 2)


def test_a_form_says_how_vectors_are_wanted(live):
    files = [("file", ("a.png", live.images[3]))]
    sent = {"dimensions": "16", "output_dtype": "int8", "on_error": "item", "encoding_format": "base64"}
    answer = httpx.post(f"{live.url}/v1/embeddings/image", files=files, data=sent)
    assert np.array_equal(vectors(answer), convert(_cut(live, 16), "int8", live.engine.index.settings.int8_scale))
    wrong = httpx.post(f"{live.url}/v1/embeddings/image", files=files, data={"dimension": "16"})
    assert wrong.status_code == 400 and "did you mean dimensions?" in wrong.json()["error"]["message"]
    empty = httpx.post(f"{live.url}/v1/embeddings/image", files=[*files, ("file", ("b.png", b""))])
    assert (empty.status_code, empty.json()["error"]["message"]) == (400, "input[1]: the file is empty")


def _cut(live: Live, length: int) -> np.ndarray:
    """The vector of the fourth image, cut."""
    short = live.encoder.encode_images(live.images[3:4])[:, :length]
    return short / np.linalg.norm(short)


def test_smaller_output_types_are_the_vector_as_told(live):
    texts = live.captions[:5]
    exact = live.encoder.encode_text(texts)

    def asked(kind: str, encoding: str = "base64") -> np.ndarray:
        return vectors(
            post(live, "/v1/embeddings", {"input": texts, "output_dtype": kind, "encoding_format": encoding})
        )

    assert np.abs(asked("float16") - exact).max() < 1e-3
    int8 = asked("int8")
    told = httpx.get(f"{live.url}/v1/models").json()["data"][0]["index"]
    assert int8.dtype == np.int64 and np.abs(int8 / told["int8_scale"] - exact).max() <= 0.51 / told["int8_scale"]
    assert np.array_equal(np.unpackbits(asked("binary", "float").astype(np.uint8), axis=1), exact > 0)
    recall = told["output_recall"]
    assert recall["float16"] >= 0.97 and recall["int8"] >= 0.9 and 0.2 < recall["binary"] < 1


def test_one_bad_image_does_not_lose_the_others_where_that_is_asked_for(live):
    items = [live.captions[0], uri(live.images[0][:200]), "data:image/png,x", uri(live.images[1])]
    alone = post(live, "/v1/embeddings", {"input": items})
    assert (alone.status_code, alone.json()["error"]["param"]) == (400, "input[2]")
    data = post(live, "/v1/embeddings", {"input": items, "on_error": "item"}).json()["data"]
    assert [item["embedding"] is None for item in data] == [False, True, True, False]
    assert [item["error"]["code"] for item in data[1:3]] == ["broken_image", "bad_data_uri"]
    assert [item["error"]["param"] for item in data[1:3]] == ["input[1]", "input[2]"]
    assert np.abs(np.array(data[3]["embedding"]) - live.encoder.encode_images(live.images[1:2])).max() < 1e-5


def test_an_image_that_cannot_be_read_is_told_without_the_servers_inside(live):
    header = struct.pack(">IIBBBBB", 5, 5, 3, 0, 0, 0, 0)  # a depth that there is not
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(50))), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    answer = post(live, "/v1/embeddings", {"input": uri(png)})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "broken_image"
    assert "cannot identify image file)" in answer.json()["error"]["message"]


def test_a_table_whose_files_are_gone_is_the_servers_fault_and_its_place_is_not_told(live):
    place = Path(live.engine.index.place.at("index.lance").uri)
    (place / "data").rename(place / "aside")
    try:
        answer = post(live, "/v1/search", {"query": "cells", "filters": {"year_from": 2003, "year_to": 2004}})
    finally:
        (place / "aside").rename(place / "data")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert str(place) not in answer.text and "lance" not in answer.text


def test_similarity_is_the_cosine_of_every_pair(live):
    body = {"input": [uri(image) for image in live.images[:3]], "against": live.captions[:2]}
    rows = post(live, "/v1/similarity", body).json()["data"]
    expected = live.encoder.encode_images(live.images[:3]) @ live.encoder.encode_text(live.captions[:2]).T
    assert np.abs(np.array([row["similarities"] for row in rows]) - expected).max() < 1e-5


def test_each_item_tells_its_tokens_and_whether_it_was_cut(live):
    texts = ["gel", "gel " * 100, uri(live.images[0])]
    data = post(live, "/v1/embeddings", {"input": texts}).json()["data"]
    assert [(item["tokens"], item["truncated"]) for item in data[1:]] == [(32, True), (0, False)]
    assert data[0]["tokens"] == live.encoder.tokenizer.encode(["gel"]).n_tokens[0] and not data[0]["truncated"]


def found(live: Live, **body: Any) -> dict[str, Any]:
    answer = post(live, "/v1/search", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["pair_id"] for hit in answer["data"]]


def test_image_and_words_together_are_the_weighted_sum_of_their_vectors(live):
    text, image = live.captions[5], live.images[20]
    query = [{"text": text, "weight": 2}, {"image": uri(image)}]
    vector = 2 * live.encoder.encode_text([text])[0] + live.encoder.encode_images([image])[0]
    expected = [hit.pair_id for hit in live.engine.index.search(vector, 7)]
    assert ids(found(live, query=query, k=7)) == expected


def test_a_figure_finds_those_like_it_and_not_itself(live):
    like = ids(found(live, query={"figure": "PMC4.1/F1#0"}, k=5))
    plain = ids(found(live, query=uri(live.images[4]), k=6))
    assert "PMC4.1/F1#0" not in like and like == [name for name in plain if name != "PMC4.1/F1#0"][:5]
    wrong = post(live, "/v1/search", {"query": {"figure": "PMC999.1/F1#0"}})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "wrong_query")


@pytest.mark.parametrize("by", ["image", "caption", "words", "all"])
@pytest.mark.parametrize(
    "query",
    ["PMC31", '"pmc 1031.1"', "https://pmc.ncbi.nlm.nih.gov/articles/PMC31/", "PMC31.1/F1#0", {"text": "PMC31"}],
)
def test_the_number_or_link_of_an_article_finds_it_whatever_is_compared(live, by, query):
    assert ids(found(live, query=query, by=by)) == ([] if "1031" in query else ["PMC31.1/F1#0"])
    without = ids(found(live, query="gel", without=query, by=by, k=60))
    assert "PMC31.1/F1#0" not in without or "1031" in query


def test_what_should_not_be_there_moves_the_answer_away(live):
    with_it = found(live, query="gel", k=60)
    without = found(live, query="gel", without=live.captions[0], k=60)
    away = live.encoder.encode_text(["gel"])[0] - live.encoder.encode_text([live.captions[0]])[0]
    assert ids(without) == [hit.pair_id for hit in live.engine.index.search(away, 60)] != ids(with_it)


def test_words_are_highlighted_in_the_caption(live):
    hit = found(live, query="lanes", by="words", k=1)["data"][0]
    shown = [hit["caption"][a:b].lower() for a, b in hit["highlights"]]
    assert shown and set(shown) <= {"lane", "lanes"}


def test_pages_lead_to_the_last_hit_without_gap_or_repeat(live):
    seen, cursor = [], None
    while True:
        page = found(live, query="cells", by="all", k=13, cursor=cursor)
        seen += ids(page)
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 60 and seen[:20] == ids(found(live, query="cells", by="all", k=20))
    foreign = post(live, "/v1/search", {"query": "gel", "cursor": found(live, query="cells", k=1)["next"]})
    assert foreign.status_code == 400 and "cursor" in foreign.json()["error"]["message"]


def test_facets_count_what_passes_the_other_filters(live):
    facets = found(live, query="cells", filters={"kinds": ["gel"]}, facets=True, k=1)["facets"]
    assert facets["kinds"] == {"bar_chart": 20, "gel": 20, "micrograph": 20}
    assert sum(facets["years"].values()) == sum(facets["licenses"].values()) == 20


def test_hits_are_grouped_by_article_where_that_is_asked_for(live):
    answer = found(live, query="cells", group="article", k=5)
    assert len({hit["article_id"] for hit in answer["data"]}) == 5
    assert all(other["article_id"] == hit["article_id"] for hit in answer["data"] for other in hit["more"])


@pytest.mark.parametrize(
    "query", ['"', '"western blot"', "'; DROP", "a AND (", "*", "[", "ALL", "\\", '"" ""', "PMC4", "β-", "\x00"]
)
def test_no_words_are_an_error_of_the_server(live, query):
    for by in ("words", "all"):
        assert post(live, "/v1/search", {"query": query, "by": by}).status_code == 200


def test_any_filter_value_is_a_result_or_400(live):
    for filters in (
        {"year_from": 99999999999},
        {"year_to": -99999999999},
        {"year_from": 2.5},
        {"year_from": True},
        {"year_from": 1e308},
        {"kinds": ["' OR 1=1 --"]},
        {"licenses": ["\0"]},
        {"licenses": []},
        {"year_from": 2020, "year_to": 1990},
    ):
        assert post(live, "/v1/search", {"query": "cells", "filters": filters}).status_code in (200, 400), filters


class Broken:
    """The model's weights turned into NaN for a while."""

    def __init__(self, engine: Engine, tower: str) -> None:
        self.parameters = list(engine.encoder.model._modules[tower].parameters())

    def __enter__(self) -> None:
        self.kept = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.fill_(float("nan"))

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, self.kept, strict=True):
                parameter.copy_(kept)


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_a_vector_that_is_not_finite_is_never_sent_and_the_server_is_not_ready(live, tower):
    sound, bad = ("a gel", uri(live.images[0])) if tower == "visual" else (uri(live.images[0]), "a gel")
    assert httpx.get(f"{live.url}/ready").status_code == 200
    with Broken(live.engine, tower):
        answer = post(live, "/v1/embeddings", {"input": [sound, bad]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input[1]")
        data = post(live, "/v1/embeddings", {"input": [sound, bad], "on_error": "item"}).json()["data"]
        assert data[0]["embedding"] and data[1]["embedding"] is None and data[1]["error"]["code"] == "non_finite"
        assert post(live, "/v1/search", {"query": bad}).status_code == 422
        assert post(live, "/v1/classify", {"input": bad, "labels": ["a", "b"]}).status_code == 422
        ready = httpx.get(f"{live.url}/ready")
        assert ready.status_code == 503 and ready.headers["retry-after"] == "1"
        assert ready.json()["error"]["code"] == "non_finite"
    assert httpx.get(f"{live.url}/ready").status_code == 200


def test_what_is_ready_was_proved_within_the_seconds_that_the_configuration_names(live):
    for _ in range(3):
        assert httpx.get(f"{live.url}/ready").json()["seconds_ago"] <= SETTINGS.resources.ready_within_s


def test_every_answer_has_the_fields_that_the_description_names(live):
    texts = live.captions[:2]
    answers = {
        ("get", "/health"): httpx.get(f"{live.url}/health"),
        ("get", "/ready"): httpx.get(f"{live.url}/ready"),
        ("get", "/v1/models"): httpx.get(f"{live.url}/v1/models"),
        ("post", "/v1/embeddings"): post(live, "/v1/embeddings", {"input": texts}),
        ("post", "/v1/search"): post(live, "/v1/search", {"query": "gel"}),
        ("post", "/v1/classify"): post(live, "/v1/classify", {"input": texts, "labels": ["a", "b"]}),
        ("post", "/v1/similarity"): post(live, "/v1/similarity", {"input": texts, "against": "a"}),
    }
    for (method, path), answer in answers.items():
        assert answer.status_code == 200, answer.text
        wanted = live.schema["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        Draft202012Validator({**wanted, "components": live.schema["components"]}).validate(answer.json())
        fields = live.schema["components"]["schemas"][wanted["$ref"].rpartition("/")[2]]["properties"]
        assert set(answer.json()) == set(fields)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def complaints(live: Live, examples: int) -> list[str]:
    """What schemathesis finds, asking every operation of the description for so many examples."""
    schema = schemathesis.openapi.from_dict(live.schema)
    found: list[str] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        try:
            ask(live, operation, examples)
        except (FailureGroup, Failure) as failure:
            reasons = failure.exceptions if isinstance(failure, FailureGroup) else [failure]
            found.extend(f"{operation.label}: {reason}" for reason in reasons)
    return found


def ask(live: Live, operation: Any, examples: int) -> None:
    # a number for a text field of a form is that text on the wire
    checks = [check for check in CHECKS if operation.path != "/v1/embeddings/image" or check != negative_data_rejection]

    @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE) | operation.as_strategy())
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def each(case: Any) -> None:
        case.call_and_validate(base_url=live.url, checks=checks)

    each()


EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "40"))


def test_schemathesis_finds_nothing_to_complain_about(live):
    assert complaints(live, EXAMPLES) == []


def test_schemathesis_finds_a_fault_planted_in_the_engine(live, monkeypatch):
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(live.engine.encoder, "encode_ids", broken)
    found = complaints(live, 10)
    assert any(complaint.startswith("POST /v1/embeddings: Server error") for complaint in found), found


def test_figures_under_other_licences_are_found_without_their_picture_and_every_hit_says_whose_it_is(live):
    strict = SETTINGS.model_copy(update={"thumbnail_licenses": ("CC0",)})
    live.engine._settings, before = strict, live.engine._settings
    try:
        hits = post(live, "/v1/search", {"query": "cells", "k": 60}).json()["data"]
    finally:
        live.engine._settings = before
    assert {hit["license"] for hit in hits} == {"CC0", "CC BY"}
    for hit in hits:
        shown = hit["license"] == "CC0"
        assert ((hit["thumbnail"] is not None), hit["withheld"]) == (shown, not shown)
        named = f"A title. A journal, {hit['year']}. Licence: {hit['license']}. {hit['article_url'].rstrip('/')}"
        assert hit["attribution"].rstrip("/") == named
    assert all(hit["thumbnail"] for hit in post(live, "/v1/search", {"query": "cells"}).json()["data"])


def test_what_was_erased_is_no_longer_found_by_a_server_that_runs(tmp_path):
    images, captions = drawn()
    bundle, index, _ = make(tmp_path, 0, images, captions)
    rows = Index.open(index.place.uri).dataset.to_table(columns=["pair_id", "article_id", "caption"])
    with attempt(index, 1) as current:
        current.write_part(0, rows, LEDGER.empty_table(), {"pair": (rows.num_rows, rows.num_rows)})
        current.finish_parts(0.0)
    engine = Engine(bundle.place.at("bundle").uri, index.place.at("index.lance").uri, SETTINGS, "f1")
    with running(create_app({"biomedclip": engine}, SETTINGS)) as url, httpx.Client(base_url=url, timeout=60) as client:
        found = client.post("/v1/search", json={"query": "cells", "k": 60}).json()["data"]
        assert client.get("/v1/map").status_code == 200
        assert "PMC3.1/F1#0" in {hit["pair_id"] for hit in found}
        assert erase(Config(root=str(tmp_path)), "PMC3.1").again == [f"embed/{index.fingerprint}"]
        time.sleep(WITHDRAWN_S)
        for body in ({"query": "cells"}, {"query": "PMC3", "by": "words"}, {"query": {"figure": "PMC3.1/F1#0"}}):
            answer = client.post("/v1/search", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "index_withdrawn")
            assert answer.headers["retry-after"] == "1"
        assert client.get("/v1/map").status_code == 503
        assert client.post("/v1/embeddings", json={"input": "cells"}).status_code == 200
