"""The whole step as one CUDA graph: forward, losses, backward, clip, update and EMA in one launch.

    step = GraphedStep(loader)
    output = step(state, batch, config, stage)      # as train.step.step.train_step

A replay repeats what was captured on the same memory: the loader writes batches there, others are
copied there first, and what changes from step to step (learning rates, the step's number) lies on
the device.
"""

from typing import Final

import torch

from pipeline.batch import Batch
from pipeline.labels.outputs import copy_columns
from pipeline.loader import Loader
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

    It is captured again with more parts of the batch where memory runs out. All its steps, the
    eager ones too, read the batch from one place: what is compiled is compiled for that memory
    before the capture, in which nothing can be compiled.

    Args:
        loader: Of the batches; it is told to write them where the graph reads them. Without it they
            are copied there.
    """

    def __init__(self, loader: Loader | None = None) -> None:
        self._loader = loader
        self._stage: Stage | None = None
        self._warm = 0
        self._accumulate = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._output: StepOutput | None = None
        self._side: torch.cuda.Stream | None = None
        """Of the eager steps and the capture: one, for each stream has memory of its own."""

    def __call__(
        self, state: TrainState, batch: Batch, config: RunConfig, stage: Stage
    ) -> StepOutput:
        """Take one optimiser step; the output is overwritten by the next one."""
        if stage is not self._stage:
            self._stage, self._warm = stage, 0
            self._forget()
            self._batch = batch.mapped(torch.Tensor.clone)
            if self._loader is not None:
                self._loader.write_into(self._batch)
        assert self._batch is not None
        copy_columns(batch.tensors(), self._batch.tensors())
        return retried(
            lambda: self._step(state, config, stage),
            lambda: take_more_parts(state, len(batch)),
        )

    def _step(self, state: TrainState, config: RunConfig, stage: Stage) -> StepOutput:
        assert self._batch is not None
        if state.accumulate != self._accumulate:
            self._accumulate, self._warm = state.accumulate, 0
            self._forget()
        if self._warm < WARM_STEPS:
            self._warm += 1
            return self._on_the_side(state, self._batch, config, stage)
        before_step(state, config, stage)
        if self._graph is None:
            self._capture(state, self._batch, config)
        assert self._graph is not None
        assert self._output is not None
        self._graph.replay()
        state.step += 1
        return self._output

    def _on_the_side(
        self, state: TrainState, batch: Batch, config: RunConfig, stage: Stage
    ) -> StepOutput:
        """Take an eager step on another stream, as a capture later does."""
        device = state.clock.device
        here, side = torch.cuda.current_stream(device), self._stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            output = train_step(state, batch, config, stage)
        here.wait_stream(side)
        return output

    def _forget(self) -> None:
        self._graph = self._output = None

    def _capture(self, state: TrainState, batch: Batch, config: RunConfig) -> None:
        device = state.clock.device
        state.optimizer.zero_grad(set_to_none=True)  # gradients get memory of the graph
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        # Decoder threads allocate and wait meanwhile: only calls of this thread are captured.
        with torch.cuda.graph(
            graph, stream=self._stream(device), capture_error_mode="thread_local"
        ):
            self._output = device_step(state, batch, config)
        self._graph = graph

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if self._side is None:
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._side
