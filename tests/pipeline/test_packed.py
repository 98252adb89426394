from dataclasses import dataclass, fields

import pytest
import torch
from torch import Tensor

from pipeline.packed import pack
from pipeline.view import samples_at


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixed:
    """Columns of several types and shapes, one of them empty and one a row for all."""

    points: Tensor
    nothing: Tensor
    number: Tensor
    mask: Tensor
    turns: Tensor
    shared: Tensor


@pytest.fixture
def table() -> Mixed:
    g = torch.Generator().manual_seed(0)
    return Mixed(
        points=torch.randn(9, 2, 3, generator=g),
        nothing=torch.empty(9, 3, 0, 0),
        number=torch.arange(9) + 2**40,
        mask=torch.rand(9, 4, generator=g) < 0.5,
        turns=torch.randn(9, 3, 3, generator=g),
        shared=torch.eye(2).expand(9, 2, 2),
    )


@pytest.mark.parametrize("index", [[0, 0, 8, 3], [[1, 2], [7, 7]], []])
def test_rows_are_those_of_the_table(table: Mixed, index: list[int]) -> None:
    wanted = torch.tensor(index, dtype=torch.int64)
    ours, theirs = pack(table).at(wanted), samples_at(table, wanted.flatten())
    for field in fields(Mixed):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        assert a.shape == (*wanted.shape, *b.shape[1:])
        assert a.dtype is b.dtype
        assert torch.equal(a.flatten(0, wanted.ndim - 1), b), field.name


def test_a_pack_is_a_copy(table: Mixed) -> None:
    packed = pack(table)
    before = packed.at(torch.tensor([4])).points.clone()
    table.points.zero_()
    assert torch.equal(packed.at(torch.tensor([4])).points, before)
    types = [block.rows.dtype for block in packed.blocks]
    assert types == [torch.float32, torch.int64, torch.bool]
