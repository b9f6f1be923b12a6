"""Images at an address: from listed hosts, public addresses and within limits; over a real TLS server on loopback."""

import asyncio
import datetime
import http.server
import io
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from biomedclip_ray.config import Serve
from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.fetch import Fetcher, is_public
from biomedclip_ray.serve.inputs import Fetch

_STREAM = io.BytesIO()
Image.new("RGB", (20, 10), "red").save(_STREAM, "PNG")
PNG = _STREAM.getvalue()
SETTINGS = Serve(fetch_hosts=("localhost",), fetch_timeout_s=2.0, fetch_max_bytes=10_000)


class Handler(http.server.BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(self.headers["Host"])
        name = self.path.strip("/")
        where = {"away": "https://evil.example.org/a.png", "plain": "http://localhost/a.png", "around": "/around"}
        if name in where or name == "moved":
            self.send_response(302)
            self.send_header("Location", where.get(name, "/image"))
            self.end_headers()
            return
        self.send_response(404 if name == "none" else 200)
        self.end_headers()
        if name == "slow":
            time.sleep(4)
        if name == "long":
            self.wfile.write(PNG + bytes(20_000))
        elif name == "html":
            self.wfile.write(b"<html>secret</html>")
        else:
            self.wfile.write(PNG)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ssl.SSLContext]]:
    """Its address, and a context that trusts it."""
    folder: Path = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "site.pem"
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}", ssl.create_default_context(cafile=str(pem))
    server.shutdown()


def fetched(site: tuple[str, ssl.SSLContext], path: str, settings: Serve = SETTINGS, allowed: Any = None) -> bytes:
    fetcher = Fetcher(settings, allowed or (lambda ip: True), site[1])
    return asyncio.run(fetcher.get(Fetch(site[0] + path, "input[1]")))


def refused(site: tuple[str, ssl.SSLContext], path: str, **options: Any) -> str:
    with pytest.raises(Refusal) as caught:
        fetched(site, path, **options)
    assert (caught.value.status, caught.value.param) == (400, "input[1]")
    return caught.value.message


def test_an_image_is_fetched_also_by_a_redirect_and_the_server_sees_its_own_name(site):
    assert fetched(site, "/image") == PNG and fetched(site, "/moved") == PNG
    assert Handler.seen[-1] == site[0].removeprefix("https://")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/away", "not on the list (serve.fetch_hosts)"),
        ("/plain", "none of https"),
        ("/around", "more than 3 redirects"),
        ("/none", "answered with 404"),
        ("/long", "more than 10,000 bytes"),
        ("/slow", "more than 2 s"),
        ("/html", "the bytes are no "),
    ],
)
def test_what_breaks_a_rule_is_refused_and_tells_nothing_of_what_was_there(site, path, says):
    message = refused(site, path)
    assert says in message and "secret" not in message


def test_an_address_inside_is_never_asked(site):
    before = len(Handler.seen)
    assert "not a public one" in refused(site, "/image", allowed=is_public)
    assert len(Handler.seen) == before


def test_a_host_that_is_not_listed_is_never_asked(site):
    before = len(Handler.seen)
    other = SETTINGS.model_copy(update={"fetch_hosts": ("images.example.org",)})
    assert "not on the list" in refused(site, "/image", settings=other)
    assert len(Handler.seen) == before


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.3.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_of_the_open_internet(address, public):
    assert is_public(address) == public
