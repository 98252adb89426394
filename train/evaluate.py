"""``python -m train evaluate``: score a run on a split, beside its training set's mean pose."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from model.mano_regressor import ManoRegressor
from model.prediction import HandPrediction
from pipeline.batch import Batch
from pipeline.config import PipelineConfig
from pipeline.loader import Loader
from train.checkpoint import config_of, read_checkpoint
from train.config import EvaluateConfig
from train.device import backbone_dtype, choose_device
from train.mean_pose import MeanPose
from train.metrics import HandScores, ScoreAccumulator
from train.pictures import draw_predictions, write_picture
from train.run import build_model, mean_of, required_mano
from train.step import decode_labels, predict

PROTOCOL: Final = (
    "handloom-hand-1: per hand, mm; MPJPE and MPVPE relative to the wrist; PA with scale, "
    "reflection allowed (FreiHAND's align_w_scale); AUC of PCK 0-50 mm and F-scores on PA"
)
"""Defined in ``train.metrics``."""


def main(config: EvaluateConfig) -> int:
    """Score a run on a split of a store, beside the mean pose of its training set.

    The averaged (EMA) weights are scored, without augmentation, on crops around the labelled box,
    with the dataset's intrinsics. Writes scores.json and pictures.

    Example:
        python -m train evaluate run=runs/first store=build/freihand.zarr split=evaluation
    """
    device = choose_device(config.device)
    payload = read_checkpoint(Path(config.run), device)
    trained = config_of(payload)
    mano = required_mano(trained.model.head, config.mano or trained.mano)
    pipeline = evaluation_pipeline(trained.pipeline, config)
    mean_pose = mean_of(payload)
    dtype = backbone_dtype(trained.precision, device)

    loader = Loader(pipeline, device=device, training=False)
    model = build_model(trained, mano, loader.joint_set, load_weights=False).to(device)
    model.load_state_dict(payload["ema"])
    model.eval()
    ours, baseline = ScoreAccumulator(), ScoreAccumulator()
    out = Path(config.out or Path(config.run) / f"evaluate-{config.split}")
    batches = track(loader, total=len(loader), description="evaluate", transient=True)
    for i, batch in enumerate(batches):
        with torch.inference_mode():
            prediction = predict(model, batch, dtype)
            _score(ours, prediction, batch, model)
            _score(baseline, _mean_prediction(mean_pose, batch), batch, model)
        if i == 0:
            sheet = draw_predictions(batch, prediction, pipeline, most=32)
            write_picture(out / "predictions.png", sheet)

    scores, mean_scores = ours.summary(), baseline.summary()
    record = {
        "protocol": PROTOCOL,
        "store": str(pipeline.store),
        "store_sha256": loader.content_sha256,
        "split": config.split,
        "crop": "box of the labelled joints",
        "camera": "intrinsics of the dataset",
        "step": int(payload["step"]),
        "model": asdict(scores),
        "mean_pose": asdict(mean_scores),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(
        f"{pipeline.store} split={config.split}: {scores.num_hands} hands; crops from the labelled "
        f"box, camera from the dataset; step {payload['step']}\n{PROTOCOL}\n"
        f"pictures: {out / 'predictions.png'}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table(scores, mean_scores))
    return 0


def evaluation_pipeline(trained: PipelineConfig, config: EvaluateConfig) -> PipelineConfig:
    """Return the run's pipeline pointed at the store and split to score."""
    import dataclasses

    return dataclasses.replace(
        trained, store=config.store, split=config.split, subset=1.0, batch_size=config.batch_size
    )


def _score(
    scores: ScoreAccumulator, prediction: HandPrediction, batch: Batch, model: ManoRegressor
) -> None:
    valid = (batch.joint_valid & batch.has_joints[..., None])[:, 0]
    keep = valid.any(-1)
    joints, target = prediction.joints_3d[keep, 0], batch.joints_3d[keep, 0]
    if prediction.vertices is None:
        scores.update(joints, target, valid[keep])
        return
    mesh = decode_labels(model.mano, batch)
    has_mesh = (batch.has_mano & batch.has_beta)[keep, 0]
    scores.update(
        joints,
        target,
        valid[keep],
        vertices=prediction.vertices[keep, 0],
        target_vertices=mesh.vertices[keep, 0],
        has_vertices=has_mesh,
    )


def _mean_prediction(mean: MeanPose, batch: Batch) -> HandPrediction:
    """Return the mean pose, in front of the camera, for every sample."""
    shape = (len(batch.image), 1)
    place = torch.tensor([0.0, 0.0, 0.5], device=batch.image.device)
    joints = mean.joints_rel.to(place.device) + place
    vertices = None if mean.vertices_rel is None else mean.vertices_rel.to(place.device) + place
    return HandPrediction(
        joints_3d=joints.expand(*shape, *joints.shape),
        vertices=None if vertices is None else vertices.expand(*shape, *vertices.shape),
    )


_ROWS: Final = (
    ("MPJPE mm", "mpjpe_mm", 2),
    ("PA-MPJPE mm", "pa_mpjpe_mm", 2),
    ("MPVPE mm", "mpvpe_mm", 2),
    ("PA-MPVPE mm", "pa_mpvpe_mm", 2),
    ("AUC joints", "auc_j", 3),
    ("AUC vertices", "auc_v", 3),
    ("F@5", "f5", 3),
    ("F@15", "f15", 3),
)


def table(scores: HandScores, mean_scores: HandScores) -> Table:
    """Return the scores beside the mean pose's and their ratio."""
    sheet = Table()
    for name in ("metric", "model", "mean pose", "ratio"):
        sheet.add_column(name, justify="left" if name == "metric" else "right")
    for label, key, digits in _ROWS:
        value, base = getattr(scores, key), getattr(mean_scores, key)
        if value is None or base is None:
            continue
        ratio = f"{value / base:.2f}" if base else "-"
        sheet.add_row(label, f"{value:.{digits}f}", f"{base:.{digits}f}", ratio)
    return sheet
