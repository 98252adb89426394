"""Tiny ARCTIC trees in the official layout with ground truth, written without Handloom's code.

Hands are posed in the world by ``smplx.lbs`` in float64, the object by scipy, cameras by matrices;
images are noise. ``write_frame_counts`` writes trees of the official size without images' content.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from tests.preprocess.datasets import jpeg
from tests.preprocess.sources.dexycb.tree import Arrays, published, skin

EGO_HW = (60, 84)
STILL_HW = (84, 60)
DIST8 = np.array([0.21, -0.08, 0.002, -0.003, 0.01, 0.05, -0.02, 0.004])
TIPS = (744, 320, 443, 554, 671)
# ARCTIC's 21 joints are MANO's 16 and the tips; standard order as in the dataset notes, 1.3.
STANDARD = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
LID = np.array([[x, y, z] for x in (0, 80) for y in (0, 10) for z in (-30, 30)], float)
BASE = np.array([[x, y, z] for x in (0, 80) for y in (-50, 0) for z in (-30, 30)], float)
FACES = [
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """One sequence to write."""

    name: str
    """``sXX/<object>_<action>_<number>``."""
    num_frames: int
    labels: bool = True
    missing: tuple[int, ...] = ()
    """Numbers of the image files that are missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTruth:
    """Ground truth of one official image; camera frame of the view, undistorted, metres."""

    image: str
    sequence: str
    view: int
    number: int
    K: np.ndarray
    T_cam_from_world: np.ndarray
    vertices: np.ndarray
    """[2, 778, 3]."""
    joints: np.ndarray
    """[2, 21, 3]."""
    object_vertices: np.ndarray
    """[16, 3]: lid, then base."""
    T_cam_from_obj: np.ndarray
    arti_rad: float
    betas: np.ndarray
    """[2, 10]."""


def smooth(rng: np.random.Generator, num: int, *shape: int) -> np.ndarray:
    """Return curves through time [num, *shape], of size 1."""
    phase, speed = rng.uniform(0, 6, shape), rng.uniform(0.02, 0.08, shape)
    return np.asarray(np.sin(phase + speed * np.arange(num).reshape(-1, *[1] * len(shape))))


def rigid(rotvec: np.ndarray, t: Any) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_rotvec(rotvec).as_matrix(), t
    return T


def write_meta(root: Path, subjects: dict[str, int], seed: int = 0) -> dict[str, Any]:
    """Write ``meta`` for subjects and their ioi_offset; return misc.json's content."""
    rng = np.random.default_rng(seed)
    misc: dict[str, Any] = {}
    for subject, offset in subjects.items():
        world2cam = [rigid(rng.normal(0, 0.3, 3), [*rng.normal(0, 0.1, 2), 1.2]) for _ in range(8)]
        K = [
            [[70 + rng.normal(), 0, STILL_HW[1] / 2], [0, 71, STILL_HW[0] / 2], [0, 0, 1]]
            for _ in range(8)
        ]
        misc[subject] = {
            "world2cam": [T.tolist() for T in world2cam],
            "intris_mat": K,
            "image_size": [[*EGO_HW[::-1]], *[[*STILL_HW[::-1]]] * 8],
            "ioi_offset": offset,
            "gender": "female",
        }
    folder = root / "meta"
    (folder / "object_vtemplates" / "box").mkdir(parents=True)
    (folder / "misc.json").write_text(json.dumps(misc))
    lines = [f"v {x} {y} {z}" for x, y, z in np.concatenate([LID, BASE])]
    faces = [*FACES, *[[i + 8 for i in face] for face in FACES]]
    lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces]
    (folder / "object_vtemplates" / "box" / "mesh.obj").write_text("\n".join(lines) + "\n")
    # 0 is the lid, whatever the dataset's own page says.
    (folder / "object_vtemplates" / "box" / "parts.json").write_text(json.dumps([0] * 8 + [1] * 8))
    return misc


def write_arctic(
    root: Path, sides: dict[str, Arrays], specs: tuple[Spec, ...], offsets: dict[str, int]
) -> list[RowTruth]:
    """Write a tree; return the ground truth of every official image, in official order."""
    misc = write_meta(root, offsets)
    rows: list[RowTruth] = []
    picture = {view: jpeg(view, *(EGO_HW if view == 0 else STILL_HW)) for view in range(9)}
    for number, spec in enumerate(specs):
        subject = spec.name.split("/")[0]
        truth = write_sequence(root, sides, spec, misc[subject], seed=number)
        for file in range(10, spec.num_frames - 10):
            rows += truth(file) if spec.labels else []
        for view in range(9):
            folder = root / "images" / spec.name / str(view)
            folder.mkdir(parents=True)
            for i in range(spec.num_frames):
                file = offsets[subject] + i if spec.labels else i
                if file not in spec.missing:
                    (folder / f"{file:05d}.jpg").write_bytes(picture[view])
    return rows


def write_sequence(
    root: Path, sides: dict[str, Arrays], spec: Spec, misc: dict[str, Any], *, seed: int
) -> Any:
    """Write the files of ``raw_seqs``; return a function from a file's number to its rows."""
    rng = np.random.default_rng([7, seed])
    num = spec.num_frames
    subject = spec.name.split("/")[0]
    mano: dict[str, Any] = {}
    own = np.random.default_rng([8, int(subject[1:])])  # one shape per subject and hand
    for side in ("right", "left"):
        mano[side] = {
            "rot": (0.8 * smooth(rng, num, 3)).astype(np.float32),
            "pose": (0.3 * smooth(rng, num, 45)).astype(np.float32),
            "trans": (0.1 * smooth(rng, num, 3)).astype(np.float32),
            "shape": own.normal(0, 1, 10).astype(np.float32),
            "fitting_err": [3.0] * num,
        }
    parameters = np.concatenate(
        [smooth(rng, num, 1), 0.7 * smooth(rng, num, 3), 80 * smooth(rng, num, 3)], axis=1
    ).astype(np.float32)
    ego = [
        rigid(r, [0.02, 0.01, 0.9] + 0.05 * s)
        for r, s in zip(0.2 * smooth(rng, num, 3), smooth(rng, num, 3), strict=True)
    ]
    K_ego = np.array([[60.0, 0, 41.0], [0, 61.0, 29.0], [0, 0, 1]])
    if spec.labels:
        folder = root / "raw_seqs" / subject
        folder.mkdir(parents=True, exist_ok=True)
        stem = str(root / "raw_seqs" / spec.name)
        np.save(f"{stem}.mano.npy", np.array(mano, dtype=object), allow_pickle=True)
        np.save(f"{stem}.object.npy", parameters)
        egocam = {
            "R_k_cam_np": np.stack([T[:3, :3] for T in ego]),
            "T_k_cam_np": np.stack([T[:3, 3:] for T in ego]),
            "intrinsics": K_ego,
            "dist8": DIST8,
            "R0": np.eye(3),
            "T0": np.zeros((3, 1)),
        }
        np.save(f"{stem}.egocam.dist.npy", np.array(egocam, dtype=object), allow_pickle=True)

    def rows_of(number: int) -> list[RowTruth]:
        frame = number - misc["ioi_offset"]
        vertices, joints = [], []
        for side in ("right", "left"):
            arrays, entry = published(sides, side), mano[side]
            theta = np.concatenate(
                [entry["rot"][frame], arrays["hands_mean"] + entry["pose"][frame]]
            ).astype(np.float64)
            mesh, skeleton = skin(arrays, theta, entry["shape"].astype(np.float64))
            vertices.append(mesh + entry["trans"][frame])
            joints.append(
                np.concatenate([skeleton, mesh[list(TIPS)]])[list(STANDARD)] + entry["trans"][frame]
            )
        angle, rotvec, shift = np.split(parameters[frame].astype(np.float64), [1, 4])
        T_world_from_obj = rigid(rotvec, shift / 1000)
        lid = Rotation.from_rotvec(angle * np.array([0, 0, -1.0])).apply(LID / 1000)
        posed = np.concatenate([lid, BASE / 1000]) @ T_world_from_obj[:3, :3].T
        posed = posed + T_world_from_obj[:3, 3]
        found = []
        for view in range(9):
            T = ego[frame] if view == 0 else np.array(misc["world2cam"][view - 1])

            def seen(points: np.ndarray, T: np.ndarray = T) -> np.ndarray:
                return np.asarray(points @ T[:3, :3].T + T[:3, 3])

            found.append(
                RowTruth(
                    image=f"images/{spec.name}/{view}/{number:05d}.jpg",
                    sequence=spec.name,
                    view=view,
                    number=number,
                    K=K_ego if view == 0 else np.array(misc["intris_mat"][view - 1]),
                    T_cam_from_world=T,
                    vertices=seen(np.stack(vertices)),
                    joints=seen(np.stack(joints)),
                    object_vertices=seen(posed),
                    T_cam_from_obj=T @ T_world_from_obj,
                    arti_rad=float(angle[0]),
                    betas=np.stack([mano[s]["shape"].astype(np.float64) for s in mano]),
                )
            )
        return found

    return rows_of
