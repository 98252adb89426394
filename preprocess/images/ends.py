"""Look at the first and last bytes of image files, before a build decodes anything.

Files that were cut off or never written are found while a build is planned, not after hours. Takes
15 us a file from the page cache. On a slow disk as many files are looked at as the time allows,
spread over the dataset; the build checks them all anyway.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from pipeline.app.words import say
from preprocess.images.header import PNG_SIGNATURE, ImageProblem
from preprocess.images.images import ImageWork, header_of, read_image_file
from preprocess.records import SourceError

BUDGET_S: Final = 60.0
_THREADS: Final = 16  # hides the latency of the disk
_CHUNK: Final = 1024
_JPEG_START: Final = b"\xff\xd8\xff"
_JPEG_END: Final = b"\xff\xd9"
_PNG_END: Final = b"IEND\xae\x42\x60\x82"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """What the ends of some files show."""

    num_checked: int
    bad: list[tuple[str, str]]
    """File, and what completes "the image ...": ``is cut off: ...``."""


def refuse_cut_images(
    dataset: str, root: Path, images: Sequence[str], work: ImageWork, console: Console
) -> None:
    """Check the ends of as many images as ``BUDGET_S`` allows; say so if it was not enough.

    Raises:
        SourceError: If images are damaged; reports counts.
    """
    found = check_ends(root, images, work, budget_s=BUDGET_S)
    if found.num_checked < len(images):
        say(
            f"build-cache: looked at the ends of {found.num_checked} of {len(images)} images in "
            f"{BUDGET_S:.0f} s; the others are checked when they are read",
            console,
        )
    if found.bad:
        name, reason = found.bad[0]
        raise SourceError(
            f"{dataset}: {len(found.bad)} of {found.num_checked} images are damaged (first: "
            f"{root / name} {reason}); copy them again, or pass on_bad_image=flag to keep their "
            "rows without an image"
        )


def check_ends(root: Path, images: Sequence[str], work: ImageWork, *, budget_s: float) -> Ends:
    """Check the ends of files, in an order that spreads any part of them over the whole.

    A file whose ends are odd is read and judged by its header, as in the build.
    """
    order = np.random.default_rng(0).permutation(len(images))
    chunks = [order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK)]
    stop = time.monotonic() + budget_s

    def look(rows: np.ndarray) -> tuple[int, list[tuple[int, str]]]:
        bad: list[tuple[int, str]] = []
        for done, row in enumerate(rows.tolist()):
            if time.monotonic() > stop:
                return done, bad
            path = f"{root}/{images[row]}"
            if _is_whole(path, may_be_png=work.recode):
                continue
            if problem := _problem(Path(path), work):
                bad.append((row, problem.reason))
        return len(rows), bad

    with ThreadPoolExecutor(_THREADS) as pool:
        looked = list(pool.map(look, chunks))
    bad = sorted(problem for _, problems in looked for problem in problems)
    return Ends(
        num_checked=sum(done for done, _ in looked),
        bad=[(images[row], reason) for row, reason in bad],
    )


def _is_whole(path: str, *, may_be_png: bool) -> bool:
    """Return whether a file begins and ends as a whole image."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        start = os.pread(file, len(PNG_SIGNATURE), 0)
        end = os.pread(file, len(_PNG_END), max(0, size - len(_PNG_END)))
    except OSError:
        return False
    finally:
        os.close(file)
    return (start.startswith(_JPEG_START) and end.endswith(_JPEG_END)) or (
        may_be_png and start == PNG_SIGNATURE and end == _PNG_END
    )


def _problem(path: Path, work: ImageWork) -> ImageProblem | None:
    """Return the problem that the build would find in a file before it decodes it."""
    data = read_image_file(path)
    header = header_of(data, work) if isinstance(data, bytes) else data
    return header if isinstance(header, ImageProblem) else None
