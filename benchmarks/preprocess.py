"""What the images of a build cost, beside the bare library calls and a plain copy of the files.

    python -m benchmarks preprocess

Files of 640 x 480 and about 85 KB, in the page cache. Four questions:

- ``passthrough``: files into the shards of a store, headers and crc32c checked, beside one output
  file per shard with the same fsync, and beside ``shutil.copyfile`` of every file without one.
- ``recode``: read, decode, crop to a region, encode at quality 95, beside the bare loop of the same
  calls in the fastest of simplejpeg, OpenCV and PyTurboJPEG (where it and its library are there).
- ``transcode``: progressive to baseline, beside jpeglib's two calls, and beside these with the one
  step less that ours leaves out. Only ours decodes before and behind, for libjpeg ends the process
  at a damaged file, and to prove that no pixel changed.
- ``recode, 2 processes``: two processes of ours beside two of the fastest bare loop.

Variants of one metric read the same files; recoded bytes and transcoded pixels are compared first.
"""

import bisect
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.config import PreprocessBenchConfig
from benchmarks.harness import (
    Bar,
    Measurement,
    append_rows,
    measure_together,
    print_bars,
    print_table,
    record,
)
from benchmarks.preprocess_peers import (
    BASELINE,
    FRAME_HW,
    LOOPS,
    PASSED,
    RECODED,
    TURBO,
    Files,
    ours,
    run_bare,
    run_ours,
    transcode_bare,
    without_turbo,
)
from benchmarks.store import build_store
from pipeline.store.shard import num_shards, rows_of_shard, shard_path
from pipeline.store.writer import write_image_shard
from preprocess.recode import crop_window

MOST_BYTES: Final = 88_000
"""Of a file: the highest quality below makes about 85 KB."""
NUM_DISTINCT: Final = 40
REGION_PX: Final = (120.0, 240.0)
"""Side of the box that a recoded image must show: a hand in DexYCB or HO-3D."""
OURS: Final = "shard_images"
JPEGLIB: Final = "jpeglib, as documented"
ONE_READ: Final = "jpeglib, one read, unchecked"
COPY: Final = "read, one file per shard, fsync"

Pixels = NDArray[np.uint8]
Rates = dict[str, Measurement]


def main(config: PreprocessBenchConfig) -> int:
    """Measure, append the rows and print them; return 0 if every bar is met, else 1."""
    cv2.setNumThreads(1)
    folder = Path(config.out)
    shutil.rmtree(folder, ignore_errors=True)
    chosen = list(pictures(config))
    sequential = [encode(picture, progressive=False) for picture in chosen]
    files = write_files(folder / "files", [with_comment(sequential, i) for i in range(config.num)])
    to_recode = files.part(0, max(2, config.num // 10))
    progressive = [encode(picture, progressive=True) for picture in chosen]
    to_transcode = write_files(
        folder / "progressive",
        [with_comment(progressive, i) for i in range(max(2, config.num // 40))],
    )
    if absent := without_turbo():
        Console().print(f"{TURBO} is not measured: {absent}")
    loops = [name for name in LOOPS if name != TURBO or not absent]
    require_same_images(loops, to_recode, to_transcode, folder)

    passed = passthrough(config, files, folder)
    recoded = rates(
        config,
        {OURS: lambda: run_ours(to_recode)}
        | {name: functools.partial(run_bare, name, to_recode) for name in loops},
        len(to_recode.names),
    )
    fastest = max(loops, key=lambda name: recoded[name].p50)
    transcoded = rates(
        config,
        {
            OURS: lambda: ours(to_transcode, BASELINE),
            JPEGLIB: lambda: transcode_bare(to_transcode, folder),
            ONE_READ: lambda: transcode_bare(to_transcode, folder, one_read=True),
        },
        len(to_transcode.names),
    )
    doubled = two_processes(config, to_recode, fastest)

    metrics = [
        ("passthrough", "MB/s", passed, files),
        ("recode", "images/s", recoded, to_recode),
        ("transcode", "images/s", transcoded, to_transcode),
        ("recode, 2 processes", "images/s", doubled, to_recode),
    ]
    rows = [
        record(
            "preprocess",
            variant,
            metric,
            unit,
            rate,
            params={
                "images": len(used.names),
                "image_kb": round(float(used.sizes.mean()) / 1e3, 1),
                "disk": "warm",
            },
            config=dataclasses.asdict(config),
        )
        for metric, unit, measured, used in metrics
        for variant, rate in measured.items()
    ]
    append_rows(config.results, rows)
    print_table(rows)

    def share(measured: Rates, peer: str) -> float:
        return 100 * measured[OURS].p50 / measured[peer].p50

    all_met = print_bars(
        [
            Bar(name="passthrough of copy", measured=share(passed, COPY), at_least=50, unit="%"),
            Bar(
                name=f"recode of {fastest}",
                measured=share(recoded, fastest),
                at_least=85,
                unit="%",
            ),
            Bar(
                name="transcode of jpeglib",
                measured=share(transcoded, JPEGLIB),
                at_least=85,
                unit="%",
            ),
            Bar(
                name="2 processes of 2 bare",
                measured=share(doubled, fastest),
                at_least=85,
                unit="%",
            ),
        ]
    )
    return 0 if all_met else 1


def rates(
    config: PreprocessBenchConfig, variants: Mapping[str, Callable[[], object]], amount: float
) -> Rates:
    """Return what every variant does per second if one call does ``amount``."""
    times = measure_together(
        variants,
        min_time_s=config.min_time_s,
        warmup_s=config.min_time_s / 10,
        repeats=config.repeats,
    )
    return {name: measured.rate(amount) for name, measured in times.items()}


# --- files ----------------------------------------------------------------------------------------


def pictures(config: PreprocessBenchConfig) -> Iterator[tuple[Pixels, int]]:
    """Give different pictures, and the quality that makes a JPEG of about 85 KB of each."""
    rng = np.random.default_rng(config.seed)
    for _ in range(min(config.num, NUM_DISTINCT)):
        pixels = rng.normal(128, rng.uniform(18, 26), (*FRAME_HW, 3))
        for _ in range(12):
            centre, axes = rng.integers(0, 640, 2).tolist(), rng.integers(5, 150, 2).tolist()
            colour = rng.uniform(0, 255, 3).tolist()
            cv2.ellipse(pixels, centre, axes, rng.uniform(0, 360), 0, 360, colour, -1)
        picture = pixels.clip(0, 255).astype(np.uint8)
        # The highest quality that fits.
        quality = bisect.bisect_right(
            range(97),
            MOST_BYTES,
            lo=30,
            key=lambda q: len(encode((picture, q), progressive=False)),
        )
        yield picture, quality - 1


def encode(picture: tuple[Pixels, int], *, progressive: bool) -> bytes:
    """Return a picture as JPEG."""
    pixels, quality = picture
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def with_comment(jpegs: Sequence[bytes], row: int) -> bytes:
    """Return the JPEG of a row: few pictures, each row with its own comment."""
    jpeg, comment = jpegs[row % len(jpegs)], f"row {row}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def write_files(root: Path, jpegs: Sequence[bytes]) -> Files:
    """Write JPEGs to a folder, and draw a region for each."""
    root.mkdir(parents=True)
    names = [f"{row:06d}.jpg" for row in range(len(jpegs))]
    for name, jpeg in zip(names, jpegs, strict=True):
        (root / name).write_bytes(jpeg)
    rng = np.random.default_rng(len(jpegs))
    centre = rng.uniform((200, 150), (440, 330), (len(jpegs), 2))
    half = rng.uniform(*REGION_PX, (len(jpegs), 2)) / 2
    region = np.concatenate([centre - half, centre + half], axis=-1)
    return Files(
        root=root,
        names=names,
        sizes=np.array([len(jpeg) for jpeg in jpegs], np.int64),
        region_xyxy=region,
        windows=[
            crop_window(box, FRAME_HW, margin=RECODED.margin, max_px=0, on_blocks=True)
            for box in region
        ],
    )


# --- what is measured -----------------------------------------------------------------------------


def passthrough(config: PreprocessBenchConfig, files: Files, folder: Path) -> Rates:
    """Return MB per second from files to shards, and of plain copies."""
    store, copies = folder / "store.zarr", folder / "copies"
    attributes = build_store(store, [(files.root / name).read_bytes() for name in files.names])
    shards = [rows_of_shard(attributes, shard) for shard in range(num_shards(attributes))]
    parts = [files.part(rows.start, rows.stop) for rows in shards]
    copies.mkdir()

    def to_store() -> None:
        for shard, part in enumerate(parts):
            write_image_shard(store, shard, ours(part, PASSED).payloads, attributes)

    def to_plain() -> None:
        for shard, part in enumerate(parts):
            with (copies / f"{shard}.bin").open("wb") as opened:
                for name in part.names:
                    opened.write((part.root / name).read_bytes())
                opened.flush()
                os.fsync(opened.fileno())

    def to_copies() -> None:
        for name in files.names:
            shutil.copyfile(files.root / name, copies / name)

    to_store()
    to_plain()
    for shard in range(len(parts)):
        plain = (copies / f"{shard}.bin").read_bytes()
        if shard_path(store, shard).read_bytes()[: len(plain)] != plain:
            raise RuntimeError(f"shard {shard} of {store} does not hold the bytes of its files")
    variants: dict[str, Callable[[], object]] = {
        OURS: to_store,
        COPY: to_plain,
        "shutil.copyfile": to_copies,
    }
    return rates(config, variants, float(files.sizes.sum()) / 1e6)


def two_processes(config: PreprocessBenchConfig, files: Files, fastest: str) -> Rates:
    """Return the images per second of two processes, each with half of the files."""
    half = len(files.names) // 2
    halves = [files.part(0, half), files.part(half, len(files.names))]
    with _two() as pool:

        def run(work: Callable[[Files], int]) -> None:
            if sum(pool.map(work, halves)) != len(files.names):
                raise RuntimeError("a process returned too few images")

        variants: dict[str, Callable[[], object]] = {
            OURS: lambda: run(run_ours),
            fastest: lambda: run(functools.partial(run_bare, fastest)),
        }
        return rates(config, variants, len(files.names))


@contextmanager
def _two() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(abs, range(2)))  # both are up
        yield pool


def require_same_images(
    loops: Sequence[str], to_recode: Files, to_transcode: Files, folder: Path
) -> None:
    """Check that the variants of a metric do the same.

    Raises:
        RuntimeError: If one does not.
    """
    few = to_recode.part(0, 8)
    recoded = ours(few, RECODED).payloads
    if recoded != LOOPS["simplejpeg"](few):
        raise RuntimeError("shard_images and the bare loop of simplejpeg give different bytes")
    for name in loops:
        for data, other in zip(recoded, LOOPS[name](few), strict=True):
            if abs(_grey(data) - _grey(other)).mean() > 1:
                raise RuntimeError(f"shard_images and {name} give different pictures")
    transcoded = ours(to_transcode.part(0, 8), BASELINE).payloads
    for data, other in zip(
        transcoded, transcode_bare(to_transcode.part(0, 8), folder), strict=True
    ):
        if not np.array_equal(_grey(data), _grey(other)):
            raise RuntimeError("shard_images and jpeglib give different pictures")


def _grey(data: bytes) -> NDArray[np.float64]:
    grey: NDArray[np.float64] = simplejpeg.decode_jpeg(data).mean(-1)
    return grey
