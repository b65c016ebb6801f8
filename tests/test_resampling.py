"""Intervals and tests over images, against SciPy's, counting by hand and what theory says of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from fcn_smp.resampling import Comparison, compare, interval, mean_iu

NAN = math.nan
CLASSES = 3


def counts_of(truth, prediction, classes=CLASSES):
    """Hits, truth and predicted pixels of each class, without void."""
    labelled = truth != 255
    hits = np.where(truth == prediction, truth, 255)[labelled]
    return np.stack(
        [[(label == k).sum() for k in range(classes)] for label in (hits, truth[labelled], prediction[labelled])]
    )


def scenes(rng, images, right, pixels=400):
    """Counts of models on the same images, in whose predictions a share ``right`` (one a model) is right."""
    counts = [[] for _ in right]
    for _ in range(images):
        truth = rng.choice([0, 0, *rng.integers(0, CLASSES, 2), 255], pixels)
        hard = rng.normal(0, 0.05)  # an image is hard, or easy, for all models
        for model, share in zip(counts, right, strict=True):
            prediction = np.where(rng.random(pixels) < share + hard, truth, rng.integers(0, CLASSES, pixels))
            model.append(counts_of(truth, prediction % 255))
    return [np.stack(model) for model in counts]


def pooled_mean_iu(counts):
    """Mean IU of images (N, 3, C) taken together, one class after the other."""
    ious = []
    for hits, truth, predicted in counts.sum(0).T.tolist():
        union = truth + predicted - hits
        if union:
            ious.append(hits / union)
    return sum(ious) / len(ious) if ious else NAN


small_counts = arrays(np.int64, st.tuples(st.integers(1, 5), st.just(2), st.just(CLASSES)), elements=st.integers(0, 9))


def with_hits(drawn):
    """Make counts (N, 3, C) of truth and predicted ones."""
    return np.concatenate([drawn.min(1, keepdims=True) // 2, drawn], 1)


@given(small_counts)
def test_the_mean_iu_of_an_image_is_that_of_its_own_counts(drawn):
    counts = with_hits(drawn)
    expected = [pooled_mean_iu(counts[k : k + 1]) for k in range(len(counts))]
    np.testing.assert_allclose(mean_iu(counts), expected, rtol=1e-12)


def test_the_interval_is_that_of_scipys_bootstrap():
    (counts,) = scenes(np.random.default_rng(1), 30, [0.8])
    ours = interval(counts, draws=5000)
    scipys = stats.bootstrap(
        (np.arange(30),),
        lambda drawn: pooled_mean_iu(counts[drawn]),
        vectorized=False,
        method="percentile",
        n_resamples=5000,
        rng=0,
    )
    width = ours[1] - ours[0]
    np.testing.assert_allclose(ours, scipys.confidence_interval, atol=0.06 * width)


def test_the_paired_interval_is_that_of_scipys_bootstrap():
    first, second = scenes(np.random.default_rng(2), 30, [0.75, 0.8])
    ours = compare(first, second, draws=5000).interval
    scipys = stats.bootstrap(
        (np.arange(30),),
        lambda drawn: pooled_mean_iu(second[drawn]) - pooled_mean_iu(first[drawn]),
        vectorized=False,
        method="percentile",
        n_resamples=5000,
        rng=0,
    )
    np.testing.assert_allclose(ours, scipys.confidence_interval, atol=0.06 * (ours[1] - ours[0]))


@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_is_that_of_all_ways_to_swap_predictions(seed):
    first, second = scenes(np.random.default_rng(seed), 8, [0.78, 0.8])
    both = np.concatenate([first, second])
    exact = stats.permutation_test(
        (np.arange(8), np.arange(8, 16)),
        lambda one, other: pooled_mean_iu(both[other]) - pooled_mean_iu(both[one]),
        permutation_type="samples",
        vectorized=False,
        n_resamples=np.inf,  # all 2**8 ways
    )
    assert compare(first, second, draws=10_000).p_value == pytest.approx(exact.pvalue, abs=0.02)


@settings(deadline=None, max_examples=30)
@given(small_counts, st.integers(0, 9))
def test_identical_models_differ_by_nothing_and_p_is_1(drawn, seed):
    counts = with_hits(drawn)
    if not counts.any():
        return
    comparison = compare(counts, counts, draws=50, seed=seed)
    assert (comparison.difference, comparison.p_value) == (0, 1)
    assert comparison.interval == (0, 0)
    assert set(np.nan_to_num(comparison.per_class)) == {0}


def test_the_difference_is_the_seconds_mean_iu_less_the_firsts():
    first, second = scenes(np.random.default_rng(3), 20, [0.7, 0.8])
    comparison = compare(first, second)
    assert comparison.difference == pytest.approx(pooled_mean_iu(second) - pooled_mean_iu(first), rel=1e-12)
    per_class = [pooled_mean_iu(second[..., k : k + 1]) - pooled_mean_iu(first[..., k : k + 1]) for k in range(CLASSES)]
    np.testing.assert_allclose(comparison.per_class, per_class, rtol=1e-12)


def test_a_model_that_is_clearly_better_has_a_small_p_and_an_interval_above_0():
    first, second = scenes(np.random.default_rng(4), 40, [0.6, 0.8])
    comparison = compare(first, second)
    assert comparison.p_value == pytest.approx(1 / 1001)
    assert 0 < comparison.interval[0] < comparison.difference < comparison.interval[1]
    backwards = compare(second, first)
    assert (backwards.difference, backwards.p_value) == (-comparison.difference, comparison.p_value)
    assert backwards.interval == pytest.approx([-end for end in comparison.interval[::-1]])


def test_p_values_of_models_that_are_equally_good_are_spread_evenly():
    rng = np.random.default_rng(5)
    p = [compare(*scenes(rng, 12, [0.8, 0.8], pixels=120), draws=199).p_value for _ in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) < 0.1


def test_intervals_hold_the_value_of_all_images_about_as_often_as_they_say():
    (population,) = scenes(np.random.default_rng(6), 400, [0.8], pixels=120)
    rng, truth = np.random.default_rng(7), pooled_mean_iu(population)
    ends = [interval(population[rng.integers(400, size=50)], level=0.9, draws=300) for _ in range(150)]
    assert 0.82 < np.mean([lower <= truth <= upper for lower, upper in ends]) < 0.97


def test_a_higher_level_gives_a_wider_interval():
    (counts,) = scenes(np.random.default_rng(8), 20, [0.8])
    narrow, usual, wide = (interval(counts, level=level) for level in (0.5, 0.95, 0.99))
    assert wide[0] < usual[0] < narrow[0] < narrow[1] < usual[1] < wide[1]


def test_the_seed_decides():
    first, second = scenes(np.random.default_rng(9), 20, [0.79, 0.8])
    assert interval(first) == interval(first, seed=0) != interval(first, seed=1)
    assert compare(first, second) == compare(first, second, seed=0) != compare(first, second, seed=1)


def test_one_image_is_its_own_interval():
    (counts,) = scenes(np.random.default_rng(10), 1, [0.8])
    assert interval(counts, draws=10) == pytest.approx([pooled_mean_iu(counts)] * 2)


def test_draws_without_a_labelled_pixel_do_not_spoil_the_interval():
    counts = np.zeros((2, 3, CLASSES), np.int64)
    counts[0, :, 1] = 3, 4, 5
    assert interval(counts, draws=100) == (0.5, 0.5)
    assert all(map(math.isnan, interval(counts[1:], draws=10)))
    assert np.isnan(mean_iu(counts)).tolist() == [False, True]


def test_many_images_are_resampled_in_parts_like_a_few(monkeypatch):
    first, second = scenes(np.random.default_rng(11), 30, [0.7, 0.72])
    whole = interval(first), compare(first, second)
    monkeypatch.setattr("fcn_smp.resampling.CHUNK", 100)
    assert interval(first) == whole[0]
    parts = compare(first, second)
    assert isinstance(parts, Comparison)
    assert (parts.difference, parts.interval) == (whole[1].difference, whole[1].interval)
    assert parts.p_value == pytest.approx(whole[1].p_value, abs=0.08)


def test_models_of_other_images_are_refused():
    first, second = scenes(np.random.default_rng(12), 5, [0.7, 0.8])
    with pytest.raises(ValueError, match="same images in the same order: their truth differs"):
        compare(first, second[::-1])
    with pytest.raises(ValueError, match="their truth differs"):
        compare(first, second[:4])


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3), (0, 3, 4), (1, 2, 3, 4)])
def test_counts_of_another_shape_are_refused(shape):
    counts = np.zeros(shape, np.int64)
    for call in (lambda: mean_iu(counts), lambda: interval(counts), lambda: compare(counts, counts)):
        with pytest.raises(ValueError, match=r"shape \(images, 3, classes\), not"):
            call()
