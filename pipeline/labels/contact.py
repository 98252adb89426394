"""Contact of each hand's vertices with an object, and the hand-object interaction class.

Shape legend: n = samples, h = hands, 778 = MANO's vertices (indices unchanged by mirroring).
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from pipeline.batch import LabelGroup
from pipeline.labels.interaction import interaction
from pipeline.store.reader import Store
from pipeline.store.schema import CONTACT_FAR, CONTACT_STEP_M, IN_CONTACT_M


@dataclass(frozen=True, kw_only=True, slots=True)
class ContactLabels(LabelGroup):
    """Contact and interaction labels; where ``has_contact`` is False, contact is unknown."""

    NAME: ClassVar[str] = "contact"
    MASKS: ClassVar[tuple[str, ...]] = ("has_contact", "has_interaction")

    dist: UInt8[Tensor, "*b h 778"]
    """Distance to the object's surface in steps of 0.25 mm, rounded up; 255 = over 63.5 mm."""
    slot: Int64[Tensor, "*b h"]
    """Slot of the object of ``dist``, see ``pipeline.labels.object_slots``; -1 = none."""
    has_contact: Bool[Tensor, "*b h"]
    interaction: Int64[Tensor, "*b h"]
    """``pipeline.labels.interaction.Interaction``."""
    has_interaction: Bool[Tensor, "*b h"]

    @classmethod
    def load(
        cls, store: Store, row: Int64[Tensor, " n"], slot: Int64[Tensor, "n h"], first_object: int
    ) -> Self:
        """Return the labels of rows of a store; hands officially out of view have none."""
        r, s = row.numpy()[:, None], slot.numpy()
        kind, is_known = interaction(store, row.numpy())
        in_view = torch.from_numpy(store.label("official_valid")[r, s])
        return cls(
            dist=torch.from_numpy(store.label("contact_dist")[r, s]),
            slot=torch.from_numpy(store.label("contact_object")[r, s]).long(),
            has_contact=torch.from_numpy(store.label("has_contact")[r, s]) & in_view,
            interaction=torch.from_numpy(kind).gather(1, slot),
            has_interaction=torch.from_numpy(is_known).gather(1, slot) & in_view,
        )

    @classmethod
    def blank(cls, shape: tuple[int, ...], num_hands: int, device: torch.device) -> Self:
        """Return labels that are all unknown."""
        hands = (*shape, num_hands)
        number = torch.zeros(hands, dtype=torch.int64, device=device)
        return cls(
            dist=torch.full((*hands, 778), CONTACT_FAR, dtype=torch.uint8, device=device),
            slot=number - 1,
            has_contact=number.bool(),
            interaction=number,
            has_interaction=number.bool(),
        )


def in_contact(dist: UInt8[Tensor, "*b 778"]) -> Bool[Tensor, "*b 778"]:
    """Return which vertices touch: within ``IN_CONTACT_M``, as the store's ``in_contact``."""
    return dist <= round(IN_CONTACT_M / CONTACT_STEP_M)
