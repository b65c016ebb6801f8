"""One score with a sigmoid for two classes: losses, the threshold, scores, and the whole way by the command line."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from helpers import one_sentence, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fcn_smp import evaluation
from fcn_smp.losses import SegmentationLoss
from fcn_smp.metrics import BINS, ConfusionMatrix, Thresholds, f_score
from fcn_smp.recipe import load_recipe
from fcn_smp.segmenter import Segmenter, most_likely
from fcn_smp.training.parts import build

pytestmark = pytest.mark.usefixtures("undrawn")

VOID = 255

# --- Losses


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, 1, 6, 7, generator=generator)
    target = torch.randint(0, 2, (3, 6, 7), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.3] = VOID
    return logits, target


def value_and_gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


def labelled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return logits[:, 0][target != VOID], target[target != VOID].float()


def cross_entropy(
    logits: Tensor, target: Tensor, weights: tuple[float, float] = (1, 1), smoothing: float = 0
) -> Tensor:
    z, y = labelled(logits, target)
    factor = torch.where(y == 1, weights[1], weights[0])
    soft = y * (1 - smoothing) + smoothing / 2
    # The weight is that of the class whose logarithm it is, as in PyTorch's cross-entropy.
    losses = -(weights[1] * soft * F.logsigmoid(z) + weights[0] * (1 - soft) * F.logsigmoid(-z))
    return losses.sum() / factor.sum()


def dice(logits: Tensor, target: Tensor) -> Tensor:
    z, y = labelled(logits, target)
    p = z.sigmoid()
    return 1 - 2 * (p * y).sum() / (p.sum() + y.sum())


def lovasz(logits: Tensor, target: Tensor) -> Tensor:
    z, y = labelled(logits, target)
    errors, order = (1 - z * (2 * y - 1)).sort(descending=True)
    y = y[order]
    union = y.sum() + (1 - y).cumsum(0)
    jaccard = 1 - (y.sum() - y.cumsum(0)) / union
    steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return (errors.relu() * steps).sum()


def focal(logits: Tensor, target: Tensor) -> Tensor:
    z, y = labelled(logits, target)
    p = torch.where(y == 1, z.sigmoid(), 1 - z.sigmoid())
    return (-((1 - p) ** 2) * p.log()).mean()


CASES: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "cross-entropy": ({}, cross_entropy),
    "weights": ({"class_weights": [0.5, 3.0]}, lambda z, y: cross_entropy(z, y, (0.5, 3.0))),
    "smoothing": ({"label_smoothing": 0.2}, lambda z, y: cross_entropy(z, y, smoothing=0.2)),
    "dice": ({"terms": {"dice": 1.0}}, dice),
    "lovasz": ({"terms": {"lovasz": 1.0}}, lovasz),
    "focal": ({"terms": {"focal": 1.0}}, focal),
    "all": (
        {"terms": {"cross_entropy": 1.0, "dice": 2.0, "lovasz": 0.5, "focal": 3.0}},
        lambda z, y: cross_entropy(z, y) + 2 * dice(z, y) + 0.5 * lovasz(z, y) + 3 * focal(z, y),
    ),
}


def build_loss(options: dict[str, Any]) -> SegmentationLoss:
    options = {"class_weights": None, **options}
    return SegmentationLoss(options.pop("class_weights"), VOID, **options, binary=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_losses_of_one_score_are_those_of_the_sigmoid(name: str, seed: int) -> None:
    options, reference = CASES[name]
    value, gradient = value_and_gradient(build_loss(options), *batch(seed))
    expected_value, expected_gradient = value_and_gradient(reference, *batch(seed))
    torch.testing.assert_close(value, expected_value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert gradient.any()


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_learned_where_all_is_void(name: str) -> None:
    logits, target = batch()
    value, gradient = value_and_gradient(build_loss(CASES[name][0]), logits, torch.full_like(target, VOID))
    assert value == 0
    assert not gradient.any()


def test_losses_are_those_that_smp_gives_its_binary_models() -> None:
    logits, target = batch()
    for name, theirs in (
        ("dice", smp.losses.DiceLoss("binary", ignore_index=VOID)),
        ("lovasz", smp.losses.LovaszLoss("binary", ignore_index=VOID)),
    ):
        torch.testing.assert_close(build_loss({"terms": {name: 1.0}})(logits, target), theirs(logits, target).sum())
    ours, theirs = build_loss({}), smp.losses.SoftBCEWithLogitsLoss(ignore_index=None)
    every = target.clamp(max=1)
    torch.testing.assert_close(ours(logits, every), theirs(logits, every[:, None].float()))


# --- The threshold and what it leads to


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0, 1, VOID])), min_size=1, max_size=60))
def test_the_best_threshold_has_the_best_mean_iu_and_lies_nearest_to_a_half(pixels: list[tuple[float, int]]) -> None:
    probability, truth = (np.array(values) for values in zip(*pixels, strict=True))
    counts = Thresholds(VOID)
    half = len(pixels) // 2
    for part in (slice(half), slice(half, None)):
        counts.update(torch.from_numpy(probability[part]), torch.from_numpy(truth[part]))

    def confusion(k: int) -> ConfusionMatrix:
        matrix = ConfusionMatrix(2, VOID)
        matrix.update(torch.from_numpy((probability > k / BINS).astype(int)), torch.from_numpy(truth))
        return matrix

    mean_ius = {k: confusion(k).scores().mean_iu for k in range(1, BINS)}
    best = max(mean_ius.values()) if (truth != VOID).any() else math.nan
    nearest = min(abs(k / BINS - 0.5) for k, value in mean_ius.items() if math.isnan(best) or math.isclose(value, best))
    threshold = counts.best()
    assert math.isnan(best) or math.isclose(mean_ius[round(threshold * BINS)], best)
    assert abs(threshold - 0.5) == nearest
    assert torch.equal(counts.confusion().counts, confusion(round(threshold * BINS)).counts)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.sampled_from([0.5, 1, 2]))
def test_f_scores_weigh_what_is_missed_against_what_is_wrong(hits: int, wrong: int, missed: int, beta: float) -> None:
    precision = hits / (hits + wrong) if hits + wrong else math.nan
    recall = hits / (hits + missed) if hits + missed else math.nan
    result = f_score(precision, recall, beta)
    if not hits + missed:
        assert math.isnan(result)
    else:
        weight = beta**2
        assert result == pytest.approx((1 + weight) * hits / ((1 + weight) * hits + weight * missed + wrong), abs=1e-12)


@settings(deadline=None)
@given(st.floats(1 / 256, 255 / 256), st.integers(0, 99))
def test_a_pixel_is_of_class_1_where_its_probability_is_above_the_threshold(threshold: float, seed: int) -> None:
    logits = 4 * torch.randn(2, 1, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    label = most_likely(logits, threshold)
    assert label.shape == (2, 5, 6)
    assert torch.equal(label == 1, logits[:, 0].sigmoid() > threshold)
    assert torch.equal(most_likely(torch.zeros(1, 1, 2, 2)), torch.zeros(1, 2, 2, dtype=torch.int64))


# --- Training, scoring and using one


def write_balls(folder: Path) -> None:
    """Write pictures of a bright ball on a dark ground, and labels with a border of void around it."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    rows, columns = np.mgrid[:40, :56]
    for number in range(12):
        y, x, radius = rng.integers(10, 30), rng.integers(10, 46), rng.integers(6, 12)
        distance = np.hypot(rows - y, columns - x)
        image = rng.normal(80 + 60 * (distance < radius)[..., None], 25, (40, 56, 3)).clip(0, 255).astype(np.uint8)
        label = np.where(distance < radius - 1, 1, np.where(distance < radius + 1, VOID, 0)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"images/{number:02d}.png")
        Image.fromarray(label).save(folder / f"labels/{number:02d}.png")


RECIPE = """
data: {kind: folder, root: balls, names: [ground, ball], val_share: 0.34}
model: {arch: fcn8s, encoder_name: test_resnet, encoder_weights: null, binary: true}
augmentation: {crop: [40, 56], scale: [1, 1], color_jitter: 0}
loss: {terms: {cross_entropy: 1, dice: 1}}
optimizer: {kind: adamw, lr: 0.01, encoder_lr: 0.01}
trainer: {epochs: 8, batch_size: 4, workers: 0, validate_every: 8, precision: fp32}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the pictures, the recipe and its run."""
    folder = tmp_path_factory.mktemp("binary")
    write_balls(folder / "balls")
    (folder / "balls.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, out, err = run_command("train", "balls.yaml", "-o", "run")
    assert code == 0, err
    scores = json.loads((folder / "run/eval/val/scores.json").read_text())
    result = f"mean IU {100 * scores['mean_iu']:.2f} %, pixel accuracy {100 * scores['pixel_accuracy']:.2f} %"
    assert f"epoch 8: {result}, threshold {scores['threshold']:.3g} on val." in out
    return folder


@pytest.fixture(autouse=True)
def _inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def val(place: Path) -> Any:
    data = load_recipe(place / "run/recipe.yaml").data
    return data.load(data.val)


def test_a_network_with_one_score_learns_two_classes(place: Path) -> None:
    scores = json.loads((place / "run/eval/val/scores.json").read_text())
    assert scores["binary"]["class"] == "ball"
    assert scores["binary"]["iu"] > 0.5
    assert Segmenter.load(place / "run").model.decoder.score.out_channels == 1


def test_the_threshold_is_the_best_of_validation(place: Path, val: Any) -> None:
    segmenter = Segmenter.load(place / "run")
    ius = {}
    for k in range(1, BINS):
        segmenter.threshold = k / BINS
        hits, union = np.zeros(2), np.zeros(2)
        for sample in val:
            label = segmenter.predict(sample.image)
            for c in range(2):
                predicted, real = (label == c) & (sample.label != VOID), sample.label == c
                hits[c] += (predicted & real).sum()
                union[c] += (predicted | real).sum()
        ius[k] = (hits / union).mean()
    chosen = json.loads((place / "run/model/config.json").read_text())["_threshold"]
    assert ius[round(chosen * BINS)] == max(ius.values())
    assert len(set(ius.values())) > 3


def test_each_validation_scores_the_best_threshold_too(place: Path) -> None:
    final = json.loads((place / "run/eval/val/scores.json").read_text())
    with (place / "run/metrics.csv").open() as file:
        validated = [float(row["mean_iu"]) for row in csv.DictReader(file) if row["mean_iu"]]
    assert max(validated) == pytest.approx(final["mean_iu"], abs=1e-4)


def test_a_network_that_knows_nothing_does_not_call_everything_class_1() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(1000, generator=generator) < 0.1).long()
    probability = 0.3 + 0.1 * torch.rand(1000, generator=generator)
    counts = Thresholds(VOID)
    counts.update(probability, truth)
    assert not (probability > counts.best()).all()
    assert counts.confusion().scores().mean_iu >= 0.44


def test_a_class_without_a_pixel_is_an_error_where_there_are_two(place: Path) -> None:
    recipe = load_recipe(place / "balls.yaml", ["data.names={ground: 0, ball: 7}", "data.void=[1]"])
    with one_sentence("train", "not a pixel of ball", "255"):
        build(recipe)


def test_processes_that_share_the_images_find_the_same_threshold(place: Path, val: Any) -> None:
    segmenter = Segmenter.load(place / "run")
    shares = [evaluation.thresholds(segmenter, val, share=range(k, len(val), 2)).counts for k in range(2)]
    assert torch.equal(sum(shares), evaluation.thresholds(segmenter, val).counts)


def test_scores_are_those_of_smp_and_of_the_formulas(place: Path, val: Any) -> None:
    segmenter = Segmenter.load(place / "run")
    scores = json.loads((place / "run/eval/val/scores.json").read_text())
    counts = torch.zeros(4)
    for sample in val:
        prediction = torch.from_numpy(segmenter.predict(sample.image))[None].long()
        truth = torch.from_numpy(sample.label)[None].long()
        keep = truth != VOID  # SMP's get_stats ignores no label of binary masks
        counts += torch.cat(
            smp.metrics.get_stats(prediction[keep][None, None], truth[keep][None, None], mode="binary")
        )[:, 0]
    for name, theirs in (
        ("iu", smp.metrics.iou_score(*counts)),
        ("f1", smp.metrics.f1_score(*counts)),
        ("f0.5", smp.metrics.fbeta_score(*counts, beta=0.5)),
        ("f2", smp.metrics.fbeta_score(*counts, beta=2)),
        ("precision", smp.metrics.precision(*counts)),
        ("recall", smp.metrics.recall(*counts)),
    ):
        assert scores["binary"][name] == pytest.approx(float(theirs), abs=1e-6), name
    assert scores["threshold"] == segmenter.threshold


def test_eval_prints_them(command: Any, place: Path) -> None:
    code, out, _ = command("eval", "run")
    assert code == 0
    scores = json.loads((place / "run/eval/val/scores.json").read_text())
    lines = [line.split() for line in out.splitlines()]
    assert f"A pixel is ball above a probability of {scores['threshold']:.3g}." in out.splitlines()
    for name in ("precision", "recall", "f1", "f0.5", "f2"):
        assert [name.capitalize(), "of", "ball", f"{100 * scores['binary'][name]:.2f}", "%"] in lines


def test_softmax_of_two_classes_has_these_scores_too_but_no_threshold(command: Any) -> None:
    assert command("train", "balls.yaml", "model.binary=false", "trainer.epochs=1", "-o", "softmax")[0] == 0
    code, out, _ = command("eval", "softmax", "--json")
    assert code == 0
    scores = json.loads(out)
    assert set(scores["binary"]) == {"class", "iu", "precision", "recall", "f1", "f0.5", "f2"}
    assert "threshold" not in scores


def test_predict_labels_pixels_by_the_threshold(command: Any, place: Path) -> None:
    assert command("predict", "run", "balls/images", "-o", "labels")[0] == 0
    segmenter = Segmenter.load("run")
    found = set()
    for path in sorted(Path("balls/images").iterdir()):
        label = np.array(Image.open(f"labels/{path.name}"))
        with torch.inference_mode():
            logits = segmenter.logits(np.array(Image.open(path)))
        np.testing.assert_array_equal(label == 1, logits[0, 0].sigmoid().numpy() > segmenter.threshold)
        found |= {*np.unique(label)}
    assert found == {0, 1}


def test_an_exported_file_labels_by_the_threshold(place: Path, tmp_path: Path) -> None:
    from fcn_smp.export import export

    segmenter = Segmenter.load(place / "run")
    segmenter.threshold = 0.9
    path = tmp_path / "ball.pt2"
    export(segmenter, path, format="torch_export", with_preprocessing=True, argmax=True)
    files = {"threshold": ""}
    network = torch.export.load(path, extra_files=files).module()
    assert json.loads(files["threshold"]) == 0.9
    image = np.array(Image.open("balls/images/03.png"))
    labels = network(torch.from_numpy(image).permute(2, 0, 1)[None])
    np.testing.assert_array_equal(labels[0].numpy(), segmenter.predict(image))


def test_the_model_card_tells_the_threshold_and_the_scores_of_the_class(place: Path) -> None:
    card = (place / "run/model/README.md").read_text()
    scores = json.loads((place / "run/eval/val/scores.json").read_text())
    assert f"| F1 of ball | {100 * scores['binary']['f1']:.2f} % |" in card
    assert f"| Threshold, chosen on this split | {scores['threshold']:.3g} |" in card


def test_a_saved_threshold_is_read_back_and_smp_reads_the_model_too(place: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.load(place / "run")
    segmenter.threshold = 0.125
    segmenter.save(tmp_path / "model")
    assert Segmenter.load(tmp_path / "model").threshold == 0.125
    model = smp.from_pretrained(tmp_path / "model").eval()
    x = torch.randn(1, 3, 33, 47)
    assert torch.equal(model(x), segmenter.model(x))
    assert model(x).shape == (1, 1, 33, 47)


def test_more_than_two_classes_have_no_sigmoid() -> None:
    recipe = load_recipe("demo", ["model.binary=true", "model.encoder_name=test_resnet"])
    with one_sentence("model", "binary", "two classes"):
        build(recipe)


def test_a_run_with_one_score_is_stopped_and_resumed_as_any_other(command: Any, place: Path) -> None:
    two = ("balls.yaml", "trainer.epochs=2", "trainer.validate_every=1")
    assert command("train", *two, "-o", "whole")[0] == 0
    whole = json.loads(Path("whole/eval/val/scores.json").read_text())
    (Path("whole/model")).rename("whole/kept")
    assert command("train", *two, "-o", "whole", "--resume")[0] == 0
    assert json.loads(Path("whole/eval/val/scores.json").read_text()) == whole
    with Path("whole/metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_users_of_smp_train_it_as_any_binary_model() -> None:
    model = smp.create_model("fcn8s", encoder_name="test_resnet", encoder_weights=None, classes=1).train()
    loss, optimizer = smp.losses.DiceLoss("binary"), torch.optim.Adam(model.parameters(), lr=1e-2)
    image, mask = torch.zeros(2, 3, 32, 48), torch.zeros(2, 1, 32, 48)
    image[..., :24], mask[..., :24] = 1, 1
    first = None
    for _ in range(8):
        value = loss(model(image + 0.1 * torch.randn_like(image)), mask)
        first = value.item() if first is None else first
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value.item() < 0.7 * first


def test_scores_of_a_softmax_of_two_and_of_a_sigmoid_agree() -> None:
    logits = torch.randn(2, 1, 9, 9)
    truth = torch.randint(0, 2, (2, 9, 9))
    one, two = ConfusionMatrix(2, VOID), ConfusionMatrix(2, VOID)
    one.update(most_likely(logits), truth)
    two.update(most_likely(torch.cat([torch.zeros_like(logits), logits], 1)), truth)
    assert torch.equal(one.counts, two.counts)
