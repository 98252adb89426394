"""The whole step as one CUDA graph: forward, losses, backward, clip, update and EMA in one launch.

    step = GraphedStep()
    output = step(state, batch, config, stage)      # as train.step.step.train_step

A replay repeats what was captured on the same memory: the batch is copied there first, and what
changes from step to step (learning rates, the step's number) lies on the device.
"""

from typing import Final

import torch

from pipeline.batch import Batch
from train.config import RunConfig
from train.step.out_of_memory import retried
from train.step.stages import Stage
from train.step.step import (
    StepOutput,
    TrainState,
    before_step,
    device_step,
    take_more_parts,
    train_step,
)

WARM_STEPS: Final = 3
"""Eager steps before the capture: they make the optimiser's state and choose algorithms."""


class GraphedStep:
    """``train_step``, captured once per stage after a few eager steps.

    It is captured again with more parts of the batch where memory runs out.
    """

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._warm = 0
        self._accumulate = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._output: StepOutput | None = None

    def __call__(
        self, state: TrainState, batch: Batch, config: RunConfig, stage: Stage
    ) -> StepOutput:
        """Take one optimiser step; the output is overwritten by the next one."""
        return retried(
            lambda: self._step(state, batch, config, stage),
            lambda: take_more_parts(state, len(batch)),
        )

    def _step(self, state: TrainState, batch: Batch, config: RunConfig, stage: Stage) -> StepOutput:
        if stage is not self._stage or state.accumulate != self._accumulate:
            self._stage, self._accumulate, self._warm = stage, state.accumulate, 0
            self._forget()
        if self._warm < WARM_STEPS:
            self._warm += 1
            return self._on_the_side(state, batch, config, stage)
        before_step(state, config, stage)
        if self._graph is None:
            self._capture(state, batch, config)
        assert self._graph is not None
        assert self._batch is not None
        assert self._output is not None
        for static, new in zip(self._batch.tensors(), batch.tensors(), strict=True):
            static.copy_(new)
        self._graph.replay()
        state.step += 1
        return self._output

    def _on_the_side(
        self, state: TrainState, batch: Batch, config: RunConfig, stage: Stage
    ) -> StepOutput:
        """Take an eager step on another stream, as a capture later does."""
        device = state.clock.device
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            output = train_step(state, batch, config, stage)
        here.wait_stream(side)
        return output

    def _forget(self) -> None:
        self._graph = self._batch = self._output = None

    def _capture(self, state: TrainState, batch: Batch, config: RunConfig) -> None:
        self._batch = batch.mapped(torch.Tensor.clone)
        state.optimizer.zero_grad(set_to_none=True)  # gradients get memory of the graph
        torch.cuda.synchronize(state.clock.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = device_step(state, self._batch, config)
        self._graph = graph
