"""``build-cache``: convert a raw dataset to one store.

Source -> plan -> object shapes -> one task per shard (labels, images, check, derive, write) ->
content hash, report page, finish marker. The result depends only on the source, MANO and the
settings, not on the number or kind of workers: two builds are identical byte for byte. A build can
be interrupted at any time; it resumes where it stopped (``preprocess.builder.journal``) and
produces the same bytes.
"""

import contextlib
import dataclasses
import functools
import math
import operator
import time
from collections import Counter
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from pipeline.app.files import naming, replace_file
from pipeline.app.lock import locked
from pipeline.app.progress import show_progress
from pipeline.app.words import say
from pipeline.store.errors import StoreError, StoreVersionError
from pipeline.store.schema import FLAGS, LOCK, StoreAttributes
from pipeline.store.shard import num_shards
from preprocess.builder import journal
from preprocess.builder.executor import map_in_order, run_shards
from preprocess.builder.plan import StorePlan
from preprocess.builder.report.facts import rejected_rows, store_facts
from preprocess.builder.report.page import PAGE_FILE, page
from preprocess.builder.report.text import BuildReport, report_text
from preprocess.builder.shard import ShardResult
from preprocess.builder.tasks import Tasks, load_mano_of, make_tasks
from preprocess.config import BuildConfig, OnBadImage
from preprocess.images.ends import refuse_cut_images
from preprocess.labels.quality import flag_counts
from preprocess.records import DatasetSource, SourceError
from preprocess.sources.registry import check_dataset, open_source

if TYPE_CHECKING:
    from pipeline.store.objects import ObjectShape

_FIRST: int = 5
"""Maximum number of rows or files that a report lists."""
_FEW_SHAPES: int = 6


def main(config: BuildConfig) -> int:
    """Convert a raw dataset to one sharded Zarr v3 store and report its content.

    You can stop a build at any time, even with kill -9: the same command resumes it. To build on a
    Dask cluster, pass executor=dask and executor.address=tcp://HOST:PORT.
    """
    report = build(config)
    say(report_text(report))
    return 0


def build(config: BuildConfig, *, console: Console | None = None) -> BuildReport:
    """Build a store, or resume an unfinished build, and return the report.

    Args:
        config: Build settings.
        console: Console for progress; stderr by default.

    Raises:
        SourceError: If the dataset is missing or broken, or an image is (``on_bad_image=error``).
        StoreError: If ``out`` holds something that must not be replaced or cannot be written, or a
            worker dies. Finished shards are kept for the next run.
        FileNotFoundError: If the given MANO folder has no MANO files.
    """
    console = console or Console(stderr=True)
    out = Path(config.out).expanduser()
    check_dataset(config.dataset)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise StoreError(f"out={str(out)!r} is not a folder; choose another path")
    alone = locked(
        out / LOCK,
        f"another build is writing {out}",
        instead="choose another out=",
        say=lambda line: say(f"build-cache: {line}", console),
    )
    with alone, naming(out):
        check_out(out, overwrite=config.overwrite)
        return _build(config, out, console)


def _build(config: BuildConfig, out: Path, console: Console) -> BuildReport:
    """Build with ``out`` locked."""
    start = time.monotonic()
    root = Path(config.root).expanduser()
    mano_folder, mano = load_mano_of(config.mano)
    say(f"build-cache: reading the annotations of {config.dataset} below {root}", console)
    source = open_source(config.dataset, root, mano)
    say(f"build-cache: planning {len(source.rows)} images", console)
    tasks = make_tasks(config, source, mano_folder, mano)
    plan = tasks.plan
    if config.on_bad_image is OnBadImage.error:
        _refuse_missing_images(source, plan)
        refuse_cut_images(source.dataset, source.root, plan.image, tasks.work, console)
    results = _prepare(tasks, console)
    shards_start = time.monotonic()
    done = already = sum(result.num_rows for result in results.values())
    left = [shard for shard in range(plan.num_shards) if shard not in results]
    todo = map(tasks.task, left)
    with show_progress("build-cache", console, already=done) as report:
        for task, result in run_shards(todo, len(left), config.executor, workers=config.workers):
            journal.append(out, task, result)
            results[result.shard] = result
            done += result.num_rows
            report(done, plan.num_rows)
    return _finish(
        tasks,
        [results[shard] for shard in sorted(results)],
        start=start,
        shard_seconds=time.monotonic() - shards_start,
        fresh_rows=plan.num_rows - already,
        console=console,
    )


def check_out(out: Path, *, overwrite: bool) -> None:
    """Check that a store may be written at ``out``.

    Raises:
        StoreError: If there is a finished store (unless ``overwrite``), or anything that is not a
            Handloom store, which is never removed.
    """
    from pipeline.store.reader import read_attributes
    from pipeline.store.writer import foreign_files

    has_store = (out / "zarr.json").is_file()
    if foreign := foreign_files(out):
        some = f"{', '.join(foreign[:3])}{' ...' if len(foreign) > 3 else ''}"
        raise StoreError(
            f"out={str(out)!r} is a folder with other files{' in a store' * has_store} ({some})"
            + ("; move them away or " if has_store else ", not a store; ")
            + "choose another path"
        )
    if not has_store:
        return
    try:
        finished = read_attributes(out, allow_unfinished=True).finished
    except StoreVersionError:
        finished = True  # a Handloom store of another version
    if finished and not overwrite and not journal.journal_path(out).exists():
        raise _is_finished(out)


def _is_finished(out: Path) -> StoreError:
    return StoreError(f"out={str(out)!r} holds a finished store; pass overwrite=true to replace it")


def _refuse_missing_images(source: DatasetSource, plan: StorePlan) -> None:
    missing = np.flatnonzero(plan.image_bytes == 0)
    if len(missing):
        first = min(missing, key=lambda row: plan.official_idx[row])
        raise SourceError(
            f"{source.dataset}: the annotations list {plan.num_rows} images, {source.root} holds "
            f"{plan.num_rows - len(missing)} of them; {len(missing)} are missing or empty (first: "
            f"{plan.image[first]}); copy them again, or pass on_bad_image=flag to keep their rows "
            "without an image"
        )


# --- the store ------------------------------------------------------------------------------------


def _prepare(tasks: Tasks, console: Console) -> dict[int, ShardResult]:
    """Create an empty store, or find the shards that an earlier run finished."""
    from pipeline.store.reader import read_attributes
    from pipeline.store.writer import create_store, remove_store

    out, attributes = tasks.store, tasks.attributes
    if journal.journal_path(out).exists():
        found = read_attributes(out, allow_unfinished=True)
        if _layout(found) == _layout(attributes):
            entries = journal.read(out)
            kept = {
                shard: entries[shard].result
                for shard in range(num_shards(attributes))
                if journal.is_done(out, tasks.task(shard, with_labels=False), entries)
            }
            num = num_shards(attributes)
            say(f"build-cache: {len(kept)} of {num} shards are already done", console)
            return kept
        if found.finished and not tasks.config.overwrite:
            raise _is_finished(out)
        say(
            "build-cache: the dataset or the settings changed since the last run: starting over",
            console,
        )
    shapes = _shapes(tasks.source, tasks.config.workers, console)
    remove_store(out)
    size_hw = tasks.source.picture_hw
    create_store(
        out,
        attributes,
        tasks.plan.splits,
        objects=shapes,
        pictures=dict.fromkeys(tasks.pictures, size_hw),
        optional=tasks.source.optional_labels,
    )
    journal.begin(out)
    return {}


def _layout(attributes: StoreAttributes) -> StoreAttributes:
    """Return the attributes in which an unfinished store must match a build that resumes it."""
    return dataclasses.replace(
        attributes, flag_counts={}, content_sha256="", command="", finished=False, extra={}
    )


def _shapes(source: DatasetSource, workers: int, console: Console) -> "list[ObjectShape]":
    files = [file for file in source.objects if file.mesh]
    if not files:
        return []
    from preprocess.objects.shapes import make_shape

    say(f"build-cache: processing {len(files)} objects", console)
    with show_progress("objects", console, unit="objects") as report:
        shapes = []
        make = functools.partial(make_shape, root=source.root)
        # Starting a process takes two seconds, as long as two shapes.
        few = len(files) < _FEW_SHAPES
        for shape in map_in_order(make, files, workers=1 if few else workers):
            shapes.append(shape)
            report(len(shapes), len(files))
    return shapes


# --- the end --------------------------------------------------------------------------------------


def _finish(
    tasks: Tasks,
    results: list[ShardResult],
    *,
    start: float,
    shard_seconds: float,
    fresh_rows: int,
    console: Console,
) -> BuildReport:
    """Write content hash, finish marker and report page; return the report.

    The journal is removed last: if killed before that, the next run repeats all of this.
    """
    from pipeline.store.reader import open_store
    from pipeline.store.writer import finish_store

    out, plan = tasks.store, tasks.plan
    with contextlib.closing(
        open_store(out, reader="pread", allow_unfinished=True, allow_unlisted=True)
    ) as store:
        quality = store.label("quality")
    residual = max((r.max_residual_m for r in results if r.max_residual_m is not None), default=nan)
    refit = max((r.max_refit_m for r in results if r.max_refit_m is not None), default=nan)
    processes = sum((Counter(r.processes) for r in results), Counter())
    extra = {
        "jpeg_processes": dict(sorted(processes.items())),
        "mano_residual_max_m": None if math.isnan(residual) else residual,
        "left_refit_max_m": None if math.isnan(refit) else refit,
    }
    final = dataclasses.replace(
        tasks.attributes,
        flag_counts=flag_counts(quality),
        extra={**tasks.attributes.extra, **extra},
    )
    with show_progress("content hash", console) as report:
        final = finish_store(out, final, report=report)
    bad = [image for result in results for image in result.bad_images]
    residuals = functools.reduce(operator.add, (r.residuals for r in results))
    with contextlib.closing(open_store(out, reader="pread")) as store:
        text = page(
            final,
            facts=store_facts(store),
            residuals=residuals,
            flag_rows=rejected_rows(store, plan.image, {image.row: image.reason for image in bad}),
            notes=tasks.source.notes,
            max_residual_m=residual,
            max_refit_m=refit,
        )
    replace_file(out / PAGE_FILE, text.encode())
    journal.remove(out)
    return BuildReport(
        path=out,
        attributes=final,
        image_bytes=sum(result.num_bytes for result in results),
        seconds=time.monotonic() - start,
        shard_seconds=shard_seconds,
        fresh_rows=fresh_rows,
        mano_used=tasks.mano is not None,
        max_residual_m=residual,
        max_refit_m=refit,
        object_rows=dict(sum((Counter(r.object_rows) for r in results), Counter())),
        first_rows={
            name: np.flatnonzero(quality & np.uint32(bit))[:_FIRST].tolist()
            for name, bit in FLAGS.items()
        },
        bad_images=bad,
        report_page=out / PAGE_FILE,
    )
