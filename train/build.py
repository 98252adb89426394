"""The network of a configuration."""

from model.config import ModelConfig
from model.families import build_network, imported, row_of
from model.hand import JointSet
from model.mano.files import INTERHAND_REGRESSOR_FILE, ManoModels, find_mano, load_mano
from model.network import Network
from pipeline.batch import LabelGroup
from pipeline.config import ViewKind
from train.config import RunConfig


def build_model(
    config: RunConfig,
    mano: ManoModels | None,
    joint_sets: frozenset[JointSet],
    *,
    load_weights: bool,
) -> Network:
    """Return the network for the pipeline's input and the stores' joint sets.

    Raises:
        ValueError: If view, windows and network do not fit, or the joint set's regressor is
            missing.
    """
    model, view, window = config.model, config.pipeline.view, config.pipeline.window
    if view.kind.name not in model.views:
        wanted = " or ".join(kind.name for kind in ViewKind if kind.name in model.views)
        raise ValueError(
            f"the network of model={model.family}{_scene(model)} needs pipeline.view.kind={wanted},"
            f" got {view.kind.name}"
        )
    if window.length < model.min_window:
        raise ValueError(
            f"the network of model={model.family} with these options looks at windows of frames: "
            f"pipeline.window.length must be at least {model.min_window}, got {window.length}"
        )
    needs_file = model.needs_mano and JointSet.interhand26m in joint_sets
    if needs_file and mano is not None and mano.interhand_regressor is None:
        raise ValueError(
            f"the joints of InterHand2.6M need its regressor {INTERHAND_REGRESSOR_FILE}; put the "
            "file (from the dataset's repository, tool/MANO_world_to_camera) into the MANO folder, "
            "or use model.head=joints"
        )
    return build_network(
        model,
        input_px=config.pipeline.input_px,
        mano=mano,
        right_only=config.pipeline.mirror_left and view.kind is ViewKind.hand,
        load_weights=load_weights,
    )


def label_groups(family: str) -> tuple[type[LabelGroup], ...]:
    """Return the label groups that a family's batches have beside the core labels."""
    return tuple(imported(name) for name in row_of(family).labels)


def required_mano(model: ModelConfig, path: str | None) -> ManoModels | None:
    """Return the MANO models, or None where the network needs none and none is to be found."""
    folder = find_mano(path)
    if folder is None and model.needs_mano:
        raise ValueError(
            "model.head=mano needs the MANO files: pass mano=FOLDER or set HANDLOOM_MANO, or "
            "train without MANO with model.head=joints"
        )
    return None if folder is None else load_mano(folder)


def _scene(model: ModelConfig) -> str:
    scene = getattr(model, "scene", None)
    return "" if scene is None else f" with model.scene={scene.name}"
