import math

import pytest

from train.config import OptimConfig, Schedule
from train.step.schedule import learning_rate


def rates(steps: int, **words: object) -> list[float]:
    config = OptimConfig(lr=1.0, **words)  # type: ignore[arg-type]
    return [learning_rate(step, steps, config) for step in range(steps)]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_warm_up_is_linear_and_every_rate_is_positive(schedule: Schedule) -> None:
    found = rates(50, schedule=schedule, warmup_steps=10, cycle_steps=13)
    assert min(found) > 0
    assert max(found) == pytest.approx(1.0)
    if schedule is not Schedule.one_cycle:
        assert found[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]


def test_cosine_ends_near_its_share_of_the_peak() -> None:
    found = rates(1000, warmup_steps=0, final_lr_share=0.1)
    assert found[0] == 1.0
    assert found[500] == pytest.approx(0.55)
    assert found[250] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert found[-1] == pytest.approx(0.1, abs=1e-5)
    assert found == sorted(found, reverse=True)


def test_constant_stays() -> None:
    assert set(rates(20, schedule=Schedule.constant, warmup_steps=3)[3:]) == {1.0}


def test_warm_restarts_begin_at_the_peak_again() -> None:
    found = rates(
        80, schedule=Schedule.warm_restarts, warmup_steps=10, cycle_steps=10, cycle_growth=2.0
    )
    assert [step for step in range(10, 80) if found[step] == 1.0] == [10, 20, 40]
    assert found[30] == pytest.approx(0.01 + 0.99 / 2)  # the middle of the cycle of 20
    assert found[15] == pytest.approx(0.01 + 0.99 / 2)


def test_one_cycle_rises_and_falls() -> None:
    found = rates(100, schedule=Schedule.one_cycle, warmup_steps=0)
    assert found[0] == pytest.approx(1 / 25)
    assert found[30] == 1.0
    assert found[:31] == sorted(found[:31])
    assert found[30:] == sorted(found[30:], reverse=True)
    assert rates(100, schedule=Schedule.one_cycle, warmup_steps=50)[50] == 1.0


def test_a_stage_may_have_its_own_peak() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0)
    assert learning_rate(0, 10, config, peak=0.25) == 0.25
    assert learning_rate(5, 10, config, peak=0.25) == learning_rate(5, 10, config) / 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"lr": 0}, "optim.lr must be positive, got 0"),
        ({"beta2": 1.0}, r"optim.beta2 must lie in \[0, 1\), got 1"),
        ({"layer_decay": 0}, r"optim.layer_decay must lie in \(0, 1\], got 0"),
        ({"cycle_growth": 0.5}, "cycle_growth must be at least 1, got 1000 and 0.5"),
    ],
)
def test_bad_values_are_named(words: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**words)  # type: ignore[arg-type]
