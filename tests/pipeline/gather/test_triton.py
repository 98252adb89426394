"""The kernel against the eager reference: interpreted on a CPU, with tiny sizes; else compiled."""

import dataclasses
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import AugmentConfig
from pipeline.decode.codec import Codec, Pixels, write
from pipeline.gather import triton as gather_triton
from pipeline.gather.augment import draw, identity
from pipeline.gather.params import GatherParams, InputFormat, gather_params
from pipeline.gather.reference import gather_eager
from pipeline.gather.select import gather
from tests.pipeline.gather.test_reference import (
    CROPS,
    IMAGENET,
    PLAIN,
    cached,
    crop_affine,
    random_params,
    reshaped,
    untouched,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = DEVICE.type == "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on_device(params: GatherParams) -> GatherParams:
    return GatherParams(**{f.name: getattr(params, f.name).to(DEVICE) for f in fields(params)})


def there(pixels: Pixels) -> Pixels:
    planes = {
        name: plane.to(DEVICE)
        for name in ("rgb", "luma", "chroma")
        if (plane := getattr(pixels, name)) is not None
    }
    return Pixels(codec=pixels.codec, **planes)


def by_kernel(
    pixels: Pixels,
    index: Tensor,
    params: GatherParams,
    form: InputFormat,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The kernel's output on the CPU; written to memory that held NaN."""
    if out is None:
        shape = (index.numel(), 3, form.size_px, form.size_px)
        out = torch.empty(shape, dtype=form.dtype, memory_format=form.memory_format)
        out = out.view(*index.shape, *shape[1:]).to(DEVICE).fill_(torch.nan)
    given = there(pixels), index.to(DEVICE), on_device(params)
    assert gather_triton.gather(*given, form, out=out) is out
    return out.cpu()


def plain_colours(params: GatherParams) -> GatherParams:
    colour = torch.eye(3, 4).expand(*params.taps.shape, 3, 4)
    return dataclasses.replace(params, colour=colour)


def two_ulp(largest: Tensor) -> float:
    return 2 * float(np.spacing(np.float32(largest.abs().max())))


def drawn_params(index: Tensor, side: int, size: int, shrink: float = 1.0) -> GatherParams:
    """The augmentation at its widest, many borders outside the crop."""
    config = AugmentConfig(
        rotation_deg=180,
        gain=0.3,
        brightness=0.5,
        contrast=0.5,
        saturation=0.5,
        erase_probability=1,
    )
    how = draw(config, 1, 2, torch.arange(index.numel()))
    affines = [
        crop_affine(side, size * shrink * (1 + k % 3), size, float(angle))
        for k, angle in enumerate(how.rotation_rad)
    ]
    return reshaped(gather_params(torch.from_numpy(np.stack(affines)), how, size), index.shape)


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize(
    ("side", "size", "taps"),
    [(24, 19, [1, 2, 1]), (7, 9, [1, 3, 1]), (4, 33, [1, 1, 1])],
    ids=["two tiles", "odd cache", "three tiles, upscaled"],
)
def test_bits_before_colour_are_the_reference(
    codec: Codec, side: int, size: int, taps: list[int]
) -> None:
    side -= side % 2 if codec is Codec.yuv420 else 0
    pixels, index = cached(CROPS[:, :side, :side].contiguous(), codec), torch.tensor([4, 0, 0])
    params = plain_colours(random_params(index, taps=taps, seed=side))
    form = dataclasses.replace(PLAIN, size_px=size)
    ours = by_kernel(pixels, index, params, form)
    assert torch.equal(ours, gather_eager(pixels, index, params, form))
    assert torch.equal(ours, ours.round())


def test_all_kinds_of_colours_are_decoded_alike() -> None:
    """Random planes, which no picture would give, at all distances from grey."""
    g = torch.Generator().manual_seed(0)
    shapes = ((1, 64, 64), (1, 32, 32, 2))
    luma, chroma = (torch.randint(0, 256, s, dtype=torch.uint8, generator=g) for s in shapes)
    pixels = Pixels(codec=Codec.yuv420, luma=luma, chroma=chroma)
    A = torch.eye(2, 3, dtype=torch.float64)[None]
    params = gather_params(A, identity(1, torch.device("cpu")), 64)
    form = dataclasses.replace(PLAIN, size_px=64)
    ours = by_kernel(pixels, torch.tensor([0]), params, form)
    assert torch.equal(ours, gather_eager(pixels, torch.tensor([0]), params, form))


@pytest.mark.parametrize(("codec", "taps"), [(Codec.rgb, 8), (Codec.yuv420, 5), (Codec.rgb, 7)])
def test_bits_of_many_taps_are_the_reference(codec: Codec, taps: int) -> None:
    pixels, index = cached(CROPS, codec), torch.tensor([1])
    params = plain_colours(random_params(index, taps=[taps]))
    params.A_q16[..., 2] = torch.tensor([3 << 16, 20 << 16])
    form = dataclasses.replace(PLAIN, size_px=5)
    ours = by_kernel(pixels, index, params, form)
    assert torch.equal(ours, gather_eager(pixels, index, params, form))


@pytest.mark.parametrize("taps", range(1, 9))
def test_a_mean_is_divided_exactly(taps: int) -> None:
    """The kernel's product for every numerator of a division by taps * taps."""
    m = taps * taps
    numerator = np.arange(255 * m + m // 2 + 1)
    assert (numerator * ((2**20 + m - 1) // m) < 2**31).all()
    np.testing.assert_array_equal((numerator * ((2**20 + m - 1) // m)) >> 20, numerator // m)


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("channels_last", [False, True])
def test_output_is_within_two_ulp_of_the_reference(codec: Codec, *, channels_last: bool) -> None:
    pixels, index = cached(CROPS, codec), torch.tensor([2, 0, 4, 3])
    params = drawn_params(index, 24, 12)
    form = dataclasses.replace(IMAGENET, size_px=12, channels_last=channels_last)
    expected = gather_eager(pixels, index, params, form)
    ours = by_kernel(pixels, index, params, form)
    assert (ours - expected).abs().max() <= two_ulp(expected)
    assert (expected == 0).any()  # erased
    assert torch.equal(ours == 0, expected == 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_small_types_hold_the_kernels_own_float32(
    dtype: torch.dtype, *, channels_last: bool
) -> None:
    """Rounded to nearest; the interpreter truncates bfloat16, which is at most one ulp away."""
    index = torch.tensor([2, 0])
    params = drawn_params(index, 24, 12)
    form = dataclasses.replace(IMAGENET, size_px=12, channels_last=channels_last)
    exact = by_kernel(cached(CROPS, Codec.rgb), index, params, form)
    form = dataclasses.replace(form, dtype=dtype)
    ours = by_kernel(cached(CROPS, Codec.rgb), index, params, form)
    assert ours.is_contiguous(memory_format=form.memory_format)
    if INTERPRETED and dtype is torch.bfloat16:
        assert ((ours.float() - exact).abs() <= 2**-7 * exact.abs()).all()
    else:
        assert torch.equal(ours, exact.to(dtype))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("codec", list(Codec))
def test_bytes_are_those_of_the_reference(codec: Codec, *, channels_last: bool) -> None:
    """Rounding a sum of another order may go the other way, by one level, where it is a half."""
    index = torch.tensor([2, 0, 4])
    params = drawn_params(index, 24, 12)
    form = dataclasses.replace(PLAIN, size_px=12, channels_last=channels_last, dtype=torch.uint8)
    pixels = cached(CROPS, codec)
    expected = gather_eager(pixels, index, params, form)
    out = torch.full_like(expected, 77).to(DEVICE)
    ours = by_kernel(pixels, index, params, form, out=out)
    difference = (ours.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("channels_last", [False, True])
def test_windows_are_those_of_the_reference(*, channels_last: bool) -> None:
    index = torch.tensor([[0, 1], [3, 3]])
    form = dataclasses.replace(IMAGENET, channels_last=channels_last)
    pixels = cached(CROPS, Codec.rgb)
    for params in (drawn_params(index, 24, 9), drawn_params(index[:, 0], 24, 9)):
        expected = gather_eager(pixels, index, params, form)
        ours = by_kernel(pixels, index, params, form)
        assert (ours - expected).abs().max() <= two_ulp(expected)


def test_parameters_of_evaluation_need_no_copy() -> None:
    """Identity parameters are one row for all samples, of stride 0."""
    A = torch.eye(2, 3, dtype=torch.float64).expand(3, 2, 3)
    params = gather_params(A, identity(3, torch.device("cpu")), 24)
    assert params.colour.stride(0) == 0
    index = torch.tensor([4, 1, 1])
    ours = by_kernel(cached(CROPS, Codec.rgb), index, params, PLAIN)
    assert torch.equal(ours.to(torch.uint8), CROPS[index].permute(0, 3, 1, 2))


@pytest.mark.parametrize(("codec", "num"), [(Codec.rgb, 11_200), (Codec.yuv420, 33_600)])
def test_caches_beyond_two_gigabytes_are_addressed(codec: Codec, num: int) -> None:
    pixels, last = untouched(num, 256, codec, DEVICE), torch.tensor([num - 1])
    crop = torch.full((1, 256, 256, 3), 200, dtype=torch.uint8, device=DEVICE)
    write(pixels, last.to(DEVICE), crop)
    A = torch.tensor([[[1.0, 0, 250], [0, 1.0, 250]]], dtype=torch.float64)
    params = gather_params(A, identity(1, torch.device("cpu")), 8)
    form = dataclasses.replace(PLAIN, size_px=8)
    assert (by_kernel(pixels, last, params, form) == 200).all()


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_triton, "MAX_SAMPLES", 1)
    index = torch.tensor([0, 1])
    params = random_params(index, [1, 1])
    with pytest.raises(ValueError, match="at most 1 samples at a time, got 2"):
        by_kernel(cached(CROPS, Codec.rgb), index, params, IMAGENET)
    with pytest.raises(ValueError, match="out must be"):
        by_kernel(cached(CROPS, Codec.rgb), index, params, IMAGENET, out=torch.empty(2))


# --- compiled, at full size -----------------------------------------------------------------------


def full_size(codec: Codec, side: int = 256) -> Pixels:
    g = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (32, side, side, 3), dtype=torch.uint8, generator=g)
    return cached(crops, codec)


@pytest.mark.gpu
@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize(("side", "size"), [(256, 224), (254, 225), (512, 128)])
def test_compiled_bits_before_colour_are_the_reference(codec: Codec, side: int, size: int) -> None:
    pixels, index = full_size(codec, side), torch.arange(64) % 32
    shrink = side / size
    params = plain_colours(drawn_params(index, side, size, shrink))
    form = dataclasses.replace(PLAIN, size_px=size)
    assert len(set(params.taps.tolist())) > 1
    ours = by_kernel(pixels, index, params, form)
    assert torch.equal(ours, gather_eager(pixels, index, params, form))


@pytest.mark.gpu
@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_output_is_the_reference(
    codec: Codec, dtype: torch.dtype, *, channels_last: bool
) -> None:
    pixels, index = full_size(codec), (torch.arange(48) % 32).view(16, 3)
    params = drawn_params(index, 256, 224)
    form = dataclasses.replace(IMAGENET, size_px=224, channels_last=channels_last)
    expected = gather_eager(pixels, index, params, form)
    exact = by_kernel(pixels, index, params, form)
    assert (exact - expected).abs().max() <= two_ulp(expected)
    form = dataclasses.replace(form, dtype=dtype)
    assert torch.equal(by_kernel(pixels, index, params, form), exact.to(dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("codec", list(Codec))
def test_the_gather_is_captured_in_a_cuda_graph(codec: Codec) -> None:
    """Replays read the index and parameters that their tensors hold then, and never wait."""
    pixels = full_size(codec)
    form = dataclasses.replace(IMAGENET, size_px=224, dtype=torch.bfloat16, channels_last=True)
    first, second = torch.arange(16), torch.arange(16).flip(0) + 8
    params = [drawn_params(first, 256, 224, shrink) for shrink in (1.0, 1.5)]
    expected = [by_kernel(pixels, i, p, form) for i, p in zip((first, second), params, strict=True)]
    held, index, static = there(pixels), first.to(DEVICE), on_device(params[0])
    out = gather(held, index, static, form)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gather(held, index, static, form, out=out)
        assert torch.cuda.memory_allocated() == before
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            gather(held, index, static, form, out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for k, rows in enumerate((first, second)):
        index.copy_(rows)
        for f in fields(static):
            getattr(static, f.name).copy_(getattr(params[k], f.name))
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out.cpu(), expected[k])
