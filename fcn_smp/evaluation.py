"""Scores of a trained model on a data set, at native size."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.errors import UserError
from fcn_smp.files import write_csv, write_text
from fcn_smp.metrics import ConfusionMatrix, Scores
from fcn_smp.segmenter import Segmenter


def evaluate(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    advance: Callable[[], None] = lambda: None,
    share: Iterable[int] | None = None,
) -> ConfusionMatrix:
    """Predict every image of ``dataset`` at its native size and count.

    Args:
        segmenter: The model.
        dataset: Labelled images of the same classes.
        advance: Called after each image.
        share: Which images, for one of several processes; None: all.

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
        advance()
    return confusion


def summary(scores: Scores, classes: Sequence[str], **about: Any) -> dict[str, Any]:
    """Return the scores as JSON can hold them, ``about`` first; what is undefined is None."""
    names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
    per_class = [
        {"class": name, "iu": _number(iu), "accuracy": _number(accuracy), "pixels": pixels}
        for name, iu, accuracy, pixels in zip(classes, scores.iu, scores.accuracy, scores.pixels, strict=True)
    ]
    return {**about, **{name: _number(getattr(scores, name)) for name in names}, "per_class": per_class}


def write(summary: dict[str, Any], directory: Path) -> None:
    """Write ``scores.json`` and ``per_class.csv``; scores of an earlier call are replaced."""
    write_text(directory / "scores.json", json.dumps(summary, indent=2) + "\n")
    write_csv(directory / "per_class.csv", summary["per_class"][0], summary["per_class"])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
