"""Upsampling and cross-entropy in one operator, as Triton kernels for CUDA.

The first kernel goes over the image's pixels and keeps two numbers of each: its loss, and the logarithm of the sum of
its exponentials. The second goes over the scores of the map and adds up what the pixels around each say, always in the
same order. Logits are interpolated where they are needed, and never written.
"""

# The compiler of the kernels takes no annotations.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcn_smp.models.coarse import CoarseScores

_BLOCK = 128


def upsampled_cross_entropy(
    scores: CoarseScores, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> Tensor:
    """Return what ``fcn_smp.losses.upsampled_cross_entropy`` does, of scores that are to be interpolated.

    A label that is no class makes it NaN.
    """
    given = scores.scores
    weight = given.new_ones(given.shape[1]) if weight is None else weight
    loss: Tensor = _UpsampledCrossEntropy.apply(given, scores, target, weight, ignore_index, label_smoothing)
    return loss


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, given: Tensor, scores: CoarseScores, target: Tensor, weight: Tensor, void: int, smoothing: float
    ) -> Tensor:
        assert scores.rows is not None
        assert scores.columns is not None
        given, target = given.contiguous(), target.contiguous()
        rows, columns = scores.rows.to(given.device), scores.columns.to(given.device)
        count, classes, map_height, map_width = given.shape
        height, width = scores.size
        loss = given.new_empty(count, height, width)
        log_sum = torch.empty_like(loss)
        _losses[(count, height, triton.cdiv(width, _BLOCK))](
            given, rows, columns, target, weight, weight.sum(), loss, log_sum,
            classes, map_height, map_width, height, width, void, smoothing, BLOCK=_BLOCK,
        )  # fmt: skip
        ctx.save_for_backward(given, rows, columns, target, weight, log_sum)
        ctx.void, ctx.smoothing = void, smoothing
        spans = *_reach(scores.rows, map_height), *_reach(scores.columns, map_width)
        ctx.spans = [span.to(given.device) for span in spans]
        ctx.widest = int(spans[-1].max())
        return loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        given, rows, columns, target, weight, log_sum = ctx.saved_tensors
        count, classes, map_height, map_width = given.shape
        gradient = torch.empty_like(given)
        block = triton.next_power_of_2(min(map_width, _BLOCK))
        _gradients[(count * classes, map_height, triton.cdiv(map_width, block))](
            given, rows, columns, target, weight, weight.sum(), log_sum, gradient, *ctx.spans, ctx.widest,
            classes, map_height, map_width, len(rows), len(columns), ctx.void, ctx.smoothing, BLOCK=block,
        )  # fmt: skip
        return gradient * upstream[0], None, None, None, None, None


def _reach(places: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return for each place of a map's axis its first pixel, and how many there are, that it contributes to."""
    map_places = torch.arange(length, dtype=places.dtype)
    first = torch.searchsorted(places, map_places - 1, right=True)
    behind = torch.searchsorted(places, map_places + 1)
    return first.int(), (behind - first).int()


@triton.jit
def _neighbours(place, length):
    """Return the nearest value before a place, how far behind it that lies, and whether it and the next one exist."""
    before = tl.floor(place).to(tl.int32)
    return before, place - before, (before >= 0) & (before < length), (before >= -1) & (before < length - 1)


@triton.jit
def _logit(scores, row, down, above, below, column, on, left, right, width):
    """Interpolate between the four nearest scores of a map, of which some may not exist."""
    here = scores + row * width + column
    upper = tl.load(here, above & left, 0.0) * (1 - on) + tl.load(here + 1, above & right, 0.0) * on
    here += width
    lower = tl.load(here, below & left, 0.0) * (1 - on) + tl.load(here + 1, below & right, 0.0) * on
    return upper * (1 - down) + lower * down


@triton.jit
def _losses(
    scores, rows, columns, target, weight, total_weight, loss, log_sum,
    classes, map_height, map_width, height, width, void, smoothing, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the loss and the logarithm of the sum of exponentials of some pixels of a row."""
    image, y = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = x < width
    pixel = (image * height + y) * width + x
    row, down, above, below = _neighbours(tl.load(rows + y + 0 * x), map_height)
    column, on, left, right = _neighbours(tl.load(columns + x, inside, 0.0), map_width)
    label = tl.load(target + pixel, inside, void).to(tl.int32)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    own = tl.full([BLOCK], float("nan"), tl.float32)  # as it stays for a label that is no class
    every = tl.zeros([BLOCK], tl.float32)
    for number in range(classes):
        maps = scores + (image * classes + number) * map_height * map_width
        logit = _logit(maps, row, down, above, below, column, on, left, right, map_width)
        higher = tl.maximum(highest, logit)
        total = total * tl.exp(highest - higher) + tl.exp(logit - higher)
        highest = higher
        own = tl.where(label == number, logit, own)
        every += tl.load(weight + number) * logit
    log_total = highest + tl.log(total)
    labelled = label != void
    factor = (1 - smoothing) * tl.load(weight + label, labelled & (label < classes), 0.0)
    spread = smoothing / classes * (tl.load(total_weight) * log_total - every)
    tl.store(log_sum + pixel, log_total, inside)
    tl.store(loss + pixel, tl.where(labelled, factor * (log_total - own) + spread, 0.0), inside)


@triton.jit
def _gradients(
    scores, rows, columns, target, weight, total_weight, log_sum, gradient,
    first_rows, row_counts, first_columns, column_counts, widest,
    classes, map_height, map_width, height, width, void, smoothing, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the gradients of the pixels around some scores of a row of one class's map."""
    plane, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    image, number = plane // classes, plane % classes
    place = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    exists = place < map_width
    maps = scores + plane * map_height * map_width
    first_row = tl.load(first_rows + k)
    first_column = tl.load(first_columns + place, exists, 0)
    column_count = tl.load(column_counts + place, exists, 0)
    own_weight = tl.load(weight + number)
    spread = smoothing / classes
    every = spread * tl.load(total_weight)
    result = tl.zeros([BLOCK], tl.float32)
    for y in range(first_row, first_row + tl.load(row_counts + k)):
        at = tl.load(rows + y + 0 * place)
        row, down, above, below = _neighbours(at, map_height)
        line = tl.zeros([BLOCK], tl.float32)
        for step in range(widest):
            x = first_column + step
            inside = step < column_count
            along = tl.load(columns + x, inside, 0.0)
            column, on, left, right = _neighbours(along, map_width)
            pixel = (image * height + y) * width + x
            label = tl.load(target + pixel, inside, void).to(tl.int32)
            labelled = label != void
            logit = _logit(maps, row, down, above, below, column, on, left, right, map_width)
            probability = tl.exp(logit - tl.load(log_sum + pixel, inside, 0.0))
            factor = (1 - smoothing) * tl.load(weight + label, labelled & (label < classes), 0.0)
            slope = (factor + every) * probability - tl.where(label == number, factor, 0.0) - spread * own_weight
            line += tl.where(labelled, slope, 0.0) * (1 - tl.abs(along - place))
        result += line * (1 - tl.abs(at - k))
    tl.store(gradient + plane * map_height * map_width + k * map_width + place, result, exists)
