"""What deploy asks of the application that runs on this machine."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from biomedclip_ray.config import Config, ConfigError, Serve, ServedModel, ServeResources
from biomedclip_ray.run.capacity import Capacity, NodeKind
from biomedclip_ray.serve.app import Arguments
from biomedclip_ray.serve.deploy import address, check, running
from biomedclip_ray.serve.needs import fit


class _Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"status": "ready", "application": "0123"}).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_the_own_server_is_asked_past_the_proxy_of_a_hospital(monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/v1/models", timeout=5)
    assert running(url) == "0123"
    server.shutdown()


def test_every_model_needs_replicas_of_its_own() -> None:
    node = Capacity((NodeKind("node", {"CPU": 3.0, "GPU": 1.0}, {}, 1),), "the cluster")
    resources = ServeResources(cpus_per_replica=2, gpus_per_replica=1)
    one = Serve(resources=resources)
    two = Serve(more=(ServedModel(id="other", bundle="b", index="i"),), resources=resources)
    assert fit(Config(root="r", serve=one), node) == []
    (problem,) = fit(Config(root="r", serve=two), node)
    assert problem.startswith("2 models x serve.resources.replicas=1 x cpus_per_replica=2, but the cluster has 3 CPUs")
    roomy = Capacity((NodeKind("node", {"CPU": 8.0, "GPU": 1.0}, {}, 1),), "the cluster")
    args = Arguments(**two.model_dump(), bundle="b", index="i")
    with pytest.raises(ConfigError, match="the application needs 2 GPUs, the cluster has 1"):
        check(args, roomy)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000"),
        ("::", "http://[::1]:8000"),
        ("2001:db8::5", "http://[2001:db8::5]:8000"),
    ],
)
def test_the_address_of_a_server_is_one_that_can_be_asked(host: str, url: str) -> None:
    assert address(ServeResources(host=host)) == url == str(httpx.URL(url))
