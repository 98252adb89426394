"""ARCTIC on .npz files of arrays: poses, interaction fields, or both.

One file is one sequence seen by one view, all frames in order (the official evaluation leaves out
the first and last ten); a folder holds many, predictions and truth under the same names
(``s05_box_grab_01_1.npz``). Camera frame, metres, radians; joint 0 is the wrist.

Predictions, for the pose task: ``joints_right joints_left`` [f, 21, 3], ``vertices_right
vertices_left`` [f, 778, 3], ``object_vertices`` [f, v, 3], ``arti_rad`` [f]. For the field task:
``dist_ro dist_lo`` [f, 778], ``dist_or dist_ol`` [f, v]. Truth: the keys of the pose task,
``is_valid right_valid left_valid`` [f], ``part_ids`` [v] (1 top, 2 bottom), ``diameter_m`` [].
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pipeline.app.progress import tracked
from train.evaluate.metrics.arctic import (
    ArcticAccumulator,
    ArcticField,
    ArcticPose,
    ArcticTruth,
    score_field,
    score_pose,
)
from train.evaluate.protocols.checks import (
    likely_causes,
    require_count,
    require_hand_size,
    require_unit,
)
from train.evaluate.protocols.details import Detail
from train.evaluate.protocols.files import read_npz
from train.evaluate.protocols.report import PAIRED, Report, Row

DEFINITION: Final = (
    "ARCTIC's frame values, mean over all frames of all sequences and views that have one; hands "
    "relative to the wrist, objects to the mean of the bottom part, contact at 3 mm."
)
QUIRKS: Final = (
    "AAE does not wrap around (strict: modulo 360 degrees)",
    "MDev drops a contact that lasts to the last frame (strict: kept)",
    "MDev measures sliding over all pairs of frames but a 15 x 15 triangle (strict: pairs once)",
    "a fractional validity is invalid for CDev and ACC, valid elsewhere (strict: valid)",
    "the official tool stops where a hand has no contact window; here it has no value",
)
_POSE: Final[dict[str, tuple[int | str, ...]]] = {
    "joints_right": ("f", 21, 3),
    "joints_left": ("f", 21, 3),
    "vertices_right": ("f", 778, 3),
    "vertices_left": ("f", 778, 3),
    "object_vertices": ("f", "v", 3),
    "arti_rad": ("f",),
}
_FIELD: Final[dict[str, tuple[int | str, ...]]] = {
    "dist_ro": ("f", 778),
    "dist_lo": ("f", 778),
    "dist_or": ("f", "v"),
    "dist_ol": ("f", "v"),
}
_TRUTH: Final[dict[str, tuple[int | str, ...]]] = {
    **_POSE,
    "is_valid": ("f",),
    "right_valid": ("f",),
    "left_valid": ("f",),
    "part_ids": ("v",),
    "diameter_m": (),
}
_MOST_RAD: Final = 2 * np.pi
_MOST_DISTANCE_M: Final = 1.0
_MOST_DIAMETER_M: Final = 3.0
_ROWS: Final = (
    ("CDev", "cdev/ho", "mm"),
    ("MRRPE right to left", "mrrpe/r/l", "mm"),
    ("MRRPE right to object", "mrrpe/r/o", "mm"),
    ("MDev", "mdev/h", "mm"),
    ("ACC hands", "acc/h", "m/s^2"),
    ("ACC object", "acc/o", "m/s^2"),
    ("MPJPE-RA", "mpjpe/ra/h", "mm"),
    ("AAE", "aae", "deg"),
    ("success rate at 5 % of the diameter", "success_rate/0.05", "%"),
    ("field hand to object", "avg/ho", "mm"),
    ("field object to hand", "avg/oh", "mm"),
    ("field ACC hand to object", "acc/ho", "m/s^2"),
    ("field ACC object to hand", "acc/oh", "m/s^2"),
)


def score(predictions: Path, truth: Path, *, strict: bool) -> Report:
    """Score a file or a folder of files; the keys are in the module docstring.

    Raises:
        ValueError: If a file is broken, or the predictions are implausible.
        FileNotFoundError: If a file is missing.
    """
    scores = ArcticAccumulator()
    num_frames, warnings = 0, []
    pairs = _pairs(predictions, truth)
    tasks: tuple[bool, bool] | None = None
    for theirs, ours in tracked(pairs, len(pairs), "evaluate", "files"):
        true = read_npz(ours, _TRUTH)
        target = _truth(true)
        keys = {**_POSE, **_FIELD}
        pred = read_npz(theirs, keys, optional=tuple(keys))
        has_pose, has_field = _tasks(pred, theirs)
        if tasks not in (None, (has_pose, has_field)):
            raise ValueError(
                f"{theirs} answers other tasks than {pairs[0][0].name}: all sequences must hold "
                "the pose, the field or both"
            )
        tasks = has_pose, has_field
        _check_truth(true, ours)
        num_frames += len(true["is_valid"])
        for name, value in pred.items():
            _fits(name, value, true, theirs, ours)
        try:
            if has_pose:
                scores.update(score_pose(_pose(pred), target, strict=strict))
            if has_field:
                scores.update(score_field(_field(pred), target, strict=strict))
        except ValueError as error:
            raise ValueError(f"{theirs}: {error}") from error
        if has_pose:
            warnings += [
                f"{theirs.name}, {side} hand: {cause}"
                for side in ("right", "left")
                for cause in _causes(pred, true, side)
            ]
    return report_of(
        scores.summary(),
        strict=strict,
        num_frames=num_frames,
        num_sequences=len(pairs),
        crop=PAIRED,
        camera=PAIRED,
        warnings=tuple(warnings),
        parts=scores.parts,
    )


def report_of(
    found: dict[str, float | None],
    *,
    strict: bool,
    num_frames: int,
    num_sequences: int,
    crop: str,
    camera: str,
    warnings: tuple[str, ...] = (),
    parts: Mapping[str, list[Tensor]] | None = None,
) -> Report:
    """Return the report of ``ArcticAccumulator.summary``; each view of a sequence counts as one.

    ``parts`` are the accumulator's, for the details: values in the order of sequences and frames.
    """
    return Report(
        protocol="arctic",
        definition=DEFINITION,
        strict=strict,
        quirks=QUIRKS,
        num_samples=num_frames,
        crop=crop,
        camera=camera,
        rows=tuple(
            Row(label=label, value=found[key], unit=unit)
            for label, key, unit in _ROWS
            if key in found
        ),
        scores={"num_sequences": num_sequences, **found},
        official=dict(found),
        warnings=warnings,
        details=None if parts is None else lambda: _details(parts),
    )


def _details(parts: Mapping[str, list[Tensor]]) -> list[Detail]:
    return [
        Detail(name=name, errors=torch.cat(values).double().numpy()[:, None])
        for name, values in parts.items()
    ]


def _pairs(predictions: Path, truth: Path) -> list[tuple[Path, Path]]:
    """Pair the files of two folders by name, or two files."""
    if predictions.is_file() and truth.is_file():
        return [(predictions, truth)]
    if not (predictions.is_dir() and truth.is_dir()):
        raise ValueError(
            f"predictions={str(predictions)!r} and truth={str(truth)!r} must both be .npz files or "
            "both folders of them"
        )
    names = sorted(path.name for path in truth.glob("*.npz"))
    missing = [name for name in names if not (predictions / name).is_file()]
    if not names:
        raise FileNotFoundError(f"truth={str(truth)!r} holds no .npz file")
    if missing:
        raise FileNotFoundError(
            f"predictions={str(predictions)!r} lacks {len(missing)} of {len(names)} sequences "
            f"(first: {missing[0]})"
        )
    return [(predictions / name, truth / name) for name in names]


def _tasks(pred: dict[str, np.ndarray], path: Path) -> tuple[bool, bool]:
    """Return which tasks a file answers; half a task is an error."""
    answers = []
    for keys in (_POSE, _FIELD):
        there = [key for key in keys if key in pred]
        if there and len(there) < len(keys):
            missing = [key for key in keys if key not in pred]
            raise ValueError(f"{path} holds {', '.join(there)} but not {', '.join(missing)}")
        answers.append(bool(there))
    if not any(answers):
        raise ValueError(
            f"{path} holds neither the pose task ({', '.join(_POSE)}) nor the field task "
            f"({', '.join(_FIELD)})"
        )
    return answers[0], answers[1]


def _fits(
    name: str, value: np.ndarray, true: dict[str, np.ndarray], theirs: Path, ours: Path
) -> None:
    """Reject another number of frames or object vertices, NaN, another unit."""
    frames, vertices = len(true["is_valid"]), len(true["part_ids"])
    require_count(f"frames of {name} in {theirs.name}", len(value), frames, ours.name)
    if name in ("object_vertices", "dist_or", "dist_ol"):
        require_count("object vertices", value.shape[1], vertices, ours.name)
    # NaN is rejected by the metric, where a frame is scored.
    if name in true and value.ndim == 3:
        require_unit(f"{theirs}, {name}", value, true[name], per_metre=1)
    elif name == "arti_rad" and _median(np.abs(value)) > _MOST_RAD:
        raise ValueError(f"{theirs}, {name} looks like degrees; the format holds radians")
    elif name in _FIELD and _median(value) > _MOST_DISTANCE_M:
        raise ValueError(
            f"{theirs}, {name} has a median of {_median(value):.4g}: it looks like "
            "millimetres; the format holds metres, clamped to 0.1"
        )


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else 0.0


def _check_truth(true: dict[str, np.ndarray], path: Path) -> None:
    """Reject an implausible ground truth."""
    require_count("frames", len(true["is_valid"]), len(true["is_valid"]), str(path))
    for side in ("right", "left"):
        seen = true[f"{side}_valid"] * true["is_valid"] > 0
        name = f"{path}, joints_{side}"
        require_hand_size(name, true[f"joints_{side}"][seen], per_metre=1)
    if not 0 < float(true["diameter_m"]) < _MOST_DIAMETER_M:
        raise ValueError(
            f"{path}: diameter_m is {float(true['diameter_m']):g}, expected metres between 0 and "
            f"{_MOST_DIAMETER_M:g}"
        )


def _causes(pred: dict[str, np.ndarray], true: dict[str, np.ndarray], side: str) -> list[str]:
    seen = true[f"{side}_valid"] * true["is_valid"] > 0
    if not seen.any():
        return []
    key = f"joints_{side}"
    return likely_causes(pred[key][seen], true[key][seen], order="MANO", opengl=False)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float64))


def _pose(arrays: dict[str, np.ndarray]) -> ArcticPose:
    return ArcticPose(**{name: _tensor(arrays[name]) for name in _POSE})


def _field(arrays: dict[str, np.ndarray]) -> ArcticField:
    return ArcticField(
        right_to_object=_tensor(arrays["dist_ro"]),
        left_to_object=_tensor(arrays["dist_lo"]),
        object_to_right=_tensor(arrays["dist_or"]),
        object_to_left=_tensor(arrays["dist_ol"]),
    )


def _truth(arrays: dict[str, np.ndarray]) -> ArcticTruth:
    return ArcticTruth(
        pose=_pose(arrays),
        is_valid=_tensor(arrays["is_valid"]),
        right_valid=_tensor(arrays["right_valid"]),
        left_valid=_tensor(arrays["left_valid"]),
        part_ids=torch.from_numpy(arrays["part_ids"].astype(np.int64)),
        diameter_m=float(arrays["diameter_m"]),
    )
