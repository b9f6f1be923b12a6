"""Both towers and the temperature behind one `forward`: what DDP and FSDP hook into, compiled and thinned as
configured.

Everything here leaves the weights' names and numbers alone: a compiled block, a dropped patch and a trimmed caption are
ways to run the same model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from biomedclip_ray.config import ConfigError
from biomedclip_ray.train.lengths import encode_at_natural_length, encode_text, ignores_padding, take_fewer_tokens

log = logging.getLogger(__name__)


class Vectors(NamedTuple):
    """What a loss needs.

    Attributes:
        image, text: float32 (n, d), of unit length.
        scale: float32 (), the temperature's inverse, exponentiated.
        bias: float32 (), added to every logit; None: the model has none.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None


class Towers(nn.Module):
    """open_clip's model as one function of a block of pairs.

    Attributes:
        mean, std: float32 (1, 3, 1, 1), of pixels in [0, 255].
        trims: whether captions run at their natural length.
        size: height and width of the images.
        context: tokens of a caption at most.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], bf16: bool, lock: Sequence[str] = ()
    ) -> None:
        """`mean` and `std` of RGB in [0, 1]; `bf16`: autocast in the towers, vectors stay float32;
        `lock`: see `lock`.
        """
        super().__init__()
        self.model = model
        self.bf16 = bf16
        self.still = [norm for name, norm in running_norms(model) if _side(name) in lock]
        self.trims = ignores_padding(model)
        if self.trims:
            take_fewer_tokens(model)
        described: Any = model
        self.size: tuple[int, int] = to_2tuple(described.visual.image_size)
        self.context = int(described.context_length)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def train(self, mode: bool = True) -> Self:
        """As any module, but a locked tower's batch statistics stand still: they are what it has learned, too."""
        super().train(mode)
        for norm in self.still:
            norm.eval()
        return self

    def forward(self, pixels: Tensor, tokens: Tensor, lengths: Sequence[int] | None = None) -> Vectors:
        """Encode a block.

        Args:
            pixels: uint8 (n, h, w, 3).
            tokens: int32 (n, context).
            lengths: tokens of each text without padding, on the host; None: not known, the padding is paid for.
        """
        model: Any = self.model
        inputs = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            image = model.encode_image(inputs, normalize=True)
            if self.trims and lengths is not None:
                text = encode_at_natural_length(partial(encode_text, model), tokens.long(), lengths)
            else:
                text = encode_text(model, tokens.long())
        bias = getattr(model, "logit_bias", None)
        # no parameter itself: FSDP hooks what comes out, each time, and from a parameter the hooks never go
        return Vectors(image.float(), text.float(), model.logit_scale.exp(), None if bias is None else bias.clone())


def lock(model: nn.Module, tower: str) -> None:
    """Train no parameter of the "image" or the "text" tower; each of open_clip's two classes has its own names."""
    other = {"logit_scale", "logit_bias"}
    for name, parameter in model.named_parameters():
        if name not in other and _side(name) == tower:
            parameter.requires_grad_(False)


def running_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The norms that keep statistics of the batches they saw, by name."""
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            yield name, module


@contextmanager
def passing_by(norms: Sequence[Any]) -> Iterator[None]:
    """In here norms use their batch's statistics and keep none: a pass that comes again would move them twice."""
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _side(name: str) -> str:
    return "image" if name.startswith("visual.") else "text"


def leave_out_unused(towers: Towers) -> list[str]:
    """Stop training parameters that no vector depends on, such as a pooler nobody asks: DDP would wait for their
    gradient.

    They are found by one backward pass over two blank pairs; returns their names.
    """
    model = towers.model
    device = next(towers.parameters()).device
    training = towers.training
    towers.eval()
    vectors = towers(
        torch.zeros(2, *towers.size, 3, dtype=torch.uint8, device=device),
        torch.ones(2, towers.context, dtype=torch.int32, device=device),
    )
    moving = [
        v for v in (vectors.image, vectors.text, vectors.scale, vectors.bias) if v is not None and v.requires_grad
    ]
    torch.autograd.backward(moving, [torch.ones_like(v) for v in moving])
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    towers.zero_grad(set_to_none=True)
    towers.train(training)
    if unused:
        log.info("train: no vector depends on %s; left as they are", ", ".join(unused))
    return unused


def repeated_blocks(tower: nn.Module) -> Iterator[nn.Module]:
    """The equal blocks that a transformer is a list of, whatever library wrote it: what is compiled or sharded one by
    one.
    """
    for module in tower.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1:
            composite = any(True for _ in module[0].children())
            if composite and len({type(block) for block in module}) == 1:
                yield from module


def compile_blocks(model: nn.Module) -> None:
    """torch.compile each repeated block in place: names stay, and equal blocks share one compilation."""
    for block in repeated_blocks(model):
        block.compile()


def patch_dropout_slot(model: nn.Module) -> tuple[Any, str, int]:
    """Where the image tower drops its patches: module, attribute, and tokens in front that are no patches.

    Raises:
        ConfigError: the image tower has no patches.
    """
    from open_clip.transformer import VisionTransformer

    visual: Any = model.get_submodule("visual")
    trunk: Any = getattr(visual, "trunk", None)
    if isinstance(visual, VisionTransformer):
        return visual, "patch_dropout", 1
    if trunk is not None and hasattr(trunk, "patch_drop"):
        return trunk, "patch_drop", trunk.num_prefix_tokens
    raise ConfigError(
        f"train.patch_dropout needs patches: the image tower {type(trunk or visual).__name__} has none to leave out; "
        "set "
        "train.patch_dropout=0"
    )


class PatchDropout:
    """Turns off and on the share of image tokens that training leaves out (FLIP, Li et al. 2023, arXiv 2212.00794)."""

    def __init__(self, model: nn.Module, share: float) -> None:
        """Raises ConfigError where the image tower has no tokens to drop."""
        from timm.layers import PatchDropout as Layer  # open_clip's own draws on the CPU and waits for the device

        self.share = share
        owner, name, prefix = patch_dropout_slot(model)
        self.layer = Layer(share, num_prefix_tokens=prefix)
        setattr(owner, name, self.layer)

    def turn(self, on: bool) -> None:
        self.layer.prob = self.share if on else 0.0
