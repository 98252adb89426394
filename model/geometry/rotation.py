"""Rotation representations: axis-angle, matrices, quaternions, 6D; mirroring; exact 3x3 products.

Shape legend: ``*b`` = any leading dimensions (``*#b``: they broadcast), n = points.
Matrices act on column vectors; angles are radians. Quaternions carry their order in the name and
have w >= 0. The 6D layout used here is ``[a1 | a2]``: the first column of the matrix, then the
second; ``Rot6dLayout`` names the others.

Products of small matrices are written as multiply and sum: ``torch.matmul`` would round them to
TF32 or, under autocast, to bfloat16, which is up to half a pixel at a focal length of 1000 px.
"""

from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

_SERIES_BELOW = 1e-4
"""Squared argument below which a power series replaces a quotient that is 0/0 at 0.

The first dropped term is below 1e-20 of the value, less than float64 resolves.
"""


def rotate(
    R: Float[Tensor, "*#b 3 3"], points: Float[Tensor, "*#b n 3"]
) -> Float[Tensor, "*#b n 3"]:
    """Return ``R @ p`` for every point; ``R`` may be any 3x3 matrix."""
    return (R[..., None, :, :] * points[..., None, :]).sum(-1)


def matmul_small(
    left: Float[Tensor, "*#b i k"], right: Float[Tensor, "*#b k j"]
) -> Float[Tensor, "*#b i j"]:
    """Return ``left @ right`` in the full precision of the inputs."""
    return (left[..., :, :, None] * right[..., None, :, :]).sum(-2)


def axis_angle_to_rotmat(axis_angle: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Return rotation matrices; exact and differentiable everywhere, the zero vector included.

    Source:
        Rodrigues' formula, ``R = cos(t) I + sin(t)/t [v]x + (1 - cos(t))/t^2 v v^T`` with
        ``t = |v|``; below ``t^2 = 1e-4`` the two quotients are their power series.
    """
    t2 = axis_angle.square().sum(-1)
    is_small = t2 < _SERIES_BELOW
    # Both branches see a safe argument: torch.where would pass on the NaN gradient of sqrt(0).
    x = torch.where(is_small, t2, 0.0)
    t = torch.where(is_small, 1.0, t2).sqrt()
    sinc_series = 1 - x / 6 * (1 - x / 20 * (1 - x / 42 * (1 - x / 72)))
    half_series = 0.5 - x / 24 * (1 - x / 30 * (1 - x / 56 * (1 - x / 90)))
    a = torch.where(is_small, sinc_series, t.sin() / t)
    # 1 - cos(t) as 2 sin^2(t/2): no cancellation just above the switch.
    b = torch.where(is_small, half_series, 0.5 * ((0.5 * t).sin() / (0.5 * t)).square())

    c = 1 - b * t2  # cos(t)
    vx, vy, vz = axis_angle.unbind(-1)
    bx, by, bz = b * vx, b * vy, b * vz
    ax, ay, az = a * vx, a * vy, a * vz
    entries = (
        c + bx * vx, bx * vy - az, bx * vz + ay,
        by * vx + az, c + by * vy, by * vz - ax,
        bz * vx - ay, bz * vy + ax, c + bz * vz,
    )  # fmt: skip
    return torch.stack(entries, -1).reshape(*t2.shape, 3, 3)


def rotmat_to_axis_angle(R: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """Return axis-angle vectors with angles in [0, pi]; stable near 0 and near pi.

    At an angle of exactly pi both axes are correct; one of them is returned. The gradient exists
    everywhere else, including at the identity.
    """
    q = rotmat_to_quat_wxyz(R)
    w, v = q[..., 0], q[..., 1:]
    s2 = v.square().sum(-1)
    is_small = s2 < _SERIES_BELOW
    s = torch.where(is_small, 1.0, s2).sqrt()
    w_safe = torch.where(is_small, w, 1.0)  # where the sine is small, the cosine is near 1
    x = torch.where(is_small, s2, 0.0) / w_safe.square()
    series = 2 / w_safe * (1 - x * (1 / 3 - x * (1 / 5 - x * (1 / 7 - x / 9))))
    return v * torch.where(is_small, series, 2 * torch.atan2(s, w) / s)[..., None]


def rotmat_to_quat_wxyz(R: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 4"]:
    """Return unit quaternions (w, x, y, z) with w >= 0.

    Accurate at every angle. At an angle of exactly pi (w = 0) both signs are correct; one of them
    is returned. The gradient exists everywhere else.

    Source:
        The symmetric matrix ``P = 4 q q^T`` of the unit quaternion q = (w, x, y, z) is linear in
        R; its row with the largest diagonal is a well-conditioned multiple of q.
    """
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = R.flatten(-2).unbind(-1)
    wx, wy, wz = r21 - r12, r02 - r20, r10 - r01
    xy, xz, yz = r01 + r10, r02 + r20, r12 + r21
    ww, xx = 1 + r00 + r11 + r22, 1 + r00 - r11 - r22
    yy, zz = 1 - r00 + r11 - r22, 1 - r00 - r11 + r22
    P = torch.stack((ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz), -1)
    P = P.reshape(*ww.shape, 4, 4)
    row = torch.stack((ww, xx, yy, zz), -1).argmax(-1)
    q = P.gather(-2, row[..., None, None].expand(*row.shape, 1, 4)).squeeze(-2)
    q = q / q.norm(dim=-1, keepdim=True)
    return torch.where(q[..., :1] < 0, -q, q)


def quat_wxyz_to_rotmat(quat: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3 3"]:
    """Return the rotation of each quaternion (w, x, y, z).

    Need not be normalised; the sign does not matter. A zero quaternion gives NaN.

    Source:
        ``R = I + 2 / |q|^2 (w [v]x + [v]x^2)`` with v = (x, y, z).
    """
    w, x, y, z = (quat / quat.norm(dim=-1, keepdim=True)).unbind(-1)
    entries = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(entries, -1).reshape(*w.shape, 3, 3)


def quat_xyzw_to_wxyz(quat: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """Return the same quaternions, real part first; scipy and DexYCB put it last."""
    return torch.cat((quat[..., 3:], quat[..., :3]), -1)


def quat_wxyz_to_xyzw(quat: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4"]:
    """Return the same quaternions, real part last."""
    return torch.cat((quat[..., 1:], quat[..., :1]), -1)


def rotation_angle(R: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b"]:
    """Return the angle of each rotation in [0, pi], the geodesic distance from the identity.

    Accurate at every angle, unlike the arc cosine of the trace. The angle has a kink at 0 and at
    pi; its gradient there is 0.

    Source:
        ``atan2(|vee(R - R^T)| / 2, (trace(R) - 1) / 2)``: sine and cosine of the angle.
    """
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = R.flatten(-2).unbind(-1)
    sine = torch.stack((r21 - r12, r02 - r20, r10 - r01), -1).norm(dim=-1) / 2
    return torch.atan2(sine, (r00 + r11 + r22 - 1) / 2)


def rot6d_to_rotmat(d6: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
    """Return rotation matrices from ``[a1 | a2]`` by Gram-Schmidt.

    The result is a rotation unless the two vectors are collinear or one is zero; it is then finite
    but not a rotation.

    Source:
        Zhou et al. 2019, On the Continuity of Rotation Representations, equation 15.
    """
    a1, a2 = d6[..., :3], d6[..., 3:]
    b1 = torch.nn.functional.normalize(a1, dim=-1)
    b2 = torch.nn.functional.normalize(a2 - (b1 * a2).sum(-1, keepdim=True) * b1, dim=-1)
    b3 = torch.linalg.cross(b1, b2)
    return torch.stack((b1, b2, b3), -1)


def rotmat_to_rot6d(R: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 6"]:
    """Return ``[first column | second column]`` of the matrix."""
    return torch.cat((R[..., :, 0], R[..., :, 1]), -1)


class Rot6dLayout(Enum):
    """Order of the six numbers of a 6D rotation; published weights use three layouts.

    The identity is the same in ``house`` and ``pytorch3d``: only other rotations distinguish them.
    """

    house = "house"
    """``[a1 | a2]``, first column, then second: ours, HaMeR, 4D-Humans."""
    hawor = "hawor"
    """The first two columns row by row, so interleaved: HaWoR."""
    pytorch3d = "pytorch3d"
    """First row, then second: PyTorch3D. Orthonormalised as rows."""


def rot6d_from_layout(d6: Float[Tensor, "*b 6"], layout: Rot6dLayout) -> Float[Tensor, "*b 6"]:
    """Convert 6D rotations from another layout to ``[a1 | a2]``.

    Raw network outputs are fine: the result decodes to the rotation that the other layout's own
    Gram-Schmidt gives. For ``pytorch3d`` it is orthonormal, because Gram-Schmidt on rows is not a
    linear map of columns; for the others the same six numbers are reordered.
    """
    if layout is Rot6dLayout.house:
        return d6
    if layout is Rot6dLayout.hawor:
        return torch.cat((d6[..., 0::2], d6[..., 1::2]), -1)
    return rotmat_to_rot6d(rot6d_to_rotmat(d6).mT)


def rot6d_to_layout(d6: Float[Tensor, "*b 6"], layout: Rot6dLayout) -> Float[Tensor, "*b 6"]:
    """Convert 6D rotations from ``[a1 | a2]`` to another layout; inverts ``rot6d_from_layout``.

    The result for ``pytorch3d`` is orthonormal, so there only the rotation survives a round trip.
    """
    if layout is Rot6dLayout.house:
        return d6
    if layout is Rot6dLayout.hawor:
        return torch.stack((d6[..., :3], d6[..., 3:]), -1).flatten(-2)
    return rotmat_to_rot6d(rot6d_to_rotmat(d6).mT)


def mirror_rotmat(R: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Return ``M R M`` with ``M = diag(-1, 1, 1)``: the rotation seen in a mirror across x = 0."""
    top = torch.cat((R[..., :1, :1], -R[..., :1, 1:]), -1)
    rest = torch.cat((-R[..., 1:, :1], R[..., 1:, 1:]), -1)
    return torch.cat((top, rest), -2)


def mirror_axis_angle(axis_angle: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """Return ``(x, -y, -z)``: the axis-angle form of ``mirror_rotmat``."""
    return torch.cat((axis_angle[..., :1], -axis_angle[..., 1:]), -1)
