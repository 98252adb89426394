import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from tests.reference import contact as reference
from tests.train.evaluate.metrics.scenes import stream, to_tensors
from train.evaluate.metrics.contact import ContactAccumulator, ContactScores, contact_from_distance


def _scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability, contact and validity of seven hands; some probabilities are the threshold."""
    rng = np.random.default_rng(0)
    contact = rng.random((7, 40)) < 0.3
    probability = np.clip(0.5 * contact + rng.normal(0.3, 0.2, contact.shape), 0, 1)
    probability[rng.random(contact.shape) < 0.1] = 0.5
    valid = rng.random(contact.shape) < 0.8
    contact[2], probability[2] = False, 0.1  # nothing to find, nothing said
    contact[3] = False  # only false alarms
    probability[4] = 0.0  # only misses
    probability[~valid] = math.nan
    return probability, contact, valid


def _scores(*arrays: np.ndarray, threshold: float = 0.5) -> ContactScores:
    accumulator = ContactAccumulator(threshold=threshold)
    stream(accumulator.update, *to_tensors(*arrays))
    return accumulator.summary()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7, 1.0])
def test_scores_match_the_counts(threshold: float) -> None:
    scene = _scene()
    actual = asdict(_scores(*scene, threshold=threshold))
    expected = reference.score(*scene, threshold=threshold)
    for name, value in actual.items():
        assert value == pytest.approx(expected[name], rel=1e-12), name
    assert 0 < actual["recall"] < 1 or threshold in (0, 1)


def test_a_decision_is_taken_as_it_is() -> None:
    probability, contact, valid = _scene()
    said = probability > 0.5
    assert _scores(said, contact, valid) == _scores(probability, contact, valid)


def test_hands_without_any_contact_leave_the_mean_of_hands_alone() -> None:
    probability, contact, valid = _scene()
    rest = [0, 1, 3, 4, 5, 6]
    scores, fewer = _scores(*_scene()), _scores(probability[rest], contact[rest], valid[rest])
    assert (scores.num_hands, fewer.num_hands) == (7, 6)
    assert scores.per_hand_f1 == fewer.per_hand_f1
    quiet = _scores(0 * probability[2:3], contact[2:3], valid[2:3])
    assert (quiet.precision, quiet.recall, quiet.f1, quiet.per_hand_f1) == (0, 0, 0, None)


def test_hands_without_a_valid_vertex_are_not_counted() -> None:
    probability, contact, valid = _scene()
    valid[5] = False
    assert _scores(probability, contact, valid).num_hands == 6
    with pytest.raises(ValueError, match="no hand was scored: there was none, or none with a"):
        _scores(probability, contact, np.zeros_like(valid))
    with pytest.raises(ValueError, match="no hand was scored"):
        ContactAccumulator().summary()


def test_streaming_equals_all_at_once() -> None:
    once = ContactAccumulator()
    once.update(*to_tensors(*_scene()))
    assert asdict(_scores(*_scene())) == pytest.approx(asdict(once.summary()), rel=1e-13)


def test_a_probability_of_float32_is_compared_in_float64() -> None:
    yes = torch.ones(1, 1, dtype=torch.bool)
    for value, expected in ((0.6, 1.0), (0.7, 0.0)):  # above and below the decimal in float32
        accumulator = ContactAccumulator(threshold=value)
        accumulator.update(torch.tensor([[value]]), yes, yes)
        assert accumulator.summary().recall == expected


def test_contact_from_distance_includes_the_threshold() -> None:
    distance = np.array([[0.0, 2.9999], [3.0, 3.0001], [np.nan, np.inf]])
    actual = contact_from_distance(torch.from_numpy(distance), 3.0)
    assert np.array_equal(actual.numpy(), reference.from_distance(distance, 3.0))
    assert actual.tolist() == [[True, True], [True, False], [False, False]]


def test_bad_input_is_an_error() -> None:
    probability, contact, valid = to_tensors(*_scene())
    update = ContactAccumulator().update
    with pytest.raises(ValueError, match=r"^contact must have shape \(7, 40\), got \(7, 39\)$"):
        update(probability, contact[:, 1:], valid)
    with pytest.raises(ValueError, match=r"^valid must have shape \(7, 40\), got \(1, 40\)$"):
        update(probability, contact, valid[:1])
    with pytest.raises(ValueError, match=r"^probability must be in \[0, 1\]; \d+ of 280 scored"):
        update(probability, contact, torch.ones_like(valid))
    with pytest.raises(ValueError, match=r"are not \(logits need a sigmoid\)$"):
        update(5 * probability, contact, valid)
