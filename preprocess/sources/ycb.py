"""YCB objects, shared by DexYCB and HO-3D: names in DexYCB's order, and mesh files."""

from pathlib import Path
from typing import Final

YCB_NAMES: Final = (
    "002_master_chef_can",
    "003_cracker_box",
    "004_sugar_box",
    "005_tomato_soup_can",
    "006_mustard_bottle",
    "007_tuna_fish_can",
    "008_pudding_box",
    "009_gelatin_box",
    "010_potted_meat_can",
    "011_banana",
    "019_pitcher_base",
    "021_bleach_cleanser",
    "024_bowl",
    "025_mug",
    "035_power_drill",
    "036_wood_block",
    "037_scissors",
    "040_large_marker",
    "051_large_clamp",
    "052_extra_large_clamp",
    "061_foam_brick",
)
"""Names by DexYCB id minus one, which is the ``object_id`` in both datasets."""


def find_mesh(root: Path, name: str) -> str:
    """Find the mesh of an object in ``root/models`` or the ``models`` folder next to ``root``.

    Args:
        root: Dataset root.
        name: One of ``YCB_NAMES``.

    Returns:
        Path of the mesh (in metres), relative to ``root`` if inside, else absolute; "" = none.
    """
    inside = f"models/{name}/textured_simple.obj"
    if (root / inside).is_file():
        return inside
    beside = root.absolute().parent / inside
    return str(beside) if beside.is_file() else ""
