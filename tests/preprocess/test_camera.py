import cv2
import numpy as np
import pytest
import torch

from model.geometry import camera as torch_camera
from preprocess.camera import pixels, project

K = np.array([[480.0, 1.5, 320.0], [0.0, 470.0, 240.0], [0.0, 0.0, 1.0]])
POINTS = np.random.default_rng(0).normal([0, 0, 0.6], 0.1, (3, 2, 21, 3))


def test_projection_agrees_with_opencv_and_torch() -> None:
    no_skew = K * (K != 1.5)
    for hands in POINTS:
        for points in hands:
            expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), no_skew, None)
            for found in (project(points, no_skew), pixels(points, no_skew)):
                np.testing.assert_allclose(found, expected[:, 0], atol=1e-9)
    theirs = torch_camera.project(torch.from_numpy(POINTS), torch.from_numpy(K))
    np.testing.assert_allclose(project(POINTS, K), theirs.numpy(), atol=1e-9)


def test_every_row_has_its_camera() -> None:
    cameras = np.stack([K, K + np.diag([10.0, 20.0, 0.0]), 2 * K + np.diag([0.0, 0.0, -1.0])])
    found = project(POINTS, cameras[:, None])
    for row in range(3):
        np.testing.assert_allclose(found[row], project(POINTS[row], cameras[row]), atol=1e-9)


@pytest.mark.parametrize("z", [0.0, -0.5])
def test_no_pixel_at_or_behind_the_camera(z: float) -> None:
    assert np.isnan(project(np.array([[[[0.1, 0.2, z]]]]), K)).all()
    assert np.isnan(project(np.array([[np.nan, 0.2, 1.0]]), K)).any()


def test_pixels_behind_the_camera_are_mirrored() -> None:
    points = np.array([[0.1, 0.2, 0.5]])
    np.testing.assert_allclose(pixels(-points, K), pixels(points, K))
