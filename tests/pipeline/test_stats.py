import pytest
import torch

from pipeline import stats
from pipeline.stats import StageClock, share

CPU = torch.device("cpu")


class FakeGpu:
    """A stream whose events pass when told to; time is what the test says."""

    def __init__(self) -> None:
        self.now_ms, self.made, self.passed = 0.0, 0, True
        self.queries = 0

    def event(self, device: torch.device, *, enable_timing: bool) -> "FakeEvent":
        assert device.type == "cuda"
        assert enable_timing
        self.made += 1
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.at_ms, self.was_passed = gpu, -1.0, False

    def record(self) -> None:
        self.at_ms, self.was_passed = self.gpu.now_ms, self.gpu.passed

    def query(self) -> bool:
        self.gpu.queries += 1
        return self.was_passed or self.gpu.passed

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert end.query(), "this would raise on a GPU"
        return end.at_ms - self.at_ms


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu()
    monkeypatch.setattr(torch, "Event", fake.event)
    return fake


def lap(clock: StageClock, gpu: FakeGpu, data_ms: float, step_ms: float) -> None:
    for name, ms in (("data", data_ms), ("step", step_ms)):
        with clock.stage(name):
            gpu.now_ms += ms
        gpu.now_ms += 1000.0  # between the stages: counts nowhere
    clock.end_lap()


def test_stage_clock_times_laps_by_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 5.0, 8.0, 10.0, 11.0, 20.0, 21.5])
    monkeypatch.setattr("pipeline.stats.time.perf_counter", lambda: next(now))
    clock = StageClock(CPU)
    for name in ("data", "step", "data"):
        with clock.stage(name):
            pass
    clock.end_lap()
    with clock.stage("step"):
        pass
    laps = clock.read()
    assert laps == [{"data": 2.0, "step": 3.0}]
    assert share(laps, "data") == 0.4
    assert clock.read() == []
    clock.end_lap()
    assert clock.read() == [{"step": 1.5}]
    assert share([], "data") == 0.0


def test_stage_clock_counts_a_body_that_raises() -> None:
    clock = StageClock(CPU)
    with pytest.raises(KeyError), clock.stage("data"):
        raise KeyError
    clock.end_lap()
    assert clock.read()[0]["data"] > 0


def test_stage_clock_reads_only_laps_that_are_over_and_uses_events_again(gpu: FakeGpu) -> None:
    clock = StageClock(torch.device("cuda", 0))
    lap(clock, gpu, 1, 9)
    gpu.passed = False
    lap(clock, gpu, 2, 8)
    assert clock.read() == [{"data": 0.001, "step": 0.009}]
    gpu.passed = True
    lap(clock, gpu, 3, 7)
    assert clock.read() == [{"data": 0.002, "step": 0.008}, {"data": 0.003, "step": 0.007}]
    made = gpu.made
    for _ in range(2):
        lap(clock, gpu, 1, 1)
        clock.read()
    assert gpu.made == made


def test_stage_clock_does_not_ask_the_device_between_readings(gpu: FakeGpu) -> None:
    clock = StageClock(torch.device("cuda", 0))
    for _ in range(100):
        lap(clock, gpu, 1, 1)
    assert gpu.queries == 0


def test_stage_clock_keeps_a_bounded_number_of_events(gpu: FakeGpu) -> None:
    clock = StageClock(torch.device("cuda", 0))
    num = 3 * stats.MOST_PENDING
    for _ in range(num):
        lap(clock, gpu, 1, 1)
    assert gpu.made <= 4 * (stats.MOST_PENDING + 1)
    assert len(clock.read()) == num


def test_stage_clock_forgets_what_is_dropped(gpu: FakeGpu) -> None:
    for clock in (StageClock(CPU), StageClock(torch.device("cuda", 0))):
        lap(clock, gpu, 1, 1)
        with clock.stage("data"):
            pass
        clock.drop()
        lap(clock, gpu, 1, 1)
        assert len(clock.read()) == 1
    assert gpu.made == 6
