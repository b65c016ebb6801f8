"""Class weights, against counting by hand."""

import numpy as np
import pytest
from helpers import LabelsInMemory, random_label
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_smp.data.class_weights import ClassCounts, class_weights, count_classes
from fcn_smp.data.dataset import Array

CLASSES = 4


@st.composite
def labels(draw: st.DrawFn) -> list[Array]:
    """A few small labels, of void and some of the classes, with at least one labelled pixel in all."""
    values = draw(st.sampled_from([[0, 1, 2, 3, 255], [0, 2, 255], [1, 3], [3]]))
    pictures = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
        lambda size: st.lists(st.sampled_from(values), min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
            lambda numbers: np.array(numbers, np.uint8).reshape(size)
        )
    )
    first = np.full((2, 2), values[0], np.uint8)
    return [first, *draw(st.lists(pictures, max_size=5))]


def counted(pictures: list[Array]) -> list[dict[int, int]]:
    """Count the pixels of each class in each picture, one by one."""
    counts = []
    for picture in pictures:
        pixels: dict[int, int] = {}
        for value in picture.ravel().tolist():
            if value != 255:
                pixels[value] = pixels.get(value, 0) + 1
        counts.append(pixels)
    return counts


def weights_by_hand(pictures: list[Array], method: str) -> list[float]:
    counts = counted(pictures)
    pixels = [sum(count.get(k, 0) for count in counts) for k in range(CLASSES)]
    shown = [[count for count in counts if k in count] for k in range(CLASSES)]
    present = [k for k in range(CLASSES) if pixels[k]]
    weights = [0.0] * CLASSES
    if method == "inverse_frequency":
        for k in present:
            weights[k] = sum(pixels) / (len(present) * pixels[k])
    elif method == "median_frequency":
        frequency = {k: pixels[k] / sum(sum(count.values()) for count in shown[k]) for k in present}
        ranked = sorted(frequency.values())
        middle = (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2
        for k in present:
            weights[k] = middle / frequency[k]
    else:
        raw = {k: (1 - 0.999) / (1 - 0.999 ** len(shown[k])) for k in present}
        for k in present:
            weights[k] = raw[k] * len(present) / sum(raw.values())
    return weights


@settings(deadline=None)
@given(labels())
def test_counts_are_those_of_counting_one_by_one(pictures: list[Array]) -> None:
    counts = count_classes(LabelsInMemory(pictures, CLASSES))
    each = counted(pictures)
    for k in range(CLASSES):
        showing = [count for count in each if k in count]
        assert counts.pixels[k] == sum(count[k] for count in showing)
        assert counts.images[k] == len(showing)
        assert counts.image_pixels[k] == sum(sum(count.values()) for count in showing)


@pytest.mark.parametrize("method", ["inverse_frequency", "median_frequency", "effective_number"])
@settings(deadline=None)
@given(pictures=labels())
def test_weights_are_those_of_the_definition(method: str, pictures: list[Array]) -> None:
    weights = class_weights(count_classes(LabelsInMemory(pictures, CLASSES)), method)
    assert all(type(weight) is float for weight in weights)
    np.testing.assert_allclose(weights, weights_by_hand(pictures, method), rtol=1e-9)
    for k in range(CLASSES):
        assert (weights[k] == 0) == all((picture != k).all() for picture in pictures)


@settings(deadline=None)
@given(labels())
def test_inverse_frequency_gives_all_classes_the_same_mass_and_keeps_the_sum(pictures: list[Array]) -> None:
    counts = count_classes(LabelsInMemory(pictures, CLASSES))
    mass = counts.pixels * np.array(class_weights(counts, "inverse_frequency"))
    np.testing.assert_allclose(mass[mass > 0], mass.max())
    np.testing.assert_allclose(mass.sum(), counts.pixels.sum())


def test_median_frequency_is_that_of_segnet() -> None:
    # Badrinarayanan et al., section 4.1: a class's pixels over all pixels of the images that show it.
    pictures = [np.array([[0, 0, 0, 1]], np.uint8), np.array([[0, 255, 2, 2]], np.uint8)]
    weights = class_weights(count_classes(LabelsInMemory(pictures, CLASSES)), "median_frequency")
    frequencies = [4 / 7, 1 / 4, 2 / 3]
    np.testing.assert_allclose(weights, [(4 / 7) / f for f in frequencies] + [0])


def test_effective_number_counts_images_and_not_pixels() -> None:
    counts = ClassCounts(np.array([10**6, 10]), np.array([100, 100]), np.array([10**6, 10**6]))
    assert class_weights(counts, "effective_number") == [1.0, 1.0]
    rare = ClassCounts(counts.pixels, np.array([100, 1]), counts.image_pixels)
    common, seldom = class_weights(rare, "effective_number")
    np.testing.assert_allclose(seldom / common, sum(0.999**n for n in range(100)))


def test_counting_many_labels_at_once_loses_none() -> None:
    rng = np.random.default_rng(0)
    pictures = [random_label(rng, (30, 40), CLASSES) for _ in range(60)]
    counts = count_classes(LabelsInMemory(pictures, CLASSES))
    assert counts.pixels.sum() == sum((picture != 255).sum() for picture in pictures)
    assert counts.pixels.dtype == np.int64
