"""The transformer readout against numpy; what its tokens and queries stand for."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.config import BackboneConfig
from model.parts.backbone import build_backbone, build_level_backbone, feature_maps
from model.parts.token_readout import TokenReadout, cell_centers

PX = 32
HAND = ((16, 6), (1, 10), (1, 3))
OBJECT = ((1, 6), (1, 1), (1, 3))
K = torch.tensor([[40.0, 0.0, 14.0], [0.0, 50.0, 17.0], [0.0, 0.0, 1.0]])
Array = NDArray[np.float64]


def readout(groups: tuple[tuple[tuple[int, int], ...], ...] = (HAND,)) -> TokenReadout:
    torch.manual_seed(0)
    made = TokenReadout((5, 7), groups, input_px=PX, width=128, layers=2, hidden=24).double()
    for parameter in made.parameters():  # biases and last layers as a trained one has them
        nn.init.normal_(parameter, std=0.2)
    return made


def maps(num: int = 2) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [
        torch.randn(num, 5, 4, 6, generator=random, dtype=torch.float64),
        torch.randn(num, 7, 2, 3, generator=random, dtype=torch.float64),
    ]


def cameras(num: int = 2) -> Tensor:
    return K.double().expand(num, 3, 3) + torch.arange(num)[:, None, None] * 0.5


# --- oracle ---------------------------------------------------------------------------------------


def linear(x: Array, module: nn.Module) -> Array:
    weight, bias = (p.detach().numpy() for p in module.parameters())
    return np.asarray(x @ weight.T + bias)


def gelu(x: Array) -> Array:
    return np.asarray(x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2)


def layer_norm(x: Array, module: nn.Module) -> Array:
    weight, bias = (p.detach().numpy() for p in module.parameters())
    spread = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return np.asarray((x - x.mean(-1, keepdims=True)) / spread * weight + bias)


def attended(x: Array, module: nn.Module) -> Array:
    q, k, v = (linear(x, module.get_submodule(name)) for name in "qkv")
    found = np.zeros_like(q)
    for head in range(q.shape[1] // 64):
        part = slice(64 * head, 64 * head + 64)
        score = q[:, part] @ k[:, part].T / 8
        share = np.exp(score - score.max(1, keepdims=True))
        found[:, part] = share / share.sum(1, keepdims=True) @ v[:, part]
    return linear(found, module.get_submodule("o"))


def place(row: int, column: int, height: int, width: int) -> Array:
    """32 sines and 32 cosines of x, then of y, of wavelengths from two images to a hundredth."""
    found: list[float] = []
    for value in ((column + 0.5) / width, (row + 0.5) / height):
        speed = [2 * math.pi / (2 * (0.01 / 2) ** (i / 31)) for i in range(32)]
        found += [math.sin(value * s) for s in speed] + [math.cos(value * s) for s in speed]
    return np.array(found)


def expected(net: TokenReadout, features: list[Tensor], camera: Array) -> Array:
    tokens = list(net.queries.detach().numpy())
    for level, values in enumerate(features):
        of_cells = values.numpy()
        _, height, width = of_cells.shape
        for row in range(height):
            for column in range(width):
                u, v = (column + 0.5) * PX / width - 0.5, (row + 0.5) * PX / height - 0.5
                ray = (u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1]
                tokens.append(
                    linear(of_cells[:, row, column], net.enter[level])
                    + net.level[level].detach().numpy()
                    + place(row, column, height, width)
                    + linear(np.array(ray), net.ray)
                )
    x = np.stack(tokens)
    for layer in net.layers:
        normed = layer_norm(x, layer.get_submodule("norm1"))
        x = x + attended(normed, layer.get_submodule("attention"))
        inner = gelu(
            linear(layer_norm(x, layer.get_submodule("norm2")), layer.get_submodule("mlp.0"))
        )
        x = x + linear(inner, layer.get_submodule("mlp.2"))
    x = layer_norm(x, net.norm)
    numbers, query = [], 0
    for count, head in zip((16, 1, 1), net.heads[0].children(), strict=True):
        for _ in range(count):
            inner = gelu(linear(x[query], head.get_submodule("0")))
            numbers.append(linear(inner, head.get_submodule("2")))
            query += 1
    return np.concatenate(numbers)


def test_it_is_the_formula() -> None:
    net, features, camera = readout(), maps(), cameras()
    found = net(features, camera).detach().numpy()
    assert found.shape == (2, 16 * 6 + 10 + 3)
    for i in range(2):
        mine = expected(net, [values[i] for values in features], camera[i].numpy())
        np.testing.assert_allclose(found[i], mine, atol=1e-5)  # positions are float32


# --- what tokens and queries are ------------------------------------------------------------------


def test_a_dot_in_the_image_changes_the_token_of_its_cell() -> None:
    net = readout()
    features = maps(1)
    before = [net._tokens(level, values, cameras(1)) for level, values in enumerate(features)]
    features[0][0, :, 2, 5] += 1.0
    features[1][0, :, 1, 0] += 1.0
    after = [net._tokens(level, values, cameras(1)) for level, values in enumerate(features)]
    moved = [
        (a - b).abs().amax(-1)[0].nonzero().flatten().tolist()
        for a, b in zip(after, before, strict=True)
    ]
    assert moved == [[2 * 6 + 5], [1 * 3 + 0]]


def test_cells_of_both_levels_lie_at_their_place_of_the_image() -> None:
    found = cell_centers(2, 4, torch.device("cpu")).tolist()
    assert found[0] == [0.125, 0.25]
    assert found[3] == [0.875, 0.25]
    assert found[4] == [0.125, 0.75]


def test_queries_in_another_order_give_their_parts_in_that_order() -> None:
    net, features = readout(), maps()
    before = net(features, cameras())[:, :96].view(2, 16, 6)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    net.queries.data[:16] = net.queries.data[:16][order]
    after = net(features, cameras())[:, :96].view(2, 16, 6)
    torch.testing.assert_close(after, before[:, order])
    assert (before[:, 0] - before[:, 1]).abs().min() > 1e-4


def test_both_hands_share_their_heads_and_the_object_has_its_own() -> None:
    net = readout((HAND, HAND, OBJECT))
    assert [len(list(heads.children())) for heads in net.heads] == [3, 3]
    found = net(maps(), cameras())
    assert found.shape == (2, 2 * 109 + 10)
    net.queries.data[18:36] = net.queries.data[:18]
    equal = net(maps(), cameras())
    torch.testing.assert_close(equal[:, :109], equal[:, 109:218])
    assert (found[:, :109] - found[:, 109:218]).abs().max() > 1e-3


def test_images_do_not_look_at_each_other() -> None:
    net, features, camera = readout(), maps(3), cameras(3)
    together = net(features, camera)
    alone = torch.cat([net([f[i : i + 1] for f in features], camera[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_without_a_camera_the_numbers_are_finite() -> None:
    found = readout()(maps(1), torch.eye(3, dtype=torch.float64)[None])
    assert found.isfinite().all()


# --- feature maps ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "px"), [("test_resnet", 64), ("test_vit", 64)])
def test_the_last_map_is_the_backbones_own(name: str, px: int) -> None:
    config = BackboneConfig(backbone=name, pretrained=False)
    backbone, channels = build_level_backbone(config, px, 2)
    backbone.eval()
    image = torch.randn(2, 3, px, px)
    with torch.no_grad():
        found = feature_maps(backbone, image, 2)
        last = backbone.forward_features(image)  # type: ignore[operator]
    assert tuple(f.shape[1] for f in found) == channels
    if name == "test_vit":
        last = last[:, 1:].mT.unflatten(-1, (4, 4))  # without the class token
    else:
        assert [tuple(f.shape[-2:]) for f in found] == [(4, 4), (2, 2)]
    torch.testing.assert_close(found[-1], last)
    pooled, _ = build_backbone(config, px)
    names = {k for k in pooled.state_dict() if not k.startswith("fc_norm")}
    assert names >= set(backbone.state_dict())


def test_a_backbone_without_feature_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("timm.models.resnet.ResNet.forward_intermediates")
    config = BackboneConfig(backbone="test_resnet", pretrained=False)
    with pytest.raises(ValueError, match="needs 2 feature maps, which 'test_resnet' does not"):
        build_level_backbone(config, 64, 2)
