"""Label group of the toy family."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline.batch import LabelGroup
from pipeline.store.reader import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Apertures(LabelGroup):
    NAME: ClassVar[str] = "apertures"
    MASKS: ClassVar[tuple[str, ...]] = ("has_aperture",)

    aperture_m: Float[Tensor, "*b h"]
    has_aperture: Bool[Tensor, "*b h"]

    @classmethod
    def load(
        cls, store: Store, row: Int64[Tensor, " n"], slot: Int64[Tensor, "n h"], first_object: int
    ) -> Self:
        found = torch.from_numpy(store.label("aperture_m")[row.numpy()[:, None], slot.numpy()])
        return cls(aperture_m=found, has_aperture=found.isfinite())

    @classmethod
    def blank(cls, shape: tuple[int, ...], num_hands: int, device: torch.device) -> Self:
        missing = torch.full((*shape, num_hands), torch.nan, device=device)
        return cls(aperture_m=missing, has_aperture=missing.isfinite())
