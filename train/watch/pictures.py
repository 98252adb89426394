"""Predictions drawn over the images that the network saw."""

from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from model.draw import draw_points, draw_skeleton, tile
from model.geometry.camera import project
from model.prediction import ObjectPrediction, Prediction, hands_of
from pipeline.batch import Batch
from pipeline.config import PipelineConfig
from pipeline.labels.objects import ObjectModels
from train.losses.scene import posed, surfaces_of

_TRUTH_RGB = (255, 255, 255)
_OBJECT_RGB = (_TRUTH_RGB, (255, 190, 0))
"""Colours of the true and of the predicted points."""
MOST_DRAWN: Final = 16
"""Samples of an image grid."""
_NUM_POINTS = 96
"""Number of points drawn per object."""


@torch.no_grad()
def draw_predictions(
    batch: Batch,
    prediction: Prediction,
    config: PipelineConfig,
    objects: ObjectModels | None = None,
    *,
    most: int = MOST_DRAWN,
) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image grid: each input with the truth (white) under the prediction (colours).

    ``batch`` is one of ``Batch.frames``; ``objects``, the loader's, are drawn as points.
    """
    count = min(most, len(batch.image))
    mean = torch.tensor(config.mean)[:, None, None]
    std = torch.tensor(config.std)[:, None, None]
    pixels = (batch.image[:count].float().cpu() * std + mean).clamp(0, 1) * 255
    images = pixels.round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    K = batch.K[:count].cpu().double()[:, None]
    truth = project(batch.joints_3d[:count].cpu().double(), K).numpy()
    guess = project(hands_of(prediction).joints_3d[:count].cpu().double(), K).numpy()
    valid = (batch.joint_valid & batch.has_joints[..., None])[:count].cpu().numpy()
    surfaces = None
    if prediction.object is not None and objects is not None and objects.names:
        surfaces = _surfaces(batch, prediction.object, objects, K[:, 0], count)
    zoom = max(1, round(256 / images.shape[1]))
    # pixel (0, 0) is a centre: an enlarged pixel's centre moves by (zoom - 1) / 2
    shift = (zoom - 1) / 2
    sheets = []
    for i in range(count):
        canvas = np.repeat(np.repeat(images[i], zoom, 0), zoom, 1)
        for points, rgb in [] if surfaces is None else zip(surfaces, _OBJECT_RGB, strict=True):
            draw_points(canvas, points[i] * zoom + shift, rgb)
        for hand in range(valid.shape[1]):
            mask = valid[i, hand]
            draw_skeleton(canvas, truth[i, hand] * zoom + shift, mask, rgb=_TRUTH_RGB, thickness=1)
            everything = np.ones_like(mask) if mask.any() else mask
            draw_skeleton(canvas, guess[i, hand] * zoom + shift, everything, thickness=2)
        sheets.append(canvas)
    return tile(sheets, columns=4)


def _surfaces(
    batch: Batch,
    prediction: ObjectPrediction,
    objects: ObjectModels,
    K: Float64[Tensor, "c 3 3"],
    count: int,
) -> tuple[Float[np.ndarray, "c p 2"], Float[np.ndarray, "c p 2"]]:
    """Return the pixels of some surface points, true and predicted; NaN without a label."""
    shape = posed(prediction, batch, surfaces_of(objects))
    t = batch.object_pose[..., 3], prediction.transl
    known = shape.known[:count, None, None].cpu()
    true, guess = (
        project((points + where[:, None])[:count, :_NUM_POINTS].cpu().double(), K)
        for points, where in zip((shape.true, shape.pred), t, strict=True)
    )
    return true.where(known, torch.nan).numpy(), guess.where(known, torch.nan).numpy()
