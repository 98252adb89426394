"""DexYCB's hand pose protocol on files: a result text against the toolkit's annotation file.

Millimetres, camera frame, standard joint order. A line of a result file is the index of the image
in the toolkit's dataset, then 63 numbers, all separated by commas.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.app.files import replacing
from pipeline.pickles import load_pickle
from train.evaluate.metrics.align import align_proper, align_w_scale
from train.evaluate.metrics.dexycb import DexycbAccumulator, official
from train.evaluate.protocols.checks import (
    coincident,
    likely_causes,
    require_finite,
    require_hand_size,
    require_unit,
)
from train.evaluate.protocols.details import Detail, joint_details
from train.evaluate.protocols.files import batches, read_npz
from train.evaluate.protocols.report import PAIRED, Report, Row

DEFINITION: Final = (
    "Joint error absolute, relative to the wrist and after align_w_scale (shift, scale, orthogonal "
    "matrix); AUC of PCK 0-50 mm; frames without a hand are left out."
)
QUIRKS: Final = ("the alignment may be a reflection (strict: a rotation)", "norms get 1e-8 added")
_NUMBERS: Final = 1 + 63
_MAX_PICKLE_BYTES: Final = 2**30
_MAX_PICKLE_STEPS: Final = 20_000_000
"""The largest set has 406,888 frames with a hand, about 30 steps each."""
_CHUNK: Final = 4096
Joints = Float64[np.ndarray, "n 21 3"]
Indexed = tuple[list[int], Joints]
"""Image numbers of any size, as in the official tool, and joints in mm."""


def score(predictions: Path, truth: Path, *, strict: bool) -> Report:
    """Score a result file.

    Args:
        predictions: One line ``index,x0,y0,z0,...,z20`` per image, mm. Images without a hand may be
            present or not, as in the official tool.
        truth: ``anno_hpe_<setup>.pkl`` as the toolkit writes it (or its folder), a text in the
            format of the predictions, or an .npz with ``index`` [n] and ``joints_mm`` [n, 21, 3].
        strict: Mathematically correct scores instead of the official tool's quirks.

    Raises:
        ValueError: If a file is broken, an image has no prediction, or they are implausible.
        FileNotFoundError: If a file is missing.
    """
    index, joints = read_results(predictions)
    true_index, true_joints = read_truth(truth)
    place = {i: n for n, i in enumerate(index)}  # the last line of an image counts
    missing = [i for i in true_index if i not in place]
    if missing:
        raise ValueError(
            f"{predictions}: {len(missing)} of {len(true_index)} images with a hand have no "
            f"prediction (first: image {missing[0]}); the index counts the images of the setup in "
            "the order of the toolkit, from 0"
        )
    picked = joints[[place[i] for i in true_index]]
    bad = np.flatnonzero(~np.isfinite(picked).all((1, 2)))
    if len(bad):
        raise ValueError(
            f"{predictions}: {len(bad)} of {len(picked)} images with a hand hold NaN or infinity "
            f"(first: image {true_index[bad[0]]})"
        )
    require_hand_size(f"{truth}, joints", true_joints, per_metre=1000)
    return report(picked, true_joints, strict=strict, samples=true_index)


def report(
    joints: Joints,
    true_joints: Joints,
    *,
    strict: bool,
    crop: str = PAIRED,
    camera: str = PAIRED,
    samples: Sequence[int] | None = None,
) -> Report:
    """Score corresponding joints, mm; see ``score``. ``samples`` are their numbers in details."""
    require_finite("predicted joints", joints)
    require_unit("predicted joints", joints, true_joints, per_metre=1000)
    scores = DexycbAccumulator(strict=strict)
    for batch in batches(joints, true_joints, size=_CHUNK):
        scores.update(*batch)
    found = scores.summary()
    return Report(
        protocol="dexycb",
        definition=DEFINITION,
        strict=strict,
        quirks=QUIRKS,
        num_samples=len(joints),
        crop=crop,
        camera=camera,
        rows=(
            Row(label="MPJPE absolute", value=found.mpjpe_mm, unit="mm", digits=4),
            Row(label="AUC absolute", value=found.auc, unit="0-50 mm", digits=4),
            Row(label="MPJPE root-relative", value=found.rr_mpjpe_mm, unit="mm", digits=4),
            Row(label="AUC root-relative", value=found.rr_auc, unit="0-50 mm", digits=4),
            Row(label="PA-MPJPE", value=found.pa_mpjpe_mm, unit="mm", digits=4),
            Row(label="AUC Procrustes", value=found.pa_auc, unit="0-50 mm", digits=4),
            Row(
                label="PA-MPJPE, rotation forced",
                value=found.proper_pa_mpjpe_mm,
                unit="mm",
                digits=4,
            ),
            Row(label="frames reflected", value=found.num_reflected, unit="", digits=0),
        ),
        scores=asdict(found),
        official=official(found),
        warnings=(
            *likely_causes(joints, true_joints, order="standard", opengl=False),
            *coincident("predicted joints", joints),
        ),
        details=lambda: _details(joints, true_joints, samples, strict=strict),
    )


def _details(
    joints: Joints, true_joints: Joints, samples: Sequence[int] | None, *, strict: bool
) -> list[Detail]:
    align = align_proper if strict else align_w_scale
    names = {"mpjpe_mm": None, "pa_mpjpe_mm": align}
    relative = (joints - joints[:, :1], true_joints - true_joints[:, :1])
    return [
        *joint_details(joints, true_joints, names, per_metre=1000, samples=samples),
        *joint_details(*relative, {"rr_mpjpe_mm": None}, per_metre=1000, samples=samples),
    ]


def read_results(path: Path) -> Indexed:
    """Read a result text.

    Raises:
        ValueError: If a line does not contain 64 numbers; names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; expected a result text of DexYCB")
    index, joints = [], []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        words = line.split(",")
        try:
            index.append(int(words[0]))
            joints.append(np.array(words[1:_NUMBERS], np.float64).reshape(21, 3))
        except ValueError:
            words = []
        if len(words) != _NUMBERS:
            raise ValueError(
                f"{path}, line {number}: expected an image index and 63 numbers (mm) separated by "
                f"commas, got {line[:40]!r}"
            )
    if not index:
        raise ValueError(f"{path} is empty")
    return index, np.stack(joints)


def read_truth(path: Path) -> Indexed:
    """Read the annotation; see ``score``.

    Raises:
        ValueError: If the file has another content.
        FileNotFoundError: If a folder contains no annotation file, or several.
    """
    if path.is_dir():
        found = sorted(path.glob("anno_hpe_*.pkl"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"truth={str(path)!r}: expected one anno_hpe_<setup>.pkl (the toolkit writes it to "
                f"its results folder), found {[p.name for p in found] or 'none'}"
            )
        path = found[0]
    if path.suffix == ".pkl":
        index, joints = _read_annotation(path)
    elif path.suffix == ".npz":
        arrays = read_npz(path, {"index": ("n",), "joints_mm": ("n", 21, 3)})
        index = [int(i) for i in arrays["index"]]
        joints = arrays["joints_mm"].astype(np.float64)
    else:
        index, joints = read_results(path)
    # The toolkit marks a frame without a hand by -1 m everywhere, and leaves it out.
    has_hand = ~(joints == -1000).all((1, 2))
    if not has_hand.any():
        raise ValueError(f"{path} holds no frame with a hand")
    require_finite(f"{path}, joints", joints, "write the annotation again with the toolkit")
    return [i for i, there in zip(index, has_hand, strict=True) if there], joints[has_hand]


def _read_annotation(path: Path) -> Indexed:
    content = load_pickle(
        path, name=str(path), max_bytes=_MAX_PICKLE_BYTES, max_steps=_MAX_PICKLE_STEPS
    )
    table = content.get("joint_3d") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise ValueError(
            f"{path}: expected a dict with 'joint_3d', a dict of image index to joints"
        )
    index, joints = [], []
    for key, value in table.items():
        try:
            index.append(int(key))
            # float32 like the file: the toolkit scales the labels by 1000 before it widens them.
            joints.append(np.asarray(value, np.float64).reshape(21, 3))
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: joint_3d[{key!r}]: expected an image number and 21 x 3 numbers"
            ) from None
    return index, np.stack(joints)


def write_results(path: Path, index: Int64[np.ndarray, " n"], joints_mm: Joints) -> None:
    """Write a result text in the official format, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as write:
        for i, row in zip(index.tolist(), joints_mm.reshape(len(joints_mm), -1), strict=True):
            write((",".join([str(i), *(f"{value:.6f}" for value in row)]) + "\n").encode())
