"""Output that nobody reads, that is full, or that cannot show a character."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.app.output import lasting_output
from pipeline.app.words import printable, say

ROOT = Path(__file__).parents[3]
READERLESS = """
import os, sys
from pipeline.app.output import lasting_output
from pipeline.app.words import say
with lasting_output():
    for i in range(9000):
        say(f"line {i}")
    print("x" * 99_999, flush=True)
os.write(2, b"to its end")
"""


def run_python(code: str, stdout: int) -> subprocess.CompletedProcess[bytes]:
    # A shell sets SIGPIPE to its default; Python ignores it.
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, check=False
    )


def test_a_program_goes_on_without_a_reader() -> None:
    read, write = os.pipe()
    os.close(read)
    done = run_python(READERLESS, write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"to its end")


@pytest.mark.parametrize(
    "words",
    [
        "preprocess --help",
        "preprocess build-cache --help",
        "train run --help",
        "train run store=x --cfg job",
        "benchmarks --version",
    ],
)
def test_a_command_that_prints_ends_without_a_traceback(words: str) -> None:
    read, write = os.pipe()
    os.close(read)
    package, *rest = words.split()
    code = f"import sys; from {package}.__main__ import entry; sys.argv[1:] = {rest}; entry()"
    done = run_python(code, write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_behind_the_output_is_said_once() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = run_python(READERLESS, full.fileno())
    assert done.returncode == 0
    assert done.stderr.count(b"standard output is lost from here on: No space left") == 1


def test_a_closed_output_is_no_data_file(tmp_path: Path) -> None:
    code = (
        "import os; os.close(1); from pipeline.app.output import lasting_output\n"
        f"with lasting_output():\n  f = open({str(tmp_path / 'f')!r}, 'w'); assert f.fileno() > 2"
    )
    assert run_python(code, subprocess.DEVNULL).stderr == b""


def test_an_undecodable_name_is_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    with lasting_output():
        sys.stdout.write("a\udcff.jpg\n")
        say("b\udcff\x1b[2J\u202e.jpg\nnext")
    assert capfd.readouterr().out == "a\\udcff.jpg\nb\\udcff\\x1b[2J\\u202e.jpg\nnext\n"
    assert printable("Grüße 手.jpg") == "Grüße 手.jpg"
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
