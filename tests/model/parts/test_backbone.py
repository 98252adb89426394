"""A frozen BatchNorm against timm's own, which is its formula in float32."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from model.parts.backbone import build_backbone, freeze_batch_norm
from model.regressor.config import RegressorConfig


@pytest.fixture(params=["test_resnet", "mobilenetv3_small_050"])
def backbone(request: pytest.FixtureRequest) -> Any:
    """A convolutional network whose BatchNorms have seen something."""
    generator = torch.Generator().manual_seed(0)
    network = timm.create_model(request.param, num_classes=0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.running_mean, norm.bias.data):
                assert values is not None
                values.normal_(0, 0.1, generator=generator)
            for values in (norm.running_var, norm.weight.data):
                assert values is not None
                values.uniform_(0.5, 2, generator=generator)
    return network


def test_in_float32_it_is_timms(backbone: Any) -> None:
    """Bit for bit, forward and backward, in training mode too."""
    theirs = freeze_batch_norm_2d(copy.deepcopy(backbone)).train()  # type: ignore[no-untyped-call]
    freeze_batch_norm(backbone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    out = []
    for network in (backbone.train(), theirs):
        features = network(image)
        features.square().sum().backward()
        out.append([features, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(out[0]) == len(out[1]) > 5
    assert all(torch.equal(mine, own) for mine, own in zip(*out, strict=True))


def saved(path: Path, tensors: object) -> str:
    torch.save(tensors, path)
    return str(path)


def weights_file(folder: Path, kind: str) -> str:
    """Write a file that somebody may give for the weights of test_resnet."""
    path = folder / "weights.pth"
    if kind == "absent":
        return str(path)
    if kind == "folder":
        return str(folder)
    if kind == "text":
        path.write_text("hello")
        return str(path)
    if kind == "safetensors":
        (folder / "weights.safetensors").write_text("hello")
        return str(folder / "weights.safetensors")
    theirs = timm.create_model("test_vit").state_dict()
    own = timm.create_model("test_resnet").state_dict()
    lacking = {key: value for key, value in own.items() if not key.startswith("layer4")}
    wider = {key: torch.cat((value, value)) for key, value in own.items() if value.ndim}
    tensors = {"network": theirs, "lacking": lacking, "list": [1, 2], "shapes": wider, "own": own}
    saved(path, tensors.get(kind, {"state_dict": own}))
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    return str(path)


def built(weights: str) -> nn.Module:
    config = RegressorConfig(backbone="test_resnet", weights=weights)
    return build_backbone(config, 32)[0]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("absent", "is not a file; expected a checkpoint of 'test_resnet'"),
        ("folder", "is not a file"),
        ("text", "cannot be loaded into 'test_resnet'"),
        ("safetensors", "cannot be loaded into 'test_resnet'"),
        ("cut", "cannot be loaded into 'test_resnet'"),
        ("list", "cannot be loaded into 'test_resnet'"),
        ("shapes", "cannot be loaded into 'test_resnet'.*size mismatch"),
        ("network", r"lacks \d+ of the \d+ weights of 'test_resnet' \(first: conv1"),
        ("lacking", r"lacks \d+ of the \d+ weights of 'test_resnet' \(first: layer4"),
    ],
)
def test_a_file_of_other_weights_is_one_sentence(tmp_path: Path, kind: str, sentence: str) -> None:
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"model.weights='.*{sentence}"
    ) as got:
        built(weights_file(tmp_path, kind))
    assert "\n" not in str(got.value)


@pytest.mark.parametrize("kind", ["own", "nested"])
def test_its_own_weights_are_loaded(tmp_path: Path, kind: str) -> None:
    path = weights_file(tmp_path, kind)
    state = torch.get_rng_state()
    first, second = built(path), built(path)
    assert not torch.equal(state, torch.get_rng_state())  # as without a file
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_features_keep_their_type_under_autocast() -> None:
    """What timm's does not: its float32 features would stay float32 from block to block."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    freeze_batch_norm(network)
    saved: list[torch.dtype] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.numel() > 4:  # not the norm's own constants
            saved.append(tensor.dtype)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        assert network(torch.randn(2, 3, 8, 8)).dtype is torch.bfloat16
    assert set(saved) == {torch.bfloat16}


def test_a_frozen_norm_rounds_once_in_bfloat16() -> None:
    """Constants of 8 bits would move a channel by 0.4 %, another way in every fused kernel."""
    norm = nn.BatchNorm2d(64)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(1.0, 1.01, 64))
        norm.bias.copy_(torch.linspace(-0.003, 0.003, 64))
    network = nn.Sequential(norm)
    freeze_batch_norm(network)
    frozen: Any = network[0]
    x = torch.randn(2, 64, 5, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    x.requires_grad_()
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = frozen(x)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, frozen(x.float()).bfloat16())
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype is torch.bfloat16
    assert sum(t.nbytes for t in saved) <= frozen.scale.nbytes  # no activation is kept for it
