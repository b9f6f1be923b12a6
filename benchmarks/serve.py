"""The served model beside its own bare forward pass: a client process over loopback, Ray Serve, proxy and ingress
between.

    python benchmarks/serve.py [--tower small|base] [--items N] [--turns N] [--data FOLDER]

The image tower is a ViT-B/16 at random weights (`small`: ViT-S/16), the text tower open_clip's own, 77 tokens of
context; the images are real ones. In each turn the bare forward runs over decoded pixels and token ids in batches of 32
while the server is idle, then 24 callers keep the server busy with requests of one item each; medians of the turns.
Prints `NAME ratio=X`:

    image_vs_forward   images a second through the server over those of the forward (bound 0.90)
    text_vs_forward    the same of short texts, 16 to a request (bound 0.80)
    bf16_vs_float32    images through the server in bfloat16 over float32 (bound 2.5 on a CPU with AMX, told on others)
    idle_gb            bound 1.5 over the PSS of all processes of Ray and Serve while nobody asks, in GB (bound 1.0)

Exit 1 below a bound.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import torch

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.precision import has_bfloat16
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Config, Serve, ServeResources
from biomedclip_ray.search import build as building
from biomedclip_ray.serve import deploy as stage
from biomedclip_ray.store.product import Product

sys.path.insert(0, str(Path(__file__).parent))
from articles import add_data_option

BOUNDS = {"image_vs_forward": 0.90, "text_vs_forward": 0.80, "bf16_vs_float32": 2.5, "idle_gb": 1.0}
IDLE_GB = 1.5
CALLERS, BATCH, TEXTS = 24, 32, 16
QUERIES = (
    "western blot of p53",
    "chest radiograph with consolidation",
    "Kaplan-Meier curve of overall survival",
    "histology, haematoxylin and eosin",
    "fluorescence micrograph of HeLa cells",
    "phylogenetic tree of coronaviruses",
    "axial CT of the liver",
    "flow cytometry, CD4 and CD8",
)
WIDTHS = {"small": (384, 8), "base": (768, 12)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tower", choices=tuple(WIDTHS), default="base")
    parser.add_argument("--items", type=int, default=192, help="images of one turn; of texts eight times as many")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--client", metavar="URL", help=argparse.SUPPRESS)
    add_data_option(parser)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(ask(options.client, sys.stdin.read())))
        return 0
    files = sorted((options.data / "corpus" / "bucket").rglob("*.jpg"))[: options.items]
    images = [files[n % len(files)].read_bytes() for n in range(options.items)]
    texts = [f"{QUERIES[n % len(QUERIES)]} {n % 97}" for n in range(8 * options.items)]
    with tempfile.TemporaryDirectory(prefix="biomedclip-bench-") as name:
        bundle, index = products(Path(name), options.tower, texts, images[:20])
        ratios = measured(Path(name), bundle, index, images, texts, options.turns)
    return verdict(ratios)


def products(root: Path, tower: str, texts: list[str], images: list[bytes]) -> tuple[Product, Product]:
    """A bundle with that image tower at random weights, and a small index of its vectors."""
    import open_clip
    from open_clip.transform import PreprocessCfg

    width, layers = WIDTHS[tower]
    tokenizer = fit_tokenizer(texts, 4096, 77)
    vision = {"image_size": 224, "patch_size": 16, "width": width, "layers": 12, "head_width": 64}
    text = {
        "context_length": 77,
        "vocab_size": tokenizer.vocab_size,
        "width": 512,
        "heads": 8,
        "layers": layers,
        "pool_type": "eos",
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "hf_tokenizer_name": "in this folder",
    }
    model_cfg = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    known = {key: value for key, value in text.items() if key != "hf_tokenizer_name"}
    model = open_clip.CLIP(512, vision, known)
    preprocess = {**asdict(PreprocessCfg()), "size": model.visual.image_size}
    open_clip.model.set_model_preprocess_cfg(model, preprocess)
    bundle, index = (Product.plan(str(root), kind, 1, {}, []) for kind in ("train", "embed"))
    save_bundle(Path(bundle.place.at("bundle").uri), model, model_cfg, preprocess, tokenizer, {"name": tower})
    encoder = Encoder.load(bundle.place.at("bundle").uri)
    vectors, captions = encoder.encode_images(images), encoder.encode_text(texts[: len(images)])
    rows = [
        {
            "pair_id": f"PMC{n}.1/F1#0",
            "article_id": f"PMC{n}.1",
            "caption": texts[n],
            "image_vector": vectors[n],
            "text_vector": captions[n],
            "bundle": encoder.bundle_id,
        }
        for n in range(len(images))
    ]
    building.from_rows(index.place.uri, rows)
    return bundle, index


def measured(
    root: Path, bundle: Product, index: Product, images: list[bytes], texts: list[str], turns: int
) -> dict[str, float]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    encoder = Encoder.load(bundle.place.at("bundle").uri)
    pixels = [encoder.pixels(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
    ids = encoder.tokenizer(texts)
    encoder.batch = BATCH
    rates: dict[str, list[float]] = {}
    uris = ["data:image/jpeg;base64," + base64.b64encode(image).decode() for image in images]
    lists = [texts[at : at + TEXTS] for at in range(0, len(texts), TEXTS)]
    with served(root, bundle, index, "float32") as url:
        idle = pss_gb()
        for _ in range(turns):
            note(rates, "image forward", len(images), lambda: [encoder.encode_pixels(batch) for batch in pixels])
            note(rates, "image served", len(images), lambda: crowd(url, [[uri] for uri in uris]))
            note(rates, "text forward", len(texts), lambda: encoder.encode_ids(ids))
            note(rates, "text served", len(texts), lambda: crowd(url, lists))
    hardware = has_bfloat16(torch.device("cpu"))
    if hardware:
        with served(root, bundle, index, "bfloat16") as url:
            for _ in range(turns):
                note(rates, "image bfloat16", len(images), lambda: crowd(url, [[uri] for uri in uris]))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in middle.items():
        print(f"  {name}: {rate:.1f}/s  (of {', '.join(f'{value:.1f}' for value in rates[name])})")
    found = {
        "image_vs_forward": middle["image served"] / middle["image forward"],
        "text_vs_forward": middle["text served"] / middle["text forward"],
        "idle_gb": IDLE_GB / idle,
    }
    print(f"  idle: {idle:.2f} GB PSS")
    if hardware == "amx_bf16":
        found["bf16_vs_float32"] = middle["image bfloat16"] / middle["image served"]
    else:
        gain = f", {middle['image bfloat16'] / middle['image served']:.2f} times float32" if hardware else ""
        print(f"bf16_vs_float32: this CPU has no AMX ({hardware or 'no bfloat16'}{gain})")
    return found


def note(rates: dict[str, list[float]], name: str, items: int, work: Any) -> None:
    """Items a second: of what `work` says it took, else of its wall time."""
    began = time.perf_counter()
    taken = work()
    seconds = taken if isinstance(taken, float) else time.perf_counter() - began
    rates.setdefault(name, []).append(items / seconds)


def crowd(url: str, requests: list[list[str]]) -> float:
    """Seconds that a client process took for all requests, its own start not counted."""
    done = subprocess.run(
        [sys.executable, __file__, "--client", url],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout))


def ask(url: str, requests: str) -> float:
    bodies = [json.dumps({"input": items, "encoding_format": "base64"}).encode() for items in json.loads(requests)]
    limits = httpx.Limits(max_connections=CALLERS, max_keepalive_connections=CALLERS)
    headers = {"Content-Type": "application/json"}
    with (
        httpx.Client(base_url=url, timeout=300, limits=limits, trust_env=False, headers=headers) as client,
        ThreadPoolExecutor(CALLERS) as callers,
    ):

        def one(body: bytes) -> None:
            client.post("/v1/embeddings", content=body).raise_for_status()

        list(callers.map(one, bodies[:CALLERS]))  # connections stand, and the model is warm
        began = time.perf_counter()
        list(callers.map(one, bodies))
        return time.perf_counter() - began


@contextmanager
def served(root: Path, bundle: Product, index: Product, precision: Any) -> Iterator[str]:
    """The deployed application on a Ray of its own."""
    import ray
    from ray import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.pop("RAY_ADDRESS", None)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        settings = Serve(precision=precision, resources=ServeResources(port=port, max_batch=BATCH))
        yield stage.deploy(Config(root=str(root), serve=settings), bundle, index).url
    finally:
        serve.shutdown()
        ray.shutdown()


def pss_gb() -> float:
    """Proportional set size of every process below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # ended meanwhile
                continue
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    total = 0
    for pid in ours - {os.getpid()}:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**20


def verdict(ratios: dict[str, float]) -> int:
    missed = 0
    for name, ratio in ratios.items():
        print(f"{name} ratio={ratio:.3f} (bound {BOUNDS[name]})")
        missed += ratio < BOUNDS[name]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
