"""The training loop: one readable function.

The device is read only at log points; everything between them is queued without waiting.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from pipeline.batch import Batch
from pipeline.loader import Loader
from pipeline.stats import StageClock, share
from train.checkpoint import NotWrittenError, RunFacts, save_checkpoint
from train.checkpoint_files import best_step
from train.config import RunConfig
from train.log import RunLog
from train.pictures import draw_predictions, write_picture
from train.step import StepOutput, TrainState, predict, train_step
from train.weights import write_weights


def train(
    state: TrainState,
    loader: Loader,
    config: RunConfig,
    facts: RunFacts,
    run_dir: Path,
    log: RunLog,
) -> bool:
    """Train until ``config.steps`` or a signal; return whether it got to the end.

    Raises:
        DivergedError: If a loss or gradient was not finite; names step and samples.
        NotWrittenError: If the last checkpoint or the weights could not be written.
    """
    with stop_on_signal() as stop:
        clock, seen, mark = StageClock(loader.device), 0, time.perf_counter()
        batches = iter(loader)
        while state.step < config.steps and not stop.asked:
            with clock.stage("data"):
                batch = next(batches)
            with clock.stage("step"):
                output = train_step(state, batch, config)
            seen += len(batch.image)
            last = state.step == config.steps

            if state.step % config.log_every == 0 or last:
                values = _read(output)  # waits for the device
                rate = seen / (time.perf_counter() - mark)
                data_share = share(clock.read(), "data")
                rates = {"samples_per_s": rate, "data_share": data_share}
                log.scalars(state.step, values | rates)
                raise_fault(state)
                seen, mark = 0, time.perf_counter()
            if state.step % config.pictures_every == 0 or last:
                _draw(state, batch, config, run_dir, log)
            if state.step % config.checkpoint_every == 0 or last:
                raise_fault(state)
                _save(state, loader, config, facts, run_dir, log, last=last)
        if stop.asked and state.step < config.steps:
            raise_fault(state)
            _save(state, loader, config, facts, run_dir, log, last=True)
            log.say(f"{stop.name} at step {state.step}: checkpoint written; run again to continue")
    if state.step < config.steps:
        return False
    if best_step(run_dir) is None:
        write_weights(run_dir, state, loader, config, facts)
    return True


class DivergedError(ValueError):
    """A loss or gradient was not finite."""


def raise_fault(state: TrainState) -> None:
    """Stop on what the device noted since the last reading.

    Raises:
        DivergedError: With the step and the sample ids.
    """
    count = int(state.fault.count)
    if count == 0:
        return
    ids = [int(i) for i in state.fault.sample_id.tolist() if i >= 0]
    named = f"samples {ids[:8]}" if ids else "no sample alone is to blame (gradient overflow)"
    raise DivergedError(
        f"loss or gradient not finite in {count} steps, first at step {int(state.fault.step)}: "
        f"{named}; these steps changed no weight. Lower optim.lr or look at the samples"
    )


def _save(
    state: TrainState,
    loader: Loader,
    config: RunConfig,
    facts: RunFacts,
    run_dir: Path,
    log: RunLog,
    *,
    last: bool,
) -> None:
    """Write a checkpoint, and the weights if it is the best; only the last one must not fail."""
    try:
        keep = config.keep_checkpoints
        saved = save_checkpoint(run_dir, state, loader.state_dict(), facts, keep=keep)
        if saved.is_best:
            write_weights(run_dir, state, loader, config, facts)
    except NotWrittenError as error:
        if last:
            raise
        log.say(f"{error}; tried again in {config.checkpoint_every} steps")


@torch.no_grad()
def _draw(state: TrainState, batch: Batch, config: RunConfig, run_dir: Path, log: RunLog) -> None:
    prediction = predict(state.ema, batch, state.dtype)
    sheet = draw_predictions(batch, prediction, config.pipeline)
    write_picture(run_dir / "pictures" / f"train-{state.step:07d}.png", sheet)
    log.picture(state.step, "train", sheet)


def _read(output: StepOutput) -> dict[str, float]:
    values = {"loss": float(output.loss)}
    values |= {f"loss/{name}": float(value) for name, value in output.terms.values.items()}
    values |= {f"seen/{name}": float(share) for name, share in output.terms.seen.items()}
    return values | {"grad_norm": float(output.grad_norm), "lr": output.lr}


@dataclass(kw_only=True, slots=True)
class Stop:
    """Set by SIGINT or SIGTERM."""

    asked: bool = False
    name: str = ""


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request to stop; the second one acts as usual."""
    stop = Stop()
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.asked, stop.name = True, signal.Signals(number).name
        for kind in kinds:
            signal.signal(kind, before[kind])

    for kind in kinds:
        signal.signal(kind, ask)
    try:
        yield stop
    finally:
        for kind in kinds:
            signal.signal(kind, before[kind])
