"""The training loop: one readable function.

The device is read only at log points; everything between them is queued without waiting.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pipeline.app.pictures import write_picture
from pipeline.batch import Batch
from pipeline.loader import Loader
from train.config import RunConfig
from train.device.distributed import average_, most_of
from train.device.stop import stop_on_signal
from train.evaluate.validate import as_scalars, metric_of, score
from train.state.checkpoint import (
    NotWrittenError,
    RunFacts,
    Score,
    best_step,
    payload_of,
    save_checkpoint,
)
from train.state.weights import write_weights
from train.step.debug import DebugStep
from train.step.fault import raise_fault
from train.step.graph import GraphedStep
from train.step.ramp import weights_at
from train.step.stages import Stage, stage_at
from train.step.step import StepOutput, TrainState, enter_stage, predict, train_step
from train.watch.log import RunLog
from train.watch.meters import Meters, bottleneck
from train.watch.pictures import MOST_DRAWN, draw_predictions


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run has beside its state."""

    config: RunConfig
    stages: tuple[Stage, ...]
    loader: Loader
    validation: Loader | None
    baselines: dict[str, float]
    """Values of the validation metric that need no training, by name in the log."""
    facts: RunFacts
    folder: Path
    log: RunLog


def train(state: TrainState, run: Run) -> bool:
    """Train to the end of the last stage or a signal; return whether it got to the end.

    Raises:
        DivergedError: If a loss or gradient was not finite; names step and samples.
        NotWrittenError: If the last checkpoint or the weights could not be written.
    """
    config, log, end = run.config, run.log, run.stages[-1].end
    with stop_on_signal(state.ranks) as stop, Meters(state, config, log.attempt) as meters:
        take_step = step_of(state, run)
        costs: dict[str, float] = {}
        parts = state.accumulate
        stage: Stage | None = None
        batches: Iterator[Batch] = iter(())
        while state.step < end and not stop.asked_by_any(state.step):
            if stage is None or state.step == stage.end:
                raise_fault(state.fault, state.ranks, run.loader)  # a stage begins with a new one
                stage = stage_at(run.stages, state.step)
                run.loader.change(stage.pipeline)
                enter_stage(state, stage, config)
                batches = probed(run.loader) if config.probe else iter(run.loader)
                meters.skip()
                if len(run.stages) > 1:
                    log.say(f"stage {stage.name}: steps {stage.begin} to {stage.end}")
            with meters.stage("data"):
                batch = next(batches)
            with meters.stage("step"):
                output = take_step(state, batch, config, stage)
            if state.accumulate != parts:
                parts = state.accumulate
                log.say(f"out of memory: accumulate={parts} from step {state.step - 1} on")
            meters.add(batch.sample_id.numel())
            last = state.step == end

            if state.step % config.log_every == 0 or last:
                values = read(state, output)  # waits for the device
                if stage.ramp:
                    weights = weights_at(stage, state.step - 1)
                    values |= {f"weight/{name}": value for name, value in weights.items()}
                costs = meters.read()
                named = {f"meter/{name}": value for name, value in costs.items()}
                log.scalars(state.step, values | named)
                raise_fault(state.fault, state.ranks, run.loader)
            if state.step % config.pictures_every == 0 or last:
                log.attempt("pictures", partial(draw, state, batch, run))
                meters.skip()
            validates = run.validation is not None and (
                state.step % config.validation.every == 0 or last
            )
            if validates or state.step % config.checkpoint_every == 0 or last:
                raise_fault(state.fault, state.ranks, run.loader)
                save(state, run, validate(state, run) if validates else None, last=last)
                meters.skip()
        if stop.asked and state.step < end:
            raise_fault(state.fault, state.ranks, run.loader)
            save(state, run, None, last=True)
            log.say(f"{stop.name} at step {state.step}: checkpoint written; run again to continue")
    if config.probe and costs:
        log.say(f"probe: {costs['samples_per_s']:.0f} samples/s at most; {bottleneck(costs)}")
    if state.step < end:
        return False
    if (
        state.ranks.is_first
        and not config.probe
        and best_step(run.folder, run.facts.run_id) is None
    ):
        write_weights(run.folder, state, run.loader, config, run.facts)
    return True


def step_of(
    state: TrainState, run: Run
) -> Callable[[TrainState, Batch, RunConfig, Stage], StepOutput]:
    """Return how the run takes its steps."""
    if run.config.debug:
        return DebugStep(run.folder, run.loader)
    return GraphedStep(run.loader) if run.config.graph and state.clock.is_cuda else train_step


def validate(state: TrainState, run: Run) -> Score:
    """Score the averaged weights on the held-out samples, and log what was found."""
    assert run.validation is not None
    scores = score(state.ema, state.model.mano, run.validation, state.dtype, state.ranks)
    run.log.scalars(state.step, as_scalars(scores) | run.baselines)
    chosen = run.config.validation
    return Score(metric=chosen.metric, value=metric_of(scores, chosen), step=state.step)


def save(state: TrainState, run: Run, scored: Score | None, *, last: bool) -> None:
    """Write a checkpoint, and the weights if it is the best; only the last one must not fail."""
    config = run.config
    state.accumulate = most_of(state.accumulate, state.ranks)
    if not state.ranks.is_first or config.probe:
        return
    try:
        payload = payload_of(state, run.loader.state_dict(), run.facts)
        if save_checkpoint(run.folder, payload, keep=config.keep_checkpoints, score=scored):
            write_weights(run.folder, state, run.loader, config, run.facts)
    except NotWrittenError as error:
        if last:
            raise
        run.log.say(f"{error}; tried again in {config.checkpoint_every} steps")


@torch.no_grad()
def draw(state: TrainState, windows: Batch, run: Run) -> None:
    """Draw predictions of the averaged weights over a batch."""
    if not state.ranks.is_first:
        return
    # No more than is drawn: the plan knows of no forward pass of a whole batch beside training.
    windows = windows.rows(0, -(-MOST_DRAWN // windows.num_frames))
    batch = windows.frames()
    prediction = predict(state.ema, windows, state.dtype)
    sheet = draw_predictions(batch, prediction, run.config.pipeline, run.loader.objects)
    write_picture(run.folder / "pictures" / f"train-{state.step:07d}.png", sheet)
    run.log.picture(state.step, "train", sheet)


def read(state: TrainState, output: StepOutput) -> dict[str, float]:
    """Return what a step did: means over the ranks."""
    terms = output.terms
    named = ["loss", *(f"{kind}/{name}" for kind in ("loss", "seen") for name in terms.names)]
    means = (terms.values.float().mean(1), terms.seen.float().mean(1))
    values = average_(torch.cat([output.loss.float()[None], *means]), state.ranks)
    numbers = dict(zip(named, values.tolist(), strict=True))
    if state.log_variance is not None:
        learned = dict(zip(state.losses.terms, state.log_variance.tolist(), strict=True))
        numbers |= {f"log_variance/{name}": learned[name] for name in terms.names}
    if output.term_norms is not None:
        norms = zip(terms.names, output.term_norms.tolist(), strict=True)
        numbers |= {f"grad_norm/{name}": norm for name, norm in norms}
    return numbers | {"grad_norm": float(output.grad_norm), "lr": float(output.lr)}


def probed(loader: Loader) -> Iterator[Batch]:
    """Yield one batch again and again: what the loop does without data."""
    batch = next(iter(loader))
    while True:
        yield batch
