"""Files of ``train export`` as predictors: onnxruntime runs them, no network of torch is built."""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from model.hand import JointSet
from model.mano.files import ManoModels, find_mano, load_mano
from model.mano.layer import ManoLayer, joint_regressors, regress_joints
from model.prediction import HandPrediction, ObjectPrediction, Prediction
from model.pretrained import InputSpec
from pipeline.app.files import existing
from pipeline.batch import Batch
from pipeline.config import ViewKind
from train.config import PredictConfig
from train.predict.crops import Crops

FORMAT: Final = 1
"""Version of ``model.json``."""
WRIST: Final = "hands.wrist"
"""Output of a file that MANO decodes outside: joint 0; ``transl = wrist - J0(beta)``."""

Run = Callable[[Batch], dict[str, Tensor]]


def load_exported(config: PredictConfig) -> dict[str, Any]:
    """Load an ONNX file with its description; return the fields of a ``Predictor``.

    Raises:
        FileNotFoundError: If one of them is missing.
        ValueError: If they do not belong together, or the file cannot be run; says why.
    """
    assert config.model is not None
    file = existing(config.model, "model")
    about = _described(file, config.model)
    if about["format"] != "onnx":
        raise ValueError(
            f"model={config.model!r} has format {about['format']!r}; predict runs format=onnx, the "
            "others are for programs of torch"
        )
    spec = InputSpec(
        input_px=about["inputs"]["image"]["shape"][-1],
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        mirror_left=about["mirror_left"],
        pad=about["pad"] * config.box_scale,
        joint_sets=(JointSet[about["joint_set"]],),
    )
    is_outside = about["decode"] == "outside"
    mano = _mano_of(config, about)
    if config.joint_set not in (None, about["joint_set"]) and not is_outside:
        raise ValueError(
            f"joint_set={config.joint_set!r}: the file gives the joints of {about['joint_set']}; "
            "export the run with another joint_set="
        )
    if config.meshes and (mano is None or about["decode"] is None):
        raise ValueError(
            f"meshes=true needs the faces of MANO, mano=FOLDER, and a file with MANO parameters; "
            f"model={config.model!r} has {'none' if about['decode'] is None else 'them'}"
        )
    joint_set = JointSet[config.joint_set or about["joint_set"]]
    run = session_of(file, about)
    decode = _decoder(mano, joint_set, about) if is_outside and mano is not None else prediction_of
    crops = Crops(
        spec=spec,
        margin=about["cached_margin"],
        cache_px=about["cached_px"],
        view=ViewKind[about["view"]],
        is_known=True,
    )
    return {
        "network": lambda batch: decode(run(batch), batch),
        "weights": file,
        "step": about["step"],
        "crops": crops,
        "num_frames": about["frames_per_window"],
        "joint_set": joint_set,
        "faces": None if mano is None else mano.right.f,
        "device": torch.device("cpu"),
        "batch_size": config.batch_size,
    }


def session_of(file: Path, about: dict[str, Any]) -> Run:
    """Return what runs a file on a batch and gives its outputs by name.

    Raises:
        ValueError: If onnxruntime is not here or does not take the file.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ValueError(
            f"model={str(file)!r} needs the package onnxruntime ({error}); pip install "
            "handloom[export]"
        ) from error
    try:
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds
        raise ValueError(f"model={str(file)!r} cannot be run by onnxruntime: {error}") from error
    names = list(about["outputs"])

    def run(batch: Batch) -> dict[str, Tensor]:
        frames = batch.frames()
        given = {
            "image": frames.image.float().numpy(),
            "K": frames.K.numpy(),
            "is_right": frames.is_right.numpy(),
        }
        outputs = session.run(names, given)
        return {n: torch.from_numpy(np.asarray(o)) for n, o in zip(names, outputs, strict=True)}

    return run


def prediction_of(outputs: dict[str, Tensor], _: Batch) -> Prediction:
    """Return the outputs as a prediction; those that it has no place for are left out."""

    def part(kind: type[Any], prefix: str) -> Any:
        names = {field.name for field in dataclasses.fields(kind)}
        found = {n.removeprefix(prefix): v for n, v in outputs.items() if n.startswith(prefix)}
        return kind(**{name: value for name, value in found.items() if name in names})

    has_object = "object.rotmat" in outputs
    return Prediction(
        hands=part(HandPrediction, "hands."),
        object=part(ObjectPrediction, "object.") if has_object else None,
    )


def _decoder(
    mano: ManoModels, joint_set: JointSet, about: dict[str, Any]
) -> Callable[[dict[str, Tensor], Batch], Prediction]:
    """Return what decodes a file's MANO parameters with the user's MANO."""
    layer = ManoLayer(mano, right_only=about["mirror_left"])
    regressors = joint_regressors(mano)

    def decode(outputs: dict[str, Tensor], batch: Batch) -> Prediction:
        is_right = batch.frames().is_right
        side = torch.ones_like(is_right) if about["mirror_left"] else is_right
        theta, beta, wrist = (outputs[n] for n in ("hands.theta_rotmat", "hands.beta", WRIST))
        transl = wrist - layer.root_rest(beta.flatten(0, 1), side.flatten()).view_as(wrist)
        decoded = layer(*(x.flatten(0, 1) for x in (theta, beta, transl)), side.flatten())
        vertices, skeleton = (points.unflatten(0, is_right.shape) for points in decoded)
        sets = torch.full_like(is_right, int(joint_set), dtype=torch.int64)
        own = {
            "hands.joints_3d": regress_joints(vertices, skeleton, regressors, sets, is_right),
            "hands.vertices": vertices,
            "hands.transl": transl,
        }
        return prediction_of(outputs | own, batch)

    return decode


def _mano_of(config: PredictConfig, about: dict[str, Any]) -> ManoModels | None:
    """Return MANO where the user names it.

    Raises:
        ValueError: If the file needs it and it is not named, or is another one.
    """
    folder = find_mano(config.mano) if about["decode"] is not None else None
    if folder is None:
        if about["decode"] == "outside":
            raise ValueError(
                f"model={config.model!r} gives MANO parameters, which need the MANO files: pass "
                "mano=FOLDER or set HANDLOOM_MANO"
            )
        return None
    mano = load_mano(folder)
    if mano.sha256 != about["mano_sha256"]:
        raise ValueError(
            f"mano={str(folder)!r} is not the MANO of the training (sha256 "
            f"{about['mano_sha256'][:12]}, got {mano.sha256[:12]}): pass the files of the training"
        )
    return mano


def _described(file: Path, given: str) -> dict[str, Any]:
    """Return the description beside a file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another file or version.
    """
    path = file.with_suffix(".json")
    if not file.is_file() or not path.is_file():
        raise FileNotFoundError(
            f"model={given!r} must be a file of python -m train export, with {path.name} beside it"
        )
    try:
        about: dict[str, Any] = json.loads(path.read_bytes())
        version, digest = about["version"], about["sha256"]
        keys = {"view", "decode", "cached_px", "format"} - about.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe an exported network ({error})") from error
    if version != FORMAT or keys:
        raise ValueError(f"{path} is of another version; export the run again")
    if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{path} describes another file than {file.name}; copy both together")
    return about
