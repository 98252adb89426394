import math
from pathlib import Path

import numpy as np
import pytest
import trimesh

from preprocess.sample.objects.surfaces import box, disc, less, level_set, turned, wrapped
from preprocess.sample.objects.ycb import OBJECTS, stand_in_object, write_models

# Of the class in everyday life, metres: x, y, z as the object stands or lies.
SIZES = {
    "002_master_chef_can": (0.102, 0.102, 0.140),
    "003_cracker_box": (0.060, 0.158, 0.210),
    "007_tuna_fish_can": (0.085, 0.085, 0.033),
    "024_bowl": (0.159, 0.159, 0.053),
    "036_wood_block": (0.085, 0.085, 0.200),
    "040_large_marker": (0.121, 0.0196, 0.0196),
}


def test_names_are_dexycbs_in_the_order_of_its_ids() -> None:
    assert len(OBJECTS) == len(set(OBJECTS)) == 21
    by_id = {1: "002_master_chef_can", 10: "011_banana", 11: "019_pitcher_base", 14: "025_mug"}
    by_id |= {15: "035_power_drill", 19: "051_large_clamp", 21: "061_foam_brick"}
    assert {i: OBJECTS[i - 1] for i in by_id} == by_id


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_is_one_closed_surface_that_faces_outwards(name: str) -> None:
    mesh = stand_in_object(name)
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert body.is_watertight
    assert body.is_winding_consistent
    assert body.body_count == 1
    assert body.volume > 0  # negative where faces look inwards
    assert len(np.unique(mesh.faces)) == len(mesh.vertices)
    assert 0.012 < min(body.extents) < max(body.extents) < 0.26


@pytest.mark.parametrize("name", SIZES)
def test_objects_have_the_size_of_their_class(name: str) -> None:
    np.testing.assert_allclose(np.ptp(stand_in_object(name).vertices, axis=0), SIZES[name])


@pytest.mark.parametrize("name", OBJECTS)
def test_textures_are_visible_and_reached(name: str) -> None:
    mesh = stand_in_object(name)
    assert mesh.uv_faces.shape == mesh.faces.shape
    assert mesh.uv[:, 1].min() >= 0
    assert mesh.uv[:, 1].max() <= 1
    height, width = mesh.texture.shape[:2]
    middle = mesh.uv[mesh.uv_faces].mean(1)
    column = np.floor(middle[:, 0] % 1.0 * width).astype(int)
    row = np.floor((1 - middle[:, 1]) * (height - 1)).astype(int)
    corners = mesh.vertices[mesh.faces]
    area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    seen = mesh.texture[row, column].astype(float)
    mean = (seen * area[:, None]).sum(0) / area.sum()
    spread = math.sqrt((((seen - mean) ** 2).sum(1) * area).sum() / area.sum())
    assert spread > 12


def test_origins_are_not_all_in_the_middle() -> None:
    middles = [np.mean([m.min(0), m.max(0)], axis=0) for m in map(vertices_of, OBJECTS)]
    away = np.linalg.norm(middles, axis=1)
    assert (away < 1e-9).sum() == 7
    assert (away > 0.02).sum() == 14


def vertices_of(name: str) -> np.ndarray:
    return stand_in_object(name).vertices


@pytest.mark.parametrize("name", ["003_cracker_box", "025_mug"])
def test_written_models_are_read_back_by_trimesh(name: str, tmp_path: Path) -> None:
    write_models(tmp_path, [name])
    path = tmp_path / "models" / name / "textured_simple.obj"
    read = trimesh.load_mesh(path, process=False)
    assert isinstance(read, trimesh.Trimesh)
    assert isinstance(read.visual, trimesh.visual.TextureVisuals)
    mesh = stand_in_object(name)
    # trimesh makes one vertex per pair of place and texture place.
    corners = read.vertices[read.faces]
    np.testing.assert_allclose(corners, mesh.vertices[mesh.faces], atol=1e-8)
    places = read.visual.uv[read.faces]
    np.testing.assert_allclose(places, mesh.uv[mesh.uv_faces], atol=1e-6)
    np.testing.assert_array_equal(
        np.asarray(read.visual.material.image.convert("RGB")), mesh.texture
    )
    read.merge_vertices(merge_tex=True, merge_norm=True)
    assert read.is_watertight


def test_a_box_has_its_volume_and_a_cell_of_the_atlas_per_face() -> None:
    made = box((0.05, 0.08, 0.11))
    body = trimesh.Trimesh(made.vertices, made.faces, process=False)
    assert body.volume == pytest.approx(0.05 * 0.08 * 0.11)
    assert body.is_watertight
    places = made.uv[made.uv_faces].mean(1)
    cell = np.floor(places[:, 0] * 3).astype(int) + 3 * (places[:, 1] < 0.5)
    outward = np.zeros((6, 3))
    for face, where in enumerate(cell):
        a, b, c = made.vertices[made.faces[face]]
        outward[where] += np.cross(b - a, c - a)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    expected = [[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]]
    np.testing.assert_allclose(outward, expected, atol=1e-12)


def test_words_on_a_box_are_not_mirrored() -> None:
    """Seen from outside with z up, u grows to the right."""
    made = box((0.05, 0.08, 0.11))
    for cell, right in ((0, [0, -1, 0]), (1, [0, 1, 0]), (2, [1, 0, 0]), (3, [-1, 0, 0])):
        for corners, places in zip(made.vertices[made.faces], made.uv[made.uv_faces], strict=True):
            if int(places.mean(0)[0] * 3) + 3 * (places.mean(0)[1] < 0.5) != cell:
                continue
            along = (corners[1] - corners[0]) @ right
            assert np.sign(round(along, 9)) == np.sign(round(places[1, 0] - places[0, 0], 9))


def test_a_turned_cylinder_has_the_volume_of_its_prism() -> None:
    made = turned([(0.0, 0.0), (0.03, 0.0), (0.03, 0.1), (0.0, 0.1)])
    body = trimesh.Trimesh(made.vertices, made.faces, process=False)
    sides = 40
    area = 0.5 * sides * 0.03**2 * math.sin(2 * math.pi / sides)
    assert body.volume == pytest.approx(area * 0.1)
    assert body.is_watertight
    # u and v of a corner are its angle and its way along the profile, 0.16 m long.
    for corners, places in zip(made.vertices[made.faces], made.uv[made.uv_faces], strict=True):
        for (x, y, z), (u, v) in zip(corners, places, strict=True):
            radius = math.hypot(x, y)
            way = radius if z < 1e-9 else 0.16 - radius if z > 0.1 - 1e-9 else 0.03 + z
            assert v == pytest.approx(way / 0.16, abs=1e-9)
            if radius > 1e-9:
                off = (u - math.atan2(y, x) / (2 * math.pi)) % 1.0
                assert min(off, 1.0 - off) == pytest.approx(0.0, abs=1e-9)
        assert np.ptp(places[:, 0]) < 0.03


def test_a_level_set_with_a_hole_has_the_volume_of_the_formula() -> None:
    tube = less(disc((0, 0, 0.02), 0.03, 0.04), disc((0, 0, 0.03), 0.02, 0.05))
    low, high = (-0.035, -0.035, -0.005), (0.035, 0.035, 0.045)
    made = wrapped(*level_set(tube, low, high, cell_m=0.002, num_faces=6000))
    body = trimesh.Trimesh(made.vertices, made.faces, process=False)
    assert body.is_watertight
    expected = math.pi * (0.03**2 * 0.04 - 0.02**2 * 0.035)
    assert body.volume == pytest.approx(expected, rel=0.02)
    across = np.ptp(made.uv[made.uv_faces][:, :, 0], axis=1)
    # No face runs the long way around the seam, but those at the axis.
    rim = np.linalg.norm(made.vertices[made.faces][:, :, :2], axis=2).min(1) > 0.005
    assert across[rim].max() < 0.4


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="teapot"):
        stand_in_object("teapot")
