"""Synthetic DexYCB scenes: subjects, sequences, eight cameras around a table, ground truth.

Every second sequence of a subject shows the other hand. The number of images fixes the plan: how
many subjects (two to ten), sequences (at least four) and frames per sequence; then a sequence is a
pure function of (seed, plan, its number). The world of the labels is the master camera's frame.

Pitfalls reproduced from the real files, by the number of the sequence:

- 0: a leading run without a hand, as in most others; a stray file beside it.
- 1: an object that has no pose in the second half of the frames; the hand is there from the start.
- 2: a trailing run without a hand; object poses of ``pose.npz`` 10 mm off.
- 3: the hand is seen in the first frame but not labelled, as in every seventh after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from model.hand import STANDARD_FROM_MANO21, TIP_VERTICES
from model.mano.convert import invert_transform, rest_root, transform_mano
from preprocess.sample.grasp.scene import HandObjectSequence, draw_sequence, look_at
from preprocess.sample.hand.curl import shipped_or_fixed
from preprocess.sample.hand.pose import draw_beta
from preprocess.sample.objects.ycb import OBJECTS, stand_in_object

SUBJECTS: Final = (
    "20200709-subject-01", "20200813-subject-02", "20200820-subject-03", "20200903-subject-04",
    "20200908-subject-05", "20200918-subject-06", "20200928-subject-07", "20201002-subject-08",
    "20201015-subject-09", "20201022-subject-10",
)  # fmt: skip
SERIALS: Final = (
    "836212060125", "839512060362", "840412060917", "841412060263",
    "932122060857", "932122060861", "932122061900", "932122062010",
)  # fmt: skip
MASTER: Final = "840412060917"
SIZE_HW: Final = (480, 640)
_SUBJECT_ORDER: Final = (0, 7, 6, 2, 8, 3, 1, 4, 5, 9)
"""The first ones fill the official splits by subject: train, test, val."""
_NEVER_GRASPED: Final = "051_large_clamp"
_MOST_FRAMES: Final = 72
_POSE_NPZ_OFF_M: Final = np.array([0.006, -0.0078, 0.0018])


@dataclass(frozen=True, kw_only=True, slots=True)
class GraspPlan:
    """Plan of one sequence: location in the tree, content, frames.

    ``ycb_ids`` ascend; ``grasp_ind`` is an index into them. ``num_before`` frames come before the
    hand, then ``num_unlabelled`` with a hand without labels; ``num_after`` after it has left.
    ``lost_object`` is the slot that has no pose from frame ``lost_from`` on, -1 for none.
    """

    number: int
    subject: str
    name: str
    side: str
    ycb_ids: tuple[int, ...]
    grasp_ind: int
    num_frames: int
    num_before: int
    num_unlabelled: int
    num_after: int
    lost_object: int
    lost_from: int
    pose_npz_off: bool

    @property
    def folder(self) -> str:
        """Path of the sequence below the root."""
        return f"{self.subject}/{self.name}"

    @property
    def object_names(self) -> tuple[str, ...]:
        """YCB names by slot."""
        return tuple(OBJECTS[i - 1] for i in self.ycb_ids)

    @property
    def mano_calib(self) -> str:
        """Name of the hand's calibration."""
        return f"{self.subject}_{self.side}"

    @property
    def extrinsics(self) -> str:
        """Name of the cameras' calibration: one per subject."""
        return f"{self.subject[:8]}_100000"

    def labelled(self) -> np.ndarray:
        """Frames whose hand has labels, bool [F]: one run."""
        frame = np.arange(self.num_frames)
        first = self.num_before + self.num_unlabelled
        return (frame >= first) & (frame < self.num_frames - self.num_after)


@lru_cache(maxsize=4)
def plans(seed: int, num: int) -> tuple[GraspPlan, ...]:
    """Return the sequences of a sample of at least ``num`` images, eight per time step.

    Sorted by number, which is not the order of the tree.
    """
    steps = -(-num // len(SERIALS))
    per_sequence = int(np.clip(round(0.5 * np.sqrt(steps)), 2, _MOST_FRAMES))
    count = max(min(steps, 4), round(steps / per_sequence))
    subjects = int(np.clip(count // 5, min(count, 2), len(SUBJECTS)))
    return tuple(
        _plan(seed, k, subjects, steps // count + (k < steps % count)) for k in range(count)
    )


def _plan(seed: int, k: int, subjects: int, num_frames: int) -> GraspPlan:
    """Sample the plan of sequence ``k``."""
    rng = _stream(seed, 0, k)
    turn, owner = divmod(k, subjects)
    subject = SUBJECTS[_SUBJECT_ORDER[owner]]
    graspable = [i + 1 for i, name in enumerate(OBJECTS) if name != _NEVER_GRASPED]
    # Neighbouring numbers grasp far apart objects; the seed shifts the cycle.
    grasped = graspable[(7 * k + seed) % len(graspable)]
    others = rng.permutation([i for i in graspable if i != grasped])[: rng.integers(1, 4)]
    ids = tuple(sorted([grasped, *others.tolist()]))
    before = after = unlabelled = 0
    spare = num_frames - 1
    if k == 3 or (k > 3 and k % 7 == 3):
        unlabelled = min(spare, 1)
    elif k == 2:
        after = min(spare, 1)
    elif k != 1 and k % 5 != 4:
        before = min(spare, max(1, round(rng.uniform(0.05, 0.25) * num_frames)))
    minute = 10 * 60 + 7 * turn
    return GraspPlan(
        number=k,
        subject=subject,
        name=f"{subject[:8]}_{minute // 60:02d}{minute % 60:02d}{(11 * k) % 60:02d}",
        side=("right", "left")[(owner + turn) % 2],
        ycb_ids=ids,
        grasp_ind=ids.index(grasped),
        num_frames=num_frames,
        num_before=before,
        num_unlabelled=unlabelled,
        num_after=after,
        lost_object=-1 if k != 1 else (ids.index(grasped) + 1) % len(ids),
        lost_from=num_frames // 2,
        pose_npz_off=k == 2,
    )


def _stream(seed: int, *parts: int) -> np.random.Generator:
    """Return the random generator for one part of the sample."""
    return np.random.default_rng([seed, 300, *parts])


# --- cameras --------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def intrinsics(seed: int, serial: str) -> np.ndarray:
    """Return ``K`` [3, 3] of a colour camera, pixels; the same in all recordings."""
    rng = _stream(seed, 1, SERIALS.index(serial))
    focal = rng.normal(614.0, 5.0)
    fx, fy = focal, focal + rng.normal(0.0, 0.4)
    cx, cy = np.array([319.5, 239.5]) + rng.normal(0.0, 6.0, 2)
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


@lru_cache(maxsize=16)
def table_cameras(seed: int, subject: str) -> dict[str, np.ndarray]:
    """Return ``T_cam_from_table`` [4, 4] by serial: a ring above the table, one looks past it."""
    rng = _stream(seed, 2, SUBJECTS.index(subject))
    out = {}
    for i, serial in enumerate(SERIALS):
        azimuth = 2 * np.pi * (i + rng.uniform(-0.15, 0.15)) / len(SERIALS)
        height = rng.uniform(0.45, 1.0)
        away = np.array([np.cos(azimuth), np.sin(azimuth), 0.0]) * np.cos(height)
        away[2] = np.sin(height)
        target = np.array([0.0, 0.0, 0.14]) + rng.normal(0.0, 0.02, 3)
        if i == 5:
            # So that some hands are cut by the border of the image.
            target += 0.24 * np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        out[serial] = look_at(
            target + away * rng.uniform(0.72, 0.95), target, rng.normal(0.0, 0.04)
        )
    return out


def T_world_from_cam(seed: int, subject: str, serial: str) -> np.ndarray:  # noqa: N802
    """Return [4, 4]; the world is the master camera's frame."""
    cameras = table_cameras(seed, subject)
    return np.asarray(cameras[MASTER] @ invert_transform(cameras[serial]))


# --- ground truth ---------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def shape_of(seed: int, subject: str) -> np.ndarray:
    """Return a subject's shape [10], for both hands, of the models as shipped."""
    return draw_beta(_stream(seed, 3, SUBJECTS.index(subject)))


@lru_cache(maxsize=3)
def scene_of(seed: int, num: int, number: int) -> HandObjectSequence:
    """Return the scene of a sequence, in the frame of the table."""
    plan = plans(seed, num)[number]
    return draw_sequence(
        (seed, 300, 4, number),
        side=plan.side,
        beta=shape_of(seed, plan.subject),
        object_names=plan.object_names,
        grasp_ind=plan.grasp_ind,
        num_frames=plan.num_frames,
        left_as_shipped=True,
        num_before=plan.num_before,
        num_after=plan.num_after,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """Ground truth of one image, whether labelled or not; camera frame, metres, radians.

    ``theta`` [48] absolute, ``transl`` [3], ``beta`` [10] and ``root_rest`` [3] belong to the model
    as shipped; ``vertices`` [778, 3], ``joints_3d`` [21, 3] in standard order with manopth's
    fingertips; all NaN without a hand. ``labelled``: the hand's labels are in the files.
    ``T_cam_from_obj`` [n, 4, 4] by slot of ``plan.ycb_ids``; ``posed`` bool [n]: the pose is in the
    files.
    """

    plan: GraspPlan
    serial: str
    frame: int
    K: np.ndarray
    T_world_from_cam: np.ndarray
    hand_there: bool
    labelled: bool
    grasped: bool
    theta: np.ndarray
    beta: np.ndarray
    transl: np.ndarray
    root_rest: np.ndarray
    vertices: np.ndarray
    joints_3d: np.ndarray
    T_cam_from_obj: np.ndarray
    posed: np.ndarray

    def contact_m(self) -> np.ndarray:
        """Return the signed distance [778] of the vertices to the grasped object, metres."""
        import igl

        pose = self.T_cam_from_obj[self.plan.grasp_ind]
        mesh = stand_in_object(self.plan.object_names[self.plan.grasp_ind])
        points = (self.vertices - pose[:3, 3]) @ pose[:3, :3]
        found = igl.signed_distance(
            points,
            np.array(mesh.vertices),
            np.array(mesh.faces),
            sign_type=igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL,
        )
        return np.asarray(found[0])


def truth(seed: int, num: int, image: str) -> Truth:
    """Return the ground truth of an image, given by its path below the root.

    Raises:
        ValueError: If a sample of that seed and number has no such image.
    """
    folder, _, rest = image.partition("/")
    name, _, rest = rest.partition("/")
    serial, _, file = rest.partition("/")
    for plan in plans(seed, num):
        if plan.folder == f"{folder}/{name}" and serial in SERIALS:
            for frame in range(plan.num_frames):
                if file == f"color_{frame:06d}.jpg":
                    return truth_of(seed, num, plan, serial, frame)
    raise ValueError(f"seed {seed} and num {num} have no image {image!r}")


def truth_of(seed: int, num: int, plan: GraspPlan, serial: str, frame: int) -> Truth:
    """Return the ground truth of one frame of a sequence in one camera."""
    scene = scene_of(seed, num, plan.number)
    T_cam = table_cameras(seed, plan.subject)[serial]
    model = shipped_or_fixed(plan.side, as_shipped=True)
    root_rest = rest_root(model, scene.beta[None])
    theta, transl = np.full(48, np.nan), np.full(3, np.nan)
    if scene.hand_there[frame]:
        moved = transform_mano(
            scene.theta[frame][None], scene.transl[frame][None], T_cam[None], root_rest
        )
        theta, transl = moved[0][0], moved[1][0]
    posed = np.ones(len(plan.ycb_ids), dtype=bool)
    if plan.lost_object >= 0:
        posed[plan.lost_object] = frame < plan.lost_from
    return Truth(
        plan=plan,
        serial=serial,
        frame=frame,
        K=intrinsics(seed, serial),
        T_world_from_cam=T_world_from_cam(seed, plan.subject, serial),
        hand_there=bool(scene.hand_there[frame]),
        labelled=bool(plan.labelled()[frame]),
        grasped=bool(scene.grasped[frame]),
        theta=theta,
        beta=scene.beta,
        transl=transl,
        root_rest=root_rest[0],
        vertices=_moved(scene.vertices[frame], T_cam),
        joints_3d=_moved(_standard_joints(scene, frame), T_cam),
        T_cam_from_obj=T_cam @ scene.T_world_from_obj[frame],
        posed=posed,
    )


def _standard_joints(scene: HandObjectSequence, frame: int) -> np.ndarray:
    """Return the 21 joints with manopth's fingertips, table frame."""
    tips: Sequence[int] = getattr(TIP_VERTICES["manopth"], scene.side)
    joints = np.concatenate([scene.joints[frame], scene.vertices[frame][list(tips)]])
    return joints[list(STANDARD_FROM_MANO21)]


def _moved(points: np.ndarray, T: np.ndarray) -> np.ndarray:
    """Points [n, 3] in another frame."""
    return np.asarray(points @ T[:3, :3].T + T[:3, 3])


def pose_npz_shift(plan: GraspPlan) -> np.ndarray:
    """Return how far ``pose.npz`` puts the objects off, [3] metres, world."""
    return _POSE_NPZ_OFF_M if plan.pose_npz_off else np.zeros(3)
