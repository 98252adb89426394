"""All objects of a sample, one per store slot, not only the one that the hands act on.

Shape legend: n = samples, 10 = object slots.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from model.geometry.rotation import rotate
from model.hand import NUM_HANDS
from pipeline.batch import LabelGroup
from pipeline.store.reader import Store
from pipeline.store.schema import NUM_OBJECTS


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectSlots(LabelGroup):
    """Poses of all objects of a sample."""

    NAME: ClassVar[str] = "objects"
    MASKS: ClassVar[tuple[str, ...]] = ("has_object",)

    id: Int64[Tensor, "*b 10"]
    """Row of ``Loader.objects``, -1 = empty."""
    pose: Float[Tensor, "*b 10 3 4"]
    """[R | t]: input camera frame from the object's, metres; R is a mirror where mirrored."""
    arti_rad: Float[Tensor, "*b 10"]
    """Angle of an articulated object, ``model.geometry.articulation``; NaN = rigid."""
    has_object: Bool[Tensor, "*b 10"]

    @classmethod
    def load(
        cls, store: Store, row: Int64[Tensor, " n"], slot: Int64[Tensor, "n h"], first_object: int
    ) -> Self:
        """Load the labels of rows of a store; objects officially out of view have none."""
        rows = row.numpy()
        number = torch.from_numpy(store.label("object_id")[rows]).long()
        has_object = torch.from_numpy(store.label("has_object")[rows])
        in_view = torch.from_numpy(store.label("official_valid")[rows, NUM_HANDS])
        return cls(
            id=torch.where(number >= 0, number + first_object, -1),
            pose=torch.from_numpy(store.label("object_pose")[rows]),
            arti_rad=torch.from_numpy(store.label("object_arti_rad")[rows]),
            has_object=has_object & in_view[:, None],
        )

    @classmethod
    def blank(cls, shape: tuple[int, ...], num_hands: int, device: torch.device) -> Self:
        """Return empty slots."""
        number = torch.full((*shape, NUM_OBJECTS), -1, dtype=torch.int64, device=device)
        return cls(
            id=number,
            pose=torch.full((*number.shape, 3, 4), torch.nan, device=device),
            arti_rad=torch.full(number.shape, torch.nan, device=device),
            has_object=number >= 0,
        )

    def moved(self, R_input_from_cam: Float[Tensor, "m 3 3"]) -> Self:
        """Apply the crop's rotation and mirror to the poses."""
        R = R_input_from_cam[:, None].expand(-1, NUM_OBJECTS, 3, 3).double()
        return replace(self, pose=rotate(R, self.pose.double().mT).mT.to(self.pose.dtype))
