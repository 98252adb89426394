"""What the decoder is fed: every image once, in store order, with the regions to cut from it."""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from model.geometry.crop import invert, to_corner_origin
from pipeline.decode.buffers import KEPT_ENCODED
from pipeline.store.errors import StoreCorruptError
from pipeline.store.reader import Store
from pipeline.view import ViewTable

EncodedBatch = tuple[list[NDArray[np.uint8]], *tuple[NDArray[np.float32], ...]]
"""JPEG bytes of each image, then per crop its start [b, 2] and end [b, 2] (y, x)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePlan:
    """Images to decode, ascending by row; m images, k = most samples of one image."""

    row: Int64[np.ndarray, " m"]
    sample: Int64[np.ndarray, "m k"]
    """Position in the view table; -1 = no such sample."""
    start: Float32[np.ndarray, "m k 2"]
    """Corner (y, x) of the crop with the smallest coordinates; corner-origin pixels."""
    end: Float32[np.ndarray, "m k 2"]

    def __getitem__(self, part: Any) -> "ImagePlan":
        return ImagePlan(
            row=self.row[part],
            sample=self.sample[part],
            start=self.start[part],
            end=self.end[part],
        )


def plan_images(store: Store, view: ViewTable, cache_px: int) -> ImagePlan:
    """Return which images to decode and which squares of them to keep."""
    order = np.argsort(view.row.numpy(), kind="stable")
    row, first, image, count = np.unique(
        view.row.numpy()[order], return_index=True, return_inverse=True, return_counts=True
    )
    turn = np.arange(len(order)) - first[image]  # 0 for the first sample of its image, 1 ...
    sample = np.full((len(row), count.max(initial=1)), -1)
    sample[image, turn] = order

    # A sample that is not there decodes the first one's square again.
    start, end = squares(store, view, cache_px)
    there = np.where(sample < 0, sample[:, :1], sample)
    return ImagePlan(row=row, sample=sample, start=start[there], end=end[there])


def squares(
    store: Store, view: ViewTable, cache_px: int
) -> tuple[Float32[np.ndarray, "n 2"], Float32[np.ndarray, "n 2"]]:
    """Return each sample's square: its corners (y, x) of smallest and largest coordinates."""
    A = to_corner_origin(invert(view.A_cache_from_frame)).numpy()
    start, side = A[:, ::-1, 2], A[:, :1, 0] * cache_px
    # DALI 2.4 crashes on a square far off the frame. Every pixel out there repeats the border, so
    # moving the square until it overlaps by half a pixel changes nothing.
    extent = store.image_index.size_hw[view.row.numpy()].astype(np.float64)
    start = np.clip(start, 0.5 - side, extent - 0.5)
    return start.astype(np.float32), (start + side).astype(np.float32)


def are_whole_frames(
    store: Store,
    rows: Int64[np.ndarray, "*#m"],
    start: Float32[np.ndarray, "*#m 2"],
    end: Float32[np.ndarray, "*#m 2"],
    cache_px: int,
) -> bool:
    """Whether every crop is its frame as it is, so that nothing has to be resized."""
    has_size = (store.image_index.size_hw[rows] == cache_px).all()
    return bool(has_size and (start == 0).all() and (end == cache_px).all())


def encoded_batches(
    store: Store, view: ViewTable, plan: ImagePlan, batch_size: int
) -> Iterator[EncodedBatch]:
    """Yield the images of the plan in order, checked against their crc32c and size.

    Raises:
        StoreCorruptError: If the bytes on disk changed; names the samples.
    """
    alive: deque[EncodedBatch] = deque(maxlen=KEPT_ENCODED)
    jpegs = store.scan(plan.row)
    for begin in range(0, len(plan.row), batch_size):
        part = plan[begin : begin + batch_size]
        encoded = []
        for row, jpeg in itertools.islice(jpegs, len(part.row)):
            try:
                store.check(row, jpeg)
                store.check_size(row, jpeg)
            except StoreCorruptError as error:
                raise StoreCorruptError(f"{describe_row(store, view, row)}: {error}") from None
            encoded.append(jpeg)
        corners = [
            np.ascontiguousarray(edge[:, k])
            for k in range(part.sample.shape[1])
            for edge in (part.start, part.end)
        ]
        alive.append((encoded, *corners))
        yield alive[-1]


def describe_row(store: Store, view: ViewTable, row: int) -> str:
    """Return what a person needs to find the image of a row."""
    names = []
    for column in ("sequence", "camera"):
        index = int(store.label(f"{column}_idx")[row])
        if index >= 0:
            names.append(f"{column} {store.name_of(column, index)!r}")
    names.append(f"frame {int(store.label('frame_idx')[row])}")
    ids = ", ".join(str(i) for i in view.sample_id[view.row == row].tolist())
    return f"sample {ids} (row {row}, {', '.join(names)}) of {store.path}"


def largest_frame(store: Store, rows: Int64[np.ndarray, " m"]) -> tuple[int, int]:
    """Return the largest height and the largest width of some rows; 0 of none."""
    height, width = store.image_index.size_hw[rows].max(0, initial=0).tolist()
    return height, width
