"""Read a store: JPEG bytes by row, labels in RAM, splits.

store = open_store("build/freihand.zarr")
jpeg = store.jpeg_checked(store.split("train")[0])
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import zarr
from numpy.typing import NDArray

from model.records import as_record, parse_json
from pipeline.store.arrays import check_arrays, read_values
from pipeline.store.errors import StoreError, StoreUnfinishedError, StoreVersionError
from pipeline.store.files import StoreFiles, read_files
from pipeline.store.image_bytes import (
    ImageIndex,
    ReadBytes,
    Reader,
    open_array,
    open_image_bytes,
    rebuild,
)
from pipeline.store.jpeg import MAX_PIXELS, MAX_SIDE_PX, jpeg_size
from pipeline.store.schema import (
    ATTRIBUTE,
    FORMAT_VERSION,
    IMAGE_INDEX,
    LABELS,
    OPTIONAL_LABELS,
    ArraySpec,
    StoreAttributes,
)
from pipeline.store.shard import corrupt, crc32c, shard_path

ALL_ROWS: Final = "all"
"""Name of the implicit split of all rows."""
SCAN_BLOCK_BYTES: Final = 8 << 20
SCAN_GAP_BYTES: Final = 256 << 10
"""Largest gap that ``scan`` reads through: cold random reads of 85 KB frames reach about a fifth of
the sequential rate, so a gap of a few frames costs less than a second read."""


class Store:
    """An open store, made by ``open_store``; safe to read from several threads."""

    def __init__(
        self,
        path: Path,
        attributes: StoreAttributes,
        image_index: ImageIndex,
        read_bytes: ReadBytes,
        files: StoreFiles | None,
    ) -> None:
        self.path = path
        self.attributes = attributes
        self.num_rows = attributes.num_rows
        self.image_index = image_index
        self._read_bytes = read_bytes
        self._files = files
        self._labels: dict[str, NDArray[Any]] = {}

    def jpeg(self, row: int) -> NDArray[np.uint8]:
        """Return the JPEG bytes of ``row``, read-only; empty if its image is unreadable.

        Zero-copy with ``reader="mmap"``. The view stays valid as long as it is held.

        Raises:
            IndexError: If the store has no such row.
        """
        self._require(row)
        start, length = int(self.image_index.offset[row]), int(self.image_index.length[row])
        return self._read_bytes(start, start + length) if length else np.empty(0, np.uint8)

    def jpeg_checked(self, row: int) -> NDArray[np.uint8]:
        """Return ``jpeg(row)`` after ``check`` and ``check_size``."""
        jpeg = self.jpeg(row)
        self.check(row, jpeg)
        self.check_size(row, jpeg)
        return jpeg

    def check(self, row: int, jpeg: NDArray[np.uint8]) -> None:
        """Verify the bytes of ``row``, from ``jpeg`` or ``scan``, against its crc32c.

        Raises:
            StoreCorruptError: If they differ; names row and file.
        """
        expected, found = int(self.image_index.crc32c[row]), crc32c(jpeg)
        if found != expected:
            raise corrupt(
                shard_path(self.path, row // self.attributes.shard_rows),
                f"crc32c {expected:#010x} for the image of row {row}",
                f"{found:#010x}",
                rebuild(self.attributes),
            )

    def check_size(self, row: int, jpeg: NDArray[np.uint8]) -> None:
        """Hold the size in a JPEG's header against ``size_hw``: nobody decodes 65535 x 65535.

        Raises:
            StoreCorruptError: If they differ; names row and file.
        """
        found, expected = jpeg_size(jpeg), tuple(self.image_index.size_hw[row].tolist())
        if found is not None and found != expected:
            raise corrupt(
                shard_path(self.path, row // self.attributes.shard_rows),
                f"{expected[0]} x {expected[1]} pixels for the image of row {row}",
                f"a JPEG of {found[0]} x {found[1]}",
                rebuild(self.attributes),
            )

    def name_of(self, table: str, index: int) -> str:
        """Return an entry of ``attributes.tables``, such as a sequence's name.

        Raises:
            StoreCorruptError: If the labels have an index that the table has not.
        """
        names = self.attributes.tables.get(table, [])
        if not 0 <= index < len(names):
            raise corrupt(
                self.path / "labels",
                f"a {table} 0..{len(names) - 1}",
                f"{index}",
                rebuild(self.attributes),
            )
        return names[index]

    def scan(
        self, rows: Sequence[int] | NDArray[np.integer]
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (row, JPEG bytes) in store order, reading blocks of about 8 MiB at a time.

        Unreadable rows have no bytes and are left out. The bytes are not verified: see ``check``. A
        view stays valid as long as it is held, and keeps its block alive.

        Raises:
            IndexError: If the store has no such row.
        """
        ordered = np.sort(np.asarray(rows, np.int64))
        for row in ordered[[0, -1]] if len(ordered) else ():
            self._require(row)
        ordered = ordered[self.image_index.length[ordered] > 0]
        if len(ordered) == 0:
            return
        start = self.image_index.offset[ordered]
        stop = start + self.image_index.length[ordered]
        new_block = (
            (np.diff(ordered // self.attributes.shard_rows) > 0)
            | (np.diff(start // SCAN_BLOCK_BYTES) > 0)
            | (start[1:] - stop[:-1] > SCAN_GAP_BYTES)
        )
        edges = [0, *(np.flatnonzero(new_block) + 1).tolist(), len(ordered)]
        for first, last in itertools.pairwise(edges):
            base = start[first]
            block = self._read_bytes(int(base), int(stop[last - 1]))
            for row, lo, hi in zip(
                ordered[first:last].tolist(),
                (start[first:last] - base).tolist(),
                (stop[first:last] - base).tolist(),
                strict=True,
            ):
                yield row, block[lo:hi]

    def label(self, name: str) -> NDArray[Any]:
        """Return the whole array ``labels/<name>``, read once and kept; read-only.

        Raises:
            StoreError: If there is no such label; lists the choices.
        """
        if name not in self._labels:
            optional = [spec for spec in OPTIONAL_LABELS if self.has_label(spec.name)]
            specs = {spec.name: spec for spec in (*LABELS, *optional)}
            if name not in specs:
                raise StoreError(f"unknown label {name!r}; choices: {', '.join(specs)}")
            self._labels[name] = _read_rows(
                self.path, "labels", specs[name], self.attributes, self._files
            )
        return self._labels[name]

    def has_label(self, name: str) -> bool:
        """Return whether the store has the array ``labels/<name>``, one of ``OPTIONAL_LABELS``."""
        return (self.path / "labels" / name / "zarr.json").is_file()

    def array(self, name: str) -> zarr.Array[Any]:
        """Open an array such as ``labels/K`` or ``splits/train``; reading it checks its files.

        Raises:
            StoreCorruptError: If there is none, or its metadata are damaged.
        """
        return open_array(self.path, name, rebuild(self.attributes), self._files)

    def damaged_files(self) -> Iterator[str]:
        """Yield a sentence for every file whose checksum is not that of the store's list."""
        for name, (_, checksum) in () if self._files is None else self._files.items():
            file = self.path / name
            if checksum is not None and (found := crc32c(file.read_bytes())) != checksum:
                yield f"{file}: expected crc32c {checksum:#010x}, got {found:#010x}"

    def split_counts(self) -> dict[str, int]:
        """Return the name and the number of rows of every split, ``all`` first."""
        names = sorted(file.parent.name for file in (self.path / "splits").glob("*/zarr.json"))
        counts = {name: int(self.array(f"splits/{name}").shape[0]) for name in names}
        return {ALL_ROWS: self.num_rows, **counts}

    def split(self, name: str) -> NDArray[np.int32]:
        """Return the rows of split ``name`` in its own order; ``all`` is every row.

        Raises:
            StoreError: If there is no such split; lists the choices.
        """
        known = self.split_counts()
        if name not in known:
            choices = ", ".join(f"{choice} ({count} rows)" for choice, count in known.items())
            raise StoreError(f"store {self.path} has no split {name!r}; choices: {choices}")
        if name == ALL_ROWS:
            return np.arange(self.num_rows, dtype=np.int32)
        rows = self.listed_rows(name)
        folder, cure = self.path / "splits" / name, rebuild(self.attributes)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_rows:
            expected, got = f"rows 0..{self.num_rows - 1}", f"{rows.min()}..{rows.max()}"
            raise corrupt(folder, expected, got, cure)
        counts = np.bincount(rows) if len(rows) else np.ones(1)
        if counts.max() > 1:
            got = f"row {counts.argmax()} {counts.max()} times"
            raise corrupt(folder, "every row once", got, cure)
        return rows

    def listed_rows(self, name: str) -> NDArray[np.int32]:
        """Return the array ``splits/<name>`` as it is, for checking it."""
        folder = self.path / "splits" / name
        values = read_values(self.array(f"splits/{name}"), folder, rebuild(self.attributes))
        return values.astype(np.int32, copy=False)

    def _require(self, row: int) -> None:
        if not 0 <= row < self.num_rows:
            raise IndexError(f"store {self.path} has rows 0..{self.num_rows - 1}, got {row}")

    def close(self) -> None:
        """Release the files and the labels' memory; views returned earlier stay valid."""
        self._read_bytes = _refuse
        self._labels.clear()


def open_store(
    path: str | Path,
    *,
    reader: Reader = "auto",
    allow_unfinished: bool = False,
    allow_unlisted: bool = False,
) -> Store:
    """Open the store at ``path``; verify that its files are there, and images within them.

    Args:
        path: The store's folder.
        reader: How image bytes are read: ``pipeline.store.image_bytes``.
        allow_unfinished: Also open a store whose build is unfinished; for the builder.
        allow_unlisted: Do not compare the files with the store's list of them; for the builder
            and for writing that list.

    Raises:
        StoreError: If there is no store at ``path`` or ``reader`` cannot read it.
        StoreVersionError: If it has another format version.
        StoreUnfinishedError: If its build is unfinished.
        StoreCorruptError: If a file is missing, truncated or damaged.
    """
    path = Path(path)
    if reader not in get_args(Reader):
        raise StoreError(f"reader must be one of {', '.join(get_args(Reader))}, got {reader!r}")
    attributes = read_attributes(path, allow_unfinished=allow_unfinished)
    files = None
    if attributes.finished and not allow_unlisted:
        cure = (
            f"{rebuild(attributes)} (or, if a tool rewrote or an earlier release built it: "
            f"python -m preprocess verify-cache store={path} relist=true)"
        )
        files = read_files(path, attributes.content_sha256, cure)
        check_arrays(path, attributes, files, rebuild(attributes))
    index = ImageIndex(
        **{spec.name: _read_rows(path, "image", spec, attributes, files) for spec in IMAGE_INDEX}
    )
    _check_sizes(path, index, rebuild(attributes))
    read_bytes = open_image_bytes(path, attributes, index, reader)
    return Store(path, attributes, index, read_bytes, files)


def read_attributes(path: Path, *, allow_unfinished: bool = False) -> StoreAttributes:
    """Return the attributes of the store at ``path``.

    Raises:
        StoreError: If there is no store at ``path``.
        StoreVersionError: If it has another format version.
        StoreUnfinishedError: If its build is unfinished, unless ``allow_unfinished``.
        StoreCorruptError: If its attributes are damaged.
    """
    file = path / "zarr.json"
    if not file.is_file():
        raise StoreError(f"no store at {path}: expected the file {file}")
    rebuild_it = "rebuild the store"
    try:
        group = parse_json(file.read_bytes())
    except ValueError as error:
        raise corrupt(file, "JSON", str(error), rebuild_it) from None
    try:
        found = group["attributes"][ATTRIBUTE]
        version = found["format"]
        if isinstance(found.get("command"), str):
            rebuild_it = f"rebuild it with: {found['command']}"
    except (KeyError, TypeError, AttributeError):
        raise StoreError(
            f"{path} is no Handloom store: {file} has no attribute {ATTRIBUTE!r}"
        ) from None
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise StoreVersionError(
            f"store {path} has format version {version!r:.40}, this code reads {FORMAT_VERSION}; "
            f"{rebuild_it}"
        )
    names = {field.name for field in dataclasses.fields(StoreAttributes)}
    expected = f"the attributes of format {FORMAT_VERSION}"
    if found.keys() != names:
        missing, unknown = sorted(names - found.keys()), sorted(found.keys() - names)
        raise corrupt(file, expected, f"missing {missing}, unknown {unknown[:4]}", rebuild_it)
    try:
        attributes = as_record(StoreAttributes, found)
    except ValueError as error:
        raise corrupt(file, expected, str(error), rebuild_it) from None
    if problems := attributes.problems():
        raise corrupt(file, expected, "; ".join(problems), rebuild_it)
    if not attributes.finished and not allow_unfinished:
        raise StoreUnfinishedError(
            f"store {path} is not finished; finish it with: {attributes.command}"
        )
    return attributes


def _check_sizes(path: Path, index: ImageIndex, cure: str) -> None:
    """Reject images that are too large to decode."""
    side = int(index.size_hw.max(initial=0))
    pixels = int(index.size_hw.astype(np.int64).prod(1).max(initial=0))
    if side > MAX_SIDE_PX or pixels > MAX_PIXELS:
        raise corrupt(
            path / "image" / "size_hw",
            f"images of at most {MAX_SIDE_PX} pixels a side and {MAX_PIXELS} in all",
            f"one of {side} a side or {pixels}",
            cure,
        )


def _read_rows(
    path: Path,
    group: str,
    spec: ArraySpec,
    attributes: StoreAttributes,
    files: StoreFiles | None,
) -> NDArray[Any]:
    """Return a whole per-row array, read-only."""
    name = f"{group}/{spec.name}"
    array = open_array(path, name, rebuild(attributes), files)
    expected = f"{spec.dtype} {(attributes.num_rows, *spec.shape)}"
    found = f"{array.dtype} {array.shape}"
    if expected != found:
        raise corrupt(path / name, expected, found, rebuild(attributes))
    values = read_values(array, path / name, rebuild(attributes))
    values.flags.writeable = False
    return values


def _refuse(start: int, stop: int) -> NDArray[np.uint8]:
    raise StoreError("the store is closed; open it again with open_store")
