"""Dense labels per image: ``labels/depth_mm``, ``labels/segmentation``, [row, height, width].

Ordinary sharded Zarr arrays, lossless (zstd). A picture is one inner chunk; a file contains
``rows_per_file`` of them and never rows of two image shards, so that processes writing different
shards never touch the same file, and each holds at most one file's pictures in memory.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

from pipeline.app.files import sync
from pipeline.store.errors import StoreError
from pipeline.store.schema import PICTURES, StoreAttributes
from pipeline.store.shard import rows_of_shard

_MOST_ROWS: Final = 64
SPECS: Final = {spec.name: spec for spec in PICTURES}


def rows_per_file(shard_rows: int) -> int:
    """Return the rows per file: the largest divisor of ``shard_rows`` up to 64."""
    return max(n for n in range(1, _MOST_ROWS + 1) if shard_rows % n == 0)


def create_pictures(
    group: "zarr.Group", name: str, size_hw: tuple[int, int], attributes: StoreAttributes
) -> None:
    """Create ``labels/<name>``.

    Raises:
        StoreError: If the format has no such pictures.
    """
    if name not in SPECS:
        raise StoreError(f"unknown pictures {name!r}; choices: {', '.join(SPECS)}")
    spec = SPECS[name]
    group.create_array(
        f"labels/{name}",
        shape=(attributes.num_rows, *size_hw),
        chunks=(1, *size_hw),
        shards=(rows_per_file(attributes.shard_rows), *size_hw),
        dtype=spec.dtype,
        fill_value=spec.fill,
        compressors=zarr.codecs.ZstdCodec(level=3, checksum=True),
        attributes={"unit": spec.unit, "meaning": spec.meaning},
    )


def picture_files(name: str, shard: int, attributes: StoreAttributes) -> list[str]:
    """Return the files with the pictures of ``shard``, relative to the store's folder.

    A file is absent where all values are the fill value.
    """
    rows, per_file = rows_of_shard(attributes, shard), rows_per_file(attributes.shard_rows)
    return [f"labels/{name}/c/{start // per_file}/0/0" for start in rows[::per_file]]


def picture_names(path: Path) -> list[str]:
    """Return the pictures that the store at ``path`` has."""
    return [name for name in SPECS if (path / "labels" / name / "zarr.json").is_file()]


def write_pictures(
    path: Path,
    shard: int,
    name: str,
    pictures: Iterable[NDArray[Any] | None],
    attributes: StoreAttributes,
) -> None:
    """Write the pictures of one shard; None for a row without one.

    Args:
        path: The store's folder.
        shard: Which shard.
        name: ``depth_mm`` or ``segmentation``.
        pictures: One for every row; consumed lazily, one file's pictures at a time.
        attributes: The store's attributes.

    Raises:
        StoreError: If a picture has another size or type, or there are too few or too many.
    """
    array = zarr.open_array(path / "labels" / name, mode="r+")
    rows, per_file = rows_of_shard(attributes, shard), rows_per_file(attributes.shard_rows)
    size_hw = array.shape[1:]
    given = iter(pictures)
    for start in range(rows.start, rows.stop, per_file):
        stop = min(start + per_file, rows.stop)
        block = np.full((stop - start, *size_hw), array.fill_value, array.dtype)
        for row in range(start, stop):
            picture = next(given, _MISSING)
            if picture is None:
                continue
            if picture.shape != size_hw or picture.dtype != array.dtype:
                raise StoreError(
                    f"labels/{name} of row {row} must be {array.dtype} {size_hw}, got "
                    f"{picture.dtype} {picture.shape}"
                )
            block[row - start] = picture
        array[start:stop] = block
    for file in picture_files(name, shard, attributes):
        if (path / file).exists():  # zarr-python never calls fsync
            sync(path / file)


_MISSING: Final = np.empty(0)


def read_picture(path: Path, name: str, row: int) -> NDArray[Any]:
    """Return one picture, [height, width].

    Raises:
        StoreError: If the store has no such pictures; tells how to build them.
    """
    if name not in picture_names(path):
        raise StoreError(
            f"store {path} has no {name}; build it with depth=true or segmentation=true"
        )
    return np.asarray(zarr.open_array(path / "labels" / name, mode="r")[row])
