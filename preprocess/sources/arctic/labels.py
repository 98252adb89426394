"""Compute ARCTIC's labels from captured sequences; runs in a worker.

Hands, object and the egocentric camera are in the world frame of the capture; each row transforms
them to its own camera. A shard covers few sequences: each is read once, whole, a few hundred
kilobytes.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64

from model.hand import LEFT, RIGHT, STANDARD_FROM_MANO21, TIP_VERTICES
from model.mano.files import ManoModels, mano_forward
from preprocess.camera import pixels
from preprocess.labels.canonical import HandParameters, arctic_hands, arctic_objects, fill_hands
from preprocess.objects.articulation import articulated
from preprocess.records import LabelStack, Lens, empty_labels, stack_labels
from preprocess.sources.annotations import read_json
from preprocess.sources.arctic.crop import crop_affines, ego_affine
from preprocess.sources.arctic.files import EGO, NAME, OBJECTS, Rig, read_raw
from preprocess.sources.arctic.valid import in_view, square_of

_CHUNK = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class View:
    """Rows of a job that show one sequence from one camera."""

    sequence: str
    """``sXX/<name>``."""
    view: int
    rig: Rig
    lens: Lens
    frames: Int64[np.ndarray, " k"]
    """Frame indices in the capture; some may lie outside it."""
    rows: Int64[np.ndarray, " k"]
    """Output rows of the labels."""


def read_views(
    root: Path,
    views: Sequence[View],
    num_rows: int,
    mano: ManoModels | None,
    *,
    cropped: bool = False,
) -> LabelStack:
    """Return the labels of ``num_rows`` rows; rows in no view have none.

    ``cropped``: the files are those of ``cropped_images``; without an object, the crop of a row is
    unknown.

    Raises:
        SourceError: If a file is missing or broken.
    """
    stack = stack_labels([empty_labels()] * num_rows)
    stack.official_valid[:] = False
    if cropped:
        stack.A_file_from_raw[:] = np.nan
    sequences = {name: read_raw(root, name) for name in {view.sequence for view in views}}
    for view in views:
        raw = sequences[view.sequence]
        captured = (view.frames >= 0) & (view.frames < len(raw.object))
        rows, frames = view.rows[captured], view.frames[captured]
        if view.view == EGO:
            stack.K[view.rows] = view.lens.K
            T = raw.T_ego_from_world[frames]
            if cropped:
                stack.A_file_from_raw[view.rows] = ego_affine(view.rig.image_size_wh[EGO])
        else:
            stack.K[view.rows] = view.rig.K[view.view - 1]
            T = np.broadcast_to(view.rig.T_cam_from_world[view.view - 1], (len(rows), 4, 4))
        stack.T_world_from_cam[rows] = np.linalg.inv(T)
        pose, arti_rad = arctic_objects(raw.object[frames], T)
        stack.object_pose[rows, 0] = pose
        stack.object_arti_rad[rows, 0] = arti_rad
        stack.object_id[view.rows, 0] = OBJECTS.index(view.sequence.split("/")[1].split("_")[0])
        stack.object_start[view.rows, 0] = raw.object[0, 4:] / 1000.0
        stack.grasped_object[view.rows] = 0
        if mano is not None and len(rows):
            for slot in (RIGHT, LEFT):
                track = raw.hands[slot]
                hands = arctic_hands(
                    mano,
                    slot,
                    track.rot[frames],
                    track.pose[frames],
                    track.trans_m[frames],
                    track.shape[None],
                    T,
                )
                fill_hands(stack, rows, slot, hands)
                stack.joints_3d[rows, slot] = _joints(mano, slot, hands)
                stack.joint_valid[rows, slot] = True
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            posed = posed_object(root, view.sequence, stack, part)
            stack.official_valid[part] = _in_view(view, stack.joints_3d[part], posed)
            if cropped and view.view != EGO:
                squares = square_of(pixels(posed, view.rig.K[view.view - 1]))
                stack.A_file_from_raw[part] = crop_affines(squares)
    return stack


def posed_object(
    root: Path, sequence: str, stack: LabelStack, rows: Int64[np.ndarray, " k"]
) -> Float64[np.ndarray, "k v 3"]:
    """Return every vertex of the object in labelled rows of a sequence, camera frame, metres."""
    points, part = _vertices(root, sequence.split("/")[1].split("_", maxsplit=1)[0])
    posed = articulated(points, part, stack.object_arti_rad[rows, 0])
    pose = stack.object_pose[rows, 0]
    return np.asarray(posed @ pose[:, :, :3].transpose(0, 2, 1) + pose[:, None, :, 3])


def _in_view(
    view: View, joints: Float64[np.ndarray, "k 2 21 3"], vertices: Float64[np.ndarray, "k v 3"]
) -> Bool[np.ndarray, "k 3"]:
    """Return which hands and objects of a view's rows are in view by the official protocol."""
    K = view.rig.K[view.view - 1]
    lens = view.lens if view.view == EGO else None
    return in_view(joints, vertices, K, view.rig.image_size_wh[view.view], lens)


@functools.lru_cache(maxsize=len(OBJECTS))
def _vertices(root: Path, name: str) -> tuple[Float64[np.ndarray, "v 3"], Int8[np.ndarray, " v"]]:
    """Return all vertices of an object's file, metres, and their parts."""
    folder = root / "meta" / "object_vtemplates" / name
    lines = (folder / "mesh.obj").read_text().splitlines()
    points = np.array([line.split()[1:4] for line in lines if line.startswith("v ")], np.float64)
    part = np.asarray(read_json(NAME, folder / "parts.json"))
    return points / 1000.0, (part == 0).astype(np.int8)


def _joints(mano: ManoModels, slot: int, hands: HandParameters) -> Float64[np.ndarray, "k 21 3"]:
    """Return the 21 joints of the hands as fitted: with the shape and model as shipped."""
    from model.mano.convert import rest_root

    own = mano.left_as_shipped if slot == LEFT else mano.right
    tips = TIP_VERTICES["smplx"]
    tip_ids = list(tips.left if slot == LEFT else tips.right)
    # A refit keeps the wrist and so shifts the translation; it is shifted back.
    transl = hands.transl + hands.root_rest - rest_root(own, hands.beta_raw)
    joints = np.empty((len(transl), 21, 3))
    for start in range(0, len(transl), _CHUNK):
        part = slice(start, start + _CHUNK)
        vertices, skeleton = mano_forward(
            own, hands.theta[part], hands.beta_raw[part], transl[part]
        )
        joints[part] = np.concatenate((skeleton, vertices[:, tip_ids]), axis=1)
    return joints[:, list(STANDARD_FROM_MANO21)]
