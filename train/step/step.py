"""One training step: forward, losses, backward, clip, update, EMA. No host sync.

A step whose loss or gradient is not finite changes no weight: the fused optimiser skips it on the
device (``found_inf``), and what went wrong is kept there until the next log point or checkpoint,
which stops the run. A step that runs out of memory is taken again in more parts.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from model.mean_pose import MeanPose
from model.network import Inputs, Network
from model.prediction import Prediction
from pipeline.batch import Batch
from pipeline.labels.objects import ObjectModels
from train.config import RunConfig
from train.device.device import backbone_dtype
from train.device.distributed import (
    ALONE,
    Ranks,
    any_,
    average_,
    has_begun_to_average,
    has_shared_statistics,
    parallel,
    without_averaging,
)
from train.losses.config import Impl, LossConfig
from train.losses.plan import LossPlan, plan_losses
from train.losses.total import LossTerms, total_loss
from train.step.ema import Average, evaluation_copy, follow, update_average
from train.step.fault import Fault, no_fault, note_fault
from train.step.mesh import decode_labels
from train.step.optim import add_parameter, build_optimizer, set_learning_rate
from train.step.out_of_memory import NoMemoryError, more_parts, retried
from train.step.ramp import Ramp, loss_of, ramp_of, set_weights
from train.step.schedule import learning_rate
from train.step.stages import Stage, freeze, frozen_by, trainable_names, training_mode

RECOMPILE_LIMIT: Final = 256
"""Beyond torch's 8, the losses of a sweep's ninth batch size would end it; a network runs eager."""


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Everything that a step changes."""

    model: Network
    net: nn.Module
    """The model as it is called: compiled, and with gradients averaged over ranks."""
    ema: Network
    """The averaged model; what it shares with ``model``, ``train.step.ema`` says."""
    average: Average
    """What of ``ema`` is averaged in this stage."""
    optimizer: torch.optim.AdamW
    total_loss: Callable[..., tuple[Tensor, LossTerms]]
    """As it is called: ``train.losses.total.total_loss``, compiled."""
    family: str
    """Row of ``model.families``, whose loss groups are computed."""
    losses: LossPlan
    ramp: Ramp | None
    """Of the weights in ``losses``, where the stage has one."""
    log_variance: nn.Parameter | None
    """Of each of ``losses.terms``, where the run learns them."""
    objects: ObjectModels | None
    """Behind ``Batch.object_id``."""
    fault: Fault
    dtype: torch.dtype
    """Arithmetic of the backbone."""
    trainable: frozenset[str]
    ranks: Ranks
    clock: Tensor
    """``step`` on the device."""
    accumulate: int
    """Parts of a batch; more than configured once memory has run out."""
    has_stepped: bool = False
    """Whether ``net`` has taken a step since it was wrapped for ranks: in the first one, in which
    the gradients that come are learned, every part has to be averaged."""
    step: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutput:
    """Detached, on the device."""

    loss: Tensor
    terms: LossTerms
    grad_norm: Tensor
    lr: Tensor
    """Of the head."""
    term_norms: Tensor | None = None
    """[t], norm of the gradient of every term; only where debug=true asks for it."""


def build_state(
    model: Network,
    config: RunConfig,
    batch_size: int,
    ranks: Ranks = ALONE,
    objects: ObjectModels | None = None,
) -> TrainState:
    """Return a fresh state at step 0; ``batch_size`` is this rank's, ``objects`` the loader's.

    Raises:
        ValueError: If the model cannot be trained on several ranks; says why.
    """
    device = next(model.parameters()).device
    trainable = trainable_names(model)
    optimizer = build_optimizer(model, config.optim)
    losses = plan_losses(
        config.loss, device, _joints_rest(model), objects, family=config.model.family
    )
    log_variance = None
    if config.loss.uncertainty:
        log_variance = nn.Parameter(torch.zeros(len(losses.terms), device=device))
        add_parameter(optimizer, log_variance, config.optim)
    training_mode(model, ())
    ema = evaluation_copy(model)
    return TrainState(
        model=model,
        net=model,
        ema=ema,
        average=follow(ema, model),
        optimizer=optimizer,
        total_loss=total_loss,
        log_variance=log_variance,
        family=config.model.family,
        losses=losses,
        ramp=None,
        objects=objects,
        fault=no_fault(batch_size * config.pipeline.window.length, device),
        dtype=backbone_dtype(config.precision, device),
        trainable=trainable,
        ranks=ranks,
        clock=torch.zeros((), dtype=torch.int64, device=device),
        accumulate=config.accumulate,
    )


def enter_stage(state: TrainState, stage: Stage, config: RunConfig) -> None:
    """Prepare all that stays the same from step to step of a stage.

    Freezes what the stage freezes, sets the modes of the modules, finds what is averaged, wraps the
    model for ranks and compiler, plans the losses.

    Raises:
        ValueError: If the stage names a module that is not there; lists what there is.
    """
    frozen = frozen_by(state.model, stage)
    freeze(state.model, frozen, state.trainable)
    training_mode(state.model, frozen)
    state.average = follow(state.ema, state.model)
    state.net, state.has_stepped = parallel(state.model, state.ranks), False
    if config.compile and not config.debug and state.clock.device.type == "cuda":
        compile_step(state)
    loss = loss_of(stage)
    if config.debug:
        loss = dataclasses.replace(loss, impl=Impl.eager)
    state.losses = plan_of(state, loss)
    state.ramp = ramp_of(stage, state.losses)
    if state.ramp is not None:
        set_weights(state.ramp, state.step - stage.begin)
    local = stage.pipeline.batch_size // state.ranks.world * stage.pipeline.window.length
    state.fault = no_fault(local, state.clock.device)


def compile_step(state: TrainState) -> None:
    """Compile network and losses, for any number of batch sizes and terms in one process."""
    limits = torch._dynamo.config  # noqa: SLF001 - has no public name
    limits.recompile_limit = max(limits.recompile_limit, RECOMPILE_LIMIT)
    state.net = torch.compile(state.net)  # type: ignore[assignment]
    state.total_loss = torch.compile(total_loss, fullgraph=True, dynamic=False)


def inputs_of(batch: Batch, image: Tensor, num_frames: int = 1) -> Inputs:
    """Return the network's inputs from frames in a row, with ``image`` for the batch's own."""
    return Inputs(
        image=image,
        K=batch.K,
        decode_right=batch.is_right | batch.mirrored[:, None],
        joint_set=batch.joint_set,
        is_right=batch.is_right,
        is_real=batch.is_real,
        object_id=batch.object_id,
        num_frames=num_frames,
    )


def plan_of(state: TrainState, loss: LossConfig) -> LossPlan:
    """Return the plan of these losses for the model and the objects of a run."""
    device, rest = state.clock.device, _joints_rest(state.model)
    return plan_losses(loss, device, rest, state.objects, family=state.family)


def predict(model: nn.Module, windows: Batch, dtype: torch.dtype) -> Prediction:
    """Run the model on a batch: the backbone in ``dtype``, the geometry in float32.

    What is predicted of windows [b, t] are the frames of ``windows.frames()``, [b * t].
    """
    batch = windows.frames()
    lower = dtype is not torch.float32
    with torch.autocast(batch.image.device.type, dtype, enabled=lower):
        fits = lower and batch.image.is_floating_point()
        image = batch.image if fits else batch.image.float()
        prediction: Prediction = model(inputs_of(batch, image, windows.num_frames))
        return prediction


def predict_mean(model: Network, mean: MeanPose, batch: Batch) -> Prediction | None:
    """Return what the untrained network predicts for a batch of single frames; None if unknown."""
    return model.predict_mean(mean, inputs_of(batch, batch.image))


def train_step(state: TrainState, batch: Batch, config: RunConfig, stage: Stage) -> StepOutput:
    """Take one optimiser step and return what happened, without waiting for the device.

    Raises:
        NoMemoryError: If the batch does not fit even in parts of one sample.
    """
    before_step(state, config, stage)
    loss, terms = retried(
        lambda: backward(state, batch), lambda: take_more_parts(state, len(batch))
    )
    output = update(state, batch, config, loss, terms)
    state.step += 1
    return output


def before_step(state: TrainState, config: RunConfig, stage: Stage) -> None:
    """Set what a step reads from the host: learning rates, and weights that are on a ramp."""
    within = state.step - stage.begin
    lr = learning_rate(within, stage.steps, config.optim, peak=stage.lr)
    set_learning_rate(state.optimizer, lr)
    if state.ramp is not None and within < state.ramp.steps + 1:
        set_weights(state.ramp, within)


def device_step(state: TrainState, batch: Batch, config: RunConfig) -> StepOutput:
    """Do a step's work on the device; a CUDA graph of it can be replayed."""
    loss, terms = backward(state, batch)
    return update(state, batch, config, loss, terms)


def backward(state: TrainState, batch: Batch) -> tuple[Tensor, LossTerms]:
    """Add up the gradient of a batch, part by part; return loss and terms of the batch."""
    losses, terms = [], []
    parts = list(parts_of(batch, state.accumulate))
    for number, part in enumerate(parts, start=1):
        silent = number < len(parts) and state.has_stepped
        with without_averaging(state.net) if silent else nullcontext():
            loss, some = losses_of(state, part)
            torch.autograd.backward(loss * (len(part) / len(batch)))
        losses.append(loss.detach() * (len(part) / len(batch)))
        terms.append(some)
    return torch.stack(losses).sum(), merged(terms)


def update(
    state: TrainState, batch: Batch, config: RunConfig, loss: Tensor, terms: LossTerms
) -> StepOutput:
    """Clip the gradient and change the weights by it, and the averaged ones."""
    if state.log_variance is not None and state.log_variance.grad is not None:
        average_(state.log_variance.grad, state.ranks)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.optim.clip_norm)
    bad = any_((~(torch.isfinite(loss) & torch.isfinite(grad_norm))).float(), state.ranks)
    state.optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by fused AdamW
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.model.after_step()
    note_fault(state.fault, bad > 0, terms, batch.sample_id.flatten(), state.clock)
    update_average(state.average, state.clock, config.ema_decay)
    state.clock += 1
    state.has_stepped = True
    lr = state.optimizer.param_groups[-1]["lr"]
    return StepOutput(loss=loss, terms=terms, grad_norm=grad_norm.detach(), lr=lr)


def take_more_parts(state: TrainState, batch_size: int) -> None:
    """Prepare to take a batch of this rank again that the memory did not suffice for.

    Raises:
        NoMemoryError: If there is no other way to take it.
    """
    parts = more_parts(state.accumulate, batch_size, state.step)
    waits = has_shared_statistics(state.model)  # every part of it does
    if state.ranks.world > 1 and (
        not state.has_stepped or waits or has_begun_to_average(state.net)
    ):
        what = "BatchNorm's statistics were shared" if waits else "gradients were being averaged"
        raise NoMemoryError(
            f"rank {state.ranks.rank} ran out of memory in step {state.step} while {what}; give "
            f"the same command with accumulate={parts}: the run goes on from its last checkpoint"
        )
    state.accumulate = parts
    state.optimizer.zero_grad(set_to_none=True)
    if state.clock.is_cuda:
        torch.cuda.empty_cache()


def losses_of(state: TrainState, batch: Batch) -> tuple[Tensor, LossTerms]:
    """Return the scalar to minimise and its terms."""
    return predicted_losses(state, batch)(state.losses)


def predicted_losses(
    state: TrainState, batch: Batch
) -> Callable[[LossPlan], tuple[Tensor, LossTerms]]:
    """Run the network on a batch; return how it is scored by a plan."""
    frames, num_frames = batch.frames(), batch.num_frames
    prediction = predict(state.net, batch, state.dtype)
    mesh = None
    if state.losses.needs_mesh and state.model.mano is not None:
        mesh = decode_labels(state.model.mano, frames)

    def loss_by(plan: LossPlan) -> tuple[Tensor, LossTerms]:
        return state.total_loss(
            prediction, frames, mesh, plan, state.log_variance, num_frames=num_frames
        )

    return loss_by


def _joints_rest(model: Network) -> Tensor | None:
    """Return the rest skeleton of the model's hands [s, 16, 3], None without MANO."""
    return None if model.mano is None else model.mano.joints_rest


def parts_of(batch: Batch, number: int) -> Iterator[Batch]:
    """Yield the batch in ``number`` parts of equal or nearly equal length."""
    if number == 1:
        yield batch
        return
    for rows in torch.arange(len(batch)).tensor_split(number):
        if len(rows):
            yield batch.rows(int(rows[0]), int(rows[-1]) + 1)


def merged(terms: list[LossTerms]) -> LossTerms:
    """Return the terms of a batch from those of its parts."""
    return dataclasses.replace(
        terms[0],
        values=torch.cat([part.values for part in terms], 1),
        seen=torch.cat([part.seen for part in terms], 1),
    )
