"""Weights of the losses that go from one stage's to the next one's while the stage goes on.

They are changed in place on the device: what is compiled or captured reads them there.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from train.losses.config import TERMS, LossConfig, weights_of
from train.losses.plan import LossPlan, Weights
from train.step.stages import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Ramp:
    """Of one stage."""

    steps: float
    """Its length."""
    groups: tuple[tuple[Tensor, Tensor, Tensor], ...]
    """The weights that the losses read, their values at the beginning and at the end, on the
    device."""


def loss_of(stage: Stage) -> LossConfig:
    """Return the losses of a stage with every term on that is on at either end of its ramp."""
    if not stage.ramp:
        return stage.loss
    before, after = weights_of(stage.ramp_from), weights_of(stage.loss)
    most = {n: max(before.get(n, 0.0), after.get(n, 0.0)) for n in before | after}
    return weighted(stage.loss, most)


def weighted(loss: LossConfig, weights: Mapping[str, float]) -> LossConfig:
    """Return ``loss`` with these weights, of shared terms and of the family's own."""
    shared: dict[str, Any] = {n: w for n, w in weights.items() if n in TERMS}
    extra = loss.extra | {n: w for n, w in weights.items() if n not in TERMS}
    return dataclasses.replace(loss, **shared, extra=extra)


def weights_at(stage: Stage, step: int) -> dict[str, float]:
    """Return the weight of every term in a step of the run."""
    after = weights_of(stage.loss)
    if not stage.ramp:
        return after
    before, way = weights_of(stage.ramp_from), _way(step - stage.begin, stage.ramp * stage.steps)
    names = weights_of(loss_of(stage))
    return {n: (1 - way) * before.get(n, 0.0) + way * after.get(n, 0.0) for n in names}


def ramp_of(stage: Stage, plan: LossPlan) -> Ramp | None:
    """Return the ramp of a stage; ``plan`` is that of ``loss_of(stage)``. None without a ramp."""
    if not stage.ramp:
        return None

    def on_device(loss: LossConfig, weights: Weights) -> Tensor:
        values = weights_of(loss)
        return torch.tensor([values.get(n, 0.0) for n in weights.names]).to(weights.lam)

    groups = [
        (w.lam, on_device(stage.ramp_from, w), on_device(stage.loss, w)) for _, w in plan.groups
    ]
    return Ramp(steps=stage.ramp * stage.steps, groups=tuple(groups))


@torch.no_grad()
def set_weights(ramp: Ramp, within: int) -> None:
    """Write the weights of a step, counted from the stage's beginning, without waiting."""
    for lam, before, after in ramp.groups:
        torch.lerp(before, after, _way(within, ramp.steps), out=lam)


def _way(within: int, steps: float) -> float:
    """Return how far the ramp has come, 0 to 1."""
    return min(1.0, within / steps)
