"""The training loss."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SegmentationLoss(nn.Module):
    """Softmax cross-entropy over the labelled pixels, averaged or summed as ``torch.nn.CrossEntropyLoss`` does.

    Unlike that one, a batch without a labelled pixel gives 0, not NaN.

    Args:
        class_weights: One factor for each class; the mean divides by the sum of the pixels' factors. None: all 1.
        ignore_index: Label of pixels that do not count.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
        reduction: ``"mean"`` over the labelled pixels, or their ``"sum"``, which the authors' networks were trained
            with (learning rates are smaller by the number of pixels).
    """

    weight: Tensor | None

    def __init__(
        self,
        class_weights: Sequence[float] | None,
        ignore_index: int,
        label_smoothing: float = 0.0,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (N, C, H, W) for int64 labels (N, H, W)."""
        total = F.cross_entropy(
            logits.float(),
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        if self.reduction == "sum":
            return total
        labelled = target != self.ignore_index
        count = labelled.sum() if self.weight is None else self.weight[target[labelled]].sum()
        return total / torch.where(count > 0, count, torch.inf)
