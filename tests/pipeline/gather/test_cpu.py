"""The machine code against the eager reference."""

import ctypes
import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.app.compiler import make_cc_one_program
from pipeline.decode.codec import Codec, Pixels
from pipeline.gather import cpu as gather_native
from pipeline.gather.augment import identity
from pipeline.gather.params import MAX_TAPS, GatherParams, InputFormat, gather_params
from pipeline.gather.reference import gather_eager
from pipeline.gather.select import gather
from tests.pipeline.gather.test_reference import (
    CROPS,
    IMAGENET,
    PLAIN,
    cached,
    random_params,
    untouched,
)
from tests.pipeline.gather.test_triton import drawn_params, two_ulp

CPU = torch.device("cpu")


def native(pixels: Pixels, index: Tensor, params: GatherParams, form: InputFormat) -> Tensor:
    """The output, written to memory that held something else."""
    shape = (index.numel(), 3, form.size_px, form.size_px)
    out = torch.empty(shape, dtype=form.dtype, memory_format=form.memory_format).fill_(77)
    out = out.view(*index.shape, *shape[1:])
    assert gather_native.gather(pixels, index, params, form, out=out) is out
    return out


def test_this_machine_has_a_compiler() -> None:
    """Where it has none, the tests below would compare the reference with itself."""
    assert gather_native.available()


@pytest.mark.parametrize("taps", range(1, MAX_TAPS + 1))
@pytest.mark.parametrize(
    ("codec", "side"), [(Codec.rgb, 24), (Codec.rgb, 7), (Codec.yuv420, 24), (Codec.yuv420, 6)]
)
def test_levels_are_those_of_the_reference_bit_for_bit(codec: Codec, side: int, taps: int) -> None:
    pixels = cached(CROPS[:, :side, :side], codec)
    index = torch.tensor([4, 0, 2, 1, 1])
    params = random_params(index, [taps] * 5, seed=taps)
    plain = dataclasses.replace(
        params, colour=torch.eye(3, 4).expand(5, 3, 4), erase_xyxy=params.erase_xyxy * 0
    )
    form = InputFormat(size_px=13, mean=(0.0,) * 3, std=(1 / 255,) * 3, dtype=torch.float32)
    expected = gather_eager(pixels, index, plain, form)
    ours = native(pixels, index, plain, form)
    assert torch.equal(ours.round(), expected.round())
    assert (ours - ours.round()).abs().max() < 1e-3
    assert len(set(ours.flatten().tolist())) > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("codec", list(Codec))
def test_colours_are_those_of_the_reference(
    codec: Codec, dtype: torch.dtype, *, channels_last: bool
) -> None:
    index = torch.tensor([4, 0, 2, 3])
    params = drawn_params(index, 24, 17)
    form = dataclasses.replace(
        IMAGENET, size_px=17, dtype=torch.float32, channels_last=channels_last
    )
    expected = gather_eager(cached(CROPS, codec), index, params, form)
    ours = native(cached(CROPS, codec), index, params, form)
    assert ours.is_contiguous(memory_format=form.memory_format)
    assert (ours - expected).abs().max() <= two_ulp(expected)
    assert torch.equal(ours == 0, expected == 0)
    small = native(cached(CROPS, codec), index, params, dataclasses.replace(form, dtype=dtype))
    assert torch.equal(small, ours.to(dtype))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("codec", list(Codec))
def test_bytes_are_those_of_the_reference(codec: Codec, *, channels_last: bool) -> None:
    index = torch.tensor([2, 0, 4])
    params = random_params(index)
    form = dataclasses.replace(PLAIN, size_px=12, channels_last=channels_last, dtype=torch.uint8)
    expected = gather_eager(cached(CROPS, codec), index, params, form)
    difference = (native(cached(CROPS, codec), index, params, form).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


def test_windows_may_share_their_parameters() -> None:
    index = torch.tensor([[0, 1, 2], [3, 3, 4]])
    pixels = cached(CROPS, Codec.rgb)
    for params in (drawn_params(index, 24, 9), drawn_params(index[:, 0], 24, 9)):
        expected = gather_eager(pixels, index, params, IMAGENET)
        ours = native(pixels, index, params, IMAGENET)
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() <= two_ulp(expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_share_a_batch(threads: int) -> None:
    index = torch.tensor([4, 0, 2, 3, 1, 1, 0])
    params, pixels = random_params(index), cached(CROPS, Codec.rgb)
    before = torch.get_num_threads()
    expected = native(pixels, index, params, IMAGENET)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(native(pixels, index, params, IMAGENET), expected)
    finally:
        torch.set_num_threads(before)


def test_parameters_of_evaluation_need_no_copy() -> None:
    A = torch.eye(2, 3, dtype=torch.float64).expand(3, 2, 3)
    params = gather_params(A, identity(3, CPU), 24)
    index = torch.tensor([4, 1, 1])
    form = dataclasses.replace(PLAIN, size_px=24)
    ours = native(cached(CROPS, Codec.rgb), index, params, form)
    assert torch.equal(ours.to(torch.uint8), CROPS[index].permute(0, 3, 1, 2))


@pytest.mark.parametrize(("codec", "num"), [(Codec.rgb, 11_200), (Codec.yuv420, 33_600)])
def test_caches_beyond_two_gigabytes_are_addressed(codec: Codec, num: int) -> None:
    pixels, last = untouched(num, 256, codec, CPU), torch.tensor([num - 1])
    for plane in pixels.planes():
        plane[-1] = 128
    A = torch.tensor([[[1.0, 0, 250], [0, 1.0, 250]]], dtype=torch.float64)
    params = gather_params(A, identity(1, CPU), 8)
    form = dataclasses.replace(PLAIN, size_px=8)
    assert (native(pixels, last, params, form) == 128).all()


@pytest.mark.parametrize("row", [-1, 5])
def test_rows_that_are_not_there_are_refused(row: int) -> None:
    index = torch.tensor([0, row])
    with pytest.raises(ValueError, match=r"index must lie in 0\.\.4"):
        native(cached(CROPS, Codec.rgb), index, random_params(index, [1, 1]), IMAGENET)


def test_no_samples_are_no_images() -> None:
    index = torch.empty(0, dtype=torch.int64)
    some = random_params(torch.tensor([0]), [1])
    params = GatherParams(**{f.name: getattr(some, f.name)[:0] for f in dataclasses.fields(some)})
    assert native(cached(CROPS, Codec.rgb), index, params, IMAGENET).shape[0] == 0


# --- building -------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, and nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Nothing remembered from before, nor left for later tests."""
    forget_builds()
    yield
    forget_builds()


def forget_builds() -> None:
    gather_native.available.cache_clear()
    gather_native._library.cache_clear()


def test_it_is_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gather_native.available()
    assert len(list((fresh / "handloom").glob("gather-*.so"))) == 1
    assert len(list((fresh / "handloom").iterdir())) == 1
    forget_builds()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert gather_native.available()


def test_without_a_compiler_the_reference_does_the_work(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    index = torch.tensor([1, 0])
    params, pixels = random_params(index, [1, 1]), cached(CROPS, Codec.rgb)
    ours = gather(pixels, index, params, IMAGENET)
    assert torch.equal(ours, gather_eager(pixels, index, params, IMAGENET))
    (said,) = caplog.messages
    assert "six times slower (found no C compiler" in said
    assert "apt install gcc" in said
    assert not list(fresh.rglob("*.so"))


@pytest.mark.parametrize("compiler", ["gcc -pthread", "ccache gcc", "'/opt/my gcc/gcc' -O2"])
def test_a_compiler_may_be_a_command_line(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, caplog: pytest.LogCaptureFixture
) -> None:
    commands = fresh / "bin"
    commands.mkdir()
    for name in ("ccache", "gcc"):
        (commands / name).write_text(f"#!/bin/sh\necho {name} >> {fresh}/asked\n{REAL[name]}\n")
        (commands / name).chmod(0o755)
    spaced = fresh / "my gcc"
    spaced.symlink_to(commands)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setenv("CC", compiler.replace("/opt/my gcc", str(spaced)))
    assert gather_native.available()
    asked = (fresh / "asked").read_text().split()
    assert asked == (["ccache", "gcc"] if "ccache" in compiler else ["gcc"])
    assert not caplog.messages


REAL = {"ccache": 'exec "$@"', "gcc": f'exec {shutil.which("gcc")} "$@"'}


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (
            "no-such-compiler -O2",
            "there is no program 'no-such-compiler'; another compiler is used",
        ),
        ("false", "the gather is not compiled by false: .*the next one is tried"),
        ("true", "the gather is not compiled by true: .*the next one is tried"),
        ("gcc 'half", "the gather is not compiled by gcc .*the next one is tried"),
    ],
)
def test_a_compiler_that_fails_is_named_and_another_used(
    fresh: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiler: str,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert gather_native.available()
    assert re.search(message, caplog.text)
    assert list(fresh.rglob("*.so"))


@pytest.mark.parametrize("kept", [0, 100, 5000, -1])
def test_a_damaged_library_is_compiled_again(fresh: Path, kept: int) -> None:
    assert gather_native.available()
    (library,) = fresh.rglob("gather-*.so")
    whole = library.read_bytes()
    library.unlink()  # the mapped file stays as it is
    library.write_bytes(whole[:kept])
    forget_builds()
    assert gather_native.available()
    assert library.read_bytes()[-32:] == hashlib.sha256(library.read_bytes()[:-32]).digest()
    index = torch.tensor([1, 0])
    params, pixels = random_params(index, [1, 1]), cached(CROPS, Codec.rgb)
    native(pixels, index, params, IMAGENET)


def test_where_nothing_can_be_kept_it_is_compiled_for_the_process(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh / "handloom").write_text("in the way")
    assert gather_native.available()
    forget_builds()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert gather_native.available()


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_triton_is_given_a_single_program(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (None, "gcc", shutil.which("gcc")):
        if given is None:
            monkeypatch.delenv("CC", raising=False)
        else:
            monkeypatch.setenv("CC", given)
        make_cc_one_program()
        assert os.environ.get("CC") == given
    monkeypatch.setenv("CC", "gcc -DVALUE='a b'")
    make_cc_one_program()
    program = os.environ["CC"]
    asked = subprocess.run(
        [program, "-E", "-P", "-"], input="VALUE", capture_output=True, text=True, check=True
    )
    assert asked.stdout.split() == ["a", "b"]
    make_cc_one_program()
    assert os.environ["CC"] == program
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    make_cc_one_program()
    assert "CC" not in os.environ


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDLOOM_NATIVE", "0")
    assert not gather_native.available()


def test_the_structs_agree() -> None:
    """Offsets as the C compiler sees them: 8-byte pointers first, no hole but one before out."""
    fields = gather_native._Gather
    offsets = [getattr(fields, name).offset for name, *_ in fields._fields_]
    assert offsets == sorted(offsets)
    assert fields.index.offset == 2 * ctypes.sizeof(ctypes.c_void_p)
    assert fields.out.offset == 56 + 36 + 4
    assert ctypes.sizeof(fields) == fields.side.offset + 6 * 4


def test_it_works_in_a_forked_process() -> None:
    index = torch.tensor([4, 0, 2, 3])
    params, pixels = random_params(index), cached(CROPS, Codec.rgb)
    expected = native(pixels, index, params, IMAGENET)
    child = os.fork()
    if child == 0:  # torch's own threads are not used in between
        same = torch.equal(native(pixels, index, params, IMAGENET), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
