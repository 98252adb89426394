"""Transformer readout: learned queries read the cells of a backbone's feature maps.

Each query yields one part of the output: a rotation, the shape, a position. Tokens are the cells of
the last one or two feature maps with their place in the image and the ray of their centre.

Shape legend: b = images, c = channels, t = tokens of all levels, q = queries, e = token width.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.parts.attention import Block

WAVELENGTHS: Final = (2.0, 1e-2)
"""Longest and shortest period of the position encoding, fractions of the image side."""
RAY: Final = 2
MOST_RAY: Final = 10.0
"""Largest coordinate of a ray; above, the camera is unknown."""


class TokenReadout(nn.Module):
    """Reads numbers out of feature maps; see the module docstring."""

    def __init__(
        self,
        channels: Sequence[int],
        groups: Sequence[Sequence[tuple[int, int]]],
        *,
        input_px: int,
        width: int,
        layers: int,
        hidden: int,
    ) -> None:
        """Build queries and layers.

        Args:
            channels: Of each level.
            groups: Parts of each hand or object: number of queries, numbers of each. Parts of equal
                groups share their MLP.
            input_px: Side of the input image.
            width: Of a token.
            layers: Transformer layers.
            hidden: Width of the output MLPs.
        """
        super().__init__()
        self.input_px = input_px
        self.groups = tuple(tuple(group) for group in groups)
        self.enter = nn.ModuleList(nn.Linear(number, width) for number in channels)
        self.level = nn.Parameter(torch.empty(len(channels), width))
        self.ray = nn.Linear(RAY, width)
        num_queries = sum(count for group in self.groups for count, _ in group)
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        kinds = dict.fromkeys(self.groups)
        self.heads = nn.ModuleList(
            nn.ModuleList(output_mlp(width, hidden, size) for _, size in group) for group in kinds
        )
        self.head_of_group = tuple(list(kinds).index(group) for group in self.groups)
        for embedding in (self.level, self.queries):
            nn.init.trunc_normal_(embedding, std=0.02)

    def forward(
        self, maps: Sequence[Float[Tensor, "b _c _h _w"]], K: Float[Tensor, "b 3 3"]
    ) -> Float[Tensor, "b n"]:
        """Return the numbers of all groups, part after part.

        Args:
            maps: Feature map of each level.
            K: Intrinsics of the input pixels.
        """
        tokens = [self._tokens(i, features, K) for i, features in enumerate(maps)]
        queries = self.queries.expand(K.shape[0], -1, -1).to(tokens[0].dtype)
        x = torch.cat((queries, *tokens), 1)
        for layer in self.layers:
            x = layer(x)
        found = self.norm(x[:, : self.queries.shape[0]])
        with torch.autocast(found.device.type, enabled=False):
            return self._numbers(found.to(self.queries.dtype))

    def _tokens(
        self, level: int, features: Float[Tensor, "b c h w"], K: Float[Tensor, "b 3 3"]
    ) -> Float[Tensor, "b t e"]:
        """Return the tokens of one level."""
        height, width = features.shape[-2:]
        center = cell_centers(height, width, features.device)
        content: Tensor = self.enter[level](features.flatten(2).mT) + self.level[level]
        return content + self._places(center, K).to(content.dtype)

    def _places(
        self, center: Float[Tensor, "t 2"], K: Float[Tensor, "b 3 3"]
    ) -> Float[Tensor, "b t e"]:
        """Return what says where the cells are: position in the image and ray in the camera."""
        pixel = center * self.input_px - 0.5
        ray = torch.stack(
            (
                (pixel[:, 0] - K[:, 0, 2, None]) / K[:, 0, 0, None],
                (pixel[:, 1] - K[:, 1, 2, None]) / K[:, 1, 1, None],
            ),
            -1,
        ).clamp(-MOST_RAY, MOST_RAY)
        of_camera: Tensor = self.ray(ray)
        return position_encoding(center, self.ray.out_features) + of_camera

    def _numbers(self, found: Float[Tensor, "b q w"]) -> Float[Tensor, "b n"]:
        parts, first = [], 0
        for group, kind in zip(self.groups, self.head_of_group, strict=True):
            heads = self.heads[kind]
            assert isinstance(heads, nn.ModuleList)
            for (count, _), head in zip(group, heads, strict=True):
                parts.append(head(found[:, first : first + count]).flatten(1))
                first += count
        return torch.cat(parts, -1)


def output_mlp(width: int, hidden: int, size: int) -> nn.Sequential:
    """Return an MLP that begins near zero, so that a new network predicts the mean."""
    last = nn.Linear(hidden, size)
    nn.init.normal_(last.weight, std=1e-3)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)


def cell_centers(height: int, width: int, device: torch.device) -> Float[Tensor, "t 2"]:
    """Return x and y of the centres of a map's cells, fractions of the image, row by row."""
    x = (torch.arange(width, device=device) + 0.5) / width
    y = (torch.arange(height, device=device) + 0.5) / height
    return torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), -1).flatten(0, 1)


def position_encoding(center: Float[Tensor, "t 2"], width: int) -> Float[Tensor, "t e"]:
    """Return sines and cosines of x and of y, a quarter of ``width`` each, at ``WAVELENGTHS``."""
    longest, shortest = WAVELENGTHS
    step = torch.linspace(0, 1, width // 4, device=center.device)
    speed = 2 * math.pi / longest * (longest / shortest) ** step
    angle = center[:, :, None] * speed
    return torch.cat((angle.sin(), angle.cos()), -1).flatten(1)
