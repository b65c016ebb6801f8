"""Scores of a trained model on a data set, at native size."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.errors import UserError
from fcn_smp.files import write_csv, write_text
from fcn_smp.metrics import ConfusionMatrix, Scores, Thresholds, f_score
from fcn_smp.protocols import ProtocolScore
from fcn_smp.segmenter import Segmenter


def evaluate(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    advance: Callable[[], None] = lambda: None,
    share: Iterable[int] | None = None,
    protocols: Collection[ProtocolScore] = (),
) -> ConfusionMatrix:
    """Predict every image of ``dataset`` at its native size and count.

    Args:
        segmenter: The model.
        dataset: Labelled images of the same classes.
        advance: Called after each image.
        share: Which images, for one of several processes; None: all.
        protocols: What counts the same predictions in other ways.

    Raises:
        UserError: The classes differ, or a file is missing or damaged.
    """
    if tuple(dataset.classes) != segmenter.classes:
        raise UserError(
            f"The model knows the classes {', '.join(segmenter.classes)};"
            f" the data set has {', '.join(dataset.classes)}; they should be the same."
        )
    confusion = ConfusionMatrix(len(dataset.classes), IGNORE_INDEX)
    for index in range(len(dataset)) if share is None else share:
        sample = dataset[index]
        prediction = segmenter.predict(sample.image)
        confusion.update(torch.from_numpy(prediction), torch.from_numpy(sample.label))
        for score in protocols:
            score.update(prediction, sample.label)
        advance()
    return confusion


def thresholds(segmenter: Segmenter, dataset: SegmentationDataset, share: Iterable[int] | None = None) -> Thresholds:
    """Count the probabilities that a network with a single logit gives, by which a threshold is chosen.

    Args:
        segmenter: The model.
        dataset: Labelled images of the same two classes.
        share: Which images, for one of several processes; None: all.

    Raises:
        UserError: A file is missing or damaged.
    """
    counts = Thresholds(IGNORE_INDEX)
    for index in range(len(dataset)) if share is None else share:
        sample = dataset[index]
        counts.update(segmenter.logits(sample.image)[0, 0].sigmoid().cpu(), torch.from_numpy(sample.label))
    return counts


def summary(
    scores: Scores, classes: Sequence[str], protocols: Mapping[str, ProtocolScore] | None = None, /, **about: Any
) -> dict[str, Any]:
    """Return the scores as JSON can hold them, ``about`` first; what is undefined is None.

    Of two classes the second has its ``binary`` scores too: IU, precision, recall, F1, F0.5 and F2. ``protocols`` come
    last, if there are any.
    """
    names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
    per_class = [
        {"class": name, "iu": _number(iu), "accuracy": _number(accuracy), "pixels": pixels}
        for name, iu, accuracy, pixels in zip(classes, scores.iu, scores.accuracy, scores.pixels, strict=True)
    ]
    means = {name: _number(getattr(scores, name)) for name in names}
    binary = {"binary": _binary(scores, classes[1])} if len(classes) == 2 else {}
    others = {"protocols": {name: _protocol(score, classes) for name, score in protocols.items()}} if protocols else {}
    return {**about, **means, **binary, "per_class": per_class, **others}


def _protocol(score: ProtocolScore, classes: Sequence[str]) -> dict[str, Any]:
    result = score.scores()
    return {
        "mean_iu": _number(result.mean_iu),
        "pixel_accuracy": _number(result.pixel_accuracy),
        "about": score.protocol.about,
        "per_class_iu": {name: _number(iu) for name, iu in zip([*classes, "void"], result.iu, strict=False)},
    }


def _binary(scores: Scores, name: str) -> dict[str, Any]:
    precision, recall = scores.precision[1], scores.accuracy[1]
    numbers = {"iu": scores.iu[1], "precision": precision, "recall": recall}
    numbers |= {f"f{beta:g}": f_score(precision, recall, beta) for beta in (1, 0.5, 2)}
    return {"class": name, **{key: _number(value) for key, value in numbers.items()}}


def write(summary: dict[str, Any], directory: Path) -> None:
    """Write ``scores.json`` and ``per_class.csv``; scores of an earlier call are replaced."""
    write_text(directory / "scores.json", json.dumps(summary, indent=2) + "\n")
    write_csv(directory / "per_class.csv", summary["per_class"][0], summary["per_class"])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
