"""Learning rate and weight decay over a run: pure functions of the step."""

import math

from train.config import OptimConfig, Schedule

ONE_CYCLE_START = 1 / 25
"""Share of the peak where a one-cycle schedule begins; Smith and Topin 2018, fastai's default."""
ONE_CYCLE_WARMUP = 0.3
"""Share of the steps that it rises, where warmup_steps does not say."""


def learning_rate(
    step: int, steps: int, config: OptimConfig, *, peak: float | None = None
) -> float:
    """Return the learning rate of ``step`` (0-based) of ``steps``.

    After ``warmup_steps`` of linear rise, with ``p`` the share of what is left that is over:

    - ``constant``: the peak.
    - ``cosine``: ``final + (peak - final) (1 + cos(pi p)) / 2``.
    - ``warm_restarts``: that cosine again and again, over ``cycle_steps`` steps first, each cycle
      ``cycle_growth`` times as long as the one before (Loshchilov and Hutter 2017).
    - ``one_cycle``: cosine up from 1/25 of the peak, cosine down to the final rate; the rise takes
      ``warmup_steps``, 30 % of the steps if that is 0.

    Args:
        step: From 0.
        steps: Of the stage.
        config: Shape and peak.
        peak: Instead of the configuration's.
    """
    peak = config.lr if peak is None else peak
    final = config.final_lr_share * peak
    if config.schedule is Schedule.one_cycle:
        rise = config.warmup_steps or max(1, round(ONE_CYCLE_WARMUP * steps))
        if step < rise:
            return _cosine(peak, ONE_CYCLE_START * peak, step / rise)
        return _cosine(final, peak, (step - rise) / max(1, steps - rise))
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    step, steps = step - config.warmup_steps, steps - config.warmup_steps
    if config.schedule is Schedule.constant:
        return peak
    if config.schedule is Schedule.warm_restarts:
        step, steps = _within_cycle(step, config.cycle_steps, config.cycle_growth)
    return _cosine(final, peak, step / max(1, steps))


def _cosine(end: float, begin: float, progress: float) -> float:
    """Return the value on the way from ``begin`` to ``end``, flat at both."""
    return end + (begin - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _within_cycle(step: int, length: int, growth: float) -> tuple[int, int]:
    """Return the step within its cycle, and the cycle's length."""
    begin, cycle = 0, float(length)
    while step >= begin + round(cycle):
        begin += round(cycle)
        cycle *= growth
    return step - begin, round(cycle)
