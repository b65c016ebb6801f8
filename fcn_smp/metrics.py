"""The four metrics of Long et al. (CVPR 2015, section 5), from one confusion matrix over the whole set."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
        accuracy: Accuracy of each class.
        pixels: Labelled pixels of each class.
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    iu: Sequence[float]
    accuracy: Sequence[float]
    pixels: Sequence[int]


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
            pixels=truth.long().tolist(),
        )
