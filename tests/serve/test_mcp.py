"""The search as an agent's tool: over HTTP as the server has it, and as a program that the agent starts."""

import asyncio
import base64
import sys
from typing import Any

import httpx
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from biomedclip_ray.config import Access, ApiKey, Serve
from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.ingress import create_app
from biomedclip_ray.serve.mcp import remote_search
from biomedclip_ray.serve.schemas import SearchBody
from tests.serve.live import KEY, KEY_SHA256, running
from tests.serve.test_ingress import FIGURE, Table

ASKED = {"query": "a gel", "k": 3, "by": "caption", "licenses": ["CC BY"], "year_from": 2000}


async def call(client: Client, arguments: dict[str, Any]) -> Any:
    async with client:
        tools = await client.list_tools()
        assert [tool.name for tool in tools.tools] == ["search_figures"]
        return await client.call_tool("search_figures", arguments)


def over_http(url: str, arguments: dict[str, Any], key: str | None = None) -> Any:
    async def go() -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(headers=headers) as http:
            return await call(Client(streamable_http_client(f"{url}/mcp", http_client=http)), arguments)

    return asyncio.run(go())


def check(result: Any) -> None:
    assert not result.is_error
    (figure,) = result.structured_content["figures"]
    assert (figure["pair_id"], figure["caption"], figure["license"]) == (FIGURE.pair_id, "A gel", "CC BY")
    assert figure["link"] == "https://pmc.ncbi.nlm.nih.gov/articles/PMC123/" and figure["article"] == "T, J, 2020"
    text, shown, image = result.content
    assert "1 figures" in text.text and "licence: CC BY" in shown.text and figure["link"] in shown.text
    assert base64.b64decode(image.data) == FIGURE.thumbnail and image.mime_type == "image/jpeg"


def test_an_agent_finds_a_figure_with_its_licence_link_and_thumbnail_over_http():
    engine = Table()
    with running(create_app({"biomedclip": engine}, Serve())) as url:
        check(over_http(url, ASKED))
    (asked,) = engine.asked
    assert asked[:3] == ("a gel", 3, "caption")
    assert (asked[3].licenses, asked[3].year_from) == (("CC BY",), 2000)


def test_nobody_holds_a_stream_open_on_which_nothing_comes():
    with running(create_app({"biomedclip": Table()}, Serve())) as url:
        for method in ("GET", "DELETE"):
            answer = httpx.request(method, f"{url}/mcp", headers={"Accept": "text/event-stream"}, timeout=30)
            assert (answer.status_code, answer.json()["error"]["code"]) == (405, "unknown_method")


def test_an_agent_is_told_where_a_gateway_answers_instead_of_the_server():
    async def gateway(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 502, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": b"<h1>Bad Gateway</h1>"})

    async def ask(url: str) -> None:
        await remote_search(url, None)(SearchBody(query="a gel"))

    with running(gateway) as url, pytest.raises(Refusal, match="answers 502 and no JSON of ours"):
        asyncio.run(ask(url))


def test_an_agent_finds_a_figure_by_a_program_that_it_starts():
    async def go(url: str) -> Any:
        program = StdioServerParameters(command=sys.executable, args=["-m", "biomedclip_ray.serve.mcp", url])
        return await call(Client(stdio_client(program)), ASKED)

    with running(create_app({"biomedclip": Table()}, Serve())) as url:
        check(asyncio.run(go(url)))


def test_what_is_wrong_with_a_question_reaches_the_agent():
    with running(create_app({"biomedclip": Table()}, Serve())) as url:
        result = over_http(url, {"query": "a gel", "kinds": ["x"]})
        assert result.is_error and "no such kind" in result.content[0].text
        assert "base64" in over_http(url, {"query": "https://example.org/a.png"}).content[0].text
        assert over_http(url, {"query": "a gel", "k": 5000}).is_error


def test_where_keys_are_asked_for_an_agent_needs_one_too():
    access = Access(keys=(ApiKey(name="agent", sha256=KEY_SHA256),))
    with running(create_app({"biomedclip": Table()}, Serve(access=access))) as url:
        assert httpx.post(f"{url}/mcp", json={}).status_code == 401
        check(over_http(url, ASKED, KEY))
