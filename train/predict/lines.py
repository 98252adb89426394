"""Results of ``train predict`` as they come: JSON lines, from which predictions.json is made.

A header line with what the results are of; then per input its ``image``, a ``hand`` or ``skipped``
for each of its hands, its ``object``, and ``done``. A second call with the same inputs and options
goes on after the last ``done``.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from model.plain import to_plain
from pipeline.app.files import replacing, require_ours
from pipeline.app.machine import version_of
from train.config import PredictConfig
from train.predict.inputs import InputMedia
from train.predict.outputs import FORMAT as RESULT_FORMAT

NAME: Final = "predictions.jsonl"
FINAL: Final = "predictions.json"
CSV: Final = "joints.csv"
VIDEO: Final = "predictions.mp4"
WRITTEN: Final = (FINAL, "pictures", "meshes", CSV, VIDEO)
"""What stays."""
FORMAT: Final = "handloom-predict-lines-1"
_KINDS: Final = ("image", "hand", "object", "skipped", "done")


class Lines:
    """The file of lines, open to append; ``num_done`` inputs are answered in it."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self.path = path
        self.num_done = self.num_images = self.num_hands = 0

    def add(self, kind: str, value: Any) -> None:
        """Append a line; it is written when the input is ``done``."""
        self._file.write(_line({kind: value}))
        self._count(kind)
        if kind == "done":
            self._file.flush()

    def take_over(self, together: int = 1) -> None:
        """Count what is in the file, and cut what belongs to an input that was not finished.

        Of inputs that are answered ``together``, none or all are kept.
        """
        end = self._file.tell()
        counts = self.num_done, self.num_images, self.num_hands
        for kind, _ in self._lines():
            self._count(kind)
            if kind == "done" and not self.num_done % together:
                end = self._file.tell()
                counts = self.num_done, self.num_images, self.num_hands
        self.num_done, self.num_images, self.num_hands = counts
        self._file.truncate(end)
        self._file.seek(end)

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield the kind and the JSON of every line after the header."""
        self._file.flush()
        self._file.seek(0)
        self._file.readline()
        yield from self._lines()

    def _lines(self) -> Iterator[tuple[str, bytes]]:
        while line := self._file.readline():
            kind = next((kind for kind in _KINDS if line.startswith(_start(kind))), None)
            if kind is None or not line.endswith(b"}\n"):
                return
            yield kind, line[len(_start(kind)) : -2]

    def _count(self, kind: str) -> None:
        self.num_done += kind == "done"
        self.num_images += kind == "image"
        self.num_hands += kind == "hand"


@contextlib.contextmanager
def open_lines(
    folder: Path, of: dict[str, Any], say: Callable[[str], None], together: int = 1
) -> Iterator[Lines]:
    """Open the lines of results of ``of`` in a folder; those of something else begin anew.

    ``together``: inputs that are answered at a time, such as the frames of a window.

    Raises:
        ValueError: If the file is none of ours, or another process writes it.
        FileExistsError: If results of another origin would be replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    if not (path.exists() and path.stat().st_size):
        require_ours(folder, "out", WRITTEN, FINAL, RESULT_FORMAT.encode())
    header = _line({"format": FORMAT, "of": of})
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(descriptor, "r+b") as file:
        _lock(file, path)
        first = file.readline()
        lines = Lines(file, path)
        if first == header:
            lines.take_over(together)
            say(f"goes on after {lines.num_done} inputs, whose results are in {path}")
        else:
            if first:
                changed = _changed(first, of, path)
                say(f"{path} holds results with other {changed}: begun anew")
            file.seek(0)
            file.truncate()
            file.write(header)
            file.flush()  # before anything else: it shows whose folder this is
        yield lines


def write_final(path: Path, lines: Lines, head: dict[str, Any], skipped: list[Any]) -> int:
    """Write predictions.json: shared metadata, then a line per image; atomically, in pieces.

    Returns:
        The number of skipped inputs and hands.
    """
    found = [json.loads(value) for kind, value in lines.read() if kind == "skipped"]
    rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    rows.append(f'"skipped": {json.dumps(found + skipped)}')
    with replacing(path) as write:
        write(("{\n" + ",\n".join(rows) + ',\n"images": {').encode())
        between, num_hands = b"\n", 0
        for kind, value in lines.read():
            if kind == "image":
                image = json.loads(value)
                name = json.dumps(image.pop("name"))
                text = json.dumps(image)[:-1]
                write(between + f'{name}: {text}, "hands": ['.encode())
                between, num_hands = b"]},\n", 0
            elif kind == "object":
                write(b'], "object": ' + value)
                between = b"},\n"
            elif kind == "hand":
                write((b", " if num_hands else b"") + value)
                num_hands += 1
        write((between[:-2] if lines.num_images else b"") + b"\n}\n}\n")
    return len(found) + len(skipped)


def what_of(config: PredictConfig, source: InputMedia, weights: Path) -> dict[str, Any]:
    """Return what decides the results: options, weights, inputs and boxes, as sizes and hashes."""
    options = {k: v for k, v in to_plain(config).items() if k != "out"}
    names = [""] if source.names is None else source.names
    inputs = hashlib.sha256()
    for name in names:
        inputs.update(f"{name!r} {_state_of(source.path / name)}".encode())
    files = {}
    for key in ("boxes", "intrinsics"):
        named = Path(str(getattr(config, key))).expanduser()
        with contextlib.suppress(OSError):
            files[key] = hashlib.sha256(named.read_bytes()).hexdigest()
    network = [weights, weights.with_suffix(".json")]
    if weights.is_dir():
        network = [path for path in sorted(weights.iterdir()) if path.is_file()]
    return {
        "options": options,
        "version": version_of("handloom"),
        "weights": [[p.name, _state_of(p)] for p in network],
        "inputs": inputs.hexdigest(),
        **files,
    }


def _state_of(path: Path) -> list[int]:
    try:
        state = path.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


def _changed(first: bytes, of: dict[str, Any], path: Path) -> str:
    """Return what differs from an existing file's header, in words.

    Raises:
        ValueError: If the file has no header of ours.
    """
    try:
        found = json.loads(first)
        before = dict(found["of"]) if found["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError):
        before = None
    if before is None:
        raise ValueError(
            f"{path} is none of predict's files: move it away, or give another out=FOLDER"
        )
    keys = [key for key in of.keys() | before.keys() if of.get(key) != before.get(key)]
    return ", ".join(sorted(keys))


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ValueError(
                f"another predict writes to {path}: wait for it, or give another out=FOLDER"
            ) from error
        # Some network file systems have no locks: two calls at once are then the user's to avoid.


def _start(kind: str) -> bytes:
    return f'{{"{kind}": '.encode()


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()
