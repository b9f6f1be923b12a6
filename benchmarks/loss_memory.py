"""Memory of the contrastive loss and its gradient by the size of the batch: ours in blocks of rows, beside the whole
matrix.

    python benchmarks/loss_memory.py [--device cpu|cuda] [--batches 4096 16384 ...]

For a global batch and the pairs of one of its workers: what one forward and backward pass adds to the memory of a
process that holds the vectors of all pairs (512 numbers each, float32) already.

- ours: `loss_from_features` for the worker's rows.
- open_clip: its `ClipLoss` as it is by default, where every worker makes the logits of all pairs against all.
- open_clip, local loss: its `--local-loss`, the worker's rows against all pairs.

Peak resident memory of a process of its own for each cell (Linux), or what CUDA's allocator had out at most. A cell
that could not fit into this machine is not tried ("-"). Prints `loss_memory_vs_open_clip ratio=X`: open_clip's bytes
over ours at the first batch as one worker. Exit 1 below the bound.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from biomedclip_ray.clip.loss import LOSSES
from biomedclip_ray.clip.loss.contrast import loss_from_features

sys.path.insert(0, str(Path(__file__).parent))
import clips
from articles import peak_mb

BOUND = {"loss_memory_vs_open_clip": 7.0}
BATCHES = (4096, 16384, 65536)
WORKERS = (1, 8, 64)
MOST_ROWS = 8192
"""Of one worker: more take minutes on a CPU, and no more memory."""
WIDTH = 512
MATRICES = 6
"""Of float32, batch x batch, that the plain loss may hold at once; more than it does, so that nothing that is tried
fails.
"""


def ours(image: Tensor, text: Tensor, scale: Tensor, local: int) -> Tensor:
    return loss_from_features(LOSSES["infonce"], image, text, scale, rows=slice(0, local))


def plain(image: Tensor, text: Tensor, scale: Tensor, local: int) -> Tensor:
    loss: Tensor = open_clip.ClipLoss()(image, text, scale)
    return loss


def plain_local(image: Tensor, text: Tensor, scale: Tensor, local: int) -> Tensor:
    """What ClipLoss(local_loss=True) does on a worker once everything is gathered."""
    own = torch.arange(local, device=image.device)
    rows = (scale * image[:local] @ text.T, scale * text[:local] @ image.T)
    return sum(torch.nn.functional.cross_entropy(logits, own) for logits in rows) / 2  # type: ignore[return-value]


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "ours": ours,
    "open_clip": plain,
    "open_clip, local loss": plain_local,
}


def added_mb(name: str, batch: int, local: int, device: str) -> float:
    """MB that the loss of that name adds; run in a process of its own."""
    torch.manual_seed(0)

    def once(n: int, rows: int) -> None:
        image, text = (torch.nn.functional.normalize(torch.randn(n, WIDTH, device=device)) for _ in range(2))
        scale = torch.tensor(14.0, device=device, requires_grad=True)
        start = forget_peak(device)
        WAYS[name](image.requires_grad_(), text.requires_grad_(), scale, rows).backward()
        found.append(peak(device) - start)

    found: list[float] = []
    once(64, 64)  # libraries take their workspaces
    once(batch, local)
    return found[-1]


def forget_peak(device: str) -> float:
    """Let the peak begin anew; the MB held now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak(device)


def peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_mb()


def room_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**20
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    options = parser.parse_args()
    table: dict[tuple[int, int], list[float | None]] = {}
    cells = [(n, n // workers) for n in options.batches for workers in WORKERS if n // workers <= MOST_ROWS]
    start = "spawn" if options.device == "cuda" else "fork"  # CUDA cannot be forked, and imports take seconds
    with multiprocessing.get_context(start).Pool(1, maxtasksperchild=1) as pool:
        for batch, local in cells:
            rows = {"ours": 0, "open_clip": batch, "open_clip, local loss": local}
            table[batch, local] = [
                pool.apply(added_mb, (name, batch, local, options.device))
                if MATRICES * 4 * batch * rows[name] / 2**20 < room_mb(options.device)
                else None
                for name in WAYS
            ]
            print(f"  {batch} pairs, {local} of them this worker's: {table[batch, local]} MB", flush=True)
    print("| global batch | a worker's pairs | " + " | ".join(f"{name}, MB" for name in WAYS) + " |")
    print("|--:|--:|" + "--:|" * len(WAYS))
    for (batch, local), found in table.items():
        shown = " | ".join("-" if value is None else f"{value:,.0f}" for value in found)
        print(f"| {batch:,} | {local:,} | {shown} |")
    first = table[cells[0]]
    if first[0] is None or first[1] is None:
        print(f"a batch of {cells[0][0]} does not fit into {room_mb(options.device):.0f} MB", file=sys.stderr)
        return 2
    return clips.verdict({"loss_memory_vs_open_clip": first[1] / first[0]}, BOUND)


if __name__ == "__main__":
    sys.exit(main())
