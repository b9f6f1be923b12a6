"""Our losses beside open_clip's own, from the same recorded tensors: the `loss_parity` of `train_vs_open_clip.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.train.batches import crop, decode
from biomedclip_ray.train.step import Block

sys.path.insert(0, str(Path(__file__).parent))
import clips
import reference

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZE = clips.Size(
    {"image_size": 64, "patch_size": 16, "width": 128, "layers": 3, "head_width": 64},
    clips.bert(128, 3, **WITHOUT_DROPOUT),
    128,
    64,
    64,
)
WINDOW_STEPS = 20
MOVED = "open_clip, one tensor moved by a millionth"


def parity(data: Path, steps: int) -> float:
    """One minus the worst relative difference between the two curves of losses, averaged over windows."""
    pairs = clips.real_pairs(data)
    tokenizer = fit_tokenizer([text for _, text in pairs], clips.VOCABULARY, SIZE.context)
    built = clips.build(SIZE.vision, SIZE.bert, SIZE.embed_dim, tokenizer)
    recipe = clips.recipe_of(SIZE.batch, "fp32", lr=1e-4, warmup_steps=steps // 10)
    mean, std = (torch.tensor(built.preprocess_cfg[key]).view(1, 3, 1, 1) * 255 for key in ("mean", "std"))
    side = SIZE.vision["image_size"]
    pixels = torch.from_numpy(np.stack([crop(decode(jpeg), side, (1.0, 1.0), np.zeros(4)) for jpeg, _ in pairs]))
    tokens = torch.from_numpy(tokenizer([text for _, text in pairs]))
    draw = np.random.default_rng(0)
    rows = [torch.from_numpy(draw.choice(len(pairs), SIZE.batch, replace=False)) for _ in range(steps)]

    def recorded() -> Iterator[reference.Batch]:
        for chosen in rows:
            yield (pixels[chosen].permute(0, 3, 1, 2).float() - mean) / std, tokens[chosen]

    theirs, moved = (reference.Reference(built.model, recipe, steps) for _ in range(2))
    with torch.no_grad():
        next(moved.model.parameters()).mul_(1 + 1e-6)
    for one in (theirs, moved):
        one.train(recorded(), steps)
    ours = clips.learner_of(built, recipe, steps)
    nobodys = torch.full((SIZE.batch,), -1)
    losses = []
    for number, chosen in enumerate(rows):
        lengths = (tokens[chosen] != tokenizer.pad_id).sum(1)
        block = Block(pixels[chosen], tokens[chosen].int(), nobodys, number * SIZE.batch, lengths)
        losses.append(ours.step(number, [block]).loss)
    curves = {"open_clip": theirs.losses, MOVED: moved.losses, "ours": losses}
    means = {name: torch.stack(curve).view(-1, WINDOW_STEPS).mean(1) for name, curve in curves.items()}
    print(f"  losses, means of {WINDOW_STEPS} steps:")
    for name, mean in means.items():
        print(f"  {name:44}" + " ".join(f"{value:.3f}" for value in mean))
    agreement = {name: 1 - float(((mean - means["open_clip"]).abs() / mean).max()) for name, mean in means.items()}
    print(f"  open_clip agrees with itself, moved by a millionth, to {agreement[MOVED]:.4f}", flush=True)
    return agreement["ours"]
