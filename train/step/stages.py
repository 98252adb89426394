"""A run in stages: each has its own length, learning rate, losses, frozen parts, augmentation."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipeline.config import AugmentConfig, PipelineConfig
from train.config import RunConfig, StageConfig
from train.device.distributed import Ranks, require_same_statistics
from train.losses.config import FRAMES_OF, TERMS, LossConfig, weights_of
from train.losses.plan import groups_of, own_terms
from train.step.optim import parameters_of

RANGES = ("rotation_deg", "scale", "shift", "gain", "brightness", "contrast", "saturation")
"""Of the augmentation; its chances are multiplied as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage with every value filled in."""

    name: str
    begin: int
    """First step of the run that belongs to it."""
    end: int
    lr: float
    """Peak of its schedule, which starts anew with it."""
    pipeline: PipelineConfig
    loss: LossConfig
    freeze: tuple[str, ...]
    train: tuple[str, ...]
    """If there are any, the only modules that are trained."""
    ramp: float
    """Share of it over which the weights of the losses go from ``ramp_from`` to ``loss``."""
    ramp_from: LossConfig

    @property
    def steps(self) -> int:
        """Its length."""
        return self.end - self.begin


def resolve_stages(
    config: RunConfig, steps_per_epoch: Callable[[PipelineConfig], int]
) -> tuple[Stage, ...]:
    """Return the stages of a run; one of ``steps`` steps if it names none.

    Args:
        config: The run.
        steps_per_epoch: Batches of an epoch; asked where a stage's length is in epochs.

    Raises:
        ValueError: If a stage has no length, or names a loss term that there is not.
    """
    if not config.stages:
        whole = StageConfig(steps=config.steps)
        return (_filled("train", whole, None, config, steps_per_epoch),)
    stages: list[Stage] = []
    for name, stage in config.stages.items():
        before = stages[-1] if stages else None
        stages.append(_filled(name, stage, before, config, steps_per_epoch))
    return tuple(stages)


def stage_at(stages: tuple[Stage, ...], step: int) -> Stage:
    """Return the stage of a step; of the last one beyond the end."""
    return next((stage for stage in stages if step < stage.end), stages[-1])


def frozen_by(model: nn.Module, stage: Stage) -> tuple[str, ...]:
    """Return the modules, and parameters outside of them, that a stage does not train.

    Of ``train`` it is the complement: the largest modules that hold nothing of what is trained.

    Raises:
        ValueError: If the stage names a module that is not there; lists what there is.
    """
    key = f"stages.{stage.name}"
    if not stage.train:
        list(parameters_of(model, stage.freeze, f"{key}.freeze"))
        return stage.freeze
    trained = {name for name, _ in parameters_of(model, stage.train, f"{key}.train")}
    return tuple(_complement(model, "", trained))


def _complement(module: nn.Module, path: str, trained: Set[str]) -> Iterator[str]:
    for name, _ in module.named_parameters(path, recurse=False):
        if name not in trained:
            yield name
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        parameters = {own for own, _ in child.named_parameters(inside)}
        if parameters & trained:
            yield from _complement(child, inside, trained)
        elif parameters:
            yield inside


def freeze(model: nn.Module, names: tuple[str, ...], trainable: frozenset[str]) -> None:
    """Train the parameters ``trainable`` but for those of the named modules.

    Raises:
        ValueError: If a module is not there; lists what there is.
    """
    frozen = {name for name, _ in parameters_of(model, names)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable and name not in frozen)


def require_trainable(model: nn.Module, stage: Stage, ranks: Ranks) -> None:
    """Refuse a stage that trains nothing, or what several ranks cannot train.

    Raises:
        ValueError: If a frozen module is not there, nothing is left, or a BatchNorm would see
            other statistics on every rank.
    """
    frozen = {name for name, _ in parameters_of(model, frozen_by(model, stage))}
    left = trainable_names(model) - frozen
    if not left:
        key = "train" if stage.train else "freeze"
        raise ValueError(f"stages.{stage.name}.{key} leaves nothing to train")
    require_same_statistics(model, left, ranks)


def trainable_names(model: nn.Module) -> frozenset[str]:
    """Return the parameters that are trained unless a stage freezes them."""
    return frozenset(name for name, p in model.named_parameters() if p.requires_grad)


def training_mode(model: nn.Module, frozen: tuple[str, ...]) -> None:
    """Put a model into training mode, but its frozen modules into that of evaluation.

    This walks over all modules: call it where modes change, not in every step.
    """
    model.train()
    for name, module in model.named_modules():
        if name in frozen:
            module.eval()


def _filled(
    name: str,
    stage: StageConfig,
    before: Stage | None,
    config: RunConfig,
    steps_per_epoch: Callable[[PipelineConfig], int],
) -> Stage:
    if (stage.steps > 0 and stage.epochs > 0) or not (stage.steps or stage.epochs):
        raise ValueError(f"stages.{name} needs steps or epochs, one of them")
    pipeline = dataclasses.replace(
        config.pipeline,
        batch_size=stage.batch_size or config.pipeline.batch_size,
        augment=_scaled(config.pipeline.augment, stage.augment),
    )
    own = own_terms(groups_of(config.model.family))
    unknown = sorted(stage.loss.keys() - {*TERMS, *own})
    if unknown:
        there = ", ".join((*TERMS, *own))
        raise ValueError(f"stages.{name}.loss has no term {unknown[0]!r}; there are {there}")
    shared: dict[str, Any] = {term: stage.loss[term] for term in stage.loss if term in TERMS}
    given = {term: stage.loss[term] for term in stage.loss if term in own}
    whole = dataclasses.replace(config.loss, extra=own | config.loss.extra)
    loss = dataclasses.replace(whole, **shared, extra=whole.extra | given)
    ramp_from = whole if before is None else before.loss
    if stage.ramp and config.loss.uncertainty:
        raise ValueError(
            f"stages.{name}.ramp={stage.ramp:g} and loss.uncertainty=true both change the weights "
            "of the losses; leave one of them out"
        )
    on = weights_of(loss) | (weights_of(ramp_from) if stage.ramp else {})
    for term, least in FRAMES_OF.items():
        if term in on and pipeline.window.length < least:
            raise ValueError(
                f"loss.{term} needs windows of at least {least} frames: pipeline.window.length is "
                f"{pipeline.window.length}"
            )
    steps = stage.steps or max(1, math.ceil(stage.epochs * steps_per_epoch(pipeline)))
    begin = 0 if before is None else before.end
    return Stage(
        name=name,
        begin=begin,
        end=begin + steps,
        lr=config.optim.lr if stage.lr is None else stage.lr,
        pipeline=pipeline,
        loss=loss,
        freeze=tuple(stage.freeze),
        train=tuple(stage.train),
        ramp=stage.ramp,
        ramp_from=ramp_from,
    )


def _scaled(augment: AugmentConfig, strength: float) -> AugmentConfig:
    ranges = {name: getattr(augment, name) * strength for name in RANGES}
    ranges["rotation_deg"] = min(180.0, ranges["rotation_deg"])
    for name in ("scale", "shift"):
        ranges[name] = min(0.5, ranges[name])
    for name in ("gain", "brightness", "contrast", "saturation"):
        ranges[name] = min(1.0, ranges[name])
    erase = min(1.0, augment.erase_probability * strength)
    return dataclasses.replace(augment, **ranges, erase_probability=erase)
