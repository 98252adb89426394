"""A frozen BatchNorm against timm's own, which is its formula in float32."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from model.parts.backbone import freeze_batch_norm


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
