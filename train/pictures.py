"""Predictions drawn over the images that the network saw."""

from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from model.draw import draw_skeleton, tile
from model.geometry.camera import project
from model.prediction import HandPrediction
from pipeline.batch import Batch
from pipeline.config import PipelineConfig

_TRUTH_RGB = (255, 255, 255)


@torch.no_grad()
def draw_predictions(
    batch: Batch, prediction: HandPrediction, config: PipelineConfig, *, most: int = 16
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a sheet: each input image with the truth (white) under the prediction (colours)."""
    count = min(most, len(batch.image))
    mean = torch.tensor(config.mean)[:, None, None]
    std = torch.tensor(config.std)[:, None, None]
    pixels = (batch.image[:count].float().cpu() * std + mean).clamp(0, 1) * 255
    images = pixels.round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    K = batch.K[:count].cpu().double()[:, None]
    truth = project(batch.joints_3d[:count].cpu().double(), K).numpy()
    guess = project(prediction.joints_3d[:count].cpu().double(), K).numpy()
    valid = (batch.joint_valid & batch.has_joints[..., None])[:count].cpu().numpy()
    zoom = max(1, round(256 / images.shape[1]))
    sheets = []
    for i in range(count):
        canvas = np.repeat(np.repeat(images[i], zoom, 0), zoom, 1)
        for hand in range(valid.shape[1]):
            # pixel (0, 0) is a centre: an enlarged pixel's centre moves by (zoom - 1) / 2
            shift = (zoom - 1) / 2
            mask = valid[i, hand]
            draw_skeleton(canvas, truth[i, hand] * zoom + shift, mask, rgb=_TRUTH_RGB, thickness=1)
            everything = np.ones_like(mask) if mask.any() else mask
            draw_skeleton(canvas, guess[i, hand] * zoom + shift, everything, thickness=2)
        sheets.append(canvas)
    return tile(sheets, columns=4)


def write_picture(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an RGB image as PNG, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise OSError(f"cannot write {path}")
