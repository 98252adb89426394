"""InterHand2.6M's protocol on its own annotation files.

Millimetres, camera frame, InterHand's 42 joints (0-20 right, 21-41 left, tip to base, wrists 20 and
41). Samples in the order of the official data set: the annotations of one hand first, then those of
two, each in the order of the annotation file.

Predictions, an .npz in one of two forms. What the official test script collects: ``joint_coord``
[n, 42, 3] (x, y, z in the 64^3 heat map), ``rel_root_depth`` [n, 1], ``hand_type`` [n, 2] (score of
right, left), ``inv_trans`` [n, 2, 3] (image from input pixels). Or camera space: ``joints_mm``
[n, 42, 3] and ``hand_type`` [n, 2], optionally ``left_from_right_mm`` [n, 3] (left wrist minus
right wrist; else taken from the joints).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from train.evaluate.metrics.interhand26m import InterhandAccumulator, official
from train.evaluate.protocols.checks import (
    CLEAR,
    aligned_error,
    likely_causes,
    require_count,
    require_finite,
    require_hand_size,
    require_length,
    require_unit,
)
from train.evaluate.protocols.details import AUC_MAX_MM, Detail
from train.evaluate.protocols.files import batches, keys_of, read_json, read_npz
from train.evaluate.protocols.report import PAIRED, Report, Row

DEFINITION: Final = (
    "MPJPE with each hand relative to its wrist, mean over samples for each of 42 joints, then "
    "over joints; MRRPE of the left wrist seen from the right one; handedness at score 0.5."
)
QUIRKS: Final = (
    "a score of exactly 0.5 is neither yes nor no (strict: yes)",
    "the official tool stops where a joint has no sample in a group; here the joint is left out",
)
HAND_TYPES: Final = ("right", "left", "interacting")
RIGHT_WRIST: Final = 20
LEFT_WRIST: Final = 41
_HEAT_MAP: Final = 64
_INPUT_PX: Final = 256
_DEPTH_MM: Final = 400
"""Depth range of the heat map, for the joints and for the wrists' relative depth."""
_CHUNK: Final = 4096
_OFFICIAL: Final[dict[str, tuple[int | str, ...]]] = {
    "joint_coord": ("n", 42, 3),
    "rel_root_depth": ("n", 1),
    "hand_type": ("n", 2),
    "inv_trans": ("n", 2, 3),
}
_CAMERA: Final[dict[str, tuple[int | str, ...]]] = {
    "joints_mm": ("n", 42, 3),
    "hand_type": ("n", 2),
    "left_from_right_mm": ("n", 3),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """Annotations in the official order."""

    joints_mm: Float64[np.ndarray, "n 42 3"]
    joint_valid: Bool[np.ndarray, "n 42"]
    hand_type: Int64[np.ndarray, " n"]
    """Index into ``HAND_TYPES``."""
    hand_type_valid: Bool[np.ndarray, " n"]
    focal_px: Float64[np.ndarray, "n 2"]
    princpt_px: Float64[np.ndarray, "n 2"]
    root_depth_mm: Float64[np.ndarray, "n 2"]
    """Absolute depth of the right and left wrist, used to lift the official form."""
    depth_source: str
    file_position: Int64[np.ndarray, " n"]
    """Position of each sample in the annotation file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Predictions in camera space."""

    joints_mm: Float64[np.ndarray, "n 42 3"]
    hand_type: Float64[np.ndarray, "n 2"]
    left_from_right_mm: Float64[np.ndarray, "n 3"]


def score(
    predictions: Path, truth: Path, *, strict: bool, root_depth: Path | None = None
) -> Report:
    """Score a file of predictions.

    Args:
        predictions: The .npz; its keys are in the module docstring.
        truth: Folder with InterHand2.6M_<split>_{data,camera,joint_3d}.json of one split.
        strict: Mathematically correct scores instead of the official tool's quirks.
        root_depth: RootNet's output (rootnet_interhand2.6m_output_<split>.json), the official
            source of absolute depth; None takes the true depth.

    Raises:
        ValueError: If a file is broken, or the predictions are implausible.
        FileNotFoundError: If a file is missing.
    """
    true = read_truth(truth, root_depth)
    pred = read_predictions(predictions, true)
    return report(
        pred,
        true,
        strict=strict,
        camera=f"the dataset's; absolute depth of the wrists: {true.depth_source}",
    )


def report(
    pred: Predictions, true: Truth, *, strict: bool, crop: str = PAIRED, camera: str = PAIRED
) -> Report:
    """Score predictions in the official order; see ``score``."""
    wrists = true.joint_valid[:, [RIGHT_WRIST, LEFT_WRIST]]
    scored = true.joint_valid & np.repeat(wrists, 21, axis=1)
    joints = np.where(scored[..., None], pred.joints_mm, 0)
    is_pair = (true.hand_type == HAND_TYPES.index("interacting")) & wrists.all(1)
    between = np.where(is_pair[:, None], pred.left_from_right_mm, 0)
    require_finite("predicted joints (joints_mm, or lifted from joint_coord)", joints)
    require_finite("left_from_right_mm", between)
    require_finite("hand_type", np.where(true.hand_type_valid[:, None], pred.hand_type, 0))
    warnings = _readings(pred.joints_mm, true)
    for hand, first in (("right", 0), ("left", 21)):
        points = slice(first, first + 21)
        seen = true.joint_valid[:, points].all(1)
        if seen.any():
            theirs, ours = pred.joints_mm[seen, points], true.joints_mm[seen, points]
            require_hand_size(f"true joints ({hand} hand)", ours, per_metre=1000)
            require_unit(f"predicted joints ({hand} hand)", theirs, ours, per_metre=1000)
            causes = likely_causes(theirs, ours, order="InterHand2.6M", opengl=False)
            warnings += [f"{hand} hand: {cause}" for cause in causes]
    true_between = true.joints_mm[:, LEFT_WRIST] - true.joints_mm[:, RIGHT_WRIST]
    require_length(
        "left_from_right_mm",
        np.linalg.norm(between[is_pair], axis=1),
        np.linalg.norm(true_between[is_pair], axis=1),
        per_metre=1000,
    )
    scores = InterhandAccumulator(strict=strict)
    arrays = (
        joints,
        true.joints_mm,
        true.joint_valid,
        true.hand_type,
        true.hand_type_valid,
        pred.hand_type,
        between,
    )
    for batch in batches(*arrays, size=_CHUNK):
        scores.update(*batch)
    found = scores.summary()
    return Report(
        protocol="interhand26m",
        definition=DEFINITION,
        strict=strict,
        quirks=QUIRKS,
        num_samples=found.num_samples,
        crop=crop,
        camera=camera,
        rows=(
            Row(label="MPJPE all", value=found.mpjpe_mm, unit="mm"),
            Row(label="MPJPE single hand", value=found.mpjpe_single_mm, unit="mm"),
            Row(label="MPJPE interacting hands", value=found.mpjpe_interacting_mm, unit="mm"),
            Row(label="MRRPE", value=found.mrrpe_mm, unit="mm"),
            Row(label="handedness accuracy", value=found.handedness_accuracy, unit="share"),
        ),
        scores=asdict(found),
        official=official(found),
        warnings=tuple(warnings),
        details=lambda: _details(joints, between, true, scored, is_pair),
    )


def _details(
    joints: np.ndarray,
    between: np.ndarray,
    true: Truth,
    scored: Bool[np.ndarray, "n 42"],
    is_pair: Bool[np.ndarray, " n"],
) -> list[Detail]:
    """Return the errors relative to each hand's wrist, and those of the left wrist."""

    def relative(points: np.ndarray) -> np.ndarray:
        return np.asarray(points - np.repeat(points[:, [RIGHT_WRIST, LEFT_WRIST]], 21, axis=1))

    errors = np.linalg.norm(relative(joints) - relative(true.joints_mm), axis=-1)
    apart = true.joints_mm[:, LEFT_WRIST] - true.joints_mm[:, RIGHT_WRIST]
    wrist = np.linalg.norm(between - apart, axis=-1)[:, None]
    return [
        Detail(name="mpjpe_mm", errors=np.where(scored, errors, np.nan), max_error=AUC_MAX_MM),
        Detail(name="mrrpe_mm", errors=np.where(is_pair[:, None], wrist, np.nan)),
    ]


def _readings(joints: np.ndarray, true: Truth) -> list[str]:
    """Return warnings if the hands, or the samples, seem to be in another order."""
    hands: np.ndarray = np.all(true.joint_valid.reshape(-1, 2, 21), axis=2)
    theirs, ours = (x.reshape(-1, 2, 21, 3) for x in (joints, true.joints_mm))
    whole = np.all(hands, axis=1)
    others = {
        "the left hand's joints look to stand before the right one's": (theirs[:, ::-1], whole),
        "the samples look to be in the order of the annotation file; the official order has those "
        "of one hand first": (theirs[true.file_position], np.any(hands, axis=1)),
    }
    found = []
    for message, (reading, rows) in others.items():
        picked = rows[:, None] & hands & np.isfinite(reading + theirs).all((2, 3))
        if not picked.any() or np.array_equal(reading[picked], theirs[picked]):
            continue
        points = [torch.from_numpy(x[picked]) for x in (reading, theirs, ours)]
        if aligned_error(points[0], points[2]) < CLEAR * aligned_error(points[1], points[2]):
            found.append(message)
    return found


def read_predictions(path: Path, true: Truth) -> Predictions:
    """Read either form; the official one is lifted as the official tool lifts it.

    Raises:
        ValueError: If the file is broken or contains another number of samples.
    """
    is_official = "joint_coord" in keys_of(path)
    if is_official:
        arrays = read_npz(path, _OFFICIAL)
    else:
        arrays = read_npz(path, _CAMERA, optional=("left_from_right_mm",))
    require_count("samples", len(arrays["hand_type"]), len(true.hand_type), "the truth")
    arrays = {name: value.astype(np.float64) for name, value in arrays.items()}
    if is_official:
        return lift(arrays, true)
    joints = arrays["joints_mm"]
    between = joints[:, LEFT_WRIST] - joints[:, RIGHT_WRIST]
    return Predictions(
        joints_mm=joints,
        hand_type=arrays["hand_type"],
        left_from_right_mm=arrays.get("left_from_right_mm", between),
    )


def lift(arrays: dict[str, np.ndarray], true: Truth) -> Predictions:
    """Lift heat-map coordinates to camera space with the depth of the wrists in ``true``.

    For MRRPE the left wrist is at the depth of the right one plus the predicted difference; for
    MPJPE the left hand is at the left wrist's own depth.
    """
    coord = arrays["joint_coord"]
    pixel = coord[..., :2] / _HEAT_MAP * _INPUT_PX
    ones = np.ones_like(pixel[..., :1])
    image = np.einsum("nij,nkj->nki", arrays["inv_trans"], np.concatenate((pixel, ones), -1))
    depth = (coord[..., 2] / _HEAT_MAP * 2 - 1) * (_DEPTH_MM / 2)
    offset = (arrays["rel_root_depth"][:, 0] / _HEAT_MAP * 2 - 1) * (_DEPTH_MM / 2)

    right_root = true.root_depth_mm[:, 0]
    left = _lift(image[:, LEFT_WRIST], depth[:, LEFT_WRIST] + right_root + offset, true)
    right = _lift(image[:, RIGHT_WRIST], depth[:, RIGHT_WRIST] + right_root, true)
    depth = depth + np.repeat(true.root_depth_mm, 21, axis=1)
    return Predictions(
        joints_mm=_lift(image, depth, true),
        hand_type=arrays["hand_type"],
        left_from_right_mm=left - right,
    )


def _lift(pixel: np.ndarray, depth: np.ndarray, true: Truth) -> np.ndarray:
    """Unproject pixels at a depth to camera points [n, ..., 3]."""
    spread = (-1, *[1] * (pixel.ndim - 2), 2)
    rays = (pixel - true.princpt_px.reshape(spread)) / true.focal_px.reshape(spread)
    return np.concatenate((rays * depth[..., None], depth[..., None]), -1)


def read_truth(folder: Path, root_depth: Path | None = None) -> Truth:
    """Read the annotations of one split; see ``score``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the folder contains several splits, or RootNet's file lacks an annotation.
    """
    found = sorted(folder.glob("InterHand2.6M_*_data.json")) if folder.is_dir() else []
    if len(found) != 1:
        raise FileNotFoundError(
            f"truth={str(folder)!r}: expected a folder with one InterHand2.6M_<split>_data.json, "
            f"found {[p.name for p in found] or 'none'}"
        )
    stem = found[0].name.removesuffix("data.json")
    data, cameras, joints = (
        read_json(folder / f"{stem}{part}.json") for part in ("data", "camera", "joint_3d")
    )
    depths = None if root_depth is None else _root_depths(root_depth)
    try:
        images = {int(image["id"]): image for image in data["images"]}
        annotations = list(data["annotations"])
        is_pair = [a["hand_type"] == "interacting" for a in annotations]
        order = [int(a["id"]) for a in annotations]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{found[0]}: expected images and annotations with id and hand_type, lacks {error}"
        ) from error
    if not annotations:
        raise ValueError(f"{found[0]} holds no annotation")
    position = np.argsort(is_pair, kind="stable")  # single hands first
    rows = []
    for i in position:
        try:
            rows.append(_row(annotations[i], images, cameras, joints))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder}: annotation {order[i]} is incomplete in {stem}data.json, camera.json or "
                f"joint_3d.json: {error}"
            ) from error
    joints_mm = np.stack([row[0] for row in rows])
    joint_valid = np.stack([row[1] for row in rows])
    lost = np.flatnonzero((~np.isfinite(joints_mm).all(2) & joint_valid).any(1))
    if len(lost):
        raise ValueError(
            f"{folder}: {len(lost)} annotations have valid joints that are not finite (first: id "
            f"{order[position[lost[0]]]})"
        )
    joints_mm = np.nan_to_num(joints_mm)
    order = [order[i] for i in position]
    if depths is None:
        root_depth_mm = joints_mm[:, [RIGHT_WRIST, LEFT_WRIST], 2]
    else:
        missing = [i for i in order if i not in depths]
        if missing:
            raise ValueError(
                f"{root_depth} lacks {len(missing)} of {len(order)} annotations (first: id "
                f"{missing[0]})"
            )
        root_depth_mm = np.array([depths[i] for i in order], np.float64)
    return Truth(
        joints_mm=joints_mm,
        joint_valid=joint_valid,
        hand_type=np.array([row[2] for row in rows], np.int64),
        hand_type_valid=np.array([row[3] for row in rows], bool),
        focal_px=np.stack([row[4] for row in rows]),
        princpt_px=np.stack([row[5] for row in rows]),
        root_depth_mm=root_depth_mm,
        depth_source="RootNet" if root_depth else "ground truth",
        file_position=position.astype(np.int64),
    )


def _root_depths(path: Path) -> dict[int, list[float]]:
    """Return RootNet's depth of the right and left wrist, mm, by annotation."""
    try:
        depths = {int(row["annot_id"]): row["abs_depth"] for row in read_json(path)}
        table = np.array(list(depths.values()), np.float64).reshape(len(depths), 2)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a list of objects with annot_id and abs_depth of two numbers"
        ) from error
    require_finite(f"{path}, abs_depth", table, "run RootNet again")
    return depths


def _row(
    annotation: dict[str, Any], images: dict[int, Any], cameras: Any, joints: Any
) -> tuple[np.ndarray, np.ndarray, int, bool, np.ndarray, np.ndarray]:
    """Return joints in the camera (mm), validity, hand type, its validity, focal and centre."""
    image = images[int(annotation["image_id"])]
    capture, camera = str(image["capture"]), str(image["camera"])
    calibration = cameras[capture]
    rotation = np.array(calibration["camrot"][camera], np.float64).reshape(3, 3)
    position = np.array(calibration["campos"][camera], np.float64).reshape(3)
    world = np.array(joints[capture][str(image["frame_idx"])]["world_coord"], np.float64)
    return (
        (world.reshape(42, 3) - position) @ rotation.T,
        np.array(annotation["joint_valid"]).reshape(42) > 0,
        HAND_TYPES.index(annotation["hand_type"]),
        bool(np.array(annotation["hand_type_valid"]).reshape(())),
        np.array(calibration["focal"][camera], np.float64),
        np.array(calibration["princpt"][camera], np.float64),
    )
