"""Palm pose and grasp aperture, computed from the joints and thus in the frame of the joints.

Equal to the store's columns ``palm_pose`` and ``aperture_m`` where there is no augmentation.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.hand import JOINT_NAMES, ROOT, TIPS

_INDEX_MCP = JOINT_NAMES.index("index_mcp")
_LITTLE_MCP = JOINT_NAMES.index("little_mcp")
_THUMB_TIP, _INDEX_TIP = TIPS[:2]


def palm_pose(
    joints_3d: Float[Tensor, "*b 21 3"], is_right: Bool[Tensor, "*b"]
) -> Float[Tensor, "*b 3 4"]:
    """Return the palm pose ``[R | t]``: palm frame to the frame of the joints, metres.

    Origin: mean of wrist, index knuckle and little knuckle. x: from the wrist to the midpoint of
    the two knuckles. z: normal to the three, on the grasping (palmar) side of either hand.
    y = z x x: towards the little finger of a right hand, the index finger of a left one. NaN where
    the three joints are NaN or collinear.

    Args:
        joints_3d: Standard order, any frame.
        is_right: Apparent side of the hand: the opposite side if the hand is mirrored.
    """
    wrist, index, little = (joints_3d[..., j, :] for j in (ROOT, _INDEX_MCP, _LITTLE_MCP))
    x = _unit((index + little) / 2 - wrist)
    side = torch.where(is_right, 1.0, -1.0).to(joints_3d.dtype)[..., None]
    z = _unit(torch.linalg.cross(index - wrist, little - wrist) * side)
    y = torch.linalg.cross(z, x)
    return torch.stack((x, y, z, (wrist + index + little) / 3), -1)


def aperture_m(joints_3d: Float[Tensor, "*b 21 3"]) -> Float[Tensor, "*b"]:
    """Return the grasp aperture: distance between thumb tip and index fingertip, metres."""
    apart = joints_3d[..., _THUMB_TIP, :] - joints_3d[..., _INDEX_TIP, :]
    length: Tensor = torch.linalg.vector_norm(apart, dim=-1)
    return length


def _unit(vectors: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length
