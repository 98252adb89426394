"""Metadata of a store's arrays, ``zarr.json``: checked before Zarr reads or allocates by them.

``check_arrays`` holds those of all arrays against the schema, the attributes and the list of files:
type, shape and fill value are the schema's, every chunk file is one that the grid asks for (Zarr
would read others as "not there"), and the rows are as many as the image index has on disk.
"""

import math
import operator
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import zarr
from msgspec import Meta
from numpy.typing import NDArray

from model.records import Count, as_record, decode_record
from pipeline.store.errors import StoreError
from pipeline.store.files import MAX_ZSTD_HEADER, StoreFiles, zstd_size
from pipeline.store.schema import (
    IMAGE_INDEX,
    LABELS,
    OPTIONAL_LABELS,
    PICTURES,
    ArraySpec,
    StoreAttributes,
)
from pipeline.store.shard import corrupt, crc32c, num_shards

ZARR_ERRORS: Final = (OSError, KeyError, TypeError, ValueError, RuntimeError, IndexError,
                      AttributeError, OverflowError, ArithmeticError, MemoryError)  # fmt: skip
"""What zarr-python and its codecs raise on damaged files."""
MAX_CHUNK_BYTES: Final = 1 << 28
"""Most decoded bytes of a chunk that is read whole; a builder's are some 10 MB."""
MAX_PICTURE_PX: Final = 16_384
_CODECS: Final = ("bytes", "zstd", "gzip", "blosc", "crc32c", "transpose", "sharding_indexed")
_SPLIT: Final = re.compile(r"splits/[^/]+")
_MOST_PACKED: Final = 4096
"""Above every ratio of decoded to stored bytes of the image index, which ascends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _GridShape:
    chunk_shape: Annotated[list[Annotated[int, Meta(ge=1, le=2**60)]], Meta(max_length=8)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grid:
    name: Annotated[str, Meta(pattern="^regular$")]
    configuration: _GridShape


@dataclass(frozen=True, kw_only=True, slots=True)
class _Separator:
    separator: Annotated[str, Meta(pattern=r"^[/.]$")] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Keys:
    name: Annotated[str, Meta(pattern="^(default|v2)$")]
    configuration: _Separator = field(default_factory=_Separator)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Codec:
    name: str
    configuration: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayMetadata:
    """What Zarr v3 says of an array; further keys are left to zarr-python."""

    zarr_format: Annotated[int, Meta(ge=3, le=3)]
    node_type: Annotated[str, Meta(pattern="^array$")]
    shape: Annotated[list[Count], Meta(max_length=8)]
    data_type: Annotated[str, Meta(pattern="^(bool|u?int(8|16|32|64)|float(16|32|64))$")]
    chunk_grid: _Grid
    chunk_key_encoding: _Keys
    fill_value: bool | int | float | str
    codecs: Annotated[list[_Codec], Meta(min_length=1, max_length=8)]

    @property
    def chunk_shape(self) -> list[int]:
        """Shape of what a file holds."""
        return self.chunk_grid.configuration.chunk_shape

    @property
    def grid(self) -> list[int]:
        """Number of chunks along each axis."""
        return [-(-n // size) for n, size in zip(self.shape, self.chunk_shape, strict=True)]

    @property
    def zstd_bytes(self) -> int | None:
        """Decoded bytes of each file, if it is one zstd frame; else None."""
        is_zstd = [codec.name for codec in self.codecs] == ["bytes", "zstd"]
        return self.nbytes(self.chunk_shape) if is_zstd else None

    def nbytes(self, shape: list[int]) -> int:
        """Return the bytes of an array of this type."""
        return math.prod(shape) * np.dtype(self.data_type).itemsize

    def index_of(self, key: str) -> tuple[int, ...] | None:
        """Return the index in the grid of a chunk's file, relative to the array's folder."""
        keys = self.chunk_key_encoding
        is_default = keys.name == "default"
        separator = keys.configuration.separator or ("/" if is_default else ".")
        parts = key.split(separator)
        if is_default:
            if parts[0] != "c":
                return None
            parts = parts[1:]
        if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
            return None
        return tuple(map(int, parts))


def read_metadata(
    path: Path, name: str, cure: str, files: StoreFiles | None = None
) -> ArrayMetadata:
    """Return the metadata of one array of the store at ``path``.

    Args:
        path: The store's folder.
        name: The array, such as ``labels/K``.
        cure: How to repair the store; ends the error message.
        files: List whose checksum the file must have; None: no comparison.

    Raises:
        StoreCorruptError: If there is none, or they are not those of an array that is read.
    """
    file = path / name / "zarr.json"
    try:
        data = file.read_bytes() if file.is_file() else None
    except OSError as error:
        raise corrupt(file, "the metadata of an array", f"{error.strerror}", cure) from error
    if data is None:
        raise corrupt(path / name, "a Zarr array", "nothing", cure)
    listed = None if files is None else files.folders.get(name, {}).get(file.name)
    if listed is not None and listed[1] not in (None, found := crc32c(data)):
        raise corrupt(file, f"crc32c {listed[1]:#010x}", f"{found:#010x}", cure)
    try:
        metadata = decode_record(ArrayMetadata, data)
        problem = _problem(metadata)
    except ValueError as error:
        problem = str(error)
    if problem:
        raise corrupt(file, "the metadata of an array", problem, cure)
    return metadata


def read_values(
    array: zarr.Array[Any], path: Path, cure: str, part: slice | int | Any = ...
) -> NDArray[Any]:
    """Return the values of an array, or of a part of it.

    Raises:
        StoreCorruptError: If its files cannot be read as its metadata say.
    """
    try:
        return np.asarray(array[part])
    except ZARR_ERRORS as error:
        raise unreadable(path, error, cure) from error


def unreadable(path: Path, error: BaseException, cure: str) -> StoreError:
    """Return the error for an array that zarr-python cannot read."""
    if isinstance(error, StoreError):
        return error
    shown = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return corrupt(path, "an array", shown, cure)


def check_arrays(path: Path, attributes: StoreAttributes, files: StoreFiles, cure: str) -> None:
    """Compare the metadata of all arrays with schema, attributes and the list of files.

    Raises:
        StoreCorruptError: If one contradicts; names the file.
    """
    rows = attributes.num_rows
    specs = {f"image/{spec.name}": spec for spec in IMAGE_INDEX}
    specs |= {f"labels/{spec.name}": spec for spec in (*LABELS, *OPTIONAL_LABELS, *PICTURES)}
    image_bytes = num_shards(attributes) * attributes.shard_capacity_bytes
    for name, keys in _chunk_files(files).items():
        if name not in specs and name != "image/bytes" and not _SPLIT.fullmatch(name):
            continue  # objects are checked when they are read
        folder, metadata = path / name, read_metadata(path, name, cure, files)
        found = f"{metadata.data_type} {tuple(metadata.shape)}"
        spec = specs.get(name)
        if spec is not None:
            sides = metadata.shape[1:3] if spec in PICTURES else spec.shape
            if max(sides, default=0) > MAX_PICTURE_PX:
                raise corrupt(folder, f"at most {MAX_PICTURE_PX} pixels a side", found, cure)
            expected = f"{spec.dtype} {(rows, *sides)}"
        elif name == "image/bytes":
            expected = f"uint8 {(image_bytes,)}"
        else:
            expected = f"int32 {(min(metadata.shape[0], rows),) if metadata.shape else (rows,)}"
        if found != expected:
            raise corrupt(folder, expected, found, cure)
        if spec is not None and len(keys) < math.prod(metadata.grid):
            _check_fill(folder, metadata, spec, cure)
        _check_chunks(folder, metadata, keys, cure)
        if name == "image/offset":
            _check_index(path, metadata, files, keys, cure)


def _problem(metadata: ArrayMetadata) -> str:
    """Return the problem of metadata whose types are right, "" if there is none."""
    shape, chunk = metadata.shape, metadata.chunk_shape
    if len(chunk) != len(shape):
        return f"chunks {chunk} of an array of shape {shape}"
    if metadata.nbytes(shape) > 2**62:
        return f"an array of {metadata.nbytes(shape)} bytes"
    codecs = metadata.codecs
    while any(codec.name == "sharding_indexed" for codec in codecs):
        if len(codecs) > 1:
            return f"codecs {[codec.name for codec in codecs]}"
        inner = as_record(_Sharding, codecs[0].configuration)
        chunk, codecs = inner.chunk_shape, inner.codecs
        if len(chunk) != len(shape) or any(codec.name == "sharding_indexed" for codec in codecs):
            return f"inner chunks {chunk} of an array of shape {shape}, in several levels"
    unknown = [codec.name for codec in codecs if codec.name not in _CODECS]
    if unknown:
        return f"codec {unknown[0][:40]!r}; choices: {', '.join(_CODECS)}"
    if metadata.nbytes(chunk) > MAX_CHUNK_BYTES:
        return f"chunks of {metadata.nbytes(chunk)} bytes, at most {MAX_CHUNK_BYTES} are read"
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sharding:
    chunk_shape: Annotated[list[Annotated[int, Meta(ge=1, le=2**60)]], Meta(max_length=8)]
    codecs: Annotated[list[_Codec], Meta(min_length=1, max_length=8)]


def _check_fill(path: Path, metadata: ArrayMetadata, spec: ArraySpec, cure: str) -> None:
    """Compare the fill value, what stands for "not annotated" where chunks are absent."""
    fill, wanted = metadata.fill_value, spec.fill
    if isinstance(wanted, float):
        is_same = fill == "NaN" or (isinstance(fill, str) and fill.startswith("0x"))
    else:
        is_same = fill == wanted and isinstance(fill, bool) == isinstance(wanted, bool)
    if not is_same:
        raise corrupt(path / "zarr.json", f"fill value {wanted}", f"{fill!r:.40}", cure)


def _chunk_files(files: StoreFiles) -> dict[str, list[str]]:
    """Return the chunk files by array, relative to its folder."""
    arrays = [folder for folder, names in files.folders.items() if "zarr.json" in names]
    chunks: dict[str, list[str]] = {name: [] for name in arrays}
    for folder, names in files.folders.items():
        owner = folder
        while owner and owner not in chunks:
            owner = owner.rpartition("/")[0]
        if owner:
            inner = folder[len(owner) + 1 :]
            keys = [f"{inner}/{name}" if inner else name for name in names if name != "zarr.json"]
            chunks[owner] += keys
    return chunks


def _check_chunks(path: Path, metadata: ArrayMetadata, keys: list[str], cure: str) -> None:
    """Refuse a chunk file that the grid never asks for."""
    grid = metadata.grid
    for key in keys:
        index = metadata.index_of(key)
        if index is None or len(index) != len(grid) or not all(map(operator.lt, index, grid)):
            raise corrupt(path, f"chunks of a grid of {grid}", f"the file {key}", cure)


def _check_index(
    path: Path, metadata: ArrayMetadata, files: StoreFiles, keys: list[str], cure: str
) -> None:
    """Refuse more rows than the chunks of ``image/offset`` hold: no value of it is the fill."""
    name = "image/offset"
    (expected,) = metadata.grid
    if len(keys) != expected:
        raise corrupt(path / name, f"{expected} chunks", f"{len(keys)}", cure)
    sizes = {f: facts[0] for f, facts in files.items() if f.startswith(f"{name}/")}
    decoded = metadata.nbytes(metadata.chunk_shape)
    for key in keys:
        file = path / name / key
        if metadata.zstd_bytes is not None:
            with file.open("rb") as opened:
                found = zstd_size(opened.read(MAX_ZSTD_HEADER))
            if found != decoded:
                raise corrupt(file, f"zstd of {decoded} bytes", f"of {found}", cure)
        elif decoded > _MOST_PACKED * sizes[f"{name}/{key}"]:
            raise corrupt(file, f"{decoded} bytes packed", f"{sizes[f'{name}/{key}']}", cure)
