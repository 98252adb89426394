"""Meshes against trimesh, analytic distances and brute force."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.distance import pdist

from pipeline.store.schema import OBJECT_ARRAYS
from preprocess.objects.shapes import (
    SDF_MARGIN,
    Mesh,
    hull_points,
    largest_distance,
    load_mesh,
    make_shape,
    signed_distance_grid,
    surface_points,
)
from preprocess.records import ObjectFile, SourceError

SIDES = np.array([0.06, 0.1, 0.04])
CUBE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\nv 1 0 1\nv 1 1 1\nv 0 1 1\n"
CUBE_FACES = (
    "f 1 3 2\nf 1 4 3\nf 5 6 7\nf 5 7 8\nf 1 2 6\nf 1 6 5\n"
    "f 2 3 7\nf 2 7 6\nf 3 4 8\nf 3 8 7\nf 4 1 5\nf 4 5 8\n"
)


def _file(path: Path, metres_per_unit: float = 1.0) -> ObjectFile:
    return ObjectFile(name="thing", mesh=path.name, metres_per_unit=metres_per_unit)


def _load(folder: Path, mesh: trimesh.Trimesh, kind: str = "obj") -> Mesh:
    path = folder / f"mesh.{kind}"
    mesh.export(path)
    return load_mesh(_file(path), folder)


def _text(folder: Path, text: str, name: str = "mesh.obj") -> Mesh:
    (folder / name).write_text(text)
    return load_mesh(_file(folder / name), folder)


def _volume(mesh: Mesh) -> float:
    return float(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).volume)


def _box_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance of a box about the origin."""
    beyond = np.abs(points) - SIDES / 2
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=-1)
    return np.asarray(outside + np.minimum(beyond.max(-1), 0))


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["obj", "ply", "stl", "off"])
def test_a_mesh_is_the_one_in_the_file(tmp_path: Path, kind: str) -> None:
    mesh = _load(tmp_path, trimesh.creation.box(SIDES), kind)
    assert (str(mesh.vertices.dtype), str(mesh.faces.dtype)) == ("float64", "int64")
    assert (mesh.vertices.shape, mesh.faces.shape) == ((8, 3), (12, 3))
    assert _volume(mesh) == pytest.approx(SIDES.prod(), rel=1e-5)


def test_millimetres_become_metres(tmp_path: Path) -> None:
    trimesh.creation.box(SIDES * 1000).export(tmp_path / "mesh.obj")
    mesh = load_mesh(_file(tmp_path / "mesh.obj", 1e-3), tmp_path)
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), SIDES, rtol=1e-6)


def test_vertices_are_those_that_the_store_keeps(tmp_path: Path) -> None:
    mesh = _load(tmp_path, trimesh.creation.icosphere(2, 0.0333))
    np.testing.assert_array_equal(mesh.vertices, mesh.vertices.astype(np.float32))


def test_seams_of_the_texture_are_sewn_up(tmp_path: Path) -> None:
    faces = "".join(
        "f " + " ".join(f"{v}/{3 * i + k + 1}" for k, v in enumerate(line.split()[1:])) + "\n"
        for i, line in enumerate(CUBE_FACES.splitlines())
    )
    uvs = "".join(f"vt {i / 36} {i * 7 % 36 / 36}\n" for i in range(36))
    mesh = _text(tmp_path, CUBE + uvs + faces)
    assert (len(mesh.vertices), len(mesh.faces)) == (8, 12)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).is_watertight


def test_vertices_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    corners = [line[2:] for line in CUBE.splitlines()]
    order = [6, 0, 3, 7, 5, 1, 2, 4]
    faces = [
        [order.index(int(v) - 1) for v in line.split()[1:]] for line in CUBE_FACES.splitlines()
    ]
    lines = [corners[i] for i in order] + [f"3 {a} {b} {c}" for a, b, c in faces]
    mesh = _text(tmp_path, "\n".join(["OFF", "8 12 0", *lines, ""]), "mesh.off")
    expected = [[float(x) for x in corners[i].split()] for i in order]
    np.testing.assert_array_equal(mesh.vertices, expected)
    np.testing.assert_array_equal(mesh.faces, faces)


def test_materials_and_textures_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "evil.mtl")  # whoever opens it for reading waits for ever
    os.mkfifo(tmp_path / "evil.png")
    mesh = _text(tmp_path, "mtllib evil.mtl\nusemtl evil\n" + CUBE + CUBE_FACES)
    assert len(mesh.faces) == 12


def test_stray_vertices_and_faces_without_an_area_are_dropped(tmp_path: Path) -> None:
    stray = "v 9 9 9\nv 2 2 2\nv 3 3 3\n"
    mesh = _text(tmp_path, CUBE + stray + CUBE_FACES + "f 1 1 2\nf 1 10 11\n")
    assert (len(mesh.vertices), len(mesh.faces)) == (8, 12)
    assert mesh.vertices.max() == 1


@pytest.mark.parametrize("flipped", [[0], [3, 4, 9], list(range(12)), [0, 1, 2, 3, 4, 5, 6]])
def test_faces_are_turned_outward(tmp_path: Path, flipped: list[int]) -> None:
    box = trimesh.creation.box(SIDES)
    faces = box.faces.copy()
    faces[flipped] = faces[flipped][:, ::-1]
    mesh = _load(tmp_path, trimesh.Trimesh(box.vertices, faces, process=False))
    assert _volume(mesh) == pytest.approx(SIDES.prod(), rel=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_an_open_shell_is_turned_outward(tmp_path: Path, *, flip: bool) -> None:
    ball = trimesh.creation.icosphere(3, 0.05)
    ball.update_faces(ball.triangles_center[:, 2] < 0.01)
    if flip:
        ball.invert()
    mesh = _load(tmp_path, ball)
    shell = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert (np.einsum("fi,fi->f", shell.face_normals, shell.triangles_center) > 0).all()


@pytest.mark.parametrize("flipped", [[], [0], [12], [0, 5, 12, 20], list(range(24))])
def test_a_cavity_stays_one(tmp_path: Path, flipped: list[int]) -> None:
    outer, inner = trimesh.creation.box(SIDES), trimesh.creation.box(SIDES / 2)
    faces = np.concatenate([outer.faces, inner.faces[:, ::-1] + 8])
    faces[flipped] = faces[flipped][:, ::-1]
    vertices = np.concatenate([outer.vertices, inner.vertices])
    mesh = _load(tmp_path, trimesh.Trimesh(vertices, faces, process=False))
    assert _volume(mesh) == pytest.approx(SIDES.prod() * 7 / 8, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("mesh.obj", None, r"cannot be read \(No such file"),
        ("mesh.obj", "", "is broken|has no faces"),
        ("mesh.obj", "\x00\x01garbage\n" * 9, "is broken|has no faces"),
        ("mesh.obj", CUBE, "is broken|has no faces"),
        ("mesh.obj", CUBE + "f 1 2 99\n", "is broken|it does not have"),
        ("mesh.obj", CUBE.replace("v 1 1 1", "v nan 1 1") + CUBE_FACES, "not finite"),
        ("mesh.obj", CUBE.replace("v 1 1 1", "v 1e39 1 1") + CUBE_FACES, "not finite"),
        ("mesh.obj", CUBE + "f 1 1 2\n", "no face with an area"),
        ("mesh.ply", "ply\nformat ascii 1.0\nelement vertex 3\n", "is broken|has no faces"),
        ("mesh.stl", "solid x\nfacet normal 0 0", "is broken|has no faces"),
        ("mesh.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n", "is broken|has no faces|does not have"),
        ("mesh.step", CUBE + CUBE_FACES, r"is not a supported mesh format \(\.obj, \.ply"),
    ],
)
def test_an_unusable_mesh_is_one_sentence(
    tmp_path: Path, name: str, content: str | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=problem) as raised:
        load_mesh(_file(tmp_path / name), tmp_path)
    message = str(raised.value)
    assert message.startswith(f"object 'thing': the mesh {tmp_path / name} ")
    assert message.endswith("; copy the dataset's models again")
    assert "\n" not in message


# --- shape ----------------------------------------------------------------------------------------


def test_points_lie_on_the_surface_with_its_normals(tmp_path: Path) -> None:
    points, normals, _ = surface_points(_load(tmp_path, trimesh.creation.box(SIDES)))
    assert points.shape == normals.shape == (2048, 3)
    np.testing.assert_allclose(_box_distance(points), 0, atol=1e-8)
    for point, normal in zip(points, normals, strict=True):
        axis = int(np.argmax(np.abs(point) / (SIDES / 2)))
        expected = np.zeros(3)
        expected[axis] = np.sign(point[axis])
        np.testing.assert_allclose(normal, expected, atol=1e-6)


def test_points_are_uniform_by_area(tmp_path: Path) -> None:
    points, normals, _ = surface_points(_load(tmp_path, trimesh.creation.box(SIDES)))
    area = np.array([SIDES[1] * SIDES[2], SIDES[0] * SIDES[2], SIDES[0] * SIDES[1]])
    share = area / area.sum()
    for axis in range(3):
        on = np.abs(normals[:, axis]) > 0.5
        # A binomial count of 2048 draws: within 4 standard deviations.
        spread = np.sqrt(2048 * share[axis] * (1 - share[axis]))
        assert abs(on.sum() - 2048 * share[axis]) < 4 * spread
        other = (axis + 1) % 3
        assert np.abs(np.mean(points[on, other])) < 4 * SIDES[other] / np.sqrt(12 * on.sum())


def test_the_diameter_is_the_largest_distance_of_two_points() -> None:
    rng = np.random.default_rng(0)
    for points in (rng.normal(size=(2500, 3)), rng.normal(size=(200, 3)) * [1, 1, 0]):
        assert largest_distance(points) == pytest.approx(pdist(points).max(), rel=1e-12)
    ball = rng.normal(size=(2500, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    ball[-2:] = [[0.0, 0.0, 1.1], [0.0, 0.2, -1.1]]  # in the last of several blocks
    assert len(hull_points(ball)) > 2048
    assert largest_distance(ball) == pytest.approx(pdist(ball).max(), rel=1e-12)


def test_the_grid_holds_the_signed_distance_of_a_box(tmp_path: Path) -> None:
    mesh = _load(tmp_path, trimesh.creation.box(SIDES))
    sdf, box = signed_distance_grid(mesh)
    assert (str(sdf.dtype), sdf.shape, str(box.dtype)) == ("float16", (64, 64, 64), "float32")
    x, y, z = (np.linspace(box[0, i], box[1, i], 64, dtype=np.float64) for i in range(3))
    step = np.diff(box.astype(np.float64), axis=0)[0] / 63
    np.testing.assert_allclose(step, step[0], rtol=1e-6)
    # The cube reaches a tenth of the longest side beyond the mesh; cells are its 64ths.
    assert step[0] * 64 == pytest.approx(SIDES.max() * (1 + 2 * SDF_MARGIN), rel=1e-5)
    assert box[0, 1] - step[0] / 2 == pytest.approx(-SIDES[1] / 2 - 0.01, rel=1e-4)
    rng = np.random.default_rng(0)
    for i, j, k in rng.integers(0, 64, (3000, 3)).tolist():
        expected = float(_box_distance(np.array([x[i], y[j], z[k]])))
        # float16 has 11 bits; the mesh is rounded to float32.
        assert float(sdf[i, j, k]) == pytest.approx(expected, rel=2**-11, abs=1e-7)


def test_the_grid_holds_the_signed_distance_of_a_ball_with_a_hole(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(3, 0.05)
    ball.update_faces(ball.triangles_center[:, 2] < 0.045)
    mesh = _load(tmp_path, ball)
    sdf, box = signed_distance_grid(mesh)
    axes = [np.linspace(box[0, i], box[1, i], 64, dtype=np.float64) for i in range(3)]
    cells = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    radius = np.linalg.norm(cells, axis=-1)
    below = cells[..., 2] < 0
    # Triangles with edges of 8 mm lie up to 0.4 mm below the sphere.
    np.testing.assert_allclose(
        sdf[below & (radius > 0.02)], (radius - 0.05)[below & (radius > 0.02)], atol=4.5e-4
    )
    assert (sdf[radius < 0.04] < 0).all()
    assert (sdf[radius > 0.0501] > 0).all()


def test_a_shape_is_complete(tmp_path: Path) -> None:
    trimesh.creation.box(SIDES).apply_translation([0.1, 0.2, 0.3]).export(tmp_path / "mesh.ply")
    shape = make_shape(_file(tmp_path / "mesh.ply"), tmp_path)
    for name, dtype, expected, _ in OBJECT_ARRAYS:
        array = getattr(shape, name)
        assert array.dtype == dtype
        assert all(want in (0, got) for want, got in zip(expected, array.shape, strict=True)), name
    assert shape.name == "thing"
    assert shape.diameter_m == pytest.approx(np.linalg.norm(SIDES), rel=1e-5)
    assert len(shape.symmetries) == 4
    np.testing.assert_array_equal(shape.part_id, 0)
    assert shape.faces.max() == len(shape.vertices) - 1 == 7


HASH = """
import hashlib, sys
from pathlib import Path
from pipeline.store.schema import OBJECT_ARRAYS
from preprocess.objects.shapes import make_shape
from preprocess.records import ObjectFile
shape = make_shape(ObjectFile(name="thing", mesh="mesh.ply"), Path(sys.argv[1]))
data = b"".join(getattr(shape, name).tobytes() for name, *_ in OBJECT_ARRAYS)
print(hashlib.sha256(data + repr(shape.diameter_m).encode()).hexdigest())
"""


def test_the_same_mesh_gives_the_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    box = trimesh.creation.box(SIDES).subdivide().subdivide()
    box.vertices += np.random.default_rng(0).normal(0, 2e-4, box.vertices.shape)
    box.export(tmp_path / "mesh.ply")
    names = ("IGL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, "1")}
    answer = subprocess.run(
        [sys.executable, "-c", HASH, str(tmp_path)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    shape = make_shape(_file(tmp_path / "mesh.ply"), tmp_path)
    data = b"".join(getattr(shape, name).tobytes() for name, *_ in OBJECT_ARRAYS)
    own = hashlib.sha256(data + repr(shape.diameter_m).encode()).hexdigest()
    assert answer.stdout.strip() == own


# --- parts ----------------------------------------------------------------------------------------


def _two_parts(folder: Path, part: object) -> ObjectFile:
    """A lid on a box: they share the corners of one edge. Millimetres."""
    box, lid = trimesh.creation.box((80, 40, 60)), trimesh.creation.box((80, 10, 60))
    lid.apply_translation((0, 25, 0))
    vertices = np.concatenate([box.vertices, lid.vertices])
    faces = np.concatenate([box.faces, lid.faces + 8])
    trimesh.Trimesh(vertices, faces, process=False).export(folder / "mesh.obj")
    (folder / "parts.json").write_text(json.dumps(part))
    return ObjectFile(name="box", mesh="mesh.obj", metres_per_unit=1e-3, moving_part="parts.json")


def test_parts_follow_the_vertices_of_the_file(tmp_path: Path) -> None:
    """0 in the file is what turns: part 1. Vertices that coincide stay with their own part."""
    file = _two_parts(tmp_path, [1] * 8 + [0] * 8)
    shape = make_shape(file, tmp_path)
    assert len(shape.vertices) == 16
    top = shape.vertices[shape.vertex_part == 1]
    assert len(top) == 8
    np.testing.assert_allclose([top[:, 1].min(), top[:, 1].max()], [0.02, 0.03], atol=1e-7)
    assert (shape.points[shape.part_id == 1, 1] >= 0.02 - 1e-7).all()
    assert (shape.points[shape.part_id == 0, 1] <= 0.02 + 1e-7).all()
    assert 400 < shape.part_id.sum() < 1100
    assert len(shape.symmetries) == 1


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ([0] * 15, "must name a part, 0 or 1, for each of the 16 vertices"),
        ([0] * 15 + [2], "must name a part, 0 or 1"),
        ({"a": 1}, "must name a part, 0 or 1"),
    ],
)
def test_parts_that_do_not_fit_are_one_sentence(tmp_path: Path, part: object, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        make_shape(_two_parts(tmp_path, part), tmp_path)


def test_parts_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    file = _two_parts(tmp_path, [0] * 16)
    (tmp_path / "parts.json").write_text("no json")
    with pytest.raises(
        SourceError, match=r"parts.json cannot be used .is not a JSON list of numbers"
    ):
        make_shape(file, tmp_path)
    (tmp_path / "parts.json").unlink()
    with pytest.raises(SourceError, match=r"parts.json cannot be used .No such file"):
        make_shape(file, tmp_path)
