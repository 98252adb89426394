"""Math functions of the loss kernels that Triton lacks without CUDA's libdevice.

Uses only ``tl`` operations that the interpreter supports.
"""

import triton
import triton.language as tl

_TAN_22_5 = tl.constexpr(0.41421356237309503)
_QUARTER_PI = tl.constexpr(0.78539816339744831)
_HALF_PI = tl.constexpr(1.5707963267948966)
_PI = tl.constexpr(3.1415926535897931)


@triton.jit
def sign(x):  # type: ignore[no-untyped-def]
    """Return -1, 0 or 1; NaN for NaN, so that a NaN is not silently lost in a gradient."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def reciprocal_length(squared):  # type: ignore[no-untyped-def]
    """Return ``1 / sqrt(squared)``, and 0 for 0: a zero vector's length then has gradient 0."""
    is_zero = squared == 0
    return tl.where(is_zero, 0.0, 1.0 / tl.sqrt_rn(tl.where(is_zero, 1.0, squared)))


@triton.jit
def log1p(x):  # type: ignore[no-untyped-def]
    """Return log(1 + x) for x in [0, 1], relative error 2e-7.

    2 artanh(x / (2 + x)) as a series; the GPU's own logarithm has an absolute error of 2e-7 near
    1, however small the result.
    """
    s = x / (2.0 + x)
    z = s * s
    tail = z * (1.0 / 9 + z * (1.0 / 11 + z * (1.0 / 13 + z * (1.0 / 15))))
    return 2.0 * s * (1.0 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + tail))))


@triton.jit
def atan2_upper(y, x):  # type: ignore[no-untyped-def]
    """Return the angle of (x, y) for y >= 0, in [0, pi], error 3e-7.

    Coefficients of Cephes' atanf.
    """
    a = tl.abs(x)
    large, small = tl.where(a > y, a, y), tl.where(a > y, y, a)
    t = small / tl.where(large == 0, 1.0, large)
    is_steep = t > _TAN_22_5
    t = tl.where(is_steep, (t - 1.0) / (t + 1.0), t)
    z = t * t
    tail = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z
    angle = (tail - 3.33329491539e-1) * z * t + t + tl.where(is_steep, _QUARTER_PI, 0.0)
    angle = tl.where(y > a, _HALF_PI - angle, angle)
    return tl.where(x < 0, _PI - angle, angle)


@triton.jit
def load3(at, stride: tl.constexpr, mask):  # type: ignore[no-untyped-def]
    """Load three numbers ``stride`` apart as float32, 0 where ``mask`` is False."""
    return (
        tl.load(at, mask=mask, other=0.0).to(tl.float32),
        tl.load(at + stride, mask=mask, other=0.0).to(tl.float32),
        tl.load(at + 2 * stride, mask=mask, other=0.0).to(tl.float32),
    )


@triton.jit
def keep3(mask, x, y, z):  # type: ignore[no-untyped-def]
    """Return three tensors, 0 where ``mask`` is False."""
    return tl.where(mask, x, 0.0), tl.where(mask, y, 0.0), tl.where(mask, z, 0.0)


@triton.jit
def count_hands(has, sample, HANDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return how many hands of a sample have a flag, as a float."""
    count = 0.0
    for h in tl.static_range(HANDS):
        count += (tl.load(has + sample * HANDS + h) != 0).to(tl.float32)
    return count


@triton.jit
def put(values, seen, row: tl.constexpr, at, num, value, is_seen):  # type: ignore[no-untyped-def]
    """Write a term of sample ``at`` into row ``row`` of both tables [terms, num]."""
    tl.store(values + row * num + at, value)
    tl.store(seen + row * num + at, is_seen)
