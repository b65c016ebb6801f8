"""Trimaps and the boundary F1, against distances from pixel to pixel."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion, distance_transform_edt

from fcn_smp.boundary import WIDTHS, Boundary
from fcn_smp.data.scenes import draw_scene
from fcn_smp.data.voc import VOCSegmentation

VOID = 255
NAN = math.nan
CLASSES = 4


@st.composite
def pairs(draw):
    """Prediction and truth: blocks of pixels, so long that boundaries a few pixels apart match, some deep in void."""
    blocks = draw(st.tuples(st.integers(1, 3), st.integers(1, 5)))
    scale = draw(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 40])))
    labels = draw(st.lists(st.sampled_from([0, 1, 2, VOID]), min_size=1, unique=True))
    truth = draw(arrays(np.uint8, blocks, elements=st.sampled_from(labels)))
    prediction = draw(st.one_of(st.just(truth % VOID), arrays(np.uint8, blocks, elements=st.integers(0, 2))))
    truth, prediction = (label.repeat(scale[0], 0).repeat(scale[1], 1) for label in (truth, prediction))
    return np.roll(prediction, draw(st.integers(0, 4)), axis=1), truth


def squared_distances(places, others):
    """Of each of ``places`` (M, 2) to each of ``others`` (N, 2), whole numbers."""
    return ((places[:, None] - others[None]) ** 2).sum(-1)


def mean(values):
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else NAN


def trimap_by_hand(images, width):
    pixels = []
    for prediction, truth in images:
        for k in set(truth.flat) - {VOID}:
            own, others = np.argwhere(truth == k), np.argwhere(truth != k)
            near = own[(squared_distances(own, others) <= width**2).any(1)]
            pixels += [(k, prediction[tuple(place)]) for place in near]
    ius = []
    for k in range(CLASSES):
        union = sum(k in pixel for pixel in pixels)
        ius.append(pixels.count((k, k)) / union if union else NAN)
    return mean(ius)


def complete_by_hand(truth):
    """Fill void with the nearest class, the smaller of equally near ones; also return how deep in void pixels are."""
    completed, depth = truth.copy(), np.zeros(truth.shape)
    labelled = np.argwhere(truth != VOID)
    for place in np.argwhere(truth == VOID):
        distances = squared_distances(place[None], labelled)[0]
        nearest = labelled[distances == distances.min()]
        completed[tuple(place)] = min(truth[tuple(other)] for other in nearest)
        depth[tuple(place)] = math.sqrt(distances.min())
    return completed, depth


def boundary_by_hand(label, k, counts):
    """Places of class k's pixels with a 4-neighbour of another class, where they count."""
    padded = np.pad(label, 1, "edge")
    around = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    return np.argwhere((label == k) & np.any([label != other for other in around], 0) & counts)


def f1_by_hand(prediction, truth, k):
    if (truth == VOID).all():
        return NAN
    completed, depth = complete_by_hand(truth)
    true, predicted = (boundary_by_hand(label, k, depth <= 5) for label in (completed, prediction))
    if not len(true) or not len(predicted):
        return NAN if len(true) == len(predicted) else 0.0
    close = squared_distances(predicted, true) < 0.0075**2 * (truth.shape[0] ** 2 + truth.shape[1] ** 2)
    precision, recall = close.any(1).mean(), close.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def score(*images, classes=CLASSES):
    boundary = Boundary(classes, VOID)
    for prediction, truth in images:
        boundary.update(prediction, truth)
    return boundary.scores()


@settings(deadline=None, max_examples=150)
@given(st.lists(pairs(), min_size=1, max_size=2))
def test_scores_are_those_of_distances_from_pixel_to_pixel(images):
    scores = score(*images)
    per_class = [mean([f1_by_hand(*image, k) for image in images]) for k in range(CLASSES)]
    np.testing.assert_allclose(scores.f1_per_class, per_class, rtol=1e-12)
    np.testing.assert_allclose(scores.f1, mean(per_class), rtol=1e-12)
    assert list(scores.trimap_iu) == list(WIDTHS)
    for width in WIDTHS:
        np.testing.assert_allclose(scores.trimap_iu[width], trimap_by_hand(images, width), rtol=1e-12)


@settings(deadline=None, max_examples=50)
@given(pairs())
def test_a_perfect_prediction_has_1_wherever_anything_is_defined(image):
    truth = image[1]
    prediction = complete_by_hand(truth)[0] if (truth != VOID).any() else image[0]
    scores = score((prediction, truth))
    assert set(np.nan_to_num([scores.f1, *scores.f1_per_class, *scores.trimap_iu.values()], nan=1)) == {1}
    if len(set(truth.flat) - {VOID}) > 1 and VOID not in truth:
        assert (scores.f1, scores.trimap_iu[1]) == (1, 1)


def square(left):
    label = np.zeros((120, 160), np.uint8)
    label[40:60, left : left + 20] = 1
    return label


def test_a_shifted_square_has_the_scores_that_were_worked_out_by_hand():
    # The diagonal is 200 pixels, so the tolerance 1.5. Of the 76 boundary pixels of the predicted square 18 of the
    # upper side match, 18 of the lower one, and the 2 of the left side that are next to them; likewise the other way
    # round. Of the 80 of background around it 19, 19 and 2 match.
    scores = score((square(left=43), square(left=40)))
    assert scores.f1_per_class[:2] == [40 / 80, 38 / 76]
    assert scores.f1 == 0.5
    # Within 1 pixel are the 76 of the square, of which 3 columns are missed, and the 80, of which 20 are taken.
    assert scores.trimap_iu[1] == pytest.approx((52 / (76 + 20) + 60 / (80 + 24)) / 2, rel=1e-12)
    assert score((square(left=41), square(left=40))).f1 == 1
    assert score((square(left=100), square(left=40))).f1 == 0


def halves(column, width=320):
    label = np.zeros((240, width), np.uint8)  # the diagonal is 400 pixels, so the tolerance 3
    label[:, column:] = 1
    return label


def test_a_distance_of_just_the_tolerance_is_too_far():
    assert score((halves(102), halves(100))).f1 == 1
    assert score((halves(103), halves(100))).f1 == 0
    assert score((halves(103, width=321), halves(100, width=321))).f1 == 1


def test_the_true_boundary_is_in_the_middle_of_a_void_border():
    truth = np.zeros((20, 40), np.uint8)
    truth[:, 18:22], truth[:, 22:] = VOID, 1
    f1 = {}
    for column in range(18, 23):
        prediction = np.zeros_like(truth)
        prediction[:, column:] = 1
        f1[column] = score((prediction, truth)).f1
    assert f1 == {18: 0, 19: 0, 20: 1, 21: 0, 22: 0}


def test_what_is_predicted_deep_in_void_counts_nowhere():
    truth = square(left=40)
    truth[20:70, 100:150] = VOID
    prediction = truth % VOID
    deep, at_its_edge = prediction.copy(), prediction.copy()
    deep[26:50, 110:130] = 2
    at_its_edge[24:50, 110:130] = 2  # 5 pixels from the last labelled row
    assert repr(score((deep, truth))) == repr(score((prediction, truth)))
    assert score((deep, truth)).f1 == 1
    assert score((at_its_edge, truth)).f1_per_class[2] == 0


def test_a_class_that_one_map_alone_has_counts_0_in_that_image_and_nowhere_else():
    with_square, without = square(left=40), np.zeros((120, 160), np.uint8)
    both = (with_square, with_square)
    np.testing.assert_array_equal(score(both, (with_square, without)).f1_per_class, [0.5, 0.5, NAN, NAN])
    np.testing.assert_array_equal(score(both, (without, with_square)).f1_per_class, [0.5, 0.5, NAN, NAN])
    np.testing.assert_array_equal(score(both, (without, without)).f1_per_class, [1, 1, NAN, NAN])


def test_an_image_that_is_all_void_changes_nothing():
    image = (square(left=43), square(left=40))
    assert repr(score(image, (image[0], np.full_like(image[1], VOID)))) == repr(score(image))


def test_without_a_boundary_nothing_is_defined():
    empty = np.zeros((6, 8), np.uint8)
    for scores in (score(), score((empty, empty)), score((empty, np.full_like(empty, VOID)))):
        assert all(math.isnan(value) for value in (scores.f1, *scores.f1_per_class, *scores.trimap_iu.values()))


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"The prediction is \(4, 6\), the truth \(6, 4\)"):
        score((np.zeros((4, 6), np.uint8), np.zeros((6, 4), np.uint8)))


def test_inputs_stay_as_they_were():
    truth = draw_scene(np.random.default_rng(0))[1]
    prediction = np.roll(truth % VOID, 3, axis=0)
    before = prediction.copy(), truth.copy()
    score((prediction, truth), classes=7)
    np.testing.assert_array_equal(np.stack(before), np.stack([prediction, truth]))


@pytest.fixture(params=[0, 2])
def threads(request):
    """Number of OpenCV's threads, on which the last place of its distances depends."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(request.param)
    yield request.param
    cv2.setNumThreads(before)


@pytest.mark.parametrize("share", [0.5, 0.01, 1e-4])
def test_the_squares_of_opencvs_distances_are_whole_numbers(share, threads):
    mask = np.random.default_rng(0).random((375, 500)) < share
    mask[200, 100] = True
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(float)
    np.testing.assert_array_equal(np.rint(distance**2), np.rint(distance_transform_edt(~mask) ** 2))


def test_ties_between_classes_do_not_depend_on_opencvs_threads(threads):
    rng = np.random.default_rng(0)
    truth = np.full((20, 90, 90), VOID, np.uint8)  # the tolerance is less than a pixel
    labelled = rng.random(truth.shape) < 0.02
    truth[labelled] = rng.integers(0, CLASSES, labelled.sum())
    for image in truth:
        squares = np.stack([np.rint(distance_transform_edt(image != k) ** 2) for k in range(CLASSES)])
        assert score((squares.argmin(0).astype(np.uint8), image)).f1_per_class == [1] * CLASSES


def scores_by_scipy(prediction, truth):
    """Boundary F1 of each class and trimap IU of an image, from SciPy's distances."""
    counts = np.zeros((len(WIDTHS), 21, 21), int)
    for k in set(truth.flat) - {VOID}:
        own = truth == k
        distance = distance_transform_edt(own)
        for number, width in enumerate(WIDTHS):
            counts[number, k] += np.bincount(prediction[own & (distance <= width)], minlength=21)
    hits = counts.diagonal(axis1=1, axis2=2)
    union = counts.sum(1) + counts.sum(2) - hits
    trimaps = [mean((h[u > 0] / u[u > 0]).tolist()) for h, u in zip(hits, union, strict=True)]
    classes = np.array(sorted(set(truth.flat) - {VOID}))
    distances = np.stack([distance_transform_edt(truth != k) for k in classes])
    completed, counted = classes[distances.argmin(0)], distances.min(0) <= 5
    f1 = np.full(21, NAN)
    for k in np.union1d(completed, prediction):
        # A border of the same class keeps the frame of the image from being a boundary.
        true, predicted = (
            own & ~binary_erosion(own, border_value=1) & counted for own in (completed == k, prediction == k)
        )
        tolerance = 0.0075 * math.hypot(*truth.shape)
        precision = (distance_transform_edt(~true)[predicted] < tolerance).mean() if true.any() else 0
        recall = (distance_transform_edt(~predicted)[true] < tolerance).mean() if predicted.any() else 0
        f1[k] = 2 * precision * recall / (precision + recall) if precision + recall else 0
    return f1, trimaps


@pytest.mark.parametrize("image", [0, 30, 100])
def test_scores_of_real_masks_are_those_of_scipys_distances(data, image):
    truth = VOCSegmentation(data / "voc2007-segmentation-trainval.tar", "val", 2007).read_label(image)
    prediction = np.roll(truth % VOID, (2, 5), (0, 1))
    scores = score((prediction, truth), classes=21)
    f1, trimaps = scores_by_scipy(prediction, truth)
    np.testing.assert_allclose(scores.f1_per_class, f1, rtol=1e-12)
    np.testing.assert_allclose(list(scores.trimap_iu.values()), trimaps, rtol=1e-12)
    assert 0.2 < scores.trimap_iu[1] < scores.trimap_iu[32] < 1
