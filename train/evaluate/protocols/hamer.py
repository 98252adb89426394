"""HaMeR's pose errors and 2D PCK on .npz files of arrays.

Pose: ``joints`` [n, 21, 3], metres, in predictions and truth. PCK: ``joints_2d`` [n, 21, 2], pixels
of one image, in both; the truth also ``confidence`` [n, 21] and ``box_px`` [n], the side of the
hand's box before it is expanded. A file answers one of the two, or both. Standard joint order.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from train.evaluate.metrics.align import align_proper
from train.evaluate.metrics.errors import distance
from train.evaluate.metrics.hamer import (
    MIN_CONFIDENCE,
    PckAccumulator,
    PckScores,
    PoseAccumulator,
    PoseScores,
)
from train.evaluate.protocols.checks import (
    coincident,
    likely_causes,
    require_count,
    require_finite,
    require_hand_size,
    require_unit,
)
from train.evaluate.protocols.details import Detail, joint_details
from train.evaluate.protocols.files import batches, read_npz
from train.evaluate.protocols.report import PAIRED, Report, Row

DEFINITION: Final = (
    "MPJPE relative to joint 0 and PA-MPJPE after the best similarity with a proper rotation; PCK "
    "of 2D joints whose confidence is over 0.5, at shares of the side of the hand's box."
)
QUIRKS: Final = (
    "predicted joints that coincide make PA-MPJPE 0 / 0 (strict: such frames are left out of it)",
    "a joint that is never counted makes PCK 0 / 0 (strict: left out of the average)",
)
_CHUNK: Final = 4096
_PRED: Final[dict[str, tuple[int | str, ...]]] = {
    "joints": ("n", 21, 3),
    "joints_2d": ("n", 21, 2),
}
_TRUTH: Final[dict[str, tuple[int | str, ...]]] = {
    **_PRED,
    "confidence": ("n", 21),
    "box_px": ("n",),
}
Arrays = dict[str, np.ndarray]


def score(predictions: Path, truth: Path, *, strict: bool) -> Report:
    """Score a file; the keys are in the module docstring.

    Raises:
        ValueError: If a file is broken, or the predictions are implausible.
    """
    pred, true = (
        {
            name: array.astype(np.float64)
            for name, array in read_npz(path, keys, optional=tuple(keys)).items()
        }
        for path, keys in ((predictions, _PRED), (truth, _TRUTH))
    )
    if not pred:
        raise ValueError(f"{predictions} holds neither joints nor joints_2d")
    wanted = [*pred, *(("confidence", "box_px") if "joints_2d" in pred else ())]
    missing = [name for name in wanted if name not in true]
    if missing:
        raise ValueError(
            f"{truth} lacks {' and '.join(missing)} for the predicted {', '.join(pred)}"
        )
    for name, array in pred.items():
        require_count(f"rows of {name}", len(array), len(true[name]), str(truth))
    pose = _pose(pred, true, predictions, truth, strict=strict) if "joints" in pred else None
    pck = _pck(pred, true, predictions, truth, strict=strict) if "joints_2d" in pred else None
    scores: dict[str, Any] = {}
    for part in (pose, pck):
        scores |= {} if part is None else asdict(part)
    warnings = []
    if pose is not None:
        warnings += likely_causes(pred["joints"], true["joints"], order="standard", opengl=False)
        warnings += coincident("predicted joints", pred["joints"])
    return Report(
        protocol="hamer",
        definition=DEFINITION,
        strict=strict,
        quirks=QUIRKS,
        num_samples=scores["num_samples"],
        crop=PAIRED,
        camera=PAIRED,
        rows=(*_pose_rows(pose), *_pck_rows(pck)),
        scores=scores,
        official=_official(pose, pck),
        # HaMeR's pose errors are relative to a joint.
        warnings=tuple(w for w in warnings if "camera coordinates" not in w),
        details=lambda: _details(pred, true),
    )


def _pose(
    pred: Arrays, true: Arrays, predictions: Path, truth: Path, *, strict: bool
) -> PoseScores:
    joints, target = pred["joints"], true["joints"]
    require_finite(f"{predictions}, joints", joints)
    require_finite(f"{truth}, joints", target, "leave the sample out of both files")
    require_hand_size(f"{truth}, joints", target, per_metre=1)
    require_unit("predicted joints", joints, target, per_metre=1)
    scores = PoseAccumulator(strict=strict)
    for batch in batches(joints, target, size=_CHUNK):
        scores.update(*batch)
    return scores.summary()


def _pck(pred: Arrays, true: Arrays, predictions: Path, truth: Path, *, strict: bool) -> PckScores:
    require_finite(f"{truth}, confidence", true["confidence"], "0 leaves a joint out")
    is_counted = (true["confidence"] > MIN_CONFIDENCE)[..., None]
    for name, arrays, path in (("predicted", pred, predictions), ("true", true, truth)):
        counted = np.where(is_counted, arrays["joints_2d"], 0)
        require_finite(f"{path}, joints_2d", counted, f"a {name} joint is counted there")
    scores = PckAccumulator(strict=strict)
    names = ("joints_2d", "confidence", "box_px")
    for batch in batches(pred["joints_2d"], *(true[name] for name in names), size=_CHUNK):
        scores.update(*batch)
    return scores.summary()


def _details(pred: Arrays, true: Arrays) -> list[Detail]:
    found: list[Detail] = []
    if "joints" in pred:
        root = slice(0, 1)
        joints, target = (a["joints"] - a["joints"][:, root] for a in (pred, true))
        found += joint_details(joints, target, {"mpjpe_mm": None, "pa_mpjpe_mm": align_proper})
    if "joints_2d" in pred:
        apart = distance(*(torch.from_numpy(a["joints_2d"]) for a in (pred, true))).numpy()
        share = np.where(
            true["confidence"] > MIN_CONFIDENCE, apart / true["box_px"][:, None], np.nan
        )
        found.append(Detail(name="error_2d_over_box", errors=share, max_error=0.5))
    return found


def _pose_rows(pose: PoseScores | None) -> tuple[Row, ...]:
    if pose is None:
        return ()
    return (
        Row(label="MPJPE", value=pose.mpjpe_mm, unit="mm"),
        Row(label="PA-MPJPE", value=pose.pa_mpjpe_mm, unit="mm"),
        Row(label="PA-MPJPE, reflection allowed", value=pose.reflecting_pa_mpjpe_mm, unit="mm"),
        Row(label="frames reflected", value=pose.num_reflected, unit="", digits=0),
    )


def _pck_rows(pck: PckScores | None) -> tuple[Row, ...]:
    if pck is None:
        return ()
    pairs = zip(pck.thresholds, pck.pck, strict=True)
    return tuple(Row(label=f"PCK@{limit:g}", value=value, unit="share") for limit, value in pairs)


def _official(pose: PoseScores | None, pck: PckScores | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if pose is not None:
        found |= {"mode_mpjpe": pose.mpjpe_mm, "mode_re": pose.pa_mpjpe_mm}
    if pck is not None:
        pairs = zip(pck.thresholds, pck.pck, strict=True)
        found |= {f"kpAvg_pck_{limit:g}": value for limit, value in pairs}
    return found
