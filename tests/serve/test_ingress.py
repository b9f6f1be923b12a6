"""The HTTP side alone, with an engine that answers from a table: shapes, errors, limits, the page."""

import asyncio
import base64
import dataclasses
import html
import json
import re
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import httpx
import numpy as np
import pytest

from biomedclip_ray.config import Serve, ServeResources
from biomedclip_ray.images.formats import PICKER
from biomedclip_ray.schema import ACKNOWLEDGEMENT
from biomedclip_ray.search.filters import Filters
from biomedclip_ray.serve.answers import (
    Classified,
    Embedded,
    FoundFigure,
    MapPoints,
    ModelFacts,
    Problem,
    Question,
    Searched,
    Vector,
)
from biomedclip_ray.serve.ingress import create_app
from biomedclip_ray.serve.inputs import Item
from biomedclip_ray.serve.page import PAGE

SETTINGS = Serve(
    max_items=8,
    max_body_bytes=50_000,
    dimensions=(4,),
    max_results=5,
    resources=ServeResources(max_queued=8, timeout_s=5),
)
FIGURE = FoundFigure(
    "PMC123.4/F2#0", "PMC123.4", 0.5, "A gel", "T", "J", 2020, "CC BY", "10.1/x", "gel", b"\xff\xd8\xff thumbnail"
)


class Table:
    """Vector i of a request points along axis i; "bad" is an image that cannot be decoded; `gate` holds
    answers back.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[Any] = []

    async def facts(self) -> ModelFacts:
        await self.gate.wait()
        return ModelFacts(
            "b1", "small", 8, 32, 1, {"gel": 1}, {"CC BY": 1}, (2020, 2020), {}, {"int8": 1.0}, 300.0, "f1"
        )

    async def embed(self, items: list[Item]) -> Embedded:
        await self.gate.wait()
        if items == ["crash"]:
            raise ZeroDivisionError("a bug of ours")
        return Embedded("b1", [Problem("cut", "broken_image") if i == "bad" else self._vector(i) for i in items])

    def _vector(self, item: Item) -> Vector:
        values = np.arange(1, 9, dtype=np.float32)
        return Vector(values / np.linalg.norm(values), len(item), len(item) > 10)

    async def search(self, question: Question) -> Searched | Problem:
        (part,), filters = question.asked, question.filters
        self.asked.append((part.item, question.k, question.by, filters))
        return (
            Problem("no such kind", "unknown_filter", "filters.kinds") if filters.kinds else Searched("b1", [FIGURE], 3)
        )

    async def points(self) -> MapPoints:
        return MapPoints(
            np.array([0.9], np.float32), np.array([-0.25], np.float32), np.array([0]), ["gel"], [FIGURE.pair_id]
        )

    async def classify(self, items: list[Item], labels: list[str], templates: list[str]) -> Classified:
        return Classified("b1", [np.full(len(labels), 1 / len(labels), np.float32) for _ in items])


async def send(engine: Table, *requests: tuple[str, str, Any], settings: Serve = SETTINGS) -> list[httpx.Response]:
    """All requests at once."""
    transport = httpx.ASGITransport(create_app({settings.model_id: engine}, settings), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return list(
            await asyncio.gather(
                *(client.request(m, path, content=coded(body), headers=AS_JSON) for m, path, body in requests)
            )
        )


AS_JSON = {"Content-Type": "application/json"}


def coded(body: Any) -> bytes | None:
    """In ASCII, which httpx' own form is not: half a character can be sent so."""
    return None if body is None else json.dumps(body).encode()


def post(path: str, body: Any) -> httpx.Response:
    return asyncio.run(send(Table(), ("POST", path, body)))[0]


def get(path: str) -> httpx.Response:
    return asyncio.run(send(Table(), ("GET", path, None)))[0]


def error(response: httpx.Response) -> tuple[int, str | None, str]:
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return response.status_code, body["param"], body["message"]


def test_base64_is_little_endian_float32_of_the_same_vector():
    plain = post("/v1/embeddings", {"input": "a"}).json()["data"][0]["embedding"]
    coded = post("/v1/embeddings", {"input": "a", "encoding_format": "base64"}).json()["data"][0]["embedding"]
    raw = base64.b64decode(coded)
    assert len(raw) == 8 * 4
    assert np.array_equal(np.frombuffer(raw, "<f4"), np.asarray(plain, np.float32))


def test_each_item_says_whether_it_was_cut_and_usage_counts_what_was_read():
    body = post("/v1/embeddings", {"input": ["short", "longer than ten"], "user": "u", "model": "biomedclip"}).json()
    assert [(item["index"], item["truncated"]) for item in body["data"]] == [(0, False), (1, True)]
    assert body["usage"] == {"prompt_tokens": 20, "total_tokens": 20, "images": 0}
    assert body["model"] == "biomedclip" and body["object"] == "list"


def test_dimensions_that_the_operator_allows_are_cut_to_unit_length():
    short = post("/v1/embeddings", {"input": "a", "dimensions": 4}).json()["data"][0]["embedding"]
    assert np.allclose(short, np.array([1, 2, 3, 4]) / np.sqrt(30))
    assert len(post("/v1/embeddings", {"input": "a", "dimensions": 8}).json()["data"][0]["embedding"]) == 8


@pytest.mark.parametrize("dimensions", [3, 16, 0, -1])
def test_other_dimensions_are_refused_by_name(dimensions):
    status, param, message = error(post("/v1/embeddings", {"input": "a", "dimensions": dimensions}))
    assert (status, param) == (400, "dimensions")
    assert "4 or 8" in message or "greater than or equal to 1" in message


@pytest.mark.parametrize("value", ["hex", "", 3])
def test_another_encoding_is_refused_by_name(value):
    status, param, message = error(post("/v1/embeddings", {"input": "a", "encoding_format": value}))
    assert (status, param) == (400, "encoding_format") and "'float' or 'base64'" in message


def test_a_picture_that_cannot_be_decoded_is_named_by_its_place():
    assert error(post("/v1/embeddings", {"input": ["a", "bad"]})) == (400, "input[1]", "input[1]: cut")
    assert error(post("/v1/embeddings", {"input": "bad"})) == (400, "input", "input: cut")


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/v1/embeddings", {"input": "a", "dimension": 4}, "dimension", "did you mean dimensions?"),
        ("/v1/embeddings", {}, "input", "input is missing"),
        ("/v1/search", {"query": "a", "filters": {"kind": ["gel"]}}, "filters.kind", "did you mean kinds?"),
        ("/v1/search", {"query": "a", "filters": {"year_from": "soon"}}, "filters.year_from", "whole number"),
        ("/v1/search", {"query": "a", "filters": {"kinds": "gel"}}, "filters.kinds", "valid list"),
        ("/v1/search", {"query": "a", "k": 6}, "k", "at most 5 (serve.max_results)"),
        ("/v1/search", {"query": "a", "k": 0}, "k", "greater than or equal to 1"),
        ("/v1/search", {"query": "a", "by": "smell"}, "by", "'image', 'caption', 'words' or 'all'"),
        ("/v1/search", {"query": [["a"], "b"]}, "query[0]", "must be a string or a part, not list"),
        ("/v1/search", {"query": []}, "query", "1 to 16 parts"),
        ("/v1/search", {"query": {"text": "a", "weight": -1}}, "query.weight", "from 1e-06 to 1e+06"),
        ("/v1/search", {"query": {"text": "a", "weight": 1e7}}, "query.weight", "from 1e-06 to 1e+06"),
        ("/v1/search", {"query": {"text": "a", "weight": 1e-46}}, "query.weight", "from 1e-06 to 1e+06"),
        ("/v1/search", {"query": "a", "group": "journal"}, "group", "'article'"),
        ("/v1/search", {}, "query", "query is missing"),
        ("/v1/search", {"query": "a", "filters": {"kinds": ["x"]}}, "filters.kinds", "no such kind"),
        ("/v1/classify", {"input": "a"}, "labels", "labels is missing"),
        ("/v1/classify", {"input": "a", "labels": ["one"]}, "labels", "two or more"),
        ("/v1/classify", {"input": "a", "labels": ["one", "one"]}, "labels", "different"),
        ("/v1/classify", {"input": "a", "labels": ["x", "y"], "templates": ["none"]}, "templates", "{}"),
        ("/v1/classify", {"input": "a", "labels": ["x", "y"], "templates": ["{}"] * 5}, "labels", "10 texts"),
        ("/v1/classify", {"input": "a", "labels": ["x" * 2000, "y"]}, "labels", "1000 characters"),
        ("/v1/classify", {"input": "a", "labels": ["x", "\ud800"]}, "labels.1", "half a character"),
        ("/v1/classify", {"input": "a", "labels": ["x", "y"], "templates": ["{} \udfff"]}, "templates.0", "half a"),
    ],
)
def test_a_wrong_field_is_named_with_the_way_out(path, body, param, says):
    status, named, message = error(post(path, body))
    assert (status, named) == (400, param) and says in message


def test_a_model_that_is_not_here_is_404_as_openai_says_it():
    status, param, message = error(post("/v1/embeddings", {"input": "a", "model": "gpt"}))
    assert (status, param) == (404, "model") and "biomedclip" in message
    assert error(get("/v1/models/gpt"))[0] == 404


def test_an_unknown_route_or_method_tells_what_there_is():
    for response in (get("/v1/nothing"), get("/v1/search")):
        status, _, message = error(response)
        assert status in (404, 405) and "POST /v1/search" in message


def test_a_body_that_is_no_json_is_said_so():
    async def raw(content: bytes, kind: str) -> httpx.Response:
        transport = httpx.ASGITransport(create_app({"biomedclip": Table()}, SETTINGS))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/search", content=content, headers={"Content-Type": kind})

    assert "no JSON" in error(asyncio.run(raw(b'{"query": ', "application/json")))[2]
    assert "Content-Type: application/json" in error(asyncio.run(raw(b'{"query": "a"}', "text/plain")))[2]
    assert error(asyncio.run(raw(b"[]", "application/json")))[0] == 400


@pytest.mark.parametrize(
    ("path", "headers", "says"),
    [
        ("/v1/search", {"Content-Type": "text/plain"}, "application/json"),
        ("/v1/search", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, "as it is"),
        ("/v1/embeddings/image", {"Content-Type": "application/json"}, "image files as multipart/form-data"),
        ("/v1/embeddings/image", {}, "image files as multipart/form-data"),
    ],
)
def test_what_is_sent_as_something_else_is_415_with_what_to_send(path, headers, says):
    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(create_app({"biomedclip": Table()}, SETTINGS))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, content=b'{"query": "a"}', headers=headers)

    status, _, message = error(asyncio.run(sent()))
    assert status == 415 and says in message


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_413_with_or_without_a_declared_length(declared):
    async def parts():
        for _ in range(60):
            yield b"x" * 1000

    async def long() -> httpx.Response:
        transport = httpx.ASGITransport(create_app({"biomedclip": Table()}, SETTINGS))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/embeddings", content=b"x" * 60_000 if declared else parts())

    status, _, message = error(asyncio.run(long()))
    assert status == 413 and "50,000" in message and "serve.max_body_bytes" in message


def test_overload_is_counted_in_items_and_answered_429_with_retry_after():
    async def crowd() -> list[httpx.Response]:
        engine = Table()
        engine.gate.clear()
        asyncio.get_running_loop().call_later(0.3, engine.gate.set)
        wanted = [("POST", "/v1/embeddings", {"input": ["a"] * 5})] * 2 + [
            ("POST", "/v1/embeddings", {"input": ["a"] * 3})
        ]
        return await send(engine, *wanted)

    first, second, third = asyncio.run(crowd())
    assert (first.status_code, second.status_code, third.status_code) == (200, 429, 200)
    assert second.headers["retry-after"] == "1"
    assert "serve.resources.max_queued" in error(second)[2] and second.json()["error"]["code"] == "overloaded"


def test_what_was_refused_or_failed_takes_no_room_afterwards():
    async def again() -> list[int]:
        engine = Table()
        transport = httpx.ASGITransport(create_app({"biomedclip": engine}, SETTINGS), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            codes = []
            for body in [{"input": "crash"}, {"input": ["bad"] * 8}] * 5 + [{"input": ["a"] * 8}]:
                codes.append((await client.post("/v1/embeddings", json=body)).status_code)
            return codes

    assert asyncio.run(again()) == [500, 400] * 5 + [200]


def test_a_bug_of_ours_is_500_in_the_same_shape_and_tells_no_inside():
    status, _, message = error(post("/v1/embeddings", {"input": "crash"}))
    assert status == 500 and "ZeroDivision" not in message


def test_ready_is_503_until_the_model_answers_and_health_is_200():
    async def early() -> tuple[list[httpx.Response], list[httpx.Response]]:
        engine = Table()
        engine.gate.clear()
        before = await send(engine, ("GET", "/ready", None), ("GET", "/health", None))
        engine.gate.set()
        return before, await send(engine, ("GET", "/ready", None))

    (waiting, alive), (ready,) = asyncio.run(early())
    assert (waiting.status_code, alive.status_code, ready.status_code) == (503, 200, 200)
    assert waiting.headers["retry-after"] == "1"
    told = ready.json()
    assert 0 <= told.pop("seconds_ago") < 5
    assert told == {"status": "ready", "bundle": "b1", "application": "f1"}


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_a_monitor_may_ask_with_head(path):
    assert asyncio.run(send(Table(), ("HEAD", path, None)))[0].status_code == 200


def test_models_tells_bundle_dimensions_limits_and_what_can_be_filtered_by():
    model = get("/v1/models").json()["data"][0]
    assert (model["id"], model["object"], model["bundle"], model["dimensions"]) == ("biomedclip", "model", "b1", 8)
    index = {"figures": 1, "kinds": {"gel": 1}, "licenses": {"CC BY": 1}, "years": [2020, 2020]}
    assert model["index"] == {**index, "recall": {}, "output_recall": {"int8": 1.0}, "int8_scale": 300.0}
    assert model["limits"]["items"] == 8 and model["application"] == "f1"
    assert get("/v1/models/biomedclip").json()["bundle"] == "b1"


def test_a_search_result_links_to_the_article_and_carries_its_thumbnail():
    engine = Table()
    wanted = {"query": "gel", "k": 2, "by": "caption", "filters": {"licenses": ["CC BY"], "year_from": 2000}}
    body = asyncio.run(send(engine, ("POST", "/v1/search", wanted)))[0].json()
    (hit,) = body["data"]
    assert hit["article_url"] == "https://pmc.ncbi.nlm.nih.gov/articles/PMC123/"
    assert base64.b64decode(hit["thumbnail"].removeprefix("data:image/jpeg;base64,")) == FIGURE.thumbnail
    assert (hit["score"], hit["license"], hit["caption"]) == (0.5, "CC BY", "A gel")
    assert engine.asked == [("gel", 2, "caption", Filters(licenses=["CC BY"], year_from=2000))]


def test_a_point_of_the_map_is_told_with_four_places_and_no_more():
    assert get("/v1/map").text.startswith('{"x":[0.9],"y":[-0.25],"kind":[0],')


def test_classify_gives_each_input_a_probability_for_each_label():
    body = post("/v1/classify", {"input": ["a", "b"], "labels": ["x", "y"]}).json()
    assert [row["probabilities"] for row in body["data"]] == [{"x": 0.5, "y": 0.5}] * 2


class Tags(HTMLParser):
    """Every start tag of a page with its attributes, and the text inside script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_nothing_from_elsewhere_and_nothing_inline():
    response = get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "script-src 'self'" in policy and "img-src 'self' data:" in policy
    page = Tags()
    page.feed(response.text)
    for tag, attributes in page.tags:
        assert tag != "style" and (tag != "script" or attributes["src"].endswith(".js"))
        assert not {name for name in attributes if name.startswith("on") or name == "style"}
        for name in ("src", "href"):
            assert re.fullmatch(r"(page/|\./|#).*", attributes.get(name) or "./")


def test_the_page_acknowledges_the_national_library_of_medicine():
    text = " ".join(get("/").text.split())
    assert ACKNOWLEDGEMENT in html.unescape(text)


@pytest.mark.parametrize("name", list(PAGE))
def test_each_file_of_the_page_is_in_the_package_and_is_served(name):
    response = get(f"/page/{name}")
    written = (resources.files("biomedclip_ray.serve") / "page" / name).read_bytes()
    filled = written.replace(b"{formats}", PICKER.encode())
    assert response.content == filled.replace(b"{acknowledgement}", html.escape(ACKNOWLEDGEMENT).encode())
    assert response.headers["content-type"] == PAGE[name] and response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/page/../ingress.py", "/page/%2e%2e%2fingress.py", "/page/app.js/x", "/page/none"])
def test_no_other_file_can_be_asked_for(path):
    assert get(path).status_code == 404


def test_the_api_is_described_in_openapi():
    described = json.loads(get("/openapi.json").text)["paths"]
    assert {"/v1/embeddings", "/v1/search", "/v1/classify", "/health", "/ready", "/v1/models"} <= set(described)


def test_a_figure_of_own_data_links_nowhere():
    shown = dataclasses.replace(FIGURE, pair_id="own-x.1/f#0", article_id="own-x.1").body()
    assert shown["article_url"] is None
