"""World-space hand motion, as in HaWoR's evaluation, on .npz files of arrays.

World frame, metres, 30 frames per second. ``joints`` [f, j, 3], ``root`` [f, 3] (the MANO
translation), ``segment`` [f] (frames of one uninterrupted track are contiguous and share a number).
Optional: ``camera_position`` [c, 3], ``camera_segment`` [c]. Truth has the same keys; its segments
are used. ``is_right`` [f] of the truth, 0 or 1 and one of them in a segment, is for ``right_only``.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Int64

from model.hand import NUM_JOINTS
from train.evaluate.metrics.world import WorldAccumulator
from train.evaluate.protocols.checks import (
    likely_causes,
    require_count,
    require_finite,
    require_hand_size,
    require_length,
    require_unit,
)
from train.evaluate.protocols.details import AUC_MAX_MM, Detail
from train.evaluate.protocols.files import read_npz
from train.evaluate.protocols.report import PAIRED, Report, Row

DEFINITION: Final = (
    "Chunks of 100 frames: W-MPJPE aligned by the first two frames, WA-MPJPE by all, PA-MPJPE each "
    "frame by itself; acceleration unaligned; RTE after a rigid fit, over the path length; ATE "
    "over camera positions, similarity (ATE) or rigid (ATE-S)."
)
QUIRKS: Final = (
    "the first and last acceleration of a segment are dropped (strict: kept)",
    "a root that does not move divides by zero (strict: left out)",
    "predicted joints that coincide divide by zero, and so does the mean (strict: scale 0)",
)
_OTHER_RULES: Final = (
    "HaWoR's tables score right hands in tracks of at least 16 frames only: min_track=16 "
    "right_only=true"
)
_HANDS: Final[dict[str, tuple[int | str, ...]]] = {
    "joints": ("f", "j", 3),
    "root": ("f", 3),
    "segment": ("f",),
}
_CAMERA: Final[dict[str, tuple[int | str, ...]]] = {
    "camera_position": ("c", 3),
    "camera_segment": ("c",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Which tracks are scored; HaWoR's tables have 16 and True."""

    min_track: int = 1
    """Shortest track, frames."""
    right_only: bool = False

    def __str__(self) -> str:
        hands = "right hands" if self.right_only else "hands of both sides"
        return f"{hands} in tracks of at least {self.min_track} frames"


ALL: Final = Rules()
HAWOR: Final = Rules(min_track=16, right_only=True)


def score(predictions: Path, truth: Path, *, strict: bool, rules: Rules = ALL) -> Report:
    """Score a file; the keys are in the module docstring.

    Raises:
        ValueError: If a file is broken, the predictions are implausible, or no track is left.
    """
    shapes = {**_HANDS, **_CAMERA}
    pred = read_npz(predictions, shapes, optional=("segment", *_CAMERA))
    side = {"is_right": ("f",)}
    true = read_npz(truth, {**shapes, **side}, optional=(*_CAMERA, *side))
    tracks = _runs(true["segment"], f"{truth}, segment")
    scored = _scored_tracks(tracks, true, rules, truth)
    cameras = [name in arrays for arrays in (pred, true) for name in _CAMERA]
    if any(cameras) and not (cameras[0] and all(cameras[2:])):
        raise ValueError(
            "camera_position and camera_segment are needed in the truth and camera_position in the "
            "predictions, or none of them"
        )
    for name in [n for n in ("joints", "root", "camera_position") if n in true]:
        require_count(f"rows of {name}", len(pred[name]), len(true[name]), str(truth))
        require_finite(f"{predictions}, {name}", pred[name])
        require_finite(f"{truth}, {name}", true[name], "leave the frame out of both files")
    if pred["joints"].shape != true["joints"].shape:
        raise ValueError(
            f"predictions hold {pred['joints'].shape[1]} joints a hand, "
            f"the truth {true['joints'].shape[1]}"
        )
    if true["joints"].shape[1] == NUM_JOINTS:
        require_hand_size(f"{truth}, joints", true["joints"], per_metre=1)
    require_unit("predicted joints", pred["joints"], true["joints"], per_metre=1)
    for name in ("root", "camera_position"):
        if name in true:
            lengths = [
                np.linalg.norm(a[name] - a[name].mean(0), axis=-1).astype(np.float64)
                for a in (pred, true)
            ]
            require_length(f"predicted {name}", *lengths, per_metre=1)
    warnings = _causes(pred["joints"], true["joints"])
    scores = WorldAccumulator(strict=strict)
    tensors = [
        torch.from_numpy(arrays[name].astype(np.float64))
        for name in ("joints", "root")
        for arrays in (pred, true)
    ]
    for rows in scored:
        scores.update(*(tensor[rows] for tensor in tensors))
    if "camera_position" in true:
        places = [torch.from_numpy(a["camera_position"].astype(np.float64)) for a in (pred, true)]
        for rows in _runs(true["camera_segment"], f"{truth}, camera_segment"):
            scores.update_camera(*(place[rows] for place in places))
    found = scores.summary()
    return Report(
        protocol="world",
        definition=f"{DEFINITION} Scored: {rules}; {len(tracks) - len(scored)} of {len(tracks)} "
        "tracks left out.",
        strict=strict,
        quirks=QUIRKS if rules == HAWOR else (*QUIRKS, _OTHER_RULES),
        num_samples=found.num_frames,
        crop=PAIRED,
        camera=PAIRED,
        rows=(
            Row(label="W-MPJPE", value=found.w_mpjpe_mm, unit="mm"),
            Row(label="WA-MPJPE", value=found.wa_mpjpe_mm, unit="mm"),
            Row(label="PA-MPJPE", value=found.pa_mpjpe_mm, unit="mm"),
            Row(label="acceleration error", value=found.accel_m_s2, unit="m/s^2"),
            Row(label="RTE", value=found.rte_percent, unit="% of path"),
            Row(label="ATE", value=found.ate_mm, unit="mm"),
            Row(label="ATE-S", value=found.ate_s_mm, unit="mm"),
        ),
        scores={**asdict(found), "rules": asdict(rules), "num_left_out": len(tracks) - len(scored)},
        official={
            "ACCEL": found.accel_m_s2,
            "PA_MPJPE": found.pa_mpjpe_mm,
            "W_MPJPE": found.w_mpjpe_mm,
            "WA_MPJPE": found.wa_mpjpe_mm,
            "RTE": found.rte_percent,
        },
        warnings=tuple(warnings),
        details=lambda: _details(scores, scored),
    )


def _scored_tracks(
    tracks: list[Int64[np.ndarray, " t"]], true: dict[str, np.ndarray], rules: Rules, truth: Path
) -> list[Int64[np.ndarray, " t"]]:
    """Return the tracks that the rules keep.

    Raises:
        ValueError: If none is left, or the sides of the hands are needed and not known.
    """
    kept = [rows for rows in tracks if len(rows) >= rules.min_track]
    if rules.right_only:
        if "is_right" not in true:
            raise ValueError(f"{truth}: right_only=true needs is_right [f], 1 for a right hand")
        sides = true["is_right"]
        if not np.isin(sides, (0, 1)).all() or any(np.ptp(sides[rows]) for rows in tracks):
            raise ValueError(f"{truth}, is_right: expected 0 or 1, the same in a whole segment")
        kept = [rows for rows in kept if sides[rows[0]]]
    if not kept:
        longest = max(map(len, tracks))
        raise ValueError(
            f"{truth}: the rules ({rules}) leave none of {len(tracks)} tracks; the longest has "
            f"{longest} frames; min_track= and right_only= set them"
        )
    return kept


def _details(scores: WorldAccumulator, tracks: list[Int64[np.ndarray, " t"]]) -> list[Detail]:
    """Return the values per frame; of the acceleration and RTE in the order of the tracks."""
    frames = np.concatenate(tracks).tolist()
    found = []
    for name, mean in scores.means().items():
        values = mean.values().numpy()[:, None]
        is_frame = name.endswith("mpjpe_mm")
        found.append(
            Detail(
                name=name,
                errors=values,
                max_error=AUC_MAX_MM if is_frame else None,
                samples=frames if len(values) == len(frames) else None,
            )
        )
    return found


def _causes(pred: np.ndarray, true: np.ndarray) -> list[str]:
    """Return suspected problems; axes are arbitrary, because every score aligns the prediction."""
    found = []
    coincident = int((np.ptp(pred, axis=1) == 0).all(-1).sum())
    if coincident:
        found.append(f"the predicted joints of {coincident} of {len(pred)} frames coincide")
    if pred.shape[1] != NUM_JOINTS:
        return found
    for order in ("standard", "MANO"):
        causes = likely_causes(pred, true, order=order, opengl=False)
        found += [c for c in causes if "axes" not in c and c not in found]
    return found


def _runs(segment: np.ndarray, name: str) -> list[Int64[np.ndarray, " t"]]:
    """Return the rows of each segment, in order.

    Raises:
        ValueError: If a segment is interrupted by another one.
    """
    starts = np.flatnonzero(np.diff(segment, prepend=np.nan))
    if len(starts) != len(np.unique(segment)):
        raise ValueError(f"{name}: the frames of a segment must stand together")
    return list(np.split(np.arange(len(segment)), starts[1:]))
