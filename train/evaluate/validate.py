"""Validation during training: scores on held-out samples, and overlap with the training set."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from model.mano.layer import ManoLayer
from model.mean_pose import MeanPose
from model.network import Network
from model.prediction import HandPrediction, hands_of
from pipeline.batch import Batch
from pipeline.config import Boundary, PipelineConfig, WindowConfig
from pipeline.loader import Loader
from pipeline.order.parts import Part
from train.config import RunConfig, ValidationConfig
from train.device.distributed import ALONE, Ranks, all_gather
from train.evaluate.metrics.errors import ErrorSums
from train.evaluate.metrics.hand import HandScores, HandSums, ScoreAccumulator
from train.step.mesh import decode_labels
from train.step.step import predict, predict_mean


def validation_pipeline(config: RunConfig) -> PipelineConfig:
    """Return the pipeline of the validation samples: one store, non-overlapping windows."""
    held_out = config.validation
    assert held_out.split is not None
    return dataclasses.replace(
        config.pipeline,
        store=held_out.store or config.pipeline.store,
        split=held_out.split,
        subset=held_out.subset,
        mix={},
        batch_size=max(1, held_out.batch_size // config.pipeline.window.length),
        window=every_frame(config.pipeline.window, config.pipeline.window.length),
    )


def every_frame(window: WindowConfig, stride: int) -> WindowConfig:
    """Return windows that start at every ``stride``-th frame and cover every run to its end.

    Where a window skips frames, one starts at every frame.
    """
    stride = stride if window.step == 1 else 1
    return dataclasses.replace(window, stride=stride, boundary=Boundary.repeat)


def score(
    model: nn.Module,
    mano: ManoLayer | None,
    loader: Loader,
    dtype: torch.dtype,
    ranks: Ranks = ALONE,
) -> HandScores:
    """Return the scores of a model over every sample of a loader, over all ranks.

    Raises:
        ValueError: If no hand of the split can be scored.
    """
    scores = ScoreAccumulator()
    for windows in loader:
        with torch.inference_mode():
            batch = windows.frames()
            prediction = hands_of(predict(model, windows, dtype))
            truth = None
            if mano is not None and prediction.vertices is not None:
                truth = decode_labels(mano, batch).vertices
            add_scores(scores, prediction, batch, truth)
    scores.sums = _over_ranks(scores.sums, ranks)
    return scores.summary()


@dataclass(slots=True)
class Baselines:
    """Scores that need no training, of the same samples as a network's."""

    mean_pose: ScoreAccumulator = field(default_factory=ScoreAccumulator)
    """Mean of the training joints and meshes; it shrinks where hands are seen from all sides."""
    untrained: ScoreAccumulator = field(default_factory=ScoreAccumulator)
    """What the untrained network predicts: with MANO always a whole hand."""

    def add(self, model: Network, mean: MeanPose, batch: Batch, truth: Tensor | None) -> None:
        """Add a batch of single frames; ``truth`` is the mesh of its labels."""
        add_scores(self.mean_pose, _mean_prediction(mean, batch), batch, truth)
        start = predict_mean(model, mean, batch)
        if start is not None:
            add_scores(self.untrained, hands_of(start), batch, truth)

    def scores(self) -> dict[str, HandScores]:
        """Return the scores by name, without that of a network that has no such start."""
        found = {"mean_pose": self.mean_pose, "untrained": self.untrained}
        return {name: one.summary() for name, one in found.items() if one.sums is not None}


def score_baselines(
    model: Network, mean: MeanPose, loader: Loader, ranks: Ranks = ALONE
) -> dict[str, HandScores]:
    """Return the scores of the mean pose and of the untrained network on a loader's samples.

    Raises:
        ValueError: If no hand of the split can be scored.
    """
    baselines = Baselines()
    for windows in loader.label_batches():
        with torch.inference_mode():
            batch = windows.frames()
            truth = None if model.mano is None else decode_labels(model.mano, batch).vertices
            baselines.add(model, mean, batch, truth)
    for one in (baselines.mean_pose, baselines.untrained):
        one.sums = _over_ranks(one.sums, ranks)
    return baselines.scores()


def add_scores(
    scores: ScoreAccumulator, prediction: HandPrediction, batch: Batch, truth: Tensor | None
) -> None:
    """Add a batch; ``truth`` [b, h, 778, 3] is the mesh of its labels."""
    valid = batch.joint_valid & batch.has_joints[..., None]
    keep = valid.any(-1)
    joints, target = prediction.joints_3d[keep], batch.joints_3d[keep]
    if prediction.vertices is None or truth is None:
        scores.update(joints, target, valid[keep])
        return
    has_mesh = (batch.has_mano & batch.has_beta)[keep]
    scores.update(
        joints,
        target,
        valid[keep],
        vertices=prediction.vertices[keep],
        target_vertices=truth[keep],
        has_vertices=has_mesh,
    )


def as_scalars(scores: HandScores) -> dict[str, float]:
    """Return the scores by name, prefixed ``validation/``; those without a hand are left out."""
    return {f"validation/{k}": float(v) for k, v in asdict(scores).items() if v is not None}


def _mean_prediction(mean: MeanPose, batch: Batch) -> HandPrediction:
    """Return the mean pose, in front of the camera, for every sample."""
    place = torch.tensor([0.0, 0.0, 0.5], device=batch.image.device)
    joints = mean.joints_rel.to(place.device) + place
    vertices = None if mean.vertices_rel is None else mean.vertices_rel.to(place.device) + place
    return HandPrediction(
        joints_3d=joints.expand(len(batch), *joints.shape),
        vertices=None if vertices is None else vertices.expand(len(batch), *vertices.shape),
    )


def metric_of(scores: HandScores, config: ValidationConfig) -> float:
    """Return the metric that selects the best checkpoint.

    Raises:
        ValueError: If the split has no hand for it.
    """
    value = getattr(scores, config.metric)
    if value is None:
        raise ValueError(
            f"validation.metric={config.metric} needs meshes, but no hand of split="
            f"{config.split} has one; use mpjpe_mm or pa_mpjpe_mm"
        )
    return float(value)


def shared_with_training(training: Loader, held_out: Loader) -> list[str]:
    """Return sentences about overlap of both sets: rows of a store, or subjects of a dataset."""
    found = []
    for a in training.parts:
        for b in held_out.parts:
            same = a.store.attributes.content_sha256 == b.store.attributes.content_sha256
            rows = set(a.view.row.tolist()) & set(b.view.row.tolist()) if same else set()
            if rows:
                found.append(
                    f"{len(rows)} of {len(set(b.view.row.tolist()))} validation images are in the "
                    "training set as well: their scores say nothing about new images"
                )
                continue
            if a.store.attributes.dataset == b.store.attributes.dataset:
                subjects = _subjects(a) & _subjects(b)
                if subjects:
                    names = ", ".join(sorted(subjects)[:3])
                    found.append(
                        f"{len(subjects)} of {len(_subjects(b))} validation subjects are in the "
                        f"training set as well ({names}): their scores say little about new people"
                    )
    return found


def _subjects(part: Part) -> set[str]:
    names = part.store.attributes.tables.get("subject", [])
    index = set(part.store.label("subject_idx")[part.view.row.numpy()].tolist())
    found = {names[i] if i < len(names) else str(i) for i in index if i >= 0}
    return found - {"unknown"}  # placeholder where the dataset does not name subjects


def _over_ranks(sums: HandSums | None, ranks: Ranks) -> HandSums | None:
    if ranks.world == 1:
        return sums
    everywhere = [one for one in all_gather(_on_host(sums), ranks) if one is not None]
    return functools.reduce(_added, everywhere) if everywhere else None


def _on_host(sums: HandSums | None) -> HandSums | None:
    return None if sums is None else _mapped(sums, sums, lambda a, _: a.cpu())


def _added(a: HandSums, b: HandSums) -> HandSums:
    added: HandSums = _mapped(a, b, torch.add)
    return added


def _mapped(a: Any, b: Any, function: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """Combine two sums with ``function``, number by number; thresholds are unchanged."""
    columns = {}
    for name in (column.name for column in fields(a)):
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, ErrorSums):
            columns[name] = _mapped(x, y, function)
        else:
            columns[name] = x.cpu() if name == "thresholds" else function(x, y)
    return dataclasses.replace(a, **columns)
