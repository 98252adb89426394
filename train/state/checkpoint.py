"""What a checkpoint holds, taken from a training state and put back; ``weights_only`` loads it.

``checkpoint_files`` says how the files are written and which one is taken.
"""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from train.config import CheckpointChoice, RunConfig
from train.state.checkpoint_archive import FORMAT
from train.state.checkpoint_files import FOLDER, add_file, best_of, newest
from train.state.checkpoint_index import INDEX, Say, Score, step_files
from train.state.config_io import from_plain
from train.state.mean_pose import MeanPose
from train.step.ema import load_average
from train.step.step import TrainState

_OLD_NAME = "checkpoint.pt"
"""The only file of format 0."""


class NotWrittenError(OSError):
    """A checkpoint or the weights could not be written; what was there before still is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What stays the same from the first step of a run to the last."""

    run_id: str
    """Random, made once: tells the run's files from those of others."""
    config: dict[str, Any]
    """The resolved configuration as JSON values."""
    mean_pose: MeanPose
    store_sha256: str
    """Content of the training store."""
    mano_sha256: str
    """Of the MANO files in the network; empty without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint that is on the disk."""

    path: Path
    is_best: bool


def new_run_id() -> str:
    """Return a name that no other run has."""
    return secrets.token_hex(8)


def save_checkpoint(
    run_dir: Path,
    state: TrainState,
    loader_state: dict[str, Any],
    facts: RunFacts,
    *,
    keep: int,
    score: Score | None = None,
) -> Saved:
    """Write ``run_dir/checkpoints/step-<step>.pt``; the newest ``keep`` and the best one stay.

    Killed or failing at any moment, the folder still holds a checkpoint that loads.

    Raises:
        NotWrittenError: If it could not be written.
    """
    payload = {
        "format": FORMAT,
        "run_id": facts.run_id,
        "step": state.step,
        "model": state.model.state_dict(),
        "ema": state.ema.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "accumulate": state.accumulate,
        "log_variance": None if state.log_variance is None else state.log_variance.detach(),
        "loader": loader_state,
        "rng": rng_state(),
        "config": json.dumps(facts.config),
        "mean_pose": asdict(facts.mean_pose),
        "store_sha256": facts.store_sha256,
        "mano_sha256": facts.mano_sha256,
    }
    folder = run_dir / FOLDER
    try:
        path, is_best = add_file(folder, payload, keep=keep, score=score)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise NotWrittenError(
            f"the checkpoint of step {state.step} was not written to {folder}: {reason}; the "
            "earlier ones are untouched"
        ) from error
    return Saved(path=path, is_best=is_best)


def has_checkpoints(run_dir: Path) -> bool:
    """Return whether a run was saved here, be it readable or not."""
    folder = run_dir / FOLDER
    return (folder / INDEX).exists() or bool(step_files(folder)) or (run_dir / _OLD_NAME).exists()


def read_checkpoint(
    run_dir: Path, choice: CheckpointChoice = CheckpointChoice.latest, *, say: Say
) -> dict[str, Any]:
    """Return the payload of a run's newest whole checkpoint, or of its best; tensors on the CPU.

    ``say`` is told every file that is refused on the way.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If none can be used.
    """
    folder = run_dir / FOLDER
    if choice is CheckpointChoice.best:
        return best_of(folder, say)
    payload = newest(folder, say)
    if payload is not None:
        return payload
    if (run_dir / _OLD_NAME).exists():
        raise ValueError(
            f"{run_dir / _OLD_NAME} has checkpoint format 0, this code reads {FORMAT}; train "
            "again in another run_dir"
        )
    raise FileNotFoundError(
        f"{run_dir} holds no checkpoint; expected a folder made by: python -m train run"
    )


def restore(
    state: TrainState, payload: dict[str, Any], *, store_sha256: str, mano_sha256: str
) -> None:
    """Put a payload into a state of the same configuration.

    Raises:
        ValueError: If store or MANO files are not those of the run; names which.
    """
    present = {"store content": store_sha256, "MANO files": mano_sha256}
    saved = {"store content": payload["store_sha256"], "MANO files": payload["mano_sha256"]}
    changed = [
        f"{name} {saved[name][:12] or 'none'} -> {present[name][:12] or 'none'}"
        for name in present
        if saved[name] != present[name]
    ]
    if changed:
        raise ValueError(
            f"the run was trained on other data ({', '.join(changed)}; sha256); give the same "
            "ones with store=... and mano=..., or start a new run in another run_dir"
        )
    state.model.load_state_dict(payload["model"])
    state.average = load_average(state.ema, state.model, payload["ema"])
    state.accumulate = max(state.accumulate, int(payload.get("accumulate", 1)))
    if state.log_variance is not None:
        with torch.no_grad():
            state.log_variance.copy_(payload["log_variance"])
    # The groups keep what belongs to this device, which need not be the checkpoint's.
    here = [{k: group[k] for k in ("lr", "capturable")} for group in state.optimizer.param_groups]
    state.optimizer.load_state_dict(payload["optimizer"])
    for group, kept in zip(state.optimizer.param_groups, here, strict=True):
        kept["lr"].copy_(group["lr"])
        group.update(kept)
    state.step = int(payload["step"])
    state.clock.fill_(state.step)
    set_rng_state(payload["rng"])


def rng_state() -> dict[str, Any]:
    """Return torch's generators: of the CPU, and of every CUDA device if CUDA is in use."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # asking starts no CUDA
    cuda = torch.cuda.get_rng_state_all() if in_use else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(rng: dict[str, Any]) -> None:
    """Put generators back; devices that are not there, or were not, are passed over."""
    torch.set_rng_state(rng["cpu"])
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    for device in range(min(len(rng["cuda"]), torch.cuda.device_count()) if in_use else 0):
        torch.cuda.set_rng_state(rng["cuda"][device], device)


def config_of(payload: dict[str, Any]) -> RunConfig:
    """Return the run's configuration from its checkpoint."""
    return from_plain(RunConfig, json.loads(payload["config"]))


def mean_of(payload: dict[str, Any]) -> MeanPose:
    """Return the mean pose kept in a checkpoint."""
    return MeanPose(**payload["mean_pose"])
