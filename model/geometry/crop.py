"""Affine transforms of crops: image pixels to crop pixels and back.

Shape legend: ``*b`` = any leading dimensions (``*#b``: they broadcast), n = points.
``A_dst_from_src`` is a 2x3 matrix that acts on ``[x, y, 1]``. Pixel (0, 0) is the centre of the top
left pixel, so an image of ``s`` pixels covers [-1/2, s - 1/2]; only ``to_corner_origin`` uses
another convention.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.geometry.rotation import matmul_small


def compose(
    A_c_from_b: Float[Tensor, "*#b 2 3"], A_b_from_a: Float[Tensor, "*#b 2 3"]
) -> Float[Tensor, "*#b 2 3"]:
    """Return the composition ``A_c_from_a``: first ``A_b_from_a``, then ``A_c_from_b``."""
    product = matmul_small(A_c_from_b[..., :2], A_b_from_a)
    return torch.cat((product[..., :2], product[..., 2:] + A_c_from_b[..., 2:]), -1)


def invert(A_dst_from_src: Float[Tensor, "*b 2 3"]) -> Float[Tensor, "*b 2 3"]:
    """Return the inverse ``A_src_from_dst``; a singular matrix gives infinities or NaN."""
    a, b, tx, c, d, ty = A_dst_from_src.flatten(-2).unbind(-1)
    det = a * d - b * c
    entries = (d, -b, b * ty - d * tx, -c, a, c * tx - a * ty)
    return (torch.stack(entries, -1) / det[..., None]).reshape(*det.shape, 2, 3)


def to_3x3(A: Float[Tensor, "*b 2 3"]) -> Float[Tensor, "*b 3 3"]:
    """Return the matrix with the row ``[0, 0, 1]`` appended."""
    zero = torch.zeros_like(A[..., :1, :2])
    return torch.cat((A, torch.cat((zero, torch.ones_like(zero[..., :1])), -1)), -2)


def apply(
    A_dst_from_src: Float[Tensor, "*#b 2 3"], points: Float[Tensor, "*#b n 2"]
) -> Float[Tensor, "*#b n 2"]:
    """Transform points to destination pixels."""
    linear, shift = A_dst_from_src[..., None, :, :2], A_dst_from_src[..., None, :, 2]
    return (linear * points[..., None, :]).sum(-1) + shift


def square_crop_affine(
    center_px: Float[Tensor, "*b 2"],
    size_px: Float[Tensor, "*b"],
    out_px: int,
    *,
    rotation_rad: Float[Tensor, "*b"] | None = None,
    mirror: Bool[Tensor, "*b"] | None = None,
) -> Float[Tensor, "*b 2 3"]:
    """Return the affine transform from a square of the image to the full extent of the crop.

    The 2x2 block is ``out_px / size_px * (R2(rotation) @ diag(-1 if mirror else 1, 1))``: the
    content is mirrored about the centre first, then rotated. ``camera.input_rotation`` is the
    corresponding 3D transform.

    Args:
        center_px: Centre of the square, image pixels (x, y).
        size_px: Side of the square, image pixels; must be positive.
        out_px: Side of the crop, crop pixels.
        rotation_rad: Rotation of the content, radians, clockwise on screen. None means none.
        mirror: True flips x. None means no flip.

    Returns:
        ``A_out_from_img``. Without rotation the corners ``center -+ size / 2`` map to -1/2 and
        ``out_px - 1/2``, the outer edges of the crop.

    Raises:
        ValueError: If ``out_px`` is not positive.
    """
    if out_px <= 0:
        raise ValueError(f"out_px must be positive, got {out_px}")
    scale = out_px / size_px
    if rotation_rad is None:
        cos, sin = scale, torch.zeros_like(scale)
    else:
        cos, sin = scale * rotation_rad.cos(), scale * rotation_rad.sin()
    flip = torch.ones_like(scale) if mirror is None else 1 - 2 * mirror.to(scale.dtype)
    linear = torch.stack((cos * flip, -sin, sin * flip, cos), -1).reshape(*scale.shape, 2, 2)
    shift = (out_px - 1) / 2 - (linear * center_px[..., None, :]).sum(-1)
    return torch.cat((linear, shift[..., None]), -1)


def to_corner_origin(A: Float[Tensor, "*b 2 3"]) -> Float[Tensor, "*b 2 3"]:
    """Return the same transform between corner-origin pixels, for DALI's ``warp_affine``.

    There pixel (0, 0) covers [0, 1]: ``A' = T(+1/2) A T(-1/2)`` with T a translation of both axes.
    """
    linear, shift = A[..., :2], A[..., 2:]
    return torch.cat((linear, shift + 0.5 - 0.5 * linear.sum(-1, keepdim=True)), -1)
