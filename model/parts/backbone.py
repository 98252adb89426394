"""Image backbones through timm: pooled features, pretrained on purpose or not at all."""

from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.config import BackboneConfig
from model.fields import shown
from model.parts.recompute import checkpoint_activations

GRID_CHANNELS: Final = 64
"""Channels that each cell of a grid readout keeps."""


def build_backbone(
    config: BackboneConfig, input_px: int, *, grid: bool = False, load_weights: bool = True
) -> tuple[nn.Module, int]:
    """Return the backbone (image [b, 3, s, s] -> features [b, c]) and c.

    BatchNorm of a pretrained backbone is frozen: its statistics are better than those of the
    small, correlated batches of this field.

    Args:
        config: Which backbone.
        input_px: Side of its input.
        grid: Return its whole last feature map, each cell narrowed to ``GRID_CHANNELS``, instead of
            its own pooled features.
        load_weights: False builds the same network without fetching published weights, for a
            checkpoint that brings its own.

    Raises:
        ValueError: If timm has no such model, pretrained weights cannot be had, or the readout
            does not fit the backbone.
    """
    options: dict[str, Any] = {"global_pool": ""} if grid else {}
    backbone = _built(config, input_px, options, load_weights=load_weights)
    with torch.no_grad():  # not every timm model says how wide its output is
        shape = backbone.eval()(torch.zeros(1, 3, input_px, input_px)).shape
    backbone.train()
    if not grid:
        return backbone, int(shape[1])
    if len(shape) != 4 or shape[1] != backbone.num_features:
        raise ValueError(
            f"model.readout=grid needs a feature map [b, c, h, w], {config.backbone!r} gives "
            f"{list(shape)}; use model.readout=pooled"
        )
    narrow = nn.Conv2d(shape[1], GRID_CHANNELS, kernel_size=1)
    cells = GRID_CHANNELS * shape[-2] * shape[-1]
    return nn.Sequential(backbone, narrow, nn.Flatten()), cells


def build_level_backbone(
    config: BackboneConfig, input_px: int, levels: int, *, load_weights: bool = True
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a backbone for ``feature_maps`` and the channels of its last ``levels`` maps.

    Its tensors have the names of the pooled backbone's. ``load_weights`` as in ``build_backbone``.

    Raises:
        ValueError: As ``build_backbone``, and if the backbone gives no such feature maps.
    """
    backbone = _built(config, input_px, {"global_pool": ""}, load_weights=load_weights)
    with torch.no_grad():
        try:
            maps = feature_maps(backbone.eval(), torch.zeros(1, 3, input_px, input_px), levels)
        except (AttributeError, AssertionError, ValueError) as error:
            raise ValueError(
                f"model.readout=transformer needs {levels} feature maps, which {config.backbone!r} "
                f"does not give ({_shown(error)}); use another backbone or another readout"
            ) from error
    backbone.train()
    return backbone, tuple(int(features.shape[1]) for features in maps)


def feature_maps(
    backbone: Any, image: Float[Tensor, "b 3 s s"], levels: int
) -> list[Float[Tensor, "b _c _h _w"]]:
    """Return the outputs of the last stages (of a ViT: blocks, normed), the deepest one last."""
    maps: list[Tensor] = backbone.forward_intermediates(
        image, indices=levels, norm=hasattr(backbone, "blocks"), intermediates_only=True
    )
    return maps


def _built(
    config: BackboneConfig, input_px: int, options: dict[str, Any], *, load_weights: bool
) -> Any:
    """Return a timm model of a configuration.

    Raises:
        ValueError: As ``build_backbone``.
    """
    import timm  # seconds; nothing else of the package needs it

    if not timm.is_model(config.backbone):
        near = timm.list_models(f"*{config.backbone[:6]}*")[:5]
        raise ValueError(
            f"model.backbone={shown(config.backbone)} is not a timm model; near: {', '.join(near)}"
        )
    options = options | {"pretrained": config.pretrained and load_weights, "num_classes": 0}
    if config.weights is not None and load_weights:
        backbone = _from_file(config.backbone, config.weights, input_px, options)
    else:
        try:
            backbone = _create(config.backbone, input_px, options)
        except (OSError, RuntimeError) as error:
            if not options["pretrained"]:
                raise
            raise ValueError(
                f"pretrained weights of {config.backbone!r} cannot be had ({_shown(error)}); give "
                "a local file with model.weights=PATH or train from scratch with "
                "model.pretrained=false"
            ) from error
    if config.pretrained:
        freeze_batch_norm(backbone)
    if config.checkpoint_activations:
        checkpoint_activations(backbone, config.backbone, config.checkpoint_activations)
    for weight in backbone.parameters():
        if weight.ndim == 4:  # convolutions on CPU and GPU are faster with channels last
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return backbone


def _create(name: str, input_px: int, options: dict[str, Any]) -> Any:
    """Create a timm model for this input side; convolutional ones take any and no ``img_size``."""
    import timm

    try:
        return timm.create_model(name, img_size=input_px, **options)
    except TypeError:
        return timm.create_model(name, **options)


def _from_file(name: str, path: str, input_px: int, options: dict[str, Any]) -> Any:
    """Create a timm model with all of its weights from a file.

    timm passes over tensors that a file lacks: a network of another family would stay random
    without a word. So a second network is made from the same random state, and no weight may be as
    it is there.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read or is of another network.
    """
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(
            f"model.weights={path!r} is not a file; expected a checkpoint of {name!r}, .pth or "
            ".safetensors"
        )
    before = torch.get_rng_state()
    overlay = {"file": str(Path(path).expanduser())}
    try:
        found = _create(name, input_px, options | {"pretrained_cfg_overlay": overlay})
    except Exception as error:  # torch, safetensors and timm raise many kinds
        raise ValueError(
            f"model.weights={path!r} cannot be loaded into {name!r} ({_shown(error)}); expected a "
            "checkpoint of this network, .pth or .safetensors"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(before)
        blank = _create(name, input_px, options | {"pretrained": False}).state_dict()
    loaded = {key: value for key, value in found.state_dict().items() if value.ndim > 1}
    absent = [key for key, value in loaded.items() if torch.equal(value, blank[key])]
    if absent:
        raise ValueError(
            f"model.weights={path!r} lacks {len(absent)} of the {len(loaded)} weights of {name!r} "
            f"(first: {absent[0]}), which would stay random; give a checkpoint of this network"
        )
    return found


def _shown(error: Exception) -> str:
    """Return a library's message in one line, whole up to some length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{' ...' if len(text) > 300 else ''}"


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every BatchNorm by its fixed affine map at the current statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm(child))
        else:
            freeze_batch_norm(child)


class FrozenBatchNorm(nn.Module):
    """``act(x * scale + shift)`` with the statistics of a trained BatchNorm, no longer learned.

    In float32 these are the bits of timm's ``FrozenBatchNormAct2d``. Under autocast that one
    returns float32, so activations and sums from block to block are float32 too: ResNet-50 in
    bfloat16 saves 69.6 MB instead of 54.9 MB for the backward pass (2 images of 96 px; 57.2 against
    54.0 MB compiled).
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("cannot freeze a BatchNorm without running statistics")
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.affine:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean * scale
        if norm.affine:
            shift = shift + norm.bias.detach()
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])
        # timm fuses drop and activation into its BatchNormAct2d
        self.drop = getattr(norm, "drop", None) or nn.Identity()
        self.act = getattr(norm, "act", None) or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised features, same shape and dtype."""
        # Float32 constants, one rounding: a compiler that fuses it computes the same.
        out: torch.Tensor = self.act(self.drop((x * self.scale + self.shift).to(x.dtype)))
        return out
