"""The four metrics of Long et al. (CVPR 2015, section 5), from one confusion matrix over the whole set."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

BINS = 256
"""Steps of the probability in which thresholds are tried."""
_PIECE = 2**20
"""Pixels that are counted at a time, so that what is made of them is small; OpenCV counts in float32, up to 2**24."""


@dataclass(frozen=True)
class Scores:
    """Metrics in [0, 1]; NaN where nothing defines them.

    A class that occurs neither in the truth nor in the prediction has no IU and no accuracy, and the means skip it.

    Attributes:
        pixel_accuracy: Share of labelled pixels that are right.
        mean_accuracy: Mean over classes of the share of a class's pixels that are right.
        mean_iu: Mean over classes of intersection over union.
        frequency_weighted_iu: IU weighted by each class's share of the labelled pixels.
        iu: IU of each class.
        accuracy: Accuracy of each class, also called its recall.
        precision: Of each class the share of the pixels predicted as it that are it; NaN if there are none.
        pixels: Labelled pixels of each class.
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    iu: Sequence[float]
    accuracy: Sequence[float]
    precision: Sequence[float]
    pixels: Sequence[int]


def f_score(precision: float, recall: float, beta: float = 1.0) -> float:
    """Return the weighted harmonic mean of precision and recall: the F score, F1 by default.

    Args:
        precision: In [0, 1], or NaN where nothing was predicted.
        recall: In [0, 1], or NaN where there is nothing to be found.
        beta: How many times as much recall counts as precision.

    Returns:
        A number in [0, 1]: 0 where both are, or where precision is NaN; NaN where recall is.

    Source: van Rijsbergen, Information Retrieval, 1979, chapter 7.
    """
    if math.isnan(recall):
        return math.nan
    if math.isnan(precision) or precision == recall == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


class ConfusionMatrix(torch.nn.Module):
    """Counts of (true class, predicted class), added up over as many images as one likes.

    Void pixels count nowhere, not even as false positives.

    Args:
        classes: Number of classes C.
        ignore_index: Label of void pixels.

    Attributes:
        counts: int64 (C, C); rows are the truth, columns the prediction.
    """

    counts: Tensor

    def __init__(self, classes: int, ignore_index: int) -> None:
        super().__init__()
        self.classes = classes
        self.ignore_index = ignore_index
        self.register_buffer("counts", torch.zeros(classes, classes, dtype=torch.int64), persistent=False)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add integer tensors of one shape: predicted classes, and true classes or ``ignore_index``.

        Those of uint8 on the CPU are counted as they lie in memory.

        Args:
            prediction: Of any shape, most often (N, H, W); 0 to C - 1, in void anything.
            target: Of the same shape.

        Raises:
            ValueError: The shapes differ, or a number is no class.
        """
        self.counts += _count_pairs(target, prediction, (self.classes, self.classes), self.ignore_index)

    def reset(self) -> None:
        """Start from nothing again."""
        self.counts.zero_()

    def scores(self) -> Scores:
        """Return the metrics of all that was added."""
        counts = self.counts.double().cpu()
        hits = counts.diag()
        truth, predicted = counts.sum(1), counts.sum(0)
        iu = hits / (truth + predicted - hits)
        accuracy = hits / truth
        return Scores(
            pixel_accuracy=(hits.sum() / counts.sum()).item(),
            mean_accuracy=accuracy.nanmean().item(),
            mean_iu=iu.nanmean().item(),
            frequency_weighted_iu=((truth * iu).nansum() / counts.sum()).item(),
            iu=iu.tolist(),
            accuracy=accuracy.tolist(),
            precision=(hits / predicted).tolist(),
            pixels=truth.long().tolist(),
        )


class Thresholds(torch.nn.Module):
    """Counts of (true class, probability) over images of two classes, from which the best threshold is read.

    A pixel is of class 1 where its probability is above the threshold. Thresholds are multiples of 1/256; the best
    one has the largest mean IU. (By the IU of class 1 alone, a network that knows nothing would do best to call
    everything class 1.)

    Args:
        ignore_index: Label of void pixels.

    Attributes:
        counts: int64 (2, 257); column ``k`` counts the probabilities in ((k - 1) / 256, k / 256].
    """

    counts: Tensor

    def __init__(self, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.register_buffer("counts", torch.zeros(2, BINS + 1, dtype=torch.int64), persistent=False)

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Add tensors of one shape: probabilities of class 1, and true classes.

        Args:
            probability: Float in [0, 1], of any shape.
            target: 0, 1 or ``ignore_index``, of the same shape.

        Raises:
            ValueError: The shapes differ, or a number is no class or no probability.
        """
        self.counts += _count_pairs(target, (probability * BINS).ceil_(), (2, BINS + 1), self.ignore_index)

    def best(self) -> float:
        """Return the threshold in [1/256, 255/256] with the best mean IU; of equal ones that nearest to 0.5."""
        negatives, positives = self.counts.sum(1).double().cpu()
        above = self.counts.flip(1).cumsum(1).flip(1)[:, 2:].double().cpu()  # column k - 1: what lies above k / 256
        false, hits = above
        iu = torch.stack([(negatives - false) / (negatives + positives - hits), hits / (positives + false)])
        mean_iu = iu.nanmean(0).nan_to_num(0)
        candidates = (mean_iu == mean_iu.max()).nonzero().flatten() + 1
        best: int = min(candidates.tolist(), key=lambda k: abs(k - BINS / 2))
        return best / BINS

    def confusion(self) -> ConfusionMatrix:
        """Return the confusion matrix at the best threshold."""
        matrix = ConfusionMatrix(2, self.ignore_index)
        last = round(self.best() * BINS) + 1
        matrix.counts = torch.stack([self.counts[:, :last].sum(1), self.counts[:, last:].sum(1)], 1)
        return matrix


def _count_pairs(target: Tensor, values: Tensor, shape: tuple[int, int], void: int) -> Tensor:
    """Count how often each class of the target comes with each value, as int64 of a shape; void pixels are left out.

    Args:
        target: Whole numbers from 0 to ``shape[0]`` - 1, or ``void``.
        values: Whole numbers from 0 to ``shape[1]`` - 1, as integers or floats; where the target is void, any.
        shape: That of the table.
        void: Number of the pixels that are left out.

    Raises:
        ValueError: The tensors differ in shape, or a number is too small or too large for the table's shape.
    """
    if target.shape != values.shape:
        raise ValueError(f"The target is {tuple(target.shape)}, the other {tuple(values.shape)}; they should be alike.")
    counts = torch.zeros(shape, dtype=torch.int64, device=target.device)
    if not target.numel():
        return counts
    pieces = (torch.split(numbers.flatten().contiguous(), _PIECE) for numbers in (target, values))
    for some, others in zip(*pieces, strict=True):
        of_bytes = max(shape) <= 256 and _fits_bytes(some) and _fits_bytes(others)
        counts += (_count_bytes if of_bytes else _count_any)(some, others, shape, void)
    return counts


def _fits_bytes(numbers: Tensor) -> bool:
    """Tell whether integers are on the CPU and from 0 to 255."""
    if numbers.device.type != "cpu" or numbers.dtype == torch.uint8:
        return numbers.device.type == "cpu"
    return not np.bitwise_or.reduce(numbers.numpy()) >> 8


def _count_bytes(target: Tensor, values: Tensor, shape: tuple[int, int], void: int) -> Tensor:
    """Count all pairs of bytes, and only then leave out void and look for what is no class.

    OpenCV reads them where they lie: integers of several bytes are pixels of several channels to it, of which it takes
    that with the lowest byte.
    """
    images = [numbers.view(torch.uint8).view(1, -1, numbers.itemsize).numpy() for numbers in (target, values)]
    lowest = [0 if sys.byteorder == "little" else numbers.itemsize - 1 for numbers in (target, values)]
    channels = [lowest[0], target.itemsize + lowest[1]]
    table = torch.from_numpy(cv2.calcHist(images, channels, None, [256, 256], [0, 256, 0, 256]))
    if 0 <= void < 256:
        table[void] = 0
    counts = table[: shape[0], : shape[1]].long()
    _check(int(table.sum() - counts.sum()), shape, void)
    return counts


def _count_any(target: Tensor, values: Tensor, shape: tuple[int, int], void: int) -> Tensor:
    """Count integers of any size on any device; the table has two places more, for void and for what is no class."""
    target, values = target.long(), values.long()
    cells = shape[0] * shape[1]
    known = (target >= 0) & (target < shape[0]) & (values >= 0) & (values < shape[1])
    places = torch.where(known, target * shape[1] + values, cells).masked_fill_(target == void, cells + 1)
    counts = torch.bincount(places, minlength=cells + 2)
    _check(int(counts[cells]), shape, void)
    return counts[:cells].view(shape)


def _check(wrong: int, shape: tuple[int, int], void: int) -> None:
    if wrong:
        raise ValueError(
            f"{wrong:,} pixels are wrong: the target must be 0 to {shape[0] - 1}, or {void} for void, and where it is"
            f" not void the other 0 to {shape[1] - 1}."
        )
