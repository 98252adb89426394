"""Synthetic InterHand2.6M scenes: captures, sequences, cameras, hands in the world.

A capture has one subject and a rig of six cameras. Sequences of right, left and two hands
alternate; each has six frames seen by two cameras of its capture. World axes as in OpenCV, y down;
camera positions in millimetres, hands in metres.

Fingers and shapes as in ``preprocess.sample.hand.pose``; a sequence moves from one sampled pose to
another. Two hands are moved apart, by up to 120 mm, until their vertices are 3 mm from one another.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation, Slerp

from model.mano.files import mano_forward
from preprocess.sample.hand.mesh import MIRROR, stand_in_model
from preprocess.sample.hand.pose import draw_beta, draw_hand, draw_orientation
from preprocess.sample.hand.skin import SkinAtlas, draw_skin

SPLITS: Final = ("train", "val", "test")
HAND_TYPES: Final = ("right", "left", "interacting")
NUM_CAPTURES: Final = {"train": 4, "val": 1, "test": 2}
FRAMES_PER_SEQUENCE: Final = 6
CAMERAS_PER_SEQUENCE: Final = 2
CAMERAS: Final = ("400012", "410028", "400026", "410053", "400053", "410063")
_LANDSCAPE: Final = frozenset({"410028", "400053"})
_STAGE_MM: Final = np.array([0.0, -60.0, 1050.0])
_NAMES: Final = {"right": "rocker_backside", "left": "thumbup_normal", "interacting": "dh_touchROM"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Place of one image: its sequence, frame and camera."""

    split: str
    sequence: int
    frame: int
    camera: str

    @property
    def capture(self) -> int:
        """Number of the capture (one subject, one camera rig)."""
        return self.sequence % NUM_CAPTURES[self.split]

    @property
    def hand_type(self) -> str:
        """Which hands the sequence shows."""
        return HAND_TYPES[self.sequence % len(HAND_TYPES)]

    @property
    def sequence_name(self) -> str:
        """Name of the sequence's folder."""
        return f"{self.sequence:04d}_{_NAMES[self.hand_type]}"

    @property
    def frame_idx(self) -> int:
        """Number of the frame; unique within a capture, as in the real set."""
        return 1000 + 300 * self.sequence + 6 * self.frame

    @property
    def file_name(self) -> str:
        """Path below the split's image folder."""
        folder = f"Capture{self.capture}/{self.sequence_name}/cam{self.camera}"
        return f"{folder}/image{self.frame_idx}.jpg"


def slot_of(split: str, idx: int) -> Slot:
    """Return the place of image ``idx``: three sequences grow side by side, one per hand type."""
    kinds = len(HAND_TYPES)
    per_sequence = FRAMES_PER_SEQUENCE * CAMERAS_PER_SEQUENCE
    group, rest = divmod(idx, kinds * per_sequence)
    within, kind = divmod(rest, kinds)
    frame, view = divmod(within, CAMERAS_PER_SEQUENCE)
    sequence = group * kinds + kind
    # Cameras half the rig apart: one in colour, one grey.
    camera = CAMERAS[(sequence + view * (len(CAMERAS) // 2)) % len(CAMERAS)]
    return Slot(split=split, sequence=sequence, frame=frame, camera=camera)


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """``position_mm`` [3] in the world, ``R_cam_from_world`` [3, 3], pixels, image size."""

    position_mm: np.ndarray
    R_cam_from_world: np.ndarray
    focal: np.ndarray
    princpt: np.ndarray
    size_hw: tuple[int, int]

    @property
    def intrinsics(self) -> np.ndarray:
        """``K`` [3, 3], pixels."""
        (fx, fy), (cx, cy) = self.focal, self.princpt
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


@dataclass(frozen=True, kw_only=True, slots=True)
class PosedHand:
    """One hand in the world, metres: ``theta`` [48] absolute, ``beta`` [10], ``transl`` [3]."""

    side: str
    theta: np.ndarray
    beta: np.ndarray
    transl: np.ndarray
    vertices: np.ndarray


def stream(seed: int, split: str, *parts: int) -> np.random.Generator:
    """Return the random generator for one part of a split."""
    return np.random.default_rng([seed, 100 + SPLITS.index(split), *parts])


@lru_cache(maxsize=16)
def camera_rig(seed: int, split: str, capture: int) -> dict[str, Camera]:
    """Return the six cameras of a capture: about 1.05 m from the hands, spread over 130 degrees."""
    rng = stream(seed, split, 0, capture)
    rig = {}
    azimuths = np.deg2rad(np.linspace(-65.0, 65.0, len(CAMERAS)))
    for name, azimuth in zip(CAMERAS, azimuths, strict=True):
        turn = azimuth + rng.normal(0.0, 0.06)
        tilt = rng.uniform(-0.35, 0.35)
        away = np.array([np.sin(turn) * np.cos(tilt), np.sin(tilt), -np.cos(turn) * np.cos(tilt)])
        position = _STAGE_MM + away * rng.uniform(980.0, 1120.0)
        forward = _STAGE_MM + rng.normal(0.0, 12.0, 3) - position
        forward /= np.linalg.norm(forward)
        right = np.cross([0.0, 1.0, 0.0], forward)
        right /= np.linalg.norm(right)
        level = np.stack([right, np.cross(forward, right), forward])
        roll = Rotation.from_rotvec([0.0, 0.0, rng.normal(0.0, 0.05)]).as_matrix()
        size = (334, 512) if name in _LANDSCAPE else (512, 334)
        centre = np.array([size[1], size[0]]) / 2
        rig[name] = Camera(
            position_mm=position,
            R_cam_from_world=roll @ level,
            focal=rng.uniform(1240.0, 1300.0) + rng.normal(0.0, 0.5, 2),
            princpt=centre + rng.normal(0.0, 8.0, 2),
            size_hw=size,
        )
    return rig


@lru_cache(maxsize=16)
def subject(seed: int, split: str, capture: int) -> tuple[np.ndarray, SkinAtlas]:
    """Shape and skin of a capture's subject."""
    rng = stream(seed, split, 1, capture)
    return draw_beta(rng), draw_skin(rng)


@lru_cache(maxsize=8)
def pose_hands(seed: int, slot: Slot) -> tuple[PosedHand, ...]:
    """Return the hands of a frame in the world, right before left."""
    beta, _ = subject(seed, slot.split, slot.capture)
    sides = ["right", "left"] if slot.hand_type == "interacting" else [slot.hand_type]
    progress = slot.frame / (FRAMES_PER_SEQUENCE - 1)
    hands = []
    for side in sides:
        rng = stream(seed, slot.split, 2, slot.sequence, int(side == "left"))
        together = slot.hand_type == "interacting"
        root, fingers = _motion(rng, progress, together=together)
        place = np.zeros(3)
        if together:
            place = np.array([-0.040, 0.0, 0.0]) + rng.normal(0.0, [0.005, 0.020, 0.020])
        place = place + rng.normal(0.0, 0.010, 3)
        wobble = stream(seed, slot.split, 3, slot.sequence, slot.frame, int(side == "left"))
        shape = np.clip(beta + wobble.normal(0.0, 0.03, len(beta)), -2.0, 2.0)
        hands.append(_placed(side, root, fingers, shape, place))
    return _apart(hands)


def _motion(
    rng: np.random.Generator, progress: float, *, together: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Root rotation [3, 3] and fingers [15, 3] of a right hand on the way between two poses."""
    first, last = draw_hand(rng).fingers, draw_hand(rng).fingers
    start = draw_orientation(rng)
    if together:
        # Fingers towards the other hand, so that the forearms stay outside.
        lean = Rotation.from_rotvec([0.0, 0.0, rng.uniform(0.2, 1.1)]).as_matrix()
        start = lean @ draw_orientation(rng, turn_deg=15.0)
    drift = Rotation.from_rotvec(rng.normal(0.0, 0.25, 3)) * Rotation.from_matrix(start)
    path = Slerp([0.0, 1.0], Rotation.concatenate([Rotation.from_matrix(start), drift]))
    return path(progress).as_matrix(), first + (last - first) * progress


def _placed(
    side: str, root: np.ndarray, fingers: np.ndarray, beta: np.ndarray, place: np.ndarray
) -> PosedHand:
    """Place a hand, sampled as a right one, in the world; a left hand is its mirror image."""
    if side == "left":
        mirror = np.diag(MIRROR)
        root, fingers, place = mirror @ root @ mirror, fingers * [1.0, -1.0, -1.0], mirror @ place
    theta = np.concatenate([Rotation.from_matrix(root).as_rotvec(), fingers.ravel()])
    found, _ = mano_forward(stand_in_model(side), theta[None], beta[None], np.zeros((1, 3)))
    transl = _STAGE_MM / 1000.0 + place - found[0].mean(0)
    return PosedHand(side=side, theta=theta, beta=beta, transl=transl, vertices=found[0] + transl)


def _apart(hands: list[PosedHand]) -> tuple[PosedHand, ...]:
    """Move two hands apart sideways until no vertices are closer than 3 mm, 60 mm at most."""
    if len(hands) == 1:
        return tuple(hands)
    right, left = hands
    tree = KDTree(right.vertices)
    shift = 0.0
    while shift < 0.060:
        moved = left.vertices + np.array([2 * shift, 0.0, 0.0])
        nearest = np.asarray(tree.query(moved)[0])
        inside = moved[:, 0].min() < right.vertices[:, 0].max() - 0.05
        if nearest.min() >= 0.003 and not inside:
            break
        shift += 0.003
    return (
        _shifted(right, np.array([-shift, 0.0, 0.0])),
        _shifted(left, np.array([shift, 0.0, 0.0])),
    )


def _shifted(hand: PosedHand, offset: np.ndarray) -> PosedHand:
    """The hand moved by ``offset`` metres."""
    return PosedHand(
        side=hand.side,
        theta=hand.theta,
        beta=hand.beta,
        transl=hand.transl + offset,
        vertices=hand.vertices + offset,
    )
