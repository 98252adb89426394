"""One training step: forward, losses, backward, clip, update, EMA. No host sync.

A step whose loss or gradient is not finite changes no weight: the fused optimiser skips it on the
device (``found_inf``), and what went wrong is kept there until the next log point or checkpoint,
which stops the run.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.mano import ManoLayer
from model.mano_regressor import ManoRegressor
from model.prediction import HandPrediction
from pipeline.batch import Batch
from train.config import RunConfig
from train.device import backbone_dtype
from train.losses.total import LossTerms, MeshTarget, total_loss
from train.optim import build_optimizer, learning_rate, set_learning_rate, update_ema


@dataclass(kw_only=True, slots=True)
class Fault:
    """The first bad step since the last log point, on the device."""

    count: Tensor
    step: Tensor
    sample_id: Tensor
    """Samples of that batch with a non-finite loss term first; -1 where the sample is fine."""


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Everything that a step changes."""

    model: ManoRegressor
    ema: nn.Module
    optimizer: torch.optim.AdamW
    fault: Fault
    dtype: torch.dtype
    """Arithmetic of the backbone."""
    step: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutput:
    """Detached, on the device."""

    loss: Tensor
    terms: LossTerms
    grad_norm: Tensor
    lr: float


def build_state(model: ManoRegressor, config: RunConfig, batch_size: int) -> TrainState:
    """Return a fresh state at step 0."""
    device = next(model.parameters()).device
    ema = copy.deepcopy(model).requires_grad_(requires_grad=False).eval()
    fault = Fault(
        count=torch.zeros((), dtype=torch.int64, device=device),
        step=torch.full((), -1, dtype=torch.int64, device=device),
        sample_id=torch.full((batch_size,), -1, dtype=torch.int64, device=device),
    )
    optimizer = build_optimizer(model, config.optim)
    dtype = backbone_dtype(config.precision, device)
    return TrainState(model=model, ema=ema, optimizer=optimizer, fault=fault, dtype=dtype)


def predict(model: nn.Module, batch: Batch, dtype: torch.dtype) -> HandPrediction:
    """Run the model on a batch: the backbone in ``dtype``, the geometry in float32."""
    lower = dtype is not torch.float32
    with torch.autocast(batch.image.device.type, dtype, enabled=lower):
        is_right = batch.is_right[:, 0]
        decode_right = is_right | batch.mirrored
        image = batch.image if lower else batch.image.float()
        prediction: HandPrediction = model(image, batch.K, decode_right, batch.joint_set, is_right)
        return prediction


@torch.no_grad()
def decode_hands(mano: ManoLayer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the labels' vertices [b, h, 778, 3] and posed skeleton [b, h, 16, 3], metres.

    Rows without MANO hold the rest hand.
    """
    known = batch.has_mano & batch.has_beta  # [b, h]
    identity = torch.eye(3, device=known.device)
    theta = torch.where(known[..., None, None, None], batch.theta_rotmat, identity)
    beta = batch.beta.where(known[..., None], 0.0)
    transl = batch.transl.where(known[..., None], 0.0)
    right = batch.is_right | batch.mirrored[:, None]
    vertices, skeleton = mano(
        theta.flatten(0, 1), beta.flatten(0, 1), transl.flatten(0, 1), right.flatten(0, 1)
    )
    return vertices.unflatten(0, known.shape), skeleton.unflatten(0, known.shape)


def decode_labels(mano: ManoLayer, batch: Batch) -> MeshTarget:
    """Return the ground-truth mesh of the batch; rows without MANO hold the rest hand."""
    vertices, _ = decode_hands(mano, batch)
    return MeshTarget(vertices=vertices)


def train_step(state: TrainState, batch: Batch, config: RunConfig) -> StepOutput:
    """Take one optimiser step and return what happened, without waiting for the device."""
    lr = learning_rate(state.step, config.steps, config.optim)
    set_learning_rate(state.optimizer, lr)
    state.model.train()
    prediction = predict(state.model, batch, state.dtype)
    mesh = None
    if prediction.vertices is not None:
        mesh = decode_labels(state.model.mano, batch)
    loss, terms = total_loss(prediction, batch, mesh, config.loss)
    torch.autograd.backward(loss)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.optim.clip_norm)
    bad = ~(torch.isfinite(loss.detach()) & torch.isfinite(grad_norm))
    state.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # read by fused AdamW
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    _note_fault(state, terms.finite, batch, bad)
    update_ema(state.ema, state.model, state.step, config.ema_decay)
    state.step += 1
    return StepOutput(loss=loss.detach(), terms=terms, grad_norm=grad_norm.detach(), lr=lr)


@torch.no_grad()
def _note_fault(state: TrainState, finite: Tensor, batch: Batch, bad: Tensor) -> None:
    """Keep step and samples of the first bad step; ``finite`` [b] says which samples are fine."""
    fault = state.fault
    first = bad & (fault.count == 0)
    ids = torch.where(finite, -1, batch.sample_id)
    fault.sample_id.copy_(torch.where(first, ids, fault.sample_id))
    fault.step.copy_(torch.where(first, state.step, fault.step))
    fault.count.add_(bad)
