"""Hand-object scenes: a hand reaches for one of several objects on a table, lifts and rotates it.

World frame: the table is the plane z = 0, z up, the grasped object near the origin; metres. A
sequence is a pure function of its arguments; ``hand_object_render.render_frame`` draws a frame.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.spatial.transform import Rotation

from model.mano.convert import rest_root
from model.mano.files import mano_forward
from preprocess.sample.grasp.close import Grasp, grasp_object
from preprocess.sample.hand.curl import finger_angles, shipped_or_fixed
from preprocess.sample.objects.solid import standing

APPROACH_UNTIL: Final = 0.45
"""Progress 0..1 of a sequence at which the hand has arrived; the fingers are closed at
``GRASP_FROM``; then the object moves with the hand."""
GRASP_FROM: Final = 0.55


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HandObjectSequence:
    """One hand and n objects over F frames, world frame, metres and radians.

    Hand arrays are NaN in frames without the hand.
    """

    side: str
    """``right`` or ``left``."""
    left_as_shipped: bool
    """A left hand's vertices come from the model with the shape basis that MANO ships."""
    beta: np.ndarray
    """[10], of the model that made the vertices."""
    object_names: tuple[str, ...]
    grasp_ind: int
    """Index into ``object_names``."""
    theta: np.ndarray
    """[F, 48] absolute axis-angle, root first."""
    transl: np.ndarray
    """[F, 3] in the smplx convention: joint 0 = J0(beta) + transl."""
    vertices: np.ndarray
    """[F, 778, 3]."""
    joints: np.ndarray
    """[F, 16, 3] posed skeleton in MANO's order, without fingertips."""
    T_world_from_obj: np.ndarray
    """[F, n, 4, 4]."""
    hand_there: np.ndarray
    """bool [F]: False in a leading and a trailing run."""
    grasped: np.ndarray
    """bool [F]: the fingers are closed on the object, which may already be lifted."""


def draw_sequence(
    rng_key: tuple[int, ...],
    *,
    side: str,
    beta: np.ndarray,
    object_names: tuple[str, ...],
    grasp_ind: int,
    num_frames: int,
    left_as_shipped: bool,
    num_before: int = 0,
    num_after: int = 0,
) -> HandObjectSequence:
    """Sample a sequence; a pure function of its arguments.

    The last frame with the hand shows the object grasped and lifted, the first one the open hand on
    its way; a sequence with one such frame shows the grasp. In a grasp the hand penetrates the
    object by at most 2 mm.

    Args:
        rng_key: Non-negative integers.
        side: ``right`` or ``left``.
        beta: Shape [10], of the model that ``left_as_shipped`` names.
        object_names: From ``objects.OBJECTS``; at most five.
        grasp_ind: Which of them is grasped.
        num_frames: All frames.
        left_as_shipped: Use MANO's left shape basis as shipped (smplx issue 48), with which DexYCB
            was fitted; nothing changes for a right hand.
        num_before: Frames before the hand comes.
        num_after: Frames after it has left; the object is back on the table then. At least one
            frame must remain.

    Raises:
        ValueError: If no frame is left for the hand.
    """
    count = num_frames - num_before - num_after
    if count < 1:
        raise ValueError(
            f"num_frames must leave a frame with the hand, got {num_frames} frames, of which "
            f"{num_before} before and {num_after} after it"
        )
    rng = np.random.default_rng(rng_key)
    name = object_names[grasp_ind]
    grasp = grasp_object(rng, name, side, beta, left_as_shipped=left_as_shipped)
    progress = np.linspace(0.0, 1.0, count) if count > 1 else np.ones(1)
    yaw = _yaw(rng)
    place = np.array([*rng.normal(0.0, 0.02, 2), 0.0])
    motion = _draw_motion(rng)
    moves = np.stack([_moved(motion, t) for t in progress])
    # World from the standing object: yaw and place on the table, then the common motion.
    rest = np.eye(4)
    rest[:3, :3], rest[:3, 3] = yaw, place
    stand = moves @ rest
    theta, transl = _hand_parameters(grasp, side, beta, progress, stand, left_as_shipped)
    model = shipped_or_fixed(side, as_shipped=left_as_shipped)
    betas = np.broadcast_to(beta, (count, len(beta)))
    vertices, joints = mano_forward(model, theta, betas, transl)
    poses = np.zeros((num_frames, len(object_names), 4, 4))
    poses[:, grasp_ind] = rest @ standing(name)[0]
    with_hand = slice(num_before, num_before + count)
    poses[with_hand, grasp_ind] = stand @ standing(name)[0]
    taken = [(place[:2], _radius(name))]
    for slot, other in enumerate(object_names):
        if slot != grasp_ind:
            poses[:, slot] = _place_beside(rng, other, taken, vertices, joints[:, 0])
    there = np.zeros(num_frames, dtype=bool)
    there[with_hand] = True
    grasped = np.zeros(num_frames, dtype=bool)
    grasped[with_hand] = progress >= GRASP_FROM
    return HandObjectSequence(
        side=side,
        left_as_shipped=left_as_shipped,
        beta=np.array(beta),
        object_names=tuple(object_names),
        grasp_ind=grasp_ind,
        theta=_padded(theta, there),
        transl=_padded(transl, there),
        vertices=_padded(vertices, there),
        joints=_padded(joints, there),
        T_world_from_obj=poses,
        hand_there=there,
        grasped=grasped,
    )


def _padded(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Values of the frames with the hand among all frames; NaN elsewhere."""
    out = np.full((len(there), *values.shape[1:]), np.nan)
    out[there] = values
    return out


def _yaw(rng: np.random.Generator) -> np.ndarray:
    """Return a rotation about the up axis."""
    return np.asarray(Rotation.from_rotvec([0.0, 0.0, rng.uniform(0, 2 * np.pi)]).as_matrix())


def _smooth(t: float) -> float:
    """0..1 to 0..1 without jerks at the ends."""
    t = min(max(t, 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


def _draw_motion(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sample rotation (axis-angle [3]) and translation [3] of hand and object at the lift's end."""
    turn = np.clip(rng.normal(0.0, [0.35, 0.35, 0.5]), -0.8, 0.8)
    shift = np.array([*rng.normal(0.0, 0.06, 2), rng.uniform(0.10, 0.22)])
    return turn, shift


def _moved(motion: tuple[np.ndarray, np.ndarray], progress: float) -> np.ndarray:
    """The common motion [4, 4] at a progress: nothing before ``GRASP_FROM``, then the lift."""
    turn, shift = motion
    share = _smooth((progress - GRASP_FROM) / (1.0 - GRASP_FROM))
    out = np.eye(4)
    # Rotated about a point at the height of an object, so that nothing dips into the table.
    centre = np.array([0.0, 0.0, 0.06])
    out[:3, :3] = Rotation.from_rotvec(turn * share).as_matrix()
    out[:3, 3] = centre - out[:3, :3] @ centre + shift * share
    return out


def _hand_parameters(
    grasp: Grasp,
    side: str,
    beta: np.ndarray,
    progress: np.ndarray,
    stand: np.ndarray,
    left_as_shipped: bool,  # noqa: FBT001
) -> tuple[np.ndarray, np.ndarray]:
    """``theta`` [n, 48] and ``transl`` [n, 3] in the world."""
    away = 1.0 - np.array([_smooth(t / APPROACH_UNTIL) for t in progress])
    share = (progress - APPROACH_UNTIL) / (GRASP_FROM - APPROACH_UNTIL)
    closed = np.clip(share, 0.0, 1.0)[:, None, None]
    level = grasp.open_level + closed * (grasp.closed_level - grasp.open_level)
    fingers = finger_angles(side, level, grasp.thumb)
    back = -grasp.approach + np.array([0.0, 0.0, 0.35])
    wrist = grasp.wrist + away[:, None] * 0.20 * back
    turned = stand[:, :3, :3] @ grasp.R_stand_from_hand
    placed = np.einsum("nij,nj->ni", stand[:, :3, :3], wrist) + stand[:, :3, 3]
    model = shipped_or_fixed(side, as_shipped=left_as_shipped)
    theta = np.concatenate([Rotation.from_matrix(turned).as_rotvec(), fingers], axis=1)
    return theta, placed - rest_root(model, beta[None])


def _radius(name: str) -> float:
    """Radius of an object's footprint about the origin of its stand."""
    return float(np.linalg.norm(standing(name)[1][:, :2], axis=1).max())


def _place_beside(
    rng: np.random.Generator,
    name: str,
    taken: list[tuple[np.ndarray, float]],
    vertices: np.ndarray,
    wrists: np.ndarray,
) -> np.ndarray:
    """Pose [4, 4] of another object on the table, clear of objects, hand and forearm in all frames.

    ``taken`` has the centre and radius of what stands already; the new one is added.
    """
    T_stand_from_obj, stood = standing(name)
    radius, height = _radius(name), float(stood[:, 2].max())
    # The forearm extends from the wrist, roughly opposite to the fingers.
    outward = wrists - vertices.mean(1)
    arm = wrists[:, None] + outward[:, None] * np.linspace(0.3, 3.0, 8)[:, None]
    low = vertices[vertices[..., 2] < height + 0.02][:, :2]
    low = np.concatenate([low, arm[arm[..., 2] < height + 0.06][:, :2]])
    reach = 0.16
    while True:
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.10, reach)
        centre = np.array([np.cos(angle), np.sin(angle)]) * distance
        clear = all(np.linalg.norm(centre - c) > radius + r + 0.01 for c, r in taken)
        if clear and (not len(low) or np.linalg.norm(low - centre, axis=1).min() > radius + 0.02):
            break
        # Farther out there is always space.
        reach += 0.004
    taken.append((centre, radius))
    pose = np.eye(4)
    pose[:3, :3], pose[:2, 3] = _yaw(rng), centre
    return np.asarray(pose @ T_stand_from_obj)


def look_at(position: np.ndarray, target: np.ndarray, roll_rad: float = 0.0) -> np.ndarray:
    """Return ``T_cam_from_world`` [4, 4] of an OpenCV camera whose image has world z up."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    level = np.stack([right, np.cross(forward, right), forward])
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec([0.0, 0.0, roll_rad]).as_matrix() @ level
    out[:3, 3] = -out[:3, :3] @ position
    return out
