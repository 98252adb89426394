"""The build journal: the finished shards of an unfinished store, with hashes of their files.

One JSON line per finished shard, appended and synced after the shard's own files are on disk. It
lies in the folder of ``image/bytes`` (in a group's folder Zarr would treat it as a foreign member)
and is removed after the finish marker is written. A line truncated by a crash is ignored.

A later run keeps a shard if its inputs (``ShardTask`` without its labels: names and sizes of the
images, rows, settings) and its files are unchanged. The journal does not detect labels that changed
during a build; ``verify-cache root=...`` does.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from msgspec import Meta

from model.records import as_record, parse_json
from pipeline.app.files import replace_file, sync
from pipeline.store.errors import StoreError
from pipeline.store.shard import prove_shard, shard_path
from preprocess.builder.shard import ShardResult, ShardTask, result_from_json, result_to_json

_FILE: Final = "image/bytes/build.journal"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Journal entry of one finished shard."""

    inputs: str
    """Hash of the task's inputs, from ``inputs_of``."""
    files: dict[str, str]
    """SHA-256 of its label and image index files (which hold the crc32c of every image) by path; ""
    if all values are fill values and there is no file."""
    image_nbytes: int
    """Size of its image file, bytes; -1 for none."""
    result: ShardResult


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """An ``Entry`` as JSON."""

    inputs: str
    files: dict[str, str]
    image_nbytes: Annotated[int, Meta(ge=-1, le=2**62)]
    result: dict[str, Any]


def journal_path(store: Path) -> Path:
    """Return the path of a store's journal."""
    return store / _FILE


def inputs_of(task: ShardTask) -> str:
    """Hash the inputs of a shard, except for its labels."""
    a = task.attributes
    words: list[Any] = [
        a.format, a.dataset, a.joint_set, a.num_rows, a.shard_rows, a.shard_capacity_bytes,
        a.image_encoding, a.mano_sha256, task.object_names, task.shard, task.images,
        task.image_bytes.tolist(), {name: v.tolist() for name, v in task.indices.items()},
        str(task.work), task.region, task.stop_at_bad_image, task.left_as_shipped, task.pictures,
        task.optional,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def begin(store: Path) -> None:
    """Start the journal of a new store."""
    replace_file(journal_path(store))


def append(store: Path, task: ShardTask, result: ShardResult) -> None:
    """Record a finished shard, durably.

    Raises:
        StoreError: If the journal cannot be written.
    """
    file = shard_path(store, task.shard)
    line = {
        "inputs": inputs_of(task),
        "files": _hashes(store, task),
        "image_nbytes": file.stat().st_size if file.exists() else -1,
        "result": result_to_json(result),
    }
    path = journal_path(store)
    try:
        with path.open("a", encoding="ascii") as opened:
            opened.write(json.dumps(line) + "\n")
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        raise StoreError(
            f"the build journal {path} cannot be written ({error.strerror or error}); free disk "
            "space or fix the disk and run the same command again: finished shards are kept"
        ) from error


def read(store: Path) -> dict[int, Entry]:
    """Return the entries by shard, and truncate a partial last line left by a crash."""
    path = journal_path(store)
    if not path.is_file():
        return {}
    entries = {}
    whole = 0
    data = path.read_bytes()
    for line in data.splitlines(keepends=True):
        try:
            found = as_record(_Line, parse_json(line))
            result = result_from_json(found.result)
            entry = Entry(
                inputs=found.inputs,
                files=found.files,
                image_nbytes=found.image_nbytes,
                result=result,
            )
        except ValueError:
            break  # lines after a broken one are not trusted
        if not line.endswith(b"\n"):
            break
        entries[result.shard] = entry
        whole += len(line)
    if whole < len(data):
        with path.open("r+b") as opened:
            opened.truncate(whole)
            os.fsync(opened.fileno())
    return entries


def is_done(store: Path, task: ShardTask, entries: Mapping[int, Entry]) -> bool:
    """Return whether the shard of a task is on disk as recorded in the journal."""
    entry = entries.get(task.shard)
    if entry is None or entry.inputs != inputs_of(task):
        return False
    file = shard_path(store, task.shard)
    if (file.stat().st_size if file.exists() else -1) != entry.image_nbytes:
        return False
    if file.exists():
        try:
            prove_shard(file, task.attributes.shard_capacity_bytes)
        except StoreError:
            return False
    return _hashes(store, task) == entry.files


def remove(store: Path) -> None:
    """Remove the journal of a finished store."""
    path = journal_path(store)
    path.unlink(missing_ok=True)
    sync(path.parent)


def _hashes(store: Path, task: ShardTask) -> dict[str, str]:
    """Return the hashes of a shard's files except its image file, whose crc32c they contain."""
    from pipeline.store.pictures import picture_files
    from pipeline.store.writer import ROW_ARRAYS, chunk_file

    names = [*ROW_ARRAYS, *(f"labels/{name}" for name in task.optional)]
    files = [chunk_file(name, task.shard) for name in names]
    for name in task.pictures:
        files += picture_files(name, task.shard, task.attributes)
    return {file: _sha256(store / file) for file in files}


def _sha256(file: Path) -> str:
    if not file.exists():
        return ""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
