"""Contact between a hand and an object over time: nearest vertices, contact and motion deviation.

The parts of ``train.evaluate.metrics.arctic`` (the protocol is described there) that concern one
hand and the object. "True" arguments come from the ground truth, "pred" ones from the prediction.

Quirks of the official tool, kept by default; ``strict=True`` removes those of the windows:

- A contact still open at the last frame is not a window; strict: it is one.
- The spread of the touched object vertices is the mean of their distance matrix without the upper
  triangle of its leading 15 x 15 block, so in longer windows most pairs count twice and the zero
  diagonal counts too; and above 25 frames it comes from a float32 matrix product, which moves the
  mean by some 0.1 mm for an object 1 m away. strict: the mean over all pairs of frames, float64.
- The contact deviation counts distances ``<= 3 mm``, the windows ``< 3 mm``.

Source:
    Fan et al. 2023, ARCTIC: A Dataset for Dexterous Bimanual Hand-Object Manipulation, and the
    published evaluation (src/utils/mdev.py), from its formulas.

Shape legend: f = frames in order, n = hand vertices, v = object vertices, w = windows, l = frames
of one window. Metres in, camera frame, millimetres out where a name says so.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from train.evaluate.metrics.errors import distance

CONTACT_M: Final = 0.003
MAX_DISTANCE_M: Final = 0.1
"""Distances are clamped to this."""
MIN_WINDOW: Final = 15
"""Frames of the shortest window."""
CHUNK_BYTES: Final = 150_000_000
"""Memory of a distance matrix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContactWindow:
    """Stable contact: a hand vertex that stays on one spot of the object, in the ground truth."""

    hand_vertex: int
    first: int
    """First frame."""
    last: int
    """Last frame, included."""
    object_vertex: int
    """Object vertex that is most often nearest, the smallest index in a tie."""


def nearest_vertices(
    hand: Float[Tensor, "f n 3"], surface: Float[Tensor, "f v 3"]
) -> tuple[Float64[Tensor, "f n"], Int64[Tensor, "f n"], Float64[Tensor, "f v"]]:
    """Return nearest-neighbour distances between two sets of vertices in every frame.

    Works in chunks of frames whose distance matrix takes at most 150 MB (one frame at least). NaN
    vertices have NaN distances.

    Args:
        hand: Vertices of the hand, metres.
        surface: Vertices of the object, metres.

    Returns:
        The distance of each hand vertex to the nearest object vertex (metres, clamped to 0.1), the
        index of that vertex (the first in a tie), and the distance of each object vertex to the
        nearest hand vertex (metres, clamped to 0.1).
    """
    num_frames = max(1, CHUNK_BYTES // (8 * hand.shape[1] * surface.shape[1]))
    chunks = torch.split(hand, num_frames), torch.split(surface, num_frames)
    parts = [_nearest(first, second) for first, second in zip(*chunks, strict=True)]
    distances, indices, back = zip(*parts, strict=True)
    return torch.cat(distances), torch.cat(indices), torch.cat(back)


def contact_deviation_mm(
    pred_hand: Float[Tensor, "f n 3"],
    pred_object: Float[Tensor, "f v 3"],
    true_distance: Float[Tensor, "f n"],
    true_index: Int64[Tensor, "f n"],
    is_scored: Bool[Tensor, " f"],
) -> Float64[Tensor, " f"]:
    """Return the contact deviation: predicted distance of truly touching vertices, millimetres.

    The mean, over the hand vertices that are at most 3 mm from the object in the ground truth, of
    the predicted distance to the object vertex that is nearest in the ground truth. NaN where
    nothing touches and where the frame is not scored.

    Args:
        pred_hand: Predicted hand vertices, metres.
        pred_object: Predicted object vertices, metres.
        true_distance: From ``nearest_vertices`` of the truth, metres.
        true_index: From ``nearest_vertices`` of the truth.
        is_scored: Frames to score.
    """
    partner = pred_object.gather(1, true_index[..., None].expand(-1, -1, 3))
    touches = (true_distance <= CONTACT_M) & is_scored[:, None]
    gap = torch.where(touches, distance(pred_hand, partner), math.nan)
    return 1000 * gap.nanmean(1)


def contact_windows(
    true_distance: Float[Tensor, "f n"],
    true_index: Int64[Tensor, "f n"],
    first_object: Float[Tensor, "v 3"],
    *,
    strict: bool = False,
) -> list[ContactWindow]:
    """Return the stable contacts of a sequence, ordered by hand vertex, then time.

    A window is a maximal run of at least 15 frames in which a hand vertex is less than 3 mm from
    the object, and in which the nearest object vertices lie within 3 mm of each other on average:
    a hand that slides over the object has none. A window may start at the first frame (the
    official tool then fails an assertion).

    Args:
        true_distance: From ``nearest_vertices`` of the truth, metres.
        true_index: From ``nearest_vertices`` of the truth.
        first_object: True object vertices of the first frame of the sequence, metres; the spread of
            the touched ones is measured there.
        strict: Keep runs that are open at the last frame, and measure the spread over all pairs.
    """
    touches = (true_distance < CONTACT_M).T  # [n, f]
    outside = torch.zeros_like(touches[:, :1])
    before = torch.cat((outside, touches[:, :-1]), 1)
    after = torch.cat((touches[:, 1:], outside), 1)
    # Both lists are ordered by vertex, then frame, so they correspond.
    vertex, first = (touches & ~before).nonzero().unbind(1)
    last = (touches & ~after).nonzero()[:, 1]
    is_long = last - first + 1 >= MIN_WINDOW
    if not strict:
        is_long &= last < touches.shape[1] - 1

    windows = []
    for i, begin, end in torch.stack((vertex, first, last), 1)[is_long].tolist():
        touched = true_index[begin : end + 1, i]
        if _spread_m(first_object[touched], strict=strict) > CONTACT_M:
            continue
        # Sorted, so that a tie goes to the smallest (torch.mode does not specify one).
        values, counts = torch.unique(touched, return_counts=True)
        windows.append(
            ContactWindow(
                hand_vertex=i, first=begin, last=end, object_vertex=int(values[counts.argmax()])
            )
        )
    return windows


def motion_deviation_mm(
    pred_hand: Float[Tensor, "f n 3"],
    pred_object: Float[Tensor, "f v 3"],
    windows: list[ContactWindow],
    is_scored: Bool[Tensor, " f"],
) -> Float64[Tensor, " w"]:
    """Return the motion deviation: predicted slip per frame in each window, millimetres.

    The mean, over pairs of neighbouring frames that are both scored, of the difference between
    the motion of the hand vertex and that of the object vertex. NaN where there is no such pair.

    Args:
        pred_hand: Predicted hand vertices, metres.
        pred_object: Predicted object vertices, metres.
        windows: Contacts of the truth, from ``contact_windows``.
        is_scored: Frames to score.
    """
    slips = []
    for window in windows:
        frames = slice(window.first, window.last + 1)
        hand = pred_hand[frames, window.hand_vertex].double().diff(dim=0)
        surface = pred_object[frames, window.object_vertex].double().diff(dim=0)
        is_pair = is_scored[frames][1:] & is_scored[frames][:-1]
        slips.append(torch.where(is_pair, distance(hand, surface), math.nan).nanmean())
    if not slips:
        return torch.zeros(0, dtype=torch.float64, device=pred_hand.device)
    return 1000 * torch.stack(slips)


def _nearest(hand: Tensor, surface: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Search one chunk; a function, so that its matrix is freed before the next is allocated."""
    # No matrix product: its rounding error scales with the squared distance from the camera.
    apart = torch.cdist(
        hand.double(), surface.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    nearest, index = apart.min(2)
    back = apart.amin(1)
    return nearest.clamp(max=MAX_DISTANCE_M), index, back.clamp(max=MAX_DISTANCE_M)


def _spread_m(touched: Tensor, *, strict: bool) -> float:
    """Return the mean distance between the object vertices ``[l, 3]`` touched in a window."""
    if strict:
        touched = touched.double()
        apart = torch.cdist(touched, touched, compute_mode="donot_use_mm_for_euclid_dist")
        counts = torch.ones_like(apart, dtype=torch.bool).tril(-1)
    else:
        apart = torch.cdist(touched.float(), touched.float())  # by matrix product above 25 frames
        counts = torch.ones_like(apart, dtype=torch.bool)
        block = counts[:MIN_WINDOW, :MIN_WINDOW]
        counts[:MIN_WINDOW, :MIN_WINDOW] = block.tril(-1)
    return float(apart[counts].mean())
