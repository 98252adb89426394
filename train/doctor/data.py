"""Checks of ``python -m train doctor``: the store, the disk under it, MANO."""

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from pipeline.store.reader import open_store, read_attributes
from pipeline.store.shard import num_shards, shard_path
from train.doctor.config import DoctorConfig
from train.doctor.finding import Finding, ok, warning

READ_BYTES: Final = 256 << 20
"""Bytes of the store's images to read when measuring the disk."""
BLOCK_BYTES: Final = 8 << 20
ENOUGH_BYTES: Final = 16 << 20
"""Minimum bytes for a meaningful rate."""
SLOW_GB_PER_S: Final = 0.15
"""Below, it is likely a network disk or a hard disk, and the cache fill waits for it."""


def store(config: DoctorConfig) -> Finding:
    """Open the store and summarise its content."""
    if config.store is None:
        return ok("not asked for: store=FOLDER opens it")
    with closing(open_store(Path(config.store).expanduser())) as opened:
        attributes, counts = opened.attributes, opened.split_counts()
        image_bytes = int(opened.image_index.length.sum())
    splits = ", ".join(f"{name} {count}" for name, count in counts.items())
    return ok(
        f"{attributes.dataset}: {splits}; {image_bytes / 1e9:.2f} GB of images in "
        f"{num_shards(attributes)} shards; content {attributes.content_sha256[:12]}",
        dataset=attributes.dataset,
        splits=counts,
        image_bytes=image_bytes,
        content_sha256=attributes.content_sha256,
    )


def disk(config: DoctorConfig) -> Finding:
    """Read some of the store's images in order, from the disk and again from the page cache."""
    if config.store is None:
        return ok("not asked for: store=FOLDER measures the disk under it")
    path = Path(config.store).expanduser()
    shards = range(num_shards(read_attributes(path)))
    files = [file for shard in shards if (file := shard_path(path, shard)).exists()]
    for file in files:
        _drop_pages(file)
    before = _bytes_from_storage()
    cold, num_bytes = _read(files)
    from_storage = _bytes_from_storage() - before
    warm, _ = _read(files)
    share = min(1.0, from_storage / num_bytes) if num_bytes else 0.0
    values = {
        "bytes_read": num_bytes,
        "share_from_storage": share,
        "cold_gb_per_s": cold,
        "warm_gb_per_s": warm,
    }
    text = f"{warm:.2f} GB/s warm; {num_bytes / 1e6:.0f} MB in order"
    if num_bytes < ENOUGH_BYTES:
        return ok(f"{num_bytes / 1e6:.1f} MB of images are too few to measure", **values)
    if share < 0.5:
        return ok(
            f"cold not measured, {share:.0%} came from a disk here (page cache in use, or a "
            f"network or memory file system: {cold:.2f} GB/s); {text}",
            **values,
        )
    found = f"{cold:.2f} GB/s cold ({share:.0%} came from the disk), {text}"
    if cold < SLOW_GB_PER_S:
        return warning(found, "copy the store to a local SSD; only the fill reads it", **values)
    return ok(found, **values)


def mano(config: DoctorConfig) -> Finding:
    """Find the MANO files and report their hash."""
    from model.mano.files import INTERHAND_REGRESSOR_FILE, find_mano, load_mano

    folder = find_mano(config.mano)
    if folder is None:
        return warning(
            "not found: neither mano=FOLDER nor HANDLOOM_MANO is given",
            "python -m preprocess import-mano path=mano_v1_2.zip out=FOLDER, then mano=FOLDER; or "
            "train without it: model.head=joints",
        )
    models = load_mano(folder)
    left = "fixed on loading" if models.left_was_unfixed else "already fixed in the file"
    regressor = "with" if models.interhand_regressor is not None else "without"
    return ok(
        f"{folder}: {models.sha256[:12]}; left shape basis {left}; {regressor} "
        f"{INTERHAND_REGRESSOR_FILE}",
        folder=str(folder),
        sha256=models.sha256,
        left_was_unfixed=models.left_was_unfixed,
        has_interhand_regressor=models.interhand_regressor is not None,
    )


def _read(files: list[Path]) -> tuple[float, int]:
    """Return GB/s and bytes of reading files one after another, at most ``READ_BYTES``."""
    num_bytes, block = 0, memoryview(bytearray(BLOCK_BYTES))
    begin = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while num_bytes < READ_BYTES and (got := file.readinto(block)):
                num_bytes += got
    return num_bytes / 1e9 / (time.perf_counter() - begin), num_bytes


def _drop_pages(path: Path) -> None:
    """Ask the kernel to drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _bytes_from_storage() -> int:
    """Return the bytes this process has read from block devices so far; 0 where unavailable."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), 0)
