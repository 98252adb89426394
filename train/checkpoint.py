"""Checkpoints: one file, written atomically, loadable with ``weights_only=True``."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from train.config import RunConfig
from train.mean_pose import MeanPose
from train.step import TrainState

FORMAT: Final = 0
NAME: Final = "checkpoint.pt"


def save_checkpoint(
    run_dir: Path,
    state: TrainState,
    loader_state: dict[str, Any],
    config: dict[str, Any],
    mean_pose: MeanPose,
) -> Path:
    """Write ``run_dir/checkpoint.pt``; a kill at any moment leaves the old file or the new one."""
    path = run_dir / NAME
    temporary = path.with_suffix(".tmp")
    payload = {
        "format": FORMAT,
        "step": state.step,
        "model": state.model.state_dict(),
        "ema": state.ema.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "loader": loader_state,
        "rng": torch.get_rng_state(),
        "config": json.dumps(config),
        "mean_pose": asdict(mean_pose),
    }
    with temporary.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(run_dir, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def read_checkpoint(run_dir: Path, device: torch.device) -> dict[str, Any]:
    """Return the payload of a run's checkpoint.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If the file is torn or of another format.
    """
    path = run_dir / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{run_dir} holds no {NAME}; expected a folder made by: python -m train run"
        )
    try:
        payload: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({error})") from error
    if payload.get("format") != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {payload.get('format')!r}, this code reads {FORMAT}"
        )
    return payload


def restore(state: TrainState, payload: dict[str, Any]) -> None:
    """Put a payload into a state of the same configuration."""
    state.model.load_state_dict(payload["model"])
    state.ema.load_state_dict(payload["ema"])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.step = int(payload["step"])
    torch.set_rng_state(payload["rng"].cpu())


def config_of(payload: dict[str, Any]) -> RunConfig:
    """Return the run's configuration from its checkpoint."""
    from train.config_io import from_plain

    return from_plain(RunConfig, json.loads(payload["config"]))
