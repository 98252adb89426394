"""DALI's crops against OpenCV and Pillow."""

import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model.geometry.crop import invert, square_crop_affine, to_corner_origin
from pipeline.config import CacheConfig
from pipeline.decode.buffers import KEPT_ENCODED, PREFETCH
from pipeline.decode.graph import decode_crops
from pipeline.decode.source import EncodedBatch
from tests.pipeline.hand_store import HEIGHT, WIDTH, frame, jpeg

CPU = torch.device("cpu")
Square = tuple[float, float, float]
"""Centre x, centre y, side; pixel centres are whole numbers."""


def png(image: NDArray[np.uint8]) -> bytes:
    """A lossless image: differences are the crop's, not the decoder's."""
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def config(size_px: int, threads: int = 1) -> CacheConfig:
    return CacheConfig(size_px=size_px, decode_threads=threads)


def crop(encoded: Sequence[bytes], squares: Sequence[Square], size_px: int) -> NDArray[np.uint8]:
    """Crops [n, size_px, size_px, 3], decoded in batches of two."""
    A = square_affines(squares, size_px)
    corner = to_corner_origin(invert(torch.from_numpy(A))).numpy()
    start = corner[:, ::-1, 2].astype(np.float32)
    end = (start + corner[:, :1, 0] * size_px).astype(np.float32)

    def batches() -> Iterator[EncodedBatch]:
        for i in range(0, len(encoded), 2):
            part = slice(i, i + 2)
            yield [np.frombuffer(e, np.uint8) for e in encoded[part]], start[part], end[part]

    decoded = decode_crops(batches(), config(size_px), num_crops=1, batch_size=2, device=CPU)
    return torch.cat([batch[0].clone() for batch in decoded]).numpy()


def square_affines(squares: Sequence[Square], size_px: int) -> NDArray[np.float64]:
    center = torch.tensor([square[:2] for square in squares]).double()
    size = torch.tensor([square[2] for square in squares]).double()
    return square_crop_affine(center, size, size_px).numpy()


INSIDE: list[Square] = [(60.3, 40.7, 50.0), (40.0, 45.5, 32.0), (80.25, 51.0, 63.9)]
BEYOND: list[Square] = [
    (5.0, 7.3, 60.0),
    (120.0, 90.0, 60.0),
    (63.5, 47.5, 130.0),
    (60.0, 2.0, 9.9),
]


@pytest.mark.parametrize("squares", [INSIDE, BEYOND], ids=["inside", "beyond"])
def test_enlarged_crop_is_opencv_bilinear_with_repeated_border(squares: list[Square]) -> None:
    image, size_px = frame(0), 160
    ours = crop([png(image)] * len(squares), squares, size_px).astype(np.float64)
    step = max(np.abs(np.diff(image.astype(int), axis=axis)).max() for axis in (0, 1))
    for crop_, A in zip(ours, square_affines(squares, size_px), strict=True):
        theirs = cv2.warpAffine(
            image.astype(np.float32),
            A,
            (size_px, size_px),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        # half a level by our rounding; OpenCV rounds coordinates to 1/32 px: half of it per axis
        assert np.abs(crop_ - theirs).max() <= 0.5 + 2 * step / 64
        # a shift by half a pixel, the mistake to look for, is far outside that bound on average
        assert np.abs(crop_ - theirs).mean() < 0.6


def test_whole_pixels_are_copied() -> None:
    image = frame(1)
    ours = crop([png(image)], [(39.5, 29.5, 40.0)], 40)
    np.testing.assert_array_equal(ours[0], image[10:50, 20:60])


@pytest.mark.parametrize("squares", [INSIDE, BEYOND[:3]], ids=["inside", "beyond"])
def test_shrunk_crop_is_filtered(squares: list[Square]) -> None:
    """Against Pillow, whose BILINEAR is the same triangle, on a canvas with a repeated border."""
    image, size_px, pad = frame(2), 16, 200
    ours = crop([png(image)] * len(squares), squares, size_px).astype(int)
    canvas = Image.fromarray(np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    for crop_, (x, y, side) in zip(ours, squares, strict=True):
        low = np.array([x, y]) + 0.5 - side / 2 + pad
        theirs = canvas.resize(
            (size_px, size_px), Image.Resampling.BILINEAR, box=(*low, *(low + side))
        )
        assert np.abs(crop_ - np.asarray(theirs).astype(int)).max() <= 1


def test_shrinking_is_close_to_the_area_average_and_not_aliased() -> None:
    """A chessboard of single pixels becomes grey."""
    board = np.indices((HEIGHT, WIDTH)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, -1).astype(np.uint8)
    ours = crop([png(image)], [(47.5, 47.5, 96.0)], 24)[0].astype(int)
    area = cv2.resize(image[:, :96], (24, 24), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(ours - area)[1:-1, 1:-1].max() <= 2


def test_jpeg_decodes_as_in_opencv() -> None:
    image = frame(3)
    whole = (63.5, 63.5, 128.0)  # rows below the frame repeat its last one
    for data in (jpeg(image), jpeg(image, progressive=True)):
        ours = crop([data], [whole], WIDTH)[0, :HEIGHT].astype(int)
        theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert theirs is not None
        # the same coefficients; the two builds may round the inverse DCT and chroma differently
        assert np.abs(ours - theirs.astype(int)).max() <= 2


def test_exif_orientation_is_ignored() -> None:
    data = jpeg(frame(4))
    # TIFF header, one entry: tag 0x0112 (orientation), SHORT, 1 value, 6 = turn by 90 degrees
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    assert Image.open(io.BytesIO(turned)).getexif()[0x0112] == 6
    ours = crop([data, turned], [(60.0, 40.0, 64.0)] * 2, 64)
    np.testing.assert_array_equal(ours[0], ours[1])


def test_grey_image_becomes_rgb() -> None:
    grey = cv2.cvtColor(frame(5), cv2.COLOR_RGB2GRAY)
    data = cv2.imencode(".png", grey)[1].tobytes()
    ours = crop([data], [(39.5, 29.5, 40.0)], 40)[0]
    np.testing.assert_array_equal(ours, np.repeat(grey[10:50, 20:60, None], 3, -1))


def test_damaged_image_is_an_error() -> None:
    data = jpeg(frame(6))
    for damaged in (data[: len(data) // 2], b"no image", b"\0"):
        with pytest.raises(RuntimeError, match="decod"):
            crop([jpeg(frame(0))] * 3 + [damaged], [(60.0, 40.0, 64.0)] * 4, 16)


def test_decoder_gives_its_threads_back() -> None:
    def num_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def endless() -> Iterator[EncodedBatch]:
        corner = np.zeros((1, 2), np.float32)
        while True:
            yield [np.frombuffer(png(frame(0)), np.uint8)], corner, corner + 50

    crop([png(frame(0))], [INSIDE[0]], 16)  # DALI keeps one thread for good after its first use
    before = num_threads()
    decoded = decode_crops(endless(), config(16, threads=2), num_crops=1, batch_size=1, device=CPU)
    next(decoded)
    assert num_threads() > before
    decoded.close()
    for _ in range(3000):  # a thread that was joined may still be listed for a moment
        if num_threads() <= before:
            return
        time.sleep(0.01)
    assert num_threads() == before


def test_crops_stay_valid_after_the_decoder_moved_on() -> None:
    images = [frame(row) for row in range(12)]
    square = (39.5, 29.5, 40.0)
    A = square_affines([square], 40)
    corner = to_corner_origin(invert(torch.from_numpy(A)))[:, :, 2].flip(-1).float().numpy()

    def batches() -> Iterator[EncodedBatch]:
        for image in images:
            yield [np.frombuffer(png(image), np.uint8)], corner, corner + 40

    kept = list(decode_crops(batches(), config(40), num_crops=1, batch_size=1, device=CPU))
    for (batch,), image in zip(kept, images, strict=True):
        np.testing.assert_array_equal(batch[0].numpy(), image[10:50, 20:60])


def test_what_is_made_ahead_is_kept_until_it_is_decoded() -> None:
    """Of every batch made, those older than ``KEPT_ENCODED`` were given back before."""
    data, corner = np.frombuffer(jpeg(frame(0)), np.uint8), np.zeros((1, 2), np.float32)
    made, given = 0, 0
    ahead: list[int] = []

    def batches() -> Iterator[EncodedBatch]:
        nonlocal made
        for made in range(1, 41):
            ahead.append(made - given)
            yield [data], corner, corner + 50

    for _ in decode_crops(batches(), config(16), num_crops=1, batch_size=1, device=CPU):
        given += 1
        time.sleep(0.002)  # a slow consumer: everything runs as far ahead as it may
    assert given == 40
    assert PREFETCH < max(ahead) < KEPT_ENCODED
