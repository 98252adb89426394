import pytest

from model.hand import (
    BONES,
    FINGERS,
    JOINT_NAMES,
    JOINT_PARENTS,
    MANO_PARENTS,
    NUM_JOINTS,
    NUM_VERTICES,
    STANDARD_FROM_INTERHAND,
    STANDARD_FROM_MANO21,
    TIP_VERTICES,
    TIPS,
    JointSet,
)

MANO21_NAMES = ["wrist"] + [
    f"{finger}{i}" for finger in ("index", "middle", "little", "ring", "thumb") for i in (0, 1, 2)
]
MANO21_NAMES += [f"{finger}3" for finger in FINGERS]
INTERHAND_NAMES = [f"{finger}{i}" for finger in FINGERS for i in (3, 2, 1, 0)] + ["wrist"]
STANDARD_NAMES = ["wrist"] + [f"{finger}{i}" for finger in FINGERS for i in range(4)]


@pytest.mark.parametrize(
    ("source", "permutation"),
    [(MANO21_NAMES, STANDARD_FROM_MANO21), (INTERHAND_NAMES, STANDARD_FROM_INTERHAND)],
    ids=["mano21", "interhand"],
)
def test_permutation_sorts_the_names(source: list[str], permutation: tuple[int, ...]) -> None:
    assert [source[i] for i in permutation] == STANDARD_NAMES


def test_mano21_permutation_is_the_inverse_of_hamers() -> None:
    # hamer/utils/pose_utils.py writes HO-3D predictions with standard -> MANO-21.
    hamer = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20]
    assert [hamer[i] for i in STANDARD_FROM_MANO21] == list(range(NUM_JOINTS))


def test_names_agree_with_the_order() -> None:
    assert len(JOINT_NAMES) == len(set(JOINT_NAMES)) == NUM_JOINTS
    short = [name.split("_", maxsplit=1)[0] for name in JOINT_NAMES]
    assert short == ["wrist"] + [finger for finger in FINGERS for _ in range(4)]
    assert [JOINT_NAMES[i] for i in TIPS] == [f"{finger}_tip" for finger in FINGERS]


def test_both_skeletons_are_the_same_tree() -> None:
    for joint, parent in enumerate(JOINT_PARENTS):
        source = STANDARD_FROM_MANO21[joint]
        if source == 0:
            assert parent == -1
        elif source < len(MANO_PARENTS):
            assert STANDARD_FROM_MANO21[parent] == MANO_PARENTS[source]
        else:
            assert joint in TIPS
            assert parent == joint - 1
    assert len(BONES) == NUM_JOINTS - 1
    assert all(parent < child for parent, child in BONES)


def test_tip_vertices_are_five_distinct_vertices_of_the_mesh() -> None:
    for tips in TIP_VERTICES.values():
        for side in (tips.right, tips.left):
            assert len(set(side)) == 5
            assert all(0 <= vertex < NUM_VERTICES for vertex in side)


def test_smplx_tips_are_those_of_smplx() -> None:
    from smplx.vertex_ids import vertex_ids

    order = ("thumb", "index", "middle", "ring", "pinky")
    assert TIP_VERTICES["smplx"].right == tuple(vertex_ids["mano"][name] for name in order)


def test_manopth_has_another_middle_tip_on_the_left_and_only_there() -> None:
    differ = {
        name: [a for a, b in zip(tips.right, tips.left, strict=True) if a != b]
        for name, tips in TIP_VERTICES.items()
    }
    assert differ == {"smplx": [], "freihand": [], "manopth": [444], "ho3d": []}
    assert TIP_VERTICES["manopth"].left[FINGERS.index("middle")] == 445


def test_joint_set_values_are_stored_in_files() -> None:
    values = {s.name: s.value for s in JointSet}
    assert values == {"smplx": 0, "freihand": 1, "interhand26m": 2, "manopth": 3, "ho3d": 4}
    assert set(values) - set(TIP_VERTICES) == {"interhand26m"}
