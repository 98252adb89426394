"""Rates, step times, arithmetic, NVML; the numbers come from the test's own clock and GPU."""

import mmap
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynvml
import pytest
import torch
from torch import Tensor, nn

from model.network import Inputs
from train.device.distributed import Ranks
from train.watch.best_effort import BestEffort
from train.watch.flops import FlopCount, peak_tflops
from train.watch.meters import Meters, bottleneck, own_host_bytes
from train.watch.nvml import DeviceMeter

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PX = 12


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).flatten(2)


class Net(nn.Module):
    """Takes what the real one takes: conv 3 -> 8, 6x6 tokens, attention of 2 heads, a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 2, stride=2), nn.BatchNorm2d(8), nn.Dropout(0.5)
        )
        self.attention = Attention()
        self.mlp = nn.Linear(8, 5)
        self.num_hands = 1

    def forward(self, inputs: Inputs) -> Tensor:
        tokens = self.backbone(inputs.image).flatten(2).mT
        out: Tensor = self.mlp(self.attention(tokens).mean(1))
        return out


CONV = 2 * 36 * 8 * (3 * 2 * 2)
QKV = 2 * 36 * 8 * 24
SCORES_AND_MIX = 2 * (2 * 2 * 36 * 36 * 4)
LAST = 2 * 8 * 5


def fake_state(model: nn.Module | None = None, world: int = 1, device: torch.device = CPU) -> Any:
    model = model or Net()
    return SimpleNamespace(
        model=model,
        ema=Net().to(device).eval(),
        ranks=Ranks(world=world),
        clock=torch.zeros((), device=device),
    )


CONFIG: Any = SimpleNamespace(pipeline=SimpleNamespace(input_px=PX))


class Clock:
    """``time.perf_counter`` that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def started(state: Any = None) -> Meters:
    """Meters after their first step, which does not count."""
    meters = Meters(state or fake_state(), CONFIG, BestEffort(print))
    meters.add(8)
    return meters


def step(meters: Meters, clock: Clock, data: float, step: float, samples: int = 8) -> None:
    for name, seconds in (("data", data), ("step", step)):
        with meters.stage(name):
            clock.now += seconds
    meters.add(samples)


class Inside(Net):
    """Calls the layers of its backbone one by one."""

    def forward(self, inputs: Inputs) -> Tensor:
        x = inputs.image
        for layer in self.backbone:
            x = layer(x)
        out: Tensor = self.mlp(self.attention(x.flatten(2).mT).mean(1))
        return out


# --- rates ----------------------------------------------------------------------------------------


def test_rates_are_samples_of_all_ranks_over_the_wall(clock: Clock) -> None:
    with started(fake_state(world=4)) as meters:
        for _ in range(9):
            step(meters, clock, 0.1, 0.3)
        step(meters, clock, 0.4, 1.0)
        clock.now += 5.0  # logging, pictures
        values = meters.read()
    seconds = 9 * 0.4 + 1.4 + 5.0
    assert values["samples_per_s"] == pytest.approx(4 * 80 / seconds)
    assert values["step_ms"] == pytest.approx(1000 * seconds / 10)
    assert values["step_p50_ms"] == pytest.approx(400.0)
    assert values["step_p99_ms"] == pytest.approx(np.percentile([400.0] * 9 + [1400.0], 99))
    assert values["data_share"] == pytest.approx((0.9 + 0.4) / (9 * 0.4 + 1.4))
    forward = CONV + QKV + SCORES_AND_MIX + LAST
    assert values["tflops"] == pytest.approx(1e-12 * 3 * forward * 80 / seconds)  # of one rank


def test_readings_do_not_overlap_and_skipped_time_counts_nowhere(clock: Clock) -> None:
    with started() as meters:
        step(meters, clock, 0.0, 1.0)
        clock.now += 50.0
        meters.skip()
        step(meters, clock, 0.0, 2.0)
        assert meters.read()["step_ms"] == pytest.approx(2000.0)
        step(meters, clock, 0.0, 3.0)
        values = meters.read()
        assert values["step_ms"] == values["step_p99_ms"] == pytest.approx(3000.0)
        assert meters.read() == {}, "no step, no rate"


def test_the_first_step_compiles_and_does_not_count(clock: Clock) -> None:
    with Meters(fake_state(), CONFIG, BestEffort(print)) as meters:
        step(meters, clock, 9.0, 90.0)
        assert meters.read() == {}
        step(meters, clock, 0.5, 0.5)
        values = meters.read()
    assert values["step_ms"] == values["step_p99_ms"] == pytest.approx(1000.0)
    assert values["samples_per_s"] == pytest.approx(8.0)


def test_on_a_cpu_there_are_no_values_of_a_gpu(clock: Clock) -> None:
    with started() as meters:
        step(meters, clock, 0.1, 0.3)
        values = meters.read()
    assert set(values) == {
        *("samples_per_s", "step_ms", "step_p50_ms", "step_p99_ms", "data_share"),
        *("tflops", "host_memory_gb"),
    }


def test_a_step_costs_microseconds() -> None:
    num, best = 200, np.inf  # a stretch of a few milliseconds, within one turn of the scheduler
    with started() as meters:
        for _ in range(50):
            begin = time.perf_counter()
            for _ in range(num):
                with meters.stage("data"):
                    pass
                with meters.stage("step"):
                    pass
                meters.add(8)
            best = min(best, (time.perf_counter() - begin) / num)
            meters.skip()
    assert best < 20e-6, f"{1e6 * best:.1f} us"


@pytest.mark.gpu
def test_a_step_on_a_gpu_costs_microseconds_and_never_waits() -> None:
    num = 200
    with started(fake_state(Net().to(GPU), device=GPU)) as meters:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                meters.skip()
                begin = time.perf_counter()
                for _ in range(num):
                    with meters.stage("data"):
                        pass
                    with meters.stage("step"):
                        pass
                    meters.add(8)
                seconds = time.perf_counter() - begin
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        values = meters.read()
    assert seconds / num < 20e-6, f"{1e6 * seconds / num:.1f} us"
    assert values["memory_gb"] > 0
    assert 0 <= values["data_share"] <= 1


def test_own_memory_leaves_mapped_files_out(tmp_path: Path) -> None:
    size = 64 << 20
    path = tmp_path / "file"
    path.write_bytes(b"1" * size)
    before = own_host_bytes()
    if before is None:
        pytest.skip("no /proc/self/status")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) > 0
        mapped_too = own_host_bytes()
    held = np.ones(size, np.uint8)
    after = own_host_bytes()
    assert mapped_too is not None
    assert after is not None
    assert abs(mapped_too - before) < size / 2
    assert after - before > size / 2
    del held


# --- arithmetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Net, Inside])
def test_operations_are_those_of_the_formulas(kind: type[Net]) -> None:
    model = kind()
    count = FlopCount(kind().eval(), PX)
    forward = CONV + QKV + SCORES_AND_MIX + LAST
    assert count.of_a_step(model) == 3 * forward
    model.backbone.requires_grad_(requires_grad=False)
    assert count.of_a_step(model) == 3 * forward - 2 * CONV, "frozen: no backward"
    model.requires_grad_(requires_grad=False)
    assert count.of_a_step(model) == forward


def test_counting_changes_nothing() -> None:
    torch.manual_seed(3)
    model = Net().eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    FlopCount(model, PX)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all((p.grad == 1).all() for p in model.parameters() if p.grad is not None)
    assert not model.training


def test_counting_happens_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(FlopCount):
        def __init__(self, *args: Any) -> None:
            made.append(1)
            super().__init__(*args)

    monkeypatch.setattr("train.watch.meters.FlopCount", Counted)
    with started() as meters:
        for _ in range(3):
            step(meters, clock, 0.0, 1.0)
            meters.read()
    assert len(made) == 1


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 3090", 71),
        # other chips, or parts of one
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA A100 MIG 10gb", None),
        ("NVIDIA A100X", None),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)
def test_the_peak_is_that_of_the_whole_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


# --- NVML -----------------------------------------------------------------------------------------


class FakeNvml:
    """One GPU known by its uuid; the functions named in ``broken`` raise."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.users = 0
        self.energy_mj, self.time = 1_000_000, 0.0
        self.samples: dict[int, float] = {}
        self.sm_return, self.sm_percent = 0, 83.0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in [name for name in dir(self) if name.startswith("nvml")]:
            patch.setattr(pynvml, name, self._guarded(name))
        patch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="u"))

    def _guarded(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            if name in self.broken:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            if name != "nvmlInit" and not self.users:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
            return getattr(self, name)(*args)

        return call

    def nvmlInit(self) -> None:  # noqa: N802  # pynvml's names
        self.users += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.users -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-u":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, _: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetTotalEnergyConsumption(self, _: str) -> int:  # noqa: N802
        return self.energy_mj

    def nvmlDeviceGetPowerUsage(self, _: str) -> int:  # noqa: N802
        return 123_000

    def nvmlGpmQueryDeviceSupport(self, _: str) -> Any:  # noqa: N802
        return SimpleNamespace(isSupportedDevice=1)

    def nvmlGpmSampleAlloc(self) -> Any:  # noqa: N802
        sample = pynvml.c_nvmlGpmSample_t()
        self.samples[id(sample)] = -1.0
        return sample

    def nvmlGpmSampleGet(self, _: str, sample: Any) -> None:  # noqa: N802
        self.samples[id(sample)] = self.time

    def nvmlGpmSampleFree(self, sample: Any) -> None:  # noqa: N802
        del self.samples[id(sample)]

    def nvmlGpmMetricsGet(self, request: Any) -> Any:  # noqa: N802
        assert request.numMetrics == 1
        first, second = sorted(self.samples.values())
        self.interval = (first, second)
        request.metrics[0].nvmlReturn = self.sm_return
        request.metrics[0].value = self.sm_percent
        return request


@pytest.fixture
def fake_nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    fake.install(monkeypatch)
    return fake


def test_nvml_gives_means_of_the_interval(fake_nvml: FakeNvml) -> None:
    meter = DeviceMeter(GPU)
    for number in range(2):
        fake_nvml.time = 10.0 * number
        meter.begin()
        fake_nvml.time += 4.0
        fake_nvml.energy_mj += 2_000_000
        assert meter.read(4.0) == {"gpu_util": 0.97, "sm_active": 0.83, "power_w": 500.0}
        assert fake_nvml.interval == (10.0 * number, 10.0 * number + 4.0)
    meter.close()
    assert fake_nvml.users == 0
    assert not fake_nvml.samples


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("nvmlDeviceGetUtilizationRates", {"sm_active": 0.83, "power_w": 500.0}),
        (
            "nvmlDeviceGetTotalEnergyConsumption",
            {"gpu_util": 0.97, "sm_active": 0.83, "power_w": 123.0},
        ),
        ("nvmlGpmQueryDeviceSupport", {"gpu_util": 0.97, "power_w": 500.0}),
        ("nvmlGpmSampleAlloc", {"gpu_util": 0.97, "power_w": 500.0}),
        ("nvmlGpmSampleGet", {"gpu_util": 0.97, "power_w": 500.0}),
        ("nvmlGpmMetricsGet", {"gpu_util": 0.97, "power_w": 500.0}),
        ("nvmlDeviceGetHandleByUUID", {}),
        ("nvmlInit", {}),
    ],
)
def test_what_nvml_cannot_read_is_absent(
    fake_nvml: FakeNvml, broken: str, expected: dict[str, float]
) -> None:
    fake_nvml.broken.add(broken)
    meter = DeviceMeter(GPU)
    fake_nvml.energy_mj += 500_000
    assert meter.read(1.0) == expected
    meter.begin()
    meter.close()
    assert fake_nvml.users == 0


def test_a_counter_that_stands_still_is_no_power_of_zero(fake_nvml: FakeNvml) -> None:
    assert DeviceMeter(GPU).read(0.01)["power_w"] == 123.0


@pytest.mark.parametrize(
    ("code", "percent"), [(pynvml.NVML_ERROR_NOT_SUPPORTED, 0.0), (0, float("nan"))]
)
def test_a_counter_that_gpm_does_not_give_is_absent(
    fake_nvml: FakeNvml, code: int, percent: float
) -> None:
    fake_nvml.sm_return, fake_nvml.sm_percent = code, percent
    assert "sm_active" not in DeviceMeter(GPU).read(1.0)


def test_energy_is_per_sample_of_this_rank(
    fake_nvml: FakeNvml, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(fake_state(world=2)) as meters:
        monkeypatch.setattr(meters, "_meter", DeviceMeter(GPU))
        monkeypatch.setattr(meters, "_peak", 1e-6)
        step(meters, clock, 0.0, 2.0, samples=10)
        fake_nvml.energy_mj += 500_000
        values = meters.read()
    assert values["power_w"] == 250.0
    assert values["j_per_sample"] == pytest.approx(50.0)
    assert values["mfu"] == pytest.approx(values["tflops"] / 1e-6)
    assert fake_nvml.users == 0, "closed"


# --- bottleneck -----------------------------------------------------------------------------------

FAST = {"step_p50_ms": 10.0, "step_p99_ms": 11.0, "data_share": 0.01}
ON_GPU = {**FAST, "memory_gb": 20.0}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**FAST, "data_share": 0.4}, ("data, 40%",)),
        ({**ON_GPU, "data_share": 0.4, "gpu_util": 0.5}, ("data, 40%",)),
        (FAST, ("the CPU computing, 99%",)),
        (ON_GPU, ("not data; NVML cannot be read",)),
        ({**ON_GPU, "gpu_util": 0.6}, ("the host, no kernel runs in 40%",)),
        ({**ON_GPU, "gpu_util": 0.6, "sm_active": 0.2}, ("the host, no kernel runs in 40%",)),
        ({**ON_GPU, "gpu_util": 1.0, "sm_active": 0.2}, ("kernels", "20% of the SMs")),
        ({**ON_GPU, "gpu_util": 1.0, "sm_active": 0.9, "mfu": 0.41}, ("the device, 90%", "41%")),
        ({**ON_GPU, "gpu_util": 1.0}, ("the device, 100% in use",)),
        ({**FAST, "step_p99_ms": 31.0}, ("the CPU", "uneven, the slowest take 3.1 times")),
    ],
)
def test_the_bottleneck_is_named(values: dict[str, float], words: tuple[str, ...]) -> None:
    sentence = bottleneck(values)
    assert sentence.startswith("bottleneck: ")
    assert all(word in sentence for word in words), sentence
    assert ("uneven" in sentence) == (values["step_p99_ms"] > 20)


def test_broken_measuring_costs_its_values_and_one_warning_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "train.watch.nvml", None)  # its import fails
    monkeypatch.setattr("train.watch.meters.FlopCount", lambda *_: 1 // 0)
    with Meters(fake_state(), CONFIG, BestEffort(said.append)) as meters:
        for _ in range(3):
            meters.add(2)
            with meters.stage("step"):
                pass
            values = meters.read()
    assert "samples_per_s" in values
    assert not {"tflops", "gpu_util"} & values.keys()
    assert [line.split(" failed")[0] for line in said] == [
        "warning: NVML",
        "warning: counting FLOPs",
    ]
