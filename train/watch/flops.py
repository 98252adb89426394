"""How much arithmetic a training step takes, and how much the device could do."""

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
"""Dense bf16 with float32 sums, by the whole name of the device. Vendor's figures (NVIDIA's data
sheets and whitepapers), which no matrix product reaches: 788 of 989 were measured on an H200."""


def peak_tflops(name: str) -> float | None:
    """Return the dense bf16 peak of a device; None where it is not known, as for a part (MIG)."""
    return next((peak for known, peak in PEAK_TFLOPS.items() if re.fullmatch(known, name)), None)


class FlopCount:
    """Operations per sample, counted once on one blank sample with ``model`` as it is.

    The model must be in evaluation, as the averaged weights are: then its forward, without
    gradients, changes nothing and draws nothing. Only matrix products, convolutions and attention
    count, 2 for a multiply and add.
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
        """Return forward and backward of one sample of ``model``, the same network in training.

        The backward of a part takes twice its forward; of a part with all parameters frozen
        nothing, which is right below the trained parts and half of the truth above them.
        Recomputed activations do not count: they are no useful work.
        """
        return self._of(model, self._root)

    def _of(self, module: nn.Module, path: str) -> float:
        own = float(self._counts.get(path, 0))
        parameters = list(module.parameters())
        if not own or (parameters and not any(p.requires_grad for p in parameters)):
            return own
        inside = {f"{path}.{name}": child for name, child in module.named_children()}
        rest = own - sum(self._counts.get(name, 0) for name in inside)
        return 3 * rest + sum(self._of(child, name) for name, child in inside.items())
