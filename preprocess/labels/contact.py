"""Hand-object contact, and the other derived labels that need both: see ``schema.LABELS``.

    vertices = hand_vertices(labels, mano, left_as_shipped=source.left_as_shipped)
    derived = derive_objects(labels, vertices, meshes, points)

Distances are from the vertices of the hand as fitted by the dataset to the object mesh: with the
shape as shipped, and for a left hand with the model it was fitted with.

Shape legend: n = rows, 2 = hands (right, left), 10 = object slots, p = points of an object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int16, Int32, Int64, UInt8

from model.hand import LEFT, NUM_HANDS, NUM_VERTICES, RIGHT
from model.mano.convert import rest_root
from model.mano.files import ManoModels, mano_forward
from pipeline.store.schema import CONTACT_FAR, CONTACT_STEP_M, IN_CONTACT_M
from preprocess.labels.action import (
    SurfacePoints,
    aperture_m,
    object_bbox_xyxy,
    object_moved_m,
    palm_pose,
    posed_objects,
)
from preprocess.objects.articulation import MOVING_PART, turn
from preprocess.objects.mesh_distance import Solid, contact_steps, make_solid, outside_distance
from preprocess.objects.shapes import Mesh
from preprocess.records import LabelStack

_CHUNK: Final = 64
"""Hands decoded per chunk; 10 MB."""
_IN_CONTACT_STEPS: Final = round(IN_CONTACT_M / CONTACT_STEP_M)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DerivedObjects:
    """The arrays of ``schema.LABELS`` about objects and hand-object interaction, for n rows."""

    object_bbox_xyxy: Float64[np.ndarray, "n 10 4"]
    object_moved_m: Float64[np.ndarray, "n 10"]
    contact_dist: UInt8[np.ndarray, "n 2 778"]
    contact_object: Int16[np.ndarray, "n 2"]
    in_contact: Bool[np.ndarray, "n 2"]
    has_object: Bool[np.ndarray, "n 10"]
    has_contact: Bool[np.ndarray, "n 2"]
    palm_pose: Float64[np.ndarray, "n 2 3 4"]
    aperture_m: Float64[np.ndarray, "n 2"]


def hand_vertices(
    labels: LabelStack, mano: ManoModels, *, left_as_shipped: bool
) -> Float64[np.ndarray, "n 2 778 3"]:
    """Decode the hand vertices as fitted by the dataset, camera frame, metres.

    Shape is ``beta_raw``. Where a left hand was refitted to the fixed model, its ``transl`` was
    shifted to keep the wrist in place; the shift is undone here. NaN without MANO.

    Args:
        labels: The labels; ``theta``, ``beta_raw``, ``transl`` and ``root_rest`` are used.
        mano: The models.
        left_as_shipped: Left hands were fitted with ``mano.left_as_shipped``.
    """
    vertices = np.full((len(labels.theta), NUM_HANDS, NUM_VERTICES, 3), np.nan)
    left = mano.left_as_shipped if left_as_shipped else mano.left
    for slot, arrays in ((RIGHT, mano.right), (LEFT, left)):
        parameters = [
            np.asarray(values[:, slot], np.float64)
            for values in (labels.theta, labels.beta_raw, labels.transl, labels.root_rest)
        ]
        known = np.flatnonzero(np.isfinite(np.concatenate(parameters, axis=1)).all(1))
        for start in range(0, len(known), _CHUNK):
            rows = known[start : start + _CHUNK]
            theta, beta, transl, root_rest = (values[rows] for values in parameters)
            wrist = transl + root_rest  # unchanged by a refit
            transl = wrist - rest_root(arrays, beta)
            vertices[rows, slot] = mano_forward(arrays, theta, beta, transl)[0]
    return vertices


def derive_objects(
    labels: LabelStack,
    vertices: Float64[np.ndarray, "n 2 778 3"] | None,
    meshes: Mapping[int, Mesh],
    points: Mapping[int, SurfacePoints],
) -> DerivedObjects:
    """Derive the object and hand-object labels of n rows.

    Args:
        labels: Labels in stored pixels and frames.
        vertices: Hand vertices, camera frame, metres, NaN where unknown; None: no MANO, no contact.
        meshes: Meshes by ``object_id``; a row whose mesh is missing has no contact.
        points: Points on the surface by ``object_id``, object frame, metres, and their parts.
    """
    contact_dist, contact_object = _contact(labels, vertices, meshes)
    has_contact = contact_object >= 0
    return DerivedObjects(
        object_bbox_xyxy=object_bbox_xyxy(labels, points),
        object_moved_m=object_moved_m(labels),
        contact_dist=contact_dist,
        contact_object=contact_object,
        in_contact=has_contact & (contact_dist.min(-1) <= _IN_CONTACT_STEPS),
        has_object=posed_objects(labels),
        has_contact=has_contact,
        palm_pose=palm_pose(labels),
        aperture_m=aperture_m(labels),
    )


def _contact(
    labels: LabelStack,
    vertices: Float64[np.ndarray, "n 2 778 3"] | None,
    meshes: Mapping[int, Mesh],
) -> tuple[UInt8[np.ndarray, "n 2 778"], Int16[np.ndarray, "n 2"]]:
    """Return ``contact_dist`` and ``contact_object``."""
    num = len(labels.object_id)
    steps = np.full((num, NUM_HANDS, NUM_VERTICES), CONTACT_FAR, np.uint8)
    target = np.full((num, NUM_HANDS), -1, np.int16)
    if vertices is None:
        return steps, target
    has_hand = np.isfinite(vertices).all((-1, -2))
    wanted = _wanted_slots(labels, meshes)
    solids = {
        int(i): _solids_of(meshes[int(i)])
        for i in np.unique(labels.object_id[wanted & has_hand.any(1)[:, None]])
    }
    # With one candidate object it is the contact object; with several, the nearest one.
    num_wanted = wanted.sum(1)
    single = has_hand & (num_wanted == 1)[:, None]
    target[single] = np.broadcast_to(wanted.argmax(1)[:, None], target.shape)[single]
    several = has_hand & (num_wanted > 1)[:, None]
    if several.any():
        target[several] = _nearest_slot(labels, vertices, wanted, several, solids)
    for object_id, parts in solids.items():
        row, hand = np.nonzero((target >= 0) & (_id_of(labels, target) == object_id))
        for part, solid in parts.items():
            seen = _in_part_frame(labels, vertices, row, hand, target[row, hand], part=part)
            steps[row, hand] = np.minimum(steps[row, hand], contact_steps(solid, seen))
    return steps, target


def _solids_of(mesh: Mesh) -> dict[int, Solid]:
    """Return the parts of an object as solids in their own frames, by part."""
    solids = {}
    for part in np.unique(mesh.face_part).tolist():
        corners = mesh.faces[mesh.face_part == part]
        used, renamed = np.unique(corners, return_inverse=True)
        solids[part] = make_solid(
            Mesh(
                vertices=np.ascontiguousarray(mesh.vertices[used]),
                faces=np.ascontiguousarray(renamed.reshape(-1, 3).astype(np.int64)),
                part=mesh.part[used],
            )
        )
    return solids


def _wanted_slots(labels: LabelStack, meshes: Mapping[int, Mesh]) -> Bool[np.ndarray, "n 10"]:
    """Return the candidate slots of the contact object: the grasped one, else all posed ones.

    No slot if a candidate has no mesh: it might be the nearest.
    """
    posed = posed_objects(labels)
    slots = np.arange(posed.shape[1])
    grasped = posed & (labels.grasped_object[:, None] == slots)
    wanted = np.where(grasped.any(1, keepdims=True), grasped, posed)
    has_mesh = np.isin(labels.object_id, list(meshes))
    return wanted & (has_mesh | ~wanted).all(1, keepdims=True)


def _nearest_slot(
    labels: LabelStack,
    vertices: Float64[np.ndarray, "n 2 778 3"],
    wanted: Bool[np.ndarray, "n 10"],
    hands: Bool[np.ndarray, "n 2"],
    solids: Mapping[int, Mapping[int, Solid]],
) -> Int64[np.ndarray, " m"]:
    """Return the slot whose object is nearest to some vertex, for the chosen hands in order."""
    distance = np.full((*hands.shape, wanted.shape[1]), np.inf)
    asked = hands[:, :, None] & wanted[:, None]
    for object_id, parts in solids.items():
        row, hand, slot = np.nonzero(asked & (labels.object_id == object_id)[:, None])
        for part, solid in parts.items():
            for start in range(0, len(row), _CHUNK):
                some = slice(start, start + _CHUNK)
                at = row[some], hand[some], slot[some]
                seen = _in_part_frame(labels, vertices, *at, part=part)
                nearest = outside_distance(solid, seen).min(-1)
                distance[at] = np.minimum(distance[at], nearest)
    return np.asarray(distance[hands].argmin(-1))


def _in_part_frame(
    labels: LabelStack,
    vertices: Float64[np.ndarray, "n 2 778 3"],
    row: Int64[np.ndarray, " m"],
    hand: Int64[np.ndarray, " m"],
    slot: Int64[np.ndarray, " m"],
    *,
    part: int,
) -> Float64[np.ndarray, "m 778 3"]:
    """Transform the vertices of some hands to the frame of one part of some objects."""
    pose = labels.object_pose[row, slot]
    seen = (vertices[row, hand] - pose[:, None, :, 3]) @ pose[:, :, :3]
    if part == MOVING_PART:
        seen = seen @ turn(labels.object_arti_rad[row, slot])
    return np.asarray(seen)


def _id_of(labels: LabelStack, slot: Int16[np.ndarray, "n 2"]) -> Int32[np.ndarray, "n 2"]:
    """Return the object id in each slot; arbitrary if the slot is empty."""
    return np.take_along_axis(labels.object_id, slot.astype(np.int64), axis=1)
