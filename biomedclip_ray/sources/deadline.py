"""A deadline for a whole HTTP exchange of boto3. Its time-outs are for silence: a byte a second would go on for ever.

A watchman shuts down the socket that the exchange waits on, whatever it waits for: status, headers, body. A thread that
only stops waiting would leave the socket, and another thread with it, to the server's mercy. There is one watchman a
process: a timer for each exchange would be a thread for each, and cost half of what a small object costs.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool, AWSHTTPSConnection, AWSHTTPSConnectionPool

from biomedclip_ray.run.private import connect_with

_waiting = threading.local()


class _Exchange:
    """What one thread waits for at present."""

    def __init__(self) -> None:
        self.over = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def waits_on(self, sock: socket.socket) -> None:
        """Raises TimeoutError where the time is up already."""
        with self._lock:
            if self.over:
                raise TimeoutError("the deadline is over")
            self._socket = sock

    def cut(self) -> None:
        with self._lock:
            self.over = True
            if self._socket is not None:
                # not SSLSocket's own, which lets go of the decryption under the thread that reads
                with suppress(OSError):  # closed already
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Watchman:
    """A thread that cuts exchanges off when their time is up, within a tenth of a second; it sleeps where there are
    none.
    """

    def __init__(self) -> None:
        self._moments: dict[_Exchange, float] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, exchange: _Exchange, moment: float) -> None:
        with self._changed:
            self._moments[exchange] = moment
            if self._thread is None or not self._thread.is_alive():  # a forked process has none
                self._thread = threading.Thread(target=self._watch, name="deadlines", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, exchange: _Exchange) -> None:
        with self._changed:
            del self._moments[exchange]

    def _watch(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._moments)
                now = time.monotonic()
                late = [exchange for exchange, moment in self._moments.items() if moment <= now]
            for exchange in late:
                exchange.cut()
            time.sleep(0.1)


_watchman = _Watchman()


@contextmanager
def until(moment: float) -> Iterator[None]:
    """What this thread asks of a client that is `watched`, ends at `moment` (of time.monotonic), give or take a tenth
    of a second.

    Raises:
        TimeoutError: it was cut there. An answer cut in its headers may look whole, and is none.
    """
    exchange = _Exchange()
    _watchman.add(exchange, moment)
    _waiting.exchange = exchange
    try:
        yield
    except Exception as error:
        if exchange.over:
            raise TimeoutError("still arriving at the deadline") from error
        raise
    finally:
        _watchman.remove(exchange)
        _waiting.exchange = None
    if exchange.over:
        raise TimeoutError("still arriving at the deadline")


def watched(client: Any) -> Any:
    """A boto3 client, made to obey `until`."""
    connect_with(client, http=_Pool, https=_SecurePool)
    return client


class _Watched:
    """A connection that tells its thread's exchange about its socket before it waits for an answer."""

    sock: socket.socket

    def getresponse(self) -> Any:
        exchange: _Exchange | None = getattr(_waiting, "exchange", None)
        if exchange is not None:
            exchange.waits_on(self.sock)
        return super().getresponse()  # type: ignore[misc]


class _Connection(_Watched, AWSHTTPConnection):
    pass


class _SecureConnection(_Watched, AWSHTTPSConnection):
    pass


class _Pool(AWSHTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(AWSHTTPSConnectionPool):
    ConnectionCls = _SecureConnection
