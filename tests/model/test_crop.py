import importlib
import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from model.geometry import crop
from tests.strategies import affines, angles, flags, squares


def _dot(center_xy: tuple[float, float], side: int, sigma: float) -> np.ndarray:
    """Render a Gaussian dot; pixel (0, 0) is a centre."""
    y, x = np.mgrid[:side, :side]
    squared = (x - center_xy[0]) ** 2 + (y - center_xy[1]) ** 2
    return np.asarray(255 * np.exp(-squared / (2 * sigma**2)), np.float32)


def _centroid(image: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.asarray([(x * image).sum(), (y * image).sum()] / image.sum())


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.5, -2.1])
def test_a_rendered_dot_lands_where_the_matrix_says(angle: float, mirror: bool) -> None:  # noqa: FBT001
    dot = (70.3, 81.6)
    A = crop.square_crop_affine(
        torch.tensor([75.2, 78.9]).double(),
        torch.tensor(64.0).double(),
        96,
        rotation_rad=torch.tensor(angle).double(),
        mirror=torch.tensor(mirror),
    )
    warped = cv2.warpAffine(_dot(dot, 160, 2.5), A.numpy(), (96, 96), flags=cv2.INTER_CUBIC)
    expected = crop.apply(A, torch.tensor([dot]).double())[0].numpy()
    # OpenCV rounds source positions to 1/32 px, that is 0.05 px in this crop.
    np.testing.assert_allclose(_centroid(warped), expected, atol=0.05)


def test_turn_is_clockwise_on_screen_and_mirror_comes_first() -> None:
    center, size = torch.tensor([10.0, 20.0]), torch.tensor(8.0)
    right_of_center = torch.tensor([[12.0, 20.0]])
    quarter, yes = torch.tensor(math.pi / 2), torch.ones((), dtype=torch.bool)
    turned = crop.square_crop_affine(center, size, 8, rotation_rad=quarter)
    torch.testing.assert_close(crop.apply(turned, right_of_center), torch.tensor([[3.5, 5.5]]))
    both = crop.square_crop_affine(center, size, 8, rotation_rad=quarter, mirror=yes)
    torch.testing.assert_close(crop.apply(both, right_of_center), torch.tensor([[3.5, 1.5]]))


@given(squares())
def test_corners_of_the_square_land_on_the_outer_edges(square: tuple[Tensor, Tensor, int]) -> None:
    center, size, out_px = square
    A = crop.square_crop_affine(center, size, out_px)
    corners = center + size / 2 * torch.tensor([[-1.0, -1], [1, 1], [-1, 1]]).double()
    low, high = -0.5, out_px - 0.5
    expected = torch.tensor([[low, low], [high, high], [low, high]]).double()
    torch.testing.assert_close(crop.apply(A, corners), expected, rtol=0, atol=1e-9)


@given(squares(), angles(), flags())
def test_linear_part_is_scaled_turn_after_flip(
    square: tuple[Tensor, Tensor, int], angle: Tensor, mirror: Tensor
) -> None:
    center, size, out_px = square
    A = crop.square_crop_affine(center, size, out_px, rotation_rad=angle, mirror=mirror)
    c, s, f = math.cos(angle), math.sin(angle), -1.0 if mirror else 1.0
    expected = out_px / float(size) * np.array([[c, -s], [s, c]]) @ np.diag([f, 1])
    np.testing.assert_allclose(A[:, :2].numpy(), expected, atol=1e-12)
    middle = crop.apply(A, center[None])[0].numpy()
    np.testing.assert_allclose(middle, (out_px - 1) / 2, atol=1e-9)


def test_whole_image_crop_is_opencv_resize() -> None:
    image = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    A = crop.square_crop_affine(torch.tensor([15.5, 15.5]), torch.tensor(32.0), 64)
    warped = cv2.warpAffine(image, A.double().numpy(), (64, 64), borderMode=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(warped, cv2.resize(image, (64, 64)), atol=1e-6)


@given(affines(), affines())
def test_compose_and_invert_match_3x3_algebra(first: Tensor, second: Tensor) -> None:
    product = crop.to_3x3(second) @ crop.to_3x3(first)
    composed = crop.to_3x3(crop.compose(second, first))
    torch.testing.assert_close(composed, product, rtol=1e-12, atol=1e-9)
    inverse = np.linalg.inv(crop.to_3x3(first).numpy())
    np.testing.assert_allclose(crop.to_3x3(crop.invert(first)).numpy(), inverse, atol=1e-9)
    identity = crop.compose(crop.invert(first), first)
    torch.testing.assert_close(identity, torch.eye(3).double()[:2], rtol=0, atol=1e-9)


@given(affines())
def test_corner_origin_is_a_shift_of_both_sides(A: Tensor) -> None:
    half = torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]).double()
    expected = (half @ crop.to_3x3(A) @ torch.linalg.inv(half))[:2]
    torch.testing.assert_close(crop.to_corner_origin(A), expected, rtol=0, atol=1e-9)


def test_dali_with_corner_origin_equals_opencv() -> None:
    dali: Any = importlib.import_module("nvidia.dali")  # ships no complete types

    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 2)
    A = torch.tensor([[1.1, -0.3, 5.2], [0.25, 0.9, -4.1]])

    pipe = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        warped = dali.fn.warp_affine(
            dali.types.Constant(image, device="cpu"),
            matrix=crop.to_corner_origin(A).flatten().tolist(),
            inverse_map=False,
            size=(64, 64),
            fill_value=0,
        )
        pipe.set_outputs(warped)
    pipe.build()
    actual = np.asarray(pipe.run()[0].at(0)).astype(int)
    expected = cv2.warpAffine(image, A.double().numpy(), (64, 64)).astype(int)
    assert np.abs(actual - expected).max() <= 1


def test_leading_dimensions_and_dtype_are_kept() -> None:
    center, size = torch.rand(2, 5, 2), torch.rand(2, 5) + 1
    A = crop.square_crop_affine(center, size, 56, rotation_rad=size, mirror=size > 1.5)
    assert A.shape == (2, 5, 2, 3)
    assert A.dtype == torch.float32
    alone = crop.square_crop_affine(
        center[1, 3], size[1, 3], 56, rotation_rad=size[1, 3], mirror=size[1, 3] > 1.5
    )
    assert torch.equal(A[1, 3], alone)
    assert crop.apply(A, torch.rand(2, 5, 4, 2)).shape == (2, 5, 4, 2)
    assert crop.to_3x3(crop.invert(A)).shape == (2, 5, 3, 3)


def test_empty_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="out_px must be positive, got 0"):
        crop.square_crop_affine(torch.zeros(2), torch.tensor(1.0), 0)
