"""DexYCB trees in the official layout with ground truth, written without Handloom's code.

Hands live in the master camera's frame, are decoded there with ``smplx.lbs`` under manopth's
convention (mean + 45 PCA coefficients, the left model as published, its own fingertips), and their
points are transformed to each camera. Label parameters are transformed by the J0 rule.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from tests.preprocess.sources.dexycb.counts import SequenceCounts

SUBJECTS = (
    "20200709-subject-01", "20200813-subject-02", "20200820-subject-03", "20200903-subject-04",
    "20200908-subject-05", "20200918-subject-06", "20200928-subject-07", "20201002-subject-08",
    "20201015-subject-09", "20201022-subject-10",
)  # fmt: skip
SERIALS = (
    "836212060125", "839512060362", "840412060917", "841412060263",
    "932122060857", "932122060861", "932122061900", "932122062010",
)  # fmt: skip
MASTER = "840412060917"
YCB = {
    1: "002_master_chef_can", 2: "003_cracker_box", 5: "006_mustard_bottle",
    9: "010_potted_meat_can", 15: "035_power_drill", 21: "061_foam_brick",
}  # fmt: skip
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
STANDARD = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
TIPS = {"right": (745, 317, 444, 556, 673), "left": (745, 317, 445, 556, 673)}
EXTRINSICS = "20200702_151821"

Arrays = dict[str, np.ndarray]


def published(sides: dict[str, Arrays], side: str) -> Arrays:
    """Return a side's model as its file ships it: the left basis has the right one's x axis."""
    if side == "right":
        return sides["right"]
    return dict(sides["left"], shapedirs=sides["right"]["shapedirs"])


def skin(arrays: Arrays, theta: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices [778, 3] and skeleton [16, 3] at zero translation, by smplx in float64."""
    from smplx.lbs import lbs

    def tensor(value: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float64))

    R = Rotation.from_rotvec(theta.reshape(-1, 3)).as_matrix()[None]
    vertices, skeleton = lbs(
        tensor(beta[None]),
        tensor(R),
        tensor(arrays["v_template"]),
        tensor(arrays["shapedirs"]),
        tensor(arrays["posedirs"].reshape(-1, 135).T),
        tensor(arrays["J_regressor"]),
        torch.tensor(PARENTS),
        tensor(arrays["weights"]),
        pose2rot=False,
    )
    return vertices[0].numpy(), skeleton[0].numpy()


@dataclass(kw_only=True, slots=True)
class SequenceSpec:
    """One sequence to write."""

    subject: str
    name: str
    side: str
    num_frames: int
    ycb_ids: tuple[int, ...]
    grasp: int
    no_hand: tuple[int, ...] = ()
    no_joints: tuple[int, ...] = ()
    """Frames whose ``joint_3d`` alone is missing."""
    no_pose: tuple[int, ...] = ()
    """Frames whose ``pose_m`` alone is missing."""
    no_object: tuple[tuple[str, int, int], ...] = ()
    """(serial, frame, index of the object) without a pose."""

    @property
    def folder(self) -> str:
        return f"{self.subject}/{self.name}"


@dataclass(kw_only=True, slots=True)
class RowTruth:
    """One image."""

    spec: SequenceSpec
    serial: str
    frame: int
    K: np.ndarray
    T_world_from_cam: np.ndarray
    joints: np.ndarray
    """Camera frame, standard order."""
    vertices: np.ndarray
    object_poses: np.ndarray
    """[o, 4, 4] camera from object."""
    world_joints: np.ndarray
    world_objects: np.ndarray
    """[o, 3]"""

    @property
    def image(self) -> str:
        return f"{self.spec.folder}/{self.serial}/color_{self.frame:06d}.jpg"

    @property
    def labels(self) -> str:
        return f"{self.spec.folder}/{self.serial}/labels_{self.frame:06d}.npz"


@dataclass(kw_only=True, slots=True)
class DexycbTruth:
    root: Path
    rows: list[RowTruth] = field(default_factory=list)
    """In official order."""
    betas: dict[str, np.ndarray] = field(default_factory=dict)
    """By subject."""


def tiny_specs() -> list[SequenceSpec]:
    """Return three sequences of two subjects, both sides, with every kind of gap."""
    return [
        SequenceSpec(
            subject=SUBJECTS[0],
            name="20200709_141754",
            side="right",
            num_frames=3,
            ycb_ids=(2, 5, 15),
            grasp=1,
            no_hand=(0,),
            no_object=(
                (SERIALS[1], 0, 2),
                (SERIALS[2], 0, 0),
                (SERIALS[2], 1, 0),
                *((SERIALS[3], frame, 1) for frame in range(3)),
            ),
        ),
        SequenceSpec(
            subject=SUBJECTS[0],
            name="20200709_141931",
            side="left",
            num_frames=4,
            ycb_ids=(21, 1),
            grasp=0,
            no_hand=(0, 3),
        ),
        SequenceSpec(
            subject=SUBJECTS[3],
            name="20200903_103828",
            side="left",
            num_frames=3,
            ycb_ids=(9,),
            grasp=0,
            no_joints=(1,),
            no_pose=(2,),
        ),
    ]


def write_dexycb(
    root: Path,
    sides: dict[str, Arrays],
    specs: list[SequenceSpec] | None = None,
    *,
    pictures: bool = False,
) -> DexycbTruth:
    """Write the sequences with labels and calibration; ``pictures``: colour, depth, ``seg``."""
    rng = np.random.default_rng(11)
    specs = tiny_specs() if specs is None else specs
    truth = DexycbTruth(root=root)
    subjects = sorted({spec.subject for spec in specs})
    truth.betas = {subject: rng.normal(0, 0.3, 10) for subject in subjects}
    K, T = _cameras(rng)
    write_calibration(root, K, T, {mano_name(s): truth.betas[s] for s in subjects})
    write_models(root, sorted({i for spec in specs for i in spec.ycb_ids}))
    for spec in specs:
        write_meta(root / spec.folder, spec)
        _write_sequence(root, spec, sides, truth, K, T, rng, pictures=pictures)
    return truth


def _cameras(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return K and T_world_from_cam by serial; the master's is the identity."""
    K, T = {}, {}
    for serial in SERIALS:
        fx, fy, cx, cy = rng.normal((615, 613, 318, 241), 4)
        K[serial] = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        T[serial] = np.eye(4)
        if serial != MASTER:
            T[serial][:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.3, 3)).as_matrix()
            T[serial][:3, 3] = rng.normal(0, 0.1, 3)
    return K, T


def mano_name(subject: str) -> str:
    return f"20200514_142106_{subject[9:]}_right"


def _write_sequence(
    root: Path,
    spec: SequenceSpec,
    sides: dict[str, Arrays],
    truth: DexycbTruth,
    K: dict[str, np.ndarray],
    T: dict[str, np.ndarray],
    rng: np.random.Generator,
    *,
    pictures: bool,
) -> None:
    arrays = published(sides, spec.side)
    betas = truth.betas[spec.subject]
    rest_wrist = arrays["J_regressor"][0] @ (arrays["v_template"] + arrays["shapedirs"] @ betas)
    hands = []  # root rotation, coefficients, translation, vertices, joints; master frame
    objects = []  # [o, 4, 4]
    for _ in range(spec.num_frames):
        turn = Rotation.from_rotvec(rng.normal(0, 0.8, 3)).as_matrix()
        coefficients = rng.normal(0, 0.5, 45)
        transl = rng.normal((0, 0, 0.9), 0.05)
        angles = arrays["hands_mean"].copy()
        for c, component in zip(coefficients, arrays["hands_components"], strict=True):
            angles += c * component
        theta = np.concatenate((Rotation.from_matrix(turn).as_rotvec(), angles))
        vertices, skeleton = skin(arrays, theta, betas)
        points = np.concatenate((skeleton, vertices[list(TIPS[spec.side])]))[list(STANDARD)]
        hands.append((turn, coefficients, transl, vertices + transl, points + transl))
        poses = np.tile(np.eye(4), (len(spec.ycb_ids), 1, 1))
        for pose in poses:
            pose[:3, :3] = Rotation.random(rng=rng).as_matrix()
            pose[:3, 3] = rng.normal((0, 0, 0.9), 0.1)
        objects.append(poses)
    _write_pose_npz(root / spec.folder, spec, hands, objects)
    for serial in SERIALS:
        (root / spec.folder / serial).mkdir(parents=True)
        back = np.linalg.inv(T[serial])
        R, t = back[:3, :3], back[:3, 3]
        for frame in range(spec.num_frames):
            turn, coefficients, transl, vertices, joints = hands[frame]
            row = RowTruth(
                spec=spec,
                serial=serial,
                frame=frame,
                K=K[serial],
                T_world_from_cam=T[serial],
                joints=np.array([R @ p + t for p in joints]),
                vertices=vertices @ R.T + t,
                object_poses=np.array([back @ pose for pose in objects[frame]]),
                world_joints=joints,
                world_objects=objects[frame][:, :3, 3],
            )
            moved = R @ (transl + rest_wrist) + t - rest_wrist
            root_turn = Rotation.from_matrix(R @ turn).as_rotvec()
            pose_m = np.concatenate((root_turn, coefficients, moved))
            joint_3d, pose_y = row.joints.copy(), row.object_poses[:, :3].copy()
            if frame in (*spec.no_hand, *spec.no_pose):
                pose_m[:] = 0
            if frame in (*spec.no_hand, *spec.no_joints):
                joint_3d[:] = -1
            for gap_serial, gap_frame, index in spec.no_object:
                if (gap_serial, gap_frame) == (serial, frame):
                    pose_y[index] = 0
            write_labels(root / row.labels, pose_y, pose_m, joint_3d, segmentation(spec))
            if pictures:
                write_pictures(root, row)
            truth.rows.append(row)


def _write_pose_npz(
    folder: Path, spec: SequenceSpec, hands: list[Any], objects: list[np.ndarray]
) -> None:
    pose_m = np.zeros((spec.num_frames, 1, 51), np.float32)
    pose_y = np.zeros((spec.num_frames, len(spec.ycb_ids), 7), np.float32)
    for frame, (turn, coefficients, transl, _, _) in enumerate(hands):
        if frame not in (*spec.no_hand, *spec.no_pose):
            rotvec = Rotation.from_matrix(turn).as_rotvec()
            pose_m[frame, 0] = np.concatenate((rotvec, coefficients, transl))
        pose_y[frame, :, :4] = Rotation.from_matrix(objects[frame][:, :3, :3]).as_quat()
        pose_y[frame, :, 4:] = objects[frame][:, :3, 3]
    np.savez(folder / "pose.npz", allow_pickle=False, pose_m=pose_m, pose_y=pose_y)


# --- single files ---------------------------------------------------------------------------------


def write_labels(
    path: Path, pose_y: np.ndarray, pose_m: np.ndarray, joint_3d: np.ndarray, seg: np.ndarray
) -> None:
    np.savez_compressed(
        path,
        allow_pickle=False,
        seg=seg,
        pose_y=pose_y.astype(np.float32),
        pose_m=pose_m.astype(np.float32)[None],
        joint_3d=joint_3d.astype(np.float32)[None],
        joint_2d=np.full((1, 21, 2), -1, np.float32),
    )


def segmentation(spec: SequenceSpec) -> np.ndarray:
    """Return a segmentation with a stripe for each object, by its YCB id, and one for the hand."""
    seg = np.zeros((480, 640), np.uint8)
    for index, ycb_id in enumerate(spec.ycb_ids):
        seg[40 * index : 40 * index + 30, 100:200] = ycb_id
    seg[440:, 300:400] = 255
    return seg


def write_pictures(root: Path, row: RowTruth) -> None:
    folder = root / row.spec.folder / row.serial
    depth = (np.arange(480)[:, None] + 10 * np.arange(640) + 1000 * row.frame).astype(np.uint16)
    depth[:7] = 0
    assert cv2.imwrite(str(folder / f"aligned_depth_to_color_{row.frame:06d}.png"), depth)
    color = np.full((480, 640, 3), 20 * row.frame + 10 * SERIALS.index(row.serial), np.uint8)
    assert cv2.imwrite(str(root / row.image), color)


def write_meta(folder: Path, spec: SequenceSpec) -> None:
    """Write meta.yml as PyYAML dumps it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"extrinsics: '{EXTRINSICS}'",
        "mano_calib:",
        f"- {mano_name(spec.subject)}",
        "mano_sides:",
        f"- {spec.side}",
        f"num_frames: {spec.num_frames}",
        "serials:",
        *(f"- '{serial}'" for serial in SERIALS),
        f"ycb_grasp_ind: {spec.grasp}",
        "ycb_ids:",
        *(f"- {ycb_id}" for ycb_id in spec.ycb_ids),
    ]
    (folder / "meta.yml").write_text("\n".join(lines) + "\n")


def write_calibration(
    root: Path,
    K: dict[str, np.ndarray],
    T: dict[str, np.ndarray],
    betas: dict[str, np.ndarray],
) -> None:
    """Write intrinsics, one set of extrinsics (with Python tuples, as shipped) and the betas."""
    folder = root / "calibration"
    (folder / "intrinsics").mkdir(parents=True)
    for serial, k in K.items():
        lines = [
            "color:",
            *(f"  {n}: {float(k[i, j])!r}" for n, i, j in (("fx", 0, 0), ("fy", 1, 1))),
            *(f"  {n}: {float(k[i, 2])!r}" for n, i in (("ppx", 0), ("ppy", 1))),
            "depth:",
            "  fx: 380.0",
        ]
        (folder / "intrinsics" / f"{serial}_640x480.yml").write_text("\n".join(lines) + "\n")
    (folder / f"extrinsics_{EXTRINSICS}").mkdir()
    lines = ["extrinsics:"]
    for serial, t in {**T, "apriltag": np.eye(4)}.items():
        name = serial if serial == "apriltag" else f"'{serial}'"
        lines += [f"  {name}: !!python/tuple", *(f"  - {float(x)!r}" for x in t[:3].ravel())]
    lines += [f"master: '{MASTER}'"]
    file = folder / f"extrinsics_{EXTRINSICS}" / "extrinsics.yml"
    file.write_text("\n".join(lines) + "\n")
    for name, beta in betas.items():
        (folder / f"mano_{name}").mkdir()
        lines = ["betas:", *(f"- {float(x)!r}" for x in beta)]
        (folder / f"mano_{name}" / "mano.yml").write_text("\n".join(lines) + "\n")


def write_models(root: Path, ycb_ids: list[int]) -> None:
    """Write a tetrahedron for each object."""
    for ycb_id in ycb_ids:
        folder = root / "models" / YCB[ycb_id]
        folder.mkdir(parents=True)
        corners = "v 0 0 0\nv 0.1 0 0\nv 0 0.1 0\nv 0 0 0.1\n"
        faces = "f 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
        (folder / "textured_simple.obj").write_text(corners + faces)


# --- the whole dataset, without images and labels -------------------------------------------------


def write_official_sequences(root: Path, subjects: list[list[SequenceCounts]]) -> None:
    """Write meta.yml and pose.npz of the official sequences; names are ours, order is theirs."""
    eye = {serial: np.eye(4) for serial in SERIALS}
    K = {serial: np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]) for serial in SERIALS}
    write_calibration(root, K, eye, {mano_name(s): np.zeros(10) for s in SUBJECTS})
    write_models(root, [2])
    written: dict[SequenceCounts, bytes] = {}  # many sequences are alike, and writing takes time
    for subject, sequences in zip(SUBJECTS, subjects, strict=True):
        for i, counts in enumerate(sequences):
            spec = SequenceSpec(
                subject=subject,
                name=f"{subject[:8]}_{i:06d}",
                side=counts.side,
                num_frames=counts.num_frames,
                ycb_ids=(2,),
                grasp=0,
            )
            write_meta(root / spec.folder, spec)
            path = root / spec.folder / "pose.npz"
            if counts in written:
                path.write_bytes(written[counts])
                continue
            pose_m = np.zeros((counts.num_frames, 1, 51), np.float32)
            for frame in range(counts.num_frames):
                pose_m[frame] = counts.has_hand(frame)
            pose_y = np.zeros((counts.num_frames, 1, 7), np.float32)
            pose_y[:, :, 3] = 1  # no object: the unit quaternion, no translation
            np.savez(path, allow_pickle=False, pose_m=pose_m, pose_y=pose_y)
            written[counts] = path.read_bytes()
