"""The training loss."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, get_args

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import BINARY_MODE, MULTICLASS_MODE, DiceLoss, LovaszLoss
from torch import Tensor, nn

from fcn_smp.losses.cross_entropy import upsampled_cross_entropy
from fcn_smp.models.coarse import CoarseScores

Term = Literal["cross_entropy", "dice", "lovasz", "focal"]
"""A loss that may be part of the sum."""
CROSS_ENTROPY: Final[Mapping[Term, float]] = MappingProxyType({"cross_entropy": 1.0})
"""The default: cross-entropy alone."""


class SegmentationLoss(nn.Module):
    """A weighted sum of losses over the labelled pixels, computed in float32.

    * ``cross_entropy``: of the softmax. It is averaged or summed as ``torch.nn.CrossEntropyLoss`` does.
    * ``dice``: 1 - the Dice coefficient of each class over the batch, averaged over all classes; a class without a
      pixel contributes 0 (Milletari et al., 3DV 2016, V-Net).
    * ``lovasz``: the Lovász-Softmax over the batch, averaged over the classes with a pixel (Berman et al., CVPR 2018).
    * ``focal``: of the sigmoid of each class against the rest, averaged over labelled pixels and classes (Lin et al.,
      ICCV 2017, without their alpha).

    With ``binary``, of a single logit (N, 1, H, W) for class 1 against class 0, they are those of the sigmoid:
    cross-entropy is binary cross-entropy, Dice and focal are those of class 1, Lovász is the hinge (Berman et al.,
    section 2.3).

    A batch without a labelled pixel gives 0 and zero gradients.

    The batch of a training step may come in pieces: images on several devices, or one part after another. The sum over
    the pieces of the loss with the same ``normalizer`` and ``parts`` is that of the whole batch for cross-entropy
    without ``ohem``; to it the other terms contribute the mean of their values over the pieces.

    Args:
        class_weights: Of cross-entropy: one factor for each class; the mean divides by the sum of the pixels' factors.
            None: all 1.
        ignore_index: Label of pixels that do not count, 0 to 255.
        terms: Factor of each loss.
        label_smoothing: Of cross-entropy: share of the target that is spread over all classes, in [0, 1).
        reduction: Of cross-entropy: ``"mean"`` over the labelled pixels, or their ``"sum"``, which the authors'
            networks were trained with (learning rates are smaller by the number of pixels).
        ohem: Share of the labelled pixels that cross-entropy counts, in (0, 1]: those where it is largest, class
            weights included, chosen in each piece by itself (Shrivastava et al., CVPR 2016; for pixels Wu et al., 2016,
            arXiv:1605.06885). None: all.
        focal_gamma: Exponent of the focal loss, at least 0; the larger, the less do easy pixels count.
        binary: Whether there is a single logit.

    Raises:
        ValueError: A value is out of range, or there is no such term.
    """

    weight: Tensor | None
    _weight_of_label: Tensor

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        ignore_index: int = 255,
        *,
        terms: Mapping[Term, float] = CROSS_ENTROPY,
        label_smoothing: float = 0.0,
        reduction: Literal["mean", "sum"] = "mean",
        ohem: float | None = None,
        focal_gamma: float = 2.0,
        binary: bool = False,
    ) -> None:
        super().__init__()
        unknown = [repr(term) for term in terms if term not in get_args(Term)]
        if unknown or not terms:
            raise ValueError(f"terms must be some of {', '.join(get_args(Term))}, got {', '.join(unknown) or 'none'}.")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}.")
        for name, value, fits, range_ in (
            ("ignore_index", ignore_index, 0 <= ignore_index <= 255, "from 0 to 255"),
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "from 0 to below 1"),
            ("ohem", ohem, ohem is None or 0 < ohem <= 1, "above 0 and 1 at most"),
            ("focal_gamma", focal_gamma, focal_gamma >= 0, "0 or more"),
        ):
            if not fits:
                raise ValueError(f"{name} must be {range_}, got {value}.")
        weight = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)
        # Void weighs nothing; to look that up is ten times as fast as to mask it.
        table = torch.zeros(256) if weight is None else F.pad(weight, (0, 256 - len(weight)))
        self.register_buffer("_weight_of_label", table.index_fill(0, torch.tensor(ignore_index), 0), persistent=False)
        self.ignore_index = ignore_index
        self.terms = dict(terms)
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.ohem = ohem
        self.focal_gamma = focal_gamma
        self.binary = binary
        mode = BINARY_MODE if binary else MULTICLASS_MODE
        self.dice = DiceLoss(mode, ignore_index=ignore_index)
        self.lovasz = LovaszLoss(mode, ignore_index=ignore_index)

    def normalizer(self, target: Tensor) -> Tensor:
        """Return by what cross-entropy's sum over labels (N, H, W) is divided, a float32 scalar.

        It is the number of labelled pixels or the sum of their class weights; with ``ohem``, the share of it that is
        the share of the pixels counted.
        """
        count = (target != self.ignore_index).sum()
        total = count.float() if self.weight is None else self._weight_of_label.index_select(0, target.flatten()).sum()
        return total * self._counted(count) / count.clamp(min=1)

    def forward(
        self, logits: Tensor | CoarseScores, target: Tensor, normalizer: Tensor | None = None, parts: int = 1
    ) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: (N, C, H, W), or with ``binary`` (N, 1, H, W); or the scores that they are interpolated from.
            target: int64 labels (N, H, W).
            normalizer: Sum of what the method ``normalizer`` gives, over the pieces of which this is one. None: that of
                this piece alone. A sum over pixels does not need it.
            parts: Number of these pieces.

        Raises:
            ValueError: Logits, labels and class weights do not fit each other.
        """
        scores = logits if isinstance(logits, CoarseScores) else CoarseScores(logits)
        self._check(scores, target)
        scores = scores._replace(scores=scores.scores.float())
        total = scores.scores.new_zeros(())
        whole: Tensor | None = None
        for term, factor in self.terms.items():
            if term == "cross_entropy" and self.ohem is None:
                total = total + factor * self._divided(self._sum_of_all(scores, target), target, normalizer)
                continue
            whole = torch.cat(list(scores.logits()), 2) if whole is None else whole
            if term == "cross_entropy":
                total = total + factor * self._divided(self._sum_of_hardest(whole, target), target, normalizer)
            else:
                total = total + factor / parts * self._other(term, whole, target)
        return total

    def _check(self, scores: CoarseScores, target: Tensor) -> None:
        classes, shape = scores.scores.shape[1], (len(scores.scores), *scores.size)
        if tuple(target.shape) != shape or target.is_floating_point():
            raise ValueError(f"The labels must be integers {shape}, got {target.dtype} {tuple(target.shape)}.")
        if self.binary and classes != 1:
            raise ValueError(f"With binary there must be one logit for each pixel, got {classes}.")
        if self.weight is not None and len(self.weight) != classes + self.binary:
            raise ValueError(f"There must be {classes + self.binary} class weights, got {len(self.weight)}.")

    def _other(self, term: Term, logits: Tensor, target: Tensor) -> Tensor:
        if term == "focal":
            return self._focal(logits, target)
        value: Tensor = (self.dice if term == "dice" else self.lovasz)(logits, target)
        return value.sum()  # SMP's Lovász of no pixel is a tensor of no element

    def _divided(self, total: Tensor, target: Tensor, normalizer: Tensor | None) -> Tensor:
        if self.reduction == "sum":
            return total
        return total / _or_infinity(self.normalizer(target) if normalizer is None else normalizer)

    def _sum_of_all(self, scores: CoarseScores, target: Tensor) -> Tensor:
        if self.binary:
            scores = scores._replace(scores=_of_two_classes(scores.scores))
        total: Tensor = upsampled_cross_entropy(scores, target, self.weight, self.ignore_index, self.label_smoothing)
        return total

    def _sum_of_hardest(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.binary:
            logits = _of_two_classes(logits)
        # Images as rows of pixels: for maps (N, C, H, W) torch has no deterministic kernel on CUDA.
        losses = F.cross_entropy(
            logits.movedim(1, -1).flatten(0, -2),
            target.flatten(),
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        # Stable: which of equal losses counts, and with it the gradient, must not vary from run to run. Those of void
        # are 0, so they come last.
        hardest = losses.sort(descending=True, stable=True).values
        rank = torch.arange(len(hardest), device=hardest.device)
        return torch.where(rank < self._counted((target != self.ignore_index).sum()), hardest, 0).sum()

    def _counted(self, labelled: Tensor) -> Tensor:
        """Return how many of so many labelled pixels cross-entropy counts; of any, at least one."""
        if self.ohem is None:
            return labelled
        return (labelled * self.ohem).round().long().clamp(min=1).minimum(labelled)

    def _focal(self, logits: Tensor, target: Tensor) -> Tensor:
        # As SMP's FocalLoss, which is NaN without a labelled pixel, and whose gradient is NaN for sure pixels if gamma
        # is below 1: the power is taken of the logarithm here, which is never 0.
        labelled = target != self.ignore_index
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1) + self.binary
        wrong = torch.where(target.unsqueeze(1) == classes, -logits, logits)
        losses = (self.focal_gamma * F.logsigmoid(wrong)).exp() * F.softplus(wrong)
        return (losses.mean(1) * labelled).sum() / _or_infinity(labelled.sum())


def _of_two_classes(logit: Tensor) -> Tensor:
    """Put a 0 before a single logit (N, 1, H, W): their softmax is its sigmoid, also where both are interpolated."""
    return torch.cat([torch.zeros_like(logit), logit], 1)


def _or_infinity(count: Tensor) -> Tensor:
    """Return what a sum over nothing can be divided by to be 0."""
    return torch.where(count > 0, count, torch.inf)
