"""A trained run as a Python object: its network, configuration and what they need from here."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from model.config import ModelConfig
from model.fields import member
from model.hand import JointSet
from model.mano.files import MANO_ENV, ManoModels, find_mano, load_mano
from model.mean_pose import MeanPose
from model.network import Network
from model.prediction import Prediction
from pipeline.app.files import existing
from pipeline.app.words import say
from pipeline.batch import Batch
from train.build import build_model
from train.config import CheckpointChoice, Device, RunConfig
from train.device.device import backbone_dtype, choose_device
from train.state.checkpoint import config_of, mean_of, read_checkpoint, refused_states
from train.state.weights import config_of_run
from train.step.step import predict


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRun:
    """A run's averaged weights, ready to predict."""

    config: RunConfig
    """As it was trained."""
    model: Network
    """In evaluation mode, on ``device``."""
    mean_pose: MeanPose
    """Mean of the training set."""
    mano: ManoModels | None
    step: int
    """Training step of the weights."""
    device: torch.device
    dtype: torch.dtype
    """Arithmetic of the backbone."""

    def predict(self, batch: Batch) -> Prediction:
        """Return the prediction for a batch of a ``Loader`` with the run's ``config.pipeline``.

        Of windows [b, t] the frames are predicted, [b * t].
        """
        with torch.inference_mode():
            return predict(self.model, batch, self.dtype)


def load_run(
    run: str | Path,
    *,
    checkpoint: CheckpointChoice | str = CheckpointChoice.latest,
    device: Device | str = Device.auto,
    mano: str | Path | None = None,
    joint_sets: frozenset[JointSet] = frozenset(),
) -> LoadedRun:
    """Load the averaged weights of a run.

    Args:
        run: Folder made by ``python -m train run``.
        checkpoint: ``latest``, or ``best`` by the score while training.
        device: ``auto``, ``cpu`` or ``cuda``.
        mano: Folder of the MANO files; None takes the run's, else ``HANDLOOM_MANO``.
        joint_sets: Joint conventions that will be predicted; checks that MANO has their regressor.

    Raises:
        FileNotFoundError: If there is no run, or a file that it needs is not here; names which.
        ValueError: If no checkpoint can be used, or the MANO files are not those of the run.
    """
    choice = member("checkpoint", CheckpointChoice, checkpoint)
    found = choose_device(member("device", Device, device))
    payload = read_checkpoint(existing(str(run), "run"), choice, say=say)
    config = config_of(payload)
    models = mano_of_run(config.model, None if mano is None else str(mano), config.mano)
    if config.model.needs_mano and models is not None and models.sha256 != payload["mano_sha256"]:
        raise ValueError(
            f"run={str(run)!r} was trained with other MANO files (sha256 "
            f"{payload['mano_sha256'][:12]}, got {models.sha256[:12]}): the same parameters would "
            "be another hand; pass mano=FOLDER with the files of the training"
        )
    model = build_model(config, models, joint_sets, load_weights=False).to(found)
    with refused_states(f"run={str(run)!r}"):
        model.load_state_dict(payload["ema"])
    return LoadedRun(
        config=config,
        model=model.eval(),
        mean_pose=mean_of(payload),
        mano=models,
        step=int(payload["step"]),
        device=found,
        dtype=backbone_dtype(config.precision, found),
    )


def mano_of_weights(folder: Path, model: ModelConfig, given: str | None) -> ManoModels:
    """Return the MANO models for a folder of weights of a network that needs them."""
    named = config_of_run(folder).get("mano")
    found = mano_of_run(model, given, named if isinstance(named, str) else None)
    assert found is not None
    return found


def mano_of_run(model: ModelConfig, given: str | None, of_run: str | None) -> ManoModels | None:
    """Return the MANO models: from the folder given, else the run's, else ``HANDLOOM_MANO``.

    Raises:
        FileNotFoundError: If the network needs them and the run's folder is not here.
        ValueError: If the network needs them and none is named anywhere.
    """
    if given is None and of_run is not None and not Path(of_run).expanduser().is_dir():
        if model.needs_mano and not os.environ.get(MANO_ENV):
            raise FileNotFoundError(
                f"the run was trained with mano={of_run}, which is not here; pass mano=FOLDER or "
                f"set {MANO_ENV}"
            )
        of_run = None
    folder = find_mano(given or of_run)
    if folder is None and model.needs_mano:
        raise ValueError(
            "the network predicts MANO parameters, which need the MANO files: pass mano=FOLDER or "
            f"set {MANO_ENV}; python -m preprocess import-mano makes the folder"
        )
    return None if folder is None else load_mano(folder)
