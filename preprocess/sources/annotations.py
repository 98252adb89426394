"""Read annotation JSON, with errors that state the file, the location and the fix."""

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from preprocess.records import SourceError

_SPACE: Final = re.compile(r"[ \t\r\n]*")


def require(dataset: str, root: Path, files: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Check that a dataset root has everything required.

    Raises:
        SourceError: If ``root`` is not a folder, or files or folders below it are missing; lists
            everything that is missing.
    """
    try:
        if not root.is_dir():
            found = "is not a folder" if root.exists() else "does not exist"
            raise SourceError(
                f"{dataset}: root={str(root)!r} {found}; expected the folder of the unpacked "
                "dataset"
            )
        missing = [name for name in files if not (root / name).is_file()]
        missing += [f"{name}/" for name in folders if not (root / name).is_dir()]
    except OSError as error:  # a folder on the way that may not be entered
        raise SourceError(
            f"{dataset}: cannot look into {error.filename or root} ({error.strerror}); make it "
            "readable"
        ) from error
    if missing:
        raise SourceError(
            f"{dataset}: {root} has no {', '.join(missing)}; expected the official layout, "
            "unpack the missing parts or point root= at the right folder"
        )


def check_regular(dataset: str, path: Path) -> None:
    """Check before opening it that a path is no FIFO, which would block.

    A folder passes, as does what does not exist: opening it names the reason.

    Raises:
        SourceError: If it is a FIFO, socket or device, or a link to one.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise SourceError(
            f"{dataset}: {path} is a FIFO, socket or device, expected a file; unpack it again"
        )


def refuse_paths_outside(dataset: str, root: Path, paths: Sequence[str]) -> None:
    """Check that paths taken from annotations name files below ``root``.

    Links in the file system are the user's own and may lead anywhere.

    Raises:
        SourceError: If one is absolute, contains ``..`` or an empty name, or cannot name a file;
            reports counts.
    """
    outside = [path for path in paths if not _is_below(path)]
    if outside:
        raise SourceError(
            f"{dataset}: the annotations name {len(outside)} of {len(paths)} images by a path that "
            f"is not one of a file below {root} (first: {outside[0]!a:.200}); expected names "
            "without '..', unpack the official annotations again"
        )


def _is_below(path: str) -> bool:
    # A million paths: the whole test only where something is odd.
    if path.isascii() and ".." not in path and "//" not in path and "\0" not in path:
        return path[:1] != "/" and path[-1:] not in ("/", "")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return "\0" not in path and not {"", ".."} & set(path.split("/"))


def read_json(
    dataset: str, path: Path, *, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Parse a JSON file; ``object_hook`` as in ``json.loads``.

    Raises:
        SourceError: If the file cannot be read or is not JSON.
    """
    text = _read_text(dataset, path)
    try:
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise _not_json(dataset, path, error) from error


def read_number_rows(
    dataset: str, path: Path, row_shape: Sequence[int]
) -> Float[np.ndarray, "n ..."]:
    """Read a JSON list of equally shaped rows of finite numbers as ``[n, *row_shape]``.

    Decodes one row at a time, so that FreiHAND's 76 million vertex coordinates never exist as
    Python objects at once.

    Raises:
        SourceError: If the file is not JSON, or rows have another shape or hold NaN; the message
            counts the bad rows and names the first.
    """
    text = _read_text(dataset, path)
    shape = tuple(row_shape)
    rows: list[np.ndarray] = []
    bad: list[str] = []
    try:
        for index, row in enumerate(_items(text)):
            array = _as_numbers(row)
            if array is None or array.shape != shape:
                found = "not numbers of one shape" if array is None else f"of shape {array.shape}"
                bad.append(f"row {index} is {found}")
            elif not np.isfinite(array).all():
                bad.append(f"row {index} holds NaN or infinity")
            else:
                rows.append(array)
    except (ValueError, RecursionError) as error:
        raise _not_json(dataset, path, error) from error
    if bad:
        raise SourceError(
            f"{dataset}: {len(bad)} of {len(bad) + len(rows)} rows of {path} are bad (first: "
            f"{bad[0]}), expected finite numbers of shape {shape}; unpack the annotation again"
        )
    return np.stack(rows) if rows else np.empty((0, *shape))


def _items(text: str) -> Iterable[Any]:
    """Yield the items of one JSON list without holding them all in memory."""

    def skip(position: int) -> int:
        match = _SPACE.match(text, position)
        assert match is not None
        return match.end()

    decoder = json.JSONDecoder()
    position = skip(0)
    if not text.startswith("[", position):
        raise json.JSONDecodeError("Expecting a list of rows", text, position)
    position = skip(position + 1)
    if not text.startswith("]", position):
        while True:
            item, position = decoder.raw_decode(text, position)
            yield item
            position = skip(position)
            if not text.startswith(",", position):
                break
            position = skip(position + 1)
    if not text.startswith("]", position):
        raise json.JSONDecodeError("Expecting ',' delimiter or the end of the list", text, position)
    position = skip(position + 1)
    if position != len(text):
        raise json.JSONDecodeError("Extra data", text, position)


def _as_numbers(row: Any) -> Float[np.ndarray, "..."] | None:
    try:
        array = np.asarray(row)
    except ValueError:
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" else None


def _read_text(dataset: str, path: Path) -> str:
    check_regular(dataset, path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"{dataset}: cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{dataset}: {path} is not JSON (byte {error.start} is not text); "
            "unpack the annotation again"
        ) from error


def _not_json(dataset: str, path: Path, error: ValueError | RecursionError) -> SourceError:
    found = str(error)  # of a number of thousands of digits, or of thousands of nested lists
    if isinstance(error, json.JSONDecodeError):
        found = f"{error.msg} at line {error.lineno}, column {error.colno}"
    return SourceError(
        f"{dataset}: {path} is not valid JSON ({found}); it may be cut off, unpack the annotation "
        "again"
    )
