"""The list of a finished store's files, ``image/bytes/files.json``: what a copy must hold.

Zarr reads a chunk that is not there as its fill value, so a store copied in part would read as
"not annotated". The list holds the size of every file, and the crc32c of those that are read whole:
``check_files`` compares the sizes by listing folders, ``ListedStore`` the bytes when they are read.
Files of sharded arrays are read in part and hold checksums of their own.

The list lies beside the shards since Zarr would treat it as a foreign member in a group's folder.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Self

from msgspec import Meta
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from model.records import Count, decode_record
from pipeline.app.files import PARTIAL, replace_file
from pipeline.store.errors import StoreCorruptError
from pipeline.store.shard import corrupt, crc32c

FILE: Final = "image/bytes/files.json"
GROUPS: Final = ("image", "labels", "objects", "splits")
"""Folders of a store; its other files are ``zarr.json`` and the report page."""
_CONTENT: Final = re.compile(r"/(zarr\.json$|c/[^.]|c\.\d)")

MAX_ZSTD_HEADER: Final = 18

Facts = tuple[Count, Annotated[int, Meta(ge=0, lt=2**32)] | None]
"""Size in bytes and crc32c of a file; None where it is read in part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreFiles:
    """The files of a store."""

    content_sha256: str
    """Content hash of that store."""
    folders: dict[str, dict[str, Facts]]
    """Facts by folder, relative to the store, and name."""

    def items(self) -> Iterator[tuple[str, Facts]]:
        """Yield the name relative to the store and the facts of each file."""
        for folder, names in self.folders.items():
            for name, facts in names.items():
                yield f"{folder}/{name}", facts


def write_files(path: Path, content_sha256: str) -> None:
    """List the files of the store at ``path``."""
    folders: dict[str, dict[str, Facts]] = {}
    for name, size in _files(path):
        folder, _, file = name.rpartition("/")
        in_part = name.startswith(("image/", "labels/")) and "/c/" in name
        facts = size, None if in_part else crc32c((path / name).read_bytes())
        folders.setdefault(folder, {})[file] = facts
    record = {"content_sha256": content_sha256, "folders": folders}
    replace_file(path / FILE, json.dumps(record, separators=(",", ":")).encode())


def read_files(path: Path, content_sha256: str, cure: str) -> StoreFiles:
    """Return the list of a store's files after comparing it with the folders.

    Args:
        path: The store's folder.
        content_sha256: From its attributes.
        cure: How to repair the store; ends the error message.

    Raises:
        StoreCorruptError: If there is no list, it is damaged or of another store, or files are
            missing or have another size.
    """
    file = path / FILE
    if not file.is_file():
        raise corrupt(file, "the list of the store's files", "no such file", cure)
    try:
        files = decode_record(StoreFiles, file.read_bytes())
    except ValueError as error:
        raise corrupt(file, "the list of the store's files", str(error), cure) from None
    for folder in files.folders:
        parts = folder.split("/")
        if parts[0] not in GROUPS or any(part in ("", ".", "..") for part in parts):
            raise corrupt(file, f"folders below {', '.join(GROUPS)}", repr(folder), cure)
    if files.content_sha256 != content_sha256:
        expected, got = content_sha256[:12], files.content_sha256[:12]
        raise corrupt(file, f"the files of content {expected}", f"of content {got}", cure)
    check_files(path, files, cure)
    return files


def check_files(path: Path, files: StoreFiles, cure: str) -> None:
    """Compare the sizes of all files with the list, without opening one.

    Raises:
        StoreCorruptError: If files are missing or have another size.
    """
    sizes = dict(_files(path, set(files.folders)))
    listed = {name: size for name, (size, _) in files.items()}
    if missing := [name for name in listed if name not in sizes]:
        raise StoreCorruptError(
            f"{path} lacks {len(missing)} of its {len(listed)} files (first: {missing[0]}); copy "
            f"the store again, or {cure}"
        )
    if other := [name for name, size in listed.items() if sizes[name] != size]:
        first = other[0]
        raise corrupt(
            path / first,
            f"{listed[first]} bytes",
            f"{sizes[first]}" + (f" ({len(other)} files differ)" if len(other) > 1 else ""),
            f"copy the store again, or {cure}",
        )


def _files(path: Path, folders: set[str] | None = None) -> Iterator[tuple[str, int]]:
    """Yield name and size of the files of a store, sorted by folder.

    Args:
        path: The store's folder.
        folders: The only folders to look into; all if None.
    """
    waiting = [*GROUPS] if folders is None else sorted(folders)
    for folder in waiting:
        if not (path / folder).is_dir():
            continue
        with os.scandir(path / folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                name = f"{folder}/{entry.name}"
                if entry.is_dir():
                    if folders is None:
                        waiting.append(name)
                elif _is_content(name):
                    facts = entry.stat()
                    if stat.S_ISREG(facts.st_mode):
                        yield name, facts.st_size


def _is_content(name: str) -> bool:
    """Return whether a file, by its name relative to the store, holds metadata or a chunk."""
    return bool(_CONTENT.search(name)) and not name.endswith(PARTIAL)


def zstd_size(header: bytes) -> int | None:
    """Return the decoded size that the header of a zstd frame claims; None without one.

    Source: RFC 8878, section 3.1.1.1.
    """
    if not header.startswith(b"\x28\xb5\x2f\xfd") or len(header) < 6:
        return None
    single, code = header[4] >> 5 & 1, header[4] >> 6
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[header[4] & 3]
    length = (single, 2, 4, 8)[code]
    if not length or len(header) < start + length:
        return None
    return int.from_bytes(header[start : start + length], "little") + (256 if code == 1 else 0)


class ListedStore(WrapperStore[LocalStore]):
    """The files of a store for zarr-python; whole ones must have the bytes of the list."""

    def __init__(
        self, path: Path, files: StoreFiles, cure: str, zstd_bytes: int | None = None
    ) -> None:
        super().__init__(LocalStore(path, read_only=True))
        self._path = path
        self._files = files
        self._cure = cure
        self._zstd_bytes = zstd_bytes

    def _with_store(self, store: LocalStore) -> Self:
        return type(self)(self._path, self._files, self._cure, self._zstd_bytes)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file's bytes.

        Raises:
            StoreCorruptError: If they are not those of the list.
        """
        buffer = await super().get(key, prototype, byte_range)
        folder, _, name = key.rpartition("/")
        facts = self._files.folders.get(folder, {}).get(name)
        file = self._path / key
        if facts is None and buffer is not None:
            raise corrupt(file, "no such file", f"{len(buffer)} bytes", self._cure)
        if facts is not None and buffer is None:
            raise corrupt(file, f"{facts[0]} bytes", "no such file", self._cure)
        if facts is not None and buffer is not None and facts[1] is not None:
            found = crc32c(buffer.as_numpy_array())
            if byte_range is None and found != facts[1]:
                raise corrupt(file, f"crc32c {facts[1]:#010x}", f"{found:#010x}", self._cure)
        if buffer is not None and self._zstd_bytes is not None and not key.endswith("zarr.json"):
            self._check_zstd(file, buffer)
        return buffer

    def _check_zstd(self, file: Path, buffer: Buffer) -> None:
        """Refuse a chunk of another size than its array's before memory is taken for it."""
        size = zstd_size(buffer.as_numpy_array()[:MAX_ZSTD_HEADER].tobytes())
        if size != self._zstd_bytes:
            got = f"zstd of {size}"
            raise corrupt(file, f"zstd of {self._zstd_bytes} bytes", got, self._cure)
