import contextlib
import errno
import fcntl
import multiprocessing
import os
import stat
import uuid
from pathlib import Path

import pytest

from pipeline.app.files import (
    PARTIAL,
    _remove_leftovers,
    _remove_unlocked,
    existing,
    replace_file,
    replacing,
    require_ours,
)


def test_a_path_that_does_not_exist_is_named_with_its_option(tmp_path: Path) -> None:
    assert existing(str(tmp_path), "truth") == tmp_path
    with pytest.raises(FileNotFoundError, match=r"truth='.*/absent' does not exist"):
        existing(str(tmp_path / "absent"), "truth")


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    replace_file(path, b"abc")
    replace_file(path, b"d", memoryview(b"e"), b"")
    assert path.read_bytes() == b"de"
    replace_file(path)
    assert path.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_under_way_may_be_in_another_folder(tmp_path: Path) -> None:
    path, folder = tmp_path / "x", tmp_path / "under_way"
    folder.mkdir()
    with replacing(path, folder=folder) as write:
        write(b"abc")
        (partial,) = folder.iterdir()
        assert partial.suffix == PARTIAL
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert not list(folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_on_the_way_leaves_the_old_file_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail_on_the_way() -> None:
        with replacing(path) as write:
            write(b"ne")
            raise error

    with pytest.raises(error):
        fail_on_the_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_may_take_a_part_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:3]))
    replace_file(tmp_path / "x", b"a long text", b"and more")
    assert (tmp_path / "x").read_bytes() == b"a long textand more"


def _write_often(path: Path, letter: bytes) -> None:
    for _ in range(50):
        replace_file(path, 1000 * letter)


def test_processes_that_replace_the_same_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "x"
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write_often, args=(path, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert not path.exists() or path.read_bytes() in (1000 * b"a", 1000 * b"b")
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    names = [f"{name}.{uuid.uuid4().hex}{PARTIAL}" for name in ("a.obj", "b.obj")]
    theirs = (f"a.obj{PARTIAL}", f"{uuid.uuid4().hex}.txt")
    for name in (*names, *theirs):
        (tmp_path / name).write_bytes(b"half")
    with (tmp_path / names[1]).open("rb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)  # its process lives
        replace_file(tmp_path / "c.obj", b"whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"c.obj", names[1], *theirs}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EIO])
def test_a_disk_may_be_unable_to_sync_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As some network disks: the file itself must reach the disk everywhere."""
    usual = os.fsync

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        usual(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            replace_file(tmp_path / "a", b"whole")
    else:
        replace_file(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_folder_of_others_is_not_written_into(tmp_path: Path) -> None:
    def require() -> None:
        require_ours(tmp_path, "out", ("a.json", "pictures"), "a.json", b'"ours"')

    require()
    (tmp_path / "pictures").mkdir()
    require()  # nothing is lost
    (tmp_path / "pictures" / "holiday.jpg").touch()
    with pytest.raises(FileExistsError, match=r"out='.*' holds pictures, which would be replaced"):
        require()
    (tmp_path / "a.json").write_text('{"theirs": 1}')
    with pytest.raises(FileExistsError, match=r"holds a\.json, which .* is not of this command"):
        require()
    (tmp_path / "a.json").write_text('{"ours": 1}')
    require()


def test_a_file_under_way_is_no_leftover(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as write:
        write(b"whole")
        _remove_leftovers.cache_clear()  # as in another process
        replace_file(tmp_path / "b", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_finished_file_is_no_leftover_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker that looks for leftovers at that moment took it away."""
    plain = Path.replace

    def late(self: Path, target: Path) -> Path:
        with contextlib.suppress(OSError):
            _remove_unlocked(self)
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", late)
    replace_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
