"""FLOPs of a training step, and peak FLOP/s of the device."""

import re
from typing import Final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.batch import blank_batch
from train.step.step import predict

PEAK_TFLOPS: Final = {
    r"NVIDIA H200": 989.0,
    r"NVIDIA H100 80GB HBM3": 989.0,
    r"NVIDIA H100 PCIe": 756.0,
    r"NVIDIA A100(-SXM4-[48]0GB|-PCIE-40GB| 80GB PCIe)": 312.0,
    r"NVIDIA L40S": 362.0,
    r"NVIDIA GeForce RTX 4090": 165.0,
    r"NVIDIA GeForce RTX 3090": 71.0,
}
"""Peak dense bf16 TFLOP/s with float32 accumulation, by full device name. Vendor figures (NVIDIA
data sheets and whitepapers), which no matmul reaches: 788 of 989 were measured on an H200."""


def peak_tflops(name: str) -> float | None:
    """Return the dense bf16 peak of a device; None where unknown, as for a MIG slice."""
    return next((peak for known, peak in PEAK_TFLOPS.items() if re.fullmatch(known, name)), None)


class FlopCount:
    """FLOPs per sample, counted once on one blank sample with ``model`` as it is.

    The model must be in evaluation mode, as the averaged weights are: its forward, without
    gradients, then changes no state and no random generator. Only matrix products, convolutions
    and attention count, 2 per multiply-add.
    """

    def __init__(self, model: nn.Module, input_px: int, num_hands: int = 1) -> None:
        assert not model.training
        parameter = next(model.parameters())
        image = torch.zeros((1, 3, input_px, input_px), device=parameter.device)
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),  # the CPU's fused attention is not counted
            FlopCounterMode(display=False) as counter,
        ):
            predict(model, blank_batch(image, num_hands=num_hands), torch.float32)
        self._root = type(model).__name__
        self._counts: dict[str, int] = {
            path: sum(by_operation.values())
            for path, by_operation in counter.get_flop_counts().items()
        }

    def of_a_step(self, model: nn.Module) -> float:
        """Return the FLOPs of forward and backward of one sample; ``model`` is in training mode.

        The backward of a module costs twice its forward, and nothing if all its parameters are
        frozen, which is exact below the trained modules and half the true cost above them.
        Recomputed activations do not count: they are not useful work.
        """
        return self._of(model, self._root)

    def _of(self, module: nn.Module, path: str) -> float:
        own = self._forward(module, path)
        parameters = list(module.parameters())
        if not own or (parameters and not any(p.requires_grad for p in parameters)):
            return own
        inside = {f"{path}.{name}": child for name, child in module.named_children()}
        rest = own - sum(self._forward(child, name) for name, child in inside.items())
        return 3 * rest + sum(self._of(child, name) for name, child in inside.items())

    def _forward(self, module: nn.Module, path: str) -> float:
        """Return the FLOPs of a module's forward; where it is not called itself, of its parts."""
        if path in self._counts:
            return float(self._counts[path])
        inside = module.named_children()
        return sum(self._forward(child, f"{path}.{name}") for name, child in inside)
