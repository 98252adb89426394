"""What a source hands to the builder: rows, splits and one ``Labels`` per row.

Everything here is canonical: metres, radians, pixels, OpenCV camera axes, the standard joint
order, slot 0 right and slot 1 left, missing values NaN.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int16, Int32, Int64

from model.hand import NUM_BETAS, NUM_HANDS, NUM_JOINTS, JointSet
from pipeline.store.schema import NUM_OBJECTS


class SourceError(ValueError):
    """A raw dataset cannot be used; one sentence: what, where, expected, found, cure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The labels of one row, float64; NaN is missing; camera frame, metres."""

    K: Float[np.ndarray, "3 3"]
    """Intrinsics of the official pixels."""
    A_file_from_raw: Float[np.ndarray, "2 3"]
    """Pixels of the image file from official ones: the identity, unless the files are crops; NaN is
    unknown."""
    joints_3d: Float[np.ndarray, "2 21 3"]
    joint_valid: Bool[np.ndarray, "2 21"]
    bbox_xyxy: Float[np.ndarray, "2 4"]
    """Official box of a hand, pixels; NaN means: derive it from the projected joints."""
    theta: Float[np.ndarray, "2 48"]
    """MANO axis-angle, absolute (mean added), root first."""
    beta: Float[np.ndarray, "2 10"]
    """Shape for the fixed left-hand model."""
    beta_raw: Float[np.ndarray, "2 10"]
    """Shape as shipped."""
    transl: Float[np.ndarray, "2 3"]
    """smplx meaning: joint 0 = root_rest + transl."""
    root_rest: Float[np.ndarray, "2 3"]
    """``J0(beta)``, the rest wrist."""
    T_world_from_cam: Float[np.ndarray, "4 4"]
    vertices_check_m: float
    """Largest distance of a decoded vertex from the official one, metres; NaN if none is given."""
    refit_error_m: Float[np.ndarray, " 2"]
    """Largest distance of a vertex of the refitted left hand from where ``beta_raw`` and the model
    as shipped put it, metres; 0 without a refit, NaN without MANO."""
    object_id: Int32[np.ndarray, " 10"]
    """Into ``DatasetSource.objects``; -1 = empty slot."""
    object_pose: Float[np.ndarray, "10 3 4"]
    """``[R | t]`` camera from object."""
    object_start: Float[np.ndarray, "10 3"]
    """Where the object's origin is in the first frame of the sequence (and camera) that has its
    pose: world frame, or the camera's where ``T_world_from_cam`` is missing (a still camera)."""
    object_arti_rad: Float[np.ndarray, " 10"]
    grasped_object: Int16[np.ndarray, ""]
    """Object slot; -1 = unknown."""
    official_valid: Bool[np.ndarray, " 3"]
    """Right hand, left hand, object: in view by the official protocol's rule; True without one."""


def empty_labels() -> Labels:
    """Return labels in which everything is missing; the arrays are fresh and writable."""
    return Labels(
        K=np.full((3, 3), np.nan),
        A_file_from_raw=np.eye(2, 3),
        joints_3d=np.full((NUM_HANDS, NUM_JOINTS, 3), np.nan),
        joint_valid=np.zeros((NUM_HANDS, NUM_JOINTS), bool),
        bbox_xyxy=np.full((NUM_HANDS, 4), np.nan),
        theta=np.full((NUM_HANDS, 48), np.nan),
        beta=np.full((NUM_HANDS, NUM_BETAS), np.nan),
        beta_raw=np.full((NUM_HANDS, NUM_BETAS), np.nan),
        transl=np.full((NUM_HANDS, 3), np.nan),
        root_rest=np.full((NUM_HANDS, 3), np.nan),
        T_world_from_cam=np.full((4, 4), np.nan),
        vertices_check_m=float("nan"),
        refit_error_m=np.full(NUM_HANDS, np.nan),
        object_id=np.full(NUM_OBJECTS, -1, np.int32),
        object_pose=np.full((NUM_OBJECTS, 3, 4), np.nan),
        object_start=np.full((NUM_OBJECTS, 3), np.nan),
        object_arti_rad=np.full(NUM_OBJECTS, np.nan),
        grasped_object=np.array(-1, np.int16),
        official_valid=np.ones(3, bool),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelStack:
    """Labels of n rows, as in ``Labels``."""

    K: Float[np.ndarray, "n 3 3"]
    A_file_from_raw: Float[np.ndarray, "n 2 3"]
    joints_3d: Float[np.ndarray, "n 2 21 3"]
    joint_valid: Bool[np.ndarray, "n 2 21"]
    bbox_xyxy: Float[np.ndarray, "n 2 4"]
    theta: Float[np.ndarray, "n 2 48"]
    beta: Float[np.ndarray, "n 2 10"]
    beta_raw: Float[np.ndarray, "n 2 10"]
    transl: Float[np.ndarray, "n 2 3"]
    root_rest: Float[np.ndarray, "n 2 3"]
    T_world_from_cam: Float[np.ndarray, "n 4 4"]
    vertices_check_m: Float[np.ndarray, " n"]
    refit_error_m: Float[np.ndarray, "n 2"]
    object_id: Int32[np.ndarray, "n 10"]
    object_pose: Float[np.ndarray, "n 10 3 4"]
    object_start: Float[np.ndarray, "n 10 3"]
    object_arti_rad: Float[np.ndarray, "n 10"]
    grasped_object: Int16[np.ndarray, " n"]
    official_valid: Bool[np.ndarray, "n 3"]


def stack_labels(rows: Sequence[Labels]) -> LabelStack:
    """Return the labels of several rows, stacked."""
    return LabelStack(
        **{f.name: np.stack([getattr(row, f.name) for row in rows]) for f in fields(Labels)}
    )


LabelJob = Callable[[], LabelStack]
"""Parses the labels of some rows where it is called: picklable, runs in a worker, on any machine
that sees the dataset. Raises ``SourceError``."""


def job_of(labels: Callable[[int], Labels], official_idx: Sequence[int]) -> LabelJob:
    """Return the job of a source that has its labels in memory: they are made here and travel."""
    return functools.partial(_same, stack_labels([labels(int(i)) for i in official_idx]))


def _same(stack: LabelStack) -> LabelStack:
    return stack


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFile:
    """The mesh of one object of a dataset."""

    name: str
    mesh: str
    """Path relative to the root of the dataset, or absolute; obj, ply, stl or off. Empty: there is
    none, and rows with this object have no contact."""
    metres_per_unit: float = 1.0
    moving_part: str = ""
    """Path of a JSON list with one number per vertex of the mesh: 0 for the part that turns, 1 for
    the other, as ARCTIC has them. Empty: a rigid object."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lens:
    """A camera whose images are distorted while its labels are not; float64."""

    K: Float[np.ndarray, "3 3"]
    dist8: Float[np.ndarray, " 8"]
    """OpenCV's rational model: k1, k2, p1, p2, k3, k4, k5, k6."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Every candidate image in official order; all fields have the same length."""

    image: list[str]
    """Path relative to the root of the dataset, with ``/``."""
    sequence: list[str]
    camera: list[str]
    subject: list[str]
    frame_idx: Int32[np.ndarray, " n"]

    def __post_init__(self) -> None:
        lengths = {
            len(self.image), len(self.sequence), len(self.camera), len(self.subject),
            len(self.frame_idx),
        }  # fmt: skip
        if len(lengths) != 1:
            raise ValueError(f"Rows fields must have equal lengths, got {sorted(lengths)}")

    def __len__(self) -> int:
        """Return the number of candidate images."""
        return len(self.image)


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossCheck:
    """How labels agree with others of the same dataset."""

    problems: list[str]
    """One sentence each."""
    summary: str
    """What was compared and how far apart it is, one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSource:
    """One opened dataset. ``official_idx`` is the position in ``rows``."""

    dataset: str
    joint_set: JointSet
    licence: str
    citation: str
    official_counts: dict[str, int]
    """Rows per split of the full dataset, by the names of ``splits``; some splits have none."""
    root: Path
    rows: Rows
    splits: dict[str, Int64[np.ndarray, " k"]]
    """Lists of ``official_idx``, each in official order."""
    label_job: Callable[[Sequence[int]], LabelJob]
    """The job that makes the labels of some rows, by ``official_idx``."""
    objects: tuple[ObjectFile, ...] = ()
    left_as_shipped: bool = False
    """Left hands were fitted with MANO's left model as shipped (smplx issue 48)."""
    official_boxes: bool = False
    """``Labels.bbox_xyxy`` may differ from the box of the projected joints."""
    picture: Callable[[Path, str, str], np.ndarray | None] | None = None
    """Reads a picture in a worker: (root, path of the image, name in ``schema.PICTURES``) to
    [height, width], None where a row has none. A module-level function; None: the dataset has no
    pictures."""
    picture_hw: tuple[int, int] = (480, 640)
    """Height and width of the pictures, those of every official image."""
    lenses: tuple[Lens, ...] = ()
    """Of the images that a build straightens."""
    lens_of: Int32[np.ndarray, " n"] | None = None
    """Into ``lenses`` by row, -1 = none; None where there are no lenses."""
    cross_check: Callable[[], CrossCheck] | None = None
    """Compares the labels with others that ``root`` holds of the same images; it may take as long
    as a build. None: it holds no others."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the report says about the dataset beside the counts; JSON."""
