"""Hands drawn at random, for files that a protocol reads."""

from pathlib import Path
from typing import Any

import numpy as np

JOINTS = frozenset({"hands.joints_3d"})
MESH = JOINTS | {"hands.vertices"}
SCENE = MESH | {"hands.theta_rotmat", "object.rotmat"}
"""What networks of three kinds predict."""


def points(rng: np.random.Generator, num: int, num_points: int) -> np.ndarray:
    """Return points [num, num_points, 3] of a hand's size about 0.6 m before the camera, metres."""
    shape = rng.normal(0, 0.04, (num, num_points, 3))
    return np.asarray(shape + np.array([0.02, -0.01, 0.6]) + rng.normal(0, 0.02, (num, 1, 3)))


def near(rng: np.random.Generator, truth: np.ndarray, error: float) -> np.ndarray:
    """Return ``truth`` with noise of ``error`` (same unit) and a common shift."""
    shift = rng.normal(0, error, (len(truth), 1, 3))
    return np.asarray(truth + rng.normal(0, error, truth.shape) + shift)


def save_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write named arrays."""
    np.savez(path, **arrays)
