"""The YCB objects that DexYCB and HO-3D share: names in DexYCB's order, and where meshes are."""

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
"""By DexYCB's id less one, which is the ``object_id`` of both datasets."""


def find_mesh(root: Path, name: str) -> str:
    """Return the mesh of an object in ``root/models`` or the ``models`` beside ``root``; "" = none.

    Args:
        root: Folder of the dataset.
        name: One of ``YCB_NAMES``.

    Returns:
        Relative to ``root`` where it is inside, else absolute. Metres.
    """
    inside = f"models/{name}/textured_simple.obj"
    if (root / inside).is_file():
        return inside
    beside = root.absolute().parent / inside
    return str(beside) if beside.is_file() else ""
