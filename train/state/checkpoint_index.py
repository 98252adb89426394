"""``RUN/checkpoints/index.json``: run, files, the best one; rebuilt from the files if need be."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from train.state.atomic import replace_file
from train.state.checkpoint_archive import FORMAT, load_archive, read_checksum

INDEX: Final = "index.json"
Say = Callable[[str], None]
"""Tells people one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file."""

    step: int
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A value of a metric by which checkpoints are compared; smaller is better."""

    metric: str
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The checkpoint with the smallest value of a metric."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """What ``index.json`` says."""

    run_id: str
    entries: tuple[Entry, ...]
    """By step, the newest last."""
    best: Best | None


def step_files(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder by step, listed in its index or not."""
    return sorted(folder.glob("step-*.pt"))


def read_index(folder: Path) -> Index | None:
    """Return the index, None if there is none.

    Raises:
        ValueError: If it is torn or of another format; the text goes behind its name.
        OSError: If it cannot be read.
    """
    path = folder / INDEX
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
        whole = record.pop("sha256") == _checksum(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("is torn") from error
    if not whole:
        raise ValueError("is damaged: its checksum does not fit")
    if record["format"] != FORMAT:
        raise ValueError(f"has format {record['format']!r}, this code reads {FORMAT}")
    best = record["best"]
    return Index(
        run_id=record["run_id"],
        entries=tuple(Entry(**entry) for entry in record["entries"]),
        best=None if best is None else Best(**best),
    )


def write_index(folder: Path, index: Index) -> None:
    """Write the index atomically.

    Raises:
        OSError: If a write fails; the old index is still there.
    """
    record = {"format": FORMAT, **asdict(index)}
    record["sha256"] = _checksum(record)
    replace_file(folder / INDEX, json.dumps(record, indent=2).encode() + b"\n")


def index_to_read(folder: Path, say: Say) -> Index | None:
    """Return the index, rebuilt where it is torn or missing; None where no checkpoint ever was.

    Raises:
        ValueError: If it must be rebuilt and no file loads, or they are of several runs.
    """
    try:
        index = read_index(folder)
    except (ValueError, OSError) as error:
        say(f"{folder / INDEX} {error}; it is rebuilt from the files that load")
    else:
        if index is not None or not step_files(folder):
            return index
        say(f"{folder / INDEX} is missing; it is rebuilt from the files that load")
    found = _headers(folder, None, say)
    if not found:
        raise nothing_left(folder)
    owners = {payload["run_id"]: entry.file for entry, payload in found}
    if len(owners) > 1:
        shown = ", ".join(f"{file} of run {run_id}" for run_id, file in sorted(owners.items()))
        raise ValueError(
            f"{folder} holds files of {len(owners)} runs and no index tells whose it is ({shown}); "
            "remove those that do not belong here"
        )
    return _index_of(found)


def index_to_extend(folder: Path, run_id: str) -> Index:
    """Return the index of this run: as written, else from its files that load, else empty.

    Raises:
        ValueError: If the folder belongs to another run.
    """
    try:
        index = read_index(folder)
    except (ValueError, OSError):
        index = None
    if index is not None:
        if index.run_id != run_id:
            raise ValueError(
                f"the folder belongs to run {index.run_id}, this is run {run_id}; does another "
                "process train in the same run_dir?"
            )
        return index
    found = _headers(folder, run_id, lambda _: None)
    return _index_of(found) if found else Index(run_id=run_id, entries=(), best=None)


def nothing_left(folder: Path) -> ValueError:
    """Return the error for a folder whose checkpoints are all refused."""
    return ValueError(
        f"no checkpoint in {folder} is whole; put back a copy of a file, remove {INDEX} to take "
        "any file that loads, or remove the folder to train from the start"
    )


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _headers(folder: Path, run_id: str | None, say: Say) -> list[tuple[Entry, dict[str, Any]]]:
    """Return the files that are whole and of this run, by step."""
    found = []
    for path in step_files(folder):
        try:
            sha256, size = read_checksum(path), path.stat().st_size
            payload = load_archive(path, run_id, only_header=True)
        except (ValueError, OSError) as error:
            say(f"checkpoint {path} is refused: {error}")
            continue
        entry = Entry(step=payload["step"], file=path.name, bytes=size, sha256=sha256)
        found.append((entry, payload))
    return sorted(found, key=lambda pair: pair[0].step)


def _index_of(found: list[tuple[Entry, dict[str, Any]]]) -> Index:
    entries = tuple(entry for entry, _ in found)
    last = found[-1][1]
    best = None if last["best"] is None else Best(**last["best"])
    if best is not None and all(entry.step != best.step for entry in entries):
        best = None
    return Index(run_id=last["run_id"], entries=entries, best=best)
