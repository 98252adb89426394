"""Canonical records that a dataset source provides: rows, splits and one ``Labels`` per row.

Conventions: metres, radians, pixels, OpenCV camera axes, the standard joint order, hand slot 0
right and slot 1 left, missing values NaN.
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
    """A raw dataset cannot be used; one sentence: what, where, expected, found, fix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Labels of one row, float64; camera frame, metres; missing values NaN."""

    K: Float[np.ndarray, "3 3"]
    """Intrinsics for official image pixels."""
    A_file_from_raw: Float[np.ndarray, "2 3"]
    """Affine map from official pixels to pixels of the image file: the identity unless the files
    are crops; NaN if unknown."""
    joints_3d: Float[np.ndarray, "2 21 3"]
    joint_valid: Bool[np.ndarray, "2 21"]
    joints_2d: Float[np.ndarray, "2 21 2"]
    """Annotated pixels of joints, beside or instead of ``joints_3d``; NaN: not annotated."""
    bbox_xyxy: Float[np.ndarray, "2 4"]
    """Official hand bounding box, pixels; NaN: derive it from the projected joints."""
    theta: Float[np.ndarray, "2 48"]
    """MANO axis-angle, absolute (mean added), root first."""
    beta: Float[np.ndarray, "2 10"]
    """Shape for the fixed left-hand model."""
    beta_raw: Float[np.ndarray, "2 10"]
    """Shape as published by the dataset."""
    transl: Float[np.ndarray, "2 3"]
    """Translation in the smplx convention: joint 0 = root_rest + transl."""
    root_rest: Float[np.ndarray, "2 3"]
    """``J0(beta)``, the wrist in the rest pose."""
    T_world_from_cam: Float[np.ndarray, "4 4"]
    vertices_check_m: float
    """Largest distance between a decoded vertex and the official one, metres; NaN if the dataset
    provides no vertices."""
    refit_error_m: Float[np.ndarray, " 2"]
    """Largest vertex error of the refitted left hand against ``beta_raw`` with the model as
    shipped, metres; 0 without a refit, NaN without MANO."""
    object_id: Int32[np.ndarray, " 10"]
    """Index into ``DatasetSource.objects``; -1 = empty slot."""
    object_pose: Float[np.ndarray, "10 3 4"]
    """``[R | t]``, object to camera frame."""
    object_start: Float[np.ndarray, "10 3"]
    """Position of the object's origin in the first frame of the sequence (and camera) that has its
    pose: world frame, or camera frame where ``T_world_from_cam`` is missing (a static camera)."""
    object_arti_rad: Float[np.ndarray, " 10"]
    grasped_object: Int16[np.ndarray, ""]
    """Object slot; -1 = unknown."""
    official_valid: Bool[np.ndarray, " 3"]
    """Right hand, left hand, object: in view by the official protocol's rule; True if the protocol
    has none."""


def empty_labels() -> Labels:
    """Return labels with every value missing; the arrays are newly allocated and writable."""
    return Labels(
        K=np.full((3, 3), np.nan),
        A_file_from_raw=np.eye(2, 3),
        joints_3d=np.full((NUM_HANDS, NUM_JOINTS, 3), np.nan),
        joint_valid=np.zeros((NUM_HANDS, NUM_JOINTS), bool),
        joints_2d=np.full((NUM_HANDS, NUM_JOINTS, 2), np.nan),
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
    """Labels of n rows; fields as in ``Labels``."""

    K: Float[np.ndarray, "n 3 3"]
    A_file_from_raw: Float[np.ndarray, "n 2 3"]
    joints_3d: Float[np.ndarray, "n 2 21 3"]
    joint_valid: Bool[np.ndarray, "n 2 21"]
    joints_2d: Float[np.ndarray, "n 2 21 2"]
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
    """Stack the labels of several rows."""
    return LabelStack(
        **{f.name: np.stack([getattr(row, f.name) for row in rows]) for f in fields(Labels)}
    )


LabelJob = Callable[[], LabelStack]
"""Callable that parses the labels of some rows: picklable, so that it can run in any worker that
sees the dataset. Raises ``SourceError``."""


def job_of(labels: Callable[[int], Labels], official_idx: Sequence[int]) -> LabelJob:
    """Return a label job for a source with labels in memory: built here, pickled with the job."""
    return functools.partial(_same, stack_labels([labels(int(i)) for i in official_idx]))


def _same(stack: LabelStack) -> LabelStack:
    return stack


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFile:
    """Mesh file of one object of a dataset."""

    name: str
    mesh: str
    """Path relative to the dataset root, or absolute; obj, ply, stl or off. Empty: the object has
    no mesh, and rows with it have no contact labels."""
    metres_per_unit: float = 1.0
    moving_part: str = ""
    """Path of a JSON list with one number per mesh vertex, as in ARCTIC: 0 for the part that
    rotates, 1 for the other. Empty: a rigid object."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lens:
    """Intrinsics and lens distortion of a camera whose labels are undistorted; float64."""

    K: Float[np.ndarray, "3 3"]
    dist8: Float[np.ndarray, " 8"]
    """Coefficients of OpenCV's rational model: k1, k2, p1, p2, k3, k4, k5, k6."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Metadata of every candidate image in official order; all fields have the same length."""

    image: list[str]
    """Path relative to the dataset root, with ``/``."""
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
    """Consistency of redundant labels within one dataset."""

    problems: list[str]
    """One sentence per problem."""
    summary: str
    """What was compared and how much it differs, one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSource:
    """An opened raw dataset. ``official_idx`` is an index into ``rows``."""

    dataset: str
    joint_set: JointSet
    licence: str
    citation: str
    official_counts: dict[str, int]
    """Published number of rows per split of the full dataset, by split name; not every split has
    one."""
    root: Path
    rows: Rows
    splits: dict[str, Int64[np.ndarray, " k"]]
    """Lists of ``official_idx``, each in official order."""
    label_job: Callable[[Sequence[int]], LabelJob]
    """Returns the job that parses the labels of some rows, given by ``official_idx``."""
    objects: tuple[ObjectFile, ...] = ()
    left_as_shipped: bool = False
    """Left hands were fitted with MANO's left model as shipped (smplx issue 48)."""
    official_boxes: bool = False
    """``Labels.bbox_xyxy`` may differ from the bounding box of the projected joints."""
    optional_labels: tuple[str, ...] = ()
    """Names in ``schema.OPTIONAL_LABELS`` that the dataset has."""
    picture: Callable[[Path, str, str], np.ndarray | None] | None = None
    """Reads a depth map or segmentation mask in a worker: (root, path of the image, name in
    ``schema.PICTURES``) to [height, width], None where a row has none. Must be a module-level
    function. None: the dataset has no such images."""
    picture_hw: tuple[int, int] = (480, 640)
    """Height and width of the ``picture`` output, equal to that of every official image."""
    lenses: tuple[Lens, ...] = ()
    """Lenses of the images that a build undistorts."""
    lens_of: Int32[np.ndarray, " n"] | None = None
    """Index into ``lenses`` per row, -1 = none; None if there are no lenses."""
    cross_check: Callable[[], CrossCheck] | None = None
    """Compares the labels with redundant ones that ``root`` holds for the same images; may take as
    long as a build. None: there are no redundant labels."""
    synthetic: bool = False
    """Rendered by ``make-sample``, not the dataset whose format it has."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Further facts about the dataset for the report; JSON values."""
