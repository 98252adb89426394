"""The hand skeleton: joint names, order, parents, permutations, fingertip vertices, conventions.

Single source of truth for these. The standard order has 21 joints: wrist, then thumb,
index, middle, ring, little, each from base to tip. Hand axis ``H``: slot 0 right, slot 1 left.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

NUM_HANDS: Final = 2
NUM_JOINTS: Final = 21
NUM_VERTICES: Final = 778
NUM_MANO_JOINTS: Final = 16
NUM_BETAS: Final = 10
RIGHT: Final = 0
LEFT: Final = 1

FINGERS: Final = ("thumb", "index", "middle", "ring", "little")
JOINT_NAMES: Final = (
    "wrist",
    "thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip",
    "index_mcp", "index_pip", "index_dip", "index_tip",
    "middle_mcp", "middle_pip", "middle_dip", "middle_tip",
    "ring_mcp", "ring_pip", "ring_dip", "ring_tip",
    "little_mcp", "little_pip", "little_dip", "little_tip",
)  # fmt: skip
ROOT: Final = 0
"""Index of the root joint, the wrist."""
MIDDLE_MCP: Final = 9
"""Root joint of FreiHAND's translation."""
TIPS: Final = (4, 8, 12, 16, 20)
JOINT_PARENTS: Final = (
    -1,
    0, 1, 2, 3,
    0, 5, 6, 7,
    0, 9, 10, 11,
    0, 13, 14, 15,
    0, 17, 18, 19,
)  # fmt: skip
BONES: Final = tuple((JOINT_PARENTS[j], j) for j in range(1, NUM_JOINTS))

MANO_PARENTS: Final = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
"""Parents of MANO's 16 joints: wrist, index, middle, little, ring, thumb (three each)."""

# std = source[permutation]
STANDARD_FROM_MANO21: Final = (
    0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20,
)  # fmt: skip
"""MANO's 16 joints followed by the fingertips: thumb, index, middle, ring, little."""
STANDARD_FROM_INTERHAND: Final = (
    20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16,
)  # fmt: skip
"""One InterHand2.6M hand: each finger from tip to base, wrist last (left hand = + 21)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TipVertices:
    """Mesh vertices used as fingertips: thumb, index, middle, ring, little."""

    right: tuple[int, int, int, int, int]
    left: tuple[int, int, int, int, int]


def _both(*ids: int) -> TipVertices:
    thumb, index, middle, ring, little = ids
    tips = (thumb, index, middle, ring, little)
    return TipVertices(right=tips, left=tips)


TIP_VERTICES: Final = {
    "smplx": _both(744, 320, 443, 554, 671),  # smplx vertex_ids['mano']; ARCTIC, HaMeR
    "freihand": _both(744, 320, 443, 555, 672),  # FreiHAND utils/mano_utils.py
    "manopth": TipVertices(  # manopth and manotorch; DexYCB
        right=(745, 317, 444, 556, 673), left=(745, 317, 445, 556, 673)
    ),
    "ho3d": _both(744, 333, 444, 555, 672),  # HO-3D setup_mano.py
}


class JointSet(IntEnum):
    """Joint convention: how a dataset defines its 21 joints; see ``mano.layer.regress_joints``.

    The values are written to stores and ``Batch.joint_set``; they are never renumbered. ``smplx``,
    ``manopth`` and ``ho3d`` take the 16 joints of MANO's posed skeleton and five vertices as
    fingertips; they differ in the vertices (``TIP_VERTICES``).
    """

    smplx = 0
    """Posed skeleton, fingertips of smplx: ARCTIC, HaMeR."""
    freihand = 1
    """MANO's joint regressor on the posed mesh, FreiHAND's fingertips."""
    interhand26m = 2
    """InterHand2.6M's own regressor on the posed mesh, ``J_regressor_mano_ih26m.npy``."""
    manopth = 3
    """Posed skeleton, fingertips of manopth: DexYCB. The left middle fingertip differs."""
    ho3d = 4
    """Posed skeleton, HO-3D's fingertips."""
