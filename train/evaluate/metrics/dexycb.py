"""DexYCB's official hand protocol (toolkit, ``hpe_eval``): three alignments of the joints.

Joints are **millimetres**, the unit of its result files, and the alignment runs in them.
absolute: unaligned. root-relative: each hand minus its own joint 0. procrustes: FreiHAND's
``align_w_scale``. Means: over the samples for each joint, then over the joints. AUC: thresholds
``linspace(0, 50 mm, 100)``, error ``<=`` threshold, trapezoidal rule, over the full area.

Quirks, kept by default: the alignment may mirror the prediction (``num_reflected`` counts where,
``proper_pa_mpjpe_mm`` is the score without) and adds 1e-8 to its norms. strict: a proper rotation.

Source:
    Chao et al. 2021, DexYCB; its published evaluation, from its formulas.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from model.hand import NUM_JOINTS, ROOT
from train.evaluate.metrics.align import align_proper, align_w_scale, is_reflected
from train.evaluate.metrics.errors import (
    ErrorSums,
    add,
    auc,
    distance,
    error_sums,
    mean_error,
    require_finite,
    require_shape,
    thresholds,
    zero_sums,
)

AUC_MAX_MM: Final = 50.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DexycbScores:
    """Scores of the protocol."""

    num_samples: int
    mpjpe_mm: float
    auc: float
    rr_mpjpe_mm: float
    rr_auc: float
    pa_mpjpe_mm: float
    pa_auc: float
    num_reflected: int
    """Samples that the official alignment mirrors."""
    proper_pa_mpjpe_mm: float
    """``pa_mpjpe_mm`` with proper rotations."""


@dataclass(kw_only=True, slots=True)
class DexycbSums:
    """State of ``DexycbAccumulator``: plain sums over samples, millimetres."""

    num_samples: int = 0
    num_reflected: int = 0
    absolute: ErrorSums
    root_relative: ErrorSums
    aligned: ErrorSums
    proper: ErrorSums


@dataclass(kw_only=True, slots=True)
class DexycbAccumulator:
    """Scores of a stream of batches; the same numbers as all samples at once."""

    strict: bool = False
    """True: the mathematically correct scores instead of the official ones."""
    sums: DexycbSums | None = None
    """None before the first batch; ranks may add theirs."""

    def update(
        self, joints_mm: Float[Tensor, "b 21 3"], target_mm: Float[Tensor, "b 21 3"]
    ) -> None:
        """Add a batch of samples. Waits for the device.

        Args:
            joints_mm: Predicted joints, millimetres, camera frame.
            target_mm: True joints in the same joint convention.

        Raises:
            ValueError: If a shape differs or a value is not finite.
        """
        require_shape("joints_mm", joints_mm, len(joints_mm), NUM_JOINTS, 3)
        require_shape("target_mm", target_mm, *joints_mm.shape)
        require_finite("joints_mm", joints_mm)
        require_finite("target_mm", target_mm)
        if self.sums is None:
            self.sums = _zero_sums(joints_mm.device)
        sums, pred, target = self.sums, joints_mm.double(), target_mm.double()
        proper = align_proper(pred, target)
        aligned = proper if self.strict else align_w_scale(pred, target)
        root = ROOT
        for part, errors in (
            (sums.absolute, distance(pred, target)),
            (
                sums.root_relative,
                distance(pred - pred[:, root, None], target - target[:, root, None]),
            ),
            (sums.aligned, distance(aligned, target)),
            (sums.proper, distance(proper, target)),
        ):
            add(part, error_sums(errors, None, part.thresholds))
        sums.num_samples += len(pred)
        sums.num_reflected += int(is_reflected(pred, target).sum())

    def summary(self) -> DexycbScores:
        """Return the scores of everything added so far.

        Raises:
            ValueError: If no sample was added.
        """
        sums = self.sums
        if sums is None or sums.num_samples == 0:
            raise ValueError("no sample was scored: update was given none")
        return DexycbScores(
            num_samples=sums.num_samples,
            mpjpe_mm=mean_error(sums.absolute),
            auc=auc(sums.absolute),
            rr_mpjpe_mm=mean_error(sums.root_relative),
            rr_auc=auc(sums.root_relative),
            pa_mpjpe_mm=mean_error(sums.aligned),
            pa_auc=auc(sums.aligned),
            num_reflected=sums.num_reflected,
            proper_pa_mpjpe_mm=mean_error(sums.proper),
        )


def official(scores: DexycbScores) -> dict[str, dict[str, float]]:
    """Return the scores as the official tool reports them, millimetres."""
    return {
        "absolute": {"mpjpe": scores.mpjpe_mm, "auc": scores.auc},
        "root-relative": {"mpjpe": scores.rr_mpjpe_mm, "auc": scores.rr_auc},
        "procrustes": {"mpjpe": scores.pa_mpjpe_mm, "auc": scores.pa_auc},
    }


def _zero_sums(device: torch.device) -> DexycbSums:
    limits = thresholds(AUC_MAX_MM)
    absolute, root_relative, aligned, proper = (
        zero_sums(NUM_JOINTS, limits, device) for _ in range(4)
    )
    return DexycbSums(
        absolute=absolute, root_relative=root_relative, aligned=aligned, proper=proper
    )
