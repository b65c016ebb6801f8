"""The loss, against PyTorch's own and against the formulas of the papers written out in numpy."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fcn_smp.losses import SegmentationLoss

WEIGHTS = [None, [0.5, 1.0, 2.0, 0.0, 7.5]]
VOID = 255

LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "sum": {"reduction": "sum"},
    "smooth": {"label_smoothing": 0.1},
    "weighted": {"class_weights": WEIGHTS[1], "label_smoothing": 0.1},
    "ohem": {"ohem": 0.3},
    "weighted ohem": {"class_weights": WEIGHTS[1], "label_smoothing": 0.1, "ohem": 0.5},
    "summed ohem": {"reduction": "sum", "ohem": 0.5},
    "dice": {"terms": {"dice": 1.0}},
    "lovasz": {"terms": {"lovasz": 1.0}},
    "focal": {"terms": {"focal": 1.0}},
    "focal 0.5": {"terms": {"focal": 1.0}, "focal_gamma": 0.5},
    "all": {"terms": {"cross_entropy": 1.0, "dice": 0.5, "lovasz": 2.0, "focal": 3.0}, "class_weights": WEIGHTS[1]},
}
each_loss = pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)


def build(class_weights: list[float] | None = None, ignore_index: int = VOID, **options: Any) -> SegmentationLoss:
    return SegmentationLoss(class_weights, ignore_index, **options)


def batch(seed: int = 0, void: int = VOID, shape: tuple[int, int, int] = (2, 6, 7)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n, height, width = shape
    logits = 3 * torch.randn(n, 5, height, width, generator=generator)
    target = torch.randint(0, 5, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < 0.3] = void
    return logits.requires_grad_(), target


def value_and_gradient(
    loss: Callable[..., Tensor], logits: Tensor, target: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, target, **options)
    assert value.shape == ()
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


# Cross-entropy


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("void", [255, 254, 0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
def test_loss_and_gradients_are_those_of_pytorch(
    weights: list[float] | None, smoothing: float, void: int, seed: int
) -> None:
    reference = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.tensor(weights), ignore_index=void, label_smoothing=smoothing
    )
    loss = SegmentationLoss(weights, void, label_smoothing=smoothing)
    value, gradient = value_and_gradient(loss, *batch(seed, void))
    expected_value, expected_gradient = value_and_gradient(reference, *batch(seed, void))
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradient, expected_gradient)
    assert value > 0
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_batch_of_pixels_that_weigh_nothing_teaches_nothing(smoothing: float) -> None:
    logits, target = batch()
    loss = build([0.0, 1.0, 1.0, 1.0, 1.0], label_smoothing=smoothing)
    value, gradient = value_and_gradient(loss, logits, torch.zeros_like(target))
    assert value == 0
    assert (gradient == 0).all()


def test_loss_of_a_batch_is_the_mean_over_its_pixels_and_not_over_its_images() -> None:
    logits, target = batch()
    target[0] = VOID
    target[0, 0, 0] = 1
    loss = build()
    each = [(loss(logits[k : k + 1], target[k : k + 1]), (target[k] != VOID).sum()) for k in range(2)]
    expected = sum(value * count for value, count in each) / sum(count for _, count in each)
    torch.testing.assert_close(loss(logits, target), expected)


def losses_of_pixels(
    logits: Tensor, target: Tensor, weights: list[float] | None, smoothing: float, void: int
) -> tuple[list[float], float]:
    """Go from pixel to pixel: their cross-entropies, and the sum of the weights of their classes."""
    factors = np.ones(logits.shape[1]) if weights is None else np.array(weights)
    scores = logits.detach().numpy().astype(np.float64)
    losses, count = [], 0.0
    for (n, y, x), label in np.ndenumerate(target.numpy()):
        if label != void:
            surprise = np.log(np.exp(scores[n, :, y, x]).sum()) - scores[n, :, y, x]
            wanted = np.full(len(factors), smoothing / len(factors))
            wanted[label] += 1 - smoothing
            losses.append((wanted * factors * surprise).sum())
            count += factors[label]
    return losses, count


@pytest.mark.parametrize("void", [255, 254, 0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
def test_sum_and_mean_are_those_of_the_pixels(weights: list[float] | None, smoothing: float, void: int) -> None:
    logits, target = batch(void=void)
    losses, count = losses_of_pixels(logits, target, weights, smoothing, void)
    assert sum(losses) > 0
    for reduction, expected in (("sum", sum(losses)), ("mean", sum(losses) / count)):
        loss = SegmentationLoss(weights, void, label_smoothing=smoothing, reduction=reduction)
        assert loss(logits, target).item() == pytest.approx(expected, rel=1e-5)
        assert loss.normalizer(target).item() == pytest.approx(count, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
def test_gradient_of_the_sum_is_that_of_the_mean_times_the_count(weights: list[float] | None, smoothing: float) -> None:
    logits, target = batch()
    total, mean = (
        value_and_gradient(build(weights, label_smoothing=smoothing, reduction=reduction), logits, target)[1]
        for reduction in ("sum", "mean")
    )
    _, count = losses_of_pixels(logits, target, weights, smoothing, VOID)
    torch.testing.assert_close(total, mean * count)


# The hardest pixels alone


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
def test_ohem_counts_the_pixels_of_largest_loss(weights: list[float] | None, smoothing: float, share: float) -> None:
    logits, target = batch()
    losses, count = losses_of_pixels(logits, target, weights, smoothing, VOID)
    counted = max(1, round(share * len(losses)))
    hardest = sum(np.sort(losses)[::-1][:counted])
    for reduction, expected in (("sum", hardest), ("mean", hardest / (count * counted / len(losses)))):
        loss = build(weights, label_smoothing=smoothing, reduction=reduction, ohem=share)
        value, gradient = value_and_gradient(loss, logits, target)
        assert value.item() == pytest.approx(expected, rel=1e-5)
        if weights is None:
            assert (gradient.abs().sum(1) > 0).sum() == counted
            assert loss.normalizer(target) == counted


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["no weights", "weights"])
def test_ohem_of_all_pixels_is_no_ohem(weights: list[float] | None, reduction: str) -> None:
    ohem, plain = (
        value_and_gradient(build(weights, reduction=reduction, ohem=share), *batch()) for share in (1.0, None)
    )
    torch.testing.assert_close(ohem, plain)


def test_of_equally_hard_pixels_the_first_count() -> None:
    logits, target = torch.zeros(2, 5, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    target[0, 0] = VOID
    _, gradient = value_and_gradient(build(ohem=0.5), logits, target)
    counted = gradient.abs().sum(1).flatten().nonzero().flatten()
    assert counted.tolist() == list(range(4, 4 + 14))


def test_ohem_counts_at_least_one_labelled_pixel() -> None:
    logits, target = batch()
    target[:] = VOID
    target[1, 2, 3] = 4
    assert build(ohem=0.01)(logits, target) == build()(logits, target) > 0


# The other terms


def of_pixels(logits: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (P, C) and labels (P) of the labelled pixels."""
    return np.moveaxis(logits, 1, -1)[target != VOID], target[target != VOID]


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def dice(scores: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Milletari et al., section 3, with the sum of the probabilities rather than of their squares."""
    probability, truth = softmax(scores), np.eye(classes)[labels]
    return sum(
        1 - 2 * (probability[:, c] * truth[:, c]).sum() / (probability[:, c].sum() + truth[:, c].sum())
        for c in range(classes)
        if (labels == c).any()
    ) / classes  # fmt: skip


def lovasz(scores: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Berman et al., equations 8, 9 and 11: the Jaccard losses of growing sets of mispredicted pixels."""
    probability, present = softmax(scores), np.unique(labels)
    total = 0.0
    for c in present:
        truth = labels == c
        errors = np.where(truth, 1 - probability[:, c], probability[:, c])
        mispredicted, before = np.zeros(len(labels), bool), 0.0
        for pixel in np.argsort(-errors):
            mispredicted[pixel] = True
            jaccard = mispredicted.sum() / (truth | mispredicted).sum()
            total += errors[pixel] * (jaccard - before)
            before = jaccard
    return total / len(present)


def focal(scores: np.ndarray, labels: np.ndarray, classes: int, gamma: float = 2.0) -> float:
    """Lin et al., equation 4, for each class against the rest."""
    sigmoid = 1 / (1 + np.exp(-scores))
    true = np.where(np.eye(classes, dtype=bool)[labels], sigmoid, 1 - sigmoid)
    return float(-((1 - true) ** gamma * np.log(true)).mean())


FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "dice": dice,
    "lovasz": lovasz,
    "focal": focal,
    "focal 0.5": lambda *pixels: focal(*pixels, gamma=0.5),
}


@pytest.mark.parametrize("labels", ["all", "some", "one"])
@pytest.mark.parametrize("term", FORMULAS)
def test_value_and_gradient_are_those_of_the_formula(term: str, labels: str) -> None:
    logits, target = batch(shape=(2, 4, 4))
    target[(target == 2) & (labels != "all")] = VOID
    target[(target != 3) & (labels == "one")] = VOID
    assert len(target.unique()) == {"all": 6, "some": 5, "one": 2}[labels]
    value, gradient = value_and_gradient(build(**LOSSES[term]), logits, target)

    def formula(scores: np.ndarray) -> float:
        return FORMULAS[term](*of_pixels(scores, target.numpy()), 5)

    scores = logits.detach().numpy().astype(np.float64)
    assert value.item() == pytest.approx(formula(scores), rel=1e-5)
    for place in np.ndindex(*scores.shape):
        step = np.zeros_like(scores)
        step[place] = 1e-6
        slope = (formula(scores + step) - formula(scores - step)) / 2e-6
        assert gradient[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_that_of_smp(gamma: float) -> None:
    logits, target = batch()
    reference = smp.losses.FocalLoss("multiclass", gamma=gamma, ignore_index=VOID)
    ours = value_and_gradient(build(terms={"focal": 1.0}, focal_gamma=gamma), logits, target)
    torch.testing.assert_close(ours, value_and_gradient(reference, logits, target))


def test_focal_turns_from_what_is_easy() -> None:
    logits, target = batch()
    values = [build(terms={"focal": 1.0}, focal_gamma=gamma)(logits, target) for gamma in (0.0, 1.0, 2.0, 5.0)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4


@pytest.mark.parametrize("term", ["dice", "lovasz"])
def test_perfect_and_opposite_prediction_are_0_and_1(term: str) -> None:
    target = torch.arange(2).repeat(2, 3, 4)
    right = 100 * torch.nn.functional.one_hot(target, 2).movedim(-1, 1).float()
    loss = build(terms={term: 1.0})
    assert loss(right, target).item() == pytest.approx(0, abs=1e-6)
    assert loss(-right, target).item() == pytest.approx(1)


def test_absent_classes_count_in_dice_and_not_in_lovasz() -> None:
    logits, target = batch()
    wide = torch.cat([logits, torch.full_like(logits, -1e4)], 1)
    for term, factor in (("dice", 0.5), ("lovasz", 1.0)):
        loss = build(terms={term: 1.0})
        torch.testing.assert_close(loss(wide, target), factor * loss(logits, target))


def test_terms_are_added_up_with_their_factors() -> None:
    logits, target = batch()
    factors = {"lovasz": 0.3, "cross_entropy": 2.0, "focal": 0.7, "dice": 1.5}
    options = {"label_smoothing": 0.1, "ohem": 0.5, "focal_gamma": 1.5}
    alone = [factor * build(terms={term: 1.0}, **options)(logits, target) for term, factor in factors.items()]
    torch.testing.assert_close(build(terms=factors, **options)(logits, target), sum(alone))


# All terms


@each_loss
def test_void_never_counts(options: dict[str, Any]) -> None:
    logits, target = batch()
    loss = build(**options)
    value, gradient = value_and_gradient(loss, logits, target)
    other = torch.where((target == VOID).unsqueeze(1), 10 * logits.flip(1) + 3, logits)
    assert value > 0
    assert (gradient.movedim(1, -1)[target == VOID] == 0).all()
    assert gradient.abs().sum() > 0
    other_value, other_gradient = value_and_gradient(loss, other, target)
    torch.testing.assert_close(other_value, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("void", [255, 254, 0])
@each_loss
def test_label_of_void_is_that_given(options: dict[str, Any], void: int) -> None:
    options = options | {"class_weights": None}
    logits, target = batch()
    target[target == 0] = VOID
    relabelled = torch.where(target == VOID, void, target)
    torch.testing.assert_close(
        build(ignore_index=void, **options)(logits, relabelled), build(**options)(logits, target)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("piece", [{}, {"normalizer": torch.tensor(7.0), "parts": 3}], ids=["alone", "piece"])
@each_loss
def test_batch_without_a_labelled_pixel_teaches_nothing(
    options: dict[str, Any], piece: dict[str, Any], dtype: torch.dtype
) -> None:
    logits, target = batch()
    target[:] = VOID
    loss = build(**options)
    value, gradient = value_and_gradient(loss, logits.to(dtype), target, **piece)
    assert value == 0
    assert (gradient == 0).all()
    assert loss.normalizer(target) == 0


@each_loss
def test_step_without_a_labelled_pixel_teaches_nothing(options: dict[str, Any]) -> None:
    logits, target = batch()
    target[:] = VOID
    value, gradient = value_and_gradient(build(**options), logits, target, normalizer=torch.tensor(0.0), parts=2)
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_loss
def test_logits_of_half_precision_are_summed_in_full(options: dict[str, Any], dtype: torch.dtype) -> None:
    logits, target = batch()
    half = logits.detach().to(dtype)
    value, gradient = value_and_gradient(build(**options), half, target)
    full_value, full_gradient = value_and_gradient(build(**options), half.float(), target)
    assert value.dtype == torch.float32
    assert value == full_value
    assert torch.equal(gradient, full_gradient.to(dtype))


@each_loss
def test_autocast_changes_nothing(options: dict[str, Any]) -> None:
    value, gradient = value_and_gradient(build(**options), *batch())
    with torch.autocast("cpu", torch.bfloat16):
        cast_value, cast_gradient = value_and_gradient(build(**options), *batch())
    assert cast_value == value
    assert torch.equal(cast_gradient, gradient)


@pytest.mark.parametrize("size", [1e2, 1e4, 6e4])
@each_loss
def test_sure_logits_give_finite_numbers(options: dict[str, Any], size: float) -> None:
    logits, target = batch()
    for extreme in (size * logits.sign(), size * (target.unsqueeze(1) == torch.arange(5).view(5, 1, 1)).float()):
        value, gradient = value_and_gradient(build(**options), extreme, target)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@each_loss
def test_a_failed_network_is_not_hidden(options: dict[str, Any]) -> None:
    logits, target = batch()
    assert target[1, 2, 3] != VOID
    assert torch.isnan(build(**options)(torch.where(logits > 0, math.nan, logits), target))


@each_loss
def test_order_of_pixels_does_not_matter(options: dict[str, Any]) -> None:
    logits, target = batch()
    order = torch.randperm(target.numel(), generator=torch.Generator().manual_seed(0))
    shuffled = logits.movedim(1, -1).reshape(-1, 5)[order].reshape(2, 6, 7, 5).movedim(-1, 1)
    value, gradient = value_and_gradient(build(**options), logits, target)
    other_value, other_gradient = value_and_gradient(build(**options), shuffled, target.flatten()[order].view(2, 6, 7))
    torch.testing.assert_close(other_value, value)
    torch.testing.assert_close(
        other_gradient.movedim(1, -1).reshape(-1, 5), gradient.movedim(1, -1).reshape(-1, 5)[order]
    )


@each_loss
def test_order_in_memory_does_not_matter(options: dict[str, Any]) -> None:
    logits, target = batch()
    value, gradient = value_and_gradient(build(**options), logits, target)
    last_value, last_gradient = value_and_gradient(
        build(**options), logits.detach().contiguous(memory_format=torch.channels_last), target
    )
    torch.testing.assert_close(last_value, value)
    torch.testing.assert_close(last_gradient, gradient)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@each_loss
def test_deterministic_algorithms_give_the_same(options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    value, gradient = value_and_gradient(build(**options), *batch())
    request.getfixturevalue("deterministic")
    for _ in range(2):
        other_value, other_gradient = value_and_gradient(build(**options), *batch())
        assert other_value == value
        assert torch.equal(other_gradient, gradient)


@each_loss
def test_no_operation_on_maps_is_left_that_has_no_deterministic_kernel(options: dict[str, Any]) -> None:
    logits, target = batch()
    with torch.profiler.profile() as profile:
        build(**options)(logits, target).backward()
    names = {event.key for event in profile.key_averages()}
    assert names
    assert not any("nll_loss2d" in name or "bincount" in name or "kthvalue" in name for name in names)


# Pieces of a batch


@st.composite
def pieces(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor]]:
    """Draw a batch in pieces of one to three images, some of them without a label."""
    images = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    seed = draw(st.integers(0, 1000))
    logits, target = batch(seed, shape=(sum(images), 3, 4))
    targets = list(target.split(images))
    for k in draw(st.sets(st.integers(0, len(images) - 1))):
        targets[k] = torch.full_like(targets[k], VOID)
    return list(logits.detach().split(images)), targets


def in_pieces(loss: SegmentationLoss, logits: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Add up values and gradients as a training step does."""
    normalizer = torch.stack([loss.normalizer(target) for target in targets]).sum()
    each = [
        value_and_gradient(loss, *piece, normalizer=normalizer, parts=len(logits))
        for piece in zip(logits, targets, strict=True)
    ]
    return torch.stack([value for value, _ in each]).sum(), torch.cat([gradient for _, gradient in each])


some_weights = st.none() | st.lists(st.floats(0, 10, width=32), min_size=5, max_size=5)


@settings(deadline=None)
@given(pieces(), some_weights, st.sampled_from([0.0, 0.2]), st.sampled_from(["mean", "sum"]))
def test_cross_entropy_of_pieces_adds_up_to_that_of_the_batch(
    batch: tuple[list[Tensor], list[Tensor]], weights: list[float] | None, smoothing: float, reduction: str
) -> None:
    loss = build(weights, label_smoothing=smoothing, reduction=reduction)
    value, gradient = in_pieces(loss, *batch)
    whole_value, whole_gradient = value_and_gradient(loss, torch.cat(batch[0]), torch.cat(batch[1]))
    if reduction == "mean" and loss.normalizer(torch.cat(batch[1])) == 0:
        assert value == whole_value == 0
    torch.testing.assert_close(value, whole_value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(pieces(), st.sampled_from(["dice", "lovasz", "focal"]))
def test_other_terms_of_pieces_are_averaged(batch: tuple[list[Tensor], list[Tensor]], term: str) -> None:
    loss = build(terms={term: 2.0})
    value, _ = in_pieces(loss, *batch)
    expected = torch.stack([loss(*piece) for piece in zip(*batch, strict=True)]).mean()
    torch.testing.assert_close(value, expected)


@settings(deadline=None, max_examples=30)
@given(pieces(), some_weights, st.sampled_from([0.1, 0.5, 1.0]))
def test_ohem_of_pieces_is_their_sum_over_the_sum_of_what_they_count(
    batch: tuple[list[Tensor], list[Tensor]], weights: list[float] | None, share: float
) -> None:
    value, _ = in_pieces(build(weights, ohem=share), *batch)
    expected_sum = expected_count = 0.0
    for logits, target in zip(*batch, strict=True):
        losses, count = losses_of_pixels(logits, target, weights, 0.0, VOID)
        if losses:
            counted = max(1, round(share * len(losses)))
            expected_sum += sum(np.sort(losses)[::-1][:counted])
            expected_count += count * counted / len(losses)
    expected = expected_sum / expected_count if expected_count else 0.0
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_one_piece_is_the_batch() -> None:
    logits, target = batch()
    loss = build(**LOSSES["all"])
    assert loss(logits, target, normalizer=loss.normalizer(target), parts=1) == loss(logits, target)


def test_sum_does_not_need_the_normalizer() -> None:
    logits, target = batch()
    loss = build(reduction="sum")
    assert loss(logits, target, normalizer=torch.tensor(3.0), parts=5) == loss(logits, target)


@each_loss
def test_normalizer_is_a_scalar_of_single_precision(options: dict[str, Any]) -> None:
    normalizer = build(**options).normalizer(batch()[1])
    assert normalizer.shape == ()
    assert normalizer.dtype == torch.float32


# The module


def test_weights_are_no_part_of_a_checkpoint() -> None:
    loss = build(**LOSSES["all"])
    assert loss.state_dict() == {}
    assert loss.weight.tolist() == WEIGHTS[1]


@each_loss
def test_a_copy_gives_the_same(options: dict[str, Any]) -> None:
    loss = build(**options)
    assert copy.deepcopy(loss)(*batch()) == loss(*batch())


def test_default_is_cross_entropy_alone() -> None:
    assert build().terms == {"cross_entropy": 1.0}
    assert build(ohem=None, focal_gamma=9.0)(*batch()) == build()(*batch())
    build().terms["dice"] = 1.0
    assert build().terms == {"cross_entropy": 1.0}
