"""The embed stage beside the bare forward passes of its pairs, with and without building the index.

    python benchmarks/embed.py [--pairs N] [--turns N] [--tower small|base] [--data FOLDER]

The towers are BiomedCLIP's (ViT-B/16 and BERT base; `small`: ViT-S/16 and six layers of 384) at random weights, the
pairs real ones. The bare forward gets decoded pixels and token ids in the stage's batches; the stage reads its part,
decodes, tokenizes, draws thumbnails and folds captions besides; with the index it also writes the table and builds
every index. Seconds are processor time in one process, in turns, the median of `--turns`. Prints
`embed_vs_forward ratio=X` (bound 0.95) and `embed_with_index_vs_forward ratio=X` (0.85), the forward's seconds over the
stage's; exit 1 below a bound.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.clip.vectors import to_matrix
from biomedclip_ray.config import Embed
from biomedclip_ray.schema import index_schema
from biomedclip_ray.search import build as building
from biomedclip_ray.search.embed import _Embedder, _placed, plane
from biomedclip_ray.store.place import Place

sys.path.insert(0, str(Path(__file__).parent))
from articles import add_data_option
from clips import build, products, real_pairs, timm_vit, verdict

BOUNDS = {"embed_vs_forward": 0.95, "embed_with_index_vs_forward": 0.85}
CONTEXT = 256
SIZES = {
    "small": ({"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}, 384),
    "base": ({}, 512),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=48, help="of one part")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tower", choices=tuple(SIZES), default="base")
    add_data_option(parser)
    options = parser.parse_args()
    real = real_pairs(options.data)
    pairs = [real[n % len(real)] for n in range(8 * options.pairs)]  # products have eight parts; the first is measured
    with tempfile.TemporaryDirectory(prefix="biomedclip-bench-") as name:
        root = Path(name)
        tokenizer = fit_tokenizer([text for _, text in pairs], 4096, CONTEXT)
        bert, width = SIZES[options.tower]
        built = build(timm_vit(options.tower), {"vocab_size": 4096, **bert}, width, tokenizer)
        save_bundle(root / "bundle", built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
        made, corpus = products(pairs, str(root / "products"))
        stage = _Embedder(str(root / "bundle"), made, corpus, Embed(), None)
        encoder, rows = stage.encoder, made.read(0, ["text", "image"])
        images, texts = rows["image"].to_pylist(), rows["text"].to_pylist()
        pixels = [encoder.pixels(images[at : at + encoder.batch]) for at in range(0, len(images), encoder.batch)]
        ids = encoder.tokenizer(texts)

        def forward() -> None:
            for batch in pixels:
                encoder.encode_pixels(batch)
            encoder.encode_ids(ids)

        def index(table: Any) -> None:
            place = Place(str(root / f"index-{time.monotonic_ns()}"))
            axes = plane(to_matrix(table["image_vector"]))
            schema = index_schema(width)
            written = building.write_rows(place, [_placed(table, axes, schema)], schema)
            building.commit(place, written, schema, table.num_rows)
            building.finish(place, Embed().ann_rows)

        seconds: dict[str, list[float]] = {"forward": [], "part": [], "index": []}
        forward()
        for _ in range(options.turns):
            seconds["forward"].append(_spent(forward)[0])
            took, result = _spent(lambda: stage(0))
            seconds["part"].append(took)
            seconds["index"].append(_spent(lambda result=result: index(result.data))[0])
    bare, part, indexing = (statistics.median(seconds[name]) for name in ("forward", "part", "index"))
    print(f"pairs={len(images)} forward_cpu_s={bare:.2f} part_cpu_s={part:.2f} index_cpu_s={indexing:.2f}")
    ratios = {"embed_vs_forward": bare / part, "embed_with_index_vs_forward": bare / (part + indexing)}
    return verdict(ratios, BOUNDS)


def _spent(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


if __name__ == "__main__":
    sys.exit(main())
