"""``RUN/weights``: the averaged weights of the best checkpoint, of the last if none is scored."""

from pathlib import Path
from typing import Any, Final

from model.pretrained import CONFIG_FILE, InputSpec, PretrainedConfig, save_pretrained
from model.records import parse_json
from pipeline.app.files import existing, read_regular
from pipeline.config import ImageDtype, PipelineConfig, ViewKind
from pipeline.loader import Loader
from train.config import RunConfig
from train.state.checkpoint import NotWrittenError, RunFacts
from train.step.step import TrainState

FOLDER: Final = "weights"


def write_weights(
    run_dir: Path, state: TrainState, loader: Loader, config: RunConfig, facts: RunFacts
) -> None:
    """Write the averaged weights for ``model.pretrained.load_pretrained``.

    Raises:
        NotWrittenError: If a write fails.
    """
    about = PretrainedConfig(
        model=config.model,
        inputs=input_spec(config.pipeline, loader),
        mano_sha256=facts.mano_sha256,
        step=state.step,
    )
    try:
        save_pretrained(state.ema, run_dir / FOLDER, about)
    except OSError as error:
        raise NotWrittenError(
            f"the weights of step {state.step} were not written to {run_dir / FOLDER}: "
            f"{error.strerror or error}; the checkpoint has them as well"
        ) from error


def input_spec(pipeline: PipelineConfig, loader: Loader) -> InputSpec:
    """Return what the network was fed in training."""
    mean, std = pipeline.mean, pipeline.std
    if pipeline.image_dtype is ImageDtype.uint8:  # fed as 0..255
        mean, std = [0.0] * 3, [1 / 255] * 3
    return InputSpec(
        input_px=pipeline.input_px,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        mirror_left=pipeline.mirror_left and pipeline.view.kind is ViewKind.hand,
        pad=pipeline.view.pad,
        joint_sets=tuple(sorted(loader.joint_sets)),
    )


def weights_folder(run: str, key: str = "run") -> Path:
    """Return the folder of weights of a run, or ``run`` if it is one; ``key`` is its name.

    Raises:
        FileNotFoundError: If there are none; says where they come from.
    """
    folder = existing(run, key)
    for found in (folder / FOLDER, folder):
        if (found / CONFIG_FILE).is_file():
            return found
    raise FileNotFoundError(
        f"{key}={run!r} holds no weights: expected {FOLDER}/{CONFIG_FILE}, which python -m train "
        f"run writes at its end and with its best checkpoints, or a folder with {CONFIG_FILE}; "
        f"continue the run: python -m train run resume={run}"
    )


def config_of_run(folder: Path) -> dict[str, Any]:
    """Return the configuration of the run that contains a folder of weights; empty if none."""
    path = folder.parent / "manifest.json"
    if folder.name != FOLDER or not path.is_file():
        return {}
    try:
        config = parse_json(read_regular(path))["config"]
    except (ValueError, KeyError, TypeError):
        return {}
    return config if isinstance(config, dict) else {}


def window_of(run_config: dict[str, Any]) -> int:
    """Return the length of the windows that a run was trained on.

    Raises:
        ValueError: If its configuration is not known.
    """
    try:
        return int(run_config["pipeline"]["window"]["length"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            "the network looks at windows, and their length is in no manifest.json beside its "
            "weights; give the folder of the run"
        ) from None
