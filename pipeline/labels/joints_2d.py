"""Annotated pixels of joints, for hands without 3D labels or beside them.

Shape legend: n = samples, h = hands.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from model.geometry.rotation import rotate
from model.hand import NUM_JOINTS
from pipeline.batch import LabelGroup
from pipeline.store.reader import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Joints2DLabels(LabelGroup):
    """The joints' viewing rays: points at depth 1, which move and project as joints_3d do.

    ``Batch.K`` projects a ray to the annotated pixel of the input, whatever K assumes.
    """

    NAME: ClassVar[str] = "joints_2d"
    MASKS: ClassVar[tuple[str, ...]] = ("valid",)
    OPTIONAL: ClassVar[bool] = True

    ray: Float[Tensor, "*b h 21 3"]
    """Input camera frame, z = 1."""
    valid: Bool[Tensor, "*b h 21"]

    @classmethod
    def is_in(cls, store: Store) -> bool:
        """Return whether the store has annotated pixels."""
        return store.has_label("joints_2d")

    @classmethod
    def load(
        cls, store: Store, row: Int64[Tensor, " n"], slot: Int64[Tensor, "n h"], first_object: int
    ) -> Self:
        """Return the labels of rows of a store; all invalid if it has none."""
        if not cls.is_in(store):
            return cls.blank((len(row),), slot.shape[1], row.device)
        r, s = row.numpy()[:, None], slot.numpy()
        pixels = store.label("joints_2d")[r, s].astype(np.float64)
        K = store.label("K")[row.numpy()].astype(np.float64)
        K = np.where(np.isfinite(K).all((-1, -2), keepdims=True), K, np.eye(3))
        points = np.concatenate((pixels, np.ones((*pixels.shape[:-1], 1))), -1)
        ray = np.einsum("nij,nhkj->nhki", np.linalg.inv(K), points)
        in_view = store.label("official_valid")[r, s]
        return cls(
            ray=torch.from_numpy(ray.astype(np.float32)),
            valid=torch.from_numpy(np.isfinite(ray).all(-1) & in_view[..., None]),
        )

    @classmethod
    def blank(cls, shape: tuple[int, ...], num_hands: int, device: torch.device) -> Self:
        """Return labels that are all invalid."""
        joints = (*shape, num_hands, NUM_JOINTS)
        return cls(
            ray=torch.full((*joints, 3), torch.nan, device=device),
            valid=torch.zeros(joints, dtype=torch.bool, device=device),
        )

    def moved(self, R_input_from_cam: Float[Tensor, "m 3 3"]) -> Self:
        """Apply the crop's rotation about the optical axis and its mirror."""
        R = R_input_from_cam.double()[:, None].expand(-1, self.ray.shape[1], 3, 3)
        return replace(self, ray=rotate(R, self.ray.double()).to(self.ray.dtype))
