"""Labels on the device, and the transform that keeps them aligned with the augmented pixels.

Shape legend: n = samples, b = batch, h = hands (hand view: 1; other views: 2).

In-plane rotation and mirror of the crop become a 3D transform of the camera frame,
``R_input_from_cam``; scale, translation and crop become ``K``. The projection of the transformed
labels then equals the transformed projection of the labels. Computed in float64 and cast once at
the end. Missing values are NaN and stay NaN; the masks are authoritative.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from model.geometry.camera import camera_after_affine, input_rotation
from model.geometry.mano_frame import mano_after_rotation
from model.geometry.rotation import axis_angle_to_rotmat, rotate
from model.hand import NUM_HANDS, NUM_MANO_JOINTS, RIGHT, JointSet
from pipeline.batch import Batch, LabelGroup
from pipeline.config import ViewKind
from pipeline.store.objects import acted_on
from pipeline.store.reader import Store
from pipeline.view import ViewTable, concatenated

CHUNK_ROWS = 1 << 16
"""Rows converted to rotation matrices at a time; bounds the float64 copy to about 150 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTable:
    """Labels as recorded, one row per sample: camera frame, metres, frame pixels."""

    K: Float[Tensor, "n 3 3"]
    joints_3d: Float[Tensor, "n h 21 3"]
    joint_valid: Bool[Tensor, "n h 21"]
    theta_rotmat: Float[Tensor, "n h 16 3 3"]
    beta: Float[Tensor, "n h 10"]
    transl: Float[Tensor, "n h 3"]
    root_rest: Float[Tensor, "n h 3"]
    """``J0(beta)`` of the hand as recorded."""
    has_joints: Bool[Tensor, "n h"]
    has_mano: Bool[Tensor, "n h"]
    has_beta: Bool[Tensor, "n h"]
    is_right: Bool[Tensor, "n h"]
    object_id: Int64[Tensor, " n"]
    """The object that the hands act on, in ``pipeline.labels.objects.ObjectModels``; -1 = none."""
    object_pose: Float[Tensor, "n 3 4"]
    object_arti_rad: Float[Tensor, " n"]
    has_object: Bool[Tensor, " n"]
    joint_set: Int64[Tensor, " n"]


def load_labels(
    store: Store, view: ViewTable, kind: ViewKind, *, first_object: int = 0
) -> LabelTable:
    """Read the labels of every sample of a view into host memory.

    Hands and objects that are out of view by the dataset's official protocol have no label.
    ``first_object`` is the index of the store's first object among those of all stores.
    """
    row, slot = view.row.numpy(), (view.sample_id % NUM_HANDS).numpy()
    is_single = kind is ViewKind.hand
    slots = slot[:, None] if is_single else np.arange(NUM_HANDS)[None].repeat(len(row), 0)
    in_view = torch.from_numpy(store.label("official_valid")[row[:, None], slots])

    def hands(name: str) -> Tensor:
        values = store.label(name)
        return torch.from_numpy(values[row, slot][:, None] if is_single else values[row])

    own_slot = acted_on(store, row)
    tables = store.attributes.tables
    if "object" in tables and (largest := store.label("object_id").max()) >= len(tables["object"]):
        store.name_of("object", int(largest))  # raises: the objects' tensors are indexed by it
    is_object = torch.from_numpy(own_slot >= 0)

    def of_object(name: str) -> Tensor:
        return torch.from_numpy(store.label(name)[row, own_slot])

    return LabelTable(
        K=torch.from_numpy(store.label("K")[row]),
        joints_3d=hands("joints_3d"),
        joint_valid=hands("joint_valid") & in_view[..., None],
        theta_rotmat=_rotmats(hands("theta")),
        beta=hands("beta"),
        transl=hands("transl"),
        root_rest=hands("root_rest"),
        has_joints=hands("has_joints") & in_view,
        has_mano=hands("has_mano") & in_view,
        has_beta=hands("has_beta") & in_view,
        is_right=torch.from_numpy(slots == RIGHT),
        object_id=torch.where(is_object, of_object("object_id").long() + first_object, -1),
        object_pose=of_object("object_pose").where(is_object[:, None, None], torch.nan),
        object_arti_rad=of_object("object_arti_rad").where(is_object, torch.nan),
        has_object=is_object & torch.from_numpy(store.label("official_valid")[row, NUM_HANDS]),
        joint_set=torch.full_like(view.row, int(JointSet[store.attributes.joint_set])),
    )


def hide_labels(labels: LabelTable, samples: Int64[Tensor, " m"]) -> None:
    """Mark every label of ``samples`` invalid, in place."""
    hands = (labels.joint_valid, labels.has_joints, labels.has_mano, labels.has_beta)
    for mask in (*hands, labels.has_object):
        mask[samples.to(mask.device)] = False


def hide_group(group: LabelGroup, samples: Int64[Tensor, " m"]) -> None:
    """Mark every label of ``samples`` invalid, in place."""
    for name in group.MASKS:
        mask = getattr(group, name)
        mask[samples.to(mask.device)] = False


def view_slots(view: ViewTable, kind: ViewKind) -> Int64[Tensor, "n h"]:
    """Return the hand slots that each sample shows: one, or both."""
    if kind is ViewKind.hand:
        return (view.sample_id % NUM_HANDS)[:, None]
    return torch.arange(NUM_HANDS).expand(len(view), -1)


def load_groups(
    kinds: Sequence[type[LabelGroup]],
    stores: Sequence[tuple[Store, ViewTable]],
    kind: ViewKind,
    first_objects: Sequence[int],
) -> list[LabelGroup]:
    """Load each label group for all stores' samples, concatenated, in host memory."""
    found = []
    for group in kinds:
        parts = [
            group.load(store, view.row, view_slots(view, kind), first)
            for (store, view), first in zip(stores, first_objects, strict=True)
        ]
        found.append(concatenated(parts))
    return found


def move_labels(
    labels: LabelTable,
    view: ViewTable,
    A_input_from_frame: Float64[Tensor, "b 2 3"],
    rotation_rad: Float64[Tensor, " b"],
    mirrored: Bool[Tensor, " b"],
    *,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Apply the crop's transform to the labels; return the batch without pixels in ``image``.

    A mirrored hand's MANO parameters decode with the model of the other side; ``beta`` is
    unchanged.

    Args:
        labels: The samples' labels.
        view: The samples' rows of the view.
        A_input_from_frame: Affine transform of the pixels.
        rotation_rad: Rotation within it, clockwise on screen.
        mirrored: Mirror within it.
        dtype: Type of the result; float64 to measure the error of the cast.
    """
    num_hands = labels.is_right.shape[1]
    R = input_rotation(rotation_rad, mirrored)
    theta, transl = mano_after_rotation(
        labels.theta_rotmat.double(),
        labels.transl.double(),
        labels.root_rest.double(),
        rotation_rad[:, None].expand(-1, num_hands),
        mirrored[:, None].expand(-1, num_hands),
    )
    K = camera_after_affine(A_input_from_frame, labels.K.double(), R)
    R_of_hand = R[:, None].expand(-1, num_hands, 3, 3)
    return Batch(
        image=torch.empty(len(view), 3, 0, 0, device=rotation_rad.device),
        K=K.to(dtype),
        A_input_from_frame=A_input_from_frame.to(dtype),
        R_input_from_cam=R.to(dtype),
        joints_3d=rotate(R_of_hand, labels.joints_3d.double()).to(dtype),
        joint_valid=labels.joint_valid,
        theta_rotmat=theta.to(dtype),
        beta=labels.beta,
        transl=transl.to(dtype),
        has_joints=labels.has_joints,
        has_mano=labels.has_mano,
        has_beta=labels.has_beta,
        is_right=labels.is_right,
        mirrored=mirrored,
        object_id=labels.object_id,
        object_pose=rotate(R, labels.object_pose.double().mT).mT.to(dtype),
        object_arti_rad=labels.object_arti_rad,
        has_object=labels.has_object,
        joint_set=labels.joint_set,
        sample_id=view.sample_id,
        is_real=torch.ones_like(mirrored),
    )


def _rotmats(theta: Float32[Tensor, "n h 48"]) -> Float32[Tensor, "n h 16 3 3"]:
    """Return the joint rotations, computed in float64."""
    parts = [
        axis_angle_to_rotmat(part.double().view(*part.shape[:2], NUM_MANO_JOINTS, 3)).float()
        for part in torch.split(theta, CHUNK_ROWS)
    ]
    return torch.cat(parts)
