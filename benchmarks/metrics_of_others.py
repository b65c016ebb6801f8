"""What other libraries make of the same predictions, and the way of counting by which ours becomes theirs.

    python benchmarks/metrics_of_others.py                                    # an example that can be done by hand
    python benchmarks/metrics_of_others.py runs/voc2007 --data voc2007-segmentation-trainval.tar

Prints the tables of docs/explained/metrics.md: with a run or model directory of VOC 2007 the scores of its predictions
of val. Each row is counted twice, by the library and from the pixels of each class of each image in the way that the
last column tells; the two must agree to 6 digits (float32), those of scikit-learn to the last.
"""

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import segmentation_models_pytorch as smp
import torch
from rich.console import Console
from rich.progress import track
from sklearn.metrics import confusion_matrix
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.functional.segmentation import mean_iou
from torchmetrics.segmentation import MeanIoU

from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.data.voc import VOCSegmentation
from fcn_smp.errors import UserError
from fcn_smp.metrics import ConfusionMatrix
from fcn_smp.segmenter import Segmenter

V = IGNORE_INDEX
EXAMPLE = [
    ([0, 0, 1, 1, 2, 1], [0, 0, 1, 1, 2, 2]),
    ([0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, V]),
    ([0, 2, 2, 0, 1, 2], [0, 2, 2, 2, 1, V]),
]
"""Prediction and truth of three images of 1x6 pixels; the second has no class 2."""


class Counts:
    """Hits, true, predicted pixels and their union of each class of each image, (N, C), and those of the whole set."""

    def __init__(self, hits, truth, predicted):
        self.hits, self.truth, self.predicted = hits, truth, predicted
        self.union = truth + predicted - hits
        with np.errstate(invalid="ignore"):
            self.iu = hits / self.union
            self.set_iu = hits.sum(0) / self.union.sum(0)

    @property
    def share(self):
        return self.truth.sum(0) / self.truth.sum()


class Row(NamedTuple):
    """A call of a library: what it gives, the same from our counts, and why that is not the mean IU of the paper."""

    call: str
    theirs: Callable[["Others"], float]
    ours: Callable[["Others"], float]
    why: str


def count(images, classes, void="ignore"):
    """Count pixels of images, by NumPy alone; void counts nowhere, is class 0, or is never right."""
    counts = np.zeros((3, len(images), classes), np.int64)
    for number, (prediction, truth) in enumerate(images):
        seen = truth != V if void == "ignore" else np.ones_like(truth, bool)
        if void == "background":
            truth = np.where(truth == V, 0, truth)
        for kind, label in enumerate((truth[truth == prediction], truth[truth != V], prediction[seen])):
            counts[kind, number] = np.bincount(label, minlength=classes)
    return Counts(*counts)


def ours(images, classes):
    """Return our scores."""
    matrix = ConfusionMatrix(classes, V)
    for prediction, truth in images:
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    return matrix.scores()


def by_sklearn(images, classes):
    """Return scikit-learn's confusion matrix of the labelled pixels, which takes no void."""
    return sum(
        confusion_matrix(truth[truth != V], prediction[truth != V], labels=range(classes))
        for prediction, truth in images
    )


def by_torchmetrics(images, classes):
    """Return what torchmetrics makes of the images, by a name of each call's own."""
    collection = MetricCollection(
        {
            **{
                average: MulticlassJaccardIndex(classes, average=average, ignore_index=V, validate_args=False)
                for average in ("macro", "micro", "weighted", "none")
            },
            "accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=V, validate_args=False),
            "accuracy macro": MulticlassAccuracy(classes, ignore_index=V, validate_args=False),
        },
        compute_groups=False,
    )
    background = MulticlassJaccardIndex(classes, validate_args=False)
    segmentation = {
        per_class: MeanIoU(classes, per_class=per_class, input_format="index") for per_class in (False, True)
    }
    own = []
    for prediction, truth in images:
        prediction, truth = (torch.from_numpy(label).long() for label in (prediction, truth))
        collection.update(prediction, truth)
        background.update(prediction, truth.where(truth != V, 0))
        labelled = prediction[truth != V][None], truth[truth != V][None]
        for metric in segmentation.values():
            metric.update(*labelled)
        own.append(mean_iou(*labelled, classes, input_format="index"))
    named = {"background": background, "pairs": segmentation[False], "images per class": segmentation[True]}
    scores = {name: metric.compute() for name, metric in named.items()}
    return collection.compute() | scores | {"images": torch.cat(own).mean()}


def by_smp(images, classes, ignore_index):
    """Return SMP's true positives, false positives, false negatives and true negatives, each (N, C)."""
    stats = [
        smp.metrics.get_stats(
            *(torch.from_numpy(label).long()[None] for label in image),
            mode="multiclass",
            ignore_index=ignore_index,
            num_classes=classes,
        )
        for image in images
    ]
    return [torch.cat(kind) for kind in zip(*stats, strict=True)]


class Others:
    """The same images as all libraries count them."""

    def __init__(self, images, classes):
        self.counts, self.void_background, self.void_wrong = (
            count(images, classes, void) for void in ("ignore", "background", "wrong")
        )
        self.scores = ours(images, classes)
        self.sklearn = by_sklearn(images, classes)
        self.torchmetrics = by_torchmetrics(images, classes)
        self.smp, self.smp_void = (by_smp(images, classes, ignore_index) for ignore_index in (V, None))

    def iou_score(self, reduction):
        weights = {"class_weights": self.counts.share.tolist()} if "weighted" in reduction else {}
        return smp.metrics.iou_score(*self.smp, reduction=reduction, **weights).item()


def sklearn_iu(matrix):
    hits = matrix.diagonal()
    with np.errstate(invalid="ignore"):
        return hits / (matrix.sum(0) + matrix.sum(1) - hits)


MEAN_IU = [
    Row(
        "fcn_smp",
        lambda o: o.scores.mean_iu,
        lambda o: np.nanmean(o.counts.set_iu),
        "the paper's: the IU of each class over the whole set, and their mean; void counts nowhere",
    ),
    Row(
        "scikit-learn `confusion_matrix` of labelled pixels",
        lambda o: np.nanmean(sklearn_iu(o.sklearn)),
        lambda o: np.nanmean(o.counts.set_iu),
        "the same",
    ),
    Row(
        "torchmetrics `MulticlassJaccardIndex(ignore_index=255)`",
        lambda o: o.torchmetrics["macro"].item(),
        lambda o: np.nanmean(o.counts.set_iu),
        "the same, in float32",
    ),
    Row(
        '`MulticlassJaccardIndex(average="weighted", ignore_index=255)`',
        lambda o: o.torchmetrics["weighted"].item(),
        lambda o: np.nansum(o.counts.share * o.counts.set_iu),
        "the paper's frequency-weighted IU: each class weighs as many pixels as it has",
    ),
    Row(
        '`MulticlassJaccardIndex(average="micro", ignore_index=255)`',
        lambda o: o.torchmetrics["micro"].item(),
        lambda o: o.counts.hits.sum() / o.counts.union.sum(),
        "classes are pooled: all intersections over all unions, so that large classes decide",
    ),
    Row(
        "`MulticlassJaccardIndex`, void made background first",
        lambda o: o.torchmetrics["background"].item(),
        lambda o: np.nanmean(o.void_background.set_iu),
        "void is background: objects that reach into their void border are wrong there",
    ),
    Row(
        "torchmetrics `segmentation.MeanIoU`, void cut out first",
        lambda o: o.torchmetrics["pairs"].item(),
        lambda o: np.nanmean(o.counts.iu),
        "mean over all pairs of an image and a class in its truth or prediction, small or large",
    ),
    Row(
        "`segmentation.MeanIoU(per_class=True)`, its mean",
        lambda o: o.torchmetrics["images per class"][o.counts.union.sum(0) > 0].mean().item(),
        lambda o: np.nanmean(np.nanmean(o.counts.iu[:, o.counts.union.sum(0) > 0], 0)),
        "each class is a mean over the images in whose truth or prediction it is; a few false pixels make a 0",
    ),
    Row(
        "`functional.segmentation.mean_iou`, its mean",
        lambda o: o.torchmetrics["images"].item(),
        lambda o: np.mean(np.nanmean(o.counts.iu, 1)),
        "each image has a mean over its own classes, and images weigh alike",
    ),
    Row(
        'SMP `iou_score(reduction="macro")`',
        lambda o: o.iou_score("macro"),
        lambda o: np.nan_to_num(o.counts.set_iu, nan=1).mean(),
        "the same as long as each class is somewhere; one that is nowhere counts as 1",
    ),
    Row(
        '`iou_score(reduction="weighted")`, weights: shares of pixels',
        lambda o: o.iou_score("weighted"),
        lambda o: np.nansum(o.counts.share * o.counts.set_iu),
        "the paper's frequency-weighted IU",
    ),
    Row(
        '`iou_score(reduction="micro")`',
        lambda o: o.iou_score("micro"),
        lambda o: o.counts.hits.sum() / o.counts.union.sum(),
        "classes are pooled",
    ),
    Row(
        '`iou_score(reduction="micro-imagewise")`',
        lambda o: o.iou_score("micro-imagewise"),
        lambda o: np.mean(o.counts.hits.sum(1) / o.counts.union.sum(1)),
        "classes of each image are pooled, and images averaged",
    ),
    Row(
        '`iou_score(reduction="macro-imagewise")`',
        lambda o: o.iou_score("macro-imagewise"),
        lambda o: np.nan_to_num(o.counts.iu, nan=1).mean(),
        "all pairs of an image and a class; classes that are not in the image count as 1",
    ),
    Row(
        '`iou_score(reduction="weighted-imagewise")`, as above',
        lambda o: o.iou_score("weighted-imagewise"),
        lambda o: (o.counts.share * np.nan_to_num(o.counts.iu, nan=1).mean(0)).mean(),
        "a weighted mean of those that is divided by the number of classes once more",
    ),
    Row(
        '`iou_score(reduction="macro")`, `get_stats` without `ignore_index`',
        lambda o: smp.metrics.iou_score(*o.smp_void, reduction="macro").item(),
        lambda o: np.nan_to_num(o.void_wrong.set_iu, nan=1).mean(),
        "no error: whatever is predicted in void is a false positive",
    ),
]

ACCURACY = [
    Row(
        "fcn_smp",
        lambda o: o.scores.pixel_accuracy,
        lambda o: o.counts.hits.sum() / o.counts.truth.sum(),
        "share of labelled pixels that are right",
    ),
    Row(
        "scikit-learn, from its confusion matrix",
        lambda o: o.sklearn.trace() / o.sklearn.sum(),
        lambda o: o.counts.hits.sum() / o.counts.truth.sum(),
        "the same",
    ),
    Row(
        'torchmetrics `MulticlassAccuracy(average="micro", ignore_index=255)`',
        lambda o: o.torchmetrics["accuracy"].item(),
        lambda o: o.counts.hits.sum() / o.counts.truth.sum(),
        "the same",
    ),
    Row(
        "`MulticlassAccuracy(ignore_index=255)`",
        lambda o: o.torchmetrics["accuracy macro"].item(),
        lambda o: accuracy_of_classes(o.counts),
        "its default is the mean over classes: the paper's mean accuracy (and 0 for one that is only predicted)",
    ),
    Row(
        'SMP `recall(reduction="micro")`',
        lambda o: smp.metrics.recall(*o.smp, reduction="micro").item(),
        lambda o: o.counts.hits.sum() / o.counts.truth.sum(),
        "the same",
    ),
    Row(
        'SMP `accuracy(reduction="micro")`',
        lambda o: smp.metrics.accuracy(*o.smp, reduction="micro").item(),
        lambda o: 1 - 2 * (1 - o.scores.pixel_accuracy) / o.counts.truth.shape[1],
        "each pixel is asked about each class, and is right about all of them but two where it is wrong",
    ),
]


def accuracy_of_classes(counts):
    hits, truth = counts.hits.sum(0), counts.truth.sum(0)
    return np.mean((hits / truth.clip(min=1))[counts.union.sum(0) > 0])


def table(rows, others, titles):
    """Print the rows for each of ``others``, after checking that both ways of counting agree."""
    print(f"| | {' | '.join(titles)} | how it counts |")
    print(f"|---|{'---:|' * len(titles)}---|")
    for row in rows:
        values = []
        for other in others:
            theirs, ours = float(row.theirs(other)), float(row.ours(other))
            if abs(theirs - ours) > (1e-15 if row.call.startswith(("fcn_smp", "scikit-learn")) else 1e-6):
                sys.exit(f"{row.call} gives {theirs}; counted as it is said to count, it were {ours}.")
            values.append(f"{100 * theirs:.2f}")
        print(f"| {row.call} | {' | '.join(values)} | {row.why} |")
    print()


def table_of_classes(other, names):
    """Print the IU of each class over the set, over its images, and over all images."""
    print("| | over the set | `MeanIoU(per_class=True)` | `iou_score`, mean over images | images with it |")
    print("|---|---:|---:|---:|---:|")
    scores = smp.metrics.iou_score(*other.smp, reduction="none").mean(0)
    present = (other.counts.union > 0).sum(0)
    assert other.scores.iu == sklearn_iu(other.sklearn).tolist()
    np.testing.assert_allclose(other.torchmetrics["none"], other.scores.iu, atol=1e-6)
    for k, name in enumerate(names):
        values = (other.scores.iu[k], other.torchmetrics["images per class"][k].item(), scores[k].item())
        print(f"| {name} | {' | '.join(f'{100 * value:.2f}' for value in values)} | {present[k]} |")


def predictions(model, root):
    """Predict VOC 2007 val, and return it with its labels."""
    segmenter, dataset = Segmenter.load(model), VOCSegmentation(root, "val", 2007)
    numbers = track(range(len(dataset)), "predicting", console=Console(stderr=True))
    samples = (dataset[number] for number in numbers)
    return [(segmenter.predict(sample.image), sample.label) for sample in samples]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, help="run or model directory")
    parser.add_argument("--data", type=Path, help="VOC 2007, a folder or tar")
    return parser.parse_args()


def main():
    args = parse_args()
    names = ("scikit-learn", "torchmetrics", "segmentation-models-pytorch", "torch")
    print(", ".join(f"{name} {version(name)}" for name in names))
    if args.model:
        other = Others(predictions(args.model, args.data), len(VOCSegmentation.classes))
        table(MEAN_IU, [other], ["mean IU"])
        table(ACCURACY, [other], ["pixel accuracy"])
        table_of_classes(other, VOCSegmentation.classes)
        return
    example = [tuple(np.array(label, np.uint8) for label in image) for image in EXAMPLE]
    others = [Others(example, classes) for classes in (3, 4)]
    table(MEAN_IU, others, ["mean IU", "a fourth class that is nowhere"])
    table(ACCURACY, others, ["pixel accuracy", "a fourth class that is nowhere"])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
