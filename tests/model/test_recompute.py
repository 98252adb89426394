"""Activations computed again: how many blocks, how much memory, the same gradient, every copy."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from model.parts.recompute import blocks_of, checkpoint_activations
from model.regressor.config import Head, RegressorConfig
from model.regressor.net import HandRegressor


def backbone(name: str) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=0).train()


def forwards(net: nn.Module, image: Tensor) -> list[int]:
    """How often each block computes in a forward and backward pass."""
    counts = [0] * len(blocks_of(net))

    def count(number: int) -> Any:
        def hook(*_: Any) -> None:
            counts[number] += 1

        return hook

    handles = [
        # Of a part: a block's own hooks are around what is computed again, not in it.
        next(block.children()).register_forward_hook(count(number))
        for number, block in enumerate(blocks_of(net))
    ]
    net(image).sum().backward()
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize(
    ("name", "num"), [("test_vit", 6), ("test_resnet", 4), ("test_convnext", 9)]
)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.99])
def test_a_share_of_the_blocks_is_computed_again(name: str, num: int, share: float) -> None:
    net = backbone(name)
    image = torch.randn(2, 3, 160, 160)
    assert forwards(net, image) == [1] * num
    checkpoint_activations(net, name, share)
    again = round(share * num)
    assert forwards(net, image) == [2] * again + [1] * (num - again)


def test_the_memory_shrinks_with_the_share_and_the_gradient_stays() -> None:
    """Of what the backward pass needs of a ViT's blocks the first half is no longer kept."""
    image = torch.randn(4, 3, 160, 160)
    kept, gradients, names = [], [], []
    for share in (0.0, 0.5, 1.0):
        net = backbone("test_vit")
        if share:
            checkpoint_activations(net, "test_vit", share)
        bytes_kept: dict[int, int] = {}

        def keep(value: Tensor, held: dict[int, int] = bytes_kept) -> Tensor:
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            out = net(image)
        kept.append(sum(bytes_kept.values()) - sum(p.nbytes for p in net.parameters()))
        out.square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
        names.append(list(net.state_dict()))
    assert kept[2] < 0.2 * kept[0]
    assert kept[1] == pytest.approx((kept[0] + kept[2]) / 2, rel=0.1)
    assert names[0] == names[1] == names[2]
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


def test_a_copy_computes_with_its_own_weights() -> None:
    """As the averaged model does."""
    net = backbone("test_vit")
    checkpoint_activations(net, "test_vit", 0.5)
    image = torch.randn(2, 3, 160, 160)
    other = copy.deepcopy(net)
    before = other(image).detach()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(other(image), before)
    assert not torch.equal(net(image), before)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_it_compiles_to_one_graph() -> None:
    net = backbone("test_vit")
    checkpoint_activations(net, "test_vit", 0.5)
    image = torch.randn(2, 3, 160, 160)
    torch.compiler.reset()
    compiled: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), net(image))


def test_what_cannot_be_is_named() -> None:
    settings = {"pretrained": False, "head": Head.joints, "hidden": 8}
    with pytest.raises(ValueError, match=r"activations=0.5: no blocks are to be found in 'vgg11'"):
        HandRegressor(
            RegressorConfig(backbone="vgg11", checkpoint_activations=0.5, **settings),  # type: ignore[arg-type]
            input_px=32,
            mano=None,
        )
    with pytest.raises(ValueError, match="'vgg11' cannot compute activations again"):
        checkpoint_activations(backbone("vgg11"), "vgg11")
