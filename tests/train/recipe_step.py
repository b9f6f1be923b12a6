"""Two steps of a shipped recipe with its real towers at random weights: `python recipe_step.py CONFIG [key=value ...]`
prints what moved, as JSON. A recipe that caches features does so here too, in passes of two pairs.
"""

from __future__ import annotations

import json
import sys

import torch

from biomedclip_ray.clip.model import build_model, build_tokenizer
from biomedclip_ray.config import load
from biomedclip_ray.train.step import Block, Learner


def main(path: str, overrides: list[str]) -> None:
    caches = load(path).train.resources.forward_pairs is not None
    small = ["model.init=random", "train.resources.compile=false"] + ["train.resources.forward_pairs=2"] * caches
    config = load(path, [*small, *overrides])
    torch.manual_seed(0)
    captions = ["a gel", "two round cells of the lung, stained blue", "an axial scan " * 20, "a chart"]
    tokenizer = build_tokenizer(config.model, captions)
    built = build_model(config.model, tokenizer)
    before = {name: value.clone() for name, value in built.model.named_parameters()}
    learner = Learner(built.model, config.train, 100, built.preprocess_cfg["mean"], built.preprocess_cfg["std"])
    tokens = torch.from_numpy(tokenizer(captions))
    lengths = (tokens != tokenizer.pad_id).sum(1)
    side = built.model.visual.image_size
    side = side if isinstance(side, int) else side[0]
    pixels = torch.randint(0, 256, (len(captions), side, side, 3), dtype=torch.uint8)
    nobodys = torch.full((len(captions),), -1)
    blocks = [
        Block(pixels[part], tokens[part].int(), nobodys[part], part.start, lengths[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    learner.step(0, blocks)
    passes: list[int] = []  # pairs that go through the image tower together
    built.model.visual.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    result = learner.step(1, blocks)
    moved = {
        name.split(".")[0] for name, value in built.model.named_parameters() if not torch.equal(value, before[name])
    }
    found = {"loss": float(result.loss), "side": side, "context": int(tokens.shape[1])}
    print(json.dumps({**found, "moved": sorted(moved), "passes": passes}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
