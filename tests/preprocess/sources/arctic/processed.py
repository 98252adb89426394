"""ARCTIC's processed sequences and split files from ground truth, without Handloom's code.

Written from the dataset notes (5.4): float32, views 0 to 8 and the distorted head as 9.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from tests.preprocess.sources.arctic.crops import official_square
from tests.preprocess.sources.arctic.tree import DIST8, EGO_HW, STANDARD, STILL_HW, RowTruth


def counted_by_hand(row: RowTruth, size_wh: tuple[float, float]) -> list[bool]:
    """The official rule, point by point; the head's view is projected by OpenCV."""
    dist = DIST8 if row.view == 0 else np.zeros(8)

    def shown(points: np.ndarray) -> np.ndarray:
        zero = np.zeros(3)
        return np.asarray(cv2.projectPoints(points, zero, zero, row.K, dist)[0][:, 0])

    corners = shown(row.object_vertices)
    x0, y0, x1, y1 = 1.0, 1.0, float(size_wh[0]), float(size_wh[1])
    if row.view:
        wide, high = np.ptp(corners[:, 0]), np.ptp(corners[:, 1])
        scale = max((1.1 * max(wide, high) + 0.6 * max(wide, high)) / 200, 3.0)
        cx, cy = ((corners[:, i].max() + corners[:, i].min()) / 2 for i in (0, 1))
        x0, y0 = max(cx - 100 * scale, 1.0), max(cy - 100 * scale, 1.0)
        x1, y1 = min(cx + 100 * scale, x1), min(cy + 100 * scale, y1)

    def within(point: np.ndarray) -> bool:
        return bool(x0 <= point[0] <= x1 and y0 <= point[1] <= y1)

    found = []
    for hand in row.joints:
        seen = [within(point) for point in shown(hand)]
        found.append(seen[0] and sum(seen) >= 3)
    return [*found, within(corners.mean(0))]


def in_mano_order(joints: np.ndarray) -> np.ndarray:
    """Return joints [..., 21, k] in the order of MANO and its tips."""
    found = np.empty_like(joints)
    found[..., list(STANDARD), :] = joints
    return found


def processed(
    truth: Callable[[int], list[RowTruth]],
    numbers: range,
    *,
    ego_wh: tuple[float, float] = (EGO_HW[1], EGO_HW[0]),
) -> dict[str, Any]:
    """Return the official code's output for a sequence.

    Args:
        truth: Function from the number of a file to its nine rows.
        numbers: File numbers of all captured frames.
        ego_wh: Size of the egocentric image.
    """
    keys = ("joints.right", "joints.left")
    cam: dict[str, list[Any]] = {key: [] for key in (*keys, "right_valid", "left_valid")}
    cam["is_valid"] = []
    flat: dict[str, list[Any]] = {key: [] for key in keys}
    boxes: list[list[tuple[float, float, float]]] = []
    world = []
    for number in numbers:
        rows = truth(number)
        world.append(
            (rows[0].arti_rad, np.linalg.inv(rows[0].T_cam_from_world) @ rows[0].T_cam_from_obj)
        )
        for side, key in enumerate(keys):
            joints = [in_mano_order(row.joints[side]) for row in rows]
            zero = np.zeros(3)
            bent = cv2.projectPoints(joints[0], zero, zero, np.eye(3), DIST8)[0][:, 0]
            joints.append(np.concatenate([bent, np.ones((21, 1))], 1) * joints[0][:, 2:])
            cam[key].append(joints)
            cameras = [*(row.K for row in rows), rows[0].K]
            flat[key].append(
                [(p @ K.T)[:, :2] / p[:, 2:] for p, K in zip(joints, cameras, strict=True)]
            )
        counted = [counted_by_hand(row, STILL_HW[::-1] if row.view else ego_wh) for row in rows]
        for i, key in enumerate(("right_valid", "left_valid", "is_valid")):
            cam[key].append([flags[i] for flags in counted])
        squares = [(1400.0, 1000.0, 14.0)]
        for row in rows[1:]:
            pixels = row.object_vertices @ row.K.T
            cx, cy, s = official_square(pixels[:, :2] / pixels[:, 2:])
            squares.append((float(cx), float(cy), float(s)))
        boxes.append(squares)
    num = len(boxes)
    T = np.stack([pose for _, pose in world])
    single = np.float32
    return {
        "world_coord": {"joints.right": np.zeros((num, 21, 3), single)},
        "cam_coord": {
            **{key: np.array(cam[key], single if key in keys else np.int64) for key in cam},
            "joints.smplx": np.full((num, 10, 127, 3), np.nan, single),
            "rot_r_cam": np.zeros((num, 9, 3), single),
        },
        "2d": {key: np.array(flat[key], single) for key in keys},
        "bbox": np.array(boxes, single),
        "params": {
            "obj_arti": np.array([angle for angle, _ in world], single),
            "obj_rot": Rotation.from_matrix(T[:, :3, :3]).as_rotvec().astype(single),
            "obj_trans": (1000 * T[:, :3, 3]).astype(single),
            "world2ego": np.zeros((num, 4, 4), single),
        },
    }


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as ``numpy.save`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
