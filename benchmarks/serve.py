"""The served model beside its own bare forward pass: a client process over loopback, Ray Serve, proxy and ingress
between.

    python benchmarks/serve.py [--tower small|base] [--items N] [--turns N] [--skip peers] [--data FOLDER]

The image tower is a ViT-B/16 at random weights (`small`: ViT-S/16), the text tower open_clip's own, 77 tokens of
context; the images are real ones. In each turn the bare forward runs over decoded pixels and token ids in batches of 32
while no server is asked, then 24 callers keep each server busy in turn with requests of one item each; medians of the
turns. infinity-emb and LitServe (`serve_peers.py`) have the same weights, threads, dtype and batch. Prints
`NAME ratio=X`:

    image_vs_forward   images a second through the server over those of the forward (bound 0.90)
    image_vs_infinity  the same over infinity's (bound 1.15, or 0.95 of the forward where that is less)
    image_vs_litserve  the same over LitServe's (bound as of infinity)
    text_vs_forward    short texts a second, 16 to a request, over those of the forward (bound 0.80)
    text_vs_infinity   the same over infinity's, and of one caller with one text at a time: the smaller (bound 1.0)
    bf16_vs_float32    images through the server in bfloat16 over float32 (bound 2.5 on a CPU with AMX, told on others)
    idle_gb            PSS of all processes of Ray and Serve while nobody asks, with the demo's model (bound<= 1.5);
                       what Ray Serve and the packages alone take stands beside it (`serve_idle.py`)

Exit 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import torch

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.precision import has_bfloat16
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Config, Model, Serve, ServeResources
from biomedclip_ray.search import build as building
from biomedclip_ray.serve import deploy as stage
from biomedclip_ray.store.product import Product

sys.path.insert(0, str(Path(__file__).parent))
import serve_idle
import serve_peers
from articles import add_data_option

BOUNDS = {
    "image_vs_forward": 0.90,
    "text_vs_forward": 0.80,
    "text_vs_infinity": 1.0,
    "bf16_vs_float32": 2.5,
    "idle_gb": 1.5,
}
OVER_PEER, OF_FORWARD = 1.15, 0.95
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
DEMO, DEMO_CONTEXT = "sample_64", 32
"""The configuration of the demo's model, and its tokens a text."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tower", choices=tuple(WIDTHS), default="base")
    parser.add_argument("--items", type=int, default=128, help="images of one turn; of texts eight times as many")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--skip", choices=("peers",), help="leave out infinity-emb and LitServe")
    parser.add_argument("--client", nargs=2, metavar=("URL", "CALLERS"), help=argparse.SUPPRESS)
    add_data_option(parser)
    options = parser.parse_args()
    if options.client:
        url, callers = options.client
        print(json.dumps(ask(url, sys.stdin.read(), int(callers))))
        return 0
    files = sorted((options.data / "corpus" / "bucket").rglob("*.jpg"))[: options.items]
    images = [files[n % len(files)].read_bytes() for n in range(options.items)]
    texts = [f"{QUERIES[n % len(QUERIES)]} {n % 97}" for n in range(8 * options.items)]
    beside = options.skip is None and serve_peers.PYTHON.exists()
    with tempfile.TemporaryDirectory(prefix="biomedclip-bench-") as name:
        root = Path(name)
        found = {"idle_gb": idle(root / "demo", texts, images[:20])}
        floor = serve_idle.packages_gb(free_port())
        print(f"  idle: Ray Serve and the same packages imported, with nothing of ours, take {floor:.3f} GB")
        peer = root / "transformers" if beside else None
        bundle, index = products(root, options.tower, texts, images[:20], peer)
        found |= measured(root, bundle, index, images, texts, options.turns, peer)
    if not beside:
        reason = "left out" if options.skip else "no .venv-infinity: make bench makes it"
        print(f"image_vs_infinity, image_vs_litserve, text_vs_infinity: {reason}")
    return verdict(found)


def idle(root: Path, texts: list[str], images: list[bytes]) -> float:
    """GB of all processes behind a server with the demo's model that nobody asks."""
    tokenizer = fit_tokenizer(texts, 4096, DEMO_CONTEXT)
    torch.manual_seed(0)
    built = build_model(Model(config=DEMO, init="random"), tokenizer)
    bundle, index = (Product.plan(str(root), kind, 1, {}, []) for kind in ("train", "embed"))
    save_bundle(
        Path(bundle.place.at("bundle").uri),
        built.model,
        built.model_cfg,
        built.preprocess_cfg,
        tokenizer,
        {"name": DEMO, "starts": built.starts},
    )
    write_index(bundle, index, texts, images)
    with served(root, bundle, index, "float32"):
        return serve_idle.pss_gb()


def products(
    root: Path, tower: str, texts: list[str], images: list[bytes], peer: Path | None
) -> tuple[Product, Product]:
    """A bundle with that image tower at random weights, a small index of its vectors, and the peers' form of it."""
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
    write_index(bundle, index, texts, images)
    if peer:
        serve_peers.as_transformers(model, vision, text, tokenizer, peer)
    return bundle, index


def write_index(bundle: Product, index: Product, texts: list[str], images: list[bytes]) -> None:
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


def measured(
    root: Path,
    bundle: Product,
    index: Product,
    images: list[bytes],
    texts: list[str],
    turns: int,
    peer: Path | None,
) -> dict[str, float]:
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    encoder = Encoder.load(bundle.place.at("bundle").uri)
    pixels = [encoder.pixels(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
    ids = encoder.tokenizer(texts)
    encoder.batch = BATCH
    rates: dict[str, list[float]] = {}
    uris = [["data:image/jpeg;base64," + base64.b64encode(image).decode()] for image in images]
    lists = [texts[at : at + TEXTS] for at in range(0, len(texts), TEXTS)]
    alone = [[text] for text in texts[: len(lists)]]
    pictures, words = {"model": "peer", "modality": "image"}, {"model": "peer"}
    with served(root, bundle, index, "float32") as url, ExitStack() as stack:
        url += "/v1/embeddings"
        if peer:
            theirs = stack.enter_context(serve_peers.infinity(peer, free_port(), threads, BATCH))
            lit = stack.enter_context(serve_peers.litserve(peer, free_port(), threads, BATCH))
            agree(encoder, images[0], texts[0], {url: {}, theirs: pictures, lit: {}}, {url: {}, theirs: words})
        for _ in range(turns):
            note(rates, "image forward", len(images), lambda: [encoder.encode_pixels(batch) for batch in pixels])
            note(rates, "image served", len(images), lambda: crowd(url, uris))
            if peer:
                note(rates, "image infinity", len(images), lambda: crowd(theirs, uris, pictures))
                note(rates, "image litserve", len(images), lambda: crowd(lit, uris))
            note(rates, "text forward", len(texts), lambda: encoder.encode_ids(ids))
            note(rates, "text served", len(texts), lambda: crowd(url, lists))
            note(rates, "text alone", len(alone), lambda: crowd(url, alone, callers=1))
            if peer:
                note(rates, "text infinity", len(texts), lambda: crowd(theirs, lists, words))
                note(rates, "text infinity alone", len(alone), lambda: crowd(theirs, alone, words, callers=1))
    hardware = has_bfloat16(torch.device("cpu"))
    if hardware:
        with served(root, bundle, index, "bfloat16") as url:
            for _ in range(turns):
                note(rates, "image bfloat16", len(images), lambda: crowd(f"{url}/v1/embeddings", uris))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in middle.items():
        print(f"  {name}: {rate:.1f}/s  (of {', '.join(f'{value:.1f}' for value in rates[name])})")
    found = {
        "image_vs_forward": middle["image served"] / middle["image forward"],
        "text_vs_forward": middle["text served"] / middle["text forward"],
    }
    if peer:
        for name in ("infinity", "litserve"):
            found[f"image_vs_{name}"] = middle["image served"] / middle[f"image {name}"]
            most = OF_FORWARD * middle["image forward"] / middle[f"image {name}"]
            BOUNDS[f"image_vs_{name}"] = min(OVER_PEER, most)
        busy = middle["text served"] / middle["text infinity"]
        found["text_vs_infinity"] = min(busy, middle["text alone"] / middle["text infinity alone"])
    if hardware == "amx_bf16":
        found["bf16_vs_float32"] = middle["image bfloat16"] / middle["image served"]
    else:
        gain = f", {middle['image bfloat16'] / middle['image served']:.2f} times float32" if hardware else ""
        print(f"bf16_vs_float32: this CPU has no AMX ({hardware or 'no bfloat16'}{gain})")
    return found


def agree(
    encoder: Encoder, image: bytes, text: str, images: dict[str, dict[str, str]], texts: dict[str, dict[str, str]]
) -> None:
    """Every server has these weights: raises RuntimeError where one gives another vector (images are resized by each
    in its own way).
    """
    uri = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    for item, own, asked, least in (
        (uri, encoder.encode_images([image])[0], images, 0.99),
        (text, encoder.encode_text([text])[0], texts, 0.9999),
    ):
        for url, more in asked.items():
            body = {"input": [item], "encoding_format": "base64", **more}
            answer = httpx.post(url, json=body, timeout=300, trust_env=False).raise_for_status().json()
            data = base64.b64decode(answer["data"][0]["embedding"])
            cosine = sum(a * b for a, b in zip(struct.unpack(f"<{len(data) // 4}f", data), own.tolist(), strict=True))
            if cosine < least:
                raise RuntimeError(f"{url} gives another vector than the encoder: cosine {cosine:.4f}")


def note(rates: dict[str, list[float]], name: str, items: int, work: Any) -> None:
    """Items a second: of what `work` says it took, else of its wall time."""
    began = time.perf_counter()
    taken = work()
    seconds = taken if isinstance(taken, float) else time.perf_counter() - began
    rates.setdefault(name, []).append(items / seconds)


def crowd(url: str, requests: list[list[str]], more: dict[str, str] | None = None, callers: int = CALLERS) -> float:
    """Seconds that a client process took for all requests, its own start not counted."""
    bodies = [json.dumps({"input": items, "encoding_format": "base64", **(more or {})}) for items in requests]
    done = subprocess.run(
        [sys.executable, __file__, "--client", url, str(callers)],
        input=json.dumps(bodies),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout))


def ask(url: str, requests: str, callers: int) -> float:
    bodies = [body.encode() for body in json.loads(requests)]
    # given up before a server's 5 s are over: a connection that it closes while a request is sent is an error
    limits = httpx.Limits(max_connections=callers, max_keepalive_connections=callers, keepalive_expiry=2.0)
    headers = {"Content-Type": "application/json"}
    with (
        httpx.Client(timeout=300, limits=limits, trust_env=False, headers=headers) as client,
        ThreadPoolExecutor(callers) as pool,
    ):

        def one(body: bytes) -> None:
            client.post(url, content=body).raise_for_status()

        list(pool.map(one, bodies[:callers]))  # connections stand, and the model is warm
        began = time.perf_counter()
        list(pool.map(one, bodies))
        return time.perf_counter() - began


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(root: Path, bundle: Product, index: Product, precision: Any) -> Iterator[str]:
    """The deployed application on a Ray of its own."""
    import ray
    from ray import serve

    os.environ.pop("RAY_ADDRESS", None)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        settings = Serve(precision=precision, resources=ServeResources(port=free_port(), max_batch=BATCH))
        yield stage.deploy(Config(root=str(root), serve=settings), bundle, index).url
    finally:
        serve.shutdown()
        ray.shutdown()


def verdict(ratios: dict[str, float]) -> int:
    missed = 0
    for name, ratio in ratios.items():
        most = name == "idle_gb"
        print(f"{name} ratio={ratio:.3f} bound{'<=' if most else '='}{BOUNDS[name]:.3f}")
        missed += ratio > BOUNDS[name] if most else ratio < BOUNDS[name]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
