"""Memory sectors of a warp's loads in the gather, from the layout in its compiled code.

No GPU is needed: Triton's TTGIR says which pixel of a tile each lane of a warp holds, and the
gather's formulas say which byte that lane loads. A GPU fetches memory in sectors of 32 bytes, so
the number of distinct sectors per load instruction says how well the loads are coalesced.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ViewConfig

WARP: Final = 32
SECTOR: Final = 32
"""Bytes that a GPU's first-level cache fetches at a time."""
CACHE_PX, INPUT_PX = 256, 224
MAX_DEG: Final = 30.0
"""Rotation of the default augmentation, either way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How Triton spreads a tensor over the threads of a program (``#ttg.blocked``)."""

    shape: tuple[int, ...]
    size_per_thread: tuple[int, ...]
    threads_per_warp: tuple[int, ...]
    warps_per_program: tuple[int, ...]
    order: tuple[int, ...]
    """Axes, the fastest first."""


def loads_layout(ttgir: str) -> Layout:
    """Return the layout of the kernel's loads of pixels: of tensors of 8- or 16-bit pointers.

    Raises:
        ValueError: If there are no such loads, or several layouts.
    """
    loads = re.findall(r"tt\.load .*tensor<([0-9x]+)x!tt\.ptr<i(?:8|16)>, (#\w+)>", ttgir)
    if len(set(loads)) != 1:
        raise ValueError(f"expected loads of pixels in one layout, found {sorted(set(loads))}")
    (shape, name), *_ = loads
    found = re.search(rf"^{name} = #ttg\.blocked<\{{(.*)\}}>", ttgir, re.MULTILINE)
    if found is None:
        raise ValueError(f"expected a blocked layout {name}")
    numbers = {
        key: tuple(int(number) for number in values.split(","))
        for key, values in re.findall(r"(\w+) = \[([0-9, ]+)\]", found.group(1))
    }
    return Layout(
        shape=tuple(int(side) for side in shape.split("x")),
        size_per_thread=numbers["sizePerThread"],
        threads_per_warp=numbers["threadsPerWarp"],
        warps_per_program=numbers["warpsPerCTA"],
        order=numbers["order"],
    )


def lanes_of(layout: Layout) -> NDArray[np.int64]:
    """Return the index in the flat tile of every lane (column) of every load instruction (row)."""
    one = (1,) * len(layout.shape)
    warp = _times(layout.size_per_thread, layout.threads_per_warp)
    program = _times(warp, layout.warps_per_program)
    repeats = tuple(max(1, n // m) for n, m in zip(layout.shape, program, strict=True))
    places = np.zeros((1, 1, len(layout.shape)), np.int64)
    places = _spread(places, layout.threads_per_warp, layout.size_per_thread, layout.order, axis=1)
    places = _spread(places, layout.size_per_thread, one, layout.order, axis=0)
    places = _spread(places, layout.warps_per_program, warp, layout.order, axis=0)
    places = _spread(places, repeats, program, layout.order, axis=0)
    flat = np.zeros(places.shape[:2], np.int64)
    for dimension, side in enumerate(layout.shape):
        flat = flat * side + places[..., dimension] % side
    return flat


def _times(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x * y for x, y in zip(a, b, strict=True))


def _spread(
    places: NDArray[np.int64],
    counts: tuple[int, ...],
    steps: tuple[int, ...],
    order: tuple[int, ...],
    axis: int,
) -> NDArray[np.int64]:
    """Repeat places ``counts`` times along each dimension, ``steps`` apart, in ``order``."""
    for dimension in order:
        offset = np.zeros(places.shape[-1], np.int64)
        offset[dimension] = steps[dimension]
        copies = [places + i * offset for i in range(counts[dimension])]
        places = np.concatenate(copies, axis=axis)
    return places


def sectors_per_load(
    u: NDArray[np.int64],
    v: NDArray[np.int64],
    *,
    channels: int = 3,
    degrees: tuple[float, float] = (-MAX_DEG, MAX_DEG),
) -> float:
    """Return the mean number of sectors of a load of one byte per pixel of a rotated crop.

    Args:
        u: Column in the tile of each lane (column) of each load instruction (row).
        v: Row in the tile.
        channels: Bytes per pixel of the cache.
        degrees: Range of the rotations, uniform.
    """
    random = np.random.default_rng(0)
    width, height = int(u.max()) + 1, int(v.max()) + 1
    zoom = CACHE_PX / ViewConfig().margin / INPUT_PX
    found = []
    for angle in np.deg2rad(random.uniform(*degrees, 256)):
        a = u + random.integers(INPUT_PX // width) * width + (1 - INPUT_PX) / 2
        b = v + random.integers(INPUT_PX // height) * height + (1 - INPUT_PX) / 2
        x = (CACHE_PX - 1) / 2 + zoom * (np.cos(angle) * a - np.sin(angle) * b)
        y = (CACHE_PX - 1) / 2 + zoom * (np.sin(angle) * a + np.cos(angle) * b)
        column, row = (np.clip(np.floor(p), 0, CACHE_PX - 2).astype(np.int64) for p in (x, y))
        found.append(_sectors((row * CACHE_PX + column) * channels))
    return float(np.mean(found))


def sectors_per_store(
    u: NDArray[np.int64], v: NDArray[np.int64], *, channels_last: bool, itemsize: int
) -> float:
    """Return the mean number of sectors of a store of one channel of the network's input."""
    return _sectors((v * INPUT_PX + u) * (3 if channels_last else 1) * itemsize)


def _sectors(byte: NDArray[np.int64]) -> float:
    sectors = np.sort(byte // SECTOR, axis=1)
    return float(1 + (np.diff(sectors, axis=1) != 0).sum(1).mean())
