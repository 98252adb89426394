"""The picture of README.md: labels lie where the pixels are."""

import numpy as np
import torch

from benchmarks.picture import COLUMNS, HAND_RGB, TILE_PX, column_of, draw_mesh, draw_outline
from tests.conftest import SampleStore

K = torch.tensor([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]], dtype=torch.float64)
SQUARE = torch.tensor(
    [[-0.1, -0.1, 1], [0.1, -0.1, 1], [0.1, 0.1, 1], [-0.1, 0.1, 1]], dtype=torch.float64
)
FACING = np.array([[0, 2, 1], [0, 3, 2]])
"""Normals towards the camera."""


def test_a_mesh_covers_its_projection_and_only_from_the_front() -> None:
    canvas = np.zeros((200, 200, 3), np.uint8)
    draw_mesh(canvas, SQUARE, FACING[:, ::-1], K, HAND_RGB[0])
    assert not canvas.any()
    draw_mesh(canvas, SQUARE, FACING, K, HAND_RGB[0])
    rows, columns = np.nonzero(canvas.any(-1))
    # pixels 40 to 60 of the input, twice as large
    assert abs(rows.min() - 80.5) <= 2
    assert abs(rows.max() - 120.5) <= 2
    assert abs(columns.min() - 80.5) <= 2
    assert abs(columns.max() - 120.5) <= 2


def test_an_outline_runs_around_the_points() -> None:
    canvas = np.zeros((200, 200, 3), np.uint8)
    grid = torch.linspace(-0.1, 0.1, 21, dtype=torch.float64)
    x, y = torch.meshgrid(grid, grid, indexing="xy")
    draw_outline(canvas, torch.stack((x, y, torch.ones_like(x)), -1).view(-1, 3), K)
    assert canvas[78:84, 100].any()
    assert not canvas[95:106, 95:106].any()


def test_a_column_shows_an_input_and_its_labels(freihand: SampleStore) -> None:
    image, labelled = column_of(COLUMNS[0], freihand.root.parent, seed=0)
    assert image.shape == labelled.shape == (TILE_PX, TILE_PX, 3)
    drawn = np.abs(image.astype(int) - labelled).max(-1) > 40
    assert 0.03 < drawn.mean() < 0.7
