"""Logs, curves and pictures that cannot be written cost one warning each."""

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from train.watch.best_effort import BestEffort
from train.watch.log import RunLog, append_row

PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files cannot grow beyond 200 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_best_effort_warns_once_of_each_kind() -> None:
    said: list[str] = []
    attempt = BestEffort(said.append)
    assert attempt("counting", lambda: 3) == 3
    for _ in range(3):
        assert attempt("counting", lambda: 1 // 0) is None
    attempt("drawing", lambda: {1: 2}[0])
    assert said == [
        "warning: counting failed: integer division or modulo by zero; going on without",
        "warning: drawing failed: 0; going on without",
    ]


def test_a_row_is_appended_whole_or_not_at_all(tmp_path: Path, small_files: None) -> None:
    path = tmp_path / "log.jsonl"
    append_row(path, b"first\n")
    with pytest.raises(OSError, match="too large"):
        append_row(path, b"x" * 300 + b"\n")
    append_row(path, b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"


def test_a_full_disk_costs_rows_and_curves_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    with RunLog(tmp_path, 9) as log:
        log.scalars(1, {"loss": 1.0})
        request.getfixturevalue("small_files")
        for step in range(2, 9):
            log.scalars(step, {"loss": 1.0, "a long name" * 9: 2.0})
            log.picture(step, "train", PICTURE)
        log.scalars(9, {"loss": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 9]
    captured = capsys.readouterr()
    assert captured.out.count("warning:") == 2, captured.out
    assert "Traceback" not in captured.err


def test_a_folder_without_permission_and_a_broken_library_are_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # its import fails
    with RunLog(tmp_path / "absent", 2) as log:
        log.scalars(1, {"loss": 1.0})
        log.picture(1, "train", PICTURE)
    printed = capsys.readouterr().out
    assert "warning: TensorBoard failed: import of torch.utils.tensorboard halted" in printed
    assert f"warning: writing {tmp_path / 'absent' / 'log.jsonl'} failed" in printed
    assert "1/2 steps" in printed
