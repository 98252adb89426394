"""The network of a configuration."""

from model.config import Family, Head
from model.hand import JointSet
from model.mano.files import INTERHAND_REGRESSOR_FILE, ManoModels, find_mano, load_mano
from model.regressor.net import ManoRegressor
from pipeline.config import ViewKind
from train.config import RunConfig


def build_model(
    config: RunConfig,
    mano: ManoModels | None,
    joint_sets: frozenset[JointSet],
    *,
    load_weights: bool,
) -> ManoRegressor:
    """Return the network for the pipeline's input and the stores' joint sets.

    Raises:
        ValueError: If view and network do not fit, or the joint set's regressor is missing.
    """
    kind, family, window = config.pipeline.view.kind, config.model.family, config.pipeline.window
    if (kind is ViewKind.hand) != (family is Family.hand):
        wanted = "hand" if family is Family.hand else "hand_object or frame"
        raise ValueError(
            f"model.family={family.name} needs pipeline.view.kind={wanted}, got {kind.name}"
        )
    if config.model.temporal_layers and window.length == 1:
        raise ValueError(
            f"model.temporal_layers={config.model.temporal_layers} needs windows: "
            "pipeline.window.length must be over 1, got 1"
        )
    needs_file = config.model.head is Head.mano and JointSet.interhand26m in joint_sets
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
        right_only=config.pipeline.mirror_left and family is Family.hand,
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
