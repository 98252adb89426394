"""Read ``annotations.jsonl`` or ``annotations.parquet``: every record is checked, with its line.

The first pass holds each record against the format and keeps what plans a build; labels are read
again where a shard needs them, so that memory does not grow with them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from model.records import as_record, decode_record, parse_json
from pipeline.app.words import nearest
from preprocess.records import SourceError
from preprocess.sources.annotations import check_regular
from preprocess.sources.folder.records import VERSION, Header, Image

LINES: Final = "annotations.jsonl"
TABLE: Final = "annotations.parquet"
HEADER: Final = "header.json"
"""Header of ``annotations.parquet``; a JSON lines file has it in its first line."""
_MAX_LINE: Final = 1 << 20
"""Longest line, bytes; a record with everything in it has 20,000."""
_MAX_HEADER: Final = 1 << 26
_BOM: Final = b"\xef\xbb\xbf"

R = TypeVar("R", Header, Image)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a record is."""

    line: int
    """Line, counted from 1; of a table: row, counted from 0."""
    start: int
    """First byte; of a table: row."""
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotations:
    """An annotation file and its header."""

    path: Path
    header: Header

    def where(self, place: Place) -> str:
        """Return the name of a record, for messages."""
        kind = "line" if self.path.name == LINES else "row"
        return f"{self.path}, {kind} {place.line}"


def open_annotations(root: Path) -> Annotations:
    """Read the header of the annotation file below ``root``.

    Raises:
        SourceError: If there is none, or two, or the header does not have the format.
    """
    there = [root / name for name in (LINES, TABLE) if (root / name).exists()]
    if len(there) != 1:
        found = "both" if there else "neither"
        raise SourceError(
            f"folder: {root} must have {LINES} or {TABLE}, found {found}; see docs/your-data.md"
        )
    (path,) = there
    check_regular("folder", path)
    if path.name == TABLE:
        return Annotations(path=path, header=_header(root / HEADER, _read(root / HEADER)))
    with _open(path) as file:
        first = file.readline(_MAX_HEADER).removeprefix(_BOM)
    return Annotations(path=path, header=_header(path, first))


def read_images(annotations: Annotations) -> Iterator[tuple[Place, Image]]:
    """Yield every image with its place, in the order of the file.

    Raises:
        SourceError: At the first record that does not have the format.
    """
    if annotations.path.name == TABLE:
        for row, value in enumerate(_table_rows(annotations.path)):
            place = Place(line=row, start=row, num_bytes=0)
            yield place, _from_table(annotations, place, value)
        return
    with _open(annotations.path) as file:
        start = len(file.readline(_MAX_HEADER))
        line = 1
        while data := file.readline(_MAX_LINE + 1):
            line += 1
            place = Place(line=line, start=start, num_bytes=len(data))
            start += len(data)
            if data.strip() or len(data) > _MAX_LINE:
                yield place, _from_line(annotations, place, data)


def read_some(annotations: Annotations, places: Sequence[Place]) -> list[Image]:
    """Return the records at some places, in their order.

    Raises:
        SourceError: If the file changed since the places were found.
    """
    if annotations.path.name == TABLE:
        return _some_of_table(annotations, places)
    images = []
    with _open(annotations.path) as file:
        for place in places:
            file.seek(place.start)
            images.append(_from_line(annotations, place, file.read(place.num_bytes)))
    return images


# --- JSON lines -----------------------------------------------------------------------------------


def _header(path: Path, data: bytes) -> Header:
    try:
        value = parse_json(data)
    except ValueError as error:
        raise SourceError(f"folder: the header of {path}: {error}; {_HEADER_HINT}") from error
    if isinstance(value, dict) and value.get("handloom", VERSION) != VERSION:
        raise SourceError(
            f"folder: the header of {path} is of format {value['handloom']!r:.80}, this release "
            f"reads {VERSION}; upgrade Handloom"
        )
    if not isinstance(value, dict) or "handloom" not in value:
        raise SourceError(f"folder: {path} does not begin with a header; {_HEADER_HINT}")
    return _checked(Header, value, f"the header of {path}")


_HEADER_HINT: Final = 'expected an object such as {"handloom": 1, "units": "mm"}'


def _from_line(annotations: Annotations, place: Place, data: bytes) -> Image:
    where = annotations.where(place)
    if len(data) > _MAX_LINE:
        raise SourceError(
            f"folder: {where} has over {_MAX_LINE} bytes, expected one image a line; write each "
            "record on a line of its own"
        )
    try:
        return decode_record(Image, data)
    except ValueError as error:
        raise SourceError(f"folder: {where}: {_explained(data, error)}") from error


def _explained(data: bytes, error: ValueError) -> str:
    """Return msgspec's message, with the keys there are and what JSON has no word for."""
    text = str(error)
    if "unknown field" in text:
        return _unknown(text)
    try:
        json.loads(data, parse_constant=_no_constant)
    except ArithmeticError as constant:
        return f"{constant} is no JSON; write null for what is not annotated"
    except (ValueError, RecursionError):
        pass
    return text


def _no_constant(name: str) -> float:
    raise ArithmeticError(name)


def _unknown(text: str) -> str:
    place, _, key = text.rpartition("Object contains unknown field ")
    records = {"hands": "Hand", "objects": "PlacedObject", "mano": "Mano"}
    inner = [name for part, name in records.items() if part in place]
    keys = _keys(inner[-1] if inner else "Image")
    return f"{place}there is no key {key!r}; {nearest(key, keys)}"


def _keys(record: str) -> tuple[str, ...]:
    from preprocess.sources.folder import records

    keys: tuple[str, ...] = getattr(records, record).__struct_fields__
    return keys


def _checked(kind: type[R], value: Any, where: str) -> R:
    try:
        return as_record(kind, value)
    except ValueError as error:
        text = str(error)
        if kind is Header and "unknown field" in text:
            key = text.rpartition(" ")[2]
            text = f"there is no key {key!r}; {nearest(key, Header.__struct_fields__)}"
        elif "unknown field" in text:
            text = _unknown(text)
        raise SourceError(f"folder: {where}: {text}") from error


# --- Parquet --------------------------------------------------------------------------------------


def _table_rows(path: Path) -> Iterator[dict[str, Any]]:
    for batch in _parquet(path).iter_batches(batch_size=256):
        yield from batch.to_pylist()


def _some_of_table(annotations: Annotations, places: Sequence[Place]) -> list[Image]:
    wanted: dict[int, Image | None] = {place.start: None for place in places}
    file = _parquet(annotations.path)
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        rows = [row for row in wanted if first <= row < first + count]
        if rows:
            table = file.read_row_group(group).take([row - first for row in rows])
            for row, value in zip(rows, table.to_pylist(), strict=True):
                place = Place(line=row, start=row, num_bytes=0)
                wanted[row] = _from_table(annotations, place, value)
        first += count
    images = [image for place in places if (image := wanted[place.start]) is not None]
    if len(images) != len(places):
        raise SourceError(f"folder: {annotations.path} changed since the plan; build again")
    return images


def _from_table(annotations: Annotations, place: Place, value: dict[str, Any]) -> Image:
    return _checked(Image, _present(value), annotations.where(place))


def _present(value: Any) -> Any:
    """Drop the empty cells of a table, which are keys that its other rows have."""
    if isinstance(value, dict):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise SourceError(
            f"folder: {path} needs pyarrow: pip install 'handloom[parquet]', or write {LINES}"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of ValueError
        raise SourceError(f"folder: {path} is no Parquet file ({error}); write it again") from error


# --- files ----------------------------------------------------------------------------------------


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise SourceError(f"folder: cannot read {path} ({error.strerror})") from error


def _read(path: Path) -> bytes:
    check_regular("folder", path)
    with _open(path) as file:
        data: bytes = file.read(_MAX_HEADER)
        return data
