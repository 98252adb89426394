"""Trained weights as a folder: ``model.safetensors`` and ``config.json``.

It contains no array of the licensed MANO files: they are buffers outside the state dict. Loading a
MANO model requires the same files. The mean pose that the network starts from is the tensor
``base``.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final

from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config import ModelConfig
from model.families import build_network
from model.fields import shown
from model.hand import JointSet
from model.mano.files import INTERHAND_REGRESSOR_FILE, ManoModels
from model.network import Network
from model.plain import from_plain, to_plain
from model.records import Count, as_record, parse_json

FORMAT: Final = 3
READABLE: Final = (2, FORMAT)
"""Format 2, from before model families, can be read until release 0.2."""
WEIGHTS_FILE: Final = "model.safetensors"
CONFIG_FILE: Final = "config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """Input that the weights expect: ``(rgb / 255 - mean) / std`` of a square crop."""

    input_px: int
    """Side of the crop, pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mirror_left: bool
    """Left hands are mirrored to look right."""
    pad: float
    """Side of the crop over the longer side of the box: of the joints, or of hands and object."""
    joint_sets: tuple[JointSet, ...]
    """Joint convention(s) of the training labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedConfig:
    """Content of ``config.json``."""

    model: ModelConfig
    inputs: InputSpec
    mano_sha256: str
    """Hash of the MANO files the network was trained with; empty without MANO."""
    step: int
    """Training step of the weights."""


def save_pretrained(model: nn.Module, folder: Path, config: PretrainedConfig) -> None:
    """Write both files; each is replaced atomically.

    Args:
        model: A network or its averaged copy.
        folder: Created if absent.
        config: What the model was built with.

    Raises:
        OSError: If a write fails; an existing file is then kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "format": FORMAT,
        "model": _without_paths(to_plain(config.model)),
        "inputs": asdict(config.inputs)
        | {"joint_sets": [joint_set.name for joint_set in config.inputs.joint_sets]},
        "mano_sha256": config.mano_sha256,
        "step": config.step,
    }
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    partial = folder / f"{WEIGHTS_FILE}.tmp"
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{partial} was not written: {error}") from error
    _put(partial, folder / WEIGHTS_FILE)
    partial = folder / f"{CONFIG_FILE}.tmp"
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _put(partial, folder / CONFIG_FILE)


def read_pretrained_config(folder: Path) -> PretrainedConfig:
    """Return the content of ``config.json``.

    Raises:
        FileNotFoundError: If the folder has none.
        ValueError: If it has another format or is damaged.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {CONFIG_FILE}; expected a folder of weights, such as RUN/weights of "
            "python -m train run"
        )
    try:
        record: dict[str, Any] = as_record(dict[str, Any], parse_json(path.read_bytes()))
        found = record["format"]
        if found in READABLE and not isinstance(found, bool):
            return _parsed(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    raise ValueError(
        f"{path} has format {shown(found)}, this code reads {FORMAT}; write the weights again "
        "with this version"
    )


def load_pretrained(folder: Path, *, mano: ManoModels | None) -> Network:
    """Load the network of a folder on the CPU, in evaluation mode.

    Args:
        folder: Written by ``save_pretrained``.
        mano: The MANO files it was trained with; None for a network without MANO.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, MANO is missing or differs, or tensors do not fit.
    """
    config = read_pretrained_config(folder)
    if config.model.needs_mano:
        _check_mano(folder, config, mano)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has a {CONFIG_FILE}, but no {WEIGHTS_FILE}")
    tensors = _read_tensors(path)
    model = build_network(
        config.model,
        input_px=config.inputs.input_px,
        mano=mano,
        right_only=config.inputs.mirror_left,
        load_weights=False,
    )
    expected, found = _shapes(model.state_dict()), _shapes(tensors)
    if expected != found:
        wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        shown = ", ".join(f"{k}: {expected.get(k)} -> {found.get(k)}" for k in wrong[:4])
        raise ValueError(
            f"{path} does not hold the weights that {CONFIG_FILE} describes; {len(wrong)} tensors "
            f"are missing, too many or of another shape (expected -> found: {shown})"
        )
    model.load_state_dict(tensors)
    return model.eval()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...] | str]:
    """Return each tensor's shape; text for one of integers, which no float is replaced by."""
    return {
        name: tuple(value.shape) if value.is_floating_point() else f"{value.dtype} {value.shape}"
        for name, value in tensors.items()
    }


def fitting_tensors(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder of weights with the name and shape of one of the network's.

    Args:
        model: Any of this package's networks.
        folder: Written by ``save_pretrained``.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: If the file is damaged, or no tensor fits.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {WEIGHTS_FILE}; expected a folder of weights, such as RUN/weights of "
            "python -m train run"
        )
    tensors = _read_tensors(path)
    own = model.state_dict()
    fits = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    if not fits:
        raise ValueError(
            f"{path}: none of its {len(tensors)} tensors has the name and shape of one of the "
            "network's; give the same model family, model.backbone and model.head"
        )
    return fits


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        shown = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged ({shown}); copy or write it again") from error
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"{path} is damaged: {name} is not finite; copy it again, or take the weights of "
                "another checkpoint"
            )
    return tensors


def _check_mano(folder: Path, config: PretrainedConfig, mano: ManoModels | None) -> None:
    if mano is None:
        raise ValueError(
            f"the weights in {folder} predict MANO parameters and need the MANO files: pass "
            "mano=load_mano(FOLDER)"
        )
    if mano.sha256 != config.mano_sha256:
        raise ValueError(
            f"the weights in {folder} were trained with other MANO files (sha256 "
            f"{config.mano_sha256[:12]}, got {mano.sha256[:12]}): the same parameters would be "
            "another hand; pass the files of the training"
        )
    if JointSet.interhand26m in config.inputs.joint_sets and mano.interhand_regressor is None:
        raise ValueError(
            f"the weights in {folder} predict the joints of InterHand2.6M; put its regressor "
            f"{INTERHAND_REGRESSOR_FILE} into the MANO folder"
        )


def _parsed(record: dict[str, Any]) -> PretrainedConfig:
    found = as_record(_Record, record)
    inputs = {f.name: getattr(found.inputs, f.name) for f in fields(_Inputs)}
    unknown = [name for name in found.inputs.joint_sets if name not in JointSet.__members__]
    if unknown:
        raise ValueError(f"inputs.joint_sets: there is no {shown(unknown[0])}")
    inputs["joint_sets"] = tuple(JointSet[name] for name in found.inputs.joint_sets)
    return PretrainedConfig(
        model=from_plain(ModelConfig, found.model),
        inputs=InputSpec(**inputs),
        mano_sha256=found.mano_sha256,
        step=found.step,
    )


_Finite = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Positive = Annotated[float, Meta(gt=1e-6, le=1e6)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inputs:
    """An ``InputSpec`` in JSON."""

    input_px: Annotated[int, Meta(ge=1, le=16_384)]
    mean: tuple[_Finite, _Finite, _Finite]
    std: tuple[_Positive, _Positive, _Positive]
    mirror_left: bool
    pad: Annotated[float, Meta(gt=0, le=100)]
    joint_sets: Annotated[list[str], Meta(min_length=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """A ``config.json``."""

    model: dict[str, Any]
    inputs: _Inputs
    mano_sha256: str
    step: Count


def _without_paths(model: dict[str, Any]) -> dict[str, Any]:
    """Leave out the file of backbone weights: a path on the training machine, read no more."""
    return model | {"weights": None} if "weights" in model else model


def _put(partial: Path, path: Path) -> None:
    """Move a finished file to its place and sync file and folder to disk."""
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
