"""The metrics of Long et al., against sets of pixels."""

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcn_smp.metrics import ConfusionMatrix, Scores

CLASSES = 4


@st.composite
def pixels(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Truth and prediction of some pixels, and which number means void; often some class is absent from either."""
    void = draw(st.sampled_from([255, -1, CLASSES]))
    count = draw(st.integers(0, 40))
    drawn = []
    for allowed in ([*range(CLASSES), void], [*range(CLASSES)]):
        some = draw(st.lists(st.sampled_from(allowed), min_size=1, unique=True))
        drawn.append(draw(st.lists(st.sampled_from(some), min_size=count, max_size=count)))
    return drawn[0], drawn[1], void


def mean(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def scores_by_hand(truth: list[int], prediction: list[int], void: int) -> Scores:
    labelled = {place for place, k in enumerate(truth) if k != void}
    ious, accuracies, precisions, counts, weighted, right = [], [], [], [], 0.0, 0
    for k in range(CLASSES):
        true = {place for place in labelled if truth[place] == k}
        predicted = {place for place in labelled if prediction[place] == k}
        ious.append(len(true & predicted) / len(true | predicted) if true | predicted else math.nan)
        accuracies.append(len(true & predicted) / len(true) if true else math.nan)
        precisions.append(len(true & predicted) / len(predicted) if predicted else math.nan)
        counts.append(len(true))
        right += len(true & predicted)
        weighted += len(true) * ious[-1] if true else 0
    total = len(labelled)
    return Scores(
        pixel_accuracy=right / total if total else math.nan,
        mean_accuracy=mean(accuracies),
        mean_iu=mean(ious),
        frequency_weighted_iu=weighted / total if total else math.nan,
        iu=ious,
        accuracy=accuracies,
        precision=precisions,
        pixels=counts,
    )


def score(truth: list[int], prediction: list[int], void: int) -> Scores:
    matrix = ConfusionMatrix(CLASSES, void)
    matrix.update(torch.tensor(prediction, dtype=torch.int64), torch.tensor(truth, dtype=torch.int64))
    return matrix.scores()


def assert_same(one: Scores, other: Scores) -> None:
    for name in Scores.__dataclass_fields__:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12, err_msg=name)


@settings(deadline=None)
@given(pixels())
@example(([255, 255], [0, 1], 255))
@example(([0, 0, 1], [2, 0, 1], 255))
def test_scores_are_those_of_sets_of_pixels(drawn: tuple[list[int], list[int], int]) -> None:
    assert_same(score(*drawn), scores_by_hand(*drawn))


@settings(deadline=None)
@given(pixels(), st.randoms(use_true_random=False), st.integers(1, 5))
def test_scores_do_not_depend_on_order_or_batches(
    drawn: tuple[list[int], list[int], int], random: Random, batches: int
) -> None:
    truth, prediction, void = drawn
    order = list(range(len(truth)))
    random.shuffle(order)
    matrix = ConfusionMatrix(CLASSES, void)
    for start in range(batches):
        part = order[start::batches]
        matrix.update(
            torch.tensor([prediction[place] for place in part], dtype=torch.int64),
            torch.tensor([truth[place] for place in part], dtype=torch.int64),
        )
    assert_same(matrix.scores(), score(*drawn))


def test_class_that_is_only_predicted_has_iu_0_and_no_accuracy() -> None:
    scores = score([0, 0, 1, 1], [0, 2, 1, 1], 255)
    np.testing.assert_array_equal(scores.iu, [0.5, 1, 0, math.nan])
    np.testing.assert_array_equal(scores.accuracy, [0.5, 1, math.nan, math.nan])
    assert scores.mean_iu == 0.5
    assert scores.mean_accuracy == 0.75
    assert scores.pixels == [2, 2, 0, 0]


def test_void_is_not_even_a_false_positive() -> None:
    assert_same(score([0, 1, 255, 255], [0, 1, 0, 1], 255), score([0, 1], [0, 1], 255))


def test_nothing_labelled_has_no_score() -> None:
    scores = score([255, 255], [0, 1], 255)
    for name in ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"):
        assert math.isnan(getattr(scores, name)), name


@pytest.mark.parametrize("shape", [(24,), (2, 3, 4), (1, 1, 24)])
@pytest.mark.parametrize("dtypes", [(torch.uint8, torch.uint8), (torch.int64, torch.uint8), (torch.int32, torch.int64)])
def test_tensors_of_any_shape_and_integer_type_count(shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    truth, prediction = [0, 1, 2, 255, 3, 3] * 4, [0, 1, 1, 2, 3, 0] * 4
    matrix = ConfusionMatrix(CLASSES, 255)
    matrix.update(
        torch.tensor(prediction, dtype=dtypes[0]).view(shape), torch.tensor(truth, dtype=dtypes[1]).view(shape)
    )
    assert_same(matrix.scores(), scores_by_hand(truth, prediction, 255))


def test_counts_beyond_the_reach_of_float32_stay_exact() -> None:
    matrix = ConfusionMatrix(2, 255)
    matrix.counts += torch.tensor([[2**40 + 1, 0], [0, 1]])
    assert matrix.scores().pixels == [2**40 + 1, 1]
    matrix.update(torch.tensor([0]), torch.tensor([0]))
    assert matrix.scores().pixels == [2**40 + 2, 1]


def test_reset_starts_from_nothing() -> None:
    matrix = ConfusionMatrix(CLASSES, 255)
    matrix.update(torch.tensor([0, 1]), torch.tensor([1, 1]))
    matrix.reset()
    matrix.update(torch.tensor([2]), torch.tensor([2]))
    assert_same(matrix.scores(), scores_by_hand([2], [2], 255))


def test_counts_are_no_part_of_a_checkpoint() -> None:
    assert ConfusionMatrix(CLASSES, 255).state_dict() == {}
