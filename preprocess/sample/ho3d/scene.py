"""Synthetic HO-3D scenes: official sequence names, their cameras, objects and people.

A recording is made of takes of ``TAKE`` listed frames; in each the hand comes, grasps the object
and lifts it. Sequences of one recording are its cameras and show the same takes. Frames are
numbered through the takes; the last number of a take is an image that no list names.

World frame of the scene: the table, z up. Camera frame: OpenCV.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from model.hand import STANDARD_FROM_MANO21, TIP_VERTICES
from model.mano.convert import invert_transform, rest_root, transform_mano
from preprocess.sample.grasp.scene import HandObjectSequence, draw_sequence, look_at
from preprocess.sample.hand.mesh import stand_in_model
from preprocess.sample.hand.pose import draw_beta

SIZE_HW: Final = (480, 640)
TAKE: Final = 12
"""Listed frames of a take."""
PARTS: Final = ("train", "evaluation")
SEQUENCES: Final = {
    "train": (
        "ABF10", "ABF11", "MC1", "SB10", "SB12", "SM2", "GPMF10", "GPMF11", "SS1", "MDF10", "MDF11",
        "SMu40", "SMu41", "BB10", "BB11", "ND2", "SMu1", "ShSu10", "ShSu12", "GSF10", "GSF11",
        "SiBF10", "SiBF11", "SiS1", "MC2", "SS2", "SM3",
    ),
    "evaluation": ("SB11", "AP10", "SM1", "MPM10", "AP11", "MPM11"),
}  # fmt: skip
"""Official names in the order in which a growing sample takes them. As in the real set SB11 is a
camera of a recording of train, AP has an object and MPM a hand that train never shows."""
_RUN: Final = {"train": TAKE, "evaluation": 4}
"""Frames of a sequence before switching to the next one."""
_BLEACH, _BANANA, _MEAT, _DRILL = (
    "021_bleach_cleanser", "011_banana", "010_potted_meat_can", "035_power_drill",
)  # fmt: skip
_SUGAR: Final = "004_sugar_box"
_RECORDED: Final = {
    "ABF": (_BLEACH, 0), "AP": ("019_pitcher_base", 0), "BB": (_BANANA, 1), "GPMF": (_MEAT, 2),
    "GSF": ("037_scissors", 2), "MC": ("003_cracker_box", 3), "MDF": (_DRILL, 3), "MPM": (_MEAT, 4),
    "ND": (_DRILL, 5), "SB": (_BLEACH, 6), "SM": ("006_mustard_bottle", 6),  # codespell:ignore nd
    "SMu": ("025_mug", 6), "SS": (_SUGAR, 6), "ShSu": (_SUGAR, 7), "SiBF": (_BANANA, 8),
    "SiS": (_SUGAR, 8),
}  # fmt: skip
"""Object and person by the letters of a sequence; who is who is made up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Identifies the frame of a sample."""

    part: str
    sequence: str
    take: int
    frame: int
    """Within the take; ``TAKE`` is the image that is not listed."""

    @property
    def stem(self) -> str:
        """Return the name of the frame's files."""
        return f"{self.take * (TAKE + 1) + self.frame:04d}"

    @property
    def recording(self) -> str:
        """Return the sequence without the digit of its camera, where it has one of several."""
        return self.sequence[:-1] if re.search("[0-9]{2}$", self.sequence) else self.sequence

    @property
    def camera(self) -> int:
        """Return the camera's number; 0 where a recording has one."""
        return int(self.sequence[-1]) if self.recording != self.sequence else 0

    @property
    def object_name(self) -> str:
        """Return the YCB name of the object."""
        return _RECORDED[self._letters][0]

    @property
    def person(self) -> int:
        """Return the person whose hand it is."""
        return _RECORDED[self._letters][1]

    @property
    def _letters(self) -> str:
        return self.sequence.rstrip("0123456789")

    @property
    def is_unannotated(self) -> bool:
        """Return whether every field of the meta file is None, in every fourth take of train."""
        own = self.take + SEQUENCES[self.part].index(self.sequence)
        return self.part == "train" and self.frame == 7 and own % 4 == 0

    @property
    def lacks_object(self) -> bool:
        """Return whether the object's pose is None, in every second take of train."""
        own = self.take + SEQUENCES[self.part].index(self.sequence)
        return self.part == "train" and self.frame == 5 and own % 2 == 0

    @property
    def has_meta(self) -> bool:
        """Return whether there is a meta file; every second image without a line has none."""
        own = self.take + SEQUENCES[self.part].index(self.sequence)
        return self.frame < TAKE or own % 2 == 1


def slot_of(part: str, idx: int) -> Slot:
    """Return listed sample ``idx`` of a part."""
    turn, step = divmod(idx, _RUN[part])
    round_, which = divmod(turn, len(SEQUENCES[part]))
    take, frame = divmod(round_ * _RUN[part] + step, TAKE)
    return Slot(part=part, sequence=SEQUENCES[part][which], take=take, frame=frame)


def unlisted(slot: Slot) -> Slot:
    """Return the image of the same take that no list names."""
    return Slot(part=slot.part, sequence=slot.sequence, take=slot.take, frame=TAKE)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageTruth:
    """Ground truth of one image: OpenCV camera frame, metres, radians, pixels.

    ``K`` [3, 3]; ``T_cam_from_world`` [4, 4]; ``vertices`` [778, 3]; ``joints_3d`` [21, 3] standard
    order, HO-3D's joint convention; ``beta`` [10]; ``T_cam_from_obj`` [4, 4].
    """

    K: np.ndarray
    T_cam_from_world: np.ndarray
    vertices: np.ndarray
    joints_3d: np.ndarray
    beta: np.ndarray
    T_cam_from_obj: np.ndarray


def draw_frame(seed: int, slot: Slot) -> ImageTruth:
    """Sample the frame in a slot; a pure function of its arguments."""
    take = draw_take(seed, slot)
    K, T = draw_camera(seed, slot.recording, slot.camera)
    vertices = take.vertices[slot.frame]
    tips = vertices[list(TIP_VERTICES["ho3d"].right)]
    joints = np.concatenate([take.joints[slot.frame], tips])[list(STANDARD_FROM_MANO21)]
    return ImageTruth(
        K=K,
        T_cam_from_world=T,
        vertices=vertices @ T[:3, :3].T + T[:3, 3],
        joints_3d=joints @ T[:3, :3].T + T[:3, 3],
        beta=take.beta,
        T_cam_from_obj=T @ take.T_world_from_obj[slot.frame, 0],
    )


def draw_parameters(
    seed: int, slot: Slot, T_dst_from_world: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(theta, transl)`` [48], [3] of the frame's hand in another frame."""
    take = draw_take(seed, slot)
    at = slice(slot.frame, slot.frame + 1)
    rest = rest_root(stand_in_model("right"), take.beta[None])
    theta, transl = transform_mano(take.theta[at], take.transl[at], T_dst_from_world[None], rest)
    return theta[0], transl[0]


def draw_take(seed: int, slot: Slot) -> HandObjectSequence:
    """Sample the take of a slot, ``TAKE + 1`` frames; cameras of one recording share it."""
    return _draw_take(
        seed, recording_number(slot.recording), slot.take, slot.person, slot.object_name
    )


@lru_cache(maxsize=4)
def _draw_take(
    seed: int, recording: int, take: int, person: int, object_name: str
) -> HandObjectSequence:
    return draw_sequence(
        (seed, 1, recording, take),
        side="right",
        beta=draw_beta(np.random.default_rng([seed, 2, person])),
        object_names=(object_name,),
        grasp_ind=0,
        num_frames=TAKE + 1,
        left_as_shipped=False,
    )


def draw_camera(seed: int, recording: str, camera: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample ``K`` and ``T_cam_from_world`` of a camera, fixed for all takes."""
    shared = np.random.default_rng([seed, 3, recording_number(recording)])
    rng = np.random.default_rng([seed, 4, recording_number(recording), camera])
    azimuth_rad = shared.uniform(0.0, 2 * np.pi) + camera * 2 * np.pi / 5 + rng.normal(0.0, 0.1)
    elevation_rad, distance_m = rng.uniform(0.5, 1.0), rng.uniform(0.72, 0.90)
    flat = np.cos(elevation_rad)
    direction = np.array(
        [flat * np.cos(azimuth_rad), flat * np.sin(azimuth_rad), np.sin(elevation_rad)]
    )
    target = np.array([0.0, 0.0, 0.20]) + rng.normal(0.0, 0.02, 3)
    T = look_at(target + distance_m * direction, target, roll_rad=rng.normal(0.0, 0.1))
    focal = rng.uniform(600.0, 625.0)
    K = np.array(
        [
            [focal, 0.0, 319.5 + rng.normal(0.0, 5.0)],
            [0.0, focal + rng.normal(0.0, 0.5), 239.5 + rng.normal(0.0, 5.0)],
            [0.0, 0.0, 1.0],
        ]
    )
    return K, T


def cameras_of(recording: str) -> list[int]:
    """Return the cameras of a recording, over both parts; none where it is itself a sequence."""
    return _recordings()[recording]


def recording_number(recording: str) -> int:
    """Return the number of a recording, for streams of random numbers."""
    return [*_recordings()].index(recording)


def calibration_poses(seed: int, recording: str) -> tuple[list[int], list[np.ndarray]]:
    """Return the list of cameras and ``T_calib_from_cam`` [4, 4] of each.

    The list is not sorted, and the frame of its first camera is the world of the calibration.
    """
    order = cameras_of(recording)[::-1]
    poses = [draw_camera(seed, recording, camera)[1] for camera in order]
    return order, [poses[0] @ invert_transform(T) for T in poses]


@lru_cache(maxsize=1)
def _recordings() -> dict[str, list[int]]:
    """Return the cameras of every recording, over both parts."""
    cameras: dict[str, list[int]] = {}
    for part in PARTS:
        for name in SEQUENCES[part]:
            slot = Slot(part=part, sequence=name, take=0, frame=0)
            own = cameras.setdefault(slot.recording, [])
            if slot.recording != name:
                own.append(slot.camera)
    return {name: sorted(cameras[name]) for name in sorted(cameras)}
