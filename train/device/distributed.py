"""One process or many: ranks made by torchrun, gradients averaged, one writer.

    torchrun --nproc-per-node 8 -m train run store=... batch_size=2048

Every rank holds its share of the samples and of every global batch, so the batches are those of one
process whatever the number of ranks.
"""

import os
from collections.abc import Iterator, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.prediction import PARTS

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Number of the process on its machine, and of its GPU."""

    @property
    def is_first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0


ALONE = Ranks()


def is_first_rank() -> bool:
    """Return whether this process is rank 0, also before ranks are joined."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun there is this one.

    Raises:
        ValueError: If the environment is torchrun's but not whole.
    """
    if "RANK" not in os.environ:
        yield ALONE
        return
    missing = [
        name for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ
    ]
    if missing:
        raise ValueError(f"RANK is set, but {', '.join(missing)} is not; start with torchrun")
    ranks = Ranks(
        rank=int(os.environ["RANK"]),
        world=int(os.environ["WORLD_SIZE"]),
        local=int(os.environ["LOCAL_RANK"]),
    )
    on_gpu = device.type == "cuda"
    # Told its device, NCCL connects now and on this one; else the first collective guesses which.
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Return this rank's GPU; other devices are as they are."""
    if device.type != "cuda":
        return device
    local = int(os.environ.get("LOCAL_RANK", device.index or 0))
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def shared(value: T, ranks: Ranks) -> T:
    """Return the first rank's value."""
    if ranks.world == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def all_gather(value: T, ranks: Ranks) -> list[T]:
    """Return every rank's value, on every rank."""
    if ranks.world == 1:
        return [value]
    values: list[T] = [value] * ranks.world
    dist.all_gather_object(values, value)
    return values


def average_(values: Tensor, ranks: Ranks) -> Tensor:
    """Replace numbers by their mean over the ranks."""
    if ranks.world > 1:
        dist.all_reduce(values)
        values /= ranks.world
    return values


def any_(flag: Tensor, ranks: Ranks) -> Tensor:
    """Replace a number by the largest of all ranks."""
    if ranks.world > 1:
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag


def most_of(number: int, ranks: Ranks) -> int:
    """Return the largest of the ranks' numbers; this waits for the other ranks."""
    if ranks.world == 1:
        return number
    on_nccl = dist.get_backend() == "nccl"
    held = torch.tensor(number, device=torch.device("cuda" if on_nccl else "cpu"))
    return int(any_(held, ranks))


def parallel(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the model with averaged gradients; alone, the model itself.

    Raises:
        ValueError: If a BatchNorm would see other statistics on every rank.
    """
    if ranks.world == 1:
        return model
    require_same_statistics(
        model, {n for n, p in model.named_parameters() if p.requires_grad}, ranks
    )
    device = next(model.parameters()).device
    _show_outputs_to_torch()
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        static_graph=True,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # equal: BatchNorm is frozen, shared or refused
    )


def without_averaging(net: nn.Module) -> AbstractContextManager[None]:
    """Let gradients of this rank add up, to be averaged with those that follow.

    Without effect on a model that ``parallel`` has not wrapped.
    """
    wrapped: AbstractContextManager[None] = getattr(net, "no_sync", nullcontext)()
    return wrapped


def has_begun_to_average(net: nn.Module) -> bool:
    """Return whether a backward pass of a model of ``parallel`` ended in the middle."""
    try:
        net._check_reducer_finalized()  # type: ignore[operator]  # noqa: SLF001 - there is no other
    except RuntimeError:
        return True
    return False


def require_same_statistics(model: nn.Module, trained: Set[str], ranks: Ranks) -> None:
    """Refuse a trained BatchNorm on several ranks.

    Raises:
        ValueError: Says what to use instead.
    """
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        and any(f"{name}.{own}" in trained for own, _ in module.named_parameters())
    ]
    if norms and ranks.world > 1:
        raise ValueError(
            f"{len(norms)} BatchNorms (first: {norms[0]}) in training mode would see other "
            "statistics on every rank; use sync_bn=true, which shares them (GPUs only), published "
            "weights (model.pretrained=true freezes them), a backbone without BatchNorm (a ViT, or "
            "resnet50_gn), or one process"
        )


def with_shared_statistics(model: M, ranks: Ranks) -> M:
    """Return the model with every BatchNorm as torch's SyncBatchNorm; alone, as it is.

    Weights, buffers and their names are the same.

    Raises:
        ValueError: If the model is not on a GPU, where alone torch has a SyncBatchNorm.
    """
    if ranks.world == 1:
        return model
    if next(model.parameters()).device.type != "cuda":
        raise ValueError(
            "sync_bn=true needs GPUs: torch's SyncBatchNorm does not run on a CPU; use published "
            "weights (model.pretrained=true), a backbone without BatchNorm (a ViT, or "
            "resnet50_gn), or one process"
        )
    from timm.layers import norm_act  # torch's own would lose the activations of timm's BatchNorms

    shared: M = norm_act.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return shared


def has_shared_statistics(model: nn.Module) -> bool:
    """Return whether a forward pass in training mode waits for the other ranks."""
    return any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


@cache
def _show_outputs_to_torch() -> None:
    """Make the network's output a tree of tensors to torch.

    With a static graph the gradients of the first step are averaged by a hook on the outputs; on an
    output that torch cannot look into there is none, and the ranks go apart without a word.
    """
    for part in PARTS:
        torch.export.register_dataclass(part)
