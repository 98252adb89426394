"""Synthetic ARCTIC scenes: two hands hold an object with a lid; eight static, one head camera.

World: metres, z up, a table at z = 0 below the hands. A sequence is a pure function of the seed and
its plan. Hands lie on the sides of the base, lift off and come back, and their fingers move; the
lid opens and closes in ``use`` sequences. Everything is smooth in time.

Pitfalls reproduced from the real files:

- file i shows captured frame ``i - ioi_offset``, another offset for every subject;
- the first and last captured frames are black;
- the images of view 0 are distorted, the labels are not;
- s03 has images and no labels;
- camera 5 looks past the hands of every subject but s01, so that it loses sight of them;
- in the last sequence with labels, the last seven images of all cameras are missing.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.spatial.transform import Rotation

from model.hand import STANDARD_FROM_MANO21, TIP_VERTICES
from model.mano.convert import rest_root
from model.mano.files import mano_forward
from preprocess.sample.arctic.objects import RECIPES, stand_in_parts, turned
from preprocess.sample.grasp.scene import look_at
from preprocess.sample.hand.curl import finger_angles, shipped_or_fixed
from preprocess.sample.hand.pose import draw_beta

SIDES: Final = ("right", "left")
VIEWS: Final = 9
EGO_HW: Final = (200, 280)
STILL_HW: Final = (280, 200)
DIST8: Final = np.array([0.19, -0.09, 0.0015, -0.002, 0.012, 0.06, -0.03, 0.005])
"""k1, k2, p1, p2, k3, k4, k5, k6."""
BORDER: Final = 10
"""Frames at either end that are no part of the official set."""
BLACK: Final = (6, 10)
"""Frames at either end that are black; none of them is official."""
LAST_MISSING: Final = 7
OFFSETS: Final = {
    "s01": 1, "s02": 3, "s03": 0, "s04": 1, "s05": 2, "s06": 4, "s07": 2, "s08": 5, "s09": 1,
    "s10": 3,
}  # fmt: skip
_SEQUENCES: Final = (
    ("s01", "box_use_01"), ("s05", "box_use_01"), ("s02", "laptop_use_01"),
    ("s01", "microwave_use_01"), ("s05", "laptop_use_01"), ("s02", "microwave_grab_01"),
    ("s01", "laptop_grab_01"), ("s07", "box_use_01"), ("s06", "microwave_use_01"),
    ("s08", "laptop_use_01"), ("s05", "microwave_use_01"), ("s09", "box_use_01"),
    ("s10", "laptop_use_01"), ("s04", "microwave_use_01"), ("s08", "box_use_01"),
    ("s07", "laptop_use_01"), ("s09", "microwave_use_01"), ("s02", "box_use_01"),
    ("s05", "box_grab_01"), ("s10", "box_use_01"), ("s04", "laptop_use_01"),
    ("s07", "microwave_grab_01"), ("s01", "box_use_02"), ("s02", "laptop_use_02"),
    ("s08", "microwave_use_01"), ("s05", "laptop_grab_01"), ("s06", "box_use_01"),
)  # fmt: skip
_HIDDEN: Final = ("s03", "box_use_01")
_GAP_M: Final = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class SequencePlan:
    """One sequence."""

    number: int
    subject: str
    name: str
    num_frames: int
    hidden: bool
    """Its labels are not in the files."""
    cut_short: bool
    """Its last images are missing."""

    @property
    def folder(self) -> str:
        """Return ``sXX/<name>``."""
        return f"{self.subject}/{self.name}"

    @property
    def object_name(self) -> str:
        """Return the object's name."""
        return self.name.split("_")[0]


@lru_cache(maxsize=4)
def plans(seed: int, num: int) -> tuple[SequencePlan, ...]:
    """Return the sequences of at least ``num`` official images: nine per frame."""
    del seed  # the plan is the same for all
    count = int(np.clip(round(np.sqrt(num / 90)), 2, len(_SEQUENCES)))
    own = -(-num // (VIEWS * count))
    chosen = [*_SEQUENCES[: count - 1], _SEQUENCES[-1]] if count > 2 else [*_SEQUENCES[:2]]
    listed = [
        SequencePlan(
            number=k,
            subject=subject,
            name=name,
            num_frames=max(own, 3) + 2 * BORDER,
            hidden=False,
            cut_short=k == count - 1,
        )
        for k, (subject, name) in enumerate(chosen)
    ]
    subject, name = _HIDDEN
    hidden = SequencePlan(
        number=len(listed),
        subject=subject,
        name=name,
        num_frames=3 + 2 * BORDER,
        hidden=True,
        cut_short=False,
    )
    return (*listed, hidden)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """A sequence in the world: metres, radians; first axis of arrays per hand: right, left."""

    theta: np.ndarray
    """[2, F, 48] absolute."""
    transl: np.ndarray
    """[2, F, 3], of the models as shipped."""
    beta: np.ndarray
    """[2, 10], of the models as shipped."""
    vertices: np.ndarray
    """[2, F, 778, 3]."""
    joints: np.ndarray
    """[2, F, 21, 3], standard order, smplx's fingertips."""
    T_world_from_obj: np.ndarray
    """[F, 4, 4]."""
    arti_rad: np.ndarray
    """[F]."""
    T_ego_from_world: np.ndarray
    """[F, 4, 4]."""


def _stream(seed: int, *parts: int) -> np.random.Generator:
    return np.random.default_rng([seed, 500, *parts])


def _wave(rng: np.random.Generator, num: int, *shape: int) -> np.ndarray:
    """Smooth curves [num, *shape] in about -1..1: sums of two slow sines; 30 frames per second."""
    time = np.arange(num).reshape(-1, *[1] * len(shape)) / 30.0
    total = np.zeros((num, *shape))
    for share, slowest in ((0.65, 0.25), (0.35, 0.7)):
        speed = 2 * np.pi * rng.uniform(slowest, 1.7 * slowest, shape)
        total += share * np.sin(rng.uniform(0, 2 * np.pi, shape) + speed * time)
    return total


@lru_cache(maxsize=32)
def shape_of(seed: int, subject: str) -> np.ndarray:
    """Return the shapes [2, 10] of a subject's hands."""
    rng = _stream(seed, 1, int(subject[1:]))
    return np.stack([draw_beta(rng), draw_beta(rng)])


@lru_cache(maxsize=4)
def scene_of(seed: int, plan: SequencePlan) -> Scene:
    """Return the scene of a plan."""
    rng, num = _stream(seed, 2, plan.number), plan.num_frames
    recipe = RECIPES[plan.object_name]
    # y of the object is up as it stands.
    upright = Rotation.from_matrix([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    tilt = 0.35 * _wave(rng, num, 3) * np.array([1.0, 1.0, 2.0])
    R = (Rotation.from_rotvec(tilt) * upright).as_matrix()
    place = np.array([0.0, 0.0, 0.24]) + _wave(rng, num, 3) * np.array([0.05, 0.05, 0.03])
    middle = np.array([-recipe.length / 2, -recipe.base / 2, 0.0])
    T = np.tile(np.eye(4), (num, 1, 1))
    T[:, :3, :3], T[:, :3, 3] = R, place - R @ middle
    moves = 1.0 if "_use_" in plan.name else 0.03
    arti_rad = 0.55 + 0.5 * moves * _wave(rng, num)
    betas = shape_of(seed, plan.subject)
    hands = [_hand(rng, side, betas[i], recipe.depth, middle, T) for i, side in enumerate(SIDES)]
    return Scene(
        theta=np.stack([h[0] for h in hands]),
        transl=np.stack([h[1] for h in hands]),
        beta=betas,
        vertices=np.stack([h[2] for h in hands]),
        joints=np.stack([h[3] for h in hands]),
        T_world_from_obj=T,
        arti_rad=arti_rad,
        T_ego_from_world=_head(rng, num),
    )


def _hand(
    rng: np.random.Generator,
    side: str,
    beta: np.ndarray,
    depth: float,
    middle: np.ndarray,
    T_world_from_obj: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Theta, transl, vertices and joints of a hand on one side of the base, world frame."""
    model = shipped_or_fixed(side, as_shipped=True)
    num = len(T_world_from_obj)
    sign = 1.0 if side == "right" else -1.0
    level = 0.06 + 0.05 * _wave(rng, num, 5, 3)
    fingers = finger_angles(side, level, 0)
    # The hand's own frame at rest: along the middle finger, out of the palm.
    betas = np.broadcast_to(beta, (num, 10))
    rest = rest_root(model, betas)
    flat = mano_forward(model, np.zeros((1, 48)), beta[None], np.zeros((1, 3)))[1][0]
    along = flat[4] - flat[0]
    along /= np.linalg.norm(along)
    palm = sign * np.cross(flat[1] - flat[0], flat[7] - flat[0])
    palm -= (palm @ along) * along
    palm /= np.linalg.norm(palm)
    hand = np.stack([along, palm, np.cross(along, palm)], axis=1)
    # On the base: fingers forward and a little down, palm against the side.
    lean = 0.15 * _wave(rng, num)
    aim = np.stack([-np.cos(lean), np.sin(lean), np.zeros(num)], axis=1)
    inward = np.broadcast_to([0.0, 0.0, -sign], aim.shape)
    there = np.stack([aim, inward, np.cross(aim, inward)], axis=2)
    R_obj_from_hand = there @ hand.T
    theta = np.concatenate([Rotation.from_matrix(R_obj_from_hand).as_rotvec(), fingers], axis=1)
    vertices, _ = mano_forward(model, theta, betas, -rest)  # wrist at the origin
    # Touching, and now and then up to 3 cm away.
    gap = _GAP_M + 0.03 * np.clip(_wave(rng, num) - 0.25, 0.0, 1.0)
    wrist = np.empty((num, 3))
    wrist[:, :2] = middle[:2] - vertices[:, :, :2].mean(1) + 0.012 * _wave(rng, num, 2)
    # The side of the base spans twice ``middle`` to the origin; what is beside it cannot touch.
    beside = np.abs(vertices[:, :, :2] + wrist[:, None, :2] - middle[:2]) > np.abs(middle[:2])
    nearest = np.where(beside.any(-1), np.inf, sign * vertices[:, :, 2]).min(1)
    wrist[:, 2] = sign * (depth / 2 + gap - nearest)
    R, t = T_world_from_obj[:, :3, :3], T_world_from_obj[:, :3, 3]
    theta[:, :3] = Rotation.from_matrix(R @ R_obj_from_hand).as_rotvec()
    transl = np.einsum("nij,nj->ni", R, wrist) + t - rest
    vertices, skeleton = mano_forward(model, theta, betas, transl)
    tips = TIP_VERTICES["smplx"]
    own = list(tips.right if side == "right" else tips.left)
    joints = np.concatenate([skeleton, vertices[:, own]], axis=1)[:, list(STANDARD_FROM_MANO21)]
    return theta, transl, vertices, joints


def _head(rng: np.random.Generator, num: int) -> np.ndarray:
    """Return ``T_ego_from_world`` [num, 4, 4]: a head that looks down at the hands."""
    eye = np.array([0.32, -0.02, 0.62]) + 0.03 * _wave(rng, num, 3)
    target = np.array([0.0, 0.0, 0.22]) + 0.02 * _wave(rng, num, 3)
    roll = 0.08 * _wave(rng, num)
    return np.stack([look_at(*each) for each in zip(eye, target, roll.tolist(), strict=True)])


# --- cameras --------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def ego_intrinsics(seed: int) -> np.ndarray:
    """Return ``K`` [3, 3] of the camera on the head."""
    rng = _stream(seed, 3)
    focal = rng.normal(205.0, 2.0)
    return np.array([[focal, 0, 139.0], [0, focal + rng.normal(0, 0.3), 100.5], [0, 0, 1.0]])


@lru_cache(maxsize=16)
def still_cameras(seed: int, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ``T_cam_from_world`` [8, 4, 4] and ``K`` [8, 3, 3] of a subject's recordings."""
    rng = _stream(seed, 4, int(subject[1:]))
    T, K = [], []
    for i in range(VIEWS - 1):
        azimuth = 2 * np.pi * (i + rng.uniform(-0.15, 0.15)) / (VIEWS - 1)
        height = rng.uniform(0.25, 0.9)
        away = np.array([np.cos(azimuth), np.sin(azimuth), 0.0]) * np.cos(height)
        away[2] = np.sin(height)
        target = np.array([0.0, 0.0, 0.24]) + rng.normal(0, 0.01, 3)
        if i == 4 and subject != "s01":
            target += 0.36 * np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        T.append(look_at(target + away * rng.uniform(0.85, 1.05), target, rng.normal(0, 0.04)))
        focal = rng.normal(330.0, 5.0)
        centre = np.array(STILL_HW[::-1]) / 2 - 0.5 + rng.normal(0, 2, 2)
        K.append([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
    return np.stack(T), np.array(K)


def camera(seed: int, plan: SequencePlan, view: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``T_cam_from_world`` [4, 4] and ``K`` [3, 3] of a view; 0 is the head."""
    if view == 0:
        return scene_of(seed, plan).T_ego_from_world[frame], ego_intrinsics(seed)
    T, K = still_cameras(seed, plan.subject)
    return T[view - 1], K[view - 1]


# --- ground truth ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """Ground truth of one captured frame in one view: undistorted camera frame, metres."""

    K: np.ndarray
    T_cam_from_world: np.ndarray
    vertices: np.ndarray
    """[2, 778, 3]."""
    joints_3d: np.ndarray
    """[2, 21, 3]."""
    beta: np.ndarray
    """[2, 10]."""
    T_cam_from_obj: np.ndarray
    """[4, 4]; of the base, and of the lid after its rotation."""
    arti_rad: float
    lid: np.ndarray
    """[l, 3]."""
    base: np.ndarray
    """[b, 3]."""


def truth_of(seed: int, plan: SequencePlan, view: int, frame: int) -> Truth:
    """Return the ground truth of a captured frame (counted from 0)."""
    scene = scene_of(seed, plan)
    T, K = camera(seed, plan, view, frame)
    pose = T @ scene.T_world_from_obj[frame]
    angle = float(scene.arti_rad[frame])
    lid, base = (mesh.vertices for mesh in stand_in_parts(plan.object_name))
    return Truth(
        K=K,
        T_cam_from_world=T,
        vertices=_moved(scene.vertices[:, frame], T),
        joints_3d=_moved(scene.joints[:, frame], T),
        beta=scene.beta,
        T_cam_from_obj=pose,
        arti_rad=angle,
        lid=_moved(turned(lid, angle), pose),
        base=_moved(base, pose),
    )


def image_path(plan: SequencePlan, view: int, frame: int) -> str:
    """Return the file of a captured frame, relative to the root."""
    return f"images/{plan.folder}/{view}/{frame + OFFSETS[plan.subject]:05d}.jpg"


def _moved(points: np.ndarray, T: np.ndarray) -> np.ndarray:
    return np.asarray(points @ T[:3, :3].T + T[:3, 3])
