"""``verify-cache``: check every byte of a store.

Without ``root``: shard layout, crc32c, JPEG header and coded pixels of each image, sizes, row
order, masks against values, boxes against projections, flags against rules, splits, counts, content
hash.
With ``root``: also every image against its file, every label against a fresh conversion, and the
labels against redundant ones that ``root`` has for the same images.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from pipeline.app.machine import usable_cores
from pipeline.app.progress import show_progress
from pipeline.app.words import say
from pipeline.store.errors import StoreCorruptError
from pipeline.store.schema import CONTACT_FAR, CONTACT_STEP_M, FLAGS, IN_CONTACT_M, NUM_OBJECTS
from preprocess.builder.shard import shard_content, task_pictures
from preprocess.builder.tasks import built_with, load_mano_of, make_tasks
from preprocess.config import ImageCheck, VerifyConfig
from preprocess.images.header import ImageProblem, read_jpeg_header
from preprocess.labels.quality import UNREADABLE, derive, flag_counts
from preprocess.records import DatasetSource, LabelStack, SourceError
from preprocess.sources.registry import open_source

if TYPE_CHECKING:
    from pipeline.store.reader import Store

_IMAGES_AT_A_TIME = 256
_BOX_RTOL = 1e-6
"""Tolerance for boxes: derived from the float32 labels, they differ at most in the last bit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """Result of a verification."""

    path: Path
    num_rows: int
    image_bytes: int
    seconds: float
    compared_with: Path | None
    """Root of the raw dataset if the store was compared with it."""
    notes: list[str]
    """Further comparisons, one sentence each."""
    problems: list[str]
    """Differences found, one sentence each; empty = the store is intact."""


def main(config: VerifyConfig) -> int:
    """Check every byte of a store, optionally against its raw dataset; exit code 1 on problems."""
    report = verify(config)
    say(verify_text(report))
    return 1 if report.problems else 0


def verify(config: VerifyConfig, *, console: Console | None = None) -> VerifyReport:
    """Check a store and return every problem found.

    Args:
        config: The store, and the raw dataset to compare with, if any.
        console: Console for progress; stderr by default.

    Raises:
        StoreError: If there is no finished store of this version. Damage is reported as a problem.
        SourceError: If ``root`` is given and cannot be opened.
    """
    from pipeline.store.files import write_files
    from pipeline.store.reader import open_store

    console = console or Console(stderr=True)
    start = time.monotonic()
    path = Path(config.store).expanduser()
    root = None if config.root is None else Path(config.root).expanduser()
    problems: list[str] = []
    notes: list[str] = []
    num_rows, num_bytes = 0, 0
    try:
        store = open_store(path, allow_unlisted=config.relist)
    except StoreCorruptError as error:
        problems.append(str(error))
    else:
        damaged = list(store.damaged_files())
        problems += damaged
        num_rows = store.num_rows
        num_bytes = int(store.image_index.length.sum(dtype=np.int64))
        with show_progress("verify-cache", console) as report:
            problems += _check_images(store, config.check, report)
        if not damaged:
            problems += [*_check_order(store), *_check_labels(store), *_check_objects(store)]
            problems += _check_attributes(store)
        if not problems:
            problems += _check_content(store)
            if config.relist and not problems:
                write_files(path, store.attributes.content_sha256)
                notes.append("the list of its files was written anew")
        if root is not None and not damaged:
            problems += _compare_with_source(store, root, config.mano, notes)
        store.close()
    return VerifyReport(
        path=path,
        num_rows=num_rows,
        image_bytes=num_bytes,
        seconds=time.monotonic() - start,
        compared_with=root,
        notes=notes,
        problems=problems,
    )


def verify_text(report: VerifyReport) -> str:
    """Format the report as text, with at most 20 problems."""
    rate = report.image_bytes / max(report.seconds, 1e-9) / 1e6
    against = f", compared with {report.compared_with}" if report.compared_with else ""
    head = (
        f"{report.path}: {report.num_rows} rows, {report.image_bytes / 1e6:.1f} MB of JPEG read "
        f"in {report.seconds:.1f} s ({rate:.0f} MB/s){against}"
    )
    head = "\n".join([head, *report.notes])
    if not report.problems:
        return f"{head}\nno differences"
    lines = [f"  {problem}" for problem in report.problems[:20]]
    if len(report.problems) > len(lines):
        lines.append(f"  and {len(report.problems) - len(lines)} more")
    return "\n".join([f"{head}\n{len(report.problems)} problems:", *lines])


# --- within the store -----------------------------------------------------------------------------


def _check_images(
    store: "Store", check: ImageCheck, report: Callable[[int, int], None]
) -> Iterator[str]:
    """Check the bytes, header, stored size and coded pixels of every readable image."""
    decode = check is ImageCheck.decode and store.attributes.image_encoding == "passthrough"
    images = store.scan(np.arange(store.num_rows))
    with ThreadPoolExecutor(max(1, int(usable_cores()))) as pool:  # decoders run in parallel
        while some := list(itertools.islice(images, _IMAGES_AT_A_TIME)):
            found = pool.map(lambda image: _image_problem(store, *image, decode=decode), some)
            yield from (problem for problem in found if problem)
            report(some[-1][0], store.num_rows)


def _image_problem(store: "Store", row: int, jpeg: np.ndarray, *, decode: bool) -> str:
    """Return the first problem with an image; empty if there is none."""
    try:
        store.check(row, jpeg)
    except StoreCorruptError as error:
        return str(error)
    data = jpeg.tobytes()
    header = read_jpeg_header(data)
    if isinstance(header, ImageProblem):
        return f"row {row}: the image {header.reason}"
    size_hw = store.image_index.size_hw[row].tolist()
    if [header.height, header.width] != size_hw:
        return (
            f"row {row}: image/size_hw is {size_hw}, the JPEG says {[header.height, header.width]}"
        )
    from preprocess.images.check import check_jpeg  # imports cv2, which other commands do not need

    damage = check_jpeg(data, header, decode=decode)
    return f"row {row}: the image {damage.reason}" if isinstance(damage, ImageProblem) else ""


def _check_order(store: "Store") -> Iterator[str]:
    """Check that rows are sorted, official indices unique and name indices within their tables."""
    keys = [store.label(f"{name}_idx") for name in ("sequence", "camera", "frame", "official")]
    if not np.array_equal(np.lexsort(keys[::-1]), np.arange(store.num_rows)):
        yield "rows are not sorted by (sequence, camera, frame, official index)"
    if not np.array_equal(np.sort(keys[-1]), np.arange(store.num_rows)):
        yield "labels/official_idx is not a permutation of the rows"
    for name, table in store.attributes.tables.items():
        if name == "object":
            continue
        index = store.label(f"{name}_idx")
        yield from _rows(
            (index < 0) | (index >= len(table)), f"{name}_idx is outside the table of {len(table)}"
        )


def _check_labels(store: "Store") -> Iterator[str]:
    """Check masks against values, and derived labels against the ones they derive from."""
    valid = store.label("joint_valid")
    finite = np.isfinite(store.label("joints_3d")).all(-1)
    has = {name: store.label(name) for name in ("has_joints", "has_mano", "has_beta", "has_world")}
    yield from _rows((valid != finite).any((1, 2)), "joint_valid and finite joints_3d differ")
    yield from _rows(
        (has["has_joints"] != valid.any(-1)).any(-1), "has_joints and joint_valid differ"
    )
    for name in ("theta", "transl", "root_rest"):
        good = np.isfinite(store.label(name)).all(-1)
        yield from _rows((has["has_mano"] != good).any(-1), f"has_mano and finite {name} differ")
    good = np.isfinite(store.label("beta")).all(-1)
    yield from _rows((has["has_beta"] != good).any(-1), "has_beta and finite beta differ")
    good = np.isfinite(store.label("T_world_from_cam")).all((-1, -2))
    yield from _rows(has["has_world"] != good, "has_world and finite T_world_from_cam differ")
    good = np.isfinite(store.label("K")).all((-1, -2))
    yield from _rows(~good & has["has_joints"].any(-1), "K is not finite beside joints")

    quality, sample_ok = store.label("quality"), store.label("sample_ok")
    unread = (quality & np.uint32(UNREADABLE)) != 0
    yield from _rows(
        sample_ok != (store.image_index.length > 0), "sample_ok and image/length differ"
    )
    yield from _rows(sample_ok == unread, "sample_ok and the image flags differ")
    derived = derive(_stored_labels(store), store.image_index.size_hw)
    for name in (
        "no_label", "no_mano", "behind_camera", "outside_image", "object_missing",
        "object_behind_camera",
    ):  # fmt: skip
        bit = np.uint32(FLAGS[name])
        yield from _rows((quality ^ derived.quality) & bit != 0, f"flag {name} and its rule differ")
    # A hand whose joints have no pixel may carry the official box instead of a derived one.
    box = store.label("bbox_xyxy")
    off = np.abs(box - derived.bbox_xyxy) > _BOX_RTOL * np.maximum(1.0, np.abs(box))
    if not store.attributes.extra["official_boxes"]:
        yield from _rows(off.any((1, 2)), "bbox_xyxy is not the box of the projected joints")
    seen = np.isfinite(derived.bbox_xyxy).all(-1)
    yield from _rows((seen & ~np.isfinite(box).all(-1)).any(-1), "bbox_xyxy is missing")


def _check_objects(store: "Store") -> Iterator[str]:
    """Check object ids, poses and shapes, and that contact refers to a posed object."""
    ids, has = store.label("object_id"), store.label("has_object")
    num = len(store.attributes.tables["object"])
    unknown = np.any((ids < -1) | (ids >= num), axis=-1)
    yield from _rows(unknown, f"object_id is outside the table of {num}")
    posed = (ids >= 0) & np.isfinite(store.label("object_pose")).all((-1, -2))
    yield from _rows((has != posed).any(-1), "has_object, object_id and finite object_pose differ")
    to, known = store.label("contact_object"), store.label("has_contact")
    yield from _rows((known != (to >= 0)).any(-1), "has_contact and contact_object differ")
    target = np.take_along_axis(has, np.maximum(to, 0), axis=-1)
    yield from _rows((known & ~target).any(-1), "contact_object has no pose")
    distance = store.label("contact_dist")
    yield from _rows(
        (~known & (distance != CONTACT_FAR).any(-1)).any(-1), "contact_dist without has_contact"
    )
    touching = known & (distance <= IN_CONTACT_M / CONTACT_STEP_M).any(-1)
    yield from _rows(
        (store.label("in_contact") != touching).any(-1), "in_contact and contact_dist differ"
    )


def _stored_labels(store: "Store") -> LabelStack:
    """Return the labels of the store without its boxes, so that they are derived again."""
    n = store.num_rows
    stored: dict[str, Any] = {
        "A_file_from_raw": np.tile(np.eye(2, 3), (n, 1, 1)),
        "bbox_xyxy": np.full((n, 2, 4), np.nan),
        "vertices_check_m": np.full(n, np.nan),
        "refit_error_m": np.full((n, 2), np.nan),
        "object_start": np.full((n, NUM_OBJECTS, 3), np.nan),
    }
    if not store.has_label("joints_2d"):
        stored["joints_2d"] = np.full((n, 2, 21, 2), np.nan)
    for field in fields(LabelStack):
        if field.name not in stored:
            stored[field.name] = store.label(field.name)
    stored["K"], stored["joints_3d"] = (np.float64(stored[name]) for name in ("K", "joints_3d"))
    return LabelStack(**stored)


def _check_attributes(store: "Store") -> Iterator[str]:
    """Check counts against the arrays, and that each split lists valid rows once."""
    a = store.attributes
    if (counts := flag_counts(store.label("quality"))) != a.flag_counts:
        yield f"flag_counts is {a.flag_counts}, labels/quality has {counts}"
    names = {name for name in store.split_counts() if name != "all"}
    if names != set(a.found_counts):
        yield f"found_counts lists {sorted(a.found_counts)}, the splits are {sorted(names)}"
    for name in sorted(names & set(a.found_counts)):
        rows = store.listed_rows(name)
        if len(rows) != a.found_counts[name]:
            yield f"split {name} has {len(rows)} rows, found_counts says {a.found_counts[name]}"
        if len(rows) and not 0 <= rows.min() <= rows.max() < store.num_rows:
            yield f"split {name} names rows {rows.min()}..{rows.max()} of {store.num_rows}"
        elif len(np.unique(rows)) != len(rows):
            yield f"split {name} names a row twice"


def _check_content(store: "Store") -> Iterator[str]:
    from pipeline.store.content import content_sha256

    found = content_sha256(store)
    if found != store.attributes.content_sha256:
        yield f"content_sha256 is {store.attributes.content_sha256}, the content hashes to {found}"


# --- against the raw dataset ----------------------------------------------------------------------


def _compare_with_source(
    store: "Store", root: Path, mano_path: str | None, notes: list[str]
) -> Iterator[str]:
    """Compare every image, label, depth or segmentation image and shape with a fresh conversion.

    Uses the settings of the build. Where the dataset has its labels twice, appends a summary of the
    differences to ``notes``.
    """
    from pipeline.store.pictures import read_picture

    a = store.attributes
    config = dataclasses.replace(built_with(a), root=str(root), out=str(store.path))
    folder, mano = None, None
    if a.mano_sha256:
        folder, mano = load_mano_of(mano_path)
        if mano is None:
            raise SourceError(
                f"store {store.path} was built with MANO; pass mano=FOLDER to compare with {root}"
            )
        if mano.sha256 != a.mano_sha256:
            yield f"MANO in {folder} has hash {mano.sha256}, the store has {a.mano_sha256}"
    source = open_source(a.dataset, root, mano)
    tasks = make_tasks(config, source, folder, mano)
    plan = tasks.plan
    if plan.num_rows != store.num_rows or tasks.attributes.tables != a.tables:
        yield f"{root} has {plan.num_rows} rows or other names, the store has {store.num_rows}"
        return
    for name, listed in plan.splits.items():
        if name not in store.split_counts() or not np.array_equal(listed, store.listed_rows(name)):
            yield f"split {name} differs from {root}"
    yield from _compare_objects(store, source)
    for shard in range(plan.num_shards):
        task = tasks.task(shard)
        # Current file sizes: a file that changed is a difference here, not an error.
        content = shard_content(task)
        rows = range(task.first_row, task.first_row + len(task.images))
        for row, jpeg in zip(rows, content.images.payloads, strict=True):
            if store.image_index.length[row] > 0 and jpeg != store.jpeg(row).tobytes():
                yield f"row {row}: the image differs from {root / plan.image[row]}"
        for name, values in content.columns.items():
            stored = store.label(name)[rows.start : rows.stop]
            yield from _rows(
                ~_equal(values, stored), f"labels/{name} differs from the raw dataset", rows.start
            )
        for name in task.pictures:
            for row, picture in zip(rows, task_pictures(task, name), strict=True):
                if picture is not None and not np.array_equal(
                    picture, read_picture(store.path, name, row)
                ):
                    yield f"row {row}: labels/{name} differs from the raw dataset"
    if source.cross_check is not None:
        check = source.cross_check()
        notes.append(check.summary)
        yield from check.problems


def _compare_objects(store: "Store", source: DatasetSource) -> Iterator[str]:
    """Compare every object shape with a freshly built one."""
    files = [file for file in source.objects if file.mesh]
    if not files:
        return
    from pipeline.store.objects import object_names, read_object
    from preprocess.objects.shapes import make_shape

    there = object_names(store.path)
    for file in files:
        if file.name not in there:
            yield f"objects/{file.name} is missing"
            continue
        fresh = dataclasses.asdict(make_shape(file, source.root))
        stored = dataclasses.asdict(read_object(store.path, file.name))
        differ = [key for key, value in fresh.items() if not np.array_equal(value, stored[key])]
        if differ:
            yield f"objects/{file.name} differs from {file.mesh} in {', '.join(differ)}"


def _equal(fresh: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Return which rows are equal, NaN equal to NaN."""
    same = fresh == stored
    if np.issubdtype(fresh.dtype, np.floating):
        same |= np.isnan(fresh) & np.isnan(stored)
    return np.asarray(same.reshape(len(same), -1).all(-1))


def _rows(bad: np.ndarray, problem: str, first_row: int = 0) -> Iterator[str]:
    """Yield one sentence if any row is bad: the problem, the number of rows and the first one."""
    if bad.any():
        yield (
            f"{problem} in {np.count_nonzero(bad)} rows "
            f"(first: row {first_row + int(np.argmax(bad))})"
        )
