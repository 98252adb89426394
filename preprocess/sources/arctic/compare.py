"""Compare our labels of one ARCTIC sequence with the output of the official processing code.

``theirs`` is a dictionary of ``processed_seqs`` or ``splits``: per captured frame, in float32, with
views 0 to 8 and the distorted egocentric view as 9.

Source:
    The dataset's src/arctic/processing.py (described in the dataset notes, 5.4).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64
from scipy.spatial.transform import Rotation

from model.hand import STANDARD_FROM_MANO21
from model.mano.files import ManoModels
from preprocess.camera import pixels, project
from preprocess.records import LabelStack, Lens
from preprocess.sources.arctic.files import EGO, SIDES, VIEWS, Rig, finite_array, read_raw
from preprocess.sources.arctic.labels import View, posed_object, read_views
from preprocess.sources.arctic.valid import distorted, in_view, square_of

LIMITS: Final = {
    "joints": (1e-4, "m"),
    "joint pixels": (0.05, "px"),
    "squares around the object": (0.05, "px"),
    "object positions": (1e-4, "m"),
    "object angles": (1e-4, "rad"),
    "who is in view": (0.0, ""),
}
"""Largest tolerated difference and its unit. "Who is in view" counts as different (1) only if it
still differs with a box ``_UNDECIDED_PX`` larger or smaller."""
_UNDECIDED_PX: Final = 0.05
_CHUNK: Final = 256
_SEEN: Final = 2.0
"""Pixels are compared up to this many image sizes from the centre; beyond, float32 is too coarse.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Apart:
    """The largest difference of one quantity, and where it occurs."""

    quantity: str
    value: float
    where: str

    @property
    def is_over(self) -> bool:
        """Return whether it exceeds the limit."""
        return not self.value <= LIMITS[self.quantity][0]

    def __str__(self) -> str:
        """Return it as text."""
        number = f"{self.value:.2g} {LIMITS[self.quantity][1]}".rstrip()
        return f"{self.quantity} {number} ({self.where})"


def compare_sequence(
    root: Path,
    sequence: str,
    theirs: Mapping[str, Any],
    rig: Rig,
    lens: Lens,
    mano: ManoModels | None,
) -> list[Apart]:
    """Return the largest differences of a sequence, ``sXX/<name>``.

    Raises:
        SourceError: If something is missing, or its shape does not match the capture.
    """
    num = len(read_raw(root, sequence).object)
    views = [
        View(
            sequence=sequence,
            view=view,
            rig=rig,
            lens=lens,
            frames=np.arange(num),
            rows=np.arange(num) + view * num,
        )
        for view in range(VIEWS)
    ]
    ours = read_views(root, views, VIEWS * num, mano)
    joints = np.stack(
        [_their(theirs, "cam_coord", f"joints.{s}", (num, VIEWS + 1, 21, 3)) for s in SIDES], 2
    )[:, :, :, list(STANDARD_FROM_MANO21)]  # [F, 10, 2, 21, 3]
    joints_px = np.stack(
        [_their(theirs, "2d", f"joints.{s}", (num, VIEWS + 1, 21, 2)) for s in SIDES], 2
    )[:, :, :, list(STANDARD_FROM_MANO21)]
    names = ("right_valid", "left_valid", "is_valid")
    valid = np.stack([_their(theirs, "cam_coord", name, (num, VIEWS)) for name in names], 2)
    squares = _their(theirs, "", "bbox", (num, VIEWS, 3)) * [1.0, 1.0, 200.0]
    found = _Largest(sequence, rig.ioi_offset)
    for view in views:
        v, rows = view.view, view.rows
        K = lens.K if v == EGO else rig.K[v - 1]
        own = ours.joints_3d[rows]
        if mano is not None:
            found.add("joints", v, own - joints[:, v])
            middle = np.array([K[0, 2], K[1, 2]])
            own_px = project(own, K)
            near = np.abs(own_px - middle) < _SEEN * rig.image_size_wh[v]
            found.add("joint pixels", v, np.where(near, own_px - joints_px[:, v], 0.0))
            if v == EGO:
                bent = np.where(near.all(-1, keepdims=True), distorted(own, lens), joints[:, VIEWS])
                found.add("joints", VIEWS, bent - joints[:, VIEWS])
        for start in range(0, num, _CHUNK):
            part = slice(start, start + _CHUNK)
            vertices = posed_object(root, sequence, ours, rows[part])
            if v != EGO:
                found.add(
                    "squares around the object",
                    v,
                    square_of(pixels(vertices, K)) - squares[part, v],
                    start,
                )
            used = slice(None) if mano is not None else slice(2, 3)
            arguments = own[part], vertices, K, rig.image_size_wh[v], lens if v == EGO else None
            may, must = (
                in_view(*arguments, slack_px=slack)[:, used]
                for slack in (_UNDECIDED_PX, -_UNDECIDED_PX)
            )
            flags = valid[part, v][:, used]
            found.add("who is in view", v, np.maximum(flags - may, must - flags), start)
        _compare_object(found, v, ours, rows, theirs)
    return found.result()


def _compare_object(
    found: "_Largest", view: int, ours: LabelStack, rows: np.ndarray, theirs: Mapping[str, Any]
) -> None:
    """Compare angle and pose of the object in the world."""
    num = len(rows)
    T, pose = ours.T_world_from_cam[rows], ours.object_pose[rows, 0]
    place = T[:, :3, :3] @ pose[:, :, 3:] + T[:, :3, 3:]
    turn = Rotation.from_matrix(T[:, :3, :3] @ pose[:, :, :3])
    their_turn = Rotation.from_rotvec(_their(theirs, "params", "obj_rot", (num, 3)))
    angle = _their(theirs, "params", "obj_arti", (num,))
    shift = _their(theirs, "params", "obj_trans", (num, 3))
    found.add("object positions", view, place[..., 0] - shift / 1000.0)
    found.add("object angles", view, np.asarray((turn * their_turn.inv()).magnitude()))
    found.add("object angles", view, ours.object_arti_rad[rows, 0] - angle)


def _their(
    theirs: Mapping[str, Any], group: str, name: str, shape: tuple[int, ...]
) -> Float64[np.ndarray, "..."]:
    inside = theirs.get(group) if group else theirs
    value = inside.get(name) if isinstance(inside, Mapping) else None
    array: np.ndarray = finite_array(value, shape, f"{group}.{name}".strip("."))
    return array


class _Largest:
    """The largest differences so far."""

    def __init__(self, sequence: str, ioi_offset: int) -> None:
        self.sequence = sequence
        self.ioi_offset = ioi_offset
        self.found: dict[str, Apart] = {}

    def add(self, quantity: str, view: int, difference: np.ndarray, start: int = 0) -> None:
        """Add differences of the frames from ``start`` on; NaN counts as infinite."""
        size = np.nan_to_num(np.abs(difference.astype(np.float64)), nan=np.inf)
        size = size.reshape(len(size), -1).max(1)
        frame = int(size.argmax())
        last = self.found.get(quantity)
        if last is None or size[frame] > last.value:
            where = f"{self.sequence}, view {view}, file {start + frame + self.ioi_offset:05d}"
            self.found[quantity] = Apart(quantity=quantity, value=float(size[frame]), where=where)

    def result(self) -> list[Apart]:
        """Return the largest differences in the order of ``LIMITS``."""
        return [self.found[name] for name in LIMITS if name in self.found]
