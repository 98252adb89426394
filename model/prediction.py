"""Network outputs, shared by all model families.

Shape legend: b = batch, h = hands (slot 0 right, slot 1 left; a single-hand crop has h = 1).
Everything is in the camera frame of the input pixels, metres, OpenCV axes. Parts that a family
does not predict are None.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Final, TypeVar

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class HandPrediction:
    """Predicted hands of one batch."""

    joints_3d: Float[Tensor, "b h 21 3"]
    """Standard order, in the joint convention of the batch."""
    vertices: Float[Tensor, "b h 778 3"] | None = None
    theta_rotmat: Float[Tensor, "b h 16 3 3"] | None = None
    """MANO pose, absolute: root, then 15 finger joints."""
    theta_rot6d: Float[Tensor, "b h 16 6"] | None = None
    """The same as the network gives it, ``[a1 | a2]`` before Gram-Schmidt."""
    beta: Float[Tensor, "b h 10"] | None = None
    transl: Float[Tensor, "b h 3"] | None = None
    """MANO translation in smplx's convention: ``joint0 = J0(beta) + transl``."""
    confidence: Float[Tensor, "b h"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectPrediction:
    """The object that the hands act on: ``p_cam = rotmat @ p_object + transl``."""

    rotmat: Float[Tensor, "b 3 3"]
    rot6d: Float[Tensor, "b 6"]
    """The same as the network gives it, ``[a1 | a2]`` before Gram-Schmidt."""
    transl: Float[Tensor, "b 3"]
    arti_rad: Float[Tensor, " b"]
    """Articulation angle, ``model.geometry.articulation``; undefined for a rigid object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Network output for one batch; a part that the family does not predict is None."""

    hands: HandPrediction | None = None
    object: ObjectPrediction | None = None
    earlier: tuple["Prediction", ...] = ()
    """Outputs of earlier, coarser stages of the network, coarsest first."""


PARTS: Final = (HandPrediction, ObjectPrediction, Prediction)
"""Dataclasses that make up a prediction; registered with torch as pytrees."""
Part = TypeVar("Part", bound=HandPrediction | ObjectPrediction | Prediction)


def map_prediction(prediction: Part, function: Callable[[Tensor], Tensor]) -> Part:
    """Return the prediction with ``function`` applied to every tensor in it."""

    def mapped(value: Any) -> Any:
        if isinstance(value, PARTS):
            return map_prediction(value, function)
        if isinstance(value, tuple):
            return tuple(mapped(item) for item in value)
        return value if value is None else function(value)

    values = {f.name: mapped(getattr(prediction, f.name)) for f in fields(prediction)}
    return replace(prediction, **values)


def tensors_of(prediction: Part, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor by its dotted name, in the order of the fields: ``hands.joints_3d``."""
    for field in fields(prediction):
        value = getattr(prediction, field.name)
        items = enumerate(value) if isinstance(value, tuple) else [(None, value)]
        for number, item in items:
            name = f"{prefix}{field.name}" if number is None else f"{prefix}{field.name}.{number}"
            if isinstance(item, PARTS):
                yield from tensors_of(item, f"{name}.")
            elif item is not None:
                yield name, item


def hands_of(prediction: Prediction) -> HandPrediction:
    """Return the hands of a prediction.

    Raises:
        ValueError: If the network predicts none.
    """
    if prediction.hands is None:
        raise ValueError("this network predicts no hands, and hands are asked for")
    return prediction.hands


def prediction_at(prediction: Prediction, index: Int64[Tensor, " k"]) -> Prediction:
    """Return the prediction for the images ``index``."""
    return map_prediction(prediction, lambda value: value[index])
