"""Whether an engine is still there: a byte every fifth of a second over a plain connection, engine to ingress; and
whether an ingress is, for the proxies before it (`gate.py`).

Ray notices a dead node after some 20 s, and until then every call to it hangs. A broken connection says it at once.
After `silence_s` without a byte its node is asked for a connection, which the kernel gives even where a busy machine
leaves the engine itself no time: where it does not, or after `hung_s`, what waits gets 503. An engine that ends on
purpose says so first: nobody waits for it. The bytes come from a thread of their own: a long batch is no silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from biomedclip_ray.serve.errors import Refusal, unavailable

log = logging.getLogger("ray.serve")

T = TypeVar("T")
Address = tuple[str, int]

BEAT_S = 0.2
BEAT, BYE = b".", b"x"
FAREWELL_S = 2.0
KNOCK_S = 0.25
LOOK_S = 0.25
LOOK_AGAIN_S = 0.5
GIVE_UP_LOOK_S = 5.0


class Beacon:
    """The engine's side."""

    def __init__(self, host: str) -> None:
        """`host`: this node's address, as other nodes know it."""
        self._listener = socket.create_server((host, 0))
        self.address: Address = (host, self._listener.getsockname()[1])
        self._over = threading.Event()
        self._beats: set[threading.Thread] = set()
        threading.Thread(target=self._accept, name="beacon", daemon=True).start()

    def close(self) -> None:
        """Say farewell to all that listen, and return when it is said: the process may end then."""
        self._over.set()
        self._listener.close()
        for beat in tuple(self._beats):
            beat.join(FAREWELL_S)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            beat = threading.Thread(target=self._beat, args=(connection,), name="beat", daemon=True)
            self._beats.add(beat)
            beat.start()

    def _beat(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # who listened went away
            connection.settimeout(BEAT_S)
            while not self._over.is_set():
                connection.sendall(BEAT)
                self._over.wait(BEAT_S)
            connection.sendall(BYE)
        self._beats.discard(threading.current_thread())


class Pulse:
    """The ingress' side: which engines live, and an end to waiting when none does."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Address | None]],
        silence_s: float,
        hung_s: float,
        look_s: float = LOOK_S,
        who: str = "the model's process",
    ) -> None:
        """`look` asks any engine where it beats; it may hang or fail while there is none. `silence_s`: seconds without
        a byte after which its node is asked, `hung_s`: after which its process is taken for hung. `look_s`: seconds in
        which another must answer before all are called lost. `who`: what beats, for messages.
        """
        self._look, self._silence_s, self._hung_s, self._look_s, self._who = look, silence_s, hung_s, look_s, who
        self._known: dict[Address, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lost = asyncio.Event()

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def heard(self, address: Address | None) -> None:
        """An answer came from this engine."""
        if address is None:
            return
        self._lost.clear()
        if address not in self._known:
            self._known[address] = self._start(self._listen(address))

    async def guard(self, work: Awaitable[T]) -> T:
        """The answer; raises Refusal (503) as soon as there is nobody who could give it."""
        answer = asyncio.ensure_future(work)
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((answer, lost), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise unavailable(f"{self._who} went away and is being replaced; try again shortly")
        finally:
            lost.cancel()
            answer.cancel()

    async def _listen(self, address: Address) -> None:
        said_bye = False
        try:
            async with asyncio.timeout(self._hung_s):
                reader, writer = await asyncio.open_connection(*address)
            try:
                said_bye = await self._follow(reader, address)
            finally:
                writer.close()
        except (OSError, TimeoutError):
            log.warning("no sign of life from %s at %s:%d", self._who, *address)
        del self._known[address]
        if not self._known:
            self._start(self._search(gone=not said_bye))

    async def _follow(self, reader: asyncio.StreamReader, address: Address) -> bool:
        """Listen until the end, and whether it was a farewell; raises TimeoutError where it is silence."""
        silences = 0  # counted, for a clock would also count what this very process was given no time for
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    beat = await reader.read(64)
            except TimeoutError:
                silences += 1
                if silences * self._silence_s >= self._hung_s or not await asyncio.to_thread(_reachable, address):
                    raise
                continue
            if not beat or BYE in beat:
                return BYE in beat
            silences = 0

    async def _search(self, gone: bool) -> None:
        """Look for an engine until one answers; where the last one ended without farewell, all are lost meanwhile."""
        first = self._start(self._ask())
        await asyncio.wait((first,), timeout=self._look_s)
        while not self._known:
            if gone and not self._lost.is_set():
                log.error("%s went away and no other answers; requests get 503 until one does", self._who)
                self._lost.set()
            self._start(self._ask())
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _ask(self) -> None:
        with contextlib.suppress(Refusal, TimeoutError):
            async with asyncio.timeout(GIVE_UP_LOOK_S):
                self.heard(await self._look())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _reachable(address: Address) -> bool:
    """Whether the machine takes a connection for the process that listens there."""
    try:
        socket.create_connection(address, KNOCK_S).close()
    except OSError:
        return False
    return True
