"""Attention of the transformers of this package: separate q, k, v and output projections.

Shape legend: b = batch, n = tokens, m = tokens attended to, c = width.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

HEAD_WIDTH = 64
"""Width of one head."""


class Attention(nn.Module):
    """Multi-head attention by ``scaled_dot_product_attention``."""

    def __init__(self, width: int) -> None:
        """Attend with heads of ``HEAD_WIDTH``, which ``width`` is a multiple of."""
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, x: Float[Tensor, "b n c"], memory: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b n c"]:
        """Return what each token of ``x`` reads from ``memory``."""
        q, k, v = (
            projected.unflatten(-1, (self.heads, HEAD_WIDTH)).transpose(1, 2)
            for projected in (self.q(x), self.k(memory), self.v(memory))
        )
        found: Tensor = self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


class Block(nn.Module):
    """Pre-norm transformer layer: self-attention, then an MLP of four times the width."""

    def __init__(self, width: int) -> None:
        """Build a layer for tokens of ``width``."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Return the refined tokens."""
        normed = self.norm1(x)
        x = x + self.attention(normed, normed)
        refined: Tensor = x + self.mlp(self.norm2(x))
        return refined
