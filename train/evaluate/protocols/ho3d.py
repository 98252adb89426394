"""HO-3D's protocol (v2, v3) on files: ``pred.json`` against ``evaluation_{xyz,verts}.json``.

Metres, OpenGL camera axes (y up, hands at negative z), MANO joint order, the order of
evaluation.txt. The public ground truth is in the same form.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from model.hand import STANDARD_FROM_MANO21
from train.evaluate.metrics.align import align_scale_translation
from train.evaluate.metrics.ho3d import Ho3dAccumulator, official
from train.evaluate.protocols import freihand
from train.evaluate.protocols.checks import coincident, likely_causes
from train.evaluate.protocols.details import joint_details
from train.evaluate.protocols.files import batches, prediction_file, read_two_lists
from train.evaluate.protocols.freihand import CHUNK, Points
from train.evaluate.protocols.report import PAIRED, Report, Row

OFFICIAL_COUNTS: Final = {11524: "v2", 20137: "v3"}
DEFINITION: Final = (
    "Absolute errors, errors after scale and translation (wrist to middle MCP; wrist), errors "
    "after align_w_scale; AUC of PCK 0-5 cm; F-scores of the mesh at 5 and 15 mm."
)
QUIRKS: Final = (
    *freihand.QUIRKS,
    (
        "a prediction whose wrist and middle MCP coincide is not scaled (strict: left out of the "
        "scale-translation numbers)"
    ),
)

_OPENGL_FROM_OPENCV: Final = np.array([1.0, -1.0, -1.0])


def score(predictions: Path, truth: Path, *, strict: bool) -> Report:
    """Score ``pred.json`` (or its folder or zip); arguments as for ``freihand.score``.

    Raises:
        ValueError: If a file is broken, or the predictions are implausible.
        FileNotFoundError: If a file is missing.
    """
    joints, vertices = read_two_lists(prediction_file(predictions))
    true_joints, true_vertices = freihand.read_truth(truth)
    return report(joints, vertices, true_joints, true_vertices, source=str(truth), strict=strict)


def report(
    joints: Points,
    vertices: Points,
    true_joints: Points,
    true_vertices: Points,
    *,
    source: str,
    strict: bool,
    crop: str = PAIRED,
    camera: str = PAIRED,
) -> Report:
    """Score arrays in the official order, axes and joint order; see ``score``."""
    freihand.check(joints, vertices, true_joints, true_vertices, source)
    scores = Ho3dAccumulator(strict=strict)
    for batch in batches(joints, true_joints, vertices, true_vertices, size=CHUNK):
        scores.update(*batch)
    found = scores.summary()
    warnings = likely_causes(joints, true_joints, order="MANO", opengl=True)
    warnings += coincident("predicted joints", joints) + coincident("predicted vertices", vertices)
    version = OFFICIAL_COUNTS.get(len(joints))
    if version is None:
        counts = " or ".join(f"{n:,} ({v})" for n, v in OFFICIAL_COUNTS.items())
        warnings.append(f"{len(joints)} samples; the official evaluation has {counts}")
    extra = (
        Row(label="MPJPE scale-translation", value=found.st_mpjpe_mm, unit="mm"),
        Row(label="AUC scale-translation", value=found.st_auc_j, unit="0-50 mm"),
    )
    return Report(
        protocol="ho3d" if version is None else f"ho3d {version}",
        definition=DEFINITION,
        strict=strict,
        quirks=QUIRKS,
        num_samples=len(joints),
        crop=crop,
        camera=camera,
        rows=(*extra, *freihand.rows(found)),
        scores=asdict(found),
        official=official(found),
        warnings=tuple(warnings),
        details=lambda: [
            *joint_details(joints, true_joints, {"st_mpjpe_mm": align_scale_translation}),
            *freihand.details(joints, vertices, true_joints, true_vertices, strict=strict),
        ],
    )


def to_official(joints: Points, vertices: Points) -> tuple[Points, Points]:
    """Return points in OpenGL axes and MANO's joint order, from OpenCV axes and standard order."""
    mano21 = joints[:, np.argsort(STANDARD_FROM_MANO21)]
    return mano21 * _OPENGL_FROM_OPENCV, vertices * _OPENGL_FROM_OPENCV


def to_standard(joints: Points, vertices: Points) -> tuple[Points, Points]:
    """Return points in OpenCV axes, joints in standard order; inverts ``to_official``."""
    standard = joints[:, list(STANDARD_FROM_MANO21)]
    return standard * _OPENGL_FROM_OPENCV, vertices * _OPENGL_FROM_OPENCV
