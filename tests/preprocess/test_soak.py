"""The long proofs of a build: ``make soak``, some ten minutes. Rows: benchmarks/results/soak.jsonl.

Memory does not grow with the number of frames; a build that is killed again and again ends with the
bytes of one that nothing stopped. The frames are DexYCB's, with objects, contact and depth, and
ARCTIC's, recoded, with articulated objects.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness import Measurement, append_rows, record
from pipeline.store.reader import open_store
from preprocess.builder import journal
from preprocess.sample.generate import write_sample
from tests.preprocess.builder.test_build import file_hashes
from tests.preprocess.builder.test_resume import killed_while_building, without_command
from tests.preprocess.many_frames import dexycb_of

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "soak.jsonl"
KILLS = 20
ARCTIC_KILLS = 10
SHARD_ROWS = 128


def words(root: Path, out: Path, *more: str, dataset: str = "dexycb") -> list[str]:
    options = [f"root={root}", f"out={out}", f"mano={root / 'mano'}", "workers=2", *more]
    return [sys.executable, "-m", "preprocess", "build-cache", f"dataset={dataset}", *options]


# --- memory ---------------------------------------------------------------------------------------


def private_mb(pid: int) -> float:
    """Memory of a process and its children that is theirs alone, without mapped files, MB."""
    total = 0.0
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1e3
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it ended meanwhile
        return total
    return total + sum(private_mb(int(child)) for child in children)


def peak_mb(command: list[str]) -> tuple[float, float]:
    """Run a build; return the largest memory of all its processes together, and the seconds."""
    start = time.perf_counter()
    peak = 0.0
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, private_mb(process.pid))
            time.sleep(0.05)
    assert process.returncode == 0
    return peak, time.perf_counter() - start


def test_the_measurement_sees_memory_of_a_child() -> None:
    child = "x = b'1' * 150_000_000; import time; time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    found, _ = peak_mb([sys.executable, "-c", parent])
    assert 150 < found < 200


@pytest.mark.slow
def test_memory_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    sample = None
    peaks = {}
    for num_frames in (5_000, 50_000):
        folder = tmp_path / str(num_frames)
        folder.mkdir()
        root = dexycb_of(folder, num_frames, sample=sample)
        sample = sample or folder / "sample"
        out = folder / "store.zarr"
        peak, seconds = peak_mb(words(root, out, "shard_rows=512"))
        store = open_store(out)
        assert store.num_rows >= num_frames
        assert store.label("has_contact").any()
        peaks[num_frames] = peak
        params = {"frames": store.num_rows, "shard_rows": 512, "workers": 2}
        params |= {"frames_per_s": round(store.num_rows / seconds)}
        value = Measurement(p20=peak, p50=peak, p80=peak, n=1)
        row = record("soak", "build dexycb", "memory of all processes", "MB", value, params=params)
        append_rows(RESULTS, [row])
    assert peaks[50_000] <= 1.3 * peaks[5_000]


# --- kills ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_frames_killed_twenty_times_end_with_the_same_bytes(tmp_path: Path) -> None:
    root = dexycb_of(tmp_path, 10_000)
    more = (f"shard_rows={SHARD_ROWS}", "depth=true", "segmentation=true")
    whole, out = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    start = time.perf_counter()
    subprocess.run(words(root, whole, *more), check=True, capture_output=True)
    seconds = time.perf_counter() - start
    rng = random.Random(11)
    # Some come while annotations are read and shards looked through, or behind the last shard; most
    # while shards are made.
    num_shards = -(-open_store(whole).num_rows // SHARD_ROWS)
    killed = 0
    while killed < KILLS:
        command = words(root, out, *more)
        if rng.random() < 0.25 or len(journal.read(out)) == num_shards:
            killed += killed_after(command, rng.uniform(0, 5))
        else:
            spread = seconds / KILLS / 2
            killed += killed_while_building(command, out, rng, kills=1, most_seconds=spread)
        assert journal.journal_path(out).exists() or not (out / "zarr.json").exists()
    done = len(journal.read(out))
    subprocess.run(words(root, out, *more), check=True, capture_output=True)
    assert without_command(out) == without_command(whole)
    contents = {open_store(path).attributes.content_sha256 for path in (whole, out)}
    assert len(contents) == 1
    value = Measurement(p20=killed, p50=killed, p80=killed, n=1)
    params = {
        "frames": open_store(out).num_rows,
        "files_equal": len(file_hashes(out)),
        "content_sha256": contents.pop(),
        "shards_done_before_the_last_run": done,
        "seconds_without_kills": round(seconds, 1),
    }
    row = record("soak", "build dexycb", "kills survived", "kills", value, params=params)
    append_rows(RESULTS, [row])


@pytest.mark.slow
def test_twenty_thousand_frames_of_arctic(tmp_path: Path) -> None:
    """Memory as for a tenth of them; killed ten times, the same bytes."""
    more = ("shard_rows=512", "on_bad_image=flag")
    peaks = {}
    for num in (2_000, 20_000):
        root, out = tmp_path / f"arctic-{num}", tmp_path / f"whole-{num}.zarr"
        write_sample("arctic", root, num, 5)
        peaks[num], seconds = peak_mb(words(root, out, *more, dataset="arctic"))
        store = open_store(out)
        assert store.num_rows >= num
        assert store.label("in_contact").any()
        params = {"frames": store.num_rows, "shard_rows": 512, "workers": 2}
        params |= {"frames_per_s": round(store.num_rows / seconds)}
        value = Measurement(p20=peaks[num], p50=peaks[num], p80=peaks[num], n=1)
        name = "memory of all processes"
        append_rows(RESULTS, [record("soak", "build arctic", name, "MB", value, params=params)])
    assert peaks[20_000] <= 1.3 * peaks[2_000]
    rng, killed, again = random.Random(12), 0, tmp_path / "killed.zarr"
    command = words(root, again, *more, dataset="arctic")
    while killed < ARCTIC_KILLS:
        killed += killed_after(command, rng.uniform(2, 4 + seconds / ARCTIC_KILLS))
    done = len(journal.read(again)) if journal.journal_path(again).exists() else 0
    subprocess.run(command, check=True, capture_output=True)
    assert without_command(again) == without_command(out)
    value = Measurement(p20=killed, p50=killed, p80=killed, n=1)
    facts = {
        "frames": store.num_rows,
        "files_equal": len(file_hashes(again)),
        "content_sha256": open_store(again).attributes.content_sha256,
        "shards_done_before_the_last_run": done,
        "seconds_without_kills": round(seconds, 1),
    }
    row = record("soak", "build arctic", "kills survived", "kills", value, params=facts)
    append_rows(RESULTS, [row])


def killed_after(command: list[str], seconds: float) -> int:
    """Start a build and kill it ``seconds`` later; return 1 if it was alive."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return 1
    return 0
