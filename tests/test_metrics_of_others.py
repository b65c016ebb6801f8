"""Our metrics against scikit-learn's, torchmetrics' and SMP's of the same predictions."""

import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from sklearn import metrics as sklearn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from fcn_smp import resampling
from fcn_smp.data.scenes import CLASSES, draw_scene
from fcn_smp.data.voc import VOCSegmentation
from fcn_smp.metrics import ConfusionMatrix

VOID = 255
ROOT = Path(__file__).parent.parent


def imperfect(rng, image, truth, classes):
    """Guess a label as a poor network would: moved, in a wrong class here and there, speckled where it is bright."""
    prediction = np.roll(np.where(truth == VOID, 0, truth), rng.integers(-9, 10, 2), (0, 1))
    for k in np.unique(prediction):
        if rng.random() < 0.3:
            prediction[prediction == k] = rng.integers(classes)
    speckle = (image.mean(2) > 200) & (rng.random(truth.shape) < 0.3)
    prediction[speckle] = rng.integers(0, classes, speckle.sum())
    return prediction.astype(np.uint8)


@pytest.fixture(scope="module", params=["drawn scenes", "VOC 2007"])
def images(request):
    """Number of classes, and prediction and truth of some images."""
    rng = np.random.default_rng(0)
    if request.param == "VOC 2007":
        root = request.getfixturevalue("data") / "voc2007-segmentation-trainval.tar"
        dataset, classes = VOCSegmentation(root, "val", 2007), 21
        samples = [(dataset[k].image, dataset[k].label) for k in range(0, len(dataset), 15)]
    else:
        classes = len(CLASSES) + 1  # of which the last is nowhere in the truth
        samples = [tuple(map(np.asarray, draw_scene(np.random.default_rng(k)))) for k in range(12)]
    return classes, [(imperfect(rng, *sample, classes), sample[1]) for sample in samples]


@pytest.fixture(scope="module")
def pixels(images):
    """Prediction and truth of all labelled pixels, one after the other."""
    return tuple(
        np.concatenate([image[kind][image[1] != VOID] for image in images[1]]).astype(np.int64) for kind in (0, 1)
    )


@pytest.fixture(scope="module")
def ours(images):
    classes, pairs = images
    matrix = ConfusionMatrix(classes, VOID)
    for prediction, truth in pairs:
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    assert 0.1 < matrix.scores().mean_iu < 0.9, "neither a perfect prediction nor chance tells ways of counting apart"
    return matrix


@pytest.fixture(scope="module")
def counts(images):
    """Counts (N, 3, C) of each image, from its pixels."""
    classes, pairs = images
    return np.stack(
        [
            [np.bincount(label[truth != VOID], minlength=256)[:classes] for label in (hits, truth, prediction)]
            for prediction, truth in pairs
            for hits in [np.where(prediction == truth, truth, VOID)]
        ]
    )


@pytest.fixture(scope="module")
def stats(images):
    """SMP's true positives, false positives, false negatives and true negatives, each (N, C)."""
    classes, pairs = images
    each = [
        smp.metrics.get_stats(
            *(torch.from_numpy(label).long()[None] for label in pair),
            mode="multiclass",
            ignore_index=VOID,
            num_classes=classes,
        )
        for pair in pairs
    ]
    return [torch.cat(kind) for kind in zip(*each, strict=True)]


def test_counts_are_scikit_learns_to_the_last_pixel(ours, pixels):
    prediction, truth = pixels
    theirs = sklearn.confusion_matrix(truth, prediction, labels=range(ours.classes))
    assert ours.counts.tolist() == theirs.tolist()
    assert ours.counts.sum() == len(truth)


def test_scores_are_scikit_learns_to_the_last_digit(ours, pixels):
    prediction, truth = pixels
    scores, labels = ours.scores(), range(ours.classes)
    present = [k for k in labels if k in truth or k in prediction]
    ious = sklearn.jaccard_score(truth, prediction, labels=present, average=None)
    assert [scores.iu[k] for k in present] == ious.tolist()
    assert scores.pixel_accuracy == sklearn.accuracy_score(truth, prediction)
    recall = sklearn.recall_score(truth, prediction, labels=labels, average=None, zero_division=math.nan)
    np.testing.assert_array_equal(scores.accuracy, recall)
    precision = sklearn.precision_score(truth, prediction, labels=labels, average=None, zero_division=math.nan)
    np.testing.assert_array_equal(scores.precision, precision)
    for ours_, average in ((scores.mean_iu, "macro"), (scores.frequency_weighted_iu, "weighted")):
        theirs = sklearn.jaccard_score(truth, prediction, labels=present, average=average)
        assert ours_ == pytest.approx(theirs, rel=0, abs=1e-15), average
    assert scores.mean_accuracy == pytest.approx(np.nanmean(recall), rel=0, abs=1e-15)


def test_scores_are_torchmetrics_to_the_precision_of_float32(images, ours):
    classes, pairs = images
    scores = ours.scores()
    expected = {
        MulticlassJaccardIndex(classes, average="none", ignore_index=VOID): np.nan_to_num(scores.iu),
        MulticlassJaccardIndex(classes, ignore_index=VOID): scores.mean_iu,
        MulticlassJaccardIndex(classes, average="weighted", ignore_index=VOID): scores.frequency_weighted_iu,
        MulticlassAccuracy(classes, average="micro", ignore_index=VOID): scores.pixel_accuracy,
    }
    for metric, value in expected.items():
        for prediction, truth in pairs:
            metric.update(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
        np.testing.assert_allclose(metric.compute(), value, rtol=1e-5, err_msg=str(metric))


def test_smps_macro_iou_is_the_mean_iu_if_what_is_nowhere_counts_1(ours, stats):
    expected = np.nan_to_num(ours.scores().iu, nan=1).mean()
    assert smp.metrics.iou_score(*stats, reduction="macro").item() == pytest.approx(expected, rel=1e-6)


def test_torchmetrics_mean_iou_is_a_mean_over_images(images, counts):
    classes, pairs = images
    metric = MeanIoU(classes, input_format="index")
    own = []
    for prediction, truth in pairs:
        labelled = [torch.from_numpy(label[truth != VOID]).long()[None] for label in (prediction, truth)]
        metric.update(*labelled)
        own.append(MeanIoU(classes, input_format="index")(*labelled).nanmean().item())
    np.testing.assert_allclose(resampling.mean_iu(counts), own, rtol=1e-5)
    hits, truth, predicted = counts.transpose(1, 0, 2)
    union = truth + predicted - hits
    expected = (hits[union > 0] / union[union > 0]).mean()
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(RuntimeError, match="must be smaller than num_classes"):
        metric.update(*(torch.from_numpy(label).long()[None] for label in pairs[0]))


def test_pooled_counts_of_images_are_those_of_the_set(ours, counts):
    matrix = ours.counts
    assert counts.sum(0).tolist() == torch.stack([matrix.diag(), matrix.sum(1), matrix.sum(0)]).tolist()
    lower, upper = resampling.interval(counts, draws=200)
    assert lower < ours.scores().mean_iu < upper


def test_the_example_of_the_page_is_what_the_libraries_give(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["metrics_of_others.py"])
    runpy.run_path(str(ROOT / "benchmarks/metrics_of_others.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs/explained/metrics.md").read_text().splitlines()
    rows = [line for line in printed if line.startswith("| ")]
    assert len(rows) > 20
    assert [row for row in rows if row not in page] == []
