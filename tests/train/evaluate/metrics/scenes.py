"""Hands for the scores, awkward ones among them; numpy float64, metres."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

PLAIN, MIRRORED, FLAT_TRUTH, FLAT_PREDICTION, COLLINEAR, NEARLY_RIGHT = range(6)
"""What is special about each hand of a ``Scene``."""
NUM_HANDS = 6
NOT_FLAT = (PLAIN, MIRRORED, NEARLY_RIGHT)
"""Hands whose joints say where a mesh of another vertex count belongs."""


class Scene:
    """Six hands of 21 joints and a mesh, with predictions some millimetres off.

    Where the prediction has another vertex count, only those that are not flat.
    """

    def __init__(self, num_vertices: int = 778) -> None:
        rng = np.random.default_rng(0)
        place = rng.normal([0, 0, 0.6], 0.05, (NUM_HANDS, 1, 3))
        turn = np.linalg.qr(rng.normal(size=(NUM_HANDS, 3, 3)))[0]
        turn *= np.linalg.det(turn)[:, None, None]
        self.joints, self.pred_joints = self._points(rng, 21, place, turn)
        self.vertices, pred = self._points(rng, 778, place, turn)
        self.pred_vertices = pred[:, :num_vertices]
        if num_vertices != 778:
            rows = list(NOT_FLAT)
            self.joints, self.pred_joints = self.joints[rows], self.pred_joints[rows]
            self.vertices, self.pred_vertices = self.vertices[rows], self.pred_vertices[rows]

    def _points(
        self, rng: np.random.Generator, num: int, place: np.ndarray, turn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        truth = rng.normal(0, 0.04, (NUM_HANDS, num, 3)) + place
        pred = truth + rng.normal(0, 0.004, truth.shape) + rng.normal(0, 0.003, place.shape)
        pred[MIRRORED] = pred[MIRRORED] * [-1, 1, 1]
        truth[FLAT_TRUTH, :, 2] = 0.6  # all z equal
        pred[FLAT_PREDICTION, :, 2] = 0.7
        pred[COLLINEAR] = place[COLLINEAR] + 0.05 * rng.normal(size=(num, 1)) * turn[COLLINEAR, 0]
        pred[NEARLY_RIGHT] = truth[NEARLY_RIGHT] + rng.normal(0, 0.001, (num, 3))
        # A similarity for the alignment to find.
        pred[PLAIN] = 0.9 * (pred[PLAIN] - place[PLAIN]) @ turn[PLAIN] + place[PLAIN]
        return truth, pred

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return what the oracles take: true joints, joints, true vertices, vertices."""
        return self.joints, self.pred_joints, self.vertices, self.pred_vertices

    def tensors(self) -> list[Tensor]:
        """Return what the accumulators take: joints, true joints, vertices, true vertices."""
        return to_tensors(self.pred_joints, self.joints, self.pred_vertices, self.vertices)


def to_tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def stream(update: Callable[..., None], *tensors: Tensor) -> None:
    """Pass batches of 1, 0, 3 and the rest."""
    for rows in (slice(0, 1), slice(1, 1), slice(1, 4), slice(4, None)):
        update(*(tensor[rows] for tensor in tensors))
