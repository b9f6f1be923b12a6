"""Before Serve's proxy: with no ingress left whoever asks is refused, and served again as soon as there is one."""

import asyncio
import signal

import httpx
from starlette.responses import PlainTextResponse

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
