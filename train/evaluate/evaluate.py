"""``python -m train evaluate``: score a run on a store, or files by an official protocol."""

import contextlib
import dataclasses
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from model.hand import JointSet
from model.mano.files import ManoModels
from model.network import Network
from model.prediction import hands_of, prediction_at, tensors_of
from pipeline.app.files import existing, replace_file, require_ours
from pipeline.app.pictures import write_picture
from pipeline.app.progress import tracked
from pipeline.app.words import say
from pipeline.batch import blank_batch
from pipeline.config import PipelineConfig, ViewKind
from pipeline.loader import Loader
from pipeline.order.windows import most_central
from pipeline.store.reader import Store, open_store, read_attributes
from pipeline.store.schema import SYNTHETIC_FILE
from pipeline.view import build_view, own_split, samples_at, split_rows
from train.build import label_groups
from train.config import EvaluateConfig, Protocol
from train.evaluate.hand_details import HandErrors
from train.evaluate.metrics.hand import HandScores, ScoreAccumulator
from train.evaluate.protocols import (
    arctic,
    dexycb,
    freihand,
    hamer,
    ho3d,
    interhand26m,
    on_store,
    world,
)
from train.evaluate.protocols.collected import (
    Collected,
    ReportContext,
    collect,
    empty_collection,
    unpredicted,
)
from train.evaluate.protocols.details import require_details, write_details
from train.evaluate.protocols.report import Report, as_json, show, write_json
from train.evaluate.validate import Baselines, add_scores, every_frame
from train.state.load import load_run
from train.step.mesh import decode_labels
from train.step.step import predict, predict_mean
from train.watch.best_effort import BestEffort
from train.watch.pictures import draw_predictions

PROTOCOL: Final = (
    "handloom-hand-1: per hand, mm; MPJPE and MPVPE relative to the wrist; PA with scale, "
    "reflection allowed (FreiHAND's align_w_scale); AUC of PCK 0-50 mm and F-scores on PA"
)
"""Defined in ``train.evaluate.metrics.hand``."""
_ARCHIVES: Final = (".zip", ".tar", ".gz", ".npz")
SCORES: Final = "scores.json"
PICTURE: Final = "predictions.png"
CAMERA: Final = "intrinsics of the dataset"
_SCORE: Final = {
    Protocol.freihand: freihand.score,
    Protocol.ho3d: ho3d.score,
    Protocol.dexycb: dexycb.score,
    Protocol.arctic: arctic.score,
    Protocol.hamer: hamer.score,
}


def main(config: EvaluateConfig) -> int:
    """Score a run on a split of a store, or files of predictions by an official protocol.

    A run: the averaged (EMA) weights are scored, without augmentation, on crops around the labelled
    box, with the dataset's intrinsics, beside the mean pose of its training set and the untrained
    network; on an official evaluation split also by the dataset's own protocol. Writes scores.json
    and pictures; export= writes the predictions as the dataset's evaluation reads them (ARCTIC: a
    folder of predictions and truth for protocol=arctic, not the leaderboard's archive). HO-3D's
    true meshes are in no store: its official score needs truth=FOLDER of
    evaluation_{xyz,verts}.json beside run=.

    Files, by protocol; n samples, f frames, metres and the camera frame unless said:
      freihand      pred.json [joints [n,21,3], vertices [n,778,3]]; truth: folder of
                    evaluation_{xyz,verts}.json
      ho3d          the same, OpenGL axes, MANO joint order
      dexycb        text, a line: image index and 63 numbers, mm; truth: anno_hpe_<setup>.pkl
      interhand26m  .npz: joint_coord [n,42,3], rel_root_depth [n,1], hand_type [n,2], inv_trans
                    [n,2,3] as the official script collects them, or joints_mm [n,42,3],
                    hand_type and, optional, left_from_right_mm [n,3] (left wrist minus right
                    wrist, else of joints_mm); truth: folder of
                    InterHand2.6M_<split>_{data,camera,joint_3d}.json
      arctic        .npz of a sequence and view, or a folder of them: joints_{right,left} [f,21,3],
                    vertices_{right,left} [f,778,3], object_vertices [f,v,3], arti_rad [f]; and, or
                    instead, dist_{ro,lo} [f,778], dist_{or,ol} [f,v]; truth: the first six, and
                    is_valid, right_valid, left_valid [f], part_ids [v] (1 top, 2 bottom),
                    diameter_m []
      world         .npz, world frame: joints [f,j,3], root [f,3], camera_position [c,3]
                    (optional); truth: also segment [f], camera_segment [c], is_right [f]
                    (optional). HaWoR scores right hands in tracks of at least 16 frames:
                    min_track=16 right_only=true
      hamer         .npz: joints [n,21,3] and, or instead, joints_2d [n,21,2] px; truth: the same
                    and, for joints_2d, confidence [n,21], box_px [n]

    details=FILE.csv or .parquet adds the values per sample and per joint, PCK curves and medians.

    Example:
        python -m train evaluate run=runs/first store=build/freihand.zarr split=evaluation
        python -m train evaluate run=runs/dex store=dexycb.zarr split=s0_test export=results.txt
        python -m train evaluate protocol=freihand predictions=pred.json truth=FreiHAND_pub_v2_eval
    """
    if config.out is not None:
        out = Path(config.out).expanduser()
        if out.is_file():
            raise ValueError(f"out={config.out!r} is a file, expected a folder")
        require_ours(out, "out", (SCORES, PICTURE), SCORES, b'"protocol"')
    if config.details is not None:
        require_details(config.details)
    if config.protocol is None:
        return _evaluate_run(config)
    report = _score_files(config, config.protocol)
    console = Console()
    show(report, console)
    is_synthetic = _is_synthetic(Path(str(config.truth)).expanduser())
    if is_synthetic:
        _say_synthetic(str(config.truth), config.protocol.name)
    if config.details is not None and report.details is not None:
        write_details(Path(config.details).expanduser(), report.details())
        say(f"written: {config.details}")
    if config.out is not None:
        path = Path(config.out) / SCORES
        files = {"predictions": config.predictions, "truth": config.truth}
        write_json(path, {**as_json(report), **files, "synthetic": is_synthetic})
        say(f"written: {path}")
    return 0


def _say_synthetic(data: str, dataset: str) -> None:
    say(
        f"{data} is synthetic, rendered by make-sample: these scores test the software and say "
        f"nothing about {dataset}"
    )


def _is_synthetic(truth: Path) -> bool:
    """Return whether labels lie in a dataset that ``make-sample`` rendered."""
    path = truth.resolve()
    return any((folder / SYNTHETIC_FILE).is_file() for folder in (path, *path.parents))


def _score_files(config: EvaluateConfig, protocol: Protocol) -> Report:
    """Score files.

    Raises:
        ValueError: If they cannot be scored; names the file of the predictions.
    """
    try:
        return _scored(config, protocol)
    except ValueError as error:
        text = str(error)
        if str(config.predictions) in text or (
            str(config.truth) in text and "predict" not in text  # the truth itself is wrong
        ):
            raise
        raise ValueError(f"predictions={config.predictions!r}: {error}") from error


def _scored(config: EvaluateConfig, protocol: Protocol) -> Report:
    assert config.predictions is not None
    assert config.truth is not None
    predictions = existing(config.predictions, "predictions")
    truth = existing(config.truth, "truth")
    if protocol is Protocol.interhand26m:
        depth = existing(config.root_depth, "root_depth") if config.root_depth else None
        return interhand26m.score(predictions, truth, strict=config.strict, root_depth=depth)
    if protocol is Protocol.world:
        rules = world.Rules(min_track=config.min_track, right_only=config.right_only)
        return world.score(predictions, truth, strict=config.strict, rules=rules)
    return _SCORE[protocol](predictions, truth, strict=config.strict)


def _evaluate_run(config: EvaluateConfig) -> int:
    assert config.run is not None
    assert config.store is not None
    run_dir = Path(config.run)
    store_path = existing(config.store, "store").absolute()
    config = replace(config, store=str(store_path))
    run = load_run(
        run_dir,
        checkpoint=config.checkpoint,
        device=config.device,
        mano=config.mano,
        joint_sets=frozenset([JointSet[read_attributes(store_path).joint_set]]),
    )
    model, mano, device, dtype = run.model, run.mano, run.device, run.dtype
    pipeline = evaluation_pipeline(run.config.pipeline, config)

    with contextlib.closing(open_store(pipeline.store)) as store:
        config = replace(config, split=own_split(store, config.split))
        crop = on_store.crop_source(store, config.split, pipeline.view.kind)
        provided = provided_by(model, pipeline, dtype)
        collected = _collected(store, pipeline, config, provided, mano)
        # Beside hands alone stands the mean pose; a scene needs its means in the same protocol.
        collected_mean = None
        if collected is not None and collected.scenes is not None:
            collected_mean = _collected(store, pipeline, config, provided, mano)
        groups = label_groups(run.config.model.family)
        loader = Loader(pipeline, device=device, training=False, groups=groups)
        ours, baselines = ScoreAccumulator(), Baselines()
        name = f"evaluate-{store_path.stem}-{loader.content_sha256[:8]}-{config.split}"
        errors = None if config.details is None else HandErrors()
        out = Path(config.out or run_dir / name)
        out.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before the scores
        batches = tracked(loader, len(loader), "evaluate", "batches")
        taken = torch.split(most_central(loader.parts[0].windows), pipeline.batch_size)
        sheet = None
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
                baselines.add(model, run.mean_pose, batch, truth)
                if errors is not None:
                    errors.update(hands, batch)
                if collected is not None:
                    collect(collected, prediction, batch, truth)
                if collected_mean is not None:
                    start = predict_mean(model, run.mean_pose, batch)
                    if start is None:  # the family has no such baseline
                        collected_mean = None
                    else:
                        collect(collected_mean, start, batch, None)
            if i == 0:
                sheet = draw_predictions(batch, prediction, pipeline, loader.objects, most=32)
        context = ReportContext(strict=config.strict, crop=crop, camera=CAMERA, device=device)
        report = None if collected is None else on_store.official_report(collected, context)
        mean_report = (
            None if collected_mean is None else on_store.official_report(collected_mean, context)
        )

        scores: HandScores | None = None
        beside: dict[str, HandScores] = {}
        if collected is None or _has_scores(ours):
            scores, beside = ours.summary(), baselines.scores()
        record: dict[str, Any] = {
            "protocol": PROTOCOL,
            "store": pipeline.store,
            "store_sha256": loader.content_sha256,
            "split": config.split,
            "crop": crop,
            "synthetic": store.attributes.is_synthetic,
            "camera": CAMERA,
            "checkpoint": config.checkpoint.name,
            "step": run.step,
            "model": None if scores is None else asdict(scores),
            **{n: asdict(beside[n]) if n in beside else None for n in ("mean_pose", "untrained")},
            "official": as_json(report) if isinstance(report, Report) else None,
            "official_mean": as_json(mean_report) if isinstance(mean_report, Report) else None,
            "official_lacks": report if isinstance(report, str) else None,
        }
        console = Console()
        num_hands = 0 if scores is None else scores.num_hands
        say(
            f"{pipeline.store} split={config.split}: {num_hands} hands; crop: {crop}; camera: "
            f"{CAMERA}; step {run.step}\n{PROTOCOL}\nscores and pictures: {out}",
        )
        if scores is not None:
            console.print(table(scores, beside))
        else:
            say("no hand of the split has three labelled joints: no score by this protocol")
        if isinstance(report, Report):
            show(report, console, mean_report if isinstance(mean_report, Report) else None)
        elif report is not None:
            say(f"no official score: {report}")
        write_json(out / SCORES, record)  # first: it shows whose folder this is
        if sheet is not None:
            BestEffort(say)("the picture", partial(write_picture, out / PICTURE, sheet))
        if errors is not None and config.details is not None:
            official = report.details if isinstance(report, Report) else None
            more = [] if official is None else official()
            named = [replace(one, name=f"official/{one.name}") for one in more]
            write_details(Path(config.details).expanduser(), [*errors.details(), *named])
            say(f"written: {config.details}")
        if store.attributes.is_synthetic:
            _say_synthetic(pipeline.store, store.attributes.dataset)
        # Last: scores stay when there is no room for an export.
        if collected is not None and config.export is not None:
            export = Path(config.export).expanduser()
            collected.protocol.export(collected, export)
            if store.attributes.is_synthetic and export.is_dir():  # its truth is there as well
                replace_file(export / SYNTHETIC_FILE, b"Exported from a synthetic store.\n")
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
    if config.export:
        require_fitting(config.export, protocol.endings)
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


def require_fitting(export: str, endings: tuple[str, ...]) -> None:
    """Reject a name that another format than the exported one has.

    Raises:
        ValueError: With the expected endings.
    """
    path = Path(export).expanduser()
    if not endings:
        if path.is_file() or path.suffix.lower() in _ARCHIVES:
            raise ValueError(f"export={export!r} is a file, expected a folder")
        return
    if path.is_dir():
        raise ValueError(f"export={export!r} is a folder, expected a file ({' or '.join(endings)})")
    if path.suffix and path.suffix.lower() not in endings:
        raise ValueError(
            f"export={export!r}: the predictions are written as {' or '.join(endings)}, got "
            f"{path.suffix!r}"
        )


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


def table(scores: HandScores, beside: dict[str, HandScores]) -> Table:
    """Return a table of the scores, those of the baselines and the ratio to the better of them."""
    sheet = Table()
    for name in ("metric", "model", *(name.replace("_", " ") for name in beside), "ratio"):
        sheet.add_column(name, justify="left" if name == "metric" else "right")
    for label, key, digits in _ROWS:
        value = getattr(scores, key)
        if value is None:
            continue
        others = [getattr(one, key) for one in beside.values()]
        known = [number for number in others if number is not None]
        best = (min if key.endswith("_mm") else max)(known, default=0.0)
        ratio = f"{value / best:.2f}" if best else "-"
        numbers = ("-" if n is None else f"{n:.{digits}f}" for n in (value, *others))
        sheet.add_row(label, *numbers, ratio)
    return sheet
