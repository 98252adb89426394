"""HO-3D v2 and v3: right hands with one YCB object, one to five cameras.

``root`` is the folder with ``train.txt`` and ``evaluation.txt``. Rows are the listed frames, train
first: unlisted images have no annotation and are not in the official set. A listed frame whose meta
file is missing or empty keeps its row without labels. The image format tells the version: PNG is
v2, JPEG v3.

Sequences of one recording (ABF10 to ABF14, the last digit is the camera) are synchronised views.
Besides the official ``train`` and ``evaluation`` there is a hold-out of whole recordings,
``train_holdin`` / ``train_holdout``: in reverse order of names, recordings are held out as long as
they total at most a tenth of the frames; if none is that small, the smallest one is. The official
evaluation itself shares a recording with train: SB11 and SB13 are cameras of SB10, SB12 and SB14.

The files use OpenGL axes (y up): ``C = diag(1, -1, -1)`` converts points, root rotation and object
poses to OpenCV; intrinsics are unchanged. Evaluation frames have the wrist only, or all 21 joints
if ``evaluation_xyz.json`` lies in ``root`` or next to it. ``T_world_from_cam`` comes from
``calibration/``, which covers the multi-camera recordings.

Source:
    HO-3D vis_HO3D.py, vis_pcl_all_cameras.py and its release notes (described in the dataset
    notes, 1.5, 1.6 and 4).
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64

from model.hand import RIGHT, STANDARD_FROM_MANO21, TIP_VERTICES, TIPS, JointSet
from model.mano.files import ManoModels, mano_forward
from preprocess.labels.canonical import fill_hand, ho3d_hands, ho3d_objects, opencv_from_opengl
from preprocess.records import (
    DatasetSource,
    LabelJob,
    Labels,
    LabelStack,
    ObjectFile,
    Rows,
    SourceError,
    empty_labels,
    stack_labels,
)
from preprocess.sources.annotations import require
from preprocess.sources.ho3d.files import (
    LISTS,
    NAME,
    NUM_LISTED,
    SUFFIXES,
    ListedFrame,
    count_unlisted,
    find_version,
    list_images,
    read_camera_poses,
    read_list,
    read_truth,
    recording_of,
)
from preprocess.sources.ho3d.meta import Meta, RawHand, read_meta
from preprocess.sources.ho3d.pictures import read_picture
from preprocess.sources.inventory import Inventory
from preprocess.sources.ycb import YCB_NAMES, find_mesh

LICENCE: Final = "HO-3D: academic research only, non-commercial, no redistribution"
CITATION: Final = (
    "Hampali, Rad, Oberweger, Lepetit: HOnnotate: A Method for 3D Annotation of Hand and Object "
    "Poses, CVPR 2020; for v3 also Hampali, Sarkar, Lepetit: HO-3D_v3, arXiv 2107.00887"
)
HOLDOUT: Final = 0.1
"""Largest fraction of the train frames that is held out."""
_TRUTH_AGREES_M: Final = 0.01
_CHUNK: Final = 256


def open_source(root: Path, mano: ManoModels | None) -> DatasetSource:
    """Open HO-3D below ``root``.

    Raises:
        SourceError: If files are missing or broken, or two versions are mixed.
    """
    require(NAME, root, [f"{part}.txt" for part in LISTS], LISTS)
    lists = {part: read_list(root, part) for part in LISTS}
    frames = [frame for part in LISTS for frame in lists[part]]
    inventory = Inventory(dataset=NAME, root=root)
    images = list_images(inventory, frames)
    version = find_version(root, frames, images)
    num_train, num_eval = (len(lists[part]) for part in LISTS)
    truth = read_truth(root, num_eval)
    truth_of = {} if truth is None else dict(zip(lists["evaluation"], truth[1], strict=True))
    poses = read_camera_poses(root, (frame.sequence for frame in frames))
    recordings = [recording_of(frame.sequence) for frame in frames]
    held_out = _held_out([recording for recording, _ in recordings[:num_train]])
    meshes = {name: find_mesh(root, name) for name in YCB_NAMES}
    return DatasetSource(
        dataset=NAME,
        joint_set=JointSet.ho3d,
        licence=LICENCE,
        citation=CITATION,
        official_counts=NUM_LISTED[version.name],
        root=root,
        rows=Rows(
            image=[f"{f.folder}/rgb/{f.stem}{SUFFIXES[version.name]}" for f in frames],
            sequence=[f.folder for f in frames],
            camera=[camera for _, camera in recordings],
            subject=["unknown"] * len(frames),
            frame_idx=np.array([int(f.stem) for f in frames], dtype=np.int32),
        ),
        splits={
            "train": np.arange(num_train, dtype=np.int64),
            "train_holdin": np.flatnonzero(~held_out).astype(np.int64),
            "train_holdout": np.flatnonzero(held_out).astype(np.int64),
            "evaluation": num_train + np.arange(num_eval, dtype=np.int64),
        },
        label_job=functools.partial(
            _label_job, root, frames, _in_time(frames), truth_of, poses, mano
        ),
        objects=tuple(ObjectFile(name=name, mesh=mesh) for name, mesh in meshes.items()),
        official_boxes=True,
        picture=read_picture,
        notes={
            "version": version.name,
            "version_found_by": version.found_by,
            "evaluation_truth": "wrist alone" if truth is None else truth[0],
            "sequences_with_camera_pose": len(poses),
            "objects_without_mesh": [name for name, mesh in meshes.items() if not mesh],
            "images_without_annotation": count_unlisted(frames, images),
        }
        | inventory.notes(),
    )


def _held_out(recordings: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Return which train rows are held out, by recording."""
    frames = Counter(recordings)
    chosen: set[str] = set()
    budget = HOLDOUT * len(recordings)
    for name in sorted(frames, reverse=True):
        if frames[name] <= budget:
            chosen.add(name)
            budget -= frames[name]
    if not chosen and len(frames) > 1:
        chosen = {min(sorted(frames, reverse=True), key=lambda name: frames[name])}
    return np.array([name in chosen for name in recordings], dtype=bool)


def _in_time(frames: Sequence[ListedFrame]) -> dict[str, list[str]]:
    """Return the listed frames of every sequence in temporal order, by folder."""
    stems: dict[str, list[str]] = {}
    for frame in frames:
        stems.setdefault(frame.folder, []).append(frame.stem)
    return {folder: sorted(names, key=int) for folder, names in stems.items()}


# --- labels: the job is made here, the rest runs in a worker --------------------------------------


def _label_job(
    root: Path,
    frames: list[ListedFrame],
    stems: Mapping[str, list[str]],
    truth: Mapping[ListedFrame, Float64[np.ndarray, "21 3"]],
    poses: Mapping[str, Float64[np.ndarray, "4 4"]],
    mano: ManoModels | None,
    official_idx: Sequence[int],
) -> LabelJob:
    """Return the label job of some rows, carrying only the data they need."""
    own = [frames[i] for i in official_idx]
    return functools.partial(
        _read_labels,
        root,
        own,
        {frame.folder: stems[frame.folder] for frame in own},
        {frame: truth[frame] for frame in own if frame in truth},
        {frame.sequence: poses[frame.sequence] for frame in own if frame.sequence in poses},
        mano,
    )


def _read_labels(
    root: Path,
    frames: list[ListedFrame],
    stems: Mapping[str, list[str]],
    truth: Mapping[ListedFrame, Float64[np.ndarray, "21 3"]],
    poses: Mapping[str, Float64[np.ndarray, "4 4"]],
    mano: ManoModels | None,
) -> LabelStack:
    """Read the meta files of some rows.

    ``stems`` lists all frames of their sequences in temporal order: the object's start may be in
    any of them.
    """
    read = functools.lru_cache(maxsize=None)(functools.partial(_read_frame, root))
    start_of = functools.lru_cache(maxsize=None)(lambda folder: _start(folder, stems, read))
    rows: list[Labels] = []
    hands: list[tuple[int, RawHand]] = []
    for i, frame in enumerate(frames):
        labels = empty_labels()
        meta = read(frame.folder, frame.stem)
        if frame.sequence in poses:
            labels.T_world_from_cam[:] = poses[frame.sequence]
        if meta is not None:
            _fill_frame(labels, meta, start_of(frame.folder))
            if meta.hand is not None:
                hands.append((i, meta.hand))
        if frame in truth:
            _fill_truth(labels, frame, truth[frame])
        rows.append(labels)
    if mano is not None:
        _fill_mano(rows, hands, mano)
    return stack_labels(rows)


def _read_frame(root: Path, folder: str, stem: str) -> Meta | None:
    return read_meta(root / folder / "meta" / f"{stem}.pkl")


def _start(
    folder: str, stems: Mapping[str, list[str]], read: Callable[[str, str], Meta | None]
) -> Float64[np.ndarray, " 3"] | None:
    """Return the first object position in the sequence, camera frame, metres."""
    for stem in stems[folder]:
        meta = read(folder, stem)
        if meta is not None and meta.object_pose is not None:
            return opencv_from_opengl(meta.object_pose[1])
    return None


def _fill_frame(labels: Labels, meta: Meta, start: Float64[np.ndarray, " 3"] | None) -> None:
    """Write all labels but MANO, in place; ``labels`` must already hold the camera pose."""
    labels.K[:] = meta.K
    standard = list(STANDARD_FROM_MANO21)
    labels.joints_3d[RIGHT] = opencv_from_opengl(meta.joints[standard])
    labels.joint_valid[RIGHT] = meta.joint_valid[standard]
    labels.bbox_xyxy[RIGHT] = meta.bbox_xyxy
    if meta.object_name is None:
        return
    labels.object_id[0] = YCB_NAMES.index(meta.object_name)
    labels.grasped_object[...] = 0
    if meta.object_pose is not None:
        rotation, translation = meta.object_pose
        labels.object_pose[0] = ho3d_objects(rotation[None], translation[None])[0]
    if start is not None:
        T = labels.T_world_from_cam
        labels.object_start[0] = start if np.isnan(T).any() else T[:3, :3] @ start + T[:3, 3]


def _fill_truth(labels: Labels, frame: ListedFrame, truth: Float64[np.ndarray, "21 3"]) -> None:
    """Replace the wrist of an evaluation frame with its 21 published joints, in place."""
    joints = opencv_from_opengl(truth[list(STANDARD_FROM_MANO21)])
    off = float(np.linalg.norm(joints[0] - labels.joints_3d[RIGHT, 0]))
    if off > _TRUTH_AGREES_M:
        raise SourceError(
            f"{NAME}: evaluation_xyz.json puts the wrist of {frame.folder}/{frame.stem} "
            f"{off * 1000:.0f} mm from where its meta file has it; expected the truth of the same "
            "version, replace or remove it"
        )
    labels.joints_3d[RIGHT] = joints
    labels.joint_valid[RIGHT] = True


def _fill_mano(rows: list[Labels], hands: list[tuple[int, RawHand]], mano: ManoModels) -> None:
    """Convert all hands in one batch, and check the five fingertips, which are mesh vertices."""
    tips = list(TIP_VERTICES[NAME].right)
    for start in range(0, len(hands), _CHUNK):
        own = [rows[i] for i, _ in hands[start : start + _CHUNK]]
        raw = [hand for _, hand in hands[start : start + _CHUNK]]
        moved = ho3d_hands(
            mano,
            np.stack([hand.pose for hand in raw]),
            np.stack([hand.trans for hand in raw]),
            np.stack([hand.beta for hand in raw]),
        )
        vertices, _ = mano_forward(mano.right, moved.theta, moved.beta, moved.transl)
        for j, labels in enumerate(own):
            fill_hand(labels, RIGHT, moved, j)
            official = labels.joints_3d[RIGHT, list(TIPS)]
            off = np.linalg.norm(vertices[j, tips] - official, axis=-1).max()
            rows[hands[start + j][0]] = replace(labels, vertices_check_m=float(off))
