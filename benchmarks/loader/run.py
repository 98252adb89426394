"""Cost of a batch on a two-core CPU, compared with other loaders and with hardware limits.

    python -m benchmarks loader

The same JPEGs as files, as tars and as a store, in the page cache. Three questions:

- ``uint8``: batches of 64 as decoded, 256 px, shuffled. Ours is the resident cache and, for
  datasets that do not fit, the store decoded again in every epoch.
- ``train``: float32, 224 px, with rotation, zoom, shift, colour matrix and normalisation.
- ``busy``: a consumer that keeps one core busy 100 ms per step. What fraction of a step does it
  wait for the next batch, and what is the ratio of p99 to median step time?

Ours is the public ``Loader``, which also delivers the labels.

Every contender has its own process and runs while the others sleep. A measurement is at least one
epoch, including its start and end, so that no loader benefits from prefetched batches.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.config import NUM_SHARDS, LoaderBenchConfig
from benchmarks.harness import (
    Bar,
    Measurement,
    Row,
    append_rows,
    machine,
    measure_together,
    print_bars,
    record,
    short_number,
)
from benchmarks.loader.contenders import (
    CONTRACTS,
    COPY,
    CORES,
    DALI,
    LOADER,
    NOT_MEASURED,
    RESIDENT,
    STREAM,
    Ready,
    serve,
    source_of,
)
from benchmarks.loader.peers import FRAME_PX, LoaderInput
from benchmarks.store import build_store
from pipeline.app.files import emptied
from pipeline.app.machine import git_state
from pipeline.app.words import say
from pipeline.store.shard import num_shards, rows_of_shard
from pipeline.store.writer import finish_store, write_rows

RECIPE: Final = 1
"""Version of the images; changing it regenerates them."""
FIELD_PX: Final = 512
QUALITY: Final = 95
WARM_STEPS: Final = 5
"""Initial steps of a busy measurement that are not counted: prefetched batches."""
SAME_MEAN: Final = {"uint8": 3.0, "train": 0.15}
"""Tolerance on the colour means of two contenders, in grey levels and standard deviations."""
BUSY: Final = {"uint8": (RESIDENT, "DataLoader, simplejpeg"), "train": (LOADER, "DataLoader, cv2")}
OF_LIMIT: Final = 0.80
STREAM_OF_DALI: Final = 0.85
MOST_WAITED: Final = 0.01

Jpegs = list[bytes]
Measured = dict[tuple[str, str], Measurement]
"""By metric and contender."""


@dataclass(frozen=True, slots=True)
class Child:
    """A contender in its process."""

    connection: Connection
    ready: Ready

    def epoch(self) -> None:
        """Run one epoch."""
        self.connection.send("epoch")
        self.connection.recv()

    def busy(self, steps: int, busy_s: float) -> NDArray[np.float64]:
        """Return (seconds waited, seconds in all) of every step, [steps, 2]."""
        self.connection.send((steps, WARM_STEPS, busy_s))
        return np.array(self.connection.recv())


def main(config: LoaderBenchConfig) -> int:
    """Measure, append the rows and print them; return 0 if every target is met, else 1."""
    folder = make_images(config)
    absent = dict(NOT_MEASURED)
    measured: Measured = {}
    first_epochs: dict[tuple[str, str], float] = {}
    source = source_of(folder, config.num, config.seed, CORES)
    for contract, contenders in CONTRACTS.items():
        with started(contract, tuple(contenders), source, absent) as children:
            require_same_colours(contract, children)
            rates = epoch_rates(config, children)
        for name, rate in rates.items():
            measured[contract, name] = rate
            first_epochs[contract, name] = children[name].ready.seconds
    one = dataclasses.replace(source, workers=1)
    for contract, names in BUSY.items():
        with started(contract, names, one, absent) as children:
            measured |= busy_consumer(config, contract, children)

    params = {
        "images": config.num,
        "image_kb": round(sum(Path(f).stat().st_size for f in source.files) / config.num / 1e3, 1),
        "cores": CORES,
        "disk": "warm",
    }
    rows = [
        record(
            "loader",
            name,
            metric,
            unit_of(metric),
            measurement,
            params={
                **params,
                "limit": limit_of(metric, name, measured),
                "first_epoch_s": first_epochs.get((metric, name)),
            },
            config=dataclasses.asdict(config),
        )
        for (metric, name), measurement in measured.items()
    ]
    append_rows(config.results, rows)
    print_shares(rows, absent)
    return 0 if print_bars(bars_of(measured)) else 1


# --- images ---------------------------------------------------------------------------------------


def make_images(config: LoaderBenchConfig) -> Path:
    """Return the folder of the images, generated unless an earlier run left the same."""
    wanted = {"recipe": RECIPE, "num": config.num, "seed": config.seed}
    folder = Path(config.out)
    marker = folder / "made.json"
    if marker.exists() and json.loads(marker.read_text()) == wanted:
        return folder
    emptied(folder, "out")
    jpegs = photograph_like(config.num, config.seed)
    (folder / "files").mkdir(parents=True)
    (folder / "tars").mkdir()
    for i, jpeg in enumerate(jpegs):
        (folder / "files" / f"{i:06}.jpg").write_bytes(jpeg)
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / "tars" / f"{shard}.tar", "w") as tar:
            for i in range(shard, config.num, NUM_SHARDS):
                tar.add(folder / "files" / f"{i:06}.jpg", arcname=f"{i:06}.jpg")
    path = folder / "store.zarr"
    attributes = build_store(path, jpegs)
    for shard in range(num_shards(attributes)):  # it writes the size of its own frames
        size = np.tile(np.uint16(FRAME_PX), (len(rows_of_shard(attributes, shard)), 2))
        write_rows(path, shard, {"image/size_hw": size})
    finish_store(path, attributes)
    marker.write_text(json.dumps(wanted))
    return folder


def photograph_like(num: int, seed: int) -> Jpegs:
    """Return JPEGs (q95 4:2:0): a 1/f field, warmer than grey, hard-edged shapes, sensor noise."""
    rng = np.random.default_rng(seed)
    fields = [_pink_field(rng) for _ in range(4)]
    noise = rng.normal(0, 3, (FIELD_PX, FIELD_PX, 1)).astype(np.float32)
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    jpegs = []
    for i in range(num):
        pixels = _window(fields[i % len(fields)], rng).copy()
        for _ in range(12):
            centre, axes = rng.integers(0, FRAME_PX, 2).tolist(), rng.integers(3, 60, 2).tolist()
            colour = rng.uniform(0, 255, 3).tolist()
            cv2.ellipse(pixels, centre, axes, rng.uniform(0, 360), 0, 360, colour, -1)
        pixels = np.clip(pixels + _window(noise, rng), 0, 255).astype(np.uint8)
        jpegs.append(cv2.imencode(".jpg", pixels, options)[1].tobytes())
    return jpegs


def _pink_field(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return pink noise, whose amplitude falls with frequency; blue, green, red."""
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(FIELD_PX)] * 2))
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.normal(0, 1, (3, FIELD_PX, FIELD_PX))) / frequency
    field = np.moveaxis(np.fft.ifft2(spectrum).real, 0, -1)
    field *= 40 / field.std()
    # The channels of a photograph share most of their variation.
    pixels = 0.7 * field.mean(-1, keepdims=True) + 0.5 * field + np.array([75.0, 115.0, 155.0])
    warm: NDArray[np.float32] = pixels.astype(np.float32)
    return warm


def _window(field: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    y, x = rng.integers(0, FIELD_PX - FRAME_PX, 2).tolist()
    window: NDArray[np.float32] = field[y : y + FRAME_PX, x : x + FRAME_PX]
    return window


# --- measuring ------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(
    contract: str, names: Sequence[str], source: LoaderInput, absent: dict[str, str]
) -> Iterator[dict[str, Child]]:
    """Start contenders one after the other; failures are recorded in ``absent``."""
    # Forkserver: inherits no state or threads of this process, and pays for imports only once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.loader.contenders"])
    children: dict[str, Child] = {}
    processes = []
    try:
        for name in names:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, contract, name, source))
            process.start()
            theirs.close()
            processes.append((process, ours))
            try:
                ready: Ready | str = ours.recv()
            except EOFError:
                ready = "its process died"
            if isinstance(ready, Ready):
                children[name] = Child(ours, ready)
            else:
                absent[f"{contract}: {name}"] = ready
        yield children
    finally:
        for process, connection in processes:
            with contextlib.suppress(OSError):
                connection.send(None)
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()


def require_same_colours(contract: str, children: Mapping[str, Child]) -> None:
    """Raise if the contenders to compare deliver different images."""
    means = {name: child.ready.channel_mean for name, child in children.items()}
    middle = np.median(list(means.values()), axis=0)
    for name, mean in means.items():
        if np.abs(mean - middle).max() > SAME_MEAN[contract]:
            raise RuntimeError(f"{contract}: {name} gives colours of mean {mean}, others {middle}")


def epoch_rates(config: LoaderBenchConfig, children: Mapping[str, Child]) -> dict[str, Measurement]:
    """Return the images per second of every contender over whole epochs."""
    variants: dict[str, Callable[[], object]] = {
        name: child.epoch for name, child in children.items()
    }
    times = measure_together(
        variants, min_time_s=config.min_time_s, repeats=config.repeats, warmup_s=0.0
    )
    return {name: seconds.rate(children[name].ready.samples) for name, seconds in times.items()}


def busy_consumer(
    config: LoaderBenchConfig, contract: str, children: Mapping[str, Child]
) -> Measured:
    """Return the fraction of a step that the consumer waits, and the jitter of the steps."""
    turns: dict[str, list[NDArray[np.float64]]] = {name: [] for name in children}
    for _ in range(config.repeats):
        for name, child in children.items():
            turns[name].append(child.busy(config.steps, config.busy_ms / 1000))
    measured: Measured = {}
    for name, steps in turns.items():
        waited = [100 * float(turn[:, 0].sum() / turn[:, 1].sum()) for turn in steps]
        p20, p50, p80 = np.quantile(waited, [0.2, 0.5, 0.8]).tolist()
        measured[f"busy {contract}, waiting", name] = Measurement(
            p20=p20, p50=p50, p80=p80, n=len(waited)
        )
    for name, steps in turns.items():
        seconds = np.concatenate(steps)[:, 1]
        jitter = float(np.quantile(seconds, 0.99) / np.median(seconds))
        measured[f"busy {contract}, p99/p50 of a step", name] = Measurement(
            p20=jitter, p50=jitter, p80=jitter, n=len(seconds)
        )
    return measured


# --- the table ------------------------------------------------------------------------------------


def unit_of(metric: str) -> str:
    """Return the unit of a metric."""
    if metric in CONTRACTS:
        return "images/s"
    return "% of a step" if metric.endswith("waiting") else "x"


def limit_of(metric: str, name: str, measured: Measured) -> str | None:
    """Return the contender that is the upper limit of another, if it was measured."""
    limit = CONTRACTS[metric][name].limit if metric in CONTRACTS else None
    return limit if limit is not None and (metric, limit) in measured else None


def bars_of(measured: Measured) -> list[Bar]:
    """Return the targets; a missing measurement counts as 0."""

    def p50(metric: str, name: str, absent: float = 0.0) -> float:
        found = measured.get((metric, name))
        return absent if found is None else found.p50

    peers = [
        rate.p50
        for (metric, name), rate in measured.items()
        if metric == "train" and not name.startswith(("ours", "limit"))
    ]
    resident, stream = (
        100 * p50("uint8", ours) / p50("uint8", limit, np.inf)
        for ours, limit in ((RESIDENT, COPY), (STREAM, DALI))
    )
    ready = p50("train", LOADER) / max(peers, default=np.inf)
    busy = 100 - p50("busy uint8, waiting", RESIDENT, 100.0)
    return [
        Bar(name="resident uint8 of a copy", measured=resident, at_least=100 * OF_LIMIT, unit="%"),
        Bar(name="stream of DALI", measured=stream, at_least=100 * STREAM_OF_DALI, unit="%"),
        Bar(name="train-ready of the best peer", measured=ready, at_least=1.0, unit="x"),
        Bar(
            name="busy step not waiting", measured=busy, at_least=100 * (1 - MOST_WAITED), unit="%"
        ),
    ]


def print_shares(rows: Sequence[Row], absent: Mapping[str, str]) -> None:
    """Print every row as a fraction of its limit, reasons for missing rows, and the machine."""
    p50 = {(row.metric, row.variant): row.p50 for row in rows}
    table = Table("metric", "contender", "p50", "p20 .. p80", "unit", "of its limit", "first epoch")
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.metric != row.metric:
            table.add_section()
        limit, first = row.params["limit"], row.params["first_epoch_s"]
        table.add_row(
            row.metric,
            row.variant,
            short_number(row.p50),
            f"{short_number(row.p20)} .. {short_number(row.p80)}",
            row.unit,
            f"{100 * row.p50 / p50[row.metric, limit]:.0f} %" if limit else "",
            f"{first:.1f} s" if first else "",
        )
    console = Console(width=max(Console().width, 120))
    console.print(table)
    for name, reason in absent.items():
        say(f"no row: {name}: {reason}", console)
    shared: dict[str, Any] = {k: v for k, v in rows[0].params.items() if k in _SHARED}
    below = " ".join(f"{k}={v}" for k, v in (shared | machine() | asdict(git_state())).items())
    say(below, console)


_SHARED: Final = ("images", "image_kb", "cores", "disk")
