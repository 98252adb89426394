"""``debug=true``: a slow training step that says where a value stops being finite.

    step = DebugStep(run.folder, run.loader)
    output = step(state, batch, config, stage)      # as train.step.step.train_step

The weights come out as from ``train_step``: what is looked at beside it changes nothing.
"""

import dataclasses
import io
from pathlib import Path
from typing import Final, NoReturn

import torch
from torch import Tensor, nn

from pipeline.app.files import replace_file
from pipeline.app.words import sentence
from pipeline.batch import TENSORS, Batch
from pipeline.loader import Loader
from train.config import RunConfig
from train.losses.config import Impl
from train.losses.plan import LossPlan
from train.losses.total import LossTerms
from train.step.fault import DivergedError
from train.step.out_of_memory import retried
from train.step.ramp import weighted, weights_at
from train.step.stages import Stage
from train.step.step import (
    StepOutput,
    TrainState,
    before_step,
    merged,
    parts_of,
    plan_of,
    predicted_losses,
    take_more_parts,
    update,
)

FOLDER: Final = "debug"
_SHOWN: Final = 8


class DebugStep:
    """``train_step`` on one process, eager, that looks at every loss term and its gradient."""

    def __init__(self, folder: Path, loader: Loader) -> None:
        self._folder, self._loader = folder / FOLDER, loader
        self._stage: Stage | None = None
        self._plans: dict[str, LossPlan] = {}

    def __call__(
        self, state: TrainState, batch: Batch, config: RunConfig, stage: Stage
    ) -> StepOutput:
        """Take one optimiser step.

        Raises:
            DivergedError: At the first loss or gradient that is not finite; the batch is written
                first. Names step, term and samples.
        """
        if stage is not self._stage:
            self._stage, self._plans = stage, {}
        before_step(state, config, stage)
        loss, terms, norms = retried(
            lambda: self._backward(state, batch, stage), lambda: take_more_parts(state, len(batch))
        )
        output = update(state, batch, config, loss, terms)
        state.step += 1
        return dataclasses.replace(output, term_norms=norms)

    def _backward(
        self, state: TrainState, batch: Batch, stage: Stage
    ) -> tuple[Tensor, LossTerms, Tensor]:
        """Add up the gradient as ``train.step.step.backward``; return the terms' norms as well."""
        weights = weights_at(stage, state.step)
        of_terms: dict[str, list[Tensor]] = {}
        losses, terms = [], []
        with torch.autograd.set_detect_anomaly(mode=True, check_nan=True):
            for part in parts_of(batch, state.accumulate):
                share = len(part) / len(batch)
                loss_by = predicted_losses(state, part)
                loss, some = loss_by(state.losses)
                self._require_finite_terms(state, batch, part, some)
                for name in some.names:
                    plan = self._plan(state, stage, name)
                    gradient = self._gradient(state, batch, part, name, loss_by(plan)[0], plan)
                    torch._foreach_mul_(gradient, share * weights[name])
                    if name in of_terms:
                        torch._foreach_add_(gradient, of_terms[name])
                    of_terms[name] = gradient
                torch.autograd.backward(loss * share)
                losses.append(loss.detach() * share)
                terms.append(some)
        norms = [nn.utils.get_total_norm(of_terms[name]) for name in terms[0].names]
        return torch.stack(losses).sum(), merged(terms), torch.stack(norms)

    def _plan(self, state: TrainState, stage: Stage, name: str) -> LossPlan:
        """Return the plan of one term alone, with weight 1."""
        if name not in self._plans:
            alone = {term: float(term == name) for term in state.losses.terms}
            loss = dataclasses.replace(weighted(stage.loss, alone), impl=Impl.eager)
            self._plans[name] = plan_of(state, loss)
        return self._plans[name]

    def _require_finite_terms(
        self, state: TrainState, batch: Batch, part: Batch, terms: LossTerms
    ) -> None:
        is_bad = ~torch.isfinite(terms.values)
        if not is_bad.any():
            return
        names = [n for n, row in zip(terms.names, is_bad, strict=True) if row.any()]
        ids = part.sample_id.flatten()[is_bad.any(0)].tolist()
        self._stop(state, batch, f"the loss is not finite in {', '.join(names)}", ids)

    def _gradient(
        self, state: TrainState, batch: Batch, part: Batch, name: str, loss: Tensor, plan: LossPlan
    ) -> list[Tensor]:
        """Return the gradient of one term, after having seen that it is finite."""
        gradient, why = gradient_of(loss, state.model)
        if why:
            ids = []
            for one in parts_of(part, len(part)):
                alone, _ = predicted_losses(state, one)(plan)
                if gradient_of(alone, state.model)[1]:
                    ids += one.sample_id.flatten().tolist()
            self._stop(state, batch, f"the gradient of {name} is not finite ({why})", ids)
        return gradient

    def _stop(self, state: TrainState, batch: Batch, what: str, ids: list[int]) -> NoReturn:
        """Write the batch and end the run.

        Raises:
            DivergedError: Always.
        """
        path = self._folder / f"batch-{state.step:07d}.pt"
        content = io.BytesIO()
        torch.save({name: getattr(batch, name).cpu() for name in TENSORS}, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content.getbuffer())
            kept = f"is in {path}: torch.load gives the fields of pipeline.batch.Batch by name"
        except OSError as error:
            kept = f"was not written: {sentence(error)}"
        named = f"samples {ids[:_SHOWN]}" if ids else "no sample alone"
        if ids:
            named += f" (first: {self._loader.describe(ids[0])})"
        raise DivergedError(
            f"debug: in step {state.step} {what}, of {named}; no weight was changed by it. "
            f"The batch {kept}"
        )


def gradient_of(loss: Tensor, model: nn.Module) -> tuple[list[Tensor], str]:
    """Return a loss's gradient for all that is trained, and why it is not finite, if it is not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not loss.requires_grad:
        return [torch.zeros_like(parameter) for parameter in trained], ""
    try:
        found = torch.autograd.grad(
            loss, trained, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of anomaly detection
        if "returned nan values" not in str(error):
            raise
        return [], sentence(error).rstrip(".")
    is_finite = all(bool(torch.isfinite(one).all()) for one in found)
    return list(found), "" if is_finite else "it overflows"
