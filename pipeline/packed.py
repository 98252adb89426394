"""Tables of many columns kept as one block per element type, so that a row costs few reads.

Batches whose labels are the same in every epoch are looked up, not computed; with some twenty
columns the calls alone would cost as much as copying the pixels.
"""

from dataclasses import dataclass
from typing import Generic

import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.view import Table, column_names


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """Columns of one element type side by side."""

    rows: Tensor
    """[n, width]."""
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed(Generic[Table]):
    """A table whose columns share blocks by element type."""

    kind: type[Table]
    blocks: tuple[_Block, ...]

    def at(self, index: Int64[Tensor, "*b"]) -> Table:
        """Return rows; columns are views with the rows' stride."""
        flat, columns = index.flatten(), {}
        for block in self.blocks:
            pieces = block.rows.index_select(0, flat).split_with_sizes(block.widths, -1)
            for name, shape, piece in zip(block.names, block.shapes, pieces, strict=True):
                columns[name] = piece.view(index.shape + shape)
        return self.kind(**columns)


def pack(table: Table) -> Packed[Table]:
    """Return the table as blocks; a copy."""
    columns = {name: getattr(table, name) for name in column_names(table)}
    blocks = []
    for dtype in dict.fromkeys(column.dtype for column in columns.values()):
        some = {name: column for name, column in columns.items() if column.dtype is dtype}
        shapes = tuple(column.shape[1:] for column in some.values())
        widths = tuple(shape.numel() for shape in shapes)
        flat = [c.reshape(len(c), width) for c, width in zip(some.values(), widths, strict=True)]
        rows = torch.cat(flat, -1)
        blocks.append(_Block(rows=rows, names=tuple(some), shapes=shapes, widths=widths))
    return Packed(kind=type(table), blocks=tuple(blocks))
