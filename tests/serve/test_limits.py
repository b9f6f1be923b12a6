"""Bodies that come too slowly, nest too deeply or are too many at once; items that share batches."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from biomedclip_ray.config import Serve, ServeResources
from biomedclip_ray.serve.batching import Batcher
from biomedclip_ray.serve.ingress import create_app
from tests.serve.live import running
from tests.serve.test_ingress import Table


def test_a_client_that_sends_its_body_byte_by_byte_ends_with_408_after_the_stated_time():
    settings = Serve(resources=ServeResources(body_timeout_s=1.0))
    with running(create_app({"biomedclip": Table()}, settings)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
            stop = threading.Event()

            def drip() -> None:
                while not stop.wait(0.2):
                    try:
                        slow.sendall(b" ")
                    except OSError:
                        return

            dripping = threading.Thread(target=drip)
            dripping.start()
            slow.settimeout(30)
            answer = b""
            while b"body_timeout_s" not in answer and (chunk := slow.recv(4096)):
                answer += chunk
            stop.set()
            dripping.join()
        assert answer.startswith(b"HTTP/1.1 408") and b'"code": "too_slow"' in answer
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "after"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("[" * 100_000, 400),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, 400),
        ('{"input": "' + "[{" * 1000 + '"}', 200),
        ('{"input": "\\"[[[[[[[[[[[[[[[[[[[[[[["}', 200),
        (json.dumps({"input": [{"type": "text", "text": "a"}] * 200}), 200),
    ],
    ids=["lists", "objects", "brackets in a text", "behind a quote", "many beside each other"],
)
def test_brackets_in_brackets_are_counted_before_anything_parses_them(body, status):
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(create_app({"biomedclip": Table()}, Serve()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})

    answer = asyncio.run(go())
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["code"] == "too_deep" and "serve.max_depth" in answer.json()["error"]["message"]


class Work:
    """Doubles numbers, slowly; keeps what it was given together."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def __call__(self, numbers: list[int]) -> list[int]:
        self.batches.append(numbers)
        time.sleep(0.05)
        if 13 in numbers:
            raise ValueError("thirteen")
        return [2 * number for number in numbers]


def test_what_comes_while_one_batch_computes_is_the_next_and_each_gets_its_own_answer():
    async def go() -> None:
        work = Work()
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(work, pool, 8)
            first = asyncio.create_task(batcher(0))
            await asyncio.sleep(0.01)
            others = [asyncio.create_task(batcher(n)) for n in range(1, 12)]
            assert await asyncio.gather(first, *others) == [2 * n for n in range(12)]
            assert work.batches == [[0], list(range(1, 9)), [9, 10, 11]]
            assert await batcher(50) == 100

    asyncio.run(go())


def test_a_batch_that_fails_fails_for_its_own_and_the_next_goes_on():
    async def go() -> None:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(Work(), pool, 2)
            answers = await asyncio.gather(*(batcher(n) for n in (13, 1, 2, 3)), return_exceptions=True)
            assert [type(answer) for answer in answers] == [ValueError, ValueError, int, int]

    asyncio.run(go())


def test_where_more_wait_than_a_batch_takes_the_oldest_goes_with_those_of_its_size():
    async def go() -> None:
        work = Work()
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(work, pool, 3, size=lambda number: number)
            first = asyncio.create_task(batcher(0))
            await asyncio.sleep(0.01)
            others = [asyncio.create_task(batcher(n)) for n in (50, 1, 2, 51, 3, 49, 4)]
            assert await asyncio.gather(first, *others) == [0, 100, 2, 4, 102, 6, 98, 8]
            assert work.batches == [[0], [50, 51, 49], [1, 2, 3], [4]]

    asyncio.run(go())


def test_who_hung_up_is_not_computed_for():
    async def go() -> None:
        work = Work()
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(work, pool, 4)
            first = asyncio.create_task(batcher(1))
            await asyncio.sleep(0.01)
            gone, stays = asyncio.create_task(batcher(2)), asyncio.create_task(batcher(3))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.gather(first, stays)
            assert work.batches == [[1], [3]]

    asyncio.run(go())


def test_a_batch_waits_for_items_that_are_on_their_way_and_for_no_others():
    async def go() -> None:
        work, coming = Work(), 1
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(work, pool, 4, wait_s=30.0, coming=lambda: coming)
            first = asyncio.create_task(batcher(1))
            await asyncio.sleep(0.05)
            assert work.batches == []
            coming = 0
            assert await asyncio.gather(batcher(2), first) == [4, 2]
            assert work.batches == [[1, 2]]

    asyncio.run(go())
