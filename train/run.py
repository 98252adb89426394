"""``python -m train run``: build the parts from the configuration and start the loop."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from model.config import Head
from model.hand import JointSet
from model.mano_files import INTERHAND_REGRESSOR_FILE, ManoModels, find_mano, load_mano
from model.mano_regressor import ManoRegressor
from pipeline.config import ViewKind
from pipeline.loader import Loader
from train.checkpoint import NAME, read_checkpoint, restore
from train.config import RunConfig
from train.config_io import to_plain
from train.device import choose_device
from train.log import RunLog
from train.loop import train
from train.manifest import manifest
from train.mean_pose import MeanPose, measure_mean_pose
from train.step import TrainState, build_state


def main(config: RunConfig) -> int:
    """Train a model on a store.

    Writes a run folder: checkpoint.pt, manifest.json, log.jsonl, tensorboard/, pictures/. SIGINT
    and SIGTERM write a checkpoint first; the same run_dir then continues where it stopped.

    Example:
        python -m train run experiment=quickstart store=build/freihand.zarr mano=build/mano
    """
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.pipeline.seed)
    run_dir = Path(config.run_dir or f"runs/{datetime.now().astimezone():%Y%m%d-%H%M%S}")
    payload = continue_from(run_dir, config, device)
    mano = required_mano(config.model.head, config.mano)

    loader = Loader(config.pipeline, device=device)
    model = build_model(config, mano, loader.joint_set, load_weights=payload is None).to(device)
    mean_pose = measure_mean_pose(loader, model) if payload is None else mean_of(payload)
    model.start_from(mean_pose.network_start(config.model.head).to(device))
    state = build_state(model, config, config.pipeline.batch_size)
    if payload is not None:
        restore(state, payload)
        loader.load_state_dict(payload["loader"])

    run_dir.mkdir(parents=True, exist_ok=True)
    record = manifest(to_plain(config), loader.content_sha256, mano.sha256 if mano else "")
    (run_dir / "manifest.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with RunLog(run_dir, config.steps, state.step) as log:
        log.say(_summary(state, loader, device, mean_pose, run_dir))
        finished = train(state, loader, config, mean_pose, run_dir, log)
    return 0 if finished else 130


def build_model(
    config: RunConfig, mano: ManoModels | None, joint_set: JointSet, *, load_weights: bool
) -> ManoRegressor:
    """Return the network for the pipeline's input and the store's joint set.

    Raises:
        ValueError: If the view shows no single hand, or the joint set's regressor is missing.
    """
    if config.pipeline.view.kind is not ViewKind.hand:
        raise ValueError(
            "this model predicts one hand per image: pipeline.view.kind must be hand, got "
            f"{config.pipeline.view.kind.name}"
        )
    needs_file = config.model.head is Head.mano and joint_set is JointSet.interhand26m
    if needs_file and mano is not None and mano.interhand_regressor is None:
        raise ValueError(
            f"the joints of InterHand2.6M need its regressor {INTERHAND_REGRESSOR_FILE}; put the "
            "file (from the dataset's repository, tool/MANO_world_to_camera) into the MANO folder, "
            "or use model.head=joints"
        )
    return ManoRegressor(
        config.model,
        input_px=config.pipeline.input_px,
        mano=mano,
        right_only=config.pipeline.mirror_left,
        load_weights=load_weights,
    )


def required_mano(head: Head, path: str | None) -> ManoModels | None:
    """Return the MANO models, or None where the head needs none and none is to be found."""
    folder = find_mano(path)
    if folder is None and head is Head.mano:
        raise ValueError(
            "model.head=mano needs the MANO files: pass mano=FOLDER or set HANDLOOM_MANO, or "
            "train without MANO with model.head=joints"
        )
    return None if folder is None else load_mano(folder)


def continue_from(run_dir: Path, config: RunConfig, device: torch.device) -> dict[str, Any] | None:
    """Return the checkpoint to continue from, if the folder holds one of this configuration.

    Raises:
        ValueError: If it was made with another configuration; names the keys.
    """
    if not (run_dir / NAME).exists():
        return None
    payload = read_checkpoint(run_dir, device)
    old, new = _flat(json.loads(payload["config"])), _flat(to_plain(config))
    free = {"run_dir", "steps", "log_every", "pictures_every", "checkpoint_every", "threads"}
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    changed = [key for key in changed if key not in free]
    if changed:
        shown = ", ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in changed[:4])
        raise ValueError(
            f"{run_dir} holds a run with another configuration ({shown}); use another run_dir "
            "or the same values"
        )
    return payload


def mean_of(payload: dict[str, Any]) -> MeanPose:
    """Return the mean pose kept in a checkpoint."""
    return MeanPose(**payload["mean_pose"])


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _summary(
    state: TrainState, loader: Loader, device: torch.device, mean_pose: MeanPose, run_dir: Path
) -> str:
    parameters = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    return (
        f"run {run_dir}: {loader.num_samples} samples, {mean_pose.num_hands} hands, "
        f"{parameters / 1e6:.1f} M parameters on {device}, step {state.step}"
    )
