"""The one batch type: the contract between the pipeline and every trainer.

Shape legend: *b = batch [b], or [b, t] where samples are windows of t frames; h = hands (hand view:
1; other views: slot 0 right, slot 1 left), s = input side in pixels.

"Input" names the pixels and the camera that the network sees. A label point obeys
``p_input = R_input_from_cam @ p_cam`` and projects with ``K``; a pixel obeys
``x_input = A_input_from_frame @ [x_frame, y_frame, 1]``. Missing values are NaN; every reader
selects with the masks before any maths.
"""

from dataclasses import dataclass, fields
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One batch; every field is on the same device."""

    image: Float[Tensor, "*b 3 s s"]
    """RGB, normalised with the mean and deviation in the config; 0..255 as uint8."""
    K: Float[Tensor, "*b 3 3"]
    """Intrinsics of the input pixels; the upper left 2x2 block may be full."""
    A_input_from_frame: Float[Tensor, "*b 2 3"]
    R_input_from_cam: Float[Tensor, "*b 3 3"]
    """Orthogonal; determinant -1 where the sample was mirrored."""
    joints_3d: Float[Tensor, "*b h 21 3"]
    """Input camera frame, metres."""
    joint_valid: Bool[Tensor, "*b h 21"]
    theta_rotmat: Float[Tensor, "*b h 16 3 3"]
    beta: Float[Tensor, "*b h 10"]
    transl: Float[Tensor, "*b h 3"]
    has_joints: Bool[Tensor, "*b h"]
    has_mano: Bool[Tensor, "*b h"]
    has_beta: Bool[Tensor, "*b h"]
    is_right: Bool[Tensor, "*b h"]
    """The hand as recorded; a mirrored left hand keeps False."""
    mirrored: Bool[Tensor, "*b"]
    """Image and labels were mirrored, so the hand now looks (and decodes) like the other side."""
    object_id: Int64[Tensor, "*b"]
    """The object that the hands act on, a row of ``Loader.objects``; -1 = none."""
    object_pose: Float[Tensor, "*b 3 4"]
    """[R | t]: input camera frame from the object's, metres; R is a mirror where ``mirrored``."""
    object_arti_rad: Float[Tensor, "*b"]
    """Angle of an articulated object (``model.geometry.articulation``), radians; NaN = rigid."""
    has_object: Bool[Tensor, "*b"]
    joint_set: Int64[Tensor, "*b"]
    """Value of ``model.hand.JointSet``."""
    sample_id: Int64[Tensor, "*b"]
    """Row of the store times two plus the hand slot (hand view), or times two (other views); in a
    mixture plus the number of the store times 2^40. ``Loader.describe`` puts it in words."""
    is_real: Bool[Tensor, "*b"]
    """False: beyond the end of its run a window repeats the last frame; no label mask is set."""

    def __len__(self) -> int:
        """Return the number of samples or windows."""
        return len(self.sample_id)

    def with_image(self, image: Tensor) -> "Batch":
        """Return the batch with another image."""
        return Batch(**{name: getattr(self, name) for name in _LABELS}, image=image)

    @property
    def num_frames(self) -> int:
        """Frames of a window; 1 where the batch is of single samples."""
        return self.sample_id.shape[1] if self.sample_id.ndim > 1 else 1

    def frames(self) -> "Batch":
        """Return the frames of all windows in a row, [b * t]; single samples as they are."""
        if self.sample_id.ndim == 1:
            return self
        return Batch(**{f.name: getattr(self, f.name).flatten(0, 1) for f in fields(self)})

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on ``device``."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


_LABELS: Final = tuple(f.name for f in fields(Batch) if f.name != "image")


def blank_batch(image: Tensor, num_hands: int) -> Batch:
    """Return a batch of ``image`` [*b, 3, s, s] in which nothing is labelled.

    It has the shapes and types of a real one, so a step on it takes the memory of a real step.
    """
    shape, device = image.shape[:-3], image.device
    hands = (*shape, num_hands)

    def missing(*size: int) -> Tensor:
        return torch.full((*hands, *size), torch.nan, device=device)

    def false(*size: int) -> Tensor:
        return torch.zeros(*size, dtype=torch.bool, device=device)

    eye = torch.eye(3, device=device)
    number = torch.zeros(shape, dtype=torch.int64, device=device)
    return Batch(
        image=image,
        K=eye.expand(*shape, 3, 3),
        A_input_from_frame=eye[:2].expand(*shape, 2, 3),
        R_input_from_cam=eye.expand(*shape, 3, 3),
        joints_3d=missing(21, 3),
        joint_valid=false(*hands, 21),
        theta_rotmat=missing(16, 3, 3),
        beta=missing(10),
        transl=missing(3),
        has_joints=false(*hands),
        has_mano=false(*hands),
        has_beta=false(*hands),
        is_right=~false(*hands),
        mirrored=false(*shape),
        object_id=torch.full_like(number, -1),
        object_pose=torch.full((*shape, 3, 4), torch.nan, device=device),
        object_arti_rad=torch.full(shape, torch.nan, device=device),
        has_object=false(*shape),
        joint_set=number,
        sample_id=number,
        is_real=~false(*shape),
    )
