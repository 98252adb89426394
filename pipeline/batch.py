"""The one batch type: the contract between the pipeline and every trainer.

Shape legend: *b = batch [b], or [b, t] where samples are windows of t frames; h = hands (hand view:
1; other views: slot 0 right, slot 1 left), s = input side in pixels.

"Input" refers to the pixels and the camera that the network sees. A label point satisfies
``p_input = R_input_from_cam @ p_cam`` and projects with ``K``; a pixel satisfies
``x_input = A_input_from_frame @ [x_frame, y_frame, 1]``. Missing values are NaN; readers must
select with the masks before any maths.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.store.reader import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelGroup:
    """Optional labels, needed by some networks: a dataclass of tensors with one row per sample.

    A subclass (``pipeline.labels.{object_slots,contact,joints_2d,world}``) is named in its
    family's row of ``model.families``; then every batch has it: ``ContactLabels.of(batch)``.
    """

    NAME: ClassVar[str]
    """Key in ``Batch.groups``."""
    MASKS: ClassVar[tuple[str, ...]]
    """Its bool fields, False where a sample has no such label."""
    OPTIONAL: ClassVar[bool] = False
    """Loaded only if a store has such labels; networks also work without them."""

    @classmethod
    def is_in(cls, store: "Store") -> bool:
        """Return whether a store has labels of an optional group."""
        return True

    @classmethod
    def load(
        cls, store: "Store", row: Int64[Tensor, " n"], slot: Int64[Tensor, "n h"], first_object: int
    ) -> Self:
        """Load the labels of rows of a store, as recorded, into host memory.

        Args:
            store: The open store.
            row: Row of each sample.
            slot: Hand slots of each sample.
            first_object: Index of the store's first object among those of all stores.
        """
        raise NotImplementedError

    @classmethod
    def blank(cls, shape: tuple[int, ...], num_hands: int, device: torch.device) -> Self:
        """Return empty labels with the shapes and types of real ones."""
        raise NotImplementedError

    @classmethod
    def of(cls, batch: "Batch") -> Self:
        """Return the batch's labels of this group.

        Raises:
            ValueError: If the loader did not load them.
        """
        found = batch.groups.get(cls.NAME)
        if found is None:
            raise ValueError(
                f"this batch has no labels {cls.NAME!r}; give Loader(..., groups=[{cls.__name__}]) "
                "or name them in the family's row of model.families"
            )
        assert isinstance(found, cls)
        return found

    def moved(self, R_input_from_cam: Float[Tensor, "m 3 3"]) -> Self:
        """Apply the crop's rotation and mirror to the labels; by default they are unaffected."""
        return self

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the labels with ``function`` applied to every tensor."""
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def at(self, index: Int64[Tensor, " m"]) -> Self:
        """Return the labels of the samples ``index``."""
        return self.mapped(lambda column: column.index_select(0, index))

    def masked(self, keep: Bool[Tensor, "*b"]) -> Self:
        """Return the labels, marked invalid for samples where ``keep`` is False."""
        masks = {}
        for name in self.MASKS:
            mask = getattr(self, name)
            masks[name] = mask & keep.view(*keep.shape, *[1] * (mask.ndim - keep.ndim))
        return replace(self, **masks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One batch; every field is on the same device."""

    image: Float[Tensor, "*b 3 s s"] | UInt8[Tensor, "*b 3 s s"]
    """RGB, normalised with the mean and deviation in the config; 0..255 as uint8."""
    K: Float[Tensor, "*b 3 3"]
    """Intrinsics of the input pixels; the upper left 2x2 block may be full."""
    A_input_from_frame: Float[Tensor, "*b 2 3"]
    R_input_from_cam: Float[Tensor, "*b 3 3"]
    """Orthogonal; determinant -1 where the sample was mirrored."""
    joints_3d: Float[Tensor, "*b h 21 3"]
    """Input camera frame, metres."""
    joint_valid: Bool[Tensor, "*b h 21"]
    theta_rotmat: Float[Tensor, "*b h 16 3 3"]
    beta: Float[Tensor, "*b h 10"]
    transl: Float[Tensor, "*b h 3"]
    has_joints: Bool[Tensor, "*b h"]
    has_mano: Bool[Tensor, "*b h"]
    has_beta: Bool[Tensor, "*b h"]
    is_right: Bool[Tensor, "*b h"]
    """Side of the hand as recorded; False for a mirrored left hand too."""
    mirrored: Bool[Tensor, "*b"]
    """Whether image and labels were mirrored: the hand looks (and decodes) like the other side."""
    object_id: Int64[Tensor, "*b"]
    """The object that the hands act on, a row of ``Loader.objects``; -1 = none."""
    object_pose: Float[Tensor, "*b 3 4"]
    """[R | t]: input camera frame from the object's, metres; R is a mirror where ``mirrored``."""
    object_arti_rad: Float[Tensor, "*b"]
    """Angle of an articulated object (``model.geometry.articulation``), radians; NaN = rigid."""
    has_object: Bool[Tensor, "*b"]
    joint_set: Int64[Tensor, "*b"]
    """Value of ``model.hand.JointSet``."""
    sample_id: Int64[Tensor, "*b"]
    """Row of the store times two plus the hand slot (hand view), or times two (other views); in a
    mixture plus the index of the store times 2^40. ``Loader.describe`` decodes it."""
    is_real: Bool[Tensor, "*b"]
    """False: padding past the end of a run, which repeats the last frame; no label is valid."""
    groups: Mapping[str, LabelGroup] = field(default_factory=dict)
    """Additional label groups requested from the loader, by ``LabelGroup.NAME``."""

    def __len__(self) -> int:
        """Return the number of samples or windows."""
        return len(self.sample_id)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with ``function`` applied to every tensor, label groups included."""
        columns: dict[str, Any] = {name: function(getattr(self, name)) for name in TENSORS}
        groups = {name: group.mapped(function) for name, group in self.groups.items()}
        return Batch(**columns, groups=groups)

    def rows(self, start: int, stop: int) -> "Batch":
        """Return a slice of the samples or windows."""
        return self.mapped(lambda column: column[start:stop])

    def tensors(self) -> list[Tensor]:
        """Return every tensor, label groups included, in a fixed order."""
        groups = [getattr(g, f.name) for g in self.groups.values() for f in fields(g)]
        return [*(getattr(self, name) for name in TENSORS), *groups]

    @property
    def num_frames(self) -> int:
        """Frames per window; 1 for a batch of single samples."""
        return self.sample_id.shape[1] if self.sample_id.ndim > 1 else 1

    def frames(self) -> "Batch":
        """Return the frames of all windows, flattened to [b * t]; single samples unchanged."""
        if self.sample_id.ndim == 1:
            return self
        return self.mapped(lambda column: column.flatten(0, 1))

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on ``device``."""
        return self.mapped(lambda column: column.to(device))


TENSORS: Final = tuple(f.name for f in fields(Batch) if f.name != "groups")
"""Names of the tensors that every batch has."""


def blank_batch(image: Tensor, num_hands: int, groups: Sequence[type[LabelGroup]] = ()) -> Batch:
    """Return a batch of ``image`` [*b, 3, s, s] without any labels.

    It has the shapes and types of a real one, so a step on it uses as much memory as a real step.
    """
    shape, device = image.shape[:-3], image.device
    hands = (*shape, num_hands)

    def missing(*size: int) -> Tensor:
        return torch.full((*hands, *size), torch.nan, device=device)

    def false(*size: int) -> Tensor:
        return torch.zeros(*size, dtype=torch.bool, device=device)

    eye = torch.eye(3, device=device)
    number = torch.zeros(shape, dtype=torch.int64, device=device)
    return Batch(
        image=image,
        K=eye.expand(*shape, 3, 3),
        A_input_from_frame=eye[:2].expand(*shape, 2, 3),
        R_input_from_cam=eye.expand(*shape, 3, 3),
        joints_3d=missing(21, 3),
        joint_valid=false(*hands, 21),
        theta_rotmat=missing(16, 3, 3),
        beta=missing(10),
        transl=missing(3),
        has_joints=false(*hands),
        has_mano=false(*hands),
        has_beta=false(*hands),
        is_right=~false(*hands),
        mirrored=false(*shape),
        object_id=torch.full_like(number, -1),
        object_pose=torch.full((*shape, 3, 4), torch.nan, device=device),
        object_arti_rad=torch.full(shape, torch.nan, device=device),
        has_object=false(*shape),
        joint_set=number,
        sample_id=number,
        is_real=~false(*shape),
        groups={group.NAME: group.blank(tuple(shape), num_hands, device) for group in groups},
    )
