"""Before Serve's proxy: with no ingress left whoever asks is refused, and served again as soon as there is one."""

import asyncio
import signal
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from biomedclip_ray.serve.gate import HEADER, Gate, Told
from tests.serve.test_pulse import Process, never


class Proxy:
    """What Serve's proxy does: hands on to an ingress, and holds what comes while there is none."""

    def __init__(self) -> None:
        self.ingress: Told | None = None

    def begin(self) -> Process:
        process = Process()
        self.ingress = Told(PlainTextResponse("answered"), process)
        return process

    async def __call__(self, scope, receive, send):
        if self.ingress is None:
            await never()
        await self.ingress(scope, receive, send)


@pytest.mark.parametrize(
    ("status", "seen", "code", "retry_after"),
    [
        (500, 503, "unavailable", "1"),
        (503, 503, "unavailable", "1"),
        (429, 429, "overloaded", "1"),
        (404, 404, "unknown_route", None),
    ],
)
def test_what_the_proxy_says_itself_has_the_shape_of_all_errors_and_tells_no_inside(status, seen, code, retry_after):
    async def ask() -> httpx.Response:
        proxy = PlainTextResponse("The actor died: ip=10.0.0.7 pid=4711", status)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Gate(proxy)), base_url="http://gate") as client:
            return await client.get("/v1/models")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers.get("retry-after")) == (seen, retry_after)
    error = answer.json()["error"]
    assert "10.0.0.7" not in answer.text and error["code"] == code


def test_an_error_of_an_ingress_is_handed_on_as_it_is():
    async def ask(ingress: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Gate(ingress)), base_url="http://gate") as client:
            return await client.get("/")

    process = Process()
    for ingress in (Told(PlainTextResponse("a fault", 500), process), JSONResponse({"error": "a fault"}, 500)):
        answer = asyncio.run(ask(ingress))
        assert answer.status_code == 500 and "a fault" in answer.text
    process.close()


def test_with_no_ingress_left_requests_get_503_until_one_is_back():
    async def go() -> None:
        proxy = Proxy()
        first = proxy.begin()
        transport = httpx.ASGITransport(Gate(proxy))
        async with httpx.AsyncClient(transport=transport, base_url="http://gate", timeout=60) as client:
            answer = await client.get("/")
            assert (answer.text, HEADER.decode() in answer.headers) == ("answered", False)
            proxy.ingress = None
            waiting = asyncio.create_task(client.get("/"))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            first.signal(signal.SIGKILL)
            for refused in (await waiting, await client.get("/")):
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                assert "went away and is being replaced" in refused.json()["error"]["message"]
            second = proxy.begin()
            while (answer := await client.get("/")).status_code == 503:
                await asyncio.sleep(0.1)
            assert answer.text == "answered"
        first.close()
        second.close()

    asyncio.run(asyncio.wait_for(go(), 60))
