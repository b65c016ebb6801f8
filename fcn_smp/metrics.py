"""The four metrics of Long et al. (CVPR 2015, section 5), from one confusion matrix over the whole set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 256
"""Steps of the probability in which thresholds are tried."""


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
    """Return the weighted harmonic mean of precision and recall, all in [0, 1]; the larger ``beta``, the more recall.

    Source: van Rijsbergen, Information Retrieval, 1979, chapter 7. It is 0 where both are, or where precision is NaN.
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
        """Add integer tensors of one shape: predicted classes, and true classes or ``ignore_index``."""
        labelled = target != self.ignore_index
        pairs = target[labelled].long() * self.classes + prediction[labelled].long()
        self.counts += torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)

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
        """Add tensors of one shape: probabilities of class 1 in [0, 1], and classes 0, 1 or ``ignore_index``."""
        labelled = target != self.ignore_index
        column = (probability[labelled] * BINS).ceil().long()
        pairs = target[labelled].long() * (BINS + 1) + column
        self.counts += torch.bincount(pairs, minlength=2 * (BINS + 1)).view(2, BINS + 1)

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
