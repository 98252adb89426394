"""Read and write rates of a store, compared with other readers, plain memory and plain files.

    python -m benchmarks store

Builds its own store of JPEGs of 20-100 KB in several shards and reads it from the page cache.
Variants of one metric deliver the same bytes: random whole images; a scan in store order that
copies each image into a consumer's buffer; one shard written to disk with fsync.

Ours runs on one core; tensorstore and zarr-python use threads on all cores, which favours them.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray

from benchmarks.config import BATCH, NUM_SHARDS, StoreBenchConfig
from benchmarks.harness import (
    Bar,
    Measurement,
    append_rows,
    print_bars,
    print_table,
    rates_together,
    record,
)
from pipeline.app.files import emptied
from pipeline.store.reader import open_store
from pipeline.store.schema import FORMAT_VERSION, INNER_CHUNK_BYTES, StoreAttributes
from pipeline.store.shard import num_shards, rows_of_shard
from pipeline.store.writer import create_store, finish_store, write_image_shard, write_rows

NUM_DISTINCT: Final = 200
FRAME_HW: Final = (480, 640)
JPEG_BYTES: Final = (20_000, 100_000)

Jpegs = Sequence[bytes]
ReadBatch = Callable[[Sequence[int]], list[NDArray[np.uint8]]]
Rates = dict[str, Measurement]


def main(config: StoreBenchConfig) -> int:
    """Measure, append the rows and print them; return 0 if every target is met, else 1."""
    jpegs = synthetic_jpegs(config.num, config.seed)
    path = Path(config.out) / "store.zarr"
    attributes = build_store(path, jpegs)
    reads = random_reads(config, path, jpegs)
    scans = sequential_scans(config, path, jpegs)
    writes = shard_writes(config, path, jpegs, attributes)

    params = {
        "image_kb": round(sum(map(len, jpegs)) / len(jpegs) / 1000, 1),
        "inner_chunk_kib": INNER_CHUNK_BYTES >> 10,
        "disk": "warm",
    }
    metrics = [
        ("random images", "images/s", reads),
        ("scan", "MB/s", scans),
        ("shard write", "MB/s", writes),
    ]
    rows = [
        record(
            "store", variant, metric, unit, rate, params=params, config=dataclasses.asdict(config)
        )
        for metric, unit, rates in metrics
        for variant, rate in rates.items()
    ]
    append_rows(config.results, rows)
    print_table(rows)
    ours, tensorstore = reads["mmap, crc32c checked"].p50, reads["tensorstore, 64 futures"].p50
    copy_share = scans["mmap"].p50 / scans["memory copy"].p50
    all_met = print_bars(
        [
            Bar(name="random images, mmap", measured=ours, at_least=50e3, unit="images/s"),
            Bar(name="  of tensorstore's", measured=ours / tensorstore, at_least=5, unit="x"),
            Bar(name="random, tensorstore", measured=tensorstore, at_least=5e3, unit="images/s"),
            Bar(name="scan of memory copy", measured=100 * copy_share, at_least=50, unit="%"),
        ]
    )
    return 0 if all_met else 1


def synthetic_jpegs(num: int, seed: int) -> list[bytes]:
    """Return ``num`` different JPEGs of 20-100 KB: few images, each row with its own comment."""
    rng = np.random.default_rng(seed)
    pictures: list[bytes] = []
    while len(pictures) < min(num, NUM_DISTINCT):
        pixels = rng.normal(128, rng.uniform(10, 30), (*FRAME_HW, 3))
        for _ in range(12):
            centre, axes = rng.integers(0, 640, 2).tolist(), rng.integers(5, 150, 2).tolist()
            colour = rng.uniform(0, 255, 3).tolist()
            cv2.ellipse(pixels, centre, axes, rng.uniform(0, 360), 0, 360, colour, -1)
        quality = int(rng.integers(50, 95))
        encoded = cv2.imencode(".jpg", pixels.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
        if JPEG_BYTES[0] <= len(encoded[1]) <= JPEG_BYTES[1]:
            pictures.append(encoded[1].tobytes())
    jpegs = []
    for row in range(num):
        picture, comment = pictures[row % len(pictures)], f"row {row}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        jpegs.append(picture[:2] + segment + picture[2:])
    return jpegs


def build_store(path: Path, jpegs: Jpegs, *, shards: int = NUM_SHARDS) -> StoreAttributes:
    """Build a finished store at ``path`` with ``sample_ok`` as the only label."""
    shard_rows = -(-len(jpegs) // shards)
    most = shard_rows * max(map(len, jpegs))
    attributes = StoreAttributes(
        format=FORMAT_VERSION,
        dataset="synthetic",
        joint_set="smplx",
        num_rows=len(jpegs),
        shard_rows=shard_rows,
        shard_capacity_bytes=-(-most // INNER_CHUNK_BYTES) * INNER_CHUNK_BYTES,
        image_encoding="passthrough",
        licence="none: synthetic",
        citation="none: synthetic",
        official_counts={},
        found_counts={},
        flags={},
        flag_counts={},
        tables={},
        plan_sha256="",
        content_sha256="",
        mano_sha256="",
        command="python -m benchmarks store",
        finished=False,
    )
    create_store(emptied(path, "out"), attributes, {})
    for shard in range(num_shards(attributes)):
        part = shard_jpegs(jpegs, shard, attributes)
        offset, length, crcs = write_image_shard(path, shard, part, attributes)
        columns: dict[str, NDArray[Any]] = {
            "image/offset": offset,
            "image/length": length,
            "image/crc32c": crcs,
            "image/size_hw": np.tile(np.array([FRAME_HW], np.uint16), (len(part), 1)),
            "labels/sample_ok": np.ones(len(part), np.bool_),
        }
        write_rows(path, shard, columns)
    return finish_store(path, attributes)


def shard_jpegs(jpegs: Jpegs, shard: int, attributes: StoreAttributes) -> Jpegs:
    """Return the JPEGs of one shard."""
    rows = rows_of_shard(attributes, shard)
    return jpegs[rows.start : rows.stop]


def random_reads(config: StoreBenchConfig, path: Path, jpegs: Jpegs) -> Rates:
    """Return the images per second of every reader, in batches of random rows."""
    import tensorstore

    mapped, read = open_store(path, reader="mmap"), open_store(path, reader="pread")
    start = mapped.image_index.offset.tolist()
    stop = (mapped.image_index.offset + mapped.image_index.length).tolist()
    folder = path / "image" / "bytes"
    in_zarr = zarr.open_array(folder, mode="r")
    in_tensorstore = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}, read=True
    ).result()

    def futures(rows: Sequence[int]) -> list[Any]:
        pending = [in_tensorstore[start[row] : stop[row]].read() for row in rows]
        return [future.result() for future in pending]

    variants: dict[str, ReadBatch] = {
        "mmap, crc32c checked": lambda rows: [mapped.jpeg_checked(row) for row in rows],
        "pread, crc32c checked": lambda rows: [read.jpeg_checked(row) for row in rows],
        f"tensorstore, {BATCH} futures": futures,
        "zarr-python, slices": lambda rows: [
            np.asarray(in_zarr[start[row] : stop[row]]) for row in rows
        ],
    }
    order = np.random.default_rng(config.seed).permutation(config.num)
    batches = [(order[i : i + BATCH].tolist(),) for i in range(0, config.num - BATCH + 1, BATCH)]
    for name, variant in variants.items():
        if [bytes(jpeg) for jpeg in variant(*batches[0])] != [jpegs[row] for row in batches[0][0]]:
            raise RuntimeError(f"{name} returned other bytes than were written to {path}")
    rates = rates_together(config, variants, BATCH, batches)
    mapped.close()
    read.close()
    return rates


def sequential_scans(config: StoreBenchConfig, path: Path, jpegs: Jpegs) -> Rates:
    """Return the MB per second of a scan over all images, and of a plain copy of their bytes."""
    source = np.frombuffer(b"".join(jpegs), np.uint8)
    target = np.zeros_like(source)
    buffer = np.zeros(max(map(len, jpegs)), np.uint8)
    stores = {reader: open_store(path, reader=reader) for reader in ("mmap", "pread")}

    def scan(reader: str) -> None:
        for _, jpeg in stores[reader].scan(range(config.num)):
            buffer[: len(jpeg)] = jpeg

    variants: dict[str, Callable[[], object]] = {
        "mmap": lambda: scan("mmap"),
        "pread": lambda: scan("pread"),
        "memory copy": lambda: np.copyto(target, source),
    }
    rates = rates_together(config, variants, len(source) / 1e6)
    for store in stores.values():
        store.close()
    return rates


def shard_writes(
    config: StoreBenchConfig, path: Path, jpegs: Jpegs, attributes: StoreAttributes
) -> Rates:
    """Return the MB per second of writing one shard and of writing its bytes to a plain file."""
    part = shard_jpegs(jpegs, 0, attributes)
    plain = path / "image" / "bytes" / "plain.bin"

    def write_plain() -> None:
        with plain.open("wb") as file:
            file.writelines(part)
            file.flush()
            os.fsync(file.fileno())

    variants: dict[str, Callable[[], object]] = {
        "write_image_shard": lambda: write_image_shard(path, 0, part, attributes),
        "plain file": write_plain,
    }
    rates = rates_together(config, variants, sum(map(len, part)) / 1e6)
    plain.unlink()
    return rates
