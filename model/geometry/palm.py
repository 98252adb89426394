"""Palm pose and aperture of hands, as functions of the joints: they move with them.

The same as the store's columns ``palm_pose`` and ``aperture_m`` where nothing was turned.
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
    """Return ``[R | t]`` from the palm's frame to that of the joints, metres.

    Origin: mean of wrist, index knuckle and little knuckle. x: from the wrist to the middle of the
    two knuckles. z: normal to the three, to the side that grasps, on either hand. y = z x x: to the
    little finger of a right hand, to the index finger of a left one. NaN where the three joints
    have none.

    Args:
        joints_3d: Standard order, any frame.
        is_right: The side that the hand looks like: of a mirrored hand the other one.
    """
    wrist, index, little = (joints_3d[..., j, :] for j in (ROOT, _INDEX_MCP, _LITTLE_MCP))
    x = _unit((index + little) / 2 - wrist)
    side = torch.where(is_right, 1.0, -1.0).to(joints_3d.dtype)[..., None]
    z = _unit(torch.linalg.cross(index - wrist, little - wrist) * side)
    y = torch.linalg.cross(z, x)
    return torch.stack((x, y, z, (wrist + index + little) / 3), -1)


def aperture_m(joints_3d: Float[Tensor, "*b 21 3"]) -> Float[Tensor, "*b"]:
    """Return the distance of thumb tip and index fingertip, metres."""
    apart = joints_3d[..., _THUMB_TIP, :] - joints_3d[..., _INDEX_TIP, :]
    length: Tensor = torch.linalg.vector_norm(apart, dim=-1)
    return length


def _unit(vectors: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length
