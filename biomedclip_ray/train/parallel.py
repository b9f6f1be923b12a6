"""One gradient for all workers: DDP, which reduces it while the backward pass still runs, or FSDP2 for towers that do
not fit.

Both average over workers, while a worker's part of a contrastive gradient is a share of one sum: who calls them scales
by the number of workers (see step.py). Under FSDP the blocks of the image tower are sharded one by one and everything
else as one unit: captions at natural length run the text tower a different number of times on each worker, and a
collective inside it would wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from biomedclip_ray.run import private
from biomedclip_ray.train.towers import Towers, repeated_blocks


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def wrap(towers: Towers, shard: bool) -> nn.Module:
    """The towers as one of a group of workers; themselves where there is no group."""
    if world_size() == 1:
        return towers
    device = next(towers.parameters()).device
    if not shard:
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(towers, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True)
    mesh = init_device_mesh(device.type, (world_size(),))
    # from the inside out, as FSDP asks: a stage of ConvNeXt is a block, and holds some
    for block in reversed(list(repeated_blocks(towers.model.get_submodule("visual")))):
        fully_shard(block, mesh=mesh)
    scalars = {p for p in towers.parameters() if p.ndim == 0}  # FSDP shards by rows: a number has none
    fully_shard(towers, mesh=mesh, ignored_params=scalars)
    for module in towers.modules():
        if isinstance(module, FSDPModule) and device.type == "cpu":
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot average
    return towers


@contextmanager
def accumulating(wrapped: nn.Module) -> Iterator[None]:
    """Forward and backward in here add to the local gradient; DDP reduces it in the next pass outside. FSDP always
    reduces: what it would keep is the whole gradient, which does not fit.
    """
    if isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    else:
        yield


def average_scalars(wrapped: nn.Module) -> None:
    """Reduce what FSDP leaves alone."""
    if world_size() > 1 and not isinstance(wrapped, DistributedDataParallel):
        for parameter in wrapped.parameters():
            if parameter.grad is not None and not isinstance(parameter, DTensor):
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """2-norm over all tensors, sharded ones whole; scalar, the same on every worker."""
    sharded = [t for t in tensors if isinstance(t, DTensor)]
    plain = [t for t in tensors if not isinstance(t, DTensor)]
    norm = torch.nn.utils.get_total_norm(plain)
    if sharded:
        shards: Tensor = torch.nn.utils.get_total_norm(sharded)
        whole = shards.full_tensor() if isinstance(shards, DTensor) else shards
        norm = torch.hypot(norm.to(whole.device), whole)
    return norm


def scale_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply tensors in place, by their own part where they are sharded."""
    private.scale_(_local(tensors), factor)


def lerp_(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: Tensor) -> None:
    """Move tensors in place by `weight` (scalar, on the device) of the way to `ends`; each worker its own part."""
    private.lerp_(_local(tensors), _local(ends), weight)


def _local(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
