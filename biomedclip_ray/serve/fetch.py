"""Images that lie at an https address: fetched only from hosts that the operator names, and never from inside his
network.

A name is resolved once, every address it has must be a public one, and the connection goes to that address: whoever
owns the name cannot answer "public" first and "169.254.169.254" after. Redirects are followed by hand, each checked
anew.
"""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import socket
import ssl
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

import httpx

from biomedclip_ray.config import Serve
from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.inputs import FORM, Fetch, read_file

REDIRECTS = 3
AT_ONCE = 8
_MOVED = (301, 302, 303, 307, 308)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, also where IPv6 wraps an IPv4 one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class Fetcher:
    """Gets images for one ingress."""

    def __init__(
        self,
        settings: Serve,
        allowed: Callable[[str], bool] = is_public,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        """`allowed` says which IP addresses may be asked; `verify` as httpx has it."""
        self.settings, self.allowed, self.verify = settings, allowed, verify
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def get(self, wanted: Fetch) -> bytes:
        """The checked bytes. Raises Refusal that names the item and what went wrong, and never what the
        host answered.
        """
        seconds = self.settings.fetch_timeout_s
        try:
            async with asyncio.timeout(seconds), self._slots:
                data = await self._follow(wanted)
        except TimeoutError as error:
            raise self._failed(wanted, f"took more than {seconds:g} s (serve.fetch_timeout_s)") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise self._failed(wanted, f"cannot be fetched ({type(error).__name__})") from error
        return read_file(data, wanted.param, self.settings)

    async def _follow(self, wanted: Fetch) -> bytes:
        address = wanted.address
        # no environment: a proxy there would resolve the name again
        async with httpx.AsyncClient(
            verify=self.verify, trust_env=False, timeout=self.settings.fetch_timeout_s
        ) as client:
            for _ in range(REDIRECTS + 1):
                host, pinned = await self._resolved(address, wanted)
                request = client.build_request(
                    "GET",
                    pinned,
                    headers={"Host": host, "Accept": "image/*"},
                    extensions={"sni_hostname": host.split(":")[0]},
                )
                answer = await client.send(request, stream=True)
                try:
                    if answer.status_code in _MOVED and "location" in answer.headers:
                        address = urljoin(address, answer.headers["location"])
                        continue
                    if answer.status_code != 200:
                        raise self._failed(wanted, f"was answered with {answer.status_code}")
                    return await self._body(answer, wanted)
                finally:
                    await answer.aclose()
        raise self._failed(wanted, f"led through more than {REDIRECTS} redirects")

    async def _resolved(self, address: str, wanted: Fetch) -> tuple[str, str]:
        """(host as the server knows it, the address with its IP address in place of the name)."""
        parts = urlsplit(address)
        name = (parts.hostname or "").rstrip(".").lower()
        if parts.scheme != "https" or parts.username or parts.password:
            raise self._failed(wanted, "is, or leads to, none of https")
        if not any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in self.settings.fetch_hosts):
            raise self._failed(wanted, "is at, or leads to, a host that is not on the list (serve.fetch_hosts)")
        port = parts.port or 443
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        ips = [str(entry[4][0]) for entry in found]
        if not ips or not all(self.allowed(ip) for ip in ips):
            raise self._failed(wanted, "is at, or leads to, an address that is not a public one")
        ip = ips[0]
        shown = f"[{ip}]" if ":" in ip else ip
        host = name if port == 443 else f"{name}:{port}"
        return host, parts._replace(netloc=f"{shown}:{port}", fragment="").geturl()

    async def _body(self, answer: httpx.Response, wanted: Fetch) -> bytes:
        data = bytearray()
        async for chunk in answer.aiter_bytes():
            data += chunk
            if len(data) > self.settings.fetch_max_bytes:
                raise self._failed(
                    wanted, f"has more than {self.settings.fetch_max_bytes:,} bytes (serve.fetch_max_bytes)"
                )
        return bytes(data)

    @staticmethod
    def _failed(wanted: Fetch, why: str) -> Refusal:
        return Refusal(f"{wanted.param}: the address {why}; or {FORM}", param=wanted.param, code="fetch_failed")
