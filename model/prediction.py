"""What a network returns, shared by all model families.

Shape legend: b = batch, h = hands (slot 0 right, slot 1 left; a single-hand crop has h = 1).
Everything is in the camera frame of the input pixels, metres, OpenCV axes. A part a family does
not predict is None.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class HandPrediction:
    """Hands of one batch."""

    joints_3d: Float[Tensor, "b h 21 3"]
    """Standard order, in the joint set that the batch asked for."""
    vertices: Float[Tensor, "b h 778 3"] | None = None
    theta_rotmat: Float[Tensor, "b h 16 3 3"] | None = None
    """MANO pose, absolute: root, then 15 finger joints."""
    theta_rot6d: Float[Tensor, "b h 16 6"] | None = None
    """The same as the network gives it, ``[a1 | a2]`` before Gram-Schmidt."""
    beta: Float[Tensor, "b h 10"] | None = None
    transl: Float[Tensor, "b h 3"] | None = None
    """MANO translation in smplx's meaning: ``joint0 = J0(beta) + transl``."""
    confidence: Float[Tensor, "b h"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectPrediction:
    """The object that the hands act on: ``p_cam = rotmat @ p_object + transl``."""

    rotmat: Float[Tensor, "b 3 3"]
    rot6d: Float[Tensor, "b 6"]
    """The same as the network gives it, ``[a1 | a2]`` before Gram-Schmidt."""
    transl: Float[Tensor, "b 3"]
    arti_rad: Float[Tensor, " b"]
    """Angle of its moving part, ``model.geometry.articulation``; of a rigid object anything."""


Part = TypeVar("Part", HandPrediction, ObjectPrediction)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a network says of one batch."""

    hands: HandPrediction
    object: ObjectPrediction | None = None


def prediction_at(prediction: Prediction, index: Int64[Tensor, " k"]) -> Prediction:
    """Return what is said of the images ``index``."""

    def at(part: Part) -> Part:
        values = {f.name: getattr(part, f.name) for f in fields(part)}
        kept: Any = {name: None if v is None else v[index] for name, v in values.items()}
        return replace(part, **kept)

    obj = prediction.object
    return Prediction(hands=at(prediction.hands), object=None if obj is None else at(obj))
