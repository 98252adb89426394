"""``python -m train evaluate``: score a run on a store, or files by an official protocol."""

import contextlib
import dataclasses
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from model.draw import write_picture
from model.mano.files import ManoModels
from model.mean_pose import MeanPose
from model.network import Network
from model.prediction import HandPrediction, hands_of, prediction_at, tensors_of
from pipeline.app.files import existing
from pipeline.app.progress import tracked
from pipeline.app.words import say
from pipeline.batch import Batch, blank_batch
from pipeline.config import PipelineConfig, ViewKind
from pipeline.loader import Loader
from pipeline.order.parts import joint_sets_of
from pipeline.order.windows import most_central
from pipeline.store.reader import Store, open_store
from pipeline.store.terms import SYNTHETIC, is_synthetic, terms_of
from pipeline.view import build_view, own_split, samples_at, split_rows
from train.build import build_model, label_groups, required_mano
from train.config import EvaluateConfig, Protocol
from train.device.device import backbone_dtype, choose_device
from train.evaluate.metrics.hand import HandScores, ScoreAccumulator
from train.evaluate.protocols import arctic, dexycb, freihand, ho3d, interhand26m, on_store, world
from train.evaluate.protocols.collected import (
    Collected,
    ReportContext,
    collect,
    empty_collection,
    unpredicted,
)
from train.evaluate.protocols.report import Report, as_json, show, write_json
from train.evaluate.validate import add_scores, every_frame
from train.state.checkpoint import config_of, mean_of, read_checkpoint
from train.step.mesh import decode_labels
from train.step.step import predict, predict_mean
from train.watch.pictures import draw_predictions

PROTOCOL: Final = (
    "handloom-hand-1: per hand, mm; MPJPE and MPVPE relative to the wrist; PA with scale, "
    "reflection allowed (FreiHAND's align_w_scale); AUC of PCK 0-50 mm and F-scores on PA"
)
"""Defined in ``train.evaluate.metrics.hand``."""
CAMERA: Final = "intrinsics of the dataset"
_SCORE: Final = {
    Protocol.freihand: freihand.score,
    Protocol.ho3d: ho3d.score,
    Protocol.dexycb: dexycb.score,
    Protocol.arctic: arctic.score,
    Protocol.world: world.score,
}


def main(config: EvaluateConfig) -> int:
    """Score a run on a split of a store, or files of predictions by an official protocol.

    A run: the averaged (EMA) weights are scored, without augmentation, on crops around the labelled
    box, with the dataset's intrinsics, beside the mean pose of its training set; on an official
    evaluation split also by the dataset's own protocol. Writes scores.json and pictures; export=
    writes the predictions as the dataset's evaluation reads them (ARCTIC: a folder of predictions
    and truth for protocol=arctic, not the leaderboard's archive). HO-3D's true meshes are in no
    store: its official score needs truth=FOLDER of evaluation_{xyz,verts}.json beside run=.

    Files, by protocol; n samples, f frames, metres and the camera frame unless said:
      freihand      pred.json [joints [n,21,3], vertices [n,778,3]]; truth: folder of
                    evaluation_{xyz,verts}.json
      ho3d          the same, OpenGL axes, MANO joint order
      dexycb        text, a line: image index and 63 numbers, mm; truth: anno_hpe_<setup>.pkl
      interhand26m  .npz: joint_coord [n,42,3], rel_root_depth [n,1], hand_type [n,2], inv_trans
                    [n,2,3] as the official script collects them, or joints_mm [n,42,3] and
                    hand_type; truth: folder of InterHand2.6M_<split>_{data,camera,joint_3d}.json
      arctic        .npz of a sequence and view, or a folder of them: joints_{right,left} [f,21,3],
                    vertices_{right,left} [f,778,3], object_vertices [f,v,3], arti_rad [f]; and, or
                    instead, dist_{ro,lo} [f,778], dist_{or,ol} [f,v]; truth: the first six, and
                    is_valid, right_valid, left_valid [f], part_ids [v] (1 top, 2 bottom),
                    diameter_m []
      world         .npz, world frame: joints [f,j,3], root [f,3], camera_position [c,3]
                    (optional); truth: also segment [f], camera_segment [c]

    Example:
        python -m train evaluate run=runs/first store=build/freihand.zarr split=evaluation
        python -m train evaluate run=runs/dex store=dexycb.zarr split=s0_test export=results.txt
        python -m train evaluate protocol=freihand predictions=pred.json truth=FreiHAND_pub_v2_eval
    """
    if config.out is not None and Path(config.out).expanduser().is_file():
        raise ValueError(f"out={config.out!r} is a file, expected a folder")
    if config.protocol is None:
        return _evaluate_run(config)
    report = _score_files(config, config.protocol)
    console = Console()
    show(report, console)
    if config.out is not None:
        path = Path(config.out) / "scores.json"
        files = {"predictions": config.predictions, "truth": config.truth}
        write_json(path, {**as_json(report), **files})
        say(f"written: {path}")
    return 0


def _score_files(config: EvaluateConfig, protocol: Protocol) -> Report:
    assert config.predictions is not None
    assert config.truth is not None
    predictions = existing(config.predictions, "predictions")
    truth = existing(config.truth, "truth")
    if protocol is Protocol.interhand26m:
        depth = existing(config.root_depth, "root_depth") if config.root_depth else None
        return interhand26m.score(predictions, truth, strict=config.strict, root_depth=depth)
    return _SCORE[protocol](predictions, truth, strict=config.strict)


def _evaluate_run(config: EvaluateConfig) -> int:
    assert config.run is not None
    run, device = Path(config.run), choose_device(config.device)
    payload = read_checkpoint(run, config.checkpoint, say=say)
    trained = config_of(payload)
    mano = required_mano(trained.model, config.mano or trained.mano)
    pipeline = evaluation_pipeline(trained.pipeline, config)
    mean_pose = mean_of(payload)
    dtype = backbone_dtype(trained.precision, device)
    model = build_model(trained, mano, joint_sets_of(pipeline), load_weights=False).to(device)
    model.load_state_dict(payload["ema"])
    model.eval()

    with contextlib.closing(open_store(pipeline.store)) as store:
        config = replace(config, split=own_split(store, config.split))
        if synthetic := is_synthetic(store.attributes):
            say(f"synthetic: {terms_of(store.attributes)[SYNTHETIC]}")
        crop = on_store.crop_source(store, config.split, pipeline.view.kind)
        provided = provided_by(model, pipeline, dtype)
        collected = _collected(store, pipeline, config, provided, mano)
        # Beside hands alone stands the mean pose; a scene needs its means in the same protocol.
        collected_mean = None
        if collected is not None and collected.scenes is not None:
            collected_mean = _collected(store, pipeline, config, provided, mano)
        groups = label_groups(trained.model.family)
        loader = Loader(pipeline, device=device, training=False, groups=groups)
        ours, baseline = ScoreAccumulator(), ScoreAccumulator()
        out = Path(config.out or run / f"evaluate-{config.split}")
        batches = tracked(loader, len(loader), "evaluate", "batches")
        taken = torch.split(most_central(loader.parts[0].windows), pipeline.batch_size)
        for i, windows in enumerate(batches):
            with torch.inference_mode():
                index = taken[i].flatten().nonzero()[:, 0].to(device)
                if not len(index):  # windows at the end of a run, all frames already covered
                    continue
                batch = samples_at(windows.frames(), index)
                prediction = prediction_at(predict(model, windows, dtype), index)
                hands, truth = hands_of(prediction), None
                if hands.vertices is not None and model.mano is not None:
                    truth = decode_labels(model.mano, batch).vertices
                add_scores(ours, hands, batch, truth)
                add_scores(baseline, _mean_prediction(mean_pose, batch), batch, truth)
                if collected is not None:
                    collect(collected, prediction, batch, truth)
                if collected_mean is not None:
                    collect(collected_mean, predict_mean(model, mean_pose, batch), batch, None)
            if i == 0:
                sheet = draw_predictions(batch, prediction, pipeline, loader.objects, most=32)
                write_picture(out / "predictions.png", sheet)
        context = ReportContext(strict=config.strict, crop=crop, camera=CAMERA, device=device)
        report = None if collected is None else on_store.official_report(collected, context)
        mean_report = (
            None if collected_mean is None else on_store.official_report(collected_mean, context)
        )

        scores = mean_scores = None
        if collected is None or _has_scores(ours):
            scores, mean_scores = ours.summary(), baseline.summary()
        record: dict[str, Any] = {
            "protocol": PROTOCOL,
            "store": str(pipeline.store),
            "store_sha256": loader.content_sha256,
            "split": config.split,
            "crop": crop,
            "synthetic": synthetic,
            "camera": CAMERA,
            "checkpoint": config.checkpoint.name,
            "step": int(payload["step"]),
            "model": None if scores is None else asdict(scores),
            "mean_pose": None if mean_scores is None else asdict(mean_scores),
            "official": as_json(report) if isinstance(report, Report) else None,
            "official_mean": as_json(mean_report) if isinstance(mean_report, Report) else None,
            "official_lacks": report if isinstance(report, str) else None,
        }
        write_json(out / "scores.json", record)
        console = Console()
        num_hands = 0 if scores is None else scores.num_hands
        say(
            f"{pipeline.store} split={config.split}: {num_hands} hands; crop: {crop}; camera: "
            f"{CAMERA}; step {payload['step']}\n{PROTOCOL}\npictures: {out / 'predictions.png'}",
        )
        if scores is not None and mean_scores is not None:
            console.print(table(scores, mean_scores))
        else:
            say("no hand of the split has three labelled joints: no score by this protocol")
        if isinstance(report, Report):
            show(report, console, mean_report if isinstance(mean_report, Report) else None)
        elif report is not None:
            say(f"no official score: {report}")
        # Last: scores stay when there is no room for an export.
        if collected is not None and config.export is not None:
            collected.protocol.export(collected, Path(config.export).expanduser())
            say(f"exported: {config.export}")
    return 0


def _has_scores(scores: ScoreAccumulator) -> bool:
    """Return whether some hand could be aligned; HO-3D's evaluation set may have wrists only."""
    return scores.sums is not None and bool(scores.sums.joints_aligned.count.any())


def provided_by(model: Network, pipeline: PipelineConfig, dtype: torch.dtype) -> frozenset[str]:
    """Return the names (``tensors_of``) of a network's outputs, found with one blank window."""
    side, frames = pipeline.input_px, pipeline.window.length
    device = next(model.parameters()).device
    image = torch.zeros(*((1, frames) if frames > 1 else (1,)), 3, side, side, device=device)
    with torch.inference_mode():
        prediction = predict(model, blank_batch(image, num_hands=model.num_hands), dtype)
    return frozenset(name for name, _ in tensors_of(prediction))


def _collected(
    store: Store,
    pipeline: PipelineConfig,
    config: EvaluateConfig,
    provided: frozenset[str],
    mano: ManoModels | None,
) -> Collected | None:
    """Return empty buffers for the official protocol's predictions, None where there is none.

    Raises:
        ValueError: If an export or a truth is given that does not apply to the split or the run.
    """
    is_single = pipeline.view.kind is ViewKind.hand
    protocol = on_store.protocol_of(store, config.split, provided)
    if protocol is None:
        asked = [key for key in ("export", "truth") if getattr(config, key)]
        if asked:
            mesh = "" if "hands.vertices" in provided else "; the run's model has no mesh"
            raise ValueError(
                f"{asked[0]}: no official protocol for split={config.split} of dataset "
                f"{store.attributes.dataset!r}{mesh}; there is one for {on_store.choices()}"
            )
        return None
    takes_folder = "object.rotmat" in protocol.requires
    if takes_folder and config.export and Path(config.export).expanduser().is_file():
        raise ValueError(f"export={config.export!r} is a file, expected a folder")
    truth = existing(config.truth, "truth") if config.truth else None
    rows = split_rows(store, pipeline.split, pipeline.subset)
    view = build_view(store, rows, pipeline.view, pipeline.cache.size_px, training=False)
    collected = empty_collection(
        protocol, store, config.split, view.sample_id, truth, is_single=is_single, mano=mano
    )
    lacking = unpredicted(collected)
    if lacking is not None and config.export:
        raise ValueError(f"export: {lacking}")
    return collected


def evaluation_pipeline(trained: PipelineConfig, config: EvaluateConfig) -> PipelineConfig:
    """Return the run's pipeline for the store and split to score, with every sample."""
    assert config.store is not None
    return dataclasses.replace(
        trained,
        view=dataclasses.replace(trained.view, require_joints=False),
        store=config.store,
        split=config.split,
        subset=1.0,
        mix={},
        batch_size=max(1, config.batch_size // trained.window.length),
        window=every_frame(trained.window, window_stride(trained.window.length, config)),
    )


def window_stride(length: int, config: EvaluateConfig) -> int:
    """Return the stride between windows, frames: configured, else a third of their length."""
    return config.window_stride or max(1, length // 3)


def _mean_prediction(mean: MeanPose, batch: Batch) -> HandPrediction:
    """Return the mean pose, in front of the camera, for every sample."""
    place = torch.tensor([0.0, 0.0, 0.5], device=batch.image.device)
    joints = mean.joints_rel.to(place.device) + place
    vertices = None if mean.vertices_rel is None else mean.vertices_rel.to(place.device) + place
    return HandPrediction(
        joints_3d=joints.expand(len(batch), *joints.shape),
        vertices=None if vertices is None else vertices.expand(len(batch), *vertices.shape),
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
    """Return a table of the scores, those of the mean pose and their ratio."""
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
