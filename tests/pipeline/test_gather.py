import dataclasses
import itertools

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.geometry.crop import square_crop_affine
from pipeline import gather as gather_module
from pipeline.augment import identity
from pipeline.gather import GatherParams, InputFormat, gather, gather_params, recolour, warp

RNG = np.random.default_rng(0)
SIDE = 24
PIXELS = torch.from_numpy(RNG.integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8))
PLAIN = InputFormat(size_px=SIDE, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3, dtype=torch.float32)
"""Leaves the values 0..255."""


def q16(A: list[list[float]]) -> Tensor:
    params = identity(1, torch.device("cpu"))
    return gather_params(torch.tensor([A], dtype=torch.float64), params, SIDE).A_q16


def random_affines(num: int, seed: int = 0) -> Tensor:
    """Turned, mirrored, scaled crops, many of them beyond the border: ``A_cache_from_input``."""
    g = torch.Generator().manual_seed(seed)
    center = torch.rand(num, 2, generator=g).double() * 40 - 8
    size = 10 + 30 * torch.rand(num, generator=g).double()
    angle = (torch.rand(num, generator=g).double() - 0.5) * 6.28
    mirror = torch.arange(num) % 2 == 1
    return square_crop_affine(center, size, SIDE, rotation_rad=angle, mirror=mirror)


def warp_of_ints(image: NDArray[np.uint8], A: list[list[int]], size: int) -> NDArray[np.int64]:
    """The module's formulas with Python's integers, one pixel and channel at a time."""
    side = image.shape[0]
    out = np.zeros((size, size, 3), np.int64)
    for v, u in itertools.product(range(size), range(size)):
        X8 = (A[0][0] * u + A[0][1] * v + A[0][2] + 128) // 256
        Y8 = (A[1][0] * u + A[1][1] * v + A[1][2] + 128) // 256
        x, fx, y, fy = X8 // 256, X8 % 256, Y8 // 256, Y8 % 256
        xs = [min(max(x + step, 0), side - 1) for step in (0, 1)]
        ys = [min(max(y + step, 0), side - 1) for step in (0, 1)]
        for c in range(3):
            top = (256 - fx) * int(image[ys[0], xs[0], c]) + fx * int(image[ys[0], xs[1], c])
            low = (256 - fx) * int(image[ys[1], xs[0], c]) + fx * int(image[ys[1], xs[1], c])
            out[v, u, c] = ((256 - fy) * top + fy * low + 32768) // 65536
    return out


def test_warp_is_the_specification_bit_for_bit() -> None:
    A_q16 = (random_affines(6) * 65536).round().int()
    index = torch.tensor([4, 0, 2, 2, 1, 3])
    warped = warp(PIXELS, index, A_q16, 17)
    for k in range(6):
        expected = warp_of_ints(PIXELS[index[k]].numpy(), A_q16[k].tolist(), 17)
        np.testing.assert_array_equal(warped[k].numpy(), expected)


@pytest.mark.parametrize(
    ("A", "expected"),
    [
        ([[1, 0, 0], [0, 1, 0]], PIXELS[3]),
        ([[-1, 0, SIDE - 1], [0, 1, 0]], PIXELS[3].flip(1)),
        ([[0, 1, 0], [1, 0, 0]], PIXELS[3].transpose(0, 1)),
        ([[1, 0, 10**4], [0, 1, 0]], PIXELS[3][:, -1:].expand(-1, SIDE, -1)),
        ([[1, 0, 0], [0, 1, -(10**4)]], PIXELS[3][:1].expand(SIDE, -1, -1)),
    ],
    ids=["identity", "mirror", "transpose", "far right", "far above"],
)
def test_whole_pixels_are_copied(A: list[list[float]], expected: Tensor) -> None:
    warped = warp(PIXELS, torch.tensor([3]), q16(A), SIDE)[0]
    assert torch.equal(warped.to(torch.uint8), expected)


def test_warp_is_near_exact_bilinear_and_opencv() -> None:
    smooth = cv2.GaussianBlur(RNG.integers(0, 256, (SIDE, SIDE, 3)).astype(np.float32), (0, 0), 1.5)
    image = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)  # type: ignore[call-overload]
    step = max(np.abs(np.diff(image.astype(int), axis=axis)).max() for axis in (0, 1))
    for A in random_affines(8, seed=3):
        A_q16 = (A[None] * 65536).round().int()
        ours = warp(torch.from_numpy(image)[None], torch.tensor([0]), A_q16, SIDE)[0].numpy()
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        float_image = image.astype(np.float32)
        theirs = cv2.warpAffine(
            float_image, A.numpy(), (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        # ours: half of 1/256 px per axis by the coordinate's rounding, 2^-16 * 24 by the matrix's,
        # half a level by the result's; OpenCV: half of 1/32 px per axis
        bound = 0.5 + 2 * step * (1 / 512 + 24 * 2**-16 + 1 / 64)
        assert np.abs(ours - theirs).max() <= bound
        exact = bilinear(float_image.astype(np.float64), A.numpy())
        assert np.abs(ours - exact).max() <= 0.5 + 2 * step * (1 / 512 + 24 * 2**-16)


def bilinear(image: NDArray[np.float64], A: NDArray[np.float64]) -> NDArray[np.float64]:
    side = image.shape[0]
    out = np.zeros((SIDE, SIDE, 3))
    for v, u in itertools.product(range(SIDE), range(SIDE)):
        x, y = A @ [u, v, 1]
        total = np.zeros(3)
        for i, j in itertools.product((0, 1), (0, 1)):
            px, py = int(np.floor(x)) + i, int(np.floor(y)) + j
            weight = (1 - abs(x - px)) * (1 - abs(y - py))
            total += weight * image[min(max(py, 0), side - 1), min(max(px, 0), side - 1)]
        out[v, u] = total
    return out


def test_colour_erase_and_normalisation_match_one_pixel_at_a_time() -> None:
    form = InputFormat(size_px=4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), dtype=torch.float32)
    warped = torch.from_numpy(RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.int32))
    colour = torch.from_numpy(RNG.normal(0, 1, (2, 3, 4)).astype(np.float32))
    erase = torch.tensor([[1, -3, 3, 2], [0, 0, 0, 0]], dtype=torch.int32)
    out = torch.empty(2, 3, 4, 4)
    recolour(warped, colour, erase, form, out=out)
    clamped = 0
    for k, c, v, u in itertools.product(range(2), range(3), range(4), range(4)):
        M, p = colour[k, c].double(), warped[k, v, u].double()
        value = float(M[:3] @ p + M[3])
        clamped += not 0 <= value <= 255
        expected = (min(max(value, 0.0), 255.0) / 255 - form.mean[c]) / form.std[c]
        if k == 0 and 1 <= u < 3 and v < 2:
            expected = 0.0
        # float32 sums of magnitude 1000, divided by 255 * 0.2
        assert out[k, c, v, u].item() == pytest.approx(expected, abs=1e-5)
    assert clamped > 10


def test_the_sample_alone_is_the_sample_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    index = torch.arange(23) % 5
    params = GatherParams(
        A_q16=(random_affines(23) * 65536).round().int(),
        colour=torch.rand(23, 3, 4),
        erase_xyxy=torch.randint(0, SIDE, (23, 4), dtype=torch.int32),
    )
    image = gather(PIXELS, index, params, PLAIN)
    monkeypatch.setattr(gather_module, "HOST_CHUNK", 1)
    assert torch.equal(gather(PIXELS, index, params, PLAIN), image)
    assert image.is_contiguous()


def test_parameters_are_rounded_half_to_even() -> None:
    A = torch.tensor([[[1.0, -0.5, 2.5], [1.5, 3.4, -2.6]]], dtype=torch.float64) / 65536
    erase = torch.tensor([[0.0, 0.126, 0.37, 1.2]], dtype=torch.float64)
    how = dataclasses.replace(identity(1, torch.device("cpu")), erase=erase)
    params = gather_params(A, how, 8)
    assert params.A_q16.tolist() == [[[1, 0, 2], [2, 3, -3]]]
    assert params.erase_xyxy.tolist() == [[0, 1, 3, 10]]


def test_bfloat16_is_the_rounded_float32() -> None:
    params = gather_params(random_affines(3), identity(3, torch.device("cpu")), SIDE)
    exact = gather(PIXELS, torch.arange(3), params, PLAIN)
    half = InputFormat(size_px=SIDE, mean=PLAIN.mean, std=PLAIN.std, dtype=torch.bfloat16)
    assert torch.equal(gather(PIXELS, torch.arange(3), params, half), exact.bfloat16())


def test_identity_parameters_change_no_value() -> None:
    A = torch.eye(2, 3, dtype=torch.float64).expand(5, 2, 3)
    params = gather_params(A, identity(5, torch.device("cpu")), SIDE)
    image = gather(PIXELS, torch.arange(5), params, PLAIN)
    assert torch.equal(image.round().to(torch.uint8), PIXELS.permute(0, 3, 1, 2))


def test_largest_configuration_stays_within_int32() -> None:
    """A corner of the cache's widest crop: every partial sum of the coordinate fits."""
    from pipeline.config import MAX_CACHE_PX

    side = torch.tensor([float(MAX_CACHE_PX)]).double()
    for angle, mirror in itertools.product(np.linspace(-np.pi, np.pi, 17), (False, True)):
        # shift 0.5, scale 1.5: the limits of AugmentConfig; margin 1 keeps the most pixels
        A = square_crop_affine(
            side[:, None].expand(1, 2),
            side * 1.5,
            8,
            rotation_rad=torch.tensor([angle]),
            mirror=torch.tensor([mirror]),
        )
        inverse = np.linalg.inv(np.vstack([A[0].numpy(), [0, 0, 1]]))[:2] * 65536
        partial = np.abs(inverse) @ [7, 7, 1]
        assert partial.max() + 128 < 2**31
