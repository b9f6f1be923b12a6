"""Who may ask: keys with scopes and quotas, names of this host, and nobody from elsewhere where neither is set.

A server that listens for other machines and knows no key answers this machine alone, until the operator names keys or
says `serve.access.open=true`. Keys are random and long, so a plain SHA-256 at rest is enough; quotas are counted in
each ingress process for itself.

    python -m biomedclip_ray.serve.access NAME     makes a key, and the lines for the configuration
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
import secrets
import sys
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from biomedclip_ray.config import Access, ApiKey
from biomedclip_ray.serve.errors import Refusal, error_response
from biomedclip_ray.serve.observe import notes

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SCOPES = {
    "/v1/search": "search",
    "/v1/map": "search",
    "/v1/models": None,
    "/v1": "embed",
    "/mcp": "search",
    "/metrics": "admin",
}
"""What a path needs, by the first beginning that fits; None: any key. Other paths are the page, its files, /health,
/ready: no key. A route of /v1 that is not named here is shut, not open.
"""


class Guard:
    """Answers 400, 401, 403 and 429 for those who may not ask, or not so much."""

    def __init__(self, app: ASGIApp, access: Access, host: str) -> None:
        """`host`: the address that the server listens on."""
        self.app, self.access = app, access
        names = access.hosts or (LOOPBACK if is_loopback(host) else ("*",))
        self._hosts = [
            re.compile(".*" if name == "*" else re.escape(name).replace(r"\*", r"[\w.-]*") + r"(:\d+)?", re.IGNORECASE)
            for name in names
        ]
        self._quotas = {key.name: Quota(key) for key in access.keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._let_in(scope)
        except Refusal as refusal:
            await error_response(refusal)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _let_in(self, scope: Scope) -> None:
        """Raises Refusal."""
        headers = dict(scope["headers"])
        path = scope["path"]
        needs = next((s for start, s in SCOPES.items() if path == start or path.startswith(start + "/")), "nothing")
        if path not in ("/health", "/ready"):  # those that watch ask by an address
            self._check_host(headers.get(b"host", b"").decode("latin-1"))
        if needs == "nothing":
            return
        if not self.access.keys:
            client = scope.get("client")
            if not (self.access.open or (client and is_loopback(client[0]))):
                raise Refusal(
                    "this server knows no API keys and is not open to other machines; its operator names keys "
                    "(serve.access.keys), or sets serve.access.open=true behind a gateway that asks who comes",
                    status=403,
                    code="not_open",
                )
            return
        key = self._key(headers.get(b"authorization", b"").decode("latin-1"))
        noted = notes()
        noted.key = key.name
        if needs is not None and needs not in key.scopes:
            raise Refusal(f"this key has no scope {needs!r}; it has {', '.join(key.scopes)}", status=403, code="scope")
        quota = self._quotas[key.name]
        quota.requests.take(1, f"requests_per_minute={key.requests_per_minute} of key {key.name}")
        noted.spend = lambda items: quota.items.take(
            items, f"items_per_minute={key.items_per_minute} of key {key.name}"
        )

    def _check_host(self, name: str) -> None:
        if not any(pattern.fullmatch(name) for pattern in self._hosts):
            raise Refusal(
                f"this server is not called {name!r}; its operator names the hosts it answers to (serve.access.hosts)",
                code="unknown_host",
            )

    def _key(self, header: str) -> ApiKey:
        kind, _, given = header.partition(" ")
        digest = hashlib.sha256(given.strip().encode("latin-1")).hexdigest()
        found = None
        for key in self.access.keys:  # all are compared, so that time tells nothing
            if hmac.compare_digest(digest, key.sha256):
                found = key
        if kind.lower() != "bearer" or found is None:
            what = "wrong API key" if header else "no API key"
            raise Refusal(
                f"{what}; send the header Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found


class Quota:
    """What one key has left."""

    def __init__(self, key: ApiKey) -> None:
        self.requests, self.items = Bucket(key.requests_per_minute), Bucket(key.items_per_minute)


class Bucket:
    """So many a minute, which come back evenly; None: without end."""

    def __init__(self, a_minute: int | None) -> None:
        self.a_minute = a_minute
        self.left = float(a_minute or 0)
        self.seen = time.monotonic()

    def take(self, amount: int, what: str) -> None:
        """Raises Refusal: 429 with the seconds after which there are enough, 400 when there never will be."""
        if self.a_minute is None:
            return
        now = time.monotonic()
        self.left = min(self.a_minute, self.left + (now - self.seen) * self.a_minute / 60)
        self.seen = now
        if amount > self.a_minute:
            raise Refusal(f"{amount} are more than {what} ever allows: send smaller requests", code="over_quota")
        if amount > self.left:
            wait = math.ceil((amount - self.left) * 60 / self.a_minute)
            raise Refusal(f"{what} is used up", status=429, code="quota", retry_after=wait)
        self.left -= amount


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine alone."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def main(name: str) -> None:
    """Print a new key, and what the configuration says of it."""
    key = "bmc-" + secrets.token_urlsafe(32)
    print(f"The key, shown this once: {key}\nIn the configuration, below serve.access.keys:")
    print(f"  - {{name: {name}, sha256: {hashlib.sha256(key.encode()).hexdigest()}, scopes: [embed, search]}}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "me")
