"""The metrics of Long et al., against sets of pixels."""

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import confusion_matrix

from fcn_smp.metrics import BINS, ConfusionMatrix, Scores, Thresholds

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


INTEGERS = [torch.uint8, torch.int16, torch.int32, torch.int64]


@st.composite
def label_maps(draw: st.DrawFn) -> tuple[int, int, torch.Tensor, torch.Tensor]:
    """Number of classes, that of void, prediction and truth: of any types, contiguous or not, perhaps empty."""
    classes = draw(st.sampled_from([1, 2, 21, 255, 256, 300]))
    void = draw(st.sampled_from([-1, 255, classes, 1000]))
    shape = draw(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(1, 4)))
    numbers = [k for k in range(classes) if k != void]
    some = draw(st.lists(st.sampled_from([*numbers[:3], *numbers[-3:], void]), min_size=1, max_size=5))
    truth = draw(arrays(np.int64, shape, elements=st.sampled_from(some)))
    prediction = draw(arrays(np.int64, shape, elements=st.integers(0, classes - 1)))
    tensors = []
    for label in (prediction, truth):
        fitting = [kind for kind in INTEGERS if torch.equal(torch.tensor(label).to(kind).long(), torch.tensor(label))]
        tensor = torch.tensor(label).to(draw(st.sampled_from(fitting)))
        layout = draw(st.sampled_from(["contiguous", "transposed", "strided"]))
        if layout == "transposed":
            tensor = tensor.transpose(0, 2).contiguous().transpose(0, 2)
        elif layout == "strided":
            tensor = tensor.repeat_interleave(2, 1)[:, ::2]
        tensors.append(tensor)
    return classes, void, *tensors


@settings(deadline=None, max_examples=200)
@given(label_maps())
def test_counts_are_those_of_scikit_learn(drawn: tuple[int, int, torch.Tensor, torch.Tensor]) -> None:
    classes, void, prediction, target = drawn
    before = prediction.clone(), target.clone()
    matrix = ConfusionMatrix(classes, void)
    matrix.update(prediction, target)
    labelled = target.long() != void
    expected = np.zeros((classes, classes), int)
    if labelled.any() and classes > 1:  # scikit-learn warns of a single class
        expected = confusion_matrix(target[labelled], prediction[labelled], labels=range(classes))
    elif classes == 1:
        expected[0] = labelled.sum()
    assert matrix.counts.dtype == torch.int64
    np.testing.assert_array_equal(matrix.counts, expected)
    assert torch.equal(prediction, before[0])
    assert torch.equal(target, before[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("void", [255, -1])
@pytest.mark.parametrize(("prediction", "target"), [([1, 4], [0, 1]), ([0, 1], [4, 1]), ([0, 1], [1, 254])])
def test_a_number_that_is_no_class_is_refused(
    dtype: torch.dtype, void: int, prediction: list[int], target: list[int]
) -> None:
    matrix = ConfusionMatrix(CLASSES, void)
    with pytest.raises(ValueError, match=f"1 pixels are wrong: the target must be 0 to 3, or {void} for void"):
        matrix.update(torch.tensor(prediction, dtype=dtype), torch.tensor(target, dtype=dtype))
    assert not matrix.counts.any()


@pytest.mark.parametrize("number", [-1, 256, 2**32, -(2**63)])
def test_a_number_whose_lowest_byte_is_a_class_is_refused_all_the_same(number: int) -> None:
    right, wrong = torch.tensor([0, 1]), torch.tensor([0, number])
    for pair in ((right, wrong), (wrong, right)):
        with pytest.raises(ValueError, match="1 pixels are wrong"):
            ConfusionMatrix(CLASSES, 255).update(*pair)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("void", [255, 1000])
def test_what_is_predicted_in_void_may_be_anything(dtype: torch.dtype, void: int) -> None:
    matrix = ConfusionMatrix(CLASSES, void)
    anything = torch.tensor([0, 3, 255], dtype=dtype)
    matrix.update(anything, torch.tensor([3, void, void], dtype=torch.int64))
    assert matrix.counts.nonzero().tolist() == [[3, 0]]


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"The target is \(3, 2\), the other \(2, 3\)"):
        ConfusionMatrix(CLASSES, 255).update(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_more_pixels_of_one_class_than_float32_can_count_are_exact(dtype: torch.dtype) -> None:
    target = torch.zeros(5001, 5001, dtype=dtype)
    assert target.numel() > 2**24
    target[0, :3], target[-1, -2:] = 255, 1
    matrix = ConfusionMatrix(2, 255)
    matrix.update(torch.zeros_like(target), target)
    assert matrix.counts.tolist() == [[5001**2 - 5, 0], [2, 0]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 255]), st.floats(0, 1, width=32)), max_size=40))
@example([(1, 0.0), (1, 1 / 256), (0, 1.0), (0, 255 / 256), (255, 0.5)])
def test_probabilities_are_counted_in_steps_that_hold_their_upper_end(pixels: list[tuple[int, float]]) -> None:
    counts = Thresholds(255)
    labels, probabilities = ([pixel[place] for pixel in pixels] for place in (0, 1))
    counts.update(torch.tensor(probabilities), torch.tensor(labels, dtype=torch.uint8))
    expected = np.zeros((2, BINS + 1), int)
    for k, probability in pixels:
        if k != 255:
            expected[k, next(step for step in range(BINS + 1) if probability <= step / BINS)] += 1
    np.testing.assert_array_equal(counts.counts, expected)


@pytest.mark.parametrize("probability", [math.nan, -0.5, 1.5])
def test_what_is_no_probability_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match="1 pixels are wrong"):
        Thresholds(255).update(torch.tensor([0.5, probability]), torch.tensor([0, 1]))
