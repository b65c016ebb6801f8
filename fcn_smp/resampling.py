"""How sure a mean IU is, and whether one model is better than another: resampling of a data set's images.

Counts of images are int64 (N, 3, C): of each image and class the pixels that are right, that are it in the truth, and
that are predicted as it; void is in none of them. The mean IU of many images is that of the sum of their counts, so
resampling costs a product of matrices and no new prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CHUNK = 2**22
"""Weights of images that are in memory at a time."""


@dataclass(frozen=True)
class Comparison:
    """A second model against a first on the same images.

    Attributes:
        difference: Mean IU of the second less that of the first, in [-1, 1].
        interval: Where the difference lies, by the paired bootstrap.
        p_value: How often so large a difference, of either sign, comes by chance between models that are equally good.
        per_class: Difference of the IU of each class; NaN for a class without IU in either.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    per_class: list[float]


def mean_iu(counts: Counts) -> Floats:
    """Return each image's own mean IU (N,), over the classes in its truth or prediction; NaN where there is none.

    Args:
        counts: (N, 3, C), as the module says.
    """
    return _mean(_iu(_checked(counts)))


def interval(counts: Counts, level: float = 0.95, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return where the mean IU of a data set lies, if its images are a sample of many more.

    This is the percentile bootstrap over images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
    13): as many images as there are, drawn with replacement, give a mean IU of their pooled counts; of many of them the
    middle ``level`` is the interval. It says nothing of how a model would differ if it were trained anew.

    Args:
        counts: (N, 3, C), as the module says.
        level: Share of the draws within the interval, in (0, 1).
        draws: Number of draws.
        seed: Of the random numbers.

    Returns:
        Lower and upper end in [0, 1]; NaN if no image has a labelled pixel.

    Raises:
        ValueError: The counts have another shape, or there are none.
    """
    return _percentiles(_mean(_iu(_bootstrap(_checked(counts), draws, np.random.default_rng(seed)))), level)


def compare(first: Counts, second: Counts, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Comparison:
    """Compare two models by the mean IU of the same images.

    The interval is that of ``interval``, of the difference and with the same images drawn for both models. The
    p-value is that of approximate randomisation (Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989): the
    two predictions of each image change places by the toss of a coin, and (1 + number of draws whose difference is not
    smaller than the real one) / (1 + draws).

    Args:
        first: Counts of the first model (N, 3, C), as the module says.
        second: Counts of the second model of the same images in the same order.
        level: Share of the draws within the interval, in (0, 1).
        draws: Number of draws, for the interval and for the p-value each.
        seed: Of the random numbers.

    Raises:
        ValueError: The counts have another shape, there are none, or they are not of the same truth.
    """
    first, second = _checked(first), _checked(second)
    if not np.array_equal(first[:, 1], second[:, 1]):
        raise ValueError("The two models were not scored on the same images in the same order: their truth differs.")
    rng = np.random.default_rng(seed)
    both = _iu(_bootstrap(np.stack([first, second], 1), draws, rng))
    difference = _difference(first.sum(0), second.sum(0))
    by_chance = _permutation(first, second, draws, rng)
    # Differences that are equal but for rounding count as equal.
    as_large = np.abs(by_chance) >= abs(difference) - 1e-12
    return Comparison(
        difference=difference.item(),
        interval=_percentiles(_mean(both[:, 1]) - _mean(both[:, 0]), level),
        p_value=(1 + as_large.sum().item()) / (1 + draws),
        per_class=(_iu(second.sum(0)) - _iu(first.sum(0))).tolist(),
    )


def _checked(counts: Counts) -> Counts:
    if counts.ndim != 3 or counts.shape[1] != 3 or not len(counts):
        raise ValueError(f"Counts of images have the shape (images, 3, classes), not {counts.shape}.")
    return counts


def _iu(counts: npt.NDArray[Any]) -> Floats:
    """IU of each class (..., C) of counts (..., 3, C); NaN where the class is absent."""
    hits, truth, predicted = np.moveaxis(counts, -2, 0)
    with np.errstate(invalid="ignore"):
        iu: Floats = hits / (truth + predicted - hits)
    return iu


def _mean(iu: Floats) -> Floats:
    """Mean over the last axis of what is no NaN."""
    # not np.nanmean, which warns where there is nothing
    with np.errstate(invalid="ignore"):
        mean: Floats = np.nansum(iu, -1) / np.sum(~np.isnan(iu), -1)
    return mean


def _difference(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Floats:
    return _mean(_iu(second)) - _mean(_iu(first))


def _bootstrap(counts: Counts, draws: int, rng: np.random.Generator) -> Floats:
    """Sums (draws, ...) over as many images drawn with replacement as counts (N, ...) are of."""
    images = len(counts)
    return _sums(counts, draws, lambda rows: rng.multinomial(images, np.full(images, 1 / images), rows))


def _permutation(first: Counts, second: Counts, draws: int, rng: np.random.Generator) -> Floats:
    """Differences (draws,) after the models' counts of some images have changed places."""
    moved = _sums(second - first, draws, lambda rows: rng.integers(2, size=(rows, len(first))))
    return _difference(first.sum(0) + moved, second.sum(0) - moved)


def _sums(counts: Counts, draws: int, weights: Callable[[int], Counts]) -> Floats:
    """Sums (draws, ...) of counts (N, ...) with weights (rows, N) that are made when they are needed.

    Floating point is much faster than integers here, and exact for whole numbers up to 2**53.
    """
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    rows = max(1, CHUNK // len(counts))
    sums = [weights(min(rows, draws - start)) @ flat for start in range(0, draws, rows)]
    return np.concatenate(sums).reshape(draws, *counts.shape[1:])


def _percentiles(values: Floats, level: float) -> tuple[float, float]:
    """Ends of the middle ``level`` of what is no NaN."""
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    lower, upper = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return lower.item(), upper.item()
