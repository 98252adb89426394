"""Loss plan of a run: active terms, their groups and weights.

A family's ``GROUPS`` (``train.losses.families``) define the terms and how they are computed from a
prediction and a batch. The weights are on the device: another schedule or stage changes numbers,
not kernels or graphs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from model.families import DEFAULT_FAMILY, imported, row_of
from model.mano.anatomy import anatomical_frames, limits_rad
from model.prediction import Prediction
from pipeline.batch import Batch
from pipeline.labels.objects import ObjectModels
from train.losses.config import TERMS, Distance, Impl, LossConfig, weights_of
from train.losses.inputs import GroupLoss
from train.losses.scene import Posed, Surfaces, surfaces_of

MAX_TERMS: Final = 63
"""Maximum number of terms: the bits of a sample's mask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshTarget:
    """Ground-truth mesh, decoded from the labels with the same MANO layer."""

    vertices: Tensor
    """[b, h, 778, 3], input camera frame, metres; arbitrary where has_mano & has_beta is False."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Weights of the active terms of one group."""

    names: tuple[str, ...]
    lam: Float[Tensor, " t"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Anatomical limits of the finger joints; see ``model.mano.anatomy``."""

    frames: Float[Tensor, "s 15 3 3"]
    low_rad: Float[Tensor, "15 3"]
    high_rad: Float[Tensor, "15 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSettings:
    """Settings of the terms, and their inputs in addition to prediction and batch."""

    joint_weight: Float[Tensor, "21"] | None
    limits: Limits | None
    """Given where joint_limits is active."""
    surfaces: Surfaces | None
    """Surfaces of the run's objects, if it has any."""
    distance: Distance
    smooth_m: float
    impl: Impl


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    """Inputs of a group of terms: the frames of a batch, flattened to [b]."""

    prediction: Prediction
    batch: Batch
    mesh: MeshTarget | None
    posed: Posed | None
    """Surface of the acted-on object under predicted and true pose, where both exist."""
    num_frames: int
    """Consecutive frames in the batch that form one window."""
    settings: LossSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Terms that are computed together."""

    names: tuple[str, ...]
    compute: Callable[[LossInputs, Weights], GroupLoss | None]
    """Computes the terms of ``Weights.names``; None where the prediction lacks their quantity."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Default weights of family-specific terms, those not in ``train.losses.config.TERMS``."""
    needs_mesh: bool = False
    """Whether the labels' meshes must be decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossPlan:
    """Groups with the weights of their terms, resolved once per stage."""

    groups: tuple[tuple[Group, Weights], ...]
    """Groups with an active term."""
    terms: tuple[str, ...]
    """All terms of the family, on or off, in the order of the learned weights."""
    settings: LossSettings

    @property
    def needs_mesh(self) -> bool:
        """Whether the labels' meshes must be decoded."""
        return any(group.needs_mesh for group, _ in self.groups)


def groups_of(family: str) -> tuple[Group, ...]:
    """Return the loss groups of a model family."""
    groups: tuple[Group, ...] = imported(row_of(family).losses)
    return groups


def own_terms(groups: Sequence[Group]) -> dict[str, float]:
    """Return the family-specific terms with their default weights."""
    return {name: weight for group in groups for name, weight in group.weights.items()}


def plan_losses(
    config: LossConfig,
    device: torch.device,
    joints_rest: Float[Tensor, "s 16 3"] | None = None,
    objects: ObjectModels | None = None,
    *,
    family: str = DEFAULT_FAMILY,
) -> LossPlan:
    """Return the loss plan with its weights on the device.

    ``joints_rest``: from the model's MANO layer, None without one; joint_limits needs it.
    ``objects``: from the loader; the terms of ``train.losses.scene`` need them.

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
    """Return the nonzero weights among ``names``, in their order."""
    on = tuple(name for name in names if weights.get(name, 0.0) > 0)
    lam = torch.tensor([weights[name] for name in on], dtype=torch.float32, device=device)
    return Weights(names=on, lam=lam)
