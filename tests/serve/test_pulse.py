"""Signs of life between engine and ingress: a farewell is no loss, a broken line is one at once, silence is one where
the node is silent too, or where it lasts.
"""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.pulse import Address, Pulse

PROGRAM = """
import os, sys
from biomedclip_ray.serve.pulse import Beacon
beacon = Beacon("127.0.0.1")
print(beacon.address[1], flush=True)
sys.stdin.readline()
beacon.close()
os._exit(0)
"""


class Process:
    """An engine in a process of its own, as far as its heart goes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.address: Address = ("127.0.0.1", int(self._process.stdout.readline()))

    def farewell(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def engine() -> Iterator[Process]:
    process = Process()
    yield process
    process.close()


async def never() -> None:
    await asyncio.Event().wait()


async def refused(pulse: Pulse) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await pulse.guard(never())
    return caught.value


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_who_waits_for_an_engine_that_is_gone_gets_503_and_so_does_who_comes(engine, number):
    async def go() -> None:
        pulse = Pulse(never, silence_s=0.5, hung_s=1.0)
        pulse.heard(engine.address)
        waiting = asyncio.create_task(refused(pulse))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        engine.signal(number)
        refusal = await asyncio.wait_for(waiting, 20)
        assert (refusal.status, refusal.retry_after) == (503, 1) and pulse.lost
        assert (await refused(pulse)).status == 503

    asyncio.run(go())


def test_an_engine_that_is_given_no_time_is_waited_for_and_nobody_is_refused(engine):
    async def go() -> None:
        pulse = Pulse(never, silence_s=0.3, hung_s=60)
        pulse.heard(engine.address)
        await asyncio.sleep(0.5)
        waiting = asyncio.create_task(refused(pulse))
        engine.signal(signal.SIGSTOP)
        await asyncio.sleep(2)
        engine.signal(signal.SIGCONT)
        await asyncio.sleep(0.5)
        assert not pulse.lost and not waiting.done()
        engine.signal(signal.SIGKILL)
        assert (await asyncio.wait_for(waiting, 20)).status == 503

    asyncio.run(go())


DEAD_NODE = """
import asyncio, subprocess
from biomedclip_ray.serve.pulse import Pulse
from tests.serve.test_pulse import Process, never, refused

async def go():
    pulse = Pulse(never, silence_s=0.5, hung_s=600)
    pulse.heard(engine.address)
    await asyncio.sleep(0.5)
    waiting = asyncio.create_task(refused(pulse))
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    print((await asyncio.wait_for(waiting, 60)).status)

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
engine = Process()
asyncio.run(go())
engine.close()
"""


def test_a_node_that_is_cut_off_is_lost_although_its_process_says_nothing_of_it():
    alone = ("unshare", "--map-root-user", "--net")  # a network of its own, to switch off
    able = shutil.which("unshare") and shutil.which("ip")
    if not able or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    ended = subprocess.run([*alone, sys.executable, "-c", DEAD_NODE], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "503\n", ended.stderr


def test_an_engine_that_took_over_is_found_and_nobody_is_refused(engine):
    other = Process()

    async def go() -> None:
        async def look() -> Address:
            return other.address

        pulse = Pulse(look, silence_s=5.0, hung_s=5.0)
        pulse.heard(engine.address)
        await asyncio.sleep(0.5)
        waiting = asyncio.create_task(refused(pulse))
        engine.signal(signal.SIGKILL)
        await asyncio.sleep(1)
        assert not pulse.lost and not waiting.done()
        waiting.cancel()

    asyncio.run(go())
    other.close()


def test_an_engine_that_says_farewell_makes_nobody_refuse(engine):
    async def go() -> None:
        pulse = Pulse(never, silence_s=5.0, hung_s=5.0)
        pulse.heard(engine.address)
        await asyncio.sleep(0.5)
        engine.farewell()
        waiting = asyncio.create_task(refused(pulse))
        await asyncio.sleep(1)
        assert not pulse.lost and not waiting.done()
        waiting.cancel()

    asyncio.run(go())


def test_requests_are_taken_again_as_soon_as_an_engine_answers(engine):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = nobody.getsockname()

    async def go() -> None:
        found = asyncio.Event()

        async def look() -> Address:
            await found.wait()
            return engine.address

        async def answer() -> str:
            await asyncio.sleep(0)
            return "here"

        pulse = Pulse(look, silence_s=5.0, hung_s=5.0)
        pulse.heard(address)
        assert (await asyncio.wait_for(refused(pulse), 20)).status == 503
        found.set()
        while pulse.lost:
            await asyncio.sleep(0.05)
        assert await pulse.guard(answer()) == "here"

    asyncio.run(go())
