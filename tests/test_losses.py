"""The loss, against PyTorch's own and against sums written out in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fcn_smp.losses import SegmentationLoss

WEIGHTS = [None, [0.5, 1.0, 2.0, 0.0, 7.5]]


def batch(seed: int = 0, void: int = 255) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 5, 6, 7, generator=generator)
    target = torch.randint(0, 5, (2, 6, 7), generator=generator)
    target[torch.rand(2, 6, 7, generator=generator) < 0.3] = void
    return logits.requires_grad_(), target


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("void", [255, -100, 0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
def test_loss_and_gradients_are_those_of_pytorch(
    weights: list[float] | None, smoothing: float, void: int, seed: int
) -> None:
    reference = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.tensor(weights), ignore_index=void, label_smoothing=smoothing
    )
    values, gradients = [], []
    for loss in (SegmentationLoss(weights, void, smoothing), reference):
        logits, target = batch(seed, void)
        value = loss(logits, target)
        value.backward()
        values.append(value.detach())
        gradients.append(logits.grad)
    assert values[0].shape == ()
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)
    assert values[0] > 0
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
def test_batch_without_a_labelled_pixel_teaches_nothing(
    weights: list[float] | None, smoothing: float, reduction: str
) -> None:
    logits, target = batch()
    loss = SegmentationLoss(weights, 255, smoothing, reduction)(logits, torch.full_like(target, 255))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_batch_of_pixels_that_weigh_nothing_teaches_nothing(smoothing: float) -> None:
    logits, target = batch()
    loss = SegmentationLoss([0.0, 1.0, 1.0, 1.0, 1.0], 255, smoothing)(logits, torch.zeros_like(target))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_are_summed_in_full(
    weights: list[float] | None, dtype: torch.dtype, reduction: str
) -> None:
    logits, target = batch()
    half = logits.detach().to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    losses = [SegmentationLoss(weights, 255, reduction=reduction)(each, target) for each in (half, full)]
    for loss in losses:
        loss.backward()
    assert losses[0].dtype == torch.float32
    assert losses[0] == losses[1]
    assert torch.equal(half.grad, full.grad.to(dtype))


def test_loss_of_a_batch_is_the_mean_over_its_pixels_and_not_over_its_images() -> None:
    logits, target = batch()
    target[0] = 255
    target[0, 0, 0] = 1
    loss = SegmentationLoss(None, 255)
    each = [(loss(logits[k : k + 1], target[k : k + 1]), (target[k] != 255).sum()) for k in range(2)]
    expected = sum(value * count for value, count in each) / sum(count for _, count in each)
    torch.testing.assert_close(loss(logits, target), expected)


def sum_over_pixels(
    logits: Tensor, target: Tensor, weights: list[float] | None, smoothing: float, void: int
) -> tuple[float, float]:
    """Go from pixel to pixel: the sum of their cross-entropies, and of the weights of their classes."""
    factors = np.ones(logits.shape[1]) if weights is None else np.array(weights)
    scores = logits.detach().numpy().astype(np.float64)
    total = count = 0.0
    for (n, y, x), label in np.ndenumerate(target.numpy()):
        if label != void:
            surprise = np.log(np.exp(scores[n, :, y, x]).sum()) - scores[n, :, y, x]
            wanted = np.full(len(factors), smoothing / len(factors))
            wanted[label] += 1 - smoothing
            total += (wanted * factors * surprise).sum()
            count += factors[label]
    return total, count


@pytest.mark.parametrize("void", [255, -100, 0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
def test_sum_and_mean_are_those_of_the_pixels(weights: list[float] | None, smoothing: float, void: int) -> None:
    logits, target = batch(void=void)
    total, count = sum_over_pixels(logits, target, weights, smoothing, void)
    assert total > 0
    for reduction, expected in (("sum", total), ("mean", total / count)):
        loss = SegmentationLoss(weights, void, smoothing, reduction)(logits, target)
        assert loss.shape == ()
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
def test_gradient_of_the_sum_is_that_of_the_mean_times_the_count(weights: list[float] | None, smoothing: float) -> None:
    gradients = {}
    for reduction in ("sum", "mean"):
        logits, target = batch()
        SegmentationLoss(weights, 255, smoothing, reduction)(logits, target).backward()
        gradients[reduction] = logits.grad
    _, count = sum_over_pixels(logits, target, weights, smoothing, 255)
    torch.testing.assert_close(gradients["sum"], gradients["mean"] * count)
    assert (gradients["sum"].movedim(1, -1)[target == 255] == 0).all()


def test_sum_of_a_batch_is_that_of_its_images() -> None:
    logits, target = batch()
    loss = SegmentationLoss([0.5, 1.0, 2.0, 0.0, 7.5], 255, 0.1, "sum")
    each = [loss(logits[k : k + 1], target[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(loss(logits, target), sum(each))


def test_weights_are_no_part_of_a_checkpoint() -> None:
    loss = SegmentationLoss([1.0, 2.0], 255)
    assert loss.state_dict() == {}
    assert loss.weight.tolist() == [1.0, 2.0]
