"""A cluster of pretended nodes that grows from its head alone, in pid and network namespaces of its own.

    python tests/cluster/autoscaled.py JOB.json

Ray's fake node provider makes each node a raylet of this machine. It is named as an external one, since under its own
name autoscaler v2 wants an example file that the wheel lacks. What ran when goes to JOB's `timeline`: one line a look,
with every node's kind and how long it has been idle.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

FAKE_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
PORT = 6379
IDLE_MINUTES = 0.1
LOOK_S = 0.5


def cluster_file(kinds: dict[str, Any]) -> dict[str, Any]:
    """What `ray start --autoscaling-config` is given; the head takes no work."""
    commands = ("head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "pretended",
        "max_workers": 8,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD,
            "gcs_address": f"127.0.0.1:{PORT}",
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **{name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in kinds.items()},
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        **{f"{name}_commands": [] for name in commands},
    }


def run_in_namespaces(job: dict[str, Any], folder: Path) -> int:
    """Run this file's `main` on the job as root of namespaces of its own; what it starts ends with it."""
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    spaces = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"]
    with (folder / "cluster.log").open("wb") as log:
        command = [*spaces, sys.executable, __file__, str(path)]
        return subprocess.run(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, timeout=job["timeout_s"]
        ).returncode


def main(job: dict[str, Any]) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder = Path(job["folder"])
    config = folder / "cluster.yaml"
    config.write_text(json.dumps(cluster_file(job["kinds"])))
    env = os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0"}
    if job["autoscaler"] == "v2":
        env |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD}
    env |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD, "RAY_NODE_TYPE_NAME": "ray.head.default"}
    command = ["ray", "start", "--head", f"--port={PORT}", "--num-cpus=0", "--node-ip-address=127.0.0.1"]
    command += [f"--autoscaling-config={config}", "--include-dashboard=False", "--disable-usage-stats"]
    ray_bin = str(Path(sys.executable).parent / "ray")
    subprocess.run([ray_bin, *command[1:], f"--temp-dir={job['temp']}"], env=env, check=True)
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(Path(job["timeline"]), stop), daemon=True)
    watcher.start()
    ran = []
    for arguments in job["commands"]:
        begun = time.time()
        driver = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{PORT}"}
        code = subprocess.run([sys.executable, *arguments], env=driver).returncode
        ran.append({"arguments": arguments, "begun": begun, "ended": time.time(), "code": code})
        if code:
            break
    time.sleep(job["linger_s"])  # nodes leave after their idle time
    stop.set()
    watcher.join()
    Path(job["ran"]).write_text(json.dumps(ran))


def _watch(path: Path, stop: threading.Event) -> None:
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    client = GcsClient(address=f"127.0.0.1:{PORT}")
    with path.open("w") as out:
        while not stop.is_set():
            nodes = [
                {"id": node.node_id.hex()[-5:], "kind": node.ray_node_type_name, "idle_s": node.idle_duration_ms / 1000}
                for node in get_cluster_resource_state(client).node_states
                if node.status != NodeStatus.DEAD
            ]
            out.write(json.dumps({"time": time.time(), "nodes": nodes}) + "\n")
            out.flush()
            stop.wait(LOOK_S)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
