"""Weights in a folder: what is loaded is what was saved, without MANO, or it is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.hand import JointSet
from model.mano.files import ManoModels
from model.network import Inputs, Network
from model.prediction import Prediction, hands_of
from model.pretrained import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    InputSpec,
    PretrainedConfig,
    load_pretrained,
    read_pretrained_config,
    save_pretrained,
)
from model.regressor.config import Head, Readout, RegressorConfig, Scene
from model.regressor.net import HandRegressor

CONFIG = RegressorConfig(
    backbone="test_resnet", pretrained=False, hidden=16, readout_width=64, readout_layers=1
)
INPUTS = InputSpec(
    input_px=32,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    mirror_left=True,
    pad=1.5,
    joint_sets=(JointSet.freihand,),
)


def about(config: RegressorConfig, mano: ManoModels | None) -> PretrainedConfig:
    sha256 = "" if mano is None else mano.sha256
    return PretrainedConfig(model=config, inputs=INPUTS, mano_sha256=sha256, step=7)


def network(
    config: RegressorConfig, mano: ManoModels | None, *, right_only: bool = True
) -> HandRegressor:
    torch.manual_seed(0)
    model = HandRegressor(config, input_px=32, mano=mano, right_only=right_only, load_weights=False)
    model.base.normal_(std=0.1)
    return model


def answer(model: Network) -> Prediction:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 3, 32, 32, generator=generator)
    K = torch.tensor([[50.0, 0, 16], [0, 50, 16], [0, 0, 1]]).expand(3, 3, 3)
    right = torch.tensor([[True, False]] * 3)[:, : model.num_hands]
    sets = torch.full((3,), int(JointSet.freihand))
    with torch.inference_mode():
        prediction: Prediction = model.eval()(Inputs(image, K, right, sets, right, num_frames=3))
    return prediction


@pytest.fixture
def folder(mano: ManoModels, tmp_path: Path) -> Path:
    save_pretrained(network(CONFIG, mano), tmp_path / "weights", about(CONFIG, mano))
    return tmp_path / "weights"


@pytest.mark.parametrize("readout", list(Readout))
@pytest.mark.parametrize("head", list(Head))
@pytest.mark.parametrize("family", list(Scene))
def test_a_loaded_network_answers_as_the_saved_one(
    mano: ManoModels, tmp_path: Path, family: Scene, head: Head, readout: Readout
) -> None:
    models = mano if head is Head.mano else None
    layers = 1 if family is Scene.hand_object and readout is not Readout.transformer else 0
    config = replace(CONFIG, scene=family, head=head, readout=readout, temporal_layers=layers)
    saved = network(config, models, right_only=family is Scene.hand).train()
    if saved.temporal is not None:
        torch.nn.init.normal_(saved.temporal.leave.weight)
    saved.backbone(torch.randn(8, 3, 32, 32))  # moves the running statistics
    save_pretrained(saved, tmp_path, about(config, models))
    if family is Scene.hand_object:
        spec = replace(INPUTS, mirror_left=False)
        save_pretrained(saved, tmp_path, replace(about(config, models), inputs=spec))
    loaded = load_pretrained(tmp_path, mano=models)
    assert not loaded.training
    mine, theirs = answer(loaded).object, answer(saved).object
    assert (mine is None) == (theirs is None) == (family is Scene.hand)
    if mine is not None and theirs is not None:
        assert torch.equal(mine.transl, theirs.transl)
    assert torch.equal(hands_of(answer(loaded)).joints_3d, hands_of(answer(saved)).joints_3d)
    assert (hands_of(answer(loaded)).vertices is None) == (head is Head.joints)
    assert read_pretrained_config(tmp_path).model == config
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_frozen_backbone_comes_back_frozen(tmp_path: Path) -> None:
    """Published weights are not fetched again, and a path of the training machine is not kept."""
    published = replace(CONFIG, head=Head.joints, pretrained=True, weights="/home/someone/w.pt")
    saved = network(published, None)
    save_pretrained(saved, tmp_path, about(published, None))
    assert "someone" not in (tmp_path / CONFIG_FILE).read_text()
    loaded = load_pretrained(tmp_path, mano=None)
    assert torch.equal(hands_of(answer(loaded)).joints_3d, hands_of(answer(saved)).joints_3d)


def pairs(values: np.ndarray) -> np.ndarray:
    """Return every two neighbouring float32 as one uint64, but those with a zero or equal."""
    words = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32).astype(np.uint64)
    first, second = words[:-1], words[1:]
    telling = (first << 1 != 0) & (second << 1 != 0) & (first != second)
    both: np.ndarray = (first[telling] << 32) | second[telling]
    return both


def are_in(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Return which values are among ``ordered``, sorted once for many calls."""
    place = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
    found: np.ndarray = ordered[place] == values
    return found


@pytest.mark.parametrize("right_only", [True, False])
def test_no_value_of_mano_is_in_the_file(
    mano: ManoModels, tmp_path: Path, *, right_only: bool
) -> None:
    model = network(CONFIG, mano, right_only=right_only)
    save_pretrained(model, tmp_path, about(CONFIG, mano))
    data = (tmp_path / WEIGHTS_FILE).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    written = pairs(np.frombuffer(data[start:], np.float32)[: (len(data) - start) // 4])
    written.sort()

    buffers = dict(model.named_buffers())
    licensed = {name: value for name, value in buffers.items() if name not in model.state_dict()}
    names = ("basis", "joints_basis", "joints_rest", "template", "weights")
    expected = [f"decoder.mano.{name}" for name in names]
    assert sorted(name for name in licensed if name.startswith("decoder.mano.")) == expected
    arrays = {name: value.float().numpy() for name, value in licensed.items()}
    for side in (mano.right, mano.left):
        for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights"):
            arrays[f"file.{name}"] = getattr(side, name)
    arrays["file.hands_mean"] = mano.right.hands_mean
    arrays["file.hands_components"] = mano.right.hands_components
    for name, values in arrays.items():
        assert not are_in(pairs(values), written).any(), name
    assert are_in(pairs(model.base.numpy()), written).all(), "the check sees what is there"
    assert not any(
        name.startswith(("mano.", "regressors.")) for name in load_file(tmp_path / WEIGHTS_FILE)
    )


def test_another_mano_is_refused(folder: Path, mano: ManoModels) -> None:
    with pytest.raises(
        ValueError, match=r"trained with other MANO files \(sha256 \w{12}, got 00000"
    ):
        load_pretrained(folder, mano=replace(mano, sha256="0" * 64))
    with pytest.raises(ValueError, match=r"need the MANO files: pass mano=load_mano\(FOLDER\)"):
        load_pretrained(folder, mano=None)


def test_a_missing_joint_regressor_is_refused(mano: ManoModels, tmp_path: Path) -> None:
    inputs = replace(INPUTS, joint_sets=(JointSet.interhand26m,))
    save_pretrained(network(CONFIG, mano), tmp_path, replace(about(CONFIG, mano), inputs=inputs))
    assert mano.interhand_regressor is None
    with pytest.raises(ValueError, match=r"put its regressor J_regressor_mano_ih26m.npy"):
        load_pretrained(tmp_path, mano=mano)


def test_another_format_is_refused(folder: Path, mano: ManoModels) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(ValueError, match="has format 9, this code reads 3"):
        load_pretrained(folder, mano=mano)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 2, "model": {}}'])
def test_a_damaged_config_is_refused(folder: Path, mano: ManoModels, text: str) -> None:
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        load_pretrained(folder, mano=mano)


def test_missing_and_foreign_tensors_are_named(folder: Path, mano: ManoModels) -> None:
    path = folder / WEIGHTS_FILE
    tensors = load_file(path)
    del tensors["mlp.0.bias"]
    tensors["mlp.2.bias"] = torch.zeros(3)
    save_file(tensors, path)
    expected = r"2 tensors are .*mlp.0.bias: \(16,\) -> None, mlp.2.bias: \(109,\) -> \(3,\)"
    with pytest.raises(ValueError, match=expected):
        load_pretrained(folder, mano=mano)


def test_torn_and_missing_files_are_refused(folder: Path, mano: ManoModels) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load_pretrained(folder, mano=mano)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has a config.json, but no model.safetensors"):
        load_pretrained(folder, mano=mano)
    with pytest.raises(
        FileNotFoundError, match=r"has no config.json; expected a folder of weights"
    ):
        load_pretrained(folder.parent, mano=mano)
