"""Which loss terms a run computes, in which groups, and with which weights.

A family's ``GROUPS`` (``train.losses.families``) say which terms there are and how they are
computed from a prediction and a batch. The weights lie on the device: another schedule or stage
changes numbers, not kernels or graphs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from model.families import DEFAULT_FAMILY, FAMILIES, imported
from model.mano.anatomy import anatomical_frames, limits_rad
from model.prediction import Prediction
from pipeline.batch import Batch
from pipeline.labels.objects import ObjectModels
from train.losses.config import TERMS, Distance, Impl, LossConfig, weights_of
from train.losses.inputs import GroupLoss
from train.losses.scene import Posed, Surfaces, surfaces_of

MAX_TERMS: Final = 63
"""Terms that a bit mask of a sample can tell apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshTarget:
    """Ground-truth mesh, decoded from the labels with the same MANO layer."""

    vertices: Tensor
    """[b, h, 778, 3], input camera frame, metres; any value where has_mano & has_beta is False."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Weights of the terms of one group that are on."""

    names: tuple[str, ...]
    lam: Float[Tensor, " t"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of the finger joints; see ``model.mano.anatomy``."""

    frames: Float[Tensor, "s 15 3 3"]
    low_rad: Float[Tensor, "15 3"]
    high_rad: Float[Tensor, "15 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSettings:
    """How terms are measured, and what they need beside prediction and batch."""

    joint_weight: Float[Tensor, "21"] | None
    limits: Limits | None
    """Where joint_limits is on."""
    surfaces: Surfaces | None
    """Of the run's objects, if it has any."""
    distance: Distance
    smooth_m: float
    impl: Impl


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    """What a group of terms is computed from: frames of a batch in a row [b]."""

    prediction: Prediction
    batch: Batch
    mesh: MeshTarget | None
    posed: Posed | None
    """The acted-on object's surface under both poses, where one is predicted and known."""
    num_frames: int
    """Neighbours in the batch that form one window."""
    settings: LossSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Terms that are computed together."""

    names: tuple[str, ...]
    compute: Callable[[LossInputs, Weights], GroupLoss | None]
    """The terms of ``Weights.names``; None where the prediction has not what they are about."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Default weights of terms that are the family's own, not in ``train.losses.config.TERMS``."""
    needs_mesh: bool = False
    """The labels' meshes must be decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossPlan:
    """Groups with the weights of their terms, resolved once per stage."""

    groups: tuple[tuple[Group, Weights], ...]
    """Those with a term that is on."""
    terms: tuple[str, ...]
    """All terms of the family, on or off, in the order of the learned weights."""
    settings: LossSettings

    @property
    def needs_mesh(self) -> bool:
        """Whether the labels' meshes must be decoded."""
        return any(group.needs_mesh for group, _ in self.groups)


def groups_of(family: str) -> tuple[Group, ...]:
    """Return the loss groups of a model family."""
    groups: tuple[Group, ...] = imported(FAMILIES[family].losses)
    return groups


def own_terms(groups: Sequence[Group]) -> dict[str, float]:
    """Return the terms that only this family has, with their default weights."""
    return {name: weight for group in groups for name, weight in group.weights.items()}


def plan_losses(
    config: LossConfig,
    device: torch.device,
    joints_rest: Float[Tensor, "s 16 3"] | None = None,
    objects: ObjectModels | None = None,
    *,
    family: str = DEFAULT_FAMILY,
) -> LossPlan:
    """Return the plan with its weights on the device.

    ``joints_rest``: of the model's MANO layer, None without one; joint_limits needs it.
    ``objects``: of the loader; the terms of ``train.losses.scene`` need them.

    Raises:
        ValueError: If ``loss.extra`` has a term that the family does not have.
    """
    groups = groups_of(family)
    own = own_terms(groups)
    weights = weights_of(config, own)
    unweighted = {name for group in groups for name in group.names} - {*TERMS, *own, "contact"}
    assert not unweighted, f"terms without a default weight in their Group: {sorted(unweighted)}"
    limits = None
    if "joint_limits" in weights and joints_rest is not None:
        low, high = (angles.to(device) for angles in limits_rad())
        limits = Limits(frames=anatomical_frames(joints_rest), low_rad=low, high_rad=high)
    joint_weight = None
    if config.joint_weights:
        joint_weight = torch.tensor(config.joint_weights, device=device)
    weighted = [(group, weights_on(device, weights, group.names)) for group in groups]
    return LossPlan(
        groups=tuple((group, on) for group, on in weighted if on.names),
        terms=(*TERMS, *own),
        settings=LossSettings(
            limits=limits,
            surfaces=None if objects is None or not objects.names else surfaces_of(objects),
            joint_weight=joint_weight,
            distance=config.distance,
            smooth_m=config.smooth_m,
            impl=config.impl,
        ),
    )


def weights_on(device: torch.device, weights: Mapping[str, float], names: Sequence[str]) -> Weights:
    """Return the weights of those of ``names`` that are not 0, in their order."""
    on = tuple(name for name in names if weights.get(name, 0.0) > 0)
    lam = torch.tensor([weights[name] for name in on], dtype=torch.float32, device=device)
    return Weights(names=on, lam=lam)
