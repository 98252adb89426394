"""Sanity checks of prediction files, with the likely cause of each problem.

A wrong count, a NaN or a wrong unit is an error: no score would be meaningful. Suspicious axes,
joint order or mirroring are warnings: the file is still scored as the official tool does.

Shape legend: n = samples, k = joints.
"""

from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.geometry.align import apply_similarity, procrustes
from model.hand import STANDARD_FROM_INTERHAND, STANDARD_FROM_MANO21

Points = Float[np.ndarray, "n k 3"]
_MOST_SAMPLES: Final = 256
"""Samples used to find a likely cause, evenly spaced."""
CLEAR: Final = 0.5
"""Another interpretation of the file is likely if its error is at most this fraction."""
JointOrder = Literal["standard", "MANO", "InterHand2.6M"]
_STANDARD_FROM: Final[dict[JointOrder, tuple[int, ...]]] = {
    "standard": tuple(range(21)),
    "MANO": STANDARD_FROM_MANO21,
    "InterHand2.6M": STANDARD_FROM_INTERHAND,
}
_HAND_M: Final = 0.055
"""Root mean square distance of a hand's joints from their centre, metres: 0.04 to 0.07."""
_UNIT_OF_METRES: Final = {1.0: "metres", 100.0: "centimetres", 1000.0: "millimetres"}


def require_count(what: str, found: int, expected: int, source: str) -> None:
    """Reject a file with another number of samples.

    Raises:
        ValueError: With both counts.
    """
    if found != expected:
        raise ValueError(
            f"predictions hold {found} {what}, {source} holds {expected}; a protocol scores every "
            "sample, in the official order"
        )
    if expected == 0:
        raise ValueError(f"{source} holds no {what}")


def require_finite(
    name: str,
    points: Float[np.ndarray, "n ..."],
    cure: str = "the official tool scores every sample, so give each a prediction",
) -> None:
    """Reject NaN and infinity.

    Raises:
        ValueError: With the number of bad samples and the first of them.
    """
    bad = np.flatnonzero(~np.isfinite(points).all(tuple(range(1, points.ndim))))
    if len(bad):
        raise ValueError(
            f"{name}: {len(bad)} of {len(points)} samples hold NaN or infinity (first: {bad[0]}); "
            f"{cure}"
        )


def require_unit(name: str, pred: Points, truth: Points, *, per_metre: float) -> None:
    """Reject predictions whose size indicates another unit.

    Args:
        name: Name of the points in errors.
        pred: Predicted points.
        truth: True points, in the unit of the format.
        per_metre: Units of the format in a metre: 1 or 1000.

    Raises:
        ValueError: If the hands are about 10, 100 or 1000 times too large or too small.
    """
    require_length(name, _sizes(pred), _sizes(truth), per_metre=per_metre)


def require_hand_size(name: str, points: Points, *, per_metre: float) -> None:
    """Reject hands, such as those of a truth, that are of another unit; as ``require_unit``."""
    sizes = _sizes(points)
    expected = np.full(len(sizes), _HAND_M * per_metre)
    require_length(name, sizes, expected, per_metre=per_metre, reference="a hand")


def require_length(
    name: str,
    pred: Float[np.ndarray, " n"],
    truth: Float[np.ndarray, " n"],
    *,
    per_metre: float,
    reference: str = "the truth",
) -> None:
    """Reject lengths whose median indicates another unit; as ``require_unit``."""
    pred, truth = pred[np.isfinite(pred)], truth[np.isfinite(truth)]
    size, expected = (float(np.median(x)) if len(x) else 0.0 for x in (pred, truth))
    if size == 0 or expected == 0:
        return
    ratio = size / expected
    for other, unit in _UNIT_OF_METRES.items():
        factor = other / per_metre
        if factor != 1 and 0.5 < ratio / factor < 2:
            advice = f"divide by {factor:g}" if factor > 1 else f"multiply by {1 / factor:g}"
            raise ValueError(
                f"{name} look like {unit}: they are {ratio:.4g} times as large as {reference}, and "
                f"this format holds {_UNIT_OF_METRES[per_metre]}; {advice}"
            )


def likely_causes(pred: Points, truth: Points, *, order: JointOrder, opengl: bool) -> list[str]:
    """Return a sentence for each sign that predictions follow another convention.

    Args:
        pred: Predicted joints [n, 21, 3], finite, right unit.
        truth: True joints.
        order: Joint order of the format.
        opengl: The format has OpenGL axes (y up, hands at negative z) instead of OpenCV's.
    """
    finite = np.isfinite(pred).all((1, 2)) & np.isfinite(truth).all((1, 2))
    pred, truth = pred[finite], truth[finite]
    if len(pred) == 0:
        return []
    picked = np.unique(np.linspace(0, len(pred) - 1, min(len(pred), _MOST_SAMPLES)).round())
    few = torch.from_numpy(pred[picked.astype(int)]).double()
    true = torch.from_numpy(truth[picked.astype(int)]).double()
    messages = (
        _relative(few, true, order),
        _axes(few, true, opengl=opengl),
        _order(few, true, order),
        _mirror(few, true),
    )
    return [message for message in messages if message]


def coincident(name: str, points: Points) -> list[str]:
    """Return a sentence if points of some samples are all zero or the same: no prediction."""
    count = int((points == points[:, :1]).all((1, 2)).sum())
    sentence = (
        f"the {name} of {count} of {len(points)} samples are zeros, or one and the same point: "
        "scores of them say nothing"
    )
    return [sentence] if count else []


def _relative(pred: Tensor, truth: Tensor, order: JointOrder) -> str | None:
    """Flag joints relative to one of them, where the truth is in the camera."""
    size = float((truth - truth.mean(1, keepdim=True)).norm(dim=-1).mean())
    at_origin = (pred.norm(dim=-1).amax(0) < 1e-3 * size) & (truth.norm(dim=-1).amin(0) > size)
    found = at_origin.nonzero()[:, 0].tolist()
    if not 1 <= len(found) < pred.shape[1]:
        return None
    named = "the wrist" if found[0] == _STANDARD_FROM[order][0] else f"joint {found[0]}"
    return (
        f"in every sample {named} is predicted at (0, 0, 0): the joints look relative to it, this "
        "format has camera coordinates; only scores after an alignment mean something"
    )


def _axes(pred: Tensor, truth: Tensor, *, opengl: bool) -> str | None:
    """Flag hands behind the camera."""
    behind = (pred[..., 2].median(-1).values * truth[..., 2].median(-1).values) < 0
    flipped = pred * torch.tensor([1.0, -1.0, -1.0], dtype=pred.dtype)
    if behind.double().mean() < 0.9 or _error(flipped, truth) > CLEAR * _error(pred, truth):
        return None
    theirs, ours = ("OpenCV", "OpenGL") if opengl else ("OpenGL", "OpenCV")
    share = float(behind.double().mean())
    return (
        f"{100 * share:.0f} % of the predicted hands lie behind the camera: they look like "
        f"{theirs} axes, this format has {ours} axes; multiply y and z by -1"
    )


def _order(pred: Tensor, truth: Tensor, order: JointOrder) -> str | None:
    """Flag joints that fit the truth far better in another joint order."""
    from_standard = np.argsort(_STANDARD_FROM[order])
    as_given = aligned_error(pred, truth)
    for other, standard_from in _STANDARD_FROM.items():
        if other == order:
            continue
        read = pred[:, list(np.array(standard_from)[from_standard])]
        if aligned_error(read, truth) < CLEAR * as_given:
            return (
                f"the predicted joints look to be in {other} order (aligned error "
                f"{aligned_error(read, truth):.4g} instead of {as_given:.4g}); this format has "
                f"{order} order"
            )
    return None


def _mirror(pred: Tensor, truth: Tensor) -> str | None:
    """Flag hands that fit far better as mirror images."""
    rotated = aligned_error(pred, truth)
    mirrored = aligned_error(pred * torch.tensor([-1.0, 1, 1], dtype=pred.dtype), truth)
    if mirrored < CLEAR * rotated:
        return (
            "the predicted hands look mirrored: a mirror image fits the truth far better than any "
            "rotation (left hands given for right ones, or one axis negated?)"
        )
    return None


def _sizes(points: Points) -> Float[np.ndarray, " n"]:
    """Return each sample's root mean square distance from its centre."""
    spread = points - points.mean(1, keepdims=True)
    return np.asarray(np.sqrt(np.square(spread).sum(-1).mean(-1)))


def _error(pred: Tensor, truth: Tensor) -> float:
    return float((pred - truth).norm(dim=-1).mean())


def aligned_error(pred: Tensor, truth: Tensor) -> float:
    """Return the mean error after the best similarity with a proper rotation."""
    moved = apply_similarity(*procrustes(pred, truth, reflection=False), pred)
    return _error(moved, truth)
