"""InterHand2.6M: one or two interacting hands, 80-140 cameras, the released H+M annotation.

``root`` is the folder with ``images/`` and ``annotations/``. The splits train, val and test are
read as far as present, each in the order of its ``data.json``. Joint validity is kept as shipped;
the rule that a hand without a valid wrist has no valid joints belongs to the protocol. Splits:
``<split>``, ``<split>_single`` and ``<split>_interacting``, by ``hand_type``.

Camera: ``X_cam = camrot (X_world - campos)``, millimetres in the files. MANO (NeuralAnnot, root in
world coordinates, optional) rotates about the rest wrist: ``transl = camrot (trans + J0 - campos)
- J0`` with the fixed left-hand model. It was fitted to the joints (about 5 mm error), so there are
no official vertices to check the decoding against.

Source:
    InterHand2.6M data/InterHand2.6M/dataset.py, common/utils/transforms.py and
    tool/MANO_world_to_camera (described in the dataset notes, 1.5, 1.6 and 6).
"""

import functools
import math
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from model.hand import NUM_JOINTS, STANDARD_FROM_INTERHAND, JointSet
from model.mano.files import ManoModels
from preprocess.labels.canonical import fill_hand, interhand26m_hands
from preprocess.records import DatasetSource, Labels, Rows, SourceError, empty_labels, job_of
from preprocess.sources.annotations import require
from preprocess.sources.interhand26m.files import (
    NAME,
    SIDES,
    Annotation,
    Camera,
    Image,
    ManoHand,
    Tables,
    annotation_file,
    list_images,
    read_images,
    read_tables,
)
from preprocess.sources.inventory import Inventory

SPLITS: Final = ("train", "val", "test")
OFFICIAL_COUNTS: Final = {
    "train": 1_361_062, "train_single": 687_548, "train_interacting": 673_514,
    "val": 380_125, "val_single": 234_183, "val_interacting": 145_942,
    "test": 849_160, "test_single": 488_968, "test_interacting": 360_192,
}  # fmt: skip
"""5 fps release v1.0, human and machine annotation combined."""
LICENCE: Final = "InterHand2.6M: CC-BY-NC 4.0"
CITATION: Final = (
    "Moon, Yu, Wen, Shiratori, Lee: InterHand2.6M: A Dataset and Baseline for 3D Interacting Hand "
    "Pose Estimation from a Single RGB Image, ECCV 2020"
)
_LISTS: Final = ("skeleton.txt", "subject.txt")
_PERMUTATION: Final = np.array(
    [STANDARD_FROM_INTERHAND, [NUM_JOINTS + j for j in STANDARD_FROM_INTERHAND]]
)  # [2, 21]: slot 0 right, slot 1 left


class _Row(NamedTuple):
    """Input for the labels of one image."""

    split: str
    image: Image
    annotation: Annotation


def open_source(root: Path, mano: ManoModels | None) -> DatasetSource:
    """Open InterHand2.6M below ``root``.

    Raises:
        SourceError: If there is no split, or files are missing, broken or inconsistent.
    """
    require(NAME, root, [], ["annotations", "images"])
    inventory = Inventory(dataset=NAME, root=root)
    there = inventory.folders("annotations", SPLITS.__contains__, is_known=_LISTS.__contains__)
    present = [split for split in SPLITS if split in there]
    if not present:
        raise SourceError(
            f"{NAME}: {root / 'annotations'} has none of the folders {', '.join(SPLITS)}; "
            "unpack the annotations of the 5 fps release"
        )
    names = ("data", "camera", "joint_3d")
    files = [annotation_file(split, name) for split in present for name in names]
    require(NAME, root, files, [f"images/{split}" for split in present])
    inventory.folders("images", present.__contains__)
    tables: dict[str, Tables] = {}
    rows: list[_Row] = []
    splits: dict[str, list[int]] = {}
    for split in present:
        tables[split] = read_tables(root, split, with_mano=mano is not None)
        file = annotation_file(split, "data")
        pairs, unused = read_images(root / file, tables[split])
        list_images(inventory, split, (image for image, _ in pairs))
        if unused:
            inventory.warnings.append(
                f"{unused} of {unused + len(pairs)} annotations in {file} were passed over: they "
                "belong to no image"
            )
        for image, annotation in pairs:
            kind = "interacting" if annotation.hand_type == "interacting" else "single"
            for name in (split, f"{split}_{kind}"):
                splits.setdefault(name, []).append(len(rows))
            rows.append(_Row(split, image, annotation))
    num_unboxed = sum(math.isnan(row.annotation.bbox_xywh[0]) for row in rows)
    return DatasetSource(
        dataset=NAME,
        joint_set=JointSet.interhand26m,
        licence=LICENCE,
        citation=CITATION,
        official_counts=OFFICIAL_COUNTS,
        root=root,
        rows=Rows(
            image=[f"images/{r.split}/{r.image.file_name}" for r in rows],
            sequence=[f"{r.split}/Capture{r.image.capture}/{r.image.seq_name}" for r in rows],
            camera=[r.image.camera for r in rows],
            subject=[r.image.subject for r in rows],
            frame_idx=np.array([int(r.image.frame) for r in rows], dtype=np.int32),
        ),
        splits={name: np.array(indices, dtype=np.int64) for name, indices in splits.items()},
        label_job=functools.partial(job_of, functools.partial(_labels, rows, tables, mano)),
        notes=inventory.notes()
        | ({"images_with_an_unusable_box": num_unboxed} if num_unboxed else {}),
    )


def _labels(
    rows: list[_Row], tables: dict[str, Tables], mano: ManoModels | None, official_idx: int
) -> Labels:
    """Return the labels of one image."""
    split, image, annotation = rows[official_idx]
    camera = tables[split].cameras[image.capture, image.camera]
    labels = empty_labels()
    labels.K[:] = camera.K
    labels.T_world_from_cam[:] = np.eye(4)
    labels.T_world_from_cam[:3, :3] = camera.R.T
    labels.T_world_from_cam[:3, 3] = camera.position_mm / 1000.0

    valid = np.array([annotation.valid_bits >> j & 1 for j in range(2 * NUM_JOINTS)], dtype=bool)
    labels.joint_valid[:] = valid[_PERMUTATION]
    world_mm = tables[split].joints_mm[image.capture, image.frame]
    joints = (world_mm - camera.position_mm) @ camera.R.T / 1000.0
    labels.joints_3d[:] = np.where(labels.joint_valid[..., None], joints[_PERMUTATION], np.nan)

    slot = SIDES.get(annotation.hand_type)
    if slot is not None and not labels.joint_valid[slot].any():
        x, y, width, height = annotation.bbox_xywh  # one box per image, here of the only hand
        labels.bbox_xyxy[slot] = x, y, x + width, y + height
    if mano is not None:
        for slot, hand in tables[split].mano.get((image.capture, image.frame), {}).items():
            _fill_mano(labels, slot, hand, mano, camera)
    return labels


def _fill_mano(labels: Labels, slot: int, hand: ManoHand, mano: ManoModels, camera: Camera) -> None:
    """Transform one hand's MANO parameters from world to camera and write them, in place."""
    moved = interhand26m_hands(
        mano,
        slot,
        hand.pose[None],
        hand.shape[None],
        hand.trans_m[None],
        camera.R[None],
        camera.position_mm[None],
    )
    fill_hand(labels, slot, moved, 0)
