"""Many nodes at a source that refuses above its limit: how much of the limit is answered, and how much is lost.

    python benchmarks/pacing.py [--limits 200 1000] [--nodes 1 4 16] [--seconds 60]

All nodes together have 64 threads (each 16 at least), in a process for each, that read through `S3Bucket` from an S3
endpoint of our own, which answers N requests in each second and refuses the rest of it with 503 and Retry-After. All
share one budget, as in a run on a cluster. Prints a line for each case, and of the worst of all `answered_of_limit
ratio=X`: answered over N a second, the ramp included (or over what the same processes reach where nothing is refused,
where this machine gives less than N), and `lost ratio=X`: objects that were given up over objects asked
for. Exit 1 below 0.95 or above 0.0001.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import sys
import threading
import time
from multiprocessing.connection import Connection

import ray

from biomedclip_ray.config import SourceResources
from biomedclip_ray.sources.bucket import ObjectError
from biomedclip_ray.sources.s3 import S3Bucket

ANSWERED, LOST = 0.95, 0.0001
THREADS = 64
BODY = b"<article/>"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
REFUSAL = b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"
NO = b"HTTP/1.1 503 Slow Down\r\nRetry-After: 1\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s" % (
    len(REFUSAL),
    REFUSAL,
)


class Source(asyncio.Protocol):
    """Answers so many requests in each second of the clock."""

    limit = 0.0
    second, left, answered, refused = -1, 0.0, 0, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        *requests, self.rest = (self.rest + data).split(b"\r\n\r\n")
        for _ in requests:
            now = int(time.monotonic())
            if now != Source.second:
                Source.second, Source.left = now, Source.limit
            good = Source.left >= 1 or not Source.limit
            Source.left -= good
            Source.answered += good
            Source.refused += not good
            self.transport.write(OK if good else NO)


def serve(limit: float, told: Connection) -> None:
    """Tell the port; then, for each message, what was answered and refused since the last."""

    async def run() -> None:
        Source.limit = limit
        server = await asyncio.get_running_loop().create_server(Source, "127.0.0.1", 0, backlog=1024)
        told.send(server.sockets[0].getsockname()[1])
        while await asyncio.to_thread(told.recv):
            told.send((Source.answered, Source.refused))
            Source.answered = Source.refused = 0

    asyncio.run(run())


@ray.remote
def node(uri: str, count: int, begin: float, seconds: float) -> tuple[int, int]:
    """Objects asked for and given up by `count` threads of one node."""
    bucket = S3Bucket(uri, SourceResources(threads=count))
    bucket.get("PMC1.1/PMC1.1.xml")  # the actor that keeps the budget is a process that has to start
    time.sleep(max(0.0, begin - time.time()))
    end = begin + seconds
    asked, lost, lock = 0, 0, threading.Lock()

    def read() -> None:
        nonlocal asked, lost
        while time.time() < end:
            failed = 0
            try:
                bucket.get("PMC1.1/PMC1.1.xml")
            except ObjectError:
                failed = 1
            with lock:
                asked, lost = asked + 1, lost + failed

    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return asked, lost


def case(limit: int, nodes: int, seconds: float) -> tuple[float, float]:
    """(answered a second, share of the objects that was given up)."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(limit, theirs), daemon=True)
    server.start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    ray.init(
        "local",
        num_cpus=nodes,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": environment},
    )
    try:
        begin = time.time() + 15 + 2 * nodes  # until all processes are up
        tasks = [
            node.remote(f"s3://limit-{limit}-nodes-{nodes}", max(16, THREADS // nodes), begin, seconds)
            for _ in range(nodes)
        ]
        time.sleep(begin + seconds - time.time())
        ours.send(True)
        answered, refused = ours.recv()
        counts = ray.get(tasks)
    finally:
        ray.shutdown()
        server.kill()
    asked, lost = (sum(count) for count in zip(*counts, strict=True))
    print(
        f"limit={limit or 'none'} nodes={nodes}: answered {answered / seconds:.0f}/s, refused "
        f"{refused / seconds:.1f}/s, lost {lost} of {asked}",
        flush=True,
    )
    return answered / seconds, lost / asked


def of_limit(limit: int, nodes: int, seconds: float) -> tuple[float, float]:
    """(answered of the limit, or of what this machine's processes reach where nothing is refused if that is less; share
    of the objects that was given up).
    """
    rate, lost = case(limit, nodes, seconds)
    if rate >= ANSWERED * limit:
        return rate / limit, lost
    reached, _ = case(0, nodes, min(seconds, 20.0))
    print(f"  ceiling of this machine with {nodes} processes: {reached:.0f}/s", flush=True)
    return rate / min(limit, reached), lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    found = [of_limit(limit, nodes, options.seconds) for limit in options.limits for nodes in options.nodes]
    answered, lost = min(share for share, _ in found), max(lost for _, lost in found)
    print(f"answered_of_limit ratio={answered:.3f} bound={ANSWERED}")
    print(f"lost ratio={lost:.5f} bound<={LOST:.4f}")
    return int(answered < ANSWERED or lost > LOST)


if __name__ == "__main__":
    sys.exit(main())
