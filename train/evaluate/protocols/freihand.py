"""FreiHAND's protocol on files: ``pred.json`` against ``evaluation_{xyz,verts}.json``.

Metres, camera frame, standard joint order, samples 0 to 3,959 in order.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64

from train.evaluate.metrics.align import align_proper, align_w_scale
from train.evaluate.metrics.freihand import FreihandAccumulator, FreihandScores, official
from train.evaluate.protocols.checks import (
    coincident,
    likely_causes,
    require_count,
    require_finite,
    require_hand_size,
    require_unit,
)
from train.evaluate.protocols.details import Detail, joint_details
from train.evaluate.protocols.files import (
    as_points,
    batches,
    prediction_file,
    read_json,
    read_two_lists,
)
from train.evaluate.protocols.report import PAIRED, Report, Row

OFFICIAL_COUNT: Final = 3960
DEFINITION: Final = (
    "Absolute errors and errors after align_w_scale (shift, scale, orthogonal matrix; joints and "
    "mesh apart); AUC of PCK 0-5 cm; F-scores of the mesh at 5 and 15 mm."
)
QUIRKS: Final = (
    "the alignment may be a reflection (strict: a rotation)",
    "norms get 1e-8 added",
    (
        "a mesh with another vertex count than the truth's is aligned by the joints' matrix with "
        "the size of the prediction left out"
    ),
)
CHUNK: Final = 256
Points = Float64[np.ndarray, "n _ 3"]


def score(predictions: Path, truth: Path, *, strict: bool) -> Report:
    """Score ``pred.json`` (or its folder or zip) against the public ground truth.

    Args:
        predictions: ``[joints [n, 21, 3], vertices [n, k, 3]]``.
        truth: Folder with evaluation_xyz.json and evaluation_verts.json, one of the two files, or a
            file in the format of the predictions.
        strict: Mathematically correct scores instead of the official tool's quirks.

    Raises:
        ValueError: If a file is broken, or the predictions are implausible.
        FileNotFoundError: If a file is missing.
    """
    joints, vertices = read_two_lists(prediction_file(predictions))
    true_joints, true_vertices = read_truth(truth)
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
    """Score arrays in the official order; see ``score``."""
    check(joints, vertices, true_joints, true_vertices, source)
    scores = FreihandAccumulator(strict=strict)
    for batch in batches(joints, true_joints, vertices, true_vertices, size=CHUNK):
        scores.update(*batch)
    found = scores.summary()
    warnings = likely_causes(joints, true_joints, order="standard", opengl=False)
    warnings += coincident("predicted joints", joints) + coincident("predicted vertices", vertices)
    if len(joints) != OFFICIAL_COUNT:
        warnings.append(f"{len(joints)} samples; the official evaluation has {OFFICIAL_COUNT}")
    return Report(
        protocol="freihand",
        definition=DEFINITION,
        strict=strict,
        quirks=QUIRKS,
        num_samples=len(joints),
        crop=crop,
        camera=camera,
        rows=rows(found),
        scores=asdict(found),
        official=official(found),
        warnings=tuple(warnings),
        details=lambda: details(joints, vertices, true_joints, true_vertices, strict=strict),
    )


def details(
    joints: Points, vertices: Points, true_joints: Points, true_vertices: Points, *, strict: bool
) -> list[Detail]:
    """Return the errors of joints and, where the vertices correspond, of the mesh."""
    align = align_proper if strict else align_w_scale
    found = joint_details(joints, true_joints, {"mpjpe_mm": None, "pa_mpjpe_mm": align})
    if vertices.shape == true_vertices.shape:
        names = {"mpvpe_mm": None, "pa_mpvpe_mm": align}
        found += joint_details(vertices, true_vertices, names)
    return found


def check(
    joints: Points, vertices: Points, true_joints: Points, true_vertices: Points, source: str
) -> None:
    """Reject implausible predictions."""
    require_count("samples", len(joints), len(true_joints), source)
    for name, pred, true in (
        ("predicted joints", joints, true_joints),
        ("predicted vertices", vertices, true_vertices),
    ):
        require_finite(name, pred)
        require_finite(f"{source}, {name.split()[-1]}", true, "the file is not the public truth")
        require_unit(name, pred, true, per_metre=1)
    require_hand_size(f"{source}, joints", true_joints, per_metre=1)


def rows(scores: FreihandScores) -> tuple[Row, ...]:
    """Return the rows of the score table."""
    return (
        Row(label="PA-MPJPE", value=scores.pa_mpjpe_mm, unit="mm"),
        Row(label="PA-MPVPE", value=scores.pa_mpvpe_mm, unit="mm"),
        Row(label="PA AUC joints", value=scores.pa_auc_j, unit="0-50 mm"),
        Row(label="PA AUC vertices", value=scores.pa_auc_v, unit="0-50 mm"),
        Row(label="PA F@5", value=scores.pa_f5, unit=""),
        Row(label="PA F@15", value=scores.pa_f15, unit=""),
        Row(label="MPJPE absolute", value=scores.mpjpe_mm, unit="mm"),
        Row(label="MPVPE absolute", value=scores.mpvpe_mm, unit="mm"),
        Row(label="AUC joints", value=scores.auc_j, unit="0-50 mm"),
        Row(label="AUC vertices", value=scores.auc_v, unit="0-50 mm"),
        Row(label="F@5", value=scores.f5, unit=""),
        Row(label="F@15", value=scores.f15, unit=""),
        Row(label="PA-MPJPE, rotation forced", value=scores.proper_pa_mpjpe_mm, unit="mm"),
        Row(label="PA-MPVPE, rotation forced", value=scores.proper_pa_mpvpe_mm, unit="mm"),
        Row(label="frames reflected, joints", value=scores.num_reflected, unit="", digits=0),
        Row(label="frames reflected, mesh", value=scores.num_reflected_meshes, unit="", digits=0),
    )


def read_truth(path: Path) -> tuple[Points, Points]:
    """Read the public ground truth; see ``score``.

    Raises:
        FileNotFoundError: If one of the two files is missing.
    """
    names = ("evaluation_xyz.json", "evaluation_verts.json")
    if path.is_file() and path.name not in names:
        return read_two_lists(path)
    folder = path.parent if path.is_file() else path
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"truth={str(path)!r} lacks {' and '.join(missing)}")
    joints = as_points(read_json(folder / names[0]), str(folder / names[0]), num_points=21)
    vertices = as_points(read_json(folder / names[1]), str(folder / names[1]))
    if len(joints) != len(vertices):
        raise ValueError(f"{folder}: {len(joints)} samples of joints, {len(vertices)} of vertices")
    return joints, vertices
