"""Contact of hand vertices: precision, recall and F1.

A vertex is predicted to be in contact where its probability is strictly above the threshold.
``precision``, ``recall`` and ``f1`` are micro-averaged over all vertices of all hands;
``per_hand_f1`` is the mean over the hands that have a true or a predicted contact. A ratio without
a denominator is 0. Vertices that are not valid are ignored.

Shape legend: b = hands, v = vertices.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from train.evaluate.metrics.errors import require_shape


@dataclass(frozen=True, kw_only=True, slots=True)
class ContactScores:
    """Scores of the vertices predicted to be in contact."""

    num_hands: int
    """Hands with a valid vertex."""
    num_contacts: int
    """True contacts: vertices, over all hands."""
    precision: float
    recall: float
    f1: float
    per_hand_f1: float | None
    """None where no hand has a true or a predicted contact."""


@dataclass(kw_only=True, slots=True)
class ContactSums:
    """State of ``ContactAccumulator``: plain sums."""

    num_hands: int = 0
    num_hands_f1: int = 0
    hand_f1: float = 0.0
    num_hits: int = 0
    num_predicted: int = 0
    num_contacts: int = 0


@dataclass(kw_only=True, slots=True)
class ContactAccumulator:
    """Scores of a stream of batches; the same numbers as all hands at once."""

    threshold: float = 0.5
    sums: ContactSums = field(default_factory=ContactSums)

    def update(
        self,
        probability: Float[Tensor, "b v"] | Bool[Tensor, "b v"],
        contact: Bool[Tensor, "b v"],
        valid: Bool[Tensor, "b v"],
    ) -> None:
        """Add a batch of hands. Waits for the device.

        Args:
            probability: Contact probability in [0, 1], or the decision; arbitrary if not valid.
            contact: True contact.
            valid: Vertices to score.

        Raises:
            ValueError: If a shape differs or a scored probability is not in [0, 1].
        """
        require_shape("contact", contact, *probability.shape)
        require_shape("valid", valid, *probability.shape)
        probability = probability.double()
        num_bad = int((valid & ~((probability >= 0) & (probability <= 1))).sum())
        if num_bad:
            raise ValueError(
                f"probability must be in [0, 1]; {num_bad} of {int(valid.sum())} scored vertices "
                f"are not (logits need a sigmoid)"
            )
        predicted, contact = (probability > self.threshold) & valid, contact & valid
        num_hits = (predicted & contact).sum(1)
        num_predicted, num_contacts = predicted.sum(1), contact.sum(1)
        total = num_predicted + num_contacts
        sums = self.sums
        sums.num_hands += int(valid.any(1).sum())
        sums.num_hands_f1 += int((total > 0).sum())
        sums.hand_f1 += float(_f1(num_hits, total).sum())
        sums.num_hits += int(num_hits.sum())
        sums.num_predicted += int(num_predicted.sum())
        sums.num_contacts += int(num_contacts.sum())

    def summary(self) -> ContactScores:
        """Return the scores of everything added so far.

        Raises:
            ValueError: If no hand with a valid vertex was added.
        """
        sums = self.sums
        if sums.num_hands == 0:
            raise ValueError("no hand was scored: there was none, or none with a valid vertex")
        total = sums.num_predicted + sums.num_contacts
        return ContactScores(
            num_hands=sums.num_hands,
            num_contacts=sums.num_contacts,
            precision=sums.num_hits / max(1, sums.num_predicted),
            recall=sums.num_hits / max(1, sums.num_contacts),
            f1=2 * sums.num_hits / max(1, total),
            per_hand_f1=sums.hand_f1 / sums.num_hands_f1 if sums.num_hands_f1 else None,
        )


def contact_from_distance(
    distance_mm: Float[Tensor, "*b"], threshold_mm: float
) -> Bool[Tensor, "*b"]:
    """Return the points no farther than the threshold, both in millimetres; NaN is no contact."""
    return distance_mm.double() <= threshold_mm


def _f1(num_hits: Int64[Tensor, " b"], total: Int64[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """Return F1 from the hits and the sum of predicted and true contacts; 0 where that sum is 0."""
    return 2 * num_hits.double() / torch.clamp(total, min=1)
