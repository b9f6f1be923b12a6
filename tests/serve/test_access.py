"""Who may ask, by which name, from where, and how much."""

import asyncio
import hashlib
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest
import yaml
from pydantic import ValidationError

from biomedclip_ray.config import Access, ApiKey, Serve, ServeResources
from biomedclip_ray.serve.access import Bucket, is_loopback
from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.ingress import create_app
from tests.serve.live import KEY, KEY_SHA256
from tests.serve.test_ingress import Table, error

ASKED = {"input": "a gel"}


def asked(
    settings: Serve,
    method: str = "POST",
    path: str = "/v1/embeddings",
    body: Any = None,
    headers: dict[str, str] | None = None,
    client: str = "127.0.0.1",
    host: str = "localhost:8000",
    times: int = 1,
) -> list[httpx.Response]:
    async def go() -> list[httpx.Response]:
        app = create_app({"biomedclip": Table()}, settings)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers) as http:
            content = ASKED if body is None and method == "POST" else body
            return [await http.request(method, path, json=content) for _ in range(times)]

    return asyncio.run(go())


def keyed(**options: Any) -> Serve:
    return Serve(access=Access(keys=(ApiKey(name="lab", sha256=KEY_SHA256, **options),)))


def bearer(key: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_opens_what_its_scopes_name_and_nothing_else():
    embeds = keyed(scopes=("embed",))
    assert asked(embeds, headers=bearer())[0].status_code == 200
    (refused,) = asked(embeds, path="/v1/search", body={"query": "a"}, headers=bearer())
    assert error(refused)[0] == 403 and "'search'" in error(refused)[2]
    assert refused.json()["error"]["type"] == "permission_error"
    assert asked(embeds, "GET", "/metrics", headers=bearer())[0].status_code == 403
    assert asked(embeds, "GET", "/v1/models", headers=bearer())[0].status_code == 200
    assert asked(keyed(scopes=("admin",)), "GET", "/metrics", headers=bearer())[0].status_code == 200


def test_a_route_of_v1_that_nobody_gave_a_scope_is_shut():
    app = create_app({"biomedclip": Table()}, keyed(scopes=("search",)))
    app.add_api_route("/v1/new", lambda: {"secret": 1})

    async def go(**headers: str) -> int:
        transport = httpx.ASGITransport(app, client=("10.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
            return (await http.get("/v1/new")).status_code

    assert asyncio.run(go()) == 401 and asyncio.run(go(**bearer())) == 403


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer(KEY_SHA256), {"Authorization": KEY}, bearer("")])
def test_without_the_right_key_the_answer_is_401_as_openais_clients_read_it(headers):
    (answer,) = asked(keyed(), headers=headers)
    assert error(answer)[0] == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error" and answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/health", "/ready"])
def test_the_page_and_those_that_watch_need_no_key(path):
    assert asked(keyed(), "GET", path)[0].status_code == 200


def test_quotas_are_429_with_the_seconds_to_wait():
    few = asked(keyed(requests_per_minute=2), headers=bearer(), times=3)
    assert [answer.status_code for answer in few] == [200, 200, 429]
    assert 1 <= int(few[2].headers["retry-after"]) <= 30 and "requests_per_minute=2" in error(few[2])[2]
    items = asked(keyed(items_per_minute=5), body={"input": ["a"] * 3}, headers=bearer(), times=2)
    assert [answer.status_code for answer in items] == [200, 429]
    never = asked(keyed(items_per_minute=5), body={"input": ["a"] * 6}, headers=bearer())[0]
    assert error(never)[0] == 400 and "ever" in error(never)[2]


def test_a_quota_comes_back_evenly():
    bucket = Bucket(60)
    bucket.take(60, "q")
    with pytest.raises(Refusal) as caught:
        bucket.take(3, "q")
    assert caught.value.retry_after == 3
    bucket.seen = time.monotonic() - 5
    bucket.take(4, "q")


def test_without_keys_this_machine_alone_may_ask_until_the_operator_opens_the_server():
    assert asked(Serve())[0].status_code == 200
    everywhere = ServeResources(host="0.0.0.0")
    closed = Serve(resources=everywhere)
    assert asked(closed)[0].status_code == 200
    (refused,) = asked(closed, client="10.1.2.3", host="server.example.org")
    assert error(refused)[0] == 403 and "serve.access.open=true" in error(refused)[2]
    assert asked(closed, "GET", "/ready", client="10.1.2.3", host="10.1.2.4:8000")[0].status_code == 200
    opened = Serve(resources=everywhere, access=Access(open=True))
    assert asked(opened, client="10.1.2.3", host="server.example.org")[0].status_code == 200


def test_a_server_on_loopback_answers_to_its_own_names_only_and_others_to_those_listed():
    (refused,) = asked(Serve(), host="evil.example.org")
    assert error(refused)[0] == 400 and "serve.access.hosts" in error(refused)[2]
    assert asked(Serve(), "GET", "/", host="evil.example.org")[0].status_code == 400
    for name in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
        assert asked(Serve(), host=name)[0].status_code == 200
    anywhere = Serve(access=Access(open=True), resources=ServeResources(host="0.0.0.0"))
    for name in ("search.lab", "[2001:db8::5]:8000", "10.1.2.3:8000"):
        assert asked(anywhere, host=name)[0].status_code == 200
    listed = Serve(access=Access(hosts=("*.example.org",)))
    assert asked(listed, host="search.example.org")[0].status_code == 200
    assert asked(listed, host="example.org.evil.net")[0].status_code == 400


def test_pages_of_listed_origins_may_ask_and_no_others():
    settings = Serve(access=Access(origins=("https://lab.example.org",)))
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    (mine,) = asked(settings, "OPTIONS", headers={"Origin": "https://lab.example.org", **wanted})
    assert mine.headers["access-control-allow-origin"] == "https://lab.example.org"
    (other,) = asked(settings, "OPTIONS", headers={"Origin": "https://evil.example.org", **wanted})
    assert "access-control-allow-origin" not in other.headers
    (answer,) = asked(settings, headers={"Origin": "https://lab.example.org"})
    assert answer.headers["access-control-allow-origin"] == "https://lab.example.org"
    assert "access-control-allow-origin" not in asked(Serve(), headers={"Origin": "https://lab.example.org"})[0].headers


def test_a_browser_asks_whether_it_may_without_a_key_and_its_page_reads_the_refusal_of_one():
    key = ApiKey(name="lab", sha256=KEY_SHA256, scopes=("embed",))
    settings = Serve(access=Access(origins=("https://lab.example.org",), keys=(key,)))
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    (may,) = asked(settings, "OPTIONS", headers={"Origin": "https://lab.example.org", **wanted})
    assert may.status_code == 200 and "Authorization" in may.headers["access-control-allow-headers"]
    (refused,) = asked(settings, headers={"Origin": "https://lab.example.org"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://lab.example.org"
    (stranger,) = asked(settings, "OPTIONS", headers={"Origin": "https://evil.example.org", **wanted})
    assert error(stranger)[0] == 400 and "serve.access.origins" in error(stranger)[2]


def test_a_key_is_made_with_the_line_that_names_its_hash():
    program = [sys.executable, "-m", "biomedclip_ray.serve.access", "lab"]
    shown = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    key = shown.splitlines()[0].rpartition(" ")[2]
    (line,) = yaml.safe_load("\n".join(shown.splitlines()[2:]))
    made = ApiKey(**line)
    assert (made.name, made.sha256) == ("lab", hashlib.sha256(key.encode()).hexdigest())
    assert len(key) > 40


def test_a_key_itself_in_the_configuration_is_refused():
    with pytest.raises(ValidationError):
        ApiKey(name="lab", sha256=KEY)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("localhost.evil.net", False),
    ],
)
def test_which_addresses_are_this_machine(address, loopback):
    assert is_loopback(address) == loopback
