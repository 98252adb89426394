import dataclasses
import itertools
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.geometry.crop import invert, square_crop_affine
from pipeline.decode.codec import Codec, Pixels, allocate, write
from pipeline.gather import reference as gather_module
from pipeline.gather.augment import identity
from pipeline.gather.params import MAX_TAPS, GatherParams, InputFormat, gather_params
from pipeline.gather.reference import gather_eager, recolour, warp
from pipeline.gather.select import gather
from tests.pipeline.photographs import PHOTOGRAPHS, Picture, centre_square, photographs
from tests.reference import gather as oracle

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")
SIDE = 24
CROPS = torch.from_numpy(RNG.integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8))
PIXELS = Pixels(codec=Codec.rgb, rgb=CROPS)
PLAIN = InputFormat(size_px=SIDE, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3, dtype=torch.float32)
"""Leaves the values 0..255."""
IMAGENET = InputFormat(
    size_px=9, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), dtype=torch.float32
)


def cached(crops: Tensor, codec: Codec) -> Pixels:
    pixels = allocate(len(crops), crops.shape[1], codec, CPU)
    write(pixels, torch.arange(len(crops)), crops)
    return pixels


def q16(A: list[list[float]]) -> Tensor:
    params = identity(1, CPU)
    return gather_params(torch.tensor([A], dtype=torch.float64), params, SIDE).A_q16


def random_affines(num: int, seed: int = 0) -> Tensor:
    """Turned, mirrored, scaled crops, many of them beyond the border: ``A_cache_from_input``."""
    g = torch.Generator().manual_seed(seed)
    center = torch.rand(num, 2, generator=g).double() * 40 - 8
    size = 10 + 30 * torch.rand(num, generator=g).double()
    angle = (torch.rand(num, generator=g).double() - 0.5) * 6.28
    mirror = torch.arange(num) % 2 == 1
    return square_crop_affine(center, size, SIDE, rotation_rad=angle, mirror=mirror)


def random_params(index: Tensor, taps: list[int] | None = None, seed: int = 0) -> GatherParams:
    """Parameters of any kind for ``index``, [b] or [b, t]: borders far outside, strong colours."""
    g = torch.Generator().manual_seed(seed)
    num = index.numel()
    counts = taps or torch.randint(1, 4, (num,), generator=g).tolist()
    A = random_affines(num, seed) * torch.tensor(counts).double()[:, None, None]
    A[0, :, 2] += 1e4  # nothing but one corner pixel
    x0, y0 = torch.randint(-3, 8, (2, num), generator=g)
    width, height = torch.randint(0, 6, (2, num), generator=g)
    params = GatherParams(
        A_q16=(A * 65536).round().int(),
        colour=torch.eye(3, 4) + 0.3 * torch.randn(num, 3, 4, generator=g),
        erase_xyxy=torch.stack((x0, y0, x0 + width, y0 + height), -1).int(),
        taps=torch.tensor(counts, dtype=torch.int32),
    )
    return reshaped(params, index.shape)


def reshaped(params: GatherParams, shape: torch.Size) -> GatherParams:
    return GatherParams(
        A_q16=params.A_q16.view(*shape, 2, 3),
        colour=params.colour.view(*shape, 3, 4),
        erase_xyxy=params.erase_xyxy.view(*shape, 4),
        taps=params.taps.view(shape),
    )


def oracle_warp(pixels: Pixels, k: int, A_q16: Tensor, size: int, taps: int) -> NDArray[np.int64]:
    planes = [plane[k].numpy() for plane in pixels.planes()]
    if pixels.codec is Codec.rgb:
        return oracle.warp_rgb(planes[0], A_q16.tolist(), size, taps)
    return oracle.warp_yuv420(planes[0][..., None], planes[1], A_q16.tolist(), size, taps)


# --- the integer half -----------------------------------------------------------------------------


@pytest.mark.parametrize("taps", range(1, MAX_TAPS + 1))
@pytest.mark.parametrize(
    ("codec", "side"), [(Codec.rgb, SIDE), (Codec.rgb, 7), (Codec.yuv420, SIDE), (Codec.yuv420, 6)]
)
def test_warp_is_the_specification_bit_for_bit(codec: Codec, side: int, taps: int) -> None:
    pixels = cached(CROPS[:, :side, :side], codec)
    index = torch.tensor([4, 0, 2])
    A = random_affines(3, seed=taps) * taps
    A[2, :, 2] = torch.tensor([-1e4, 5e3])
    A_q16 = (A * 65536).round().int()
    size = 13 if taps == 1 else 5
    warped = warp(pixels, index, A_q16, size, taps=taps)
    for k in range(3):
        expected = oracle_warp(pixels, int(index[k]), A_q16[k], size, taps)
        np.testing.assert_array_equal(warped[:, k].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("A", "expected"),
    [
        ([[1, 0, 0], [0, 1, 0]], CROPS[3]),
        ([[-1, 0, SIDE - 1], [0, 1, 0]], CROPS[3].flip(1)),
        ([[0, 1, 0], [1, 0, 0]], CROPS[3].transpose(0, 1)),
        ([[1, 0, 10**4], [0, 1, 0]], CROPS[3][:, -1:].expand(-1, SIDE, -1)),
        ([[1, 0, 0], [0, 1, -(10**4)]], CROPS[3][:1].expand(SIDE, -1, -1)),
    ],
    ids=["identity", "mirror", "transpose", "far right", "far above"],
)
def test_whole_pixels_are_copied(A: list[list[float]], expected: Tensor) -> None:
    warped = warp(PIXELS, torch.tensor([3]), q16(A), SIDE)[:, 0].permute(1, 2, 0)
    assert torch.equal(warped.to(torch.uint8), expected)


def test_caches_beyond_two_gigabytes_are_addressed() -> None:
    """The last crop of a cache of 2.2 GB, of which only touched pages take memory."""
    for codec, num in ((Codec.rgb, 11_200), (Codec.yuv420, 33_600)):
        pixels = untouched(num, 256, codec)
        last = torch.tensor([num - 1])
        write(pixels, last, torch.full((1, 256, 256, 3), 200, dtype=torch.uint8))
        assert pixels.planes()[0].nbytes > 2**31
        far = torch.tensor([[[65536, 0, 250 << 16], [0, 65536, 250 << 16]]], dtype=torch.int32)
        assert (warp(pixels, last, far, 8) == 200).all()


def untouched(num: int, side: int, codec: Codec, device: torch.device = CPU) -> Pixels:
    """A cache that is not filled."""

    def plane(*shape: int) -> Tensor:
        return torch.empty(num, *shape, dtype=torch.uint8, device=device)

    if codec is Codec.rgb:
        return Pixels(codec=codec, rgb=plane(side, side, 3))
    return Pixels(codec=codec, luma=plane(side, side), chroma=plane(side // 2, side // 2, 2))


def test_largest_configuration_stays_within_int32() -> None:
    """A corner of the cache's widest crop: every partial sum of every tap's coordinate fits."""
    from pipeline.config import MAX_CACHE_PX

    side = torch.tensor([float(MAX_CACHE_PX)]).double()
    for angle, mirror in itertools.product(np.linspace(-np.pi, np.pi, 17), (False, True)):
        # shift 0.5, scale 1.5: the limits of AugmentConfig; margin 1 keeps the most pixels
        A = square_crop_affine(
            side[:, None].expand(1, 2),
            side * 1.5,
            8,
            rotation_rad=torch.tensor([angle]),
            mirror=torch.tensor([mirror]),
        )
        inverse = np.linalg.inv(np.vstack([A[0].numpy(), [0, 0, 1]]))[:2] * 65536
        partial = np.abs(inverse) @ [7.5, 7.5, 1]  # taps reach half an input pixel beyond
        assert partial.max() + 32768 + 128 < 2**31
        assert np.abs(inverse[:, :2]).max() * (MAX_TAPS - 1) < 2**31  # before a tap's division
    assert MAX_TAPS**2 * (255 * 65536 + 32768) < 2**31


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("codec", [Codec.rgb, Codec.yuv420])
def test_bytes_are_the_recoloured_levels_rounded(codec: Codec, *, channels_last: bool) -> None:
    index = torch.tensor([4, 0, 2, 2])
    params = random_params(index)
    levels = InputFormat(size_px=12, mean=(0.0,) * 3, std=(1 / 255,) * 3, dtype=torch.float32)
    exact = gather_eager(cached(CROPS, codec), index, params, levels)
    form = dataclasses.replace(
        levels, dtype=torch.uint8, channels_last=channels_last, mean=(0.4,) * 3, std=(0.2,) * 3
    )
    ours = gather_eager(cached(CROPS, codec), index, params, form)
    assert ours.dtype is torch.uint8
    assert ours.is_contiguous(memory_format=form.memory_format)
    assert (ours - exact).abs().max() <= 0.5 + 1e-3
    assert (ours[exact == 0] == 0).all()


# --- against other implementations ----------------------------------------------------------------


def crop_affine(side: int, content: float, size: int, angle: float = 0.0) -> NDArray[np.float64]:
    """``A_cache_from_input`` of the middle ``content`` px of a picture, turned, to ``size`` px."""
    A = square_crop_affine(
        torch.full((1, 2), (side - 1) / 2, dtype=torch.float64),
        torch.tensor([content], dtype=torch.float64),
        size,
        rotation_rad=torch.tensor([angle], dtype=torch.float64),
    )
    return invert(A)[0].numpy()


def warped_picture(picture: Picture, A: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The gather's integers for one picture, with the taps that it chooses itself."""
    params = gather_params(torch.from_numpy(A)[None], identity(1, CPU), size)
    pixels = Pixels(codec=Codec.rgb, rgb=torch.from_numpy(picture)[None])
    (taps,) = params.taps.tolist()
    assert taps == oracle.taps_of(A)
    warped = warp(pixels, torch.tensor([0]), params.A_q16, size, taps=taps)
    return warped[:, 0].permute(1, 2, 0).double().numpy()


def rms(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_warped_like_exact_bilinear(name: str) -> None:
    """Half a grey level rms; the rounding to whole levels alone is 0.29.

    The exact warp is our own in float64. OpenCV's of float32 pictures is the same since version 5
    (before, it rounded weights to 5 bits).
    """
    picture = centre_square(photographs()[name], 300)
    for angle, content, size in ((0.4, 250, 224), (-1.2, 180, 224), (3.0, 290, 210)):
        A = crop_affine(300, content, size, angle)
        ours, exact = warped_picture(picture, A, size), oracle.bilinear(picture, A, size)
        assert rms(ours, exact) <= 0.3
        opencv = cv2.warpAffine(
            picture.astype(np.float32),
            A,
            (size, size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        assert rms(ours, opencv) <= 0.5


def test_warp_is_near_exact_bilinear_and_opencv() -> None:
    smooth = cv2.GaussianBlur(RNG.integers(0, 256, (SIDE, SIDE, 3)).astype(np.float32), (0, 0), 1.5)
    image = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)  # type: ignore[call-overload]
    step = max(np.abs(np.diff(image.astype(int), axis=axis)).max() for axis in (0, 1))
    for A in random_affines(8, seed=3):
        A_q16 = (A[None] * 65536).round().int()
        pixels = Pixels(codec=Codec.rgb, rgb=torch.from_numpy(image)[None])
        ours = warp(pixels, torch.tensor([0]), A_q16, SIDE)[:, 0].permute(1, 2, 0).numpy()
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        float_image = image.astype(np.float32)
        theirs = cv2.warpAffine(
            float_image, A.numpy(), (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        # ours: half of 1/256 px per axis by the coordinate's rounding, 2^-16 * 24 by the matrix's,
        # half a level by the result's; OpenCV before 5: half of 1/32 px per axis
        bound = 0.5 + 2 * step * (1 / 512 + 24 * 2**-16 + 1 / 64)
        assert np.abs(ours - theirs).max() <= bound
        exact = oracle.bilinear(image, A.numpy(), SIDE)
        assert np.abs(ours - exact).max() <= 0.5 + 2 * step * (1 / 512 + 24 * 2**-16)


# --- shrinking ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", ["coffee", "china"])
def test_shrinking_by_a_whole_factor_is_opencvs_area_filter(name: str, factor: int) -> None:
    """The taps then fall on the pixels' centres."""
    picture = centre_square(photographs()[name], 240)
    size = 240 // factor
    ours = warped_picture(picture, crop_affine(240, 240, size), size)
    area = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(ours, area)


@pytest.mark.parametrize("shrink", [1.7, 2.0, 2.6, 3.0])
@pytest.mark.parametrize("name", ["coffee", "china", "rocket"])
def test_turned_and_shrunk_photographs_are_near_the_box_filter(name: str, shrink: float) -> None:
    """A sum over n points per axis instead of the mean over the input pixel's square.

    The midpoint rule of step h <= 1 px errs by h^2 / 24 of the second derivative per axis; that of
    the bilinear image along turned axes is at most its second differences along x and y plus twice
    the mixed one. With 0.29 for rounding.
    """
    picture = centre_square(photographs()[name], 300)
    size = round(280 / shrink)
    A = crop_affine(300, size * shrink, size, angle=0.5)
    box = oracle.box(picture, A, size)
    level = picture.astype(np.float64)
    along_x, along_y = (np.diff(level, 2, axis) for axis in (1, 0))
    mixed = np.diff(np.diff(level, 1, 0), 1, 1)
    second = np.sqrt(sum(np.mean(d**2) for d in (along_x, along_y, 2 * mixed)))
    bound = 0.3 + second / 24
    filtered = rms(warped_picture(picture, A, size), box)
    unfiltered = rms(oracle.bilinear(picture, A, size), box)
    assert filtered <= bound
    assert filtered < 0.25 * unfiltered


def test_stripes_finer_than_the_input_become_grey() -> None:
    """Stripes of one input pixel: sampled without a filter they are black or white all over."""
    for factor in (2, 3):
        stripes = np.zeros((48, 48, 3), np.uint8)
        stripes[:, ::factor] = 240
        A = np.array([[factor, 0.0, 0.0], [0.0, factor, 0.0]])
        assert (warped_picture(stripes, A, 48 // factor)[:, 1:] == 240 / factor).all()
        assert (oracle.bilinear(stripes, A, 48 // factor) == 240).all()


@pytest.mark.parametrize(
    ("shrink", "taps"),
    [(0.5, 1), (1.0, 1), (1.39, 1), (1.41, 2), (2.0, 2), (2.1, 3), (3.0, 3), (7.9, 8), (40, 8)],
)
def test_taps_follow_the_shrink(shrink: float, taps: int) -> None:
    """Whatever the turn, whose sine and cosine are rounded."""
    for angle in np.linspace(-3, 3, 13):
        A = torch.from_numpy(crop_affine(64, 16 * shrink, 16, float(angle)))[None]
        assert gather_params(A, identity(1, CPU), 16).taps.tolist() == [taps]
        assert gather_params(-A, identity(1, CPU), 16).taps.dtype == torch.int32


# --- the float half -------------------------------------------------------------------------------


def test_colour_erase_and_normalisation_match_one_pixel_at_a_time() -> None:
    form = InputFormat(size_px=4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), dtype=torch.float32)
    warped = torch.from_numpy(RNG.integers(0, 256, (3, 2, 4, 4))).float()
    colour = torch.from_numpy(RNG.normal(0, 1, (2, 3, 4)).astype(np.float32))
    erase = torch.tensor([[1, -3, 3, 2], [0, 0, 0, 0]], dtype=torch.int32)
    out = torch.empty(2, 3, 4, 4)
    recolour(warped, colour, erase, form, out=out)
    for k in range(2):
        expected = oracle.finish(
            warped[:, k].permute(1, 2, 0).long().numpy(),
            colour[k].numpy(),
            erase[k].tolist(),
            form.mean,
            form.std,
        )
        # float32 sums of magnitude 1000, divided by 255 * 0.2
        np.testing.assert_allclose(out[k].numpy(), expected, atol=1e-5)
        edges = [(limit - m) / s for limit in (0, 1) for m, s in zip(form.mean, form.std)]  # noqa: B905
        assert np.isclose(expected[..., None], edges).any(-1).mean() > 0.1  # clamped


@pytest.mark.parametrize("codec", list(Codec))
def test_the_whole_gather_is_the_oracle(codec: Codec) -> None:
    pixels, index = cached(CROPS, codec), torch.tensor([4, 0, 2, 2])
    params = random_params(index, taps=[1, 2, 3, 1])
    image = gather(pixels, index, params, IMAGENET)
    for k in range(4):
        warped = oracle_warp(
            pixels, int(index[k]), params.A_q16[k], IMAGENET.size_px, int(params.taps[k])
        )
        erase = params.erase_xyxy[k].tolist()
        colour = params.colour[k].numpy()
        expected = oracle.finish(warped, colour, erase, IMAGENET.mean, IMAGENET.std)
        np.testing.assert_allclose(image[k].numpy(), expected, atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_types_and_layouts_hold_the_rounded_float32(
    dtype: torch.dtype, *, channels_last: bool
) -> None:
    index = torch.tensor([1, 3, 0])
    params = random_params(index)
    exact = gather(PIXELS, index, params, IMAGENET)
    form = dataclasses.replace(IMAGENET, dtype=dtype, channels_last=channels_last)
    image = gather(PIXELS, index, params, form)
    assert torch.equal(image, exact.to(dtype))
    assert image.is_contiguous(memory_format=form.memory_format)
    whole = gather(PIXELS, index, params, dataclasses.replace(form, dtype=torch.float32))
    assert torch.equal(whole, exact)


def test_parameters_are_rounded_half_to_even() -> None:
    A = torch.tensor([[[1.0, -0.5, 2.5], [1.5, 3.4, -2.6]]], dtype=torch.float64) / 65536
    erase = torch.tensor([[0.0, 0.126, 0.37, 1.2]], dtype=torch.float64)
    how = dataclasses.replace(identity(1, CPU), erase=erase)
    params = gather_params(A, how, 8)
    assert params.A_q16.tolist() == [[[1, 0, 2], [2, 3, -3]]]
    assert params.erase_xyxy.tolist() == [[0, 1, 3, 10]]


def test_identity_parameters_change_no_value() -> None:
    A = torch.eye(2, 3, dtype=torch.float64).expand(5, 2, 3)
    params = gather_params(A, identity(5, CPU), SIDE)
    image = gather(PIXELS, torch.arange(5), params, PLAIN)
    assert torch.equal(image.to(torch.uint8), CROPS.permute(0, 3, 1, 2))


# --- batches, windows, out ------------------------------------------------------------------------


@pytest.mark.parametrize("codec", list(Codec))
def test_the_sample_alone_is_the_sample_in_a_batch(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, index = cached(CROPS, codec), torch.arange(23) % 5
    params = random_params(index)
    assert len(set(params.taps.tolist())) == 3
    image = gather(pixels, index, params, IMAGENET)
    monkeypatch.setattr(gather_module, "HOST_CHUNK_PX", 1)
    assert torch.equal(gather(pixels, index, params, IMAGENET), image)
    assert image.is_contiguous()


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_window_is_its_frames(*, channels_last: bool) -> None:
    form = dataclasses.replace(IMAGENET, channels_last=channels_last)
    index = torch.tensor([[0, 1, 2], [3, 3, 4]])
    params = random_params(index)
    image = gather(PIXELS, index, params, form)
    assert image.shape == (2, 3, 3, 9, 9)
    flat = reshaped(params, torch.Size((6,)))
    assert torch.equal(image.flatten(0, 1), gather(PIXELS, index.flatten(), flat, form))


def test_the_frames_of_a_window_can_share_parameters() -> None:
    index = torch.tensor([[0, 1, 2], [3, 3, 4]])
    shared = random_params(index[:, 0])
    image = gather(PIXELS, index, shared, IMAGENET)
    for t in range(3):
        assert torch.equal(image[:, t], gather(PIXELS, index[:, t], shared, IMAGENET))


def test_an_empty_batch_is_empty() -> None:
    params = gather_params(torch.empty(0, 2, 3).double(), identity(0, CPU), 9)
    assert gather(PIXELS, torch.empty(0, dtype=torch.int64), params, IMAGENET).shape[0] == 0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_out_is_written_and_returned(shape: tuple[int, ...], *, channels_last: bool) -> None:
    form = dataclasses.replace(IMAGENET, channels_last=channels_last)
    index = torch.tensor([0, 1, 2, 3]).view(shape)
    params = random_params(index)
    expected = gather(PIXELS, index, params, form)
    out = torch.full_like(expected, torch.nan)
    assert gather(PIXELS, index, params, form, out=out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i, p, o: (i.view(1, 1, 2), reshaped(p, torch.Size((1, 1, 2))), None),
            r"index must be \[b\] or \[b, t\]",
        ),
        (lambda i, p, o: (i.repeat(2), p, None), r"index \[4\], parameters \[2\]"),
        (lambda i, p, o: (i, p, o[:1]), r"out must be \[2, 3, 9, 9\] torch.float32 contiguous"),
        (lambda i, p, o: (i, p, o.half()), "got .* torch.float16"),
        (lambda i, p, o: (i, p, o.transpose(2, 3)), "contiguous, got .*strides"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: Callable[[Tensor, GatherParams, Tensor], tuple[Tensor, GatherParams, Tensor | None]],
    message: str,
) -> None:
    index = torch.tensor([0, 1])
    index, params, out = change(index, random_params(index), torch.empty(2, 3, 9, 9))
    with pytest.raises(ValueError, match=message):
        gather_eager(PIXELS, index, params, IMAGENET, out=out)
