"""The long proof that no interruption costs a result: ``make soak``, under an hour on two cores.

Build, training, evaluation, export and prediction are killed, signalled, left without a reader of
their output or without room on the disk, at random moments. Afterwards nothing under a final name
is torn, no file but the results has changed, and the same command again ends with what an
uninterrupted one gives. Rows: benchmarks/results/soak.jsonl. ``SOAK_CASES`` changes the number.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.harness import Measurement, append_rows, record
from pipeline.app.files import MARKER, PARTIAL
from pipeline.store.reader import open_store, read_attributes
from preprocess.builder import journal
from preprocess.sample.generate import write_sample
from tests.preprocess.builder.test_resume import without_command
from tests.train.forked import as_command, start
from tests.train.state.test_checkpoint import TINY
from tests.train.state.test_kill import rows
from train.state.checkpoint import read_checkpoint

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "soak.jsonl"
CASES: Final = int(os.environ.get("SOAK_CASES", "300"))
SEED: Final = int(os.environ.get("SOAK_SEED", "26"))
FULL_DISK: Final = "full disk"
SMALL_FILES: Final = "file size limit"
NO_READER: Final = "closed stdout"
SIGNALS: Final = {
    "SIGKILL": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "SIGINT": signal.SIGINT,
    "SIGHUP": signal.SIGHUP,
    "SIGUSR1": signal.SIGUSR1,
}
FAULTS: Final = ("SIGKILL", "SIGKILL", *SIGNALS, NO_READER, FULL_DISK, FULL_DISK, SMALL_FILES)
GROWING: Final = (".jsonl", ".lock", ".journal")
"""Files that are appended to or locked, under their final names, while a command runs."""
LONGEST_S: Final = 180


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A command, its results below ``results/``, and what of them two runs have in common."""

    package: str
    words: tuple[str, ...]
    named: tuple[str, ...]
    """The files and folders that the command names."""
    result: Callable[[Path], Any]
    check: Callable[[Path, Path], None]
    """Raises if a file under a final name is torn; takes it and that of an uninterrupted run."""
    again: int = 0
    """Exit code of the command where its results are there already."""


@dataclass(kw_only=True, slots=True)
class Left:
    """What an uninterrupted run left, and how long it took."""

    folder: Path
    result: Any
    seconds: float
    num_bytes: int = 0
    most_bytes: int = 0
    sizes: list[int] = field(default_factory=list)


# --- results --------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def final_files(folder: Path) -> list[Path]:
    """Every file under a final name."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.endswith((PARTIAL, ".pt.tmp", *GROWING))
        and not any(part.startswith(f"{MARKER}-") for part in path.parts)
    ]


def store_result(results: Path) -> Any:
    store = results / "out"
    assert not journal.journal_path(store).exists()
    with contextlib.closing(open_store(store)) as opened:
        content = opened.attributes.content_sha256
    return content, without_command(store)


def run_result(results: Path) -> Any:
    run_dir = results / "out"
    payload = read_checkpoint(run_dir, say=pytest.fail)
    state = {part: payload[part] for part in ("model", "ema", "optimizer", "loader", "rng")}
    weights = load_file(next((run_dir / "weights").glob("*.safetensors")))
    losses = {row["step"]: row for row in rows(run_dir) if "loss" in row}
    return {"losses": losses, "state": state, "weights": weights}


def scores_result(results: Path) -> Any:
    return {path.name: digest(path) for path in final_files(results) if path.parent.name != "old"}


def predictions_result(results: Path) -> Any:
    out = results / "out"
    assert not (out / "predictions.jsonl").exists()
    return {str(path.relative_to(out)): content_of(path) for path in final_files(out)}


def content_of(path: Path) -> Any:
    """What a file of predictions says, as numbers where it does."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".csv":
        rows = [line.split(",") for line in path.read_text().splitlines()]
        return [[float(w) if w[-1].isdigit() and "." in w else w for w in row] for row in rows]
    if path.suffix == ".obj":
        return [
            [float(word) for word in line.split()[1:]]
            for line in path.read_text().splitlines()
            if line[0] != "#"
        ]
    pixels = cv2.imread(str(path))
    assert pixels is not None, f"{path} is torn"
    return pixels


def difference(found: Any, expected: Any, where: str = "") -> str | None:
    """Where two results differ: hands of another batch may in the last digit that is kept."""
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            return f"{where}: only one has {sorted(found.keys() ^ expected.keys())}"
        pairs = [(f"{where}/{key}", found[key], expected[key]) for key in expected]
    elif isinstance(expected, list | tuple):
        if len(found) != len(expected):
            return f"{where}: {len(found)} instead of {len(expected)}"
        pairs = [
            (f"{where}/{i}", *both) for i, both in enumerate(zip(found, expected, strict=True))
        ]
    else:
        if isinstance(expected, torch.Tensor):
            is_same = torch.equal(found, expected)
        elif isinstance(expected, np.ndarray):
            is_same = float(np.abs(found.astype(int) - expected).mean()) < 0.1
        elif isinstance(expected, float):
            is_pixel = re.search(r"joints_2d|csv/\d+/[78]$", where)
            digit = 1e-3 if is_pixel else 1e-6
            is_same = abs(found - expected) <= 1.1 * digit * max(1, abs(expected) / 100)
        else:
            is_same = found == expected
        return None if is_same else f"{where}: {found} instead of {expected}"
    parts = (difference(one, other, place) for place, one, other in pairs)
    return next((part for part in parts if part is not None), None)


def check_same(found: Any, expected: Any, *, lines_lost: bool) -> None:
    """Raise if a result is not as expected; a full disk may have cost lines of a run's log."""
    if lines_lost and isinstance(found, dict) and "losses" in found:
        kept = {step: expected["losses"][step] for step in found["losses"]}
        expected = {**expected, "losses": kept}
    where = difference(found, expected)
    assert where is None, f"another result: {where}"


# --- torn files -----------------------------------------------------------------------------------


def check_equal(path: Path, expected: Path) -> None:
    assert digest(path) == digest(expected), f"{path} is torn"


def check_store(path: Path, expected: Path) -> None:
    """Attributes and report name what is found; every other file is as it will be."""
    if path.name == "zarr.json" and path.parent.name == "out":
        read_attributes(path.parent, allow_unfinished=True)
    elif path.name == "zarr.json":
        json.loads(path.read_text())
    elif path.name == "report.html":
        assert path.read_text().rstrip().endswith("</html>"), f"{path} is torn"
    else:
        check_equal(path, expected)


def check_run(path: Path, expected: Path) -> None:
    """Checkpoints and weights carry the name of a run: whole, if not equal."""
    if path.suffix == ".pt":
        folder = path.parent.parent
        read_checkpoint(folder, say=lambda line: pytest.fail(f"{path}: {line}"))
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".png":
        assert cv2.imread(str(path)) is not None
        check_equal(path, expected)
    else:
        assert path.name.startswith("events.out"), f"{path} is not known"


# --- commands -------------------------------------------------------------------------------------


def commands() -> dict[str, Case]:
    data = ("mano=data/mano", "device=cpu")
    scored = ("run=run", "store=data.zarr", *data, "batch_size=4", "out=results/out")
    build = ("root=data", "mano=data/mano", "out=results/out", "shard_rows=16")
    steps = ("steps=8", "pictures_every=4", "threads=1", "run_dir=results/out")
    photos = ("run=run", "images=photos", "meshes=true", "csv=true", "batch_size=2")
    return {
        "build-cache": Case(
            package="preprocess",
            words=("build-cache", "dataset=freihand", *build, "workers=1"),
            named=("out",),
            result=store_result,
            check=check_store,
            again=2,
        ),
        "build-cache, two workers": Case(
            package="preprocess",
            words=("build-cache", "dataset=freihand", *build, "workers=2"),
            named=("out",),
            result=store_result,
            check=check_store,
            again=2,
        ),
        "run": Case(
            package="train",
            words=("run", "store=data.zarr", "mano=data/mano", *TINY, *steps),
            named=("out",),
            result=run_result,
            check=check_run,
        ),
        "evaluate": Case(
            package="train",
            words=("evaluate", *scored, "details=results/details.csv"),
            named=("out", "details.csv"),
            result=scores_result,
            check=check_equal,
        ),
        "export": Case(
            package="train",
            words=("evaluate", *scored, "export=results/pred.zip"),
            named=("out", "pred.zip"),
            result=scores_result,
            check=check_equal,
        ),
        "predict": Case(
            package="train",
            words=("predict", *photos, *data, "out=results/out"),
            named=("out",),
            result=predictions_result,
            check=check_equal,
        ),
    }


# Builds with workers start processes of two seconds: fewer of them.
SHARES: Final = {
    "build-cache": 5,
    "build-cache, two workers": 2,
    "run": 6,
    "evaluate": 3,
    "export": 3,
    "predict": 5,
}


# --- running --------------------------------------------------------------------------------------


def tree(folder: Path, case: Case | None = None) -> dict[str, str]:
    """Every file and folder but the results of ``case`` and temporary ones, with its content."""
    named = () if case is None else case.named
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        parts = path.relative_to(folder).parts
        if parts[0] == "tmp":
            continue
        if parts[0] == "results" and len(parts) > 1:
            if parts[1] in named:
                continue
            if parts[1].endswith(PARTIAL) and parts[1].startswith(named):
                continue  # beside a file that was being written
        found[name] = digest(path) if path.is_file() else "folder"
    return found


def fresh_results(folder: Path, case: Case) -> Path:
    """Empty the folder of the results; neighbours whose names are like theirs stand in it."""
    results = folder / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    add_neighbours(results, case)
    return results


def add_neighbours(results: Path, case: Case) -> None:
    for name in case.named:
        for end in (".old", ".tmp", "2"):
            (results / f"{name}{end}").write_text("somebody's")
    (results / "old").mkdir()
    (results / "old" / "scores.json").write_text("{}")


def ended(process: Any, said: Path) -> int:
    process.join(LONGEST_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        pytest.fail(f"hangs after:\n{said.read_text() if said.is_file() else ''}")
    return int(process.exitcode)


def run_whole(folder: Path, case: Case, said: Path) -> int:
    said.unlink(missing_ok=True)
    return ended(start(as_command, case.package, case.words, folder, said, {}), said)


@contextlib.contextmanager
def small_disk(results: Path, num_bytes: int) -> Iterator[None]:
    """Put a disk of ``num_bytes`` below ``results``; where it ends, the files go to the folder."""
    size = f"size={max(num_bytes, 1)}"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(results)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        copy = results.with_name("copied")
        shutil.copytree(results, copy, symlinks=True)
        subprocess.run(["umount", str(results)], check=True, capture_output=True)
        shutil.rmtree(results)
        copy.rename(results)


def can_mount(folder: Path) -> bool:
    try:
        with small_disk(folder, 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def wait_for_files(process: Any, results: Path, num: int) -> None:
    """Wait until there are ``num`` files more than at first, or the process has ended."""
    at_first = sum(len(files) for _, _, files in os.walk(results))
    while process.is_alive():
        if sum(len(files) for _, _, files in os.walk(results)) - at_first >= num:
            return
        time.sleep(0.002)


def close_reader(pipe: Path, seconds: float) -> threading.Thread:
    """Read a named pipe for a while, then close it."""

    def read() -> None:
        with pipe.open("rb", buffering=0) as opened:
            os.set_blocking(opened.fileno(), False)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                opened.read(1 << 16)
                time.sleep(0.01)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def interrupted(
    folder: Path, case: Case, fault: str, left: Left, said: Path, draw: random.Random
) -> int:
    """Start the command, do to it what ``fault`` says, and return its exit code."""
    results = folder / "results"
    said.unlink(missing_ok=True)
    seconds = draw.uniform(0, 1.05 * left.seconds)
    words = (as_command, case.package, case.words, folder, said)
    if fault == FULL_DISK:
        # Most have no room for the last file, some for nothing.
        room = draw.choice((draw.uniform(0.02, 1), draw.uniform(0.7, 1))) * left.num_bytes
        with small_disk(results, int(room) + 4096 * (len(case.named) * 3 + 4)):
            add_neighbours(results, case)
            return ended(start(*words, {}), said)
    if fault == SMALL_FILES:
        most = draw.choice(left.sizes) - draw.choice((1, 100))
        return ended(start(*words, {resource.RLIMIT_FSIZE: most}), said)
    if fault == NO_READER:
        os.mkfifo(said)
        reader = close_reader(said, seconds)
        try:
            return ended(start(*words, {}), said)
        finally:
            reader.join()
            said.unlink()
    process = start(*words, {})
    if draw.random() < 0.5:
        time.sleep(seconds)
    else:
        wait_for_files(process, results, draw.randint(1, len(left.sizes) + 1))
        time.sleep(draw.choice((0, draw.uniform(0, 0.02))))
    if process.is_alive():
        os.kill(process.pid, SIGNALS[fault])
    return ended(process, said)


ENDS: Final = {
    "SIGKILL": (0, -signal.SIGKILL),
    "SIGTERM": (0, 130, -signal.SIGTERM),
    "SIGINT": (0, 130),
    "SIGHUP": (0, 130, -signal.SIGHUP),
    "SIGUSR1": (0, 130, -signal.SIGUSR1),
    NO_READER: (0,),
    FULL_DISK: (0, 1, 2),
    SMALL_FILES: (0, 1, 2),
}
"""Exit codes: 130 is a training's that wrote its checkpoint."""


def survives(folder: Path, case: Case, fault: str, left: Left, draw: random.Random) -> bool:
    """Interrupt a command, look at what is left, run it again; return whether it was ended early.

    Fails with what is wrong.
    """
    said = folder.with_name("said")
    results = fresh_results(folder, case)
    before = tree(folder, case)
    code = interrupted(folder, case, fault, left, said, draw)
    text = said.read_text() if said.is_file() else ""
    assert code in ENDS[fault], f"exit code {code}\n{text}"
    assert "Traceback" not in text, text
    after = tree(folder, case)
    assert after == before, {k: (before.get(k), after.get(k)) for k in before.keys() ^ after.keys()}
    for name in case.named:
        at = results / name
        for path in [at] if at.is_file() else final_files(at):
            case.check(path, left.folder / path.relative_to(results))
    if code == 0 and fault not in (FULL_DISK, SMALL_FILES):
        check_same(case.result(results), left.result, lines_lost=False)
    is_whole = code == 0
    second = run_whole(folder, case, said)
    text = said.read_text()
    expected = case.again if is_whole else 0
    assert second in (0, expected) if fault == "SIGKILL" else second == expected, text
    assert "Traceback" not in text, text
    lines_lost = fault in (FULL_DISK, SMALL_FILES)
    check_same(case.result(results), left.result, lines_lost=lines_lost)
    assert tree(folder, case) == before
    assert not [path for path in results.rglob("*") if path.name.endswith(PARTIAL)]
    return code != 0


# --- the proof ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything a user has, in one folder: dataset, store, trained run, photos, home."""
    folder = tmp_path_factory.mktemp("soak") / "tree"
    for name in ("home", "tmp", "results", "photos"):
        (folder / name).mkdir(parents=True)
    write_sample("freihand", folder / "data", 16, 3, workers=1)
    said = folder.with_name("said")
    made = commands()
    for name, out in (("build-cache", "data.zarr"), ("run", "run")):
        assert run_whole(folder, made[name], said) == 0, said.read_text()
        (folder / "results" / "out").rename(folder / out)
    images = sorted((folder / "data" / "training" / "rgb").iterdir())
    for image in images[:6]:
        shutil.copy(image, folder / "photos")
    return folder


def left_alone(folder: Path, case: Case, keep: Path) -> Left:
    said = folder.with_name("said")
    results = fresh_results(folder, case)
    begin = time.perf_counter()
    assert run_whole(folder, case, said) == 0, said.read_text()
    seconds = time.perf_counter() - begin
    left = Left(folder=keep, result=case.result(results), seconds=seconds)
    shutil.copytree(results, keep)
    sizes = [
        p.stat().st_size
        for n in case.named
        for p in [results / n, *(results / n).rglob("*")]
        if p.is_file()
    ]
    left.sizes = [size for size in sizes if size > 4200]
    left.num_bytes = sum(-(-size // 4096) * 4096 for size in sizes)
    return left


@pytest.mark.slow
def test_no_interruption_costs_a_result(folder: Path) -> None:
    made = commands()
    lefts = {
        name: left_alone(folder, case, folder.with_name(f"left-{i}"))
        for i, (name, case) in enumerate(made.items())
    }
    faults = (
        FAULTS
        if can_mount(folder / "tmp")
        else [SMALL_FILES if f == FULL_DISK else f for f in FAULTS]
    )
    done = {name: Counter[str]() for name in made}
    early = Counter[str]()
    wrong: list[str] = []
    seconds = dict.fromkeys(made, 0.0)
    for i in range(CASES):
        draw = random.Random(SEED * 1_000_000 + i)
        (name,) = draw.choices(list(SHARES), list(SHARES.values()))
        fault = draw.choice(faults)
        begin = time.perf_counter()
        try:
            early[name] += survives(folder, made[name], fault, lefts[name], draw)
        except (Exception, pytest.fail.Exception) as error:
            wrong.append(f"case {i}, {name}, {fault}: {type(error).__name__}: {error}")
            sys.stderr.write(f"{wrong[-1]}\n")
        done[name][fault] += 1
        seconds[name] += time.perf_counter() - begin
    found = []
    for name, counts in done.items():
        num = counts.total()
        if not num:
            continue
        bad = sum(f", {name}, " in line for line in wrong)
        value = Measurement(p20=num - bad, p50=num - bad, p80=num - bad, n=num)
        params = {
            "cases": num,
            "seed": SEED,
            "ended_early": early[name],
            "minutes": round(seconds[name] / 60, 1),
            "faults": dict(sorted(counts.items())),
        }
        found.append(
            record("soak", f"interrupted {name}", "ended right", "cases", value, params=params)
        )
    append_rows(RESULTS, found)
    assert not wrong, "\n".join(wrong)
