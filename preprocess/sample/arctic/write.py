"""Synthetic ARCTIC: the official files, filled with rendered synthetic hands and objects.

Layout as in the official ``data``: ``images/sXX/<sequence>/<view>/%05d.jpg``, ``raw_seqs``,
``meta``, ``splits_json``. The scenes and their pitfalls are in ``arctic.scene``.
"""

import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from preprocess.sample.arctic.objects import RECIPES, stand_in_parts, turned, write_objects
from preprocess.sample.arctic.scene import (
    BLACK,
    DIST8,
    EGO_HW,
    LAST_MISSING,
    OFFSETS,
    SIDES,
    STILL_HW,
    VIEWS,
    SequencePlan,
    camera,
    ego_intrinsics,
    image_path,
    plans,
    scene_of,
    still_cameras,
)
from preprocess.sample.hand.curl import shipped_or_fixed
from preprocess.sample.objects.ycb import ObjectMesh
from preprocess.sample.picture_file import save_picture
from preprocess.sample.processes import in_processes
from preprocess.sample.render.hand_object import (
    Body,
    corner_normals,
    hand_body,
    object_body,
    render_bodies,
)

LID, BASE, HANDS = 1, 2, (254, 255)
"""Values in the segmentation of ``draw``: right and left hand last."""
_MARGIN: Final = 1.35
"""Size of the undistorted rendering as a multiple of the distorted image made from it."""
_QUALITY: Final = (cv2.IMWRITE_JPEG_QUALITY, 92)


def write(
    out: Path,
    num: int,
    seed: int,
    num_eval: int | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    """Write a sample; returns the number of images.

    Args:
        out: Target folder; the root of the dataset.
        num: Images of the official set; rounded up to nine per frame. The tree has more: ten frames
            before and after.
        seed: Any non-negative integer.
        num_eval: Not used: the sequences of s05 are those of val.
        workers: Processes; 0: one per core.
        progress: Called with (done, total) images.
    """
    del num_eval
    sequences = plans(seed, num)
    _write_meta(out, seed, sequences)
    for plan in sequences:
        if not plan.hidden:
            _write_sequence(out / "raw_seqs", seed, plan)
    tasks = [
        (plan.number, view, frame)
        for plan in sequences
        for view in range(VIEWS)
        for frame in range(plan.num_frames - LAST_MISSING * plan.cut_short)
    ]
    chunk = max(plan.num_frames for plan in sequences)
    written = in_processes(
        partial(_write_task, out, seed, num), tasks, workers, progress, chunk=chunk
    )
    return {"images": sum(1 for _ in written)}


def _write_task(out: Path, seed: int, num: int, task: tuple[int, int, int]) -> None:
    """One image; at module level so that a spawned process can import it."""
    number, view, frame = task
    plan = plans(seed, num)[number]
    path = out / image_path(plan, view, frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.zeros((*(STILL_HW if view else EGO_HW), 3), np.uint8)
    if BLACK[0] <= frame < plan.num_frames - BLACK[1]:
        rgb = draw(seed, plan, view, frame)[0]
    save_picture(path, rgb[:, :, ::-1], _QUALITY)


def draw(seed: int, plan: SequencePlan, view: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image (rgb) and segmentation of a frame, of view 0 distorted."""
    T, K = camera(seed, plan, view, frame)
    size_hw = STILL_HW
    if view == 0:
        size_hw = (round(EGO_HW[0] * _MARGIN), round(EGO_HW[1] * _MARGIN))
        K = K + np.array([[0, 0, _ego_shift()[0]], [0, 0, _ego_shift()[1]], [0, 0, 0]])
    key = (seed, 500, 5, plan.number)
    picture = render_bodies(_bodies(seed, plan, frame, T, key), frame, K, T, size_hw, key)
    if view:
        return picture.rgb, picture.segmentation
    x, y = _bent(seed)
    rgb = cv2.remap(picture.rgb, x, y, cv2.INTER_LINEAR)
    return np.asarray(rgb), np.asarray(cv2.remap(picture.segmentation, x, y, cv2.INTER_NEAREST))


def _ego_shift() -> tuple[float, float]:
    """Offset of the distorted image within the wider one, pixels."""
    return EGO_HW[1] * (_MARGIN - 1) / 2, EGO_HW[0] * (_MARGIN - 1) / 2


@lru_cache(maxsize=4)
def _bent(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the source position of each distorted pixel in the wider undistorted image."""
    K = ego_intrinsics(seed)
    v, u = np.mgrid[: EGO_HW[0], : EGO_HW[1]].astype(np.float64)
    pixels = np.stack([u.ravel(), v.ravel()], axis=1)[:, None]
    straight = cv2.undistortPoints(pixels, K, DIST8, P=K).reshape(*EGO_HW, 2) + _ego_shift()
    return straight[..., 0].astype(np.float32), straight[..., 1].astype(np.float32)


def _bodies(
    seed: int, plan: SequencePlan, frame: int, T_cam_from_world: np.ndarray, key: tuple[int, ...]
) -> list[Body]:
    scene = scene_of(seed, plan)
    pose = T_cam_from_world @ scene.T_world_from_obj[frame]
    lid, base = stand_in_parts(plan.object_name)
    angle = float(scene.arti_rad[frame])
    open_lid = ObjectMesh(
        vertices=turned(lid.vertices, angle),
        faces=lid.faces,
        uv=lid.uv,
        uv_faces=lid.uv_faces,
        texture=lid.texture,
    )
    bodies = [
        object_body(LID, open_lid, corner_normals(open_lid), pose),
        object_body(BASE, base, corner_normals(base), pose),
    ]
    turn, shift = T_cam_from_world[:3, :3], T_cam_from_world[:3, 3]
    for i, side in enumerate(SIDES):
        root = Rotation.from_rotvec(scene.theta[i, frame, :3]).as_matrix()
        vertices = scene.vertices[i, frame] @ turn.T + shift
        bodies.append(hand_body(HANDS[i], side, vertices, turn @ root, key))
    return bodies


# --- labels ---------------------------------------------------------------------------------------


def _write_meta(out: Path, seed: int, sequences: tuple[SequencePlan, ...]) -> None:
    write_objects(out / "meta", sorted(RECIPES))
    misc: dict[str, Any] = {}
    for subject in sorted({plan.subject for plan in sequences}):
        T, K = still_cameras(seed, subject)
        misc[subject] = {
            "world2cam": T.tolist(),
            "intris_mat": K.tolist(),
            "image_size": [list(EGO_HW[::-1]), *[list(STILL_HW[::-1])] * (VIEWS - 1)],
            "ioi_offset": OFFSETS[subject],
            "gender": "female",
        }
    (out / "meta" / "misc.json").write_text(json.dumps(misc))
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for plan in sequences:
        split = {"s03": "test", "s05": "val"}.get(plan.subject, "train")
        lists[split].append(plan.folder)
    (out / "splits_json").mkdir()
    for protocol in ("p1", "p2"):
        path = out / "splits_json" / f"protocol_{protocol}.json"
        path.write_text(json.dumps(lists, indent=1))


def _write_sequence(folder: Path, seed: int, plan: SequencePlan) -> None:
    """Write the four files of a sequence."""
    scene, num = scene_of(seed, plan), plan.num_frames
    (folder / plan.subject).mkdir(parents=True, exist_ok=True)
    stem = str(folder / plan.folder)
    mano: dict[str, Any] = {}
    for i, side in enumerate(SIDES):
        mean = shipped_or_fixed(side, as_shipped=True).hands_mean
        mano[side] = {
            "rot": scene.theta[i, :, :3].astype(np.float32),
            "pose": (scene.theta[i, :, 3:] - mean).astype(np.float32),
            "trans": scene.transl[i].astype(np.float32),
            "shape": scene.beta[i].astype(np.float32),
            "fitting_err": [3.0] * num,
        }
    T = scene.T_world_from_obj
    rotvec = Rotation.from_matrix(T[:, :3, :3]).as_rotvec()
    parameters = np.concatenate([scene.arti_rad[:, None], rotvec, 1000 * T[:, :3, 3]], axis=1)
    egocam = {
        "R_k_cam_np": scene.T_ego_from_world[:, :3, :3],
        "T_k_cam_np": scene.T_ego_from_world[:, :3, 3:],
        "intrinsics": ego_intrinsics(seed),
        "dist8": DIST8,
        "ego_markers.ref": np.zeros((4, 3)),
        "ego_markers.label": [str(k) for k in range(4)],
        "R0": np.eye(3),
        "T0": np.zeros((3, 1)),
    }
    sizes = {"body_pose": 63, "left_hand_pose": 45, "right_hand_pose": 45}
    names = ("transl", "global_orient", "jaw_pose", "leye_pose", "reye_pose")
    body = {name: np.zeros((num, size), np.float32) for name, size in sizes.items()}
    body |= {name: np.zeros((num, 3), np.float32) for name in names}
    np.save(f"{stem}.object.npy", parameters.astype(np.float32))
    for kind, content in (("mano", mano), ("egocam.dist", egocam), ("smplx", body)):
        np.save(f"{stem}.{kind}.npy", np.array(content, dtype=object), allow_pickle=True)
