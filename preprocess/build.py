"""``build-cache``: a raw dataset becomes one store.

Source -> plan -> one task per shard (read, check, derive, write) -> content hash, finish marker.
The result depends on the source, MANO, ``shard_rows`` and ``on_bad_image`` alone: two builds are
equal byte for byte, whatever the number of workers.
"""

import dataclasses
import math
import multiprocessing
import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from pipeline.store.errors import StoreError, StoreVersionError
from pipeline.store.schema import FLAGS, FORMAT_VERSION, StoreAttributes
from preprocess.config import BuildConfig, OnBadImage
from preprocess.plan import Plan, make_plan
from preprocess.progress import show_progress
from preprocess.quality import flag_counts
from preprocess.records import Source, SourceError
from preprocess.report import BuildReport, report_text
from preprocess.shard import ShardResult, ShardTask, plan_indices, run_shard, stack_labels
from preprocess.sources.registry import check_dataset, open_source

if TYPE_CHECKING:
    from model.mano_files import ManoModels

_FIRST: int = 5
"""How many rows or files a report names."""


def main(config: BuildConfig) -> int:
    """Turn a raw dataset into one sharded Zarr v3 store and say what is in it."""
    report = build(config)
    Console().print(report_text(report), highlight=False, markup=False, soft_wrap=True)
    return 0


def build(config: BuildConfig, *, console: Console | None = None) -> BuildReport:
    """Build a store and return what went into it.

    Args:
        config: What to build.
        console: Where progress goes; stderr by default.

    Raises:
        SourceError: If the dataset is not there, broken, or (``on_bad_image=error``) an image is.
        StoreError: If ``out`` holds something that must not be replaced.
        FileNotFoundError: If a MANO folder is named that has no MANO files.
    """
    from pipeline.store.writer import create_store, finish_store

    console = console or Console(stderr=True)
    start = time.monotonic()
    out = Path(config.out).expanduser()
    root = Path(config.root).expanduser()
    check_dataset(config.dataset)
    check_out(out, overwrite=config.overwrite)
    mano = _load_mano(config.mano)
    _say(console, f"reading the annotations of {config.dataset} below {root}")
    source = open_source(config.dataset, root, mano)
    _say(console, f"planning {len(source.rows)} images")
    plan = make_plan(source, shard_rows=config.shard_rows)
    if config.on_bad_image is OnBadImage.error:
        _refuse_missing_images(source, plan)
    attributes = _attributes(config, source, plan, mano)
    if out.exists():
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    create_store(out, attributes, plan.splits)

    results: list[ShardResult] = []
    shards_start = time.monotonic()
    with show_progress("build-cache", console) as report:
        done = 0
        for result in _run(_tasks(config, source, plan, attributes, out), config.workers, plan):
            results.append(result)
            done += len(result.quality)
            report(done, plan.num_rows)
    shard_seconds = time.monotonic() - shards_start
    results.sort(key=lambda result: result.shard)
    quality = np.concatenate([result.quality for result in results])
    processes: Counter[str] = Counter()
    for result in results:
        processes.update(result.processes)
    residuals = [r.max_residual_m for r in results if math.isfinite(r.max_residual_m)]
    residual = max(residuals, default=float("nan"))
    final = dataclasses.replace(
        attributes,
        flag_counts=flag_counts(quality),
        extra={
            **attributes.extra,
            "jpeg_processes": dict(sorted(processes.items())),
            "mano_residual_max_m": residual if residuals else None,
        },
    )
    final = finish_store(out, final)
    return BuildReport(
        path=out,
        attributes=final,
        image_bytes=sum(result.num_bytes for result in results),
        seconds=time.monotonic() - start,
        shard_seconds=shard_seconds,
        mano_used=mano is not None,
        max_residual_m=residual,
        first_rows={
            name: np.flatnonzero(quality & np.uint32(bit))[:_FIRST].tolist()
            for name, bit in FLAGS.items()
        },
        bad_images=[bad for result in results for bad in result.bad_images],
    )


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a place where a store must not be written.

    Raises:
        StoreError: If there is a finished store (unless ``overwrite``), or anything that is not
            one of ours: that is never removed.
    """
    from pipeline.store.reader import read_attributes

    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise StoreError(f"out={str(out)!r} is no folder; choose another path")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / "zarr.json").is_file():
        raise StoreError(
            f"out={str(out)!r} is a folder with other files, not a store; choose another path"
        )
    try:
        finished = read_attributes(out, allow_unfinished=True).finished
    except StoreVersionError:
        finished = True  # of another version, but ours
    if finished and not overwrite:
        raise StoreError(
            f"out={str(out)!r} holds a finished store; pass overwrite=true to replace it"
        )


def _say(console: Console, text: str) -> None:
    console.print(f"build-cache: {text}", highlight=False, markup=False, soft_wrap=True)


def _load_mano(path: str | None) -> "ManoModels | None":
    from model.mano_files import find_mano, load_mano

    folder = find_mano(path)
    return None if folder is None else load_mano(folder)


def _refuse_missing_images(source: Source, plan: Plan) -> None:
    missing = np.flatnonzero(plan.image_bytes == 0)
    if len(missing):
        first = min(missing, key=lambda row: plan.official_idx[row])
        raise SourceError(
            f"{source.dataset}: the annotations list {plan.num_rows} images, {source.root} holds "
            f"{plan.num_rows - len(missing)} of them; {len(missing)} are missing or empty (first: "
            f"{plan.image[first]}); copy them again, or pass on_bad_image=flag to keep their rows "
            "without an image"
        )


def _attributes(
    config: BuildConfig, source: Source, plan: Plan, mano: "ManoModels | None"
) -> StoreAttributes:
    return StoreAttributes(
        format=FORMAT_VERSION,
        dataset=source.dataset,
        joint_set=source.joint_set.name,
        num_rows=plan.num_rows,
        shard_rows=plan.shard_rows,
        shard_capacity_bytes=plan.shard_capacity_bytes,
        image_encoding="passthrough",
        licence=source.licence,
        citation=source.citation,
        official_counts=source.official_counts,
        found_counts={name: len(rows) for name, rows in plan.splits.items()},
        flags=FLAGS,
        flag_counts={},
        tables=plan.tables,
        plan_sha256=plan.sha256,
        content_sha256="",
        mano_sha256="" if mano is None else mano.sha256,
        command=build_command(config),
        finished=False,
        extra={"on_bad_image": config.on_bad_image.name},
    )


def build_command(config: BuildConfig) -> str:
    """Return the command line that builds the same store again, with absolute paths.

    It replaces what is there: errors about a damaged or unfinished store quote it as the cure.
    """
    words = [f"dataset={config.dataset}"]
    for key in ("root", "out", "mano"):
        value = getattr(config, key)
        if value is not None:
            words.append(f"{key}={Path(value).expanduser().absolute()}")
    defaults = {field.name: field.default for field in dataclasses.fields(BuildConfig)}
    if config.shard_rows != defaults["shard_rows"]:
        words.append(f"shard_rows={config.shard_rows}")
    if config.on_bad_image is not defaults["on_bad_image"]:
        words.append(f"on_bad_image={config.on_bad_image.name}")
    return shlex.join(["python", "-m", "preprocess", "build-cache", *words, "overwrite=true"])


# --- shards ---------------------------------------------------------------------------------------


def _tasks(
    config: BuildConfig, source: Source, plan: Plan, attributes: StoreAttributes, out: Path
) -> Iterator[ShardTask]:
    """Yield one task per shard; labels are made as the tasks are taken."""
    # The tables can be large, and no shard needs them.
    attributes = dataclasses.replace(attributes, tables={})
    for shard in range(plan.num_shards):
        rows = plan.rows_of_shard(shard)
        yield ShardTask(
            store=out,
            root=source.root,
            shard=shard,
            first_row=rows.start,
            attributes=attributes,
            images=plan.image[rows],
            image_bytes=plan.image_bytes[rows],
            labels=stack_labels(source.labels, plan.official_idx[rows].tolist()),
            indices=plan_indices(plan, rows),
            stop_at_bad_image=config.on_bad_image is OnBadImage.error,
        )


def _run(tasks: Iterator[ShardTask], workers: int, plan: Plan) -> Iterator[ShardResult]:
    """Yield results as they come; at most two tasks per worker are under way."""
    num_workers = min(workers or len(os.sched_getaffinity(0)), plan.num_shards)
    if num_workers == 1:
        yield from map(run_shard, tasks)
        return
    # spawn: the parent holds torch's and zarr's threads, which a fork would leave behind.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        pending: set[Future[ShardResult]] = set()
        try:
            for task in tasks:
                pending.add(pool.submit(run_shard, task))
                if len(pending) >= 2 * num_workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise StoreError(
                f"a worker died while it wrote {plan.num_rows} rows (often out of memory); "
                f"build again with fewer workers, workers={max(1, num_workers // 2)}"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
