"""Camera pose of a sample in the world frame of its sequence.

Shape legend: n = samples.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline.batch import LabelGroup
from pipeline.store.reader import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldLabels(LabelGroup):
    """Camera poses in the world frame."""

    NAME: ClassVar[str] = "world"
    MASKS: ClassVar[tuple[str, ...]] = ("has_world",)

    T_world_from_input: Float[Tensor, "*b 3 4"]
    """[R | t], metres. R of a mirrored sample has determinant -1, but frame-to-frame motion in a
    window stays proper, since all of its frames are mirrored."""
    has_world: Bool[Tensor, "*b"]

    @classmethod
    def load(
        cls, store: Store, row: Int64[Tensor, " n"], slot: Int64[Tensor, "n h"], first_object: int
    ) -> Self:
        """Load the labels of rows of a store."""
        return cls(
            T_world_from_input=torch.from_numpy(store.label("T_world_from_cam")[row.numpy(), :3]),
            has_world=torch.from_numpy(store.label("has_world")[row.numpy()]),
        )

    @classmethod
    def blank(cls, shape: tuple[int, ...], num_hands: int, device: torch.device) -> Self:
        """Return unknown camera poses."""
        return cls(
            T_world_from_input=torch.full((*shape, 3, 4), torch.nan, device=device),
            has_world=torch.zeros(shape, dtype=torch.bool, device=device),
        )

    def moved(self, R_input_from_cam: Float[Tensor, "m 3 3"]) -> Self:
        """Apply the crop's rotation and mirror: ``T_world_from_cam @ R_input_from_cam^T``."""
        T = self.T_world_from_input.double()
        turned = torch.cat((T[..., :3] @ R_input_from_cam.double().mT, T[..., 3:]), -1)
        return replace(self, T_world_from_input=turned.to(self.T_world_from_input.dtype))
