import dataclasses

import numpy as np
import pytest

from preprocess.records import Rows, empty_labels


def test_empty_labels_say_that_everything_is_missing() -> None:
    labels = empty_labels()
    for field in dataclasses.fields(labels):
        value = np.asarray(getattr(labels, field.name))
        if field.name == "official_valid":
            assert value.all()  # no rule leaves them out
        elif field.name == "A_file_from_raw":
            assert np.array_equal(value, np.eye(2, 3))  # the official image itself
        elif value.dtype.kind == "f":
            assert np.isnan(value).all(), field.name
        else:
            assert (value == (False if value.dtype == bool else -1)).all(), field.name


def test_empty_labels_share_nothing() -> None:
    first, second = empty_labels(), empty_labels()
    first.K[:] = 1.0
    first.joint_valid[:] = True
    assert np.isnan(second.K).all()
    assert not second.joint_valid.any()


def test_rows_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal lengths, got \[1, 2\]"):
        Rows(
            image=["a", "b"],
            sequence=["s"],
            camera=["c", "c"],
            subject=["u", "u"],
            frame_idx=np.zeros(2, np.int32),
        )
