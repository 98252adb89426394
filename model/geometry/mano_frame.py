"""MANO parameters under in-plane rotation and mirroring of the crop; no MANO arrays needed.

Shape legend: ``*b`` = any leading dimensions. MANO's root rotation is about the rest wrist
``J0(beta)``: ``v = R (v_rest - J0) + J0 + transl``.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.geometry.camera import in_plane_rotation
from model.geometry.rotation import matmul_small, mirror_rotmat, rotate


def mano_after_rotation(
    theta_rotmat: Float[Tensor, "*b 16 3 3"],
    transl: Float[Tensor, "*b 3"],
    root_rest: Float[Tensor, "*b 3"],
    angle_rad: Float[Tensor, "*b"],
    mirror: Bool[Tensor, "*b"],
) -> tuple[Float[Tensor, "*b 16 3 3"], Float[Tensor, "*b 3"]]:
    """Return ``(theta_rotmat, transl)`` of the hand under ``input_rotation(angle, mirror)``.

    A mirrored hand decodes with the MANO model of the other side and the same ``beta``; its
    vertices are then ``R_input_from_cam @ vertices`` up to any asymmetry of the two models.

    Args:
        theta_rotmat: Absolute joint rotations, root first.
        transl: MANO translation, metres, smplx's convention.
        root_rest: ``J0(beta)`` of the hand as recorded, metres.
        angle_rad: In-plane rotation, radians, clockwise on screen.
        mirror: True where the sample is mirrored.

    Source:
        With M = diag(-1, 1, 1): joint rotations become ``M R M``, ``t`` and ``J0`` become ``M t``
        and ``M J0``; then ``R_root' = Rz R_root`` and ``t' = Rz (J0 + t) - J0``.
    """
    theta = torch.where(mirror[..., None, None, None], mirror_rotmat(theta_rotmat), theta_rotmat)
    flip = 1 - 2 * mirror.to(transl.dtype)[..., None]
    moved = torch.cat((transl[..., :1] * flip, transl[..., 1:]), -1)
    rest = torch.cat((root_rest[..., :1] * flip, root_rest[..., 1:]), -1)

    Rz = in_plane_rotation(angle_rad)
    root = matmul_small(Rz, theta[..., 0, :, :])
    moved = rotate(Rz, (rest + moved)[..., None, :]).squeeze(-2) - rest
    return torch.cat((root[..., None, :, :], theta[..., 1:, :, :]), -3), moved
