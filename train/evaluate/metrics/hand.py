"""Protocol ``handloom-hand-1``: the metrics of training runs and of stores of any dataset.

In float64, millimetres:

- ``mpjpe_mm``: each hand minus its own wrist joint, predicted and true; hands whose true wrist is
  not valid are left out.
- ``pa_mpjpe_mm``: the prediction aligned to the truth by FreiHAND's rule: translation, scale and
  orthogonal matrix, a reflection allowed, per hand, over its valid joints; hands with fewer than
  three are left out. (Without the official tool's 1e-8 in the norms, some 1e-6 mm.)
- ``mpvpe_mm``: vertices, each mesh minus its own wrist joint.
- ``pa_mpvpe_mm``: the mesh aligned by its own 778 vertices, not by the joints.
- ``auc_j``, ``auc_v``: area under the fraction of aligned errors ``<=`` t for t in 0..50 mm (100
  steps, trapezoidal rule), divided by the width.
- ``f5``, ``f15``: F-score of the aligned mesh at 5 and 15 mm: nearest neighbours in both
  directions, strictly nearer, ``2 P R / (P + R)``, mean over hands.

Order of means, as FreiHAND's: over the hands for each joint (vertex), then over the joints
(vertices). Inputs are metres. HaMeR requires a proper rotation in the alignment, so its score
differs for a hand that a reflection fits better.

The official protocols of the datasets are the other modules of this package.

Shape legend: b = hands, k = points of a hand (21 joints or 778 vertices).
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from model.geometry.align import apply_similarity, procrustes
from model.hand import NUM_JOINTS, NUM_VERTICES, ROOT
from train.evaluate.metrics.errors import (
    ErrorSums,
    add,
    distance,
    error_sums,
    mean_error,
    require_finite,
    require_same_shape,
    thresholds,
    zero_sums,
)
from train.evaluate.metrics.errors import auc as area
from train.evaluate.metrics.fscore import f_score_of, nearest_distances

AUC_MAX_MM: Final = 50.0
AUC_STEPS: Final = 100
MIN_JOINTS_ALIGNED: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class HandScores:
    """Scores of the protocol; the mesh ones are None where no hand had a mesh."""

    num_hands: int
    num_meshes: int
    mpjpe_mm: float
    pa_mpjpe_mm: float
    auc_j: float
    mpvpe_mm: float | None
    pa_mpvpe_mm: float | None
    auc_v: float | None
    f5: float | None
    f15: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class HandSums:
    """State of ``ScoreAccumulator``: each tensor is a plain sum over hands."""

    num_hands: Int64[Tensor, ""]
    num_meshes: Int64[Tensor, ""]
    joints: ErrorSums
    joints_aligned: ErrorSums
    vertices: ErrorSums
    vertices_aligned: ErrorSums
    f5: Float64[Tensor, ""]
    f15: Float64[Tensor, ""]


def root_relative_mm(
    pred: Float[Tensor, "*b k 3"],
    gt: Float[Tensor, "*b k 3"],
    pred_root: Float[Tensor, "*b 3"],
    gt_root: Float[Tensor, "*b 3"],
) -> Float64[Tensor, "*b k"]:
    """Return root-relative point errors: both sets minus their own root; millimetres."""
    require_same_shape(pred, gt)
    pred_rel = pred.double() - pred_root.double()[..., None, :]
    gt_rel = gt.double() - gt_root.double()[..., None, :]
    return _distance_mm(pred_rel, gt_rel)


def aligned_to(
    pred: Float[Tensor, "*b k 3"],
    gt: Float[Tensor, "*b k 3"],
    valid: Bool[Tensor, "*b k"] | None = None,
) -> Float64[Tensor, "*b k 3"]:
    """Return ``pred`` aligned to ``gt`` by the best similarity, a reflection allowed; metres."""
    require_same_shape(pred, gt)
    pred, gt = pred.double(), gt.double()
    return apply_similarity(*procrustes(pred, gt, reflection=True, valid=valid), pred)


def mpjpe_mm(
    pred: Float[Tensor, "b 21 3"], gt: Float[Tensor, "b 21 3"], valid: Bool[Tensor, "b 21"]
) -> float:
    """Return the mean wrist-relative joint error, millimetres.

    Raises:
        ValueError: If the shapes differ or no hand has a valid wrist.
    """
    errors = root_relative_mm(pred, gt, pred[:, ROOT], gt[:, ROOT])
    return mean_error(_error_sums(errors, valid & valid[:, ROOT, None]))


def pa_mpjpe_mm(
    pred: Float[Tensor, "b 21 3"], gt: Float[Tensor, "b 21 3"], valid: Bool[Tensor, "b 21"]
) -> float:
    """Return the mean aligned joint error, millimetres.

    Raises:
        ValueError: If the shapes differ or no hand has three valid joints.
    """
    errors = _distance_mm(aligned_to(pred, gt, valid), gt)
    return mean_error(_error_sums(errors, _alignable(valid)))


def mpvpe_mm(
    pred: Float[Tensor, "b k 3"],
    gt: Float[Tensor, "b k 3"],
    pred_wrist: Float[Tensor, "b 3"],
    gt_wrist: Float[Tensor, "b 3"],
) -> float:
    """Return the mean wrist-relative vertex error, millimetres.

    Raises:
        ValueError: If the shapes differ or there is no hand.
    """
    return mean_error(_error_sums(root_relative_mm(pred, gt, pred_wrist, gt_wrist)))


def pa_mpvpe_mm(pred: Float[Tensor, "b k 3"], gt: Float[Tensor, "b k 3"]) -> float:
    """Return the mean aligned vertex error, millimetres.

    Raises:
        ValueError: If the shapes differ or there is no hand.
    """
    return mean_error(_error_sums(_distance_mm(aligned_to(pred, gt), gt)))


def auc(
    errors_mm: Float[Tensor, "b k"],
    valid: Bool[Tensor, "b k"] | None = None,
    *,
    max_mm: float = AUC_MAX_MM,
    steps: int = AUC_STEPS,
) -> float:
    """Return the AUC: area under the fraction of errors ``<=`` t in 0..max_mm, over ``max_mm``.

    The fraction is over hands for each point; the areas are then averaged over the points.

    Raises:
        ValueError: If no error is valid.
    """
    return area(error_sums(errors_mm, valid, thresholds(max_mm, steps)))


def f_score(
    pred: Float[Tensor, "b n 3"], gt: Float[Tensor, "b m 3"], threshold_mm: float
) -> Float64[Tensor, " b"]:
    """Return the F-score of each pair of point sets, given in metres; strictly nearer counts."""
    return f_score_of(*_nearest_mm(pred, gt), threshold_mm)


@dataclass(slots=True)
class ScoreAccumulator:
    """Scores of a stream of batches; the same numbers as all hands at once."""

    sums: HandSums | None = None
    """None before the first batch; ranks may add theirs."""

    def update(
        self,
        joints: Float[Tensor, "b 21 3"],
        target: Float[Tensor, "b 21 3"],
        valid: Bool[Tensor, "b 21"],
        *,
        vertices: Float[Tensor, "b 778 3"] | None = None,
        target_vertices: Float[Tensor, "b 778 3"] | None = None,
        has_vertices: Bool[Tensor, " b"] | None = None,
    ) -> None:
        """Add a batch of hands. Waits for the device.

        A hand counts if one of its joints is valid. Its mesh counts if both meshes are given,
        ``has_vertices`` allows it and its wrist joint is valid.

        Args:
            joints: Predicted joints, metres.
            target: True joints in the same joint convention, metres; NaN where not valid.
            valid: True joints to score.
            vertices: Predicted mesh, metres.
            target_vertices: True mesh, metres; may be NaN where there is none.
            has_vertices: Hands with a true mesh; None means all.

        Raises:
            ValueError: If shapes differ, a scored value is not finite, or only one mesh is given.
        """
        if (vertices is None) != (target_vertices is None):
            raise ValueError("vertices and target_vertices must be given together")
        require_same_shape(joints, target)
        if self.sums is None:
            self.sums = _zero_sums(joints.device)
        sums = self.sums

        is_hand = valid.any(-1)
        joints, target, valid = joints[is_hand], target[is_hand], valid[is_hand]
        require_finite("joints", joints, valid)
        require_finite("target", target, valid)
        sums.num_hands.add_(is_hand.sum())
        errors = root_relative_mm(joints, target, joints[:, ROOT], target[:, ROOT])
        add(sums.joints, _error_sums(errors, valid & valid[:, ROOT, None]))
        errors = _distance_mm(aligned_to(joints, target, valid), target)
        add(sums.joints_aligned, _error_sums(errors, _alignable(valid)))
        if vertices is None or target_vertices is None:
            return

        require_same_shape(vertices, target_vertices)
        has_mesh = valid[:, ROOT]
        if has_vertices is not None:
            has_mesh = has_mesh & has_vertices[is_hand]
        mesh, target_mesh = vertices[is_hand][has_mesh], target_vertices[is_hand][has_mesh]
        require_finite("vertices", mesh)
        require_finite("target_vertices", target_mesh)
        if len(mesh) == 0:
            return
        sums.num_meshes.add_(len(mesh))
        wrists = (joints[has_mesh, ROOT], target[has_mesh, ROOT])
        add(sums.vertices, _error_sums(root_relative_mm(mesh, target_mesh, *wrists)))
        aligned = aligned_to(mesh, target_mesh)
        add(sums.vertices_aligned, _error_sums(_distance_mm(aligned, target_mesh)))
        nearest = _nearest_mm(aligned, target_mesh)
        sums.f5.add_(f_score_of(*nearest, 5.0).sum())
        sums.f15.add_(f_score_of(*nearest, 15.0).sum())

    def summary(self) -> HandScores:
        """Return the scores of everything added so far.

        Raises:
            ValueError: If no hand was added, or none with a valid wrist or three valid joints.
        """
        sums = self.sums
        if sums is None or int(sums.num_hands) == 0:
            raise ValueError("no hand was scored: there was none, or none with a valid joint")
        num_meshes = int(sums.num_meshes)
        has_mesh = num_meshes > 0
        return HandScores(
            num_hands=int(sums.num_hands),
            num_meshes=num_meshes,
            mpjpe_mm=mean_error(sums.joints),
            pa_mpjpe_mm=mean_error(sums.joints_aligned),
            auc_j=area(sums.joints_aligned),
            mpvpe_mm=mean_error(sums.vertices) if has_mesh else None,
            pa_mpvpe_mm=mean_error(sums.vertices_aligned) if has_mesh else None,
            auc_v=area(sums.vertices_aligned) if has_mesh else None,
            f5=float(sums.f5 / num_meshes) if has_mesh else None,
            f15=float(sums.f15 / num_meshes) if has_mesh else None,
        )


def _zero_sums(device: torch.device) -> HandSums:
    def count() -> Tensor:
        return torch.zeros((), dtype=torch.int64, device=device)

    def errors(num_points: int) -> ErrorSums:
        return zero_sums(num_points, _limits(), device)

    return HandSums(
        num_hands=count(),
        num_meshes=count(),
        joints=errors(NUM_JOINTS),
        joints_aligned=errors(NUM_JOINTS),
        vertices=errors(NUM_VERTICES),
        vertices_aligned=errors(NUM_VERTICES),
        f5=count().double(),
        f15=count().double(),
    )


def _limits() -> Tensor:
    return thresholds(AUC_MAX_MM, AUC_STEPS)


def _error_sums(errors_mm: Tensor, valid: Tensor | None = None) -> ErrorSums:
    return error_sums(errors_mm, valid, _limits())


def _distance_mm(pred: Tensor, gt: Tensor) -> Tensor:
    return 1000 * distance(pred, gt)


def _nearest_mm(pred: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    to_gt, to_pred = nearest_distances(pred, gt)
    return 1000 * to_gt, 1000 * to_pred


def _alignable(valid: Tensor) -> Tensor:
    """Drop the hands with too few valid joints for a meaningful alignment."""
    return valid & (valid.sum(-1, keepdim=True) >= MIN_JOINTS_ALIGNED)
