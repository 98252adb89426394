import numpy as np
import torch

from model.geometry import articulation as torch_articulation
from preprocess.objects.articulation import MOVING_PART, articulated, turn

ANGLES = np.array([0.0, 0.7, -2.5, np.nan])


def test_numpy_and_torch_turn_the_same_way() -> None:
    rng = np.random.default_rng(0)
    points, part = rng.normal(0, 0.1, (50, 3)), rng.integers(0, 2, 50).astype(np.int8)
    angles = torch.from_numpy(ANGLES)
    np.testing.assert_allclose(turn(ANGLES), torch_articulation.turn(angles).numpy(), atol=1e-15)
    theirs = torch_articulation.articulated(
        torch.from_numpy(points).expand(len(ANGLES), 50, 3),
        torch.from_numpy(part == MOVING_PART).expand(len(ANGLES), 50),
        angles,
    )
    np.testing.assert_allclose(articulated(points, part, ANGLES), theirs.numpy(), atol=1e-15)
