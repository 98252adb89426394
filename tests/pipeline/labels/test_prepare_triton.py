"""The kernel against the eager reference: interpreted on a CPU, with few samples; else compiled."""

import dataclasses
import itertools
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.batch import TENSORS, Batch
from pipeline.config import AugmentConfig, PipelineConfig, ViewKind
from pipeline.gather.params import GatherParams
from pipeline.labels import prepare_triton
from pipeline.labels.outputs import columns_of, empty_outputs
from pipeline.labels.prepare import prepare, prepare_eager
from pipeline.labels.table import LabelTable
from pipeline.philox import Stream, uniforms
from pipeline.view import ViewTable, column_names, map_table, table_to
from tests.pipeline.labels.test_prepare import OFF, WIDE, config, tables

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GUARD = 64
Prepared = tuple[GatherParams, Batch]


@pytest.fixture(params=[False, True], ids=["over zeros", "over ones"])
def filled(request: pytest.FixtureRequest) -> bool:
    """What bytes of masks hold before they are written."""
    return bool(request.param)


def by_kernel(
    view: ViewTable,
    labels: LabelTable,
    index: Tensor,
    epoch: Tensor | None,
    given: PipelineConfig,
    *,
    is_real: Tensor | None = None,
    filled: bool = True,
) -> Prepared:
    """The kernel's result on the CPU, written between guards to memory that held garbage."""
    held: list[Tensor] = []

    def poisoned(like: Tensor) -> Tensor:
        size = like.numel()
        garbage = filled if like.dtype is torch.bool else -77_777
        held.append(torch.full((size + 2 * GUARD,), garbage, dtype=like.dtype, device=DEVICE))
        return held[-1][GUARD : GUARD + size].view(like.shape)

    given_out = empty_outputs(tuple(index.shape), labels.is_right.shape[1], DEVICE)
    how, batch = prepare_triton.prepare(
        table_to(view, DEVICE),
        table_to(labels, DEVICE),
        to_device(index),
        None if epoch is None else epoch.to(DEVICE),
        given,
        is_real=None if is_real is None else to_device(is_real),
        out=(map_table(given_out[0], poisoned), map_table(given_out[1], poisoned)),
    )
    for memory in held:
        for guard in (memory[:GUARD], memory[-GUARD:]):
            assert (guard == (filled if memory.dtype is torch.bool else -77_777)).all()
    assert len(held) == len(fields(how)) + len(TENSORS)
    return table_to(how, torch.device("cpu")), batch.to("cpu")


def to_device(values: Tensor) -> Tensor:
    """``values`` there, strides kept."""
    reach = 1 + sum((n - 1) * step for n, step in zip(values.shape, values.stride(), strict=True))
    memory = torch.zeros(reach, dtype=values.dtype, device=DEVICE)
    return memory.as_strided(values.shape, values.stride()).copy_(values)


def assert_matches(ours: Prepared, theirs: Prepared) -> None:
    """Integers and masks are equal, floats within an ulp of the largest entry.

    Interpreted on one machine all of it was equal; a unit in ``A_q16`` is what the last bit of the
    sine may cost.
    """
    for which in (0, 1):
        for name in column_names(theirs[which]):
            a, b = getattr(ours[which], name), getattr(theirs[which], name)
            assert a.shape == b.shape, name
            assert a.dtype == b.dtype, name
            if name == "A_q16":
                assert (a - b).abs().max() <= 1
            elif not a.is_floating_point():
                assert torch.equal(a, b), name
            elif a.numel():
                assert torch.equal(a.isnan(), b.isnan()), name
                largest = b.nan_to_num(0).abs().max().item()
                error = (a.double() - b.double()).nan_to_num(0).abs().max().item()
                assert error <= float(np.spacing(np.float32(largest))), name


def check(
    view: ViewTable,
    labels: LabelTable,
    index: Tensor,
    epoch: Tensor | None,
    given: PipelineConfig,
    *,
    is_real: Tensor | None = None,
    filled: bool = True,
) -> Prepared:
    ours = by_kernel(view, labels, index, epoch, given, is_real=is_real, filled=filled)
    assert_matches(ours, prepare_eager(view, labels, index, epoch, given, is_real=is_real))
    return ours


@pytest.mark.parametrize("kind", list(ViewKind))
@pytest.mark.parametrize("mirror_left", [False, True])
@pytest.mark.parametrize(
    ("augment", "epoch"),
    [(WIDE, 5), (AugmentConfig(), 6), (OFF, 5), (WIDE, None)],
    ids=["wide", "default", "off", "evaluation"],
)
def test_a_batch_is_that_of_the_reference(
    kind: ViewKind, augment: AugmentConfig, epoch: int | None, *, mirror_left: bool
) -> None:
    given = config(kind, mirror_left=mirror_left, augment=augment)
    number = None if epoch is None else torch.tensor(epoch)
    view, labels = tables(kind, 5)
    _, batch = check(view, labels, torch.tensor([4, 1, 0, 3]), number, given)
    assert batch.mirrored.any() == (mirror_left and kind is ViewKind.hand)
    assert batch.joints_3d.isnan().any()
    assert batch.theta_rotmat.isnan().any()


def test_every_mask_and_flag_is_written(*, filled: bool) -> None:
    view, labels = tables(ViewKind.frame, 4)
    index, real = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[True, True], [True, False]])
    given = config(ViewKind.frame)
    for is_real in (real, None):
        check(view, labels, index, None, given, is_real=is_real, filled=filled)


@pytest.mark.parametrize("kind", list(ViewKind))
def test_windows_are_those_of_the_reference(kind: ViewKind) -> None:
    view, labels = tables(kind)
    index = torch.tensor([[3, 4, 5], [1, 8, 8]])
    real = torch.tensor([[True, True, True], [True, True, False]])
    for is_real in (None, real):
        how, batch = check(view, labels, index, torch.tensor(2), config(kind), is_real=is_real)
        assert torch.equal(how.colour, how.colour[:, :1].expand_as(how.colour))
        assert torch.equal(batch.sample_id, view.sample_id[index])


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1])
def test_large_numbers_draw_what_the_reference_draws(seed: int) -> None:
    view, labels = tables(ViewKind.hand, 4)
    ids = torch.tensor([0, 2**32 - 1, 2**40 + 12_345, 2**62 + 1])
    view = dataclasses.replace(view, sample_id=ids)
    for epoch in (0, 2**31, 2**32 - 1):
        given = config(seed=seed, input_px=33)
        _, batch = check(view, labels, torch.arange(4), torch.tensor(epoch), given)
        assert torch.equal(batch.sample_id, ids)


@pytest.mark.parametrize("input_px", [8, 21, 31, 48, 96, 1024])
def test_taps_are_those_of_the_reference(input_px: int) -> None:
    """Turned, grown, and of shrinks that are whole numbers."""
    view, labels = tables(ViewKind.hand, 3)
    sized = config(input_px=input_px)
    how, _ = check(view, labels, torch.arange(3), torch.tensor(0), sized)
    still, _ = check(view, labels, torch.arange(3), None, sized)
    assert how.taps.amin() >= 1
    assert still.taps.tolist() == [{8: 8, 21: 4, 31: 3, 48: 2, 96: 1, 1024: 1}[input_px]] * 3


def test_nothing_missing_is_invented() -> None:
    """NaN in a part of a vector, as the product with a matrix spreads it, and infinities."""
    view, labels = tables(ViewKind.hand, 3)
    labels.joints_3d[0, 0, 3, 0], labels.joints_3d[0, 0, 4, 1] = torch.nan, torch.nan
    labels.joints_3d[0, 0, 5, 2] = torch.nan
    labels.transl[0, 0, 2], labels.root_rest[2, 0, 0] = torch.nan, torch.nan
    labels.theta_rotmat[0, 0, 0, 1, 1], labels.theta_rotmat[0, 0, 9, 2, 0] = torch.nan, torch.nan
    labels.K[2] = torch.nan
    _, batch = check(view, labels, torch.arange(3), torch.tensor(1), config())
    assert batch.joints_3d[0, 0, [3, 4, 5]].isnan().all()
    assert batch.theta_rotmat[0, 0].isnan().sum() == 3 + 1
    assert batch.K[2].isnan().all()


def test_any_strides_are_read() -> None:
    view, labels = tables(ViewKind.hand)
    index, real = torch.arange(9)[1::3], torch.tensor([[True, False], [True, True]]).T
    check(view, labels, index, torch.tensor(1), config())
    check(view, labels, torch.tensor([[1, 2], [5, 6]]).T, torch.tensor(1), config(), is_real=real)
    joints = labels.joints_3d[:1].expand_as(labels.joints_3d)
    shared = dataclasses.replace(labels, joints_3d=joints, joint_set=labels.joint_set[:1].expand(9))
    check(view, shared, index, torch.tensor(1), config())


def test_outputs_share_one_allocation_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aligned as Triton expects, and no two of them overlap."""
    view, labels = tables(ViewKind.frame)
    made: list[torch.dtype] = []
    empty = torch.empty

    def counted(*shape: Any, **more: Any) -> Tensor:
        if "dtype" in more:  # not the interpreter's own
            made.append(more["dtype"])
        return empty(*shape, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", counted)
        for index in (torch.arange(3), torch.arange(6).view(2, 3)):
            tables_there = table_to(view, DEVICE), table_to(labels, DEVICE)
            ours = prepare_triton.prepare(
                *tables_there, index.to(DEVICE), torch.tensor(1, device=DEVICE), config()
            )
            assert_matches(
                (table_to(ours[0], torch.device("cpu")), ours[1].to("cpu")),
                prepare_eager(view, labels, index, torch.tensor(1), config()),
            )
    assert len(made) == 2 * len({torch.float32, torch.int32, torch.int64, torch.bool})
    columns = [*columns_of(ours[0]), *columns_of(ours[1])]
    assert not [column for column in columns if column.data_ptr() % 16]
    spans = sorted((column.data_ptr(), column.nbytes) for column in columns)
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))


def test_arguments_are_passed_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the kernel: every name is what is under it."""
    on_host = tables(ViewKind.hand)
    view, labels = table_to(on_host[0], DEVICE), table_to(on_host[1], DEVICE)
    calls: list[dict[str, Any]] = []
    order = prepare_triton.prepare_kernel.arg_names

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Any:
            def launch(*arguments: Any, **options: Any) -> None:
                assert set(options) == {"num_warps", *prepare_triton.OPTIONS}
                calls.append(dict(zip(order, arguments, strict=True)))

            return launch

    monkeypatch.setattr(prepare_triton, "prepare_kernel", Kernel())
    index = torch.arange(3, device=DEVICE)
    given = config()
    how, batch = prepare_triton.prepare(view, labels, index, index[0], given)
    (call,) = calls
    for prefix, table in (("", view), ("", labels), ("out_", how), ("out_", batch)):
        for name in column_names(table):
            if f"{prefix}{name}" in call:
                assert call[f"{prefix}{name}"].data_ptr() == getattr(table, name).data_ptr(), name
    for name in prepare_triton.RANGES:
        assert call[name] == getattr(given.augment, name)
    assert (call["seed"], call["frames"], call["input_px"]) == (given.seed, 1, given.input_px)
    assert (call["HANDS"], call["MIRROR"], call["is_real"]) == (1, True, None)


def test_cameras_of_any_type_are_read() -> None:
    view, labels = tables(ViewKind.hand, 2)
    wide = dataclasses.replace(labels, K=labels.K.double())
    check(view, wide, torch.arange(2), torch.tensor(1), config())


# --- the parts ------------------------------------------------------------------------------------


@triton.jit  # type: ignore[untyped-decorator]
def uniforms_kernel(sample_id, epoch, out, seed: tl.int64):  # type: ignore[no-untyped-def]
    k = tl.program_id(0)
    for block in tl.static_range(4):
        found = prepare_triton.uniforms(seed, tl.load(epoch), tl.load(sample_id + k), block)
        for word in tl.static_range(4):
            tl.store(out + k * 16 + block * 4 + word, found[word])


@triton.jit  # type: ignore[untyped-decorator]
def cosine_sine_kernel(angle, cosine, sine, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)
    cos, sin = prepare_triton.cosine_sine(tl.load(angle + at))
    tl.store(cosine + at, cos)
    tl.store(sine + at, sin)


@triton.jit  # type: ignore[untyped-decorator]
def rounded_kernel(value, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)
    tl.store(out + at, prepare_triton.rounded(tl.load(value + at)))


@pytest.mark.parametrize("seed", [0, 12_345, 2**31, 2**32, 2**63 - 1])
def test_words_are_the_bits_of_the_reference(seed: int) -> None:
    ids = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, 2**40 + 7, 2**63 - 1])
    for epoch in (0, 7, 2**32 - 1):
        out = torch.full((len(ids), 16), torch.nan, dtype=torch.float64, device=DEVICE)
        number = torch.tensor(epoch, device=DEVICE)
        uniforms_kernel[(len(ids),)](ids.to(DEVICE), number, out, seed)
        assert torch.equal(out.cpu(), uniforms(seed, Stream.augment, epoch, ids, 16))


def test_cosine_and_sine_are_good_to_the_last_bits() -> None:
    special = np.array([0, 1e-300, 1e-9, np.pi / 6, np.pi / 4, np.pi / 2, 3 * np.pi / 4, np.pi])
    angles = np.linspace(-np.pi, np.pi, 4096 - 2 * len(special))
    angle = torch.from_numpy(np.concatenate((special, -special, angles)))
    cos, sin = torch.full((2, 4096), torch.nan, dtype=torch.float64, device=DEVICE)
    cosine_sine_kernel[(1,)](angle.to(DEVICE), cos, sin, 4096)
    exact = angle.numpy().astype(np.longdouble)
    assert np.abs(cos.cpu().numpy() - np.cos(exact)).max() < 1e-15
    assert np.abs(sin.cpu().numpy() - np.sin(exact)).max() < 1e-15
    assert (cos[0].item(), sin[0].item()) == (1, 0)


def test_ties_are_rounded_to_even() -> None:
    value = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999999999999994, -7.3])
    value = torch.cat(
        (
            value.double(),
            torch.tensor([2.0**31 - 1, -(2.0**31)], dtype=torch.float64),
            value[:6] + 1e6,
        )
    )
    out = torch.zeros(16, dtype=torch.int32, device=DEVICE)
    rounded_kernel[(1,)](value.to(DEVICE), out, 16)
    assert torch.equal(out.cpu(), value.round().to(torch.int32))


# --- compiled, at full size -----------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(ViewKind))
@pytest.mark.parametrize("augment", [WIDE, AugmentConfig()], ids=["wide", "default"])
def test_compiled_batches_are_those_of_the_reference(
    kind: ViewKind, augment: AugmentConfig
) -> None:
    view, labels = tables(kind, 1000)
    given = config(kind, input_px=224, augment=augment)
    rows = torch.randint(0, 1000, (512, 4), generator=torch.Generator().manual_seed(0))
    real = torch.rand(512, 4) < 0.9
    for epoch, is_real in itertools.product((None, torch.tensor(2**32 - 1)), (None, real)):
        check(view, labels, rows, epoch, given, is_real=is_real)
    check(view, labels, rows[:, 0], torch.tensor(3), given)


@pytest.mark.gpu
def test_the_preparation_is_captured_in_a_cuda_graph() -> None:
    """Replays read the index, epoch and marks that their tensors hold then, and never wait."""
    view, labels = tables(ViewKind.hand, 100)
    rows = torch.randint(0, 100, (2, 16, 3), generator=torch.Generator().manual_seed(0))
    real, given = torch.rand(2, 16, 3) < 0.5, config(input_px=224)
    view_there, labels_there = table_to(view, DEVICE), table_to(labels, DEVICE)
    index, epoch, is_real = rows[0].to(DEVICE), torch.tensor(0, device=DEVICE), real[0].to(DEVICE)

    def run() -> Prepared:
        return prepare(view_there, labels_there, index, epoch, given, is_real=is_real)

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            how, batch = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for k, number in enumerate((2**32 - 1, 5)):
        index.copy_(rows[k])
        epoch.fill_(number)
        is_real.copy_(real[k])
        graph.replay()
        theirs = prepare_eager(view, labels, rows[k], torch.tensor(number), given, is_real=real[k])
        assert_matches((table_to(how, torch.device("cpu")), batch.to("cpu")), theirs)


@pytest.mark.gpu
def test_one_kernel_is_all_that_runs() -> None:
    view, labels = tables(ViewKind.hand, 100)
    view_there, labels_there = table_to(view, DEVICE), table_to(labels, DEVICE)
    index, epoch = torch.arange(64, device=DEVICE), torch.tensor(0, device=DEVICE)
    prepare(view_there, labels_there, index, epoch, config())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        prepare(view_there, labels_there, index, epoch, config())
        torch.cuda.synchronize()
    averages = profile.key_averages()
    ran = [event.key for event in averages if str(event.device_type) == "DeviceType.CUDA"]
    assert ran == ["prepare_kernel"]
