"""Pinhole cameras: projection, its inverse, and how a camera follows a crop.

Shape legend: ``*b`` = any leading dimensions (``*#b``: they broadcast), n = points.
OpenCV axes: x right, y down, z forward; metres and pixels. ``K`` may have skew or a full upper
left 2x2 block, as after a rotated crop.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.geometry.crop import to_3x3
from model.geometry.rotation import matmul_small, rotate

CROP_EXTENT_M: Final = 0.25
"""Unit of a predicted depth: metric extent of a crop around a hand."""


def project(
    points: Float[Tensor, "*#b n 3"], K: Float[Tensor, "*#b 3 3"]
) -> Float[Tensor, "*#b n 2"]:
    """Project camera-frame points to pixels.

    No epsilon is added to the depth: a point with z = 0 gives infinities or NaN, one behind the
    camera a mirrored pixel. The caller masks both.
    """
    uvw = rotate(K, points)
    return uvw[..., :2] / uvw[..., 2:]


def unproject(
    pixels: Float[Tensor, "*#b n 2"], depth: Float[Tensor, "*#b n"], K: Float[Tensor, "*#b 3 3"]
) -> Float[Tensor, "*#b n 3"]:
    """Return the camera-frame points on the rays of ``pixels`` with ``z = depth`` (metres)."""
    rays = rotate(_inverse(K), torch.cat((pixels, torch.ones_like(pixels[..., :1])), -1))
    return rays * (depth[..., None] / rays[..., 2:])


def focal_px(K: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b"]:
    """Return the focal length, pixels: the geometric mean of both axes, of any 2x2 block."""
    return (K[..., 0, 0] * K[..., 1, 1] - K[..., 0, 1] * K[..., 1, 0]).abs().sqrt()


def in_plane_rotation(angle_rad: Float[Tensor, "*b"]) -> Float[Tensor, "*b 3 3"]:
    """Return rotations about +z (forward); positive angles are clockwise on screen."""
    c, s = angle_rad.cos(), angle_rad.sin()
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    return torch.stack((c, -s, zero, s, c, zero, zero, zero, one), -1).reshape(*c.shape, 3, 3)


def input_rotation(
    angle_rad: Float[Tensor, "*b"], mirror: Bool[Tensor, "*b"]
) -> Float[Tensor, "*b 3 3"]:
    """Return ``R_input_from_cam = in_plane_rotation(angle) @ diag(-1 if mirror else 1, 1, 1)``.

    ``crop.square_crop_affine`` with the same angle and mirror is the same transform of the pixels.
    """
    R = in_plane_rotation(angle_rad)
    flip = 1 - 2 * mirror.to(R.dtype)
    return torch.cat((R[..., :1] * flip[..., None, None], R[..., 1:]), -1)


def camera_after_affine(
    A_input_from_frame: Float[Tensor, "*#b 2 3"],
    K: Float[Tensor, "*#b 3 3"],
    R_input_from_cam: Float[Tensor, "*#b 3 3"],
) -> Float[Tensor, "*#b 3 3"]:
    """Return ``K' = A @ K @ R^-1``, the camera of the warped pixels and the rotated points.

    Projecting ``R_input_from_cam @ p`` with it equals applying ``A_input_from_frame`` to the
    projection of ``p`` with ``K``.

    Args:
        A_input_from_frame: Affine transform from frame pixels to input pixels.
        K: Intrinsics of the frame pixels.
        R_input_from_cam: Orthogonal; a mirror (determinant -1) is allowed.
    """
    return matmul_small(matmul_small(to_3x3(A_input_from_frame), K), R_input_from_cam.mT)


def _inverse(K: Tensor) -> Tensor:
    """Invert 3x3 matrices by cross products; ``linalg.inv`` synchronises to check the result."""
    r0, r1, r2 = K.unbind(-2)
    columns = torch.stack(
        (torch.linalg.cross(r1, r2), torch.linalg.cross(r2, r0), torch.linalg.cross(r0, r1)), -1
    )
    det = (r0 * columns[..., :, 0]).sum(-1)
    return columns / det[..., None, None]


def lift_from_crop(
    place: Float[Tensor, "b n 3"], K: Float[Tensor, "b 3 3"], input_px: int
) -> Float[Tensor, "b n 3"]:
    """Lift crop-relative positions to camera-frame points, metres.

    A position is x and y, the pixel's offset from the crop's centre as a fraction of the input
    side, and the logarithm of the depth in units of the depth at which ``CROP_EXTENT_M`` fills the
    crop.
    """
    pixel = (input_px - 1) / 2 + input_px * place[..., :2]
    return unproject(pixel, _unit_depth(K, input_px) * place[..., 2].exp(), K)


def place_in_crop(
    points: Float[Tensor, "b n 3"], K: Float[Tensor, "b 3 3"], input_px: int
) -> Float[Tensor, "b n 3"]:
    """Return crop-relative positions, the inverse of ``lift_from_crop``; NaN behind the camera."""
    pixel = (project(points, K) - (input_px - 1) / 2) / input_px
    depth = (points[..., 2] / _unit_depth(K, input_px)).log()
    return torch.cat((pixel, depth[..., None]), -1)


def _unit_depth(K: Tensor, input_px: int) -> Tensor:
    """Return the depth at which ``CROP_EXTENT_M`` fills the crop [b, 1], metres."""
    return focal_px(K)[:, None] * (CROP_EXTENT_M / input_px)
