"""Sampling of hands: finger angles, shape, orientation, camera.

Limits (radians unless said):

- Finger flexion: base joint -0.30 to 1.55, middle 0 to 1.75, end joint 0 to 1.15 (0.65 of the
  middle one, with play). Curls of neighbouring fingers are correlated; half of the hands move as
  one, half mix straight and curled fingers.
- Finger abduction: within 0.30 of the flat hand, less when the finger is bent.
- Thumb: flexion -0.25 to 0.60, 0 to 0.85, -0.20 to 1.10; out of the palm's plane -0.95 to 0.35;
  twist 0 to 0.60 with opposition.
- A hand whose thumb or fingers penetrate one another by more than 45 % of their girth is resampled
  (the eighth sample is kept as it is).
- Shape: normal, standard deviation 1, clipped at +-2.
- Orientation: the fingers point up in the image, rotated in the plane by a normal angle (standard
  deviation 25 degrees, at most 75), tilted to or from the camera by a normal angle (15 degrees, at
  most 45); the palm (90 %) or the back faces the camera up to a normal roll of 22 degrees. The palm
  is more frequent, because the back of a hand occludes bent fingers. With wider limits (40, 18, 32)
  a network trained for two minutes learns the orientation but hardly any finger.
- Camera: hand at 0.45 to 0.95 m, focal length such that the hand spans 50 to 85 % of the
  image, anywhere inside it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.spatial.transform import Rotation

from model.hand import FINGERS, NUM_BETAS, NUM_MANO_JOINTS, TIP_VERTICES
from preprocess.sample.hand.mesh import stand_in_axes, stand_in_mano
from preprocess.sample.hand.rig import MANO_FIRST_JOINT

LONG_FINGERS: Final = ("index", "middle", "ring", "little")
_ABDUCTION: Final = {"index": 1.0, "middle": 0.15, "ring": -0.6, "little": -1.1}
_GIRTH_M: Final = {
    "thumb": 0.0115,
    "index": 0.0095,
    "middle": 0.0097,
    "ring": 0.0091,
    "little": 0.0080,
}
_MAX_DRAWS: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class HandPose:
    """Absolute pose of a right hand: ``fingers`` [15, 3] axis-angle, ``beta`` [10]."""

    fingers: np.ndarray
    beta: np.ndarray


def draw_hand(rng: np.random.Generator, beta: np.ndarray | None = None) -> HandPose:
    """Sample a right hand; ``beta`` fixes its shape."""
    if beta is None:
        beta = draw_beta(rng)
    for _ in range(_MAX_DRAWS):
        fingers = _draw_fingers(rng)
        if not _collides(fingers):
            break
    return HandPose(fingers=fingers, beta=beta)


def draw_beta(rng: np.random.Generator) -> np.ndarray:
    """Sample a shape [10]."""
    return np.clip(rng.standard_normal(NUM_BETAS), -2.0, 2.0)


def _draw_fingers(rng: np.random.Generator) -> np.ndarray:
    """Sample the 15 finger joints as axis-angle [15, 3]."""
    curls = _draw_curls(rng)
    spread = rng.uniform(-0.10, 0.24)
    lead = rng.uniform(-0.45, 0.45)
    # Flexion, abduction, twist of every joint.
    angles = np.zeros((NUM_MANO_JOINTS, 3))
    for finger, curl in zip(LONG_FINGERS, curls, strict=True):
        first = MANO_FIRST_JOINT[finger]
        noise = rng.normal(0.0, [0.08, 0.08, 0.06, 0.04])
        base = np.clip(-0.22 + 1.62 * curl * (1.0 + lead) + noise[0], -0.30, 1.55)
        middle = np.clip(0.05 + 1.70 * curl * (1.0 - lead) + noise[1], 0.0, 1.75)
        end = np.clip(0.65 * middle + noise[2], 0.0, 1.15)
        angles[first : first + 3, 0] = base, middle, end
        side = (spread * _ABDUCTION[finger] + noise[3]) * (1.0 - 0.8 * curl)
        angles[first, 1] = np.clip(side, -0.30, 0.30)
    first = MANO_FIRST_JOINT["thumb"]
    oppose, bend = rng.beta(1.0, 1.2), rng.beta(0.9, 1.1)
    noise = rng.normal(0.0, [0.10, 0.12, 0.05, 0.06, 0.08])
    angles[first] = (
        np.clip(-0.20 + 0.55 * oppose + noise[0], -0.25, 0.60),
        np.clip(0.20 - 0.85 * oppose + noise[1], -0.95, 0.35),
        np.clip(0.50 * oppose + noise[2], 0.0, 0.60),
    )
    angles[first + 1, 0] = np.clip(0.80 * bend + noise[3], 0.0, 0.85)
    angles[first + 2, 0] = np.clip(-0.15 + 1.20 * bend + noise[4], -0.20, 1.10)
    axes = stand_in_axes()
    flexion, abduction, twist = (
        Rotation.from_rotvec(axes[:, i] * angles[:, i : i + 1]) for i in range(3)
    )
    return np.asarray((abduction * flexion * twist).as_rotvec()[1:])


def _draw_curls(rng: np.random.Generator) -> np.ndarray:
    """Sample the curl of index, middle, ring and little finger, 0 straight to 1 in the palm."""
    common = rng.beta(0.8, 0.9)
    if rng.random() < 0.45:
        ramp = rng.uniform(-0.25, 0.35) * (np.arange(4) - 1.5) / 1.5
        return np.clip(common + ramp + rng.normal(0.0, 0.07, 4), 0.0, 1.0)
    alone = rng.beta(0.55, 0.55, 4)
    # Ring and little finger share their flexor: they follow their neighbour in part.
    alone[2] = 0.6 * alone[2] + 0.4 * alone[1]
    alone[3] = 0.55 * alone[3] + 0.45 * alone[2]
    return np.asarray(np.clip(alone, 0.0, 1.0))


def _collides(fingers: np.ndarray) -> bool:
    """Whether spheres along the mean hand's fingers intersect one another or the palm."""
    arrays = stand_in_mano()["right"]
    joints = arrays["J_regressor"] @ arrays["v_template"]
    turns = Rotation.from_rotvec(fingers).as_matrix()
    centres, radii, owner = [], [], []
    for slot, (finger, first) in enumerate(MANO_FIRST_JOINT.items()):
        rotation, position = np.eye(3), joints[first]
        for i in range(3):
            rotation = rotation @ turns[first + i - 1]
            after = joints[first + i + 1] if i < 2 else _tip(finger)
            bone = rotation @ (after - joints[first + i])
            steps = (0.35, 0.7, 1.0) if i else (0.6, 1.0)
            for step in steps:
                centres.append(position + step * bone)
                radii.append(_GIRTH_M[finger] * (1.0 if i < 2 else 0.9))
                owner.append(slot)
            position = position + bone
    palm = [0.35 * joints[0] + 0.65 * joints[first] for first in (1, 4, 7, 10)]
    centres += palm + [0.65 * joints[0] + 0.35 * joints[first] for first in (1, 4, 7, 10)]
    radii += [0.011] * 8
    owner += [len(MANO_FIRST_JOINT)] * 8
    points, sizes, owners = np.array(centres), np.array(radii), np.array(owner)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
    allowed = 0.55 * (sizes[:, None] + sizes[None])
    return bool(((gaps < allowed) & (owners[:, None] != owners[None])).any())


def _tip(finger: str) -> np.ndarray:
    """A point a finger's radius inside the tip of the mean hand."""
    arrays = stand_in_mano()["right"]
    pole = TIP_VERTICES["freihand"].right[FINGERS.index(finger)]
    joints = arrays["J_regressor"] @ arrays["v_template"]
    last = joints[MANO_FIRST_JOINT[finger] + 2]
    return np.asarray(last + 0.75 * (arrays["v_template"][pole] - last))


def draw_orientation(rng: np.random.Generator, *, turn_deg: float = 25.0) -> np.ndarray:
    """Sample the root rotation ``R_cam_from_hand`` [3, 3] of a right hand.

    ``turn_deg`` is the standard deviation of the in-plane rotation, degrees.
    """
    turn = _clipped_normal(rng, turn_deg, 75.0)
    tip = _clipped_normal(rng, 15.0, 45.0)
    facing = 0.0 if rng.random() < 0.10 else 180.0
    roll = np.deg2rad(facing + rng.normal(0.0, 22.0))
    along = np.array([np.sin(turn) * np.cos(tip), -np.cos(turn) * np.cos(tip), np.sin(tip)])
    # Back of the hand towards the camera at roll 0.
    back = np.array([0.0, 0.0, -1.0])
    back = back - along * (back @ along)
    back /= np.linalg.norm(back)
    back = np.cos(roll) * back + np.sin(roll) * np.cross(along, back)
    # Rest frame: fingers along -x, back along +y.
    return np.stack([-along, back, np.cross(-along, back)], axis=1)


def _clipped_normal(rng: np.random.Generator, deviation_deg: float, limit_deg: float) -> float:
    """A normal angle in radians, clipped; both arguments in degrees."""
    return float(np.deg2rad(np.clip(rng.normal(0.0, deviation_deg), -limit_deg, limit_deg)))
