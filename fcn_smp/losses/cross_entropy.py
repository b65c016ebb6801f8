"""Upsampling and cross-entropy in one operator, which never holds the logits of all pixels."""

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcn_smp.models.coarse import CoarseScores

_LOG_2 = math.log(2)
"""By which logits are divided, to take powers of 2: torch's exp is Intel's, and three times as slow on AMD's CPUs."""
_SPREAD = 80
"""Logits that are no further apart than this have exponentials that single precision holds."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it works row by row, with a gradient of its own
def upsampled_cross_entropy(
    scores: CoarseScores,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the sum over all pixels of the cross-entropy of the logits that are interpolated from ``scores``.

    It is that of ``torch.nn.functional.cross_entropy(..., reduction="sum")``, computed in float32 and some rows at a
    time. The gradient is taken on the way, so that of all pixels nothing is kept; it has no gradient of its own. On
    CUDA this is done by kernels of Triton.

    Args:
        scores: Of C classes, float32.
        target: Labels of pixels, integers (N, H, W).
        weight: Factor of each class, float32 (C,); None: all 1.
        ignore_index: Label of void.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).

    Raises:
        ValueError: A label that is not void is no class. (On CUDA the loss is NaN then.)
    """
    if scores.rows is not None and scores.scores.device.type == "cuda" and find_spec("triton"):
        from fcn_smp.losses import kernels

        return kernels.upsampled_cross_entropy(scores, target, weight, ignore_index, label_smoothing)
    try:
        total: Tensor = _UpsampledCrossEntropy.apply(
            scores.scores, scores, target, weight, ignore_index, label_smoothing
        )
    except (RuntimeError, IndexError):  # torch's words for a label that is no class, or something else
        _refuse_wrong_labels(target, scores.scores.shape[1], ignore_index)
        raise
    return total


def _refuse_wrong_labels(target: Tensor, classes: int, void: int) -> None:
    wrong = target[(target != void) & ((target < 0) | (target >= classes))]
    if len(wrong):
        raise ValueError(f"The label {int(wrong[0])} is none of the classes 0 to {classes - 1}, nor {void} for void.")


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor,
        scores: CoarseScores,
        target: Tensor,
        weight: Tensor | None,
        void: int,
        smoothing: float,
    ) -> Tensor:
        with torch.autocast(given.device.type, enabled=False):
            # What is subtracted from all scores of a place changes nothing, and keeps exponentials from overflowing.
            # Where neighbours are far apart, those of the pixels between could all vanish: then it is done anew there.
            shifted = given - given.amax(1, keepdim=True)
            far = given.device.type != "cpu" or bool(shifted.amin() < -_SPREAD)
            shifted /= _LOG_2
            gradient = torch.zeros_like(shifted) if ctx.needs_input_grad[0] else None
            sums = []
            for band in scores.bands():
                for image, label in enumerate(target[:, band.rows]):
                    logits = band.upsample(shifted[image])
                    if far:
                        logits -= logits.amax(0)
                    sums.append(_to_gradient(logits, label, weight, void, smoothing))
                    if gradient is not None:
                        gradient[image, :, band.sources] += band.downsample(logits)
        ctx.save_for_backward(gradient)
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None, None, None, None


def _to_gradient(logits: Tensor, label: Tensor, weight: Tensor | None, void: int, smoothing: float) -> Tensor:
    """Return the sum of the losses of some pixels, and put its gradient in the place of their logits.

    Args:
        logits: Float32 (C, r, W), to the base 2, near 0 or below it.
        label: Integers (r, W).
        weight: Factor of each class, float32 (C,).
        void: Label of pixels that do not count.
        smoothing: Share of the target that is spread over all classes.
    """
    labelled = label != void
    truth = label.long().masked_fill(~labelled, 0)
    own = (1 - smoothing) * labelled
    if weight is not None:
        own = own * weight.index_select(0, truth.flatten()).view_as(truth)
    loss = -_LOG_2 * own * logits.gather(0, truth[None])[0]
    every, factor = None, own
    if smoothing:
        of_class = (smoothing / len(logits)) * (logits.new_ones(len(logits)) if weight is None else weight)
        every = of_class[:, None, None] * labelled
        factor = own + of_class.sum() * labelled
        loss -= _LOG_2 * (every * logits).sum(0)
    gradient = logits.exp2_()
    total = gradient.sum(0)
    loss += factor * total.log()
    gradient *= factor / total
    gradient.scatter_(0, truth[None], gradient.gather(0, truth[None]) - own)
    if every is not None:
        gradient -= every
    return loss.sum()
