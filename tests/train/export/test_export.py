"""Exported files against the network, and in a process that has nothing but their runtime."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.families import FAMILIES, build_network, config_class
from model.hand import JointSet
from model.mano.files import ManoModels, load_mano
from model.network import Network
from model.pretrained import InputSpec, PretrainedConfig, save_pretrained
from tests.preprocess.datasets import write_mano
from train.config import ExportConfig, ExportFormat
from train.export import export
from train.export.export import ExportedNetwork, differences, example, main

PX = 32
TINY: dict[str, Any] = {"backbone": "test_resnet", "pretrained": False, "hidden": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mano, grid": ("regressor", TINY | {"head": "mano", "readout": "grid"}),
    "joints": ("regressor", TINY | {"head": "joints"}),
    "mano, transformer": (
        "regressor",
        TINY | {"readout": "transformer", "readout_width": 64, "readout_layers": 1},
    ),
    "scene in windows": (
        "regressor",
        TINY | {"scene": "hand_object", "head": "joints", "temporal_layers": 1},
    ),
}
"""Small networks of every family and readout."""


@pytest.fixture(scope="module")
def mano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mano")
    write_mano(folder)
    return folder


@pytest.fixture(scope="module")
def mano(mano_folder: Path) -> ManoModels:
    return load_mano(mano_folder)


def network(name: str, mano: ManoModels) -> tuple[Network, PretrainedConfig]:
    """A network with random weights, whose prediction depends on the image by centimetres."""
    family, values = MODELS[name]
    config = config_class(family)(**values)
    mirror = values.get("scene") != "hand_object"
    torch.manual_seed(0)
    net = build_network(
        config,
        input_px=PX,
        mano=mano if config.needs_mano else None,
        right_only=mirror,
        load_weights=False,
    )
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, parameter in net.named_parameters():
            if name == "mlp.2.weight" or (name.startswith("readout.heads") and "2.weight" in name):
                parameter.normal_(std=0.05)
        if config.needs_mano:
            net.get_buffer("base")[:96] = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(16)
    spec = InputSpec(
        input_px=PX, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2), mirror_left=mirror, pad=1.5,
        joint_sets=(JointSet.smplx,),
    )  # fmt: skip
    sha256 = mano.sha256 if config.needs_mano else ""
    return net.eval(), PretrainedConfig(model=config, inputs=spec, mano_sha256=sha256, step=7)


def saved(folder: Path, name: str, mano: ManoModels) -> Path:
    """Save it as a run of windows of three frames would."""
    net, about = network(name, mano)
    save_pretrained(net, folder / "weights", about)
    record = {"config": {"pipeline": {"window": {"length": 3}}}}
    (folder / "manifest.json").write_text(json.dumps(record))
    return folder


def test_every_family_is_exported() -> None:
    assert {family for family, _ in MODELS.values()} == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("mano, grid", "onnx"),
        ("mano, transformer", "pt2"),
        ("joints", "torchscript"),
        ("joints", "pt2"),
        ("scene in windows", "pt2"),
    ],
)
def test_a_file_gives_what_the_network_does(
    tmp_path: Path,
    mano_folder: Path,
    mano: ManoModels,
    capsys: pytest.CaptureFixture[str],
    name: str,
    format_: str,
) -> None:
    run = saved(tmp_path, name, mano)
    kind = ExportFormat[format_]
    assert main(ExportConfig(run=str(run), format=kind, mano=str(mano_folder))) == 0
    file = run / "export" / f"model{export.SUFFIXES[kind]}"
    assert sorted(file.parent.iterdir()) == sorted([file, file.with_suffix(".json")])
    told = json.loads(file.with_suffix(".json").read_text())
    net, about = network(name, mano)
    assert (told["step"], told["mean"], told["joint_set"]) == (7, [0.4, 0.5, 0.6], "smplx")
    assert ("licence" in told) == about.model.needs_mano
    assert "largest difference at batch 1, 4, 7: hands.joints_3d" in capsys.readouterr().out

    num_frames = told["frames_per_window"]
    module = ExportedNetwork(
        net, JointSet.smplx, mirrors_left=told["mirror_left"], num_frames=num_frames
    )
    inputs = example(module, 2, seed=99)
    found = export.READERS[kind](file.read_bytes())(inputs)
    expected = tuple(value.detach() for value in module(*inputs))
    assert list(told["outputs"]) == list(module.names)
    for output, mine, theirs in zip(module.names, expected, found, strict=True):
        torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-5, msg=output)
        assert told["outputs"][output]["shape"][1:] == list(mine.shape[1:])
    spread = (expected[0][0] - expected[0][-1]).abs().max()
    assert spread > 1e-3  # metres: the images, cameras and sides matter
    if format_ == "onnx":
        _runs_alone(file, inputs, dict(zip(module.names, expected, strict=True)))


ALONE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {"onnxruntime", "numpy", *sys.stdlib_module_names}:
            if name.split(".")[0] in {"torch", "model", "pipeline", "train", "onnx", "timm"}:
                raise ImportError(name)
sys.meta_path.insert(0, Hidden())
import numpy as np, onnxruntime
given = dict(np.load(sys.argv[2]))
session = onnxruntime.InferenceSession(sys.argv[1])
names = [one.name for one in session.get_outputs()]
np.savez(sys.argv[3], **dict(zip(names, session.run(None, given))))
assert "torch" not in sys.modules
"""


def _runs_alone(file: Path, inputs: tuple[Tensor, ...], expected: dict[str, Tensor]) -> None:
    """Run the file in a process that has onnxruntime and numpy only."""
    given, found = file.with_name("given.npz"), file.with_name("found.npz")
    arrays: dict[str, Any] = {n: v.numpy() for n, v in zip(export.INPUTS, inputs, strict=True)}
    np.savez(given, **arrays)
    words = [sys.executable, "-c", ALONE, str(file), str(given), str(found)]
    subprocess.run(words, check=True, cwd=file.parent)
    with np.load(found) as outputs:
        assert set(outputs.files) == set(expected)
        for name, mine in expected.items():
            np.testing.assert_allclose(outputs[name], mine, atol=1e-5, err_msg=name)


def test_a_file_that_differs_is_not_kept(
    tmp_path: Path, mano: ManoModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path, "joints", mano)
    old = run / "export" / "model.pt2"
    old.parent.mkdir()
    old.write_text("of last week")
    read = export.READERS[ExportFormat.pt2]

    def shifted(content: bytes) -> export.Run:
        usual = read(content)
        return lambda inputs: tuple(value + 2e-5 for value in usual(inputs))

    monkeypatch.setitem(export.READERS, ExportFormat.pt2, shifted)
    with pytest.raises(ValueError, match=r"differs from the network \(hands.joints_3d: mean 0.03"):
        main(ExportConfig(run=str(run), format=ExportFormat.pt2))
    assert [file.name for file in old.parent.iterdir()] == ["model.pt2"]
    assert old.read_text() == "of last week"


@pytest.mark.parametrize("format_", ["pt2", "torchscript", "onnx"])
def test_a_full_disk_leaves_the_file_of_before(
    tmp_path: Path, mano: ManoModels, format_: str
) -> None:
    """Written by torch itself, a file that does not fit would end the process."""
    kind = ExportFormat[format_]
    run = saved(tmp_path, "joints", mano)
    old = run / "export" / f"model{export.SUFFIXES[kind]}"
    old.parent.mkdir()
    old.write_text("of last week")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: '{old}'"):
            main(ExportConfig(run=str(run), format=kind))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(old.parent.iterdir()) == [old]
    assert old.read_text() == "of last week"


def test_a_name_of_another_format_is_refused(tmp_path: Path, mano: ManoModels) -> None:
    config = ExportConfig(run=str(saved(tmp_path, "joints", mano)), out="model.pt2")
    with pytest.raises(ValueError, match=r"out='model.pt2' must end in .onnx for format=onnx"):
        main(config)


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, mano: ManoModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    config = ExportConfig(run=str(saved(tmp_path, "joints", mano)))
    with pytest.raises(ValueError, match=r"pip install handloom\[export\], or use format=pt2"):
        main(config)
    assert list((tmp_path / "export").iterdir()) == []


def test_the_difference_is_in_millimetres(mano: ManoModels) -> None:
    net, _ = network("joints", mano)
    module = ExportedNetwork(net, JointSet.smplx, mirrors_left=True, num_frames=1)
    module.requires_grad_(requires_grad=False)

    def farther(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (joints,) = module(*inputs)
        off = torch.zeros_like(joints)
        off[0, 0, 0] = torch.tensor([0.003, 0.004, 0.0])  # of 5 mm, one joint per batch
        return (joints + off,)

    found = differences(module, farther)["hands.joints_3d"]
    assert found.max_mm == pytest.approx(5, rel=1e-4)
    assert found.mean_mm == pytest.approx(3 * 5 / (12 * 21), rel=1e-4)
