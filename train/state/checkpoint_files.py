"""The folder ``RUN/checkpoints``: at any moment it holds a checkpoint that loads.

A file comes before the index that names it, and goes after the index that no longer does.
"""

import contextlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from train.state.atomic import TEMPORARY, sync_folder
from train.state.checkpoint_archive import load_archive, read_checksum, write_archive
from train.state.checkpoint_index import (
    INDEX,
    Best,
    Entry,
    Index,
    Say,
    Score,
    index_to_extend,
    index_to_read,
    nothing_left,
    read_index,
    step_files,
    write_index,
)

FOLDER: Final = "checkpoints"


def add_file(
    folder: Path, payload: dict[str, Any], *, keep: int, score: Score | None = None
) -> tuple[Path, bool]:
    """Write ``payload`` (format, run_id, step, ...) and remove all but the newest ``keep`` files.

    The best file stays. Files beyond the payload's step go: the run was continued from before them.
    A file of this step that is whole is not written again.

    Returns:
        The file, and whether ``score`` makes it the best.

    Raises:
        OSError: If a write fails; what was there before is still there.
        ValueError: If the folder belongs to another run.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync_folder(folder.parent)
    run_id, step = payload["run_id"], payload["step"]
    before = index_to_extend(folder, run_id)
    _sweep(folder, before)
    best = before.best if before.best is not None and before.best.step <= step else None
    is_best = score is not None and _is_better(score, best)
    if score is not None and is_best:
        best = Best(metric=score.metric, value=score.value, step=step)

    path = folder / f"step-{step:08d}.pt"
    entry = _already_there(folder, before, step)
    if entry is None:
        payload = payload | {"best": None if best is None else asdict(best)}
        size, sha256 = write_archive(path, payload)
        entry = Entry(step=step, file=path.name, bytes=size, sha256=sha256)
    entries = [*(old for old in before.entries if old.step < step), entry]
    named = {e.step for e in entries[-keep:]} | ({best.step} if best is not None else set())
    kept = tuple(e for e in entries if e.step in named)
    write_index(folder, Index(run_id=run_id, entries=kept, best=best))
    names = {e.file for e in kept}
    for old in before.entries:
        if old.file not in names:
            with contextlib.suppress(OSError):  # the new one is safe; swept the next time
                (folder / old.file).unlink(missing_ok=True)
    return path, is_best


def newest(folder: Path, say: Say) -> dict[str, Any] | None:
    """Return the payload of the newest file that is whole; None where there never was one.

    Every file that is refused or left aside is said.

    Raises:
        ValueError: If there are files, but none is whole.
    """
    index = index_to_read(folder, say)
    if index is None:
        return None
    listed = {entry.file for entry in index.entries}
    for path in step_files(folder):
        if path.name not in listed:
            say(f"{path} is not in {INDEX} (a write was cut short, or it is foreign): left aside")
    for entry in reversed(index.entries):
        try:
            return load_entry(folder, entry, index.run_id)
        except (ValueError, OSError) as error:
            say(f"checkpoint {folder / entry.file} is refused: {error}")
    raise nothing_left(folder)


def best_of(folder: Path, say: Say) -> dict[str, Any]:
    """Return the payload of the best file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not whole; no other one takes its place.
    """
    index = index_to_read(folder, say)
    if index is None or index.best is None:
        raise FileNotFoundError(
            f"{folder} has no best checkpoint: none was scored; use checkpoint=latest"
        )
    entry = next(entry for entry in index.entries if entry.step == index.best.step)
    try:
        return load_entry(folder, entry, index.run_id)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"the best checkpoint {folder / entry.file} is refused: {error}; use checkpoint=latest"
        ) from error


def best_step(run_dir: Path) -> int | None:
    """Return the step of the best checkpoint; None where none was scored or the index is torn."""
    with contextlib.suppress(ValueError, OSError):
        index = read_index(run_dir / FOLDER)
        return None if index is None or index.best is None else index.best.step
    return None


def load_entry(folder: Path, entry: Entry, run_id: str) -> dict[str, Any]:
    """Return the payload of a listed file.

    Raises:
        ValueError: If the file is not the one that was listed; the text goes behind its name.
        OSError: If it cannot be read.
    """
    path = folder / entry.file
    if not path.is_file():
        raise ValueError("it is missing")
    size = path.stat().st_size
    if size != entry.bytes:
        raise ValueError(f"it has {size} bytes, expected {entry.bytes}: it is torn or foreign")
    if read_checksum(path) != entry.sha256:
        raise ValueError(f"it is foreign: a whole file, but not the one that {INDEX} names")
    return load_archive(path, run_id)


def _already_there(folder: Path, index: Index, step: int) -> Entry | None:
    for entry in index.entries:
        if entry.step == step:
            with contextlib.suppress(ValueError, OSError):
                load_entry(folder, entry, index.run_id)
                return entry
    return None


def _is_better(score: Score, best: Best | None) -> bool:
    if not math.isfinite(score.value):
        return False
    return best is None or best.metric != score.metric or score.value < best.value


def _sweep(folder: Path, index: Index) -> None:
    """Remove what a killed or failed write left: temporaries, and files of this run not listed.

    What is not known to be of this run stays.
    """
    listed = {entry.file for entry in index.entries}
    for path in [*folder.glob(f"*{TEMPORARY}"), *step_files(folder)]:
        with contextlib.suppress(ValueError, OSError):
            if path.name not in listed:
                if path.suffix != TEMPORARY:
                    read_checksum(path)
                    load_archive(path, index.run_id, only_header=True)
                path.unlink()
