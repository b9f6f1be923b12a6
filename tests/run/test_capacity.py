"""What nodes may come, read from the file that a cluster is made from and from its autoscaler: never from the nodes
that are up.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
import ray
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from biomedclip_ray.config import ConfigError, PartResources, load, parse
from biomedclip_ray.run import private
from biomedclip_ray.run.capacity import Capacity, NodeKind, of_file
from biomedclip_ray.run.preflight import check_capacity
from tests.run.steps import steps

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
FULL_SIZE = sorted(path.name for path in (ROOT / "workflows/configs").glob("biomedclip_*.yaml"))

# name -> CPUs and GPUs in all, CPUs of the largest node, tasks of one CPU at once
SHIPPED = {
    "aws.yaml": (64 * 32 + 8 * 16, 8, 32, 64 * 32 + 8 * 16),
    "gcp.yaml": (64 * 32 + 8 * 12, 8, 32, 64 * 32 + 8 * 12),
    "kuberay/raycluster.yaml": (32 * 16 + 8 * 16, 8, 16, 640),
    "kuberay/rayjob.yaml": (32 * 16 + 8 * 16, 8, 16, 640),
    "kuberay/raycronjob.yaml": (32 * 16 + 8 * 16, 8, 16, 640),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_cluster_file_says_what_may_come(name: str) -> None:
    found = of_file(str(CLUSTER / name))
    cpus, gpus, largest, tasks = SHIPPED[name]
    assert found.grows
    assert (found.total("CPU"), found.total("GPU"), found.largest("CPU"), found.room(1.0)) == (
        cpus,
        gpus,
        largest,
        tasks,
    )
    assert found.room(2.0, 1.0) == 8
    assert found.fits(largest) and not found.fits(largest + 1) and not found.fits(1.0, 2.0)


def test_a_service_file_says_what_may_come() -> None:
    found = of_file(str(CLUSTER / "kuberay/rayservice.yaml"))
    assert found.grows and found.room(4.0, 1.0) >= 4


def test_machines_of_ones_own_have_no_size_before_they_are_up() -> None:
    found = of_file(str(CLUSTER / "on_prem.yaml"))
    assert not found.sized
    assert found.fits(64.0, 8.0)
    assert sum(kind.most for kind in found.kinds) == 3


@pytest.mark.parametrize("config", FULL_SIZE)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_at_full_size_passes_the_check_on_every_cluster_from_its_file_alone(
    name: str, config: str
) -> None:
    recipe = load(ROOT / "workflows/configs" / config, ["root=s3://bucket/run"])
    assert check_capacity(recipe, steps(recipe), of_file(str(CLUSTER / name))) == []


def test_a_task_must_fit_one_node_whatever_the_cluster_has_in_all() -> None:
    here = of_file(str(CLUSTER / "kuberay/raycluster.yaml"))
    config = parse(
        {
            "root": "/tmp/run",
            "ingest": {"resources": {"num_cpus": 17}},
            "embed": {"resources": {"num_cpus": 2, "num_gpus": 9}},
            "evaluate": {"resources": {"num_cpus": 1, "num_gpus": 2}},
        },
        "a test",
    )
    where = f"--cluster {CLUSTER / 'kuberay/raycluster.yaml'}"
    assert check_capacity(config, steps(config, ("ingest", "evaluate", "embed")), here) == [
        f"ingest.resources.num_cpus=17, but no node of {where} has more than 16 CPUs; lower it",
        f"evaluate.resources.num_gpus=2, but no node of {where} has more than 1 GPUs; lower it",
        f"embed.resources.num_gpus=9, but {where} has 8 GPUs; lower it",
    ]


def test_a_head_alone_without_an_autoscaler_is_told_from_a_key_that_is_too_large() -> None:
    head = Capacity((NodeKind("head", {"CPU": 0.0}, {}, 1, head=True),), "the cluster")
    [problem] = head.lacks("ingest.resources", PartResources())
    assert problem.startswith(
        "ingest.resources: no node of the cluster takes work, and no autoscaler runs beside its head"
    )
    assert "--cluster FILE" in problem


def test_cpus_and_gpus_that_no_kind_has_together_are_refused() -> None:
    here = of_file(str(CLUSTER / "aws.yaml"))
    config = parse({"root": "/tmp/run", "embed": {"resources": {"num_cpus": 32, "num_gpus": 1}}}, "a test")
    [problem] = check_capacity(config, steps(config, ("embed",)), here)
    assert problem.startswith("embed.resources: no node of --cluster ")
    assert problem.endswith("has num_cpus=32 and num_gpus=1 together; lower one")


def test_fewer_workers_than_the_kinds_may_have_in_all_bound_every_sum() -> None:
    data, gpu = NodeKind("data", {"CPU": 32.0}, {}, 10), NodeKind("gpu", {"CPU": 16.0, "GPU": 4.0}, {}, 3)
    head = NodeKind("head", {"CPU": 4.0}, {}, 1, head=True)
    here = Capacity((head, gpu, data), "a test", True, "v2", workers=5)
    assert here.total("CPU") == 4 + 5 * 32
    assert here.total("GPU") == 3 * 4
    assert here.room(8.0) == 5 * 4  # none on the head: it has 4 CPUs
    assert here.room(8.0, 2.0) == 3 * 2
    assert [node.get("GPU", 0) for node in here.nodes()] == [4, 4, 4, 0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("applications: []", "neither a launcher's file"),
        ("a: [", "expected the node content"),
        (
            "provider: {type: aws}\navailable_node_types: {cpu: {max_workers: 2}}",
            "available_node_types.cpu does not say",
        ),
    ],
)
def test_a_file_that_says_nothing_of_nodes_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "cluster.yaml").write_text(content)
    with pytest.raises(ConfigError, match="--cluster") as error:
        of_file(str(tmp_path / "cluster.yaml"))
    assert message in str(error.value) or "while parsing" in str(error.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="--cluster nowhere.yaml"):
        of_file("nowhere.yaml")


@pytest.mark.parametrize(("folder", "version"), [("autoscaler/v2", "v2"), ("autoscaler/_private", "v1")])
def test_the_configuration_is_that_of_the_process_that_scales_this_cluster(
    tmp_path: Path, folder: str, version: str
) -> None:
    script = tmp_path / folder / "monitor.py"
    script.parent.mkdir(parents=True)
    script.write_text("import time; print('up', flush=True); time.sleep(60)")
    config = tmp_path / "bootstrap.yaml"
    config.write_text(yaml.safe_dump({"provider": {"type": "aws"}, "max_workers": 3}))

    def start(address: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), f"--gcs-address={address}", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        return process

    processes = [start("10.9.8.7:1", f"--autoscaling-config={config}"), start("10.9.8.7:2")]
    try:
        assert private.autoscaler_config("10.9.8.7:1") == (
            version,
            {"provider": {"type": "aws"}, "max_workers": 3},
            str(config),
        )
        assert private.autoscaler_config("10.9.8.7:2") is None  # it only counts the nodes that are there
        assert private.autoscaler_config("10.9.8.7:3") is None  # another cluster's
        config.unlink()
        with pytest.raises(LookupError, match=r"bootstrap\.yaml"):
            private.autoscaler_config("10.9.8.7:1")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_this_ray_has_every_private_name_that_the_program_leans_on() -> None:
    assert private.missing_names() == [], f"Ray {ray.__version__} lacks them: run/private.py says what each is for"


ASK_KUBERNETES = """
import json, sys
from pathlib import Path
from biomedclip_ray.run import private
private._KUBERNETES = Path(sys.argv[1])
print(json.dumps(private.autoscaler_config("10.9.8.7:4")))
"""


def test_on_kuberay_the_raycluster_is_asked_of_kubernetes(tmp_path: Path) -> None:
    """As the autoscaler's own sidecar asks: over TLS, for the cluster that the pod belongs to."""
    manifest = yaml.safe_load((CLUSTER / "kuberay/raycluster.yaml").read_text())
    manifest["metadata"]["namespace"] = "research"
    asked: list[str] = []

    class Kubernetes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = json.dumps(manifest).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    certificate, key = _self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    (tmp_path / "namespace").write_text("research")
    with ThreadingHTTPServer(("127.0.0.1", 0), Kubernetes) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")} | {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT_HTTPS": str(server.server_port),
            "RAY_KUBERAY_CA_CERT_PATH": str(certificate),
            "RAY_KUBERAY_CLIENT_CERT_PATH": str(certificate),
            "RAY_KUBERAY_CLIENT_KEY_PATH": str(key),
            "RAY_CLUSTER_NAME": "biomedclip",
            "RAY_enable_autoscaler_v2": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", ASK_KUBERNETES, str(tmp_path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert asked == ["/apis/ray.io/v1/namespaces/research/rayclusters/biomedclip"]
    version, found, where = json.loads(done.stdout.splitlines()[-1])
    assert (version, where) == ("v2", "RayCluster biomedclip")
    assert found == manifest


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """Certificate and key of 127.0.0.1, its own authority."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    certificate, key = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate, key
