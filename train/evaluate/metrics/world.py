"""World-frame metrics, as in HaWoR's evaluation: hand motion and camera trajectories.

One segment is a contiguous run of frames, 30 per second. A prediction is aligned to the truth by
the best similarity (rotation, translation, scale) of two point sets, or by the best rigid motion.

- ``w_mpjpe_mm``: in chunks of 100 frames (the last may be shorter), aligned by the similarity that
  fits all joints of the first two frames of the chunk; drift and wrong scale count.
- ``wa_mpjpe_mm``: in the same chunks, aligned by the similarity that fits all frames of the chunk.
- ``pa_mpjpe_mm``: aligned by the similarity that fits each frame.
- ``accel_m_s2``: difference of the accelerations of the unaligned joints.
- ``rte_percent``: the root, aligned by the rigid motion that fits the whole segment, in per cent of
  the length of the true root's path over the segment.
- ``ate_mm``, ``ate_s_mm``: RMS error of the camera positions after the similarity that fits the
  trajectory, and after the rigid motion, so that a wrong scale counts; mean over trajectories.

Hand scores are means over the joints of a frame, then over all frames of all segments together.

Quirks of the official tool, kept by default, and what ``strict=True`` does instead:

- The first and last acceleration of a segment are dropped, so that fewer than 5 frames have none;
  strict: kept, 3 frames are enough.
- A segment whose true root stands still divides by zero: ``rte_percent`` is infinite, or NaN;
  strict: the segment is left out of it. ``num_still`` counts such segments either way.
- Predicted points that coincide have no scale (0/0): the score is NaN; strict: scale 0, so they
  map to the mean of the truth.

Source:
    Zhang et al. 2025, HaWoR: World-Space Hand Motion Reconstruction from Egocentric Videos, and
    its published evaluation, from its formulas; Umeyama 1991, equations 39-43.

Shape legend: t = frames in order, j = joints, c = chunks, n = points, b = point sets.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from model.geometry.align import apply_similarity, procrustes
from model.geometry.rotation import rotate
from train.evaluate.metrics.errors import distance, require_finite, require_same_shape

CHUNK_FRAMES: Final = 100
FIT_FRAMES: Final = 2
"""Frames at the start of a chunk that fix the alignment of ``w_mpjpe_mm``."""
FRAMES_PER_S: Final = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldScores:
    """Scores of the protocol; None where nothing was scored."""

    num_segments: int
    num_frames: int
    w_mpjpe_mm: float
    wa_mpjpe_mm: float
    pa_mpjpe_mm: float
    accel_m_s2: float | None
    """None where no segment is long enough."""
    rte_percent: float | None
    """None where every true root stands still, with ``strict``."""
    num_still: int
    num_trajectories: int
    ate_mm: float | None
    ate_s_mm: float | None


@dataclass(slots=True)
class _Mean:
    total: float = 0.0
    count: int = 0
    parts: list[Tensor] = field(default_factory=list)

    def add(self, values: Tensor) -> None:
        self.total += float(values.sum())
        self.count += values.numel()
        self.parts.append(values.flatten().cpu())

    def values(self) -> Float64[Tensor, " n"]:
        """Return every value that was added."""
        return torch.cat(self.parts) if self.parts else torch.zeros(0, dtype=torch.float64)

    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class WorldAccumulator:
    """Scores of a stream of segments and camera trajectories."""

    strict: bool = False
    num_segments: int = 0
    num_still: int = 0
    w_mpjpe: _Mean = field(default_factory=_Mean)
    wa_mpjpe: _Mean = field(default_factory=_Mean)
    pa_mpjpe: _Mean = field(default_factory=_Mean)
    accel: _Mean = field(default_factory=_Mean)
    rte: _Mean = field(default_factory=_Mean)
    ate: _Mean = field(default_factory=_Mean)
    ate_s: _Mean = field(default_factory=_Mean)

    def update(
        self,
        joints: Float[Tensor, "t j 3"],
        target: Float[Tensor, "..."],
        root: Float[Tensor, "r 3"],
        target_root: Float[Tensor, "..."],
    ) -> None:
        """Add one contiguous segment. Waits for the device.

        Args:
            joints: Predicted joints, world frame, metres.
            target: True joints, metres.
            root: Predicted root, metres.
            target_root: True root, metres.

        Raises:
            ValueError: If shapes differ, there is no frame, or a value is not finite.
        """
        require_same_shape(joints, target)
        require_same_shape(root, target_root)
        if len(joints) == 0 or len(root) != len(joints):
            raise ValueError(
                "a segment needs at least one frame and a root for each, "
                f"got {len(joints)} frames and {len(root)} roots"
            )
        _require_finite_frames(joints=joints, target=target)
        _require_finite_frames(root=root[:, None], target_root=target_root[:, None])
        joints, target = joints.double(), target.double()
        root, target_root = root.double(), target_root.double()

        self.num_segments += 1
        for mine, true in zip(_chunks(joints), _chunks(target), strict=True):
            whole = mine.flatten(1, 2), true.flatten(1, 2)  # [c, frames * j, 3]
            first = mine[:, :FIT_FRAMES].flatten(1, 2), true[:, :FIT_FRAMES].flatten(1, 2)
            self.w_mpjpe.add(self._moved_error_mm(first, mine, true))
            self.wa_mpjpe.add(self._moved_error_mm(whole, mine, true))
        self.pa_mpjpe.add(self._moved_error_mm((joints, target), joints[:, None], target[:, None]))
        self._add_acceleration(joints, target)
        self._add_root(root, target_root)

    def update_camera(self, position: Float[Tensor, "t 3"], target: Float[Tensor, "..."]) -> None:
        """Add one camera trajectory, metres, world frame. Waits for the device.

        Raises:
            ValueError: If shapes differ, there is no frame, or a value is not finite.
        """
        require_same_shape(position, target)
        if len(position) == 0:
            raise ValueError("a camera trajectory needs at least one frame, got none")
        _require_finite_frames(position=position[:, None], target=target[:, None])
        position, target = position.double(), target.double()
        scaled = apply_similarity(*similarity(position, target, strict=self.strict), position)
        self.ate.add(1000 * distance(scaled, target).square().mean().sqrt())
        moved = rigidly_moved(position, target)
        self.ate_s.add(1000 * distance(moved, target).square().mean().sqrt())

    def summary(self) -> WorldScores:
        """Return the scores of everything added so far.

        Raises:
            ValueError: If no segment was added.
        """
        w_mpjpe, wa_mpjpe = self.w_mpjpe.value(), self.wa_mpjpe.value()
        pa_mpjpe = self.pa_mpjpe.value()
        if w_mpjpe is None or wa_mpjpe is None or pa_mpjpe is None:
            raise ValueError("no segment was scored: add at least one with update()")
        return WorldScores(
            num_segments=self.num_segments,
            num_frames=self.w_mpjpe.count,
            w_mpjpe_mm=w_mpjpe,
            wa_mpjpe_mm=wa_mpjpe,
            pa_mpjpe_mm=pa_mpjpe,
            accel_m_s2=self.accel.value(),
            rte_percent=self.rte.value(),
            num_still=self.num_still,
            num_trajectories=self.ate.count,
            ate_mm=self.ate.value(),
            ate_s_mm=self.ate_s.value(),
        )

    def means(self) -> dict[str, _Mean]:
        """Return what the scores are the means of, by their names."""
        return {
            "w_mpjpe_mm": self.w_mpjpe,
            "wa_mpjpe_mm": self.wa_mpjpe,
            "pa_mpjpe_mm": self.pa_mpjpe,
            "accel_m_s2": self.accel,
            "rte_percent": self.rte,
            "ate_mm": self.ate,
            "ate_s_mm": self.ate_s,
        }

    def _moved_error_mm(self, fit: tuple[Tensor, Tensor], mine: Tensor, true: Tensor) -> Tensor:
        """Return the joint error ``[c, frames]`` of chunks aligned by fitting ``[c, n, 3]``."""
        scale, R, t = similarity(*fit, strict=self.strict)
        moved = apply_similarity(scale, R, t, mine.flatten(1, 2)).reshape_as(mine)
        return 1000 * distance(moved, true).mean(-1)

    def _add_acceleration(self, joints: Tensor, target: Tensor) -> None:
        mine, true = (x[:-2] - 2 * x[1:-1] + x[2:] for x in (joints, target))
        error = distance(mine, true).mean(-1) * FRAMES_PER_S**2
        self.accel.add(error if self.strict else error[1:-1])

    def _add_root(self, root: Tensor, target: Tensor) -> None:
        path_m = distance(target[1:], target[:-1]).sum()
        is_still = float(path_m) == 0
        self.num_still += is_still
        if is_still and self.strict:
            return
        self.rte.add(100 * distance(rigidly_moved(root, target), target) / path_m)


def similarity(
    source: Float[Tensor, "*b n 3"], target: Float[Tensor, "*b n 3"], *, strict: bool = False
) -> tuple[Float64[Tensor, "*b"], Float64[Tensor, "*b 3 3"], Float64[Tensor, "*b 3"]]:
    """Return the scale, rotation and translation that best align ``source`` to ``target``.

    Where all source points coincide, scale and translation are NaN; with ``strict`` the scale is 0
    and the translation the mean of the target.

    Source:
        Umeyama 1991, equations 39-43.
    """
    source, target = source.double(), target.double()
    scale, R, t = procrustes(source, target, reflection=False)
    # The mean of coincident points may be off by rounding, which would look like an extent.
    coincide = (source == source[..., :1, :]).all(-1).all(-1)
    nothing = 0.0 if strict else math.nan
    centre = target.mean(-2) if strict else torch.full_like(t, math.nan)
    return (
        torch.where(coincide, nothing, scale),
        R,
        torch.where(coincide[..., None], centre, t),
    )


def rigidly_moved(
    source: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]
) -> Float64[Tensor, "n 3"]:
    """Return ``source`` aligned to ``target`` by a rigid motion."""
    source, target = source.double(), target.double()
    _, R, _ = procrustes(source, target, reflection=False)
    return rotate(R, source - source.mean(0)) + target.mean(0)


def _chunks(points: Tensor) -> list[Tensor]:
    """Split ``[t, j, 3]`` into ``[c, 100, j, 3]`` and the rest ``[1, t % 100, j, 3]``, if any."""
    num_whole = len(points) // CHUNK_FRAMES * CHUNK_FRAMES
    whole, rest = points[:num_whole], points[num_whole:]
    parts = [whole.reshape(-1, CHUNK_FRAMES, *points.shape[1:])] if num_whole else []
    return [*parts, rest[None]] if len(rest) else parts


def _require_finite_frames(**points: Tensor) -> None:
    for name, values in points.items():
        require_finite(name, values, what="frames")
