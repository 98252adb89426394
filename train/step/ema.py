"""Averaged weights: an evaluation copy of the model that has memory of its own only where needed.

    ema = evaluation_copy(model)          # all tensors are the model's
    average = follow(ema, model)          # at a stage's beginning: what is trained gets its own
    update_average(average, step, 0.999)  # in every step

Buffers are the model's own: BatchNorm writes its statistics in place, so the copy has them without
being told. A parameter is the model's own as long as its average is equal to it, as for one that no
stage has trained yet. One that was trained and is then frozen is averaged on, because its average
still has a way to go; where it has arrived, the next stage lets it go.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

PIECE_BYTES: Final = 64 * 2**20
"""Memory that an update may take for differences: large models are averaged piece by piece."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """The tensors that are averaged and those that they follow, in pieces of one type each."""

    pieces: tuple[tuple[list[Tensor], list[Tensor]], ...]


def evaluation_copy(model: M) -> M:
    """Return the model in evaluation, its modules copied, its parameters and buffers shared."""
    shared: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(model, shared).eval()


@torch.no_grad()
def follow(ema: nn.Module, model: nn.Module) -> Average:
    """Give what is trained now memory of its own in ``ema``; return what must be averaged.

    A frozen parameter whose average is equal to it is shared with the model again. This waits for
    the device.
    """
    pieces: list[tuple[list[Tensor], list[Tensor]]] = []
    sizes: dict[tuple[torch.dtype, torch.device], tuple[int, int]] = {}
    for averaged, trained in zip(ema.parameters(), model.parameters(), strict=True):
        if trained.requires_grad and _is_shared(averaged, trained):
            averaged.data = trained.detach().clone()
        elif not trained.requires_grad and torch.equal(averaged, trained):
            averaged.data = trained.detach()
        if _is_shared(averaged, trained):
            continue
        kind = (trained.dtype, trained.device)
        number, size = sizes.get(kind, (-1, PIECE_BYTES))
        if number < 0 or size + trained.nbytes > PIECE_BYTES:
            number, size = len(pieces), 0
            pieces.append(([], []))
        pieces[number][0].append(averaged.detach())
        pieces[number][1].append(trained.detach())
        sizes[kind] = number, size + trained.nbytes
    return Average(pieces=tuple(pieces))


@torch.no_grad()
def update_average(average: Average, step: Tensor, decay: float) -> None:
    """Move the averaged weights towards the model.

    The decay grows as (1 + step) / (10 + step), so that the first steps do not linger.

    Args:
        average: Of ``follow``.
        step: From 0, on the device: a replayed graph reads it again.
        decay: Largest decay.
    """
    if not average.pieces:
        return
    weight = 1.0 - torch.clamp((1.0 + step) / (10.0 + step), max=decay)
    for averaged, trained in average.pieces:
        moves = torch._foreach_sub(trained, averaged)  # noqa: SLF001 - torch's own optimisers' way
        torch._foreach_mul_(moves, weight)
        torch._foreach_add_(averaged, moves)


@torch.no_grad()
def load_average(ema: nn.Module, model: nn.Module, values: Mapping[str, Tensor]) -> Average:
    """Put a checkpoint's averaged weights into ``ema``, after the model's own are in the model.

    ``values`` is a whole state dict, as ``ema.state_dict()`` gives it, shared or not.

    Raises:
        RuntimeError: If names or shapes are not those of the model.
    """
    for (name, averaged), trained in zip(ema.named_parameters(), model.parameters(), strict=True):
        value = values.get(name)
        if value is None or not _is_shared(averaged, trained):
            continue
        if value.shape != trained.shape or not torch.equal(value.to(trained.device), trained):
            averaged.data = trained.detach().clone()  # or it would be written into the model
    ema.load_state_dict(dict(values))
    return follow(ema, model)


def _is_shared(averaged: Tensor, trained: Tensor) -> bool:
    return averaged.data_ptr() == trained.data_ptr()
