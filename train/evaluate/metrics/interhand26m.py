"""InterHand2.6M metrics: joints of each hand (MPJPE), relative root (MRRPE), handedness.

Joints in InterHand's own order (0-20 right, 21-41 left, each finger from tip to base, wrists 20
and 41), camera frame, millimetres. All joints of a hand whose true wrist is not valid are left out.

- MPJPE: each hand minus its own wrist; error of the valid joints; mean over samples for each
  joint, then over the joints. Over all samples, over those with one hand (``hand_type`` right or
  left), and over those with interacting hands.
- MRRPE: the left wrist relative to the right one, interacting hands with both wrists valid only.
- Handedness accuracy: over samples whose hand type is valid, the fraction where thresholding the
  scores of both hands at 0.5 gives the true hand type.

Quirks of the official tool, and what ``strict=True`` does instead:

- A score of exactly 0.5 is neither present nor absent, so such a sample is always wrong; strict:
  present.
- A joint without a valid sample in one of the groups stops the official tool; here it is left out
  of that mean, and ``num_joints_unseen`` counts those that no sample has.

Source:
    Moon et al. 2020, InterHand2.6M: A Dataset and Baseline for 3D Interacting Hand Pose Estimation
    from a Single RGB Image, and the published evaluation (data/InterHand2.6M/dataset.py), from its
    formulas.

Shape legend: b = samples.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

from train.evaluate.metrics.errors import distance, require_finite

NUM_JOINTS: Final = 42
RIGHT_WRIST: Final = 20
LEFT_WRIST: Final = 41
INTERACTING: Final = 2
"""Hand type; 0 is right, 1 left."""
HAND_THRESHOLD: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class InterhandScores:
    """Scores of the protocol; None where no sample was scored."""

    num_samples: int
    num_single: int
    num_interacting: int
    mpjpe_mm: float | None
    mpjpe_single_mm: float | None
    mpjpe_interacting_mm: float | None
    mrrpe_mm: float | None
    num_mrrpe: int
    handedness_accuracy: float | None
    """Fraction in [0, 1]."""
    num_handedness: int
    num_joints_unseen: int
    """Joints that no sample has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InterhandSums:
    """State of ``InterhandAccumulator``: plain sums over samples.

    Rows of the joint sums: single hands, interacting hands.
    """

    num_samples: Int64[Tensor, "2"]
    """Single, interacting."""
    joints_mm: Float64[Tensor, "2 42"]
    joint_count: Int64[Tensor, "2 42"]
    mrrpe_mm: Float64[Tensor, ""]
    num_mrrpe: Int64[Tensor, ""]
    num_correct: Int64[Tensor, ""]
    num_handedness: Int64[Tensor, ""]


@dataclass(slots=True)
class InterhandAccumulator:
    """Scores of a stream of batches; the same numbers as all samples at once."""

    strict: bool = False
    sums: InterhandSums | None = None
    """None before the first batch; ranks may add theirs."""

    def update(
        self,
        joints_mm: Float[Tensor, "b 42 3"],
        target_mm: Float[Tensor, "b 42 3"],
        joint_valid: Bool[Tensor, "b 42"],
        hand_type: Integer[Tensor, " b"],
        hand_type_valid: Bool[Tensor, " b"],
        pred_hand_type: Float[Tensor, "b 2"],
        pred_left_from_right_mm: Float[Tensor, "b 3"],
    ) -> None:
        """Add a batch of samples. Waits for the device.

        Args:
            joints_mm: Predicted joints, camera frame, millimetres; a translation per hand is free.
            target_mm: True joints, millimetres; NaN where not valid.
            joint_valid: True joints to score.
            hand_type: 0 right, 1 left, 2 interacting; required for every sample.
            hand_type_valid: Samples to score the handedness of.
            pred_hand_type: Scores in [0, 1] that there is a right and a left hand.
            pred_left_from_right_mm: Predicted left wrist minus right wrist, millimetres.

        Raises:
            ValueError: If the numbers of samples differ, a hand type is unknown, or a scored value
                is not finite.
        """
        _require_one_row_each(
            joints_mm=joints_mm,
            target_mm=target_mm,
            joint_valid=joint_valid,
            hand_type=hand_type,
            hand_type_valid=hand_type_valid,
            pred_hand_type=pred_hand_type,
            pred_left_from_right_mm=pred_left_from_right_mm,
        )
        _require_hand_types(hand_type)
        hand_valid = torch.stack((joint_valid[:, RIGHT_WRIST], joint_valid[:, LEFT_WRIST]), 1)
        valid = joint_valid & hand_valid.repeat_interleave(NUM_JOINTS // 2, 1)
        is_interacting = hand_type == INTERACTING
        is_related = is_interacting & hand_valid.all(1)
        require_finite("joints_mm", joints_mm, valid, what="samples")
        require_finite("target_mm", target_mm, valid, what="samples")
        relative, wrists = pred_left_from_right_mm[is_related], target_mm[is_related].double()
        require_finite("pred_left_from_right_mm", relative[:, None], what="samples")
        hand_scores = pred_hand_type[hand_type_valid]
        require_finite("pred_hand_type", hand_scores[..., None], what="samples")
        if self.sums is None:
            self.sums = _zero_sums(joints_mm.device)
        sums = self.sums

        errors = distance(_wrist_relative(joints_mm), _wrist_relative(target_mm))
        for group, is_member in enumerate((~is_interacting, is_interacting)):
            counts = valid & is_member[:, None]
            sums.num_samples[group].add_(is_member.sum())
            sums.joints_mm[group].add_(torch.where(counts, errors, 0.0).sum(0))
            sums.joint_count[group].add_(counts.sum(0))

        true_relative = wrists[:, LEFT_WRIST] - wrists[:, RIGHT_WRIST]
        sums.mrrpe_mm.add_(distance(relative, true_relative).sum())
        sums.num_mrrpe.add_(is_related.sum())
        is_correct = _is_hand_type(hand_scores, hand_type[hand_type_valid], strict=self.strict)
        sums.num_correct.add_(is_correct.sum())
        sums.num_handedness.add_(hand_type_valid.sum())

    def summary(self) -> InterhandScores:
        """Return the scores of everything added so far.

        Raises:
            ValueError: If no sample was added.
        """
        sums = self.sums
        if sums is None or int(sums.num_samples.sum()) == 0:
            raise ValueError("no InterHand2.6M sample was scored")
        num_single, num_interacting = sums.num_samples.tolist()
        num_mrrpe, num_handedness = int(sums.num_mrrpe), int(sums.num_handedness)
        return InterhandScores(
            num_samples=num_single + num_interacting,
            num_single=num_single,
            num_interacting=num_interacting,
            mpjpe_mm=_mean_over_joints(sums.joints_mm.sum(0), sums.joint_count.sum(0)),
            mpjpe_single_mm=_mean_over_joints(sums.joints_mm[0], sums.joint_count[0]),
            mpjpe_interacting_mm=_mean_over_joints(sums.joints_mm[1], sums.joint_count[1]),
            mrrpe_mm=float(sums.mrrpe_mm) / num_mrrpe if num_mrrpe else None,
            num_mrrpe=num_mrrpe,
            handedness_accuracy=int(sums.num_correct) / num_handedness if num_handedness else None,
            num_handedness=num_handedness,
            num_joints_unseen=int((sums.joint_count.sum(0) == 0).sum()),
        )


def official(scores: InterhandScores) -> dict[str, float | None]:
    """Return the scores under the names that the official tool prints; millimetres, fraction."""
    return {
        "Handedness accuracy": scores.handedness_accuracy,
        "MRRPE": scores.mrrpe_mm,
        "MPJPE for all hand sequences": scores.mpjpe_mm,
        "MPJPE for single hand sequences": scores.mpjpe_single_mm,
        "MPJPE for interacting hand sequences": scores.mpjpe_interacting_mm,
    }


def _zero_sums(device: torch.device) -> InterhandSums:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    return InterhandSums(
        num_samples=zeros(2),
        joints_mm=zeros(2, NUM_JOINTS).double(),
        joint_count=zeros(2, NUM_JOINTS),
        mrrpe_mm=zeros().double(),
        num_mrrpe=zeros(),
        num_correct=zeros(),
        num_handedness=zeros(),
    )


def _wrist_relative(points: Tensor) -> Tensor:
    points = points.double()
    wrists = points[:, (RIGHT_WRIST, LEFT_WRIST)].repeat_interleave(NUM_JOINTS // 2, 1)
    return points - wrists


def _is_hand_type(hand_scores: Tensor, hand_type: Tensor, *, strict: bool) -> Tensor:
    """Return where the scores ``[b, 2]`` of a right and a left hand give this hand type."""
    is_there = hand_scores >= HAND_THRESHOLD if strict else hand_scores > HAND_THRESHOLD
    is_absent = hand_scores < HAND_THRESHOLD
    said = torch.stack(
        (
            is_there[:, 0] & is_absent[:, 1],
            is_absent[:, 0] & is_there[:, 1],
            is_there[:, 0] & is_there[:, 1],
        ),
        1,
    )
    return said.gather(1, hand_type.long()[:, None])[:, 0]


def _mean_over_joints(total_mm: Tensor, count: Tensor) -> float | None:
    seen = count > 0
    if not bool(seen.any()):
        return None
    return float((total_mm[seen] / count[seen]).mean())


def _require_one_row_each(**values: Tensor) -> None:
    """Reject single rows, which would be broadcast over all samples."""
    num_rows = {name: len(value) for name, value in values.items()}
    if len(set(num_rows.values())) > 1:
        raise ValueError(f"all arguments need one row for each sample, got {num_rows}")


def _require_hand_types(hand_type: Tensor) -> None:
    is_known = (hand_type >= 0) & (hand_type <= INTERACTING)
    if not bool(is_known.all()):
        raise ValueError(
            f"hand_type must be 0 (right), 1 (left) or {INTERACTING} (interacting), "
            f"got {sorted(set(hand_type[~is_known].tolist()))} in {int((~is_known).sum())} of "
            f"{len(hand_type)} samples"
        )
