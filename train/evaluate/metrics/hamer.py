"""HaMeR's evaluation: the 3D pose errors and 2D PCK of its tables.

Pose: MPJPE after joint 0 of each hand is subtracted, and PA-MPJPE after the best similarity with a
proper rotation. Means: over the joints of a frame, then over the frames. Metres in, millimetres
out. PCK: a joint counts where its confidence is over 0.5, and is correct where its distance is
``<=`` the threshold times the side of the hand's box. Fractions are over the samples for each
joint, then averaged over the joints.

Quirks, kept by default:

- A frame whose predicted joints coincide has no alignment: 0 / 0, so PA-MPJPE is NaN for the whole
  set. strict: the frame is left out of the aligned numbers; ``num_degenerate`` counts it.
- A joint that is never counted makes its fraction, and the average, NaN. strict: the average is
  over the joints seen.

The official tool computes in float32; here in float64.

Source:
    Pavlakos et al. 2024, HaMeR; its published evaluation, from its formulas.

Shape legend: b = samples.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from model.hand import NUM_JOINTS, ROOT
from train.evaluate.metrics.align import align_proper, align_w_scale, is_reflected
from train.evaluate.metrics.errors import distance, require_finite, require_shape

MIN_CONFIDENCE: Final = 0.5
THRESHOLDS: Final = (0.05, 0.1, 0.15)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseScores:
    """Pose errors; the aligned ones are None where ``strict`` leaves no frame."""

    num_samples: int
    mpjpe_mm: float
    pa_mpjpe_mm: float | None
    num_reflected: int
    """Frames that a reflection fits better."""
    reflecting_pa_mpjpe_mm: float | None
    """``pa_mpjpe_mm`` by FreiHAND's ``align_w_scale``."""
    num_degenerate: int
    """Frames whose predicted joints coincide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PckScores:
    """Fraction of correct joints (PCK) for each threshold."""

    num_samples: int
    thresholds: tuple[float, ...]
    pck: tuple[float, ...]
    """Average over the joints."""
    joint_pck: tuple[tuple[float, ...], ...]
    """21 values for each threshold; NaN where the joint was never counted."""
    num_counted: tuple[int, ...]
    """Samples that each of the 21 joints was counted in."""


@dataclass(kw_only=True, slots=True)
class PoseSums:
    """State of ``PoseAccumulator``: plain sums over frames, metres."""

    num_samples: int = 0
    num_aligned: int = 0
    num_degenerate: int = 0
    num_reflected: int = 0
    error: Float64[Tensor, ""]
    aligned: Float64[Tensor, ""]
    reflecting: Float64[Tensor, ""]


@dataclass(kw_only=True, slots=True)
class PoseAccumulator:
    """Pose errors of a stream of batches; the same numbers as all samples at once."""

    strict: bool = False
    """True: the mathematically correct scores instead of the official ones."""
    sums: PoseSums | None = None
    """None before the first batch; ranks may add theirs."""

    def update(self, joints: Float[Tensor, "b 21 3"], target: Float[Tensor, "b 21 3"]) -> None:
        """Add a batch of samples. Waits for the device.

        Args:
            joints: Predicted joints, metres.
            target: True joints in the same joint convention, metres.

        Raises:
            ValueError: If a shape differs or a value is not finite.
        """
        require_shape("joints", joints, len(joints), NUM_JOINTS, 3)
        require_shape("target", target, *joints.shape)
        require_finite("joints", joints)
        require_finite("target", target)
        if self.sums is None:
            self.sums = _zero_sums(joints.device)
        sums, pred, target = self.sums, joints.double(), target.double()
        pred, target = pred - pred[:, ROOT, None], target - target[:, ROOT, None]
        sums.num_samples += len(pred)
        sums.error.add_(distance(pred, target).mean(1).sum())

        is_degenerate = (pred == 0).all(-1).all(-1)
        num_degenerate = int(is_degenerate.sum())
        sums.num_degenerate += num_degenerate
        if self.strict:
            pred, target = pred[~is_degenerate], target[~is_degenerate]
        elif num_degenerate:
            sums.aligned.fill_(math.nan)  # the official 0 / 0
        sums.num_aligned += len(pred)
        sums.num_reflected += int(is_reflected(pred, target).sum())
        sums.aligned.add_(distance(align_proper(pred, target), target).mean(1).sum())
        sums.reflecting.add_(distance(align_w_scale(pred, target), target).mean(1).sum())

    def summary(self) -> PoseScores:
        """Return the scores of everything added so far.

        Raises:
            ValueError: If no sample was added.
        """
        sums = self.sums
        if sums is None or sums.num_samples == 0:
            raise ValueError("no sample was scored: update was given none")
        num = sums.num_aligned
        return PoseScores(
            num_samples=sums.num_samples,
            mpjpe_mm=1000 * float(sums.error) / sums.num_samples,
            pa_mpjpe_mm=1000 * float(sums.aligned) / num if num else None,
            num_reflected=sums.num_reflected,
            reflecting_pa_mpjpe_mm=1000 * float(sums.reflecting) / num if num else None,
            num_degenerate=sums.num_degenerate,
        )


@dataclass(kw_only=True, slots=True)
class PckSums:
    """State of ``PckAccumulator``: plain sums over samples."""

    num_samples: int = 0
    correct: Int64[Tensor, "t 21"]
    counted: Int64[Tensor, " 21"]


@dataclass(kw_only=True, slots=True)
class PckAccumulator:
    """PCK of a stream of batches; the same numbers as all samples at once."""

    thresholds: tuple[float, ...] = THRESHOLDS
    """Fractions of the box's side."""
    strict: bool = False
    """True: the average is over the joints seen."""
    sums: PckSums | None = None
    """None before the first batch; ranks may add theirs."""

    def update(
        self,
        pred_2d: Float[Tensor, "b 21 2"],
        target_2d: Float[Tensor, "b 21 2"],
        confidence: Float[Tensor, "b 21"],
        scale_px: Float[Tensor, " b"],
    ) -> None:
        """Add a batch of samples. Waits for the device.

        Args:
            pred_2d: Predicted joints, pixels.
            target_2d: True joints, pixels of the same image; arbitrary where not counted.
            confidence: Confidence of the true joints; those above 0.5 count.
            scale_px: Side of the hand's box before it is expanded, pixels:
                ``box_size / bbox_expand_factor``.

        Raises:
            ValueError: If a shape differs, a counted value is not finite or a side is not positive.
        """
        require_shape("pred_2d", pred_2d, len(pred_2d), NUM_JOINTS, 2)
        require_shape("target_2d", target_2d, *pred_2d.shape)
        require_shape("confidence", confidence, *pred_2d.shape[:2])
        require_shape("scale_px", scale_px, len(pred_2d))
        require_finite("confidence", confidence[..., None])
        is_counted = confidence.double() > MIN_CONFIDENCE
        require_finite("pred_2d", pred_2d, is_counted)
        require_finite("target_2d", target_2d, is_counted)
        num_bad = int((~(scale_px.isfinite() & (scale_px > 0))).sum())
        if num_bad:
            raise ValueError(
                f"scale_px must be positive, the side of the box in pixels; {num_bad} of "
                f"{len(scale_px)} are not"
            )
        if self.sums is None:
            count = torch.zeros(NUM_JOINTS, dtype=torch.int64, device=pred_2d.device)
            correct = count.repeat(len(self.thresholds), 1)
            self.sums = PckSums(correct=correct, counted=count)
        errors, sides = distance(pred_2d, target_2d), scale_px.double()[:, None]
        self.sums.num_samples += len(errors)
        self.sums.counted.add_(is_counted.sum(0))
        for correct, threshold in zip(self.sums.correct, self.thresholds, strict=True):
            correct.add_(((errors <= sides * threshold) & is_counted).sum(0))

    def summary(self) -> PckScores:
        """Return the scores of everything added so far.

        Raises:
            ValueError: If no sample was added.
        """
        sums = self.sums
        if sums is None or sums.num_samples == 0:
            raise ValueError("no sample was scored: update was given none")
        shares = sums.correct.double() / sums.counted  # 0 / 0 is NaN
        averages = shares.nanmean(1) if self.strict else shares.mean(1)
        return PckScores(
            num_samples=sums.num_samples,
            thresholds=self.thresholds,
            pck=tuple(averages.tolist()),
            joint_pck=tuple(tuple(row) for row in shares.tolist()),
            num_counted=tuple(sums.counted.tolist()),
        )


def _zero_sums(device: torch.device) -> PoseSums:
    error, aligned, reflecting = torch.zeros(3, dtype=torch.float64, device=device)
    return PoseSums(error=error, aligned=aligned, reflecting=reflecting)
