"""Plain data comes back exactly; whatever else a pickle holds is refused, and nothing runs."""

import io
import json
import os
import pickle
import subprocess
import sys
import zlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pickles import MAX_DEPTH, Instance, PickleError, load_npy, load_pickle
from preprocess.mano.arrays import MANO_CLASSES
from tests.pipeline.pickles.hostile import HARMLESS, LIVE
from tests.pipeline.pickles.pickle_words import (
    array,
    call,
    data,
    dims,
    listed,
    name,
    name_on_stack,
    python2_dumps,
    recall,
    store,
    text,
    whole,
)

ROOT = Path(__file__).parent.parent.parent.parent
PROTOCOLS = range(6)

# Written by Python 2.7.18, NumPy 1.16.6, SciPy 1.2.3 and chumpy 0.66: base64 of zlib.
WRITTEN_BY_PYTHON_2 = {
    0: (
        "eNqdVkuL40YQvvevWIYQ+7JDV78bAruQk2GZQww5GUTrYY2CLTeSHGzIT88hVS3Z47GxveTQINVLVV99Xap5GTlb"
        "zvoibEI3YxFY0e638fha7LrqdbvfDE3ounBkowWLgs1HC1YOx1ixKNl8OVsr9FVswdkC2BA1+yMaNl9IDP0baix7"
        "e3tbfAWWDkcLx/LlbHXgnM6X72jjUQocHQFYv5ztKRnB/vx3tRc8FPgiSdyGbdWTSt1LNOuqYtf2Q7cvBrTT53zb"
        "cjSIQKlREmAxv5yiOXrz+HHBUQd4BEoEsDqVtxRoJMS5PiHJVE0V/kNKnUoUpE+xhWH5ghO2IS+oSDKypMDSsZA+"
        "hq6vSOhZUeziEfOuPyW/Q7QlplP0RYN1jg6v+MbwZNswdM0BLbBjWZbvGwSgzTK2y/+qqHAp2NsQJSUqMdEySo25"
        "NG3ZFAlAaVhN4NRnNKRFCQEhHTn5CQiJEsUnIJrUZzgDoQSaKnnRaqVueq30CQrEAU5Nv3M+6SmeoQg2YVaGIZDI"
        "Xaeu/JS6JgJpuEhdiyn1tUNXLT84qshUX6SuzU3q2l6kfjft7/eVa/ftgadbHQoqUqfcfSpyGw6xa9oBxQZTxYpQ"
        "mPXvIRJbzMjNVJoRpMKWxoGurpHXsBg1wWLShTQTLIok2GxFYNyp7bpN4updXrXJpM9QBVRDHvqGSGaJN0Th4j3d"
        "1a7adWWF1dVsWW0STy3dscRVS1yykrhqFd0bCqA/Byje2e/vKDZnJ0tOLjl5dDqgk+PXQDiYgHD0DSfPd/wEpUOk"
        "kAvPW/34rPm3/8kT7h4o4ZEnqEfKh2GLu8ovdzUvdzW/3NX8SvPdacLZJI5nZdMNx+xvnGiksZ9HWF8hLxz2dL6J"
        "jn4Lnm61T7+FrElc99j8FKeKVVv22a6lRwrmE4G8YkjEGiPXUyCfxl95SDaGhRqpFZaz2FXrquuq8nzDvGUBP0kz"
        "0HvW1+lT9RgWkB/4bM/cEemnBSS8mafAxcQ64DSGgauJd6NMn2YqDSbg5jyZgNtk7i5mE3B/M5wAf5f5T1P22eCV"
        "T/Tqid480duH+uGhtn2kJXQg4Yb7wjh/huowJDHC9xJm5F/51eqFRIpotE5afdMyMKeWQeoBuKllMM4JwCVh7Npe"
        "pQWFf3QNtwX0wC3homu4KNx0DfeG/Gfn7np9eVJEnWKM92i9CXUS2ptKhDtVImivAXm52IA8bTY5kL/8WG0grQwg"
        "L5cbkPq2DGmu/+rJ0ibduONsdm1KD3eJHwgl1x6M4Basws5wqYT6wfrX/wD76dX+"
    ),
    2: (
        "eNp1U8Fu00AUtB0nTbeFBlpKgQKlLa3bQqClQA9IROKGpRxarcSByqztTddS4vitbZRIRAKktArfwidwQOJPuHHj"
        "yA127Q3FSFnJmTjPmZk37/m9MQDdwpXYI23CwfDCtBP1616X03onbScB4Zz0UV5GUMrryE/6EUVgYqO1b2u2fnYI"
        "ZcsuYf1Zs9l8+Vuc7MPWEhebmrbSOD2ECtbTV2VN0759+f7xM0zhckg6NIbqBE2HU68bxglPvQTBtFIO/bwKyNaG"
        "WHeF8oxl67YxZMLN0Z5yM5u5eSfc2IaoCh8jbBLXk4YqcUR4TOGCF3uBEM5v6+IOicvpkIQHPQQXtz7A3ABqFp4K"
        "Qj/whNVLbJqd616WuqVMNxinMD8hhRGe1bX8SJSx+CQhsFBgvHLO2DpQjIsTGZcUYSOHX89zrH4V7NUO6UU8CBO4"
        "au/hihMzElFYEmGUTnFF9BMlHK4VxK9LcXPI5ke4NvZpiKuU+U1dXHZJHMRww/NYNjBOu9ynQuQEHdE2lVNaFpnd"
        "HMAtC+tk/JjH0AuG4LYorQzgjij1Crqr2fikszO2OMJvtML5+bzYZVVhTeGCwiWFywpXFK4qXFe40RDpzDh+wJO+"
        "81YMHtY8x3HTQOxd6DgopqKN9ePhIdzFphOIlDaauOb4NKKhHzvdUH6NYXMAVuqyNbZ+DFsWNgO/F8O26BrPRZy2"
        "KOfUV6HvUEF2j200mfjTfbaT9WqcQZ1tF3J4IHOo5us0Hv7DicNvaP+sk6bGJI+psKJwSuG0QqQwG6mZ0F4Cu7hM"
        "NtGP17CH9VbB0yPpSazkqXSVjpd8f/KSjx3Jn+SSt9rkBB4XOJ+cv67urmJ8+vd1/Z/R0LOXpd0NT+Dg07gJrZHW"
        "/wCuv1VD"
    ),
}


def load(content: bytes) -> Any:
    return load_pickle(content, name="file.pkl", allow=MANO_CLASSES)


# --- plain data -----------------------------------------------------------------------------------

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.binary(max_size=300)
    | st.binary(max_size=20).map(bytearray)
)
KEYS = st.text(max_size=5) | st.binary(max_size=5) | st.integers(-(2**64) + 1, 2**64 - 1)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
    ),
    max_leaves=20,
)


def assert_same(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    else:
        assert actual == expected


@given(value=VALUES, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_come_back_as_they_were(value: Any, protocol: int) -> None:
    assert_same(load(pickle.dumps(value, protocol)), value)


ARRAYS: dict[str, np.ndarray] = {
    "floats": np.linspace(-1, 1, 24).reshape(2, 3, 4),
    "half": np.arange(5, dtype=np.float16),
    "big-endian": np.arange(6, dtype=">i4").reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "axes swapped": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "every second": np.arange(10)[::2],
    "uint32": np.array([[0, 2**32 - 1]], np.uint32),
    "bools": np.array([True, False]),
    "texts": np.array(["a", "b\u20ac"]),
    "bytes": np.array([b"a", b"bc"]),
    "scalar": np.array(5.0),
    "empty": np.zeros((0, 3)),
    "not finite": np.array([np.nan, np.inf]),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("key", ARRAYS)
def test_arrays_come_back_exactly(key: str, protocol: int) -> None:
    expected = ARRAYS[key]
    written = pickle.dumps(expected, protocol)
    for content in (written, written.replace(b"cnumpy._core.", b"cnumpy.core.")):
        actual = load(content)
        assert actual.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(actual, expected)
        actual[...] = expected  # writable


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_come_back(protocol: int) -> None:
    for value in (np.float32(2.5), np.int64(-3), np.bool_(1), np.str_("abc")):
        actual = load(pickle.dumps(value, protocol))
        assert type(actual) is type(value)
        assert actual == value


def test_shared_values_stay_shared() -> None:
    values = np.arange(3.0)
    inner = [1]
    first, second, third, fourth = load(pickle.dumps([values, values, inner, inner], 2))
    assert first is second
    assert third is fourth


@pytest.mark.parametrize("protocol", WRITTEN_BY_PYTHON_2)
def test_a_pickle_of_python_2_with_chumpy_and_scipy(protocol: int) -> None:
    values = load(zlib.decompress(b64decode(WRITTEN_BY_PYTHON_2[protocol])))
    assert values["text"] == "a'\n\xe9\\"
    assert values["u"] == "\xfc\u20ac"
    assert values["long"] == 2**70
    assert values["scalar"] == np.float32(2.5)
    np.testing.assert_array_equal(values["f"], np.array([[0, 1, 2**32 - 1]], np.uint32))
    np.testing.assert_array_equal(values["flag"], [True, False])
    np.testing.assert_array_equal(values["names"], np.array([b"ab", b"c"]))
    basis, sparse = values["basis"], values["sparse"]
    assert (basis.module, basis.name) == ("chumpy.reordering", "Select")
    assert basis.state["_dirty_vars"] == {"a", "idxs", "preferred_shape"}
    chosen = basis.state["a"].state["x"].ravel()[basis.state["idxs"]]
    expected = np.arange(12.0).reshape(2, 2, 3)[:, :, :2]
    np.testing.assert_array_equal(chosen.reshape(basis.state["preferred_shape"]), expected)
    state = sparse.state
    matrix = scipy.sparse.csc_matrix((state["data"], state["indices"], state["indptr"]))
    np.testing.assert_array_equal(matrix.toarray(), [[0, 1.5, 0], [2, 0, -3]])


def test_byte_strings_of_python_2_are_latin_1() -> None:
    values = {
        "camMat": np.eye(3),
        "objName": "010_potted_meat_can",
        "none": None,
        "long": "x" * 300,
    }
    actual = load(python2_dumps(values))
    np.testing.assert_array_equal(actual.pop("camMat"), values.pop("camMat"))
    assert actual == values


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_allowed_class_becomes_its_name_and_state(protocol: int) -> None:
    matrix = scipy.sparse.csc_matrix(np.eye(3))
    content = pickle.dumps([matrix, matrix], protocol)
    first, second = load(content)
    assert first is second
    assert isinstance(first, Instance)
    assert (first.module, first.name) == ("scipy.sparse._csc", "csc_matrix")
    np.testing.assert_array_equal(first.state["indices"], [0, 1, 2])
    with pytest.raises(PickleError, match=r"it names 'scipy\.sparse\._csc\.csc_matrix'"):
        load_pickle(content, name="file.pkl")


# --- .npy -----------------------------------------------------------------------------------------


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("key", ARRAYS)
def test_npy_comes_back_exactly(key: str) -> None:
    expected = ARRAYS[key]
    actual = load_npy(npy(expected), name="file.npy")
    assert actual.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_array_equal(actual, expected)


def test_npy_of_a_dict_and_of_several_objects(tmp_path: Path) -> None:
    inner = {"rot": np.eye(3), "names": ["a", "b"], 5: None}
    file = tmp_path / "object.npy"
    file.write_bytes(npy(np.array(inner, dtype=object)))
    actual = load_npy(file, name="object.npy").item()
    np.testing.assert_array_equal(actual.pop("rot"), inner.pop("rot"))
    assert actual == inner
    several = np.empty((2, 2), object)
    several[:] = [[1, "b"], [None, (2, 3)]]
    assert load_npy(npy(several), name="f").tolist() == several.tolist()


def test_object_arrays_come_back() -> None:
    values = np.array([[1, None], ["a", 2.5]], object, order="F")
    for protocol in PROTOCOLS:
        np.testing.assert_array_equal(load(pickle.dumps(values, protocol)), values)


# --- limits and words -----------------------------------------------------------------------------


def test_the_sentence_of_a_refused_name() -> None:
    content = whole(call(name("os", "system"), text("true")))
    with pytest.raises(PickleError) as caught:
        load_pickle(content, name="meta.pkl", allow=frozenset({("chumpy.ch", "Ch")}))
    assert str(caught.value) == (
        "meta.pkl is refused at byte 2: it names 'os.system', which is not among what it may hold "
        "(NumPy arrays, sets, chumpy.ch.Ch); nothing in it was run"
    )


def test_the_sentence_of_an_array_that_does_not_fit_its_bytes() -> None:
    with pytest.raises(PickleError, match=r"cannot reshape array of size 2 into shape \(3,\)"):
        load(whole(array(dims(3), data(bytes(16)))))


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.pkl"
    with file.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(PickleError, match=r"larger than 67108864 bytes"):
        load_pickle(file, name="large.pkl")
    with pytest.raises(PickleError, match=r"larger than 9 bytes"):
        load_pickle(pickle.dumps("0123456789"), name="f", max_bytes=9)
    with pytest.raises(PickleError, match=r"larger than 9 bytes"):
        load_npy(npy(np.zeros(3)), name="f", max_bytes=9)


def test_steps_and_depth_are_limited() -> None:
    content = pickle.dumps(list(range(50)), 2)
    assert load_pickle(content, name="f", max_steps=60) == [*range(50)]
    with pytest.raises(PickleError, match="more than 40 steps"):
        load_pickle(content, name="f", max_steps=40)
    nested: Any = 0
    for _ in range(MAX_DEPTH):
        nested = [nested]
    assert load(pickle.dumps(nested)) == nested
    with pytest.raises(PickleError, match="more than 64 containers"):
        load(pickle.dumps([nested]))


def test_a_text_may_serve_several_small_arrays() -> None:
    again = array(dims(1), recall(0))
    content = whole(data(bytes(8)), store(0), b"0", listed(again, again, again))
    assert load(content) == [0.0, 0.0, 0.0]


def test_a_set_of_names_on_the_stack() -> None:
    content = b"\x80\x04" + call(name_on_stack("builtins", "set"), listed(text("a"))) + b"."
    assert load(content) == {"a"}


# --- the corpus -----------------------------------------------------------------------------------


def run_corpus(folder: Path, *words: str) -> list[dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.pickles.hostile", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One line for each file of the corpus, and a last one about the process."""
    return run_corpus(tmp_path_factory.mktemp("corpus"))


def test_every_hostile_or_broken_file_is_refused(corpus: list[dict[str, Any]]) -> None:
    refused = [row for row in corpus[:-1] if row["must_refuse"]]
    names = [row["name"] for row in corpus[:-1]]
    assert len(set(names)) == len(names)
    assert len(refused) >= 1000
    assert set(names) >= HARMLESS
    assert [row["name"] for row in refused if not row["is_value_error"]] == []


def test_a_refusal_is_one_sentence_that_names_the_file(corpus: list[dict[str, Any]]) -> None:
    for row in corpus[:-1]:
        if row["outcome"] != "read":
            assert row["is_value_error"], row
            assert row["message"].startswith("F"), row
            assert "\n" not in row["message"], row
            assert len(row["message"]) < 450, row


def test_refusals_say_what_is_wrong(corpus: list[dict[str, Any]]) -> None:
    messages = {row["name"]: row["message"] for row in corpus[:-1]}
    for case, words in {
        "binbytes of 2147483647 bytes": "it ends early",
        "tuples doubled": "its shared values unfold to far more than the file",
        "list in itself": "it has more than 64 containers in each other",
        "deep tuple as key": "it has a key or set member that is a value of type tuple",
        "arrays of one text": "it copies the same bytes again and again",
        "many marks": "it takes more than 200000 steps",
        "file: gzip": "F is refused: it is a gzip file, not a pickle",
        "model: Select beyond": "shapedirs selects elements that are not there",
        "model: csc with wild start": "J_regressor is a sparse matrix whose columns do not match",
        "model: csc with rows beyond": "J_regressor is a sparse matrix with elements outside",
        "model: csc of shape enormous": "J_regressor is a sparse matrix of shape (10000000, 778)",
        "model: weights halved": "rows of weights sum to 1 only within 0.5, expected 0.01",
        "model: kintree_table with other parent": "kintree_table is not MANO's joint tree",
    }.items():
        assert words in messages[case], case


def test_nothing_in_a_file_runs(corpus: list[dict[str, Any]]) -> None:
    assert [row["name"] for row in corpus[:-1] if row["traces"]] == []
    # NumPy compiles the header of a .npy file to a literal, and does not execute it.
    assert [
        (row["name"], row["events"])
        for row in corpus[:-1]
        if [e for e in row["events"] if row["read"] != "npy" or not e.startswith("compile ")]
    ] == []
    assert corpus[-1]["imported"] == []
    assert corpus[-1]["unchanged"]


def test_what_is_read_of_an_odd_file_is_plain_data(corpus: list[dict[str, Any]]) -> None:
    read = [row for row in corpus[:-1] if row["outcome"] == "read"]
    assert len(read) >= len(HARMLESS)
    assert [(row["name"], row["strange"]) for row in read if row["strange"]] == []


def test_memory_and_time_are_bounded(corpus: list[dict[str, Any]]) -> None:
    assert corpus[-1]["peak_kib"] < 200 * 1024  # measured 46 MiB; models and bombs of 1 to 8 MB
    slow = [(row["name"], row["seconds"]) for row in corpus[:-1] if row["seconds"] > 3]
    assert slow == []  # of processor time; measured worst 0.27 s


def test_canary_and_hook_see_what_pythons_own_unpickler_runs(tmp_path: Path) -> None:
    rows = run_corpus(tmp_path, "control")
    assert {row["name"] for row in rows} == set(LIVE)
    assert [row["name"] for row in rows if row["traces"] != ["canary"]] == []
    for row in rows:
        assert [e for e in row["events"] if not e.startswith("pickle.")], row
