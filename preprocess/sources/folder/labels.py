"""Convert records of the folder format to canonical labels; runs in a worker."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float

from model.hand import LEFT, RIGHT
from model.mano.files import ManoModels
from preprocess.images.header import ImageProblem, read_header
from preprocess.images.images import read_image_file
from preprocess.labels.canonical import HandParameters, fill_hand, folder_hands
from preprocess.records import Labels, LabelStack, empty_labels, stack_labels
from preprocess.sources.folder.files import Annotations, Place, read_some
from preprocess.sources.folder.records import JOINT_ORDERS, UNITS, Header, Image, Mano

_OPENCV_FROM_OPENGL: Final = np.diag([1.0, -1.0, -1.0])


def read_labels(
    root: Path, annotations: Annotations, places: Sequence[Place], mano: ManoModels | None
) -> LabelStack:
    """Return the labels of some images.

    Raises:
        SourceError: If the annotations changed since the plan.
    """
    images = read_some(annotations, places)
    return stack_labels([image_labels(root, annotations.header, image, mano) for image in images])


def image_labels(root: Path, header: Header, image: Image, mano: ManoModels | None) -> Labels:
    """Return the labels of one image; without K and focal_px, K assumes ``header.fov_deg``."""
    labels = empty_labels()
    labels.K[:] = intrinsics(root, header, image)
    R = _opencv_from(header)
    metres = UNITS[header.units]
    for hand in image.hands:
        slot = RIGHT if hand.side == "right" else LEFT
        if hand.joints_3d is not None:
            labels.joints_3d[slot] = metres * hand_joints(header, hand.joints_3d, 3) @ R
            labels.joint_valid[slot] = np.isfinite(labels.joints_3d[slot]).all(-1)
        if hand.joints_2d is not None:
            labels.joints_2d[slot] = hand_joints(header, hand.joints_2d, 2)
        if hand.bbox_xyxy is not None:
            labels.bbox_xyxy[slot] = hand.bbox_xyxy
        if hand.mano is not None and mano is not None:
            fill_hand(labels, slot, _mano(header, slot, hand.mano, mano), 0)
    names = [entry.name for entry in header.objects]
    grasped = -1
    for slot, placed in enumerate(image.objects):
        labels.object_id[slot] = names.index(placed.name)
        labels.object_pose[slot] = R @ _metric(placed.pose, metres)
        grasped = slot if placed.grasped and grasped < 0 else grasped
    if image.T_world_from_cam is not None:
        labels.T_world_from_cam[:] = np.eye(4)
        labels.T_world_from_cam[:3] = _metric(image.T_world_from_cam, metres)
        labels.T_world_from_cam[:3, :3] @= R
    return replace(labels, grasped_object=np.array(grasped, np.int16))


def intrinsics(root: Path, header: Header, image: Image) -> Float[np.ndarray, "3 3"]:
    """Return the intrinsics of an image, given or assumed; NaN if its size cannot be read."""
    if image.K is not None:
        return np.array(image.K)
    data = read_image_file(root / image.image)
    size = read_header(data) if isinstance(data, bytes) else data
    if isinstance(size, ImageProblem):
        return np.full((3, 3), np.nan)
    width, height = size.width, size.height
    focal = image.focal_px
    if focal is None:
        focal = max(width, height) / 2 / np.tan(np.radians(header.fov_deg) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def hand_joints(
    header: Header, joints: Sequence[Sequence[float] | None], size: int
) -> Float[np.ndarray, "21 n"]:
    """Return joints in the standard order, as in the file otherwise; NaN where not annotated."""
    order = header.joint_order
    permutation = JOINT_ORDERS[order] if isinstance(order, str) else order
    points = np.array([[np.nan] * size if joint is None else joint for joint in joints])
    return np.asarray(points[list(permutation)])


def _mano(header: Header, slot: int, given: Mano, mano: ManoModels) -> HandParameters:
    return folder_hands(
        mano,
        slot,
        np.array(given.theta)[None],
        np.array(given.beta)[None],
        UNITS[header.units] * np.array(given.transl)[None],
        opengl=header.axes == "opengl",
        relative=header.mano_mean == "relative",
        as_shipped=header.mano_left == "as_shipped",
    )


def _opencv_from(header: Header) -> Float[np.ndarray, "3 3"]:
    return _OPENCV_FROM_OPENGL if header.axes == "opengl" else np.eye(3)


def _metric(pose: Sequence[Sequence[float]], metres: float) -> Float[np.ndarray, "3 4"]:
    T = np.array(pose)[:3]
    T[:, 3] *= metres
    return np.asarray(T)
