"""Total loss: the weighted sum of terms as one scalar, and the named terms.

The total is the sum over terms of weight times the mean over the batch of the per-sample value.
Samples without a label count as 0 in that mean, so neither batch size nor rank count changes the
mix; the fraction of samples that had a label for each term is logged beside it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.prediction import Prediction
from pipeline.batch import Batch
from train.losses.config import Impl
from train.losses.inputs import GroupLoss
from train.losses.plan import MAX_TERMS, LossInputs, LossPlan, MeshTarget, Weights
from train.losses.scene import posed


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """Values of all terms, detached, on the device: read them at log points only."""

    names: tuple[str, ...]
    values: Float[Tensor, "t b"]
    """Every term of every sample, unweighted."""
    seen: Bool[Tensor, "t b"]
    """Whether the sample had a label for the term."""


def total_loss(
    prediction: Prediction,
    batch: Batch,
    mesh: MeshTarget | None,
    plan: LossPlan,
    log_variance: Float[Tensor, " n"] | None = None,
    *,
    num_frames: int = 1,
) -> tuple[Tensor, LossTerms]:
    """Return the total loss and its terms; terms on quantities not predicted are left out.

    With ``log_variance`` s, a parameter with one element for each of ``plan.terms``, a sample's
    term v of weight w becomes ``w exp(-s) v + s``, where the sample has a label for it.
    ``num_frames`` consecutive frames are a window; temporal terms need more than one.

    Raises:
        ValueError: If Triton is asked for where it cannot run.

    Source:
        Kendall et al. 2018, Multi-task learning using uncertainty to weigh losses; equation 7
        without its constants.
    """
    if log_variance is not None:
        plan = _balanced(plan, log_variance)
    surfaces, obj = plan.settings.surfaces, prediction.object
    inputs = LossInputs(
        prediction=prediction,
        batch=batch,
        mesh=mesh,
        posed=None if obj is None or surfaces is None else posed(obj, batch, surfaces),
        num_frames=num_frames,
        settings=plan.settings,
    )
    groups: list[tuple[tuple[str, ...], GroupLoss]] = []
    for group, weights in plan.groups:
        loss = group.compute(inputs, weights)
        if loss is not None:
            groups.append((weights.names, loss))
    total, terms = together(groups)
    if log_variance is not None:
        own = _of_terms(log_variance, terms.names, plan.terms)
        total = total + (own * terms.seen.to(own.dtype).mean(1)).sum()
    return total, terms


def _balanced(plan: LossPlan, log_variance: Tensor) -> LossPlan:
    """Return the plan with the learned weights ``w exp(-s)``, which have a gradient."""

    def scaled(weights: Weights) -> Weights:
        factor = (-_of_terms(log_variance, weights.names, plan.terms)).exp()
        return Weights(names=weights.names, lam=weights.lam * factor)

    return dataclasses.replace(
        plan,
        settings=dataclasses.replace(plan.settings, impl=Impl.eager),
        groups=tuple((group, scaled(weights)) for group, weights in plan.groups),
    )


def _of_terms(log_variance: Tensor, names: tuple[str, ...], terms: tuple[str, ...]) -> Tensor:
    # Element by element: an index tensor would be copied to the device.
    return torch.stack([log_variance[terms.index(name)] for name in names])


def together(groups: Sequence[tuple[tuple[str, ...], GroupLoss]]) -> tuple[Tensor, LossTerms]:
    """Return the sum of named groups and all of their terms.

    Raises:
        ValueError: If there is no term, or more than ``MAX_TERMS``.
    """
    names = tuple(name for group, _ in groups for name in group)
    if not 0 < len(names) <= MAX_TERMS:
        raise ValueError(
            f"between 1 and {MAX_TERMS} loss terms can be minimised, got {len(names)}; give a "
            "weight to a term that the model predicts"
        )
    total = torch.stack([loss.total for _, loss in groups]).sum()
    values = torch.cat([loss.values for _, loss in groups])
    seen = torch.cat([loss.seen for _, loss in groups])
    return total, LossTerms(names=names, values=values, seen=seen)
