"""FreiHAND v2: right hands, four versions of each training image, a separate evaluation set.

``root`` is the folder ``FreiHAND_pub_v2``. Evaluation ground truth is read from it or its sibling
``FreiHAND_pub_v2_eval``; without it, evaluation rows have no labels. Training image
``idx + num_unique * v`` is version v of pose ``idx``.

Besides the official ``train`` and ``evaluation`` splits there are ``train_gs`` (version 0, the only
one with masks) and a hold-out ``train90`` / ``val10``: val10 is the last ``num_unique // 10`` poses
(at least one) in all four versions. It is one contiguous block, because poses with adjacent numbers
come from the same recording.
"""

import functools
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float

from model.hand import NUM_JOINTS, NUM_VERTICES, RIGHT, JointSet
from model.mano.files import ManoModels
from preprocess.labels.canonical import HandParameters, fill_hand, freihand_hands
from preprocess.records import DatasetSource, Labels, Rows, SourceError, empty_labels, job_of
from preprocess.sources.annotations import read_number_rows, require
from preprocess.sources.inventory import Inventory

VERSIONS: Final = ("gs", "hom", "sample", "auto")
"""Training image versions: green screen, homogenised, sampled background, automatic colour."""
OFFICIAL_COUNTS: Final = {"train": 130_240, "train_gs": 32_560, "evaluation": 3_960}
LICENCE: Final = "FreiHAND: research only, non-commercial"
CITATION: Final = (
    "Zimmermann, Ceylan, Yang, Russell, Argus, Brox: FreiHAND: A Dataset for Markerless Capture of "
    "Hand Pose and Shape from Single RGB Images, ICCV 2019"
)
_NAME: Final = "freihand"
_IMAGE: Final = re.compile(r"[0-9]{8}\.jpg")
_MANO_ROW: Final = (1, 61)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Poses:
    """Annotation rows of the training or evaluation set; None = not available."""

    K: Float[np.ndarray, "n 3 3"]
    joints_3d: Float[np.ndarray, "n 21 3"] | None
    mano: HandParameters | None
    vertices_check_m: Float[np.ndarray, " n"]


def open_source(root: Path, mano: ManoModels | None) -> DatasetSource:
    """Open FreiHAND below ``root``.

    Raises:
        SourceError: If files are missing, broken, of unequal length, or shorter than the images.
    """
    folders = ["training/rgb", "evaluation/rgb"]
    files = ["training_K.json", "training_xyz.json", "evaluation_K.json"]
    files += [] if mano is None else ["training_mano.json", "training_verts.json"]
    require(_NAME, root, files, folders)
    training = _read_poses(root, root, "training", mano)
    truth = next((d for d in _truth_folders(root) if (d / "evaluation_xyz.json").is_file()), None)
    evaluation = _read_poses(root, truth, "evaluation", mano)
    num_unique, num_eval = len(training.K), len(evaluation.K)
    num_train = num_unique * len(VERSIONS)
    inventory = Inventory(dataset=_NAME, root=root)
    versions = f"{num_unique} poses x {len(VERSIONS)} versions"
    _check_images(inventory, "training", num_train, versions)
    _check_images(inventory, "evaluation", num_eval, f"{num_eval} poses")

    official = np.arange(num_train, dtype=np.int64)
    num_val = min(max(1, num_unique // 10), max(num_unique - 1, 0))
    is_val = official % max(num_unique, 1) >= num_unique - num_val
    images = [f"training/rgb/{i:08d}.jpg" for i in range(num_train)]
    images += [f"evaluation/rgb/{i:08d}.jpg" for i in range(num_eval)]
    num_rows = len(images)
    return DatasetSource(
        dataset=_NAME,
        joint_set=JointSet.freihand,
        licence=LICENCE,
        citation=CITATION,
        official_counts=OFFICIAL_COUNTS,
        root=root,
        rows=Rows(
            image=images,
            sequence=[v for v in VERSIONS for _ in range(num_unique)] + ["evaluation"] * num_eval,
            camera=["freihand"] * num_rows,
            subject=["unknown"] * num_rows,
            frame_idx=np.concatenate(
                [np.tile(np.arange(num_unique), len(VERSIONS)), np.arange(num_eval)]
            ).astype(np.int32),
        ),
        splits={
            "train": official,
            "train_gs": official[:num_unique],
            "train90": official[~is_val],
            "val10": official[is_val],
            "evaluation": num_train + np.arange(num_eval, dtype=np.int64),
        },
        label_job=functools.partial(job_of, functools.partial(_labels, training, evaluation)),
        notes={"evaluation_truth": "none" if truth is None else os.path.relpath(truth, root)}
        | inventory.notes(),
    )


def _labels(training: _Poses, evaluation: _Poses, official_idx: int) -> Labels:
    """Return the labels of one image, shared by the four versions of a pose."""
    num_train = len(training.K) * len(VERSIONS)
    poses = training if official_idx < num_train else evaluation
    row = official_idx % len(training.K) if official_idx < num_train else official_idx - num_train
    labels = empty_labels()
    labels.K[:] = poses.K[row]
    if poses.joints_3d is not None:
        labels.joints_3d[RIGHT] = poses.joints_3d[row]
        labels.joint_valid[RIGHT] = True
    if poses.mano is None:
        return labels
    fill_hand(labels, RIGHT, poses.mano, row)
    return replace(labels, vertices_check_m=float(poses.vertices_check_m[row]))


def _truth_folders(root: Path) -> list[Path]:
    return [root, root.parent / "FreiHAND_pub_v2_eval", root.parent / f"{root.name}_eval"]


def _read_poses(root: Path, truth: Path | None, name: str, mano: ManoModels | None) -> _Poses:
    """Read the files of ``training`` or ``evaluation``; all but K come from ``truth``."""
    K = read_number_rows(_NAME, root / f"{name}_K.json", (3, 3))
    rows = {f"{name}_K.json": len(K)}
    joints, parameters, vertices = None, None, None
    if truth is not None:
        joints = read_number_rows(_NAME, truth / f"{name}_xyz.json", (NUM_JOINTS, 3))
        rows[f"{name}_xyz.json"] = len(joints)
        if mano is not None and (truth / f"{name}_mano.json").is_file():
            parameters = read_number_rows(_NAME, truth / f"{name}_mano.json", _MANO_ROW)
            rows[f"{name}_mano.json"] = len(parameters)
            if (truth / f"{name}_verts.json").is_file():
                path = truth / f"{name}_verts.json"
                vertices = read_number_rows(_NAME, path, (NUM_VERTICES, 3))
                rows[path.name] = len(vertices)
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{file} has {count}" for file, count in rows.items())
        raise SourceError(
            f"{_NAME}: the {name} annotations differ in length ({counts} rows); "
            f"expected one row per pose in each, unpack {root} again"
        )
    if not len(K):
        raise SourceError(
            f"{_NAME}: {root / f'{name}_K.json'} lists no poses; unpack the annotations again"
        )
    if mano is None or parameters is None:
        unchecked = np.full(len(K), np.nan)
        return _Poses(K=K, joints_3d=joints, mano=None, vertices_check_m=unchecked)
    hands, check = freihand_hands(mano, K, parameters[:, 0], vertices)
    return _Poses(K=K, joints_3d=joints, mano=hands, vertices_check_m=check)


def _check_images(inventory: Inventory, name: str, expected: int, meaning: str) -> None:
    """Reject images without annotation; the builder handles missing images."""
    files = inventory.files(f"{name}/rgb", _IMAGE.fullmatch)
    extra = [file for file in files if int(file[:8]) >= expected]
    if extra:
        raise SourceError(
            f"{_NAME}: {inventory.root / name / 'rgb'} holds {len(files)} images but {name}_K.json "
            f"lists {expected} ({meaning}); {len(extra)} images would have no labels (first: "
            f"{extra[0]}), unpack the annotations of the same release"
        )
