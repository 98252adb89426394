"""FreiHAND's official protocol (``eval.py``): joints and meshes, raw and aligned.

Inputs are metres in the camera frame, not root-relative. Joints and vertices are aligned
separately by ``align_w_scale``. Means: over the samples for each point, then over the points. AUC:
thresholds ``linspace(0, 0.05 m, 100)``, error ``<=`` threshold. F-scores at 5 and 15 mm, strictly
nearer, raw and aligned, mean over samples. Millimetres in the result; ``official`` gives the names
and centimetres of ``scores.txt``.

Quirks, kept by default:

- reflection: the alignment may mirror the prediction. ``num_reflected`` counts where it does and
  ``proper_*`` are the scores without. strict: a proper rotation everywhere.
- 1e-8 in the alignment's norms: a hand in metres moves by some 1e-6 mm. strict: none.
- another vertex count: where the prediction does not have 778 vertices there are no vertex errors,
  and the mesh for the aligned F-scores is aligned by ``align_by_joints``, whose size is wrong. The
  official tool decides by the first sample; here all must agree. strict: the joints' similarity.

Source:
    Zimmermann et al. 2019, FreiHAND; its published evaluation, from its formulas.

Shape legend: b = samples, n = predicted vertices.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from model.hand import NUM_JOINTS, NUM_VERTICES
from train.evaluate.metrics.align import align_by_joints, align_proper, align_w_scale, is_reflected
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
from train.evaluate.metrics.fscore import f_score_of, nearest_distances

AUC_MAX_M: Final = 0.05
F_THRESHOLDS_M: Final = (0.005, 0.015)
CHUNK: Final = 128
"""Samples aligned at a time, so that a whole test set can be added in one call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FreihandScores:
    """Scores of the protocol; the vertex ones are None where the vertex counts differ."""

    num_samples: int
    mpjpe_mm: float
    auc_j: float
    pa_mpjpe_mm: float
    pa_auc_j: float
    mpvpe_mm: float | None
    auc_v: float | None
    pa_mpvpe_mm: float | None
    pa_auc_v: float | None
    f5: float
    f15: float
    pa_f5: float
    pa_f15: float
    num_reflected: int
    """Samples whose joints the official alignment mirrors."""
    num_reflected_meshes: int
    """Samples whose mesh the official alignment mirrors; by joints where vertex counts differ."""
    proper_pa_mpjpe_mm: float
    """``pa_mpjpe_mm`` with proper rotations."""
    proper_pa_mpvpe_mm: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PointSums:
    """Errors of joints or vertices in metres, raw and aligned."""

    raw: ErrorSums
    aligned: ErrorSums
    proper: ErrorSums


@dataclass(kw_only=True, slots=True)
class FreihandSums:
    """State of ``FreihandAccumulator``: plain sums over samples."""

    num_samples: int = 0
    num_reflected: int = 0
    num_reflected_meshes: int = 0
    joints: PointSums
    vertices: PointSums
    f: Float64[Tensor, " 4"]
    """Sums of f5, f15, pa_f5, pa_f15."""


@dataclass(kw_only=True, slots=True)
class FreihandAccumulator:
    """Scores of a stream of batches; the same numbers as all samples at once."""

    strict: bool = False
    """True: the mathematically correct scores instead of the official ones."""
    num_vertices: int | None = None
    """Number of predicted vertices; None before the first batch."""
    sums: FreihandSums | None = None
    """None before the first batch; ranks may add theirs."""

    def update(
        self,
        joints: Float[Tensor, "b 21 3"],
        target: Float[Tensor, "b 21 3"],
        vertices: Float[Tensor, "b n 3"],
        target_vertices: Float[Tensor, "b 778 3"],
    ) -> None:
        """Add a batch of samples. Waits for the device.

        Args:
            joints: Predicted joints, metres, camera frame.
            target: True joints in the same joint convention.
            vertices: Predicted mesh, metres, camera frame; any number of vertices.
            target_vertices: True mesh.

        Raises:
            ValueError: If a shape differs, a value is not finite, or the vertex count is not that
                of the batches before.
        """
        require_shape("joints", joints, len(joints), NUM_JOINTS, 3)
        require_shape("target", target, *joints.shape)
        require_shape("vertices", vertices, len(joints), *vertices.shape[1:2], 3)
        require_shape("target_vertices", target_vertices, len(joints), NUM_VERTICES, 3)
        for name, points in (
            ("joints", joints),
            ("target", target),
            ("vertices", vertices),
            ("target_vertices", target_vertices),
        ):
            require_finite(name, points)
        if self.num_vertices not in (None, vertices.shape[1]):
            raise ValueError(
                f"all predicted meshes must have the same number of vertices, got "
                f"{vertices.shape[1]} after {self.num_vertices}"
            )
        self.num_vertices = vertices.shape[1]
        if self.sums is None:
            self.sums = _zero_sums(joints.device)
        chunks = (
            torch.split(x.double(), CHUNK) for x in (joints, target, vertices, target_vertices)
        )
        for chunk in zip(*chunks, strict=True):
            self._add(self.sums, *chunk)

    def _add(
        self,
        sums: FreihandSums,
        joints: Tensor,
        target: Tensor,
        vertices: Tensor,
        target_vertices: Tensor,
    ) -> None:
        reflected = _add_points(sums.joints, joints, target, strict=self.strict)[1]
        if vertices.shape == target_vertices.shape:
            aligned, reflected_mesh = _add_points(
                sums.vertices, vertices, target_vertices, strict=self.strict
            )
        else:
            aligned = align_by_joints(vertices, joints, target, strict=self.strict)
            reflected_mesh = reflected
        sums.num_samples += len(joints)
        sums.num_reflected += int(reflected.sum())
        sums.num_reflected_meshes += int(reflected_mesh.sum())
        nearest = [nearest_distances(mesh, target_vertices) for mesh in (vertices, aligned)]
        scores = [f_score_of(*pair, threshold) for pair in nearest for threshold in F_THRESHOLDS_M]
        sums.f.add_(torch.stack(scores).sum(1))

    def summary(self) -> FreihandScores:
        """Return the scores of everything added so far.

        Raises:
            ValueError: If no sample was added.
        """
        sums = self.sums
        if sums is None or sums.num_samples == 0:
            raise ValueError("no sample was scored: update was given none")
        has_vertices = self.num_vertices == NUM_VERTICES
        joints, vertices = sums.joints, sums.vertices
        f5, f15, pa_f5, pa_f15 = (sums.f / sums.num_samples).tolist()
        return FreihandScores(
            num_samples=sums.num_samples,
            mpjpe_mm=1000 * mean_error(joints.raw),
            auc_j=auc(joints.raw),
            pa_mpjpe_mm=1000 * mean_error(joints.aligned),
            pa_auc_j=auc(joints.aligned),
            mpvpe_mm=1000 * mean_error(vertices.raw) if has_vertices else None,
            auc_v=auc(vertices.raw) if has_vertices else None,
            pa_mpvpe_mm=1000 * mean_error(vertices.aligned) if has_vertices else None,
            pa_auc_v=auc(vertices.aligned) if has_vertices else None,
            f5=f5,
            f15=f15,
            pa_f5=pa_f5,
            pa_f15=pa_f15,
            num_reflected=sums.num_reflected,
            num_reflected_meshes=sums.num_reflected_meshes,
            proper_pa_mpjpe_mm=1000 * mean_error(joints.proper),
            proper_pa_mpvpe_mm=1000 * mean_error(vertices.proper) if has_vertices else None,
        )


def official(scores: FreihandScores) -> dict[str, float]:
    """Return the scores by the names and in the units (cm) of the official ``scores.txt``.

    Where the vertex counts differ the mesh errors are -1 m and their AUCs -1, as there.
    """
    return {
        "xyz_mean3d": scores.mpjpe_mm / 10,
        "xyz_auc3d": scores.auc_j,
        "xyz_al_mean3d": scores.pa_mpjpe_mm / 10,
        "xyz_al_auc3d": scores.pa_auc_j,
        **official_mesh(scores),
    }


def official_mesh(scores: FreihandScores) -> dict[str, float]:
    """Return the mesh part of ``official``, whose names HO-3D shares."""

    def in_cm(error_mm: float | None) -> float:
        return -100.0 if error_mm is None else error_mm / 10

    def area(share: float | None) -> float:
        return -1.0 if share is None else share

    return {
        "mesh_mean3d": in_cm(scores.mpvpe_mm),
        "mesh_auc3d": area(scores.auc_v),
        "mesh_al_mean3d": in_cm(scores.pa_mpvpe_mm),
        "mesh_al_auc3d": area(scores.pa_auc_v),
        "f_score_5": scores.f5,
        "f_al_score_5": scores.pa_f5,
        "f_score_15": scores.f15,
        "f_al_score_15": scores.pa_f15,
    }


def _zero_sums(device: torch.device) -> FreihandSums:
    limits = thresholds(AUC_MAX_M)

    def points(num: int) -> PointSums:
        raw, aligned, proper = (zero_sums(num, limits, device) for _ in range(3))
        return PointSums(raw=raw, aligned=aligned, proper=proper)

    return FreihandSums(
        joints=points(NUM_JOINTS),
        vertices=points(NUM_VERTICES),
        f=torch.zeros(4, dtype=torch.float64, device=device),
    )


def _add_points(
    sums: PointSums, pred: Float[Tensor, "b k 3"], target: Float[Tensor, "b k 3"], *, strict: bool
) -> tuple[Float64[Tensor, "b k 3"], Bool[Tensor, " b"]]:
    """Add the errors of corresponding points; return the aligned points and where they mirror."""
    proper = align_proper(pred, target)
    aligned = proper if strict else align_w_scale(pred, target)
    for part, points in ((sums.raw, pred), (sums.aligned, aligned), (sums.proper, proper)):
        add(part, error_sums(distance(points, target), None, part.thresholds))
    return aligned, is_reflected(pred, target)
