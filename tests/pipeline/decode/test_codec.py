import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import CacheCodec, CacheConfig
from pipeline.decode import codec as codec_module
from pipeline.decode.codec import Codec, allocate, bytes_per_sample, decode, encode, write
from pipeline.gather.reference import warp
from tests.pipeline.photographs import (
    PHOTOGRAPHS,
    Picture,
    padded_square,
    photographs,
    read_rgb,
    real_frames,
)
from tests.reference import gather as oracle

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
RANDOM = torch.from_numpy(RNG.integers(0, 256, (5, 12, 12, 3), dtype=np.uint8))
REAL_FRAMES = real_frames()


def corners_of_the_cube() -> Tensor:
    """Pictures of 4 px of the eight extreme colours, and of neighbours of different ones."""
    levels = torch.tensor([0, 255], dtype=torch.uint8)
    colours = torch.cartesian_prod(levels, levels, levels)
    plain = colours[:, None, None].expand(8, 4, 4, 3)
    mixed = colours[torch.from_numpy(RNG.integers(0, 8, (8, 4, 4)))]
    return torch.cat((plain, mixed))


@pytest.mark.parametrize("crops", [RANDOM, corners_of_the_cube()], ids=["random", "extreme"])
def test_encoding_is_the_formula_bit_for_bit(crops: Tensor) -> None:
    luma, chroma = encode(crops)
    for k, crop in enumerate(crops.numpy()):
        expected_luma, expected_chroma = oracle.encode_yuv420(crop)
        np.testing.assert_array_equal(luma[k].numpy(), expected_luma[..., 0])
        np.testing.assert_array_equal(chroma[k].numpy(), expected_chroma)


def test_decoding_is_the_formula_bit_for_bit() -> None:
    levels = torch.tensor([0, 1, 15, 16, 77, 127, 128, 129, 200, 254, 255])
    y, cb, cr = torch.cartesian_prod(levels, levels, levels).unbind(-1)
    cube = (part.float().view(11, 11, 11) for part in (y, cb, cr))
    ours = decode(*cube).flatten(1).T.tolist()
    theirs = [oracle.decode_yuv(*yuv) for yuv in zip(*map(Tensor.tolist, (y, cb, cr)), strict=True)]
    assert ours == [list(map(float, rgb)) for rgb in theirs]


def test_the_formulas_are_jfif_rounded() -> None:
    """JFIF's real-valued conversion, up to its rounding and clamping."""
    plain = torch.from_numpy(RNG.integers(0, 256, (200, 1, 1, 3), dtype=np.uint8))
    luma, chroma = encode(plain.expand(-1, 4, 4, -1))
    r, g, b = plain[:, 0, 0].double().unbind(-1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    cb, cr = 128 + (b - y) / 1.772, 128 + (r - y) / 1.402
    for ours, theirs in ((luma[:, 0, 0], y), (chroma[:, 0, 0, 0], cb), (chroma[:, 0, 0, 1], cr)):
        assert (ours.double() - theirs.clamp(0, 255)).abs().max() <= 0.51


def test_greys_survive() -> None:
    grey = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3)
    assert torch.equal(round_trip(grey.contiguous()), grey)


def test_chroma_sits_in_the_middle_of_its_four_pixels() -> None:
    """A ramp of one colour keeps its place; MPEG's siting would move blue by 1/2 px, 4 levels."""
    ramp = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    ramp[..., 2] = 40 + 8 * torch.arange(16)  # its Cb needs no rounding
    for picture in (ramp, ramp.transpose(1, 2).contiguous()):
        inner = (round_trip(picture) - picture.int())[0, 2:-2, 2:-2]
        assert inner.abs().max() <= 1


def round_trip(crops: Tensor) -> Tensor:
    """Encode, and read back by the gather with the identity; int32 [m, c, c, 3]."""
    pixels = allocate(len(crops), crops.shape[1], Codec.yuv420, CPU)
    write(pixels, torch.arange(len(crops)), crops)
    A = torch.eye(2, 3, dtype=torch.int32).mul(65536).expand(len(crops), 2, 3)
    return warp(pixels, torch.arange(len(crops)), A, crops.shape[1]).permute(1, 2, 3, 0).int()


@pytest.mark.parametrize("codec", list(Codec))
def test_crops_are_written_to_their_places_only(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(codec_module._CHUNK_PX, "cpu", 300)  # two crops of 12 px at a time
    place = torch.tensor([6, 0, 3, 4, 1])
    pixels = allocate(8, 12, codec, CPU)
    write(pixels, place, RANDOM)
    expected = (RANDOM,) if codec is Codec.rgb else encode(RANDOM)
    empty = allocate(8, 12, codec, CPU)
    for plane, crops, before in zip(pixels.planes(), expected, empty.planes(), strict=True):
        assert torch.equal(plane[place], crops)
        assert torch.equal(plane[[2, 5, 7]], before[[2, 5, 7]])


def test_an_unwritten_crop_is_black() -> None:
    for codec in Codec:
        pixels = allocate(1, 8, codec, CPU)
        A = torch.eye(2, 3, dtype=torch.int32)[None] * 65536
        assert (warp(pixels, torch.tensor([0]), A, 8) == 0).all()


def test_sizes_are_those_of_the_planes() -> None:
    for codec, expected in ((Codec.rgb, 3 * 12 * 12), (Codec.yuv420, 12 * 12 + 2 * 6 * 6)):
        pixels = allocate(7, 12, codec, CPU)
        assert bytes_per_sample(codec, 12) == expected
        assert pixels.nbytes == 7 * expected == sum(p.nbytes for p in pixels.planes())
        assert (len(pixels), pixels.size_px, pixels.device) == (7, 12, CPU)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: allocate(1, 13, Codec.yuv420, CPU), "at least 4 and even .*yuv420, got 13"),
        (lambda: allocate(1, 3, Codec.rgb, CPU), "at least 4 for cache.codec=rgb, got 3"),
        (lambda: CacheConfig(size_px=33, codec=CacheCodec.yuv420), "must be even .*yuv420, got 33"),
    ],
)
def test_sizes_that_do_not_fit_the_codec_are_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_pixels_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        allocate(1, 8, Codec.rgb, CPU).codec = Codec.yuv420  # type: ignore[misc]


# --- what is lost ---------------------------------------------------------------------------------

PSNR_DB = {"rocket": 35.0}
"""Where 4:2:0 itself loses more than the bar of 37 dB: one-pixel details of saturated colour."""


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_lose_little(name: str) -> None:
    picture = photographs()[name]
    ours = decibels(picture, compressed(picture))
    assert ours >= PSNR_DB.get(name, 37.0)
    # Beyond the format's own loss only roundings: luma and result 1/12 each, chroma 0.16 before
    # the blend, which averages a good half of it away, and 0.16 after.
    own = squared_error(picture, unrounded_420(picture))
    assert squared_error(picture, compressed(picture)) <= own + 0.4


def test_all_photographs_together_lose_little() -> None:
    """The mean squared error over all pictures, each weighing the same: 39.06 dB."""
    errors = [squared_error(picture, compressed(picture)) for picture in photographs().values()]
    assert 10 * np.log10(255**2 / np.mean(errors)) >= 39


@pytest.mark.skipif(not REAL_FRAMES, reason="no real frames: ../shared/real is absent")
@pytest.mark.parametrize("name", REAL_FRAMES)
def test_real_frames_lose_little(name: str) -> None:
    frame = read_rgb(REAL_FRAMES[name])
    assert decibels(frame, compressed(frame)) >= 37


def compressed(picture: Picture) -> Picture:
    square = torch.from_numpy(padded_square(picture))
    back = round_trip(square[None])[0].numpy().astype(np.uint8)
    height, width = picture.shape[:2]
    return back[:height, :width]


def unrounded_420(picture: Picture) -> NDArray[np.float64]:
    """JFIF's matrix, box mean, bilinear chroma in the middle of 2x2 pixels, all in float64."""
    r, g, b = np.moveaxis(padded_square(picture).astype(np.float64), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    side = len(y)
    half = np.stack(((b - y) / 1.772, (r - y) / 1.402), -1)
    half = half.reshape(side // 2, 2, side // 2, 2, 2).mean((1, 3))
    d, e = np.moveaxis(
        oracle.bilinear(half, np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]]), side), -1, 0
    )
    rgb = np.stack((y + 1.402 * e, y - 0.344136 * d - 0.714136 * e, y + 1.772 * d), -1)
    clipped: NDArray[np.float64] = np.clip(rgb, 0, 255)
    return clipped[: picture.shape[0], : picture.shape[1]]


def squared_error(picture: Picture, other: NDArray[np.generic]) -> float:
    return float(np.mean((picture.astype(np.float64) - other.astype(np.float64)) ** 2))


def decibels(picture: Picture, other: NDArray[np.generic]) -> float:
    error = squared_error(picture, other)
    return 10 * float(np.log10(255**2 / error)) if error else float("inf")
