"""The loss, against PyTorch's own."""

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


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
def test_batch_without_a_labelled_pixel_teaches_nothing(weights: list[float] | None, smoothing: float) -> None:
    logits, target = batch()
    loss = SegmentationLoss(weights, 255, smoothing)(logits, torch.full_like(target, 255))
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


@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_are_summed_in_full(weights: list[float] | None, dtype: torch.dtype) -> None:
    logits, target = batch()
    half = logits.detach().to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    losses = [SegmentationLoss(weights, 255)(each, target) for each in (half, full)]
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


def test_weights_are_no_part_of_a_checkpoint() -> None:
    loss = SegmentationLoss([1.0, 2.0], 255)
    assert loss.state_dict() == {}
    assert loss.weight.tolist() == [1.0, 2.0]
