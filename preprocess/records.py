"""What a source hands to the builder: rows, splits and one ``Labels`` per row.

Everything here is canonical: metres, radians, pixels, OpenCV camera axes, the standard joint
order, slot 0 right and slot 1 left, missing values NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64

from model.hand import NUM_BETAS, NUM_HANDS, NUM_JOINTS, JointSet


class SourceError(ValueError):
    """A raw dataset cannot be used; one sentence: what, where, expected, found, cure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The labels of one row, float64; NaN is missing; camera frame, metres."""

    K: Float[np.ndarray, "3 3"]
    """Intrinsics of the official pixels."""
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


def empty_labels() -> Labels:
    """Return labels in which everything is missing; the arrays are fresh and writable."""
    return Labels(
        K=np.full((3, 3), np.nan),
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
    )


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
class Source:
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
    labels: Callable[[int], Labels]
    """Labels by ``official_idx``."""
