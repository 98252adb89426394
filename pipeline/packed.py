"""Tables of many columns kept as one block per element type, so that a row costs few reads.

Batches whose labels are the same in every epoch are looked up, not computed; with some twenty
columns the calls alone would cost as much as copying the pixels.
"""

import dataclasses
from dataclasses import dataclass
from typing import Generic

import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.view import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed(Generic[Table]):
    """A table whose columns share blocks [n, width] by element type."""

    empty: Table
    """The table without rows; says which columns there are."""
    blocks: dict[torch.dtype, Tensor]

    def at(self, index: Int64[Tensor, "*b"]) -> Table:
        """Return rows; columns are views with the rows' stride."""
        flat, columns = index.flatten(), {}
        for dtype, block in self.blocks.items():
            shapes = _shapes(self.empty, dtype)
            widths = [shape.numel() for shape in shapes.values()]
            pieces = torch.split(block.index_select(0, flat), widths, -1)
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True):
                columns[name] = piece.view(*index.shape, *shape)
        return dataclasses.replace(self.empty, **columns)


def pack(table: Table) -> Packed[Table]:
    """Return the table as blocks; a copy."""
    names = [field.name for field in dataclasses.fields(table)]
    empty = dataclasses.replace(table, **{name: getattr(table, name)[:0] for name in names})
    blocks = {}
    for dtype in {getattr(table, name).dtype for name in names}:
        shapes = _shapes(table, dtype)
        columns = [getattr(table, name) for name in shapes]
        columns = [column.reshape(len(column), column[0].numel()) for column in columns]
        blocks[dtype] = torch.cat(columns, -1) if len(columns) > 1 else columns[0].clone()
    return Packed(empty=empty, blocks=blocks)


def _shapes(table: Table, dtype: torch.dtype) -> dict[str, torch.Size]:
    columns = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    return {name: c.shape[1:] for name, c in columns.items() if c.dtype is dtype}
