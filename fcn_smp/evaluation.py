"""Scores of a trained model on a data set, at native size."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcn_smp.boundary import Boundary, BoundaryScores
from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.labels import IGNORE_INDEX, Array
from fcn_smp.errors import UserError
from fcn_smp.inference import Inference
from fcn_smp.metrics import ConfusionMatrix, Scores, Thresholds, f_score
from fcn_smp.overlap import Bulky, read_ahead, threads, work_behind
from fcn_smp.protocols import ProtocolScore, protocol_scores
from fcn_smp.public import METRICS
from fcn_smp.recipe import load_recipe
from fcn_smp.resampling import Comparison, compare, interval, mean_iu
from fcn_smp.segmenter import Segmenter

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
R = TypeVar("R")
B = TypeVar("B", bound=Bulky)


class Counts(torch.nn.Module):
    """What is counted of the predictions of a data set; processes that share it add up their buffers.

    Args:
        images: Number of images N.
        classes: Number of classes C.

    Attributes:
        confusion: Over all images.
        images: int64 (N, 3, C): of each class of each image the pixels that are right, that are it, and that are
            predicted as it.
        boundary: How good the boundaries are.
        windowed: How many images were run in windows.
    """

    images: Tensor
    windowed: Tensor

    def __init__(self, images: int, classes: int) -> None:
        super().__init__()
        self.confusion = ConfusionMatrix(classes, IGNORE_INDEX)
        self.boundary = Boundary(classes, IGNORE_INDEX)
        self.register_buffer("images", torch.zeros(images, 3, classes, dtype=torch.int64))
        self.register_buffer("windowed", torch.zeros((), dtype=torch.int64))

    def update(self, index: int, prediction: Array, truth: Array) -> None:
        """Add the image ``index``: predicted classes, and true classes or 255, both uint8 (H, W).

        Raises:
            ValueError: The sizes differ, or a number is no class.
        """
        image = ConfusionMatrix(self.confusion.classes, IGNORE_INDEX)
        image.update(torch.from_numpy(prediction), torch.from_numpy(truth))
        self.confusion.counts += image.counts
        self.images[index] = torch.stack([image.counts.diag(), image.counts.sum(1), image.counts.sum(0)])
        self.boundary.update(prediction, truth)

    def add(self, index: int, image: "Counts") -> None:
        """Add the image ``index``, the only one of other counts."""
        self.images[index] = image.images[0]
        for ours, theirs in ((self.confusion, image.confusion), (self.boundary, image.boundary)):
            for total, part in zip(ours.buffers(), theirs.buffers(), strict=True):
                total += part


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on a data set, in [0, 1]; NaN where nothing defines them.

    Attributes:
        classes: Name of each class.
        palette: Colour of each label, uint8 (256, 3).
        ids: Id of each image.
        scores: The metrics of the paper, and those of each class.
        confusion: int64 (C, C); rows are the truth, columns the prediction.
        counts: int64 (N, 3, C), as of ``Counts``.
        boundary: How good the boundaries are.
        protocols: The scores of other projects' ways of counting, by name.
        about: What else was asked for or happened, as JSON can hold it.
    """

    classes: Sequence[str]
    palette: Array
    ids: Sequence[str]
    scores: Scores
    confusion: Integers
    counts: Integers
    boundary: BoundaryScores
    protocols: Mapping[str, ProtocolScore]
    about: Mapping[str, Any]

    @property
    def mean_iu(self) -> float:
        """Mean IU over the classes."""
        return self.scores.mean_iu

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean IU, by the bootstrap over images."""
        return interval(self.counts)

    @cached_property
    def image_iu(self) -> Floats:
        """Mean IU of each image over the classes in it, float (N,)."""
        return mean_iu(self.counts)

    @cached_property
    def image_accuracy(self) -> Floats:
        """Pixel accuracy of each image, float (N,)."""
        hits, truth, _ = self.counts.sum(2).T
        with np.errstate(invalid="ignore"):
            accuracy: Floats = hits / truth
        return accuracy

    @property
    def ranking(self) -> list[int]:
        """The images that have a mean IU, by number from the worst to the best."""
        return [index for index in np.argsort(self.image_iu).tolist() if not math.isnan(self.image_iu[index])]

    @classmethod
    def of(
        cls,
        counts: Counts,
        segmenter: Segmenter,
        dataset: SegmentationDataset,
        inference: Inference,
        protocols: Mapping[str, ProtocolScore] = MappingProxyType({}),
    ) -> "Evaluation":
        """Return the scores of what was counted of a whole data set.

        Args:
            counts: What was counted, of all processes.
            segmenter: The model.
            dataset: The data set.
            inference: How the images were run through the network.
            protocols: What counted the same predictions in other ways, by name.
        """
        asked = {"flip": inference.flip, "scales": list(inference.scales), "windowed": int(counts.windowed)}
        plain = asked == {"flip": False, "scales": [1.0], "windowed": 0}
        return cls(
            classes=segmenter.classes,
            palette=segmenter.palette,
            ids=[id_ for id_, *_ in dataset.files],
            scores=counts.confusion.scores(),
            confusion=counts.confusion.counts.cpu().numpy(),
            counts=counts.images.cpu().numpy(),
            boundary=counts.boundary.scores(),
            protocols=protocols,
            about={**segmenter.chosen, **({} if plain else {"inference": asked})},
        )

    def compare(self, other: "Evaluation") -> Comparison:
        """Compare with another model's evaluation on the same images, by paired tests.

        Returns:
            The difference, its interval and the p-value; where this model is better than the other, it is positive.

        Raises:
            UserError: The images, or their labels, are others.
        """
        if list(self.ids) != list(other.ids) or not np.array_equal(self.counts[:, 1], other.counts[:, 1]):
            raise UserError("The two evaluations are not of the same images with the same labels.")
        return compare(other.counts, self.counts)

    def against(self, other: "Evaluation", model: str) -> dict[str, Any]:
        """Return what ``compare`` gives as JSON can hold it; ``model`` is what the other one is called.

        Raises:
            UserError: The images, or their labels, are others.
        """
        comparison = self.compare(other)
        differences = zip(self.classes, other.scores.iu, comparison.per_class, strict=True)
        return {
            "model": model,
            "mean_iu": _number(other.mean_iu),
            "difference": _number(comparison.difference),
            "interval": [_number(end) for end in comparison.interval],
            "p_value": _number(comparison.p_value),
            "per_class": [
                {"class": name, "iu": _number(iu), "difference": _number(difference)}
                for name, iu, difference in differences
            ],
        }

    def summary(self, **about: Any) -> dict[str, Any]:
        """Return all scores as JSON can hold them, ``about`` first; what is undefined is None.

        Of two classes the second has its ``binary`` scores too: IU, precision, recall, F1, F0.5 and F2.
        """
        scores, boundary = self.scores, self.boundary
        means = {key: _number(getattr(scores, key)) for key in METRICS}
        of_classes = zip(
            self.classes,
            scores.iu,
            scores.accuracy,
            scores.precision,
            scores.pixels,
            boundary.f1_per_class,
            strict=True,
        )
        per_class = [
            {
                "class": name,
                "color": "#{:02x}{:02x}{:02x}".format(*self.palette[number]),
                "iu": _number(iu),
                "accuracy": _number(accuracy),
                "precision": _number(precision),
                "boundary_f1": _number(boundary_f1),
                "pixels": pixels,
            }
            for number, (name, iu, accuracy, precision, pixels, boundary_f1) in enumerate(of_classes)
        ]
        return {
            **about,
            "images": len(self.ids),
            **self.about,
            **means,
            "mean_iu_interval": [_number(end) for end in self.interval],
            **({"binary": _binary(scores, self.classes[1])} if len(self.classes) == 2 else {}),
            "boundary": {
                "trimap_iu": {str(width): _number(iu) for width, iu in boundary.trimap_iu.items()},
                "f1": _number(boundary.f1),
                "tolerance": "0.75 % of the diagonal",
            },
            "per_class": per_class,
            "confusion": self.confusion.tolist(),
            **({"protocols": _protocols(self.protocols, self.classes)} if self.protocols else {}),
        }


def evaluate(
    model: Segmenter | str | Path,
    dataset: SegmentationDataset | None = None,
    *,
    split: str | None = None,
    inference: Inference = Inference(),  # noqa: B008  (frozen)
    protocols: Iterable[str] = (),
    device: str = "auto",
    advance: Callable[[], None] | None = None,
) -> Evaluation:
    """Predict every image of a data set at its native size, and score it.

    Args:
        model: A model, or the run, the model directory or the name on the Hub to load it from.
        dataset: Labelled images of the same classes. None: those that the run's recipe names.
        split: Where there is no ``dataset``: its split, as the recipe could name it. None: what it was validated on.
        inference: How images are run through the network.
        protocols: Names of other projects' ways of counting, or ``all``.
        device: Where a model that is loaded runs: ``auto``, ``cpu``, ``cuda`` ...
        advance: Called after each image.

    Returns:
        The scores, over the whole set and of each image.

    Raises:
        UserError: The classes differ, a file is missing or damaged, or there is no such model, protocol or device.

    Examples:
        ```python
        evaluation = fcn_smp.evaluate("runs/voc2007")
        print(evaluation.mean_iu, evaluation.interval, evaluation.scores.iu)
        ```
    """
    if dataset is None:
        dataset = own_dataset(model, split)
    chosen = protocol_scores(protocols, len(dataset.classes))
    segmenter = model if isinstance(model, Segmenter) else Segmenter.load(model, device)
    counts = count(segmenter, dataset, inference=inference, protocols=chosen.values(), advance=advance)
    return Evaluation.of(counts, segmenter, dataset, inference, chosen)


def own_dataset(run: Segmenter | str | Path, split: str | None = None) -> SegmentationDataset:
    """Return a split of the data set of a run, by default what it was validated on.

    Raises:
        UserError: It is no run directory.
    """
    if isinstance(run, Segmenter) or not (Path(run) / "recipe.yaml").is_file():
        raise UserError("Only a run directory, which has a recipe.yaml, brings a data set of its own; name one.")
    data = load_recipe(Path(run) / "recipe.yaml").data
    return data.load(split or data.val)


def count(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    share: Iterable[int] | None = None,
    inference: Inference = Inference(),  # noqa: B008  (frozen)
    protocols: Iterable[ProtocolScore] = (),
    advance: Callable[[], None] | None = None,
) -> Counts:
    """Predict images of a data set and count.

    Args:
        segmenter: The model.
        dataset: Labelled images of the same classes.
        share: Which images, for one of several processes; None: all.
        inference: How images are run through the network.
        protocols: What counts the same predictions in other ways.
        advance: Called after each image.

    Raises:
        UserError: The classes differ, or a file is missing or damaged.
    """
    if tuple(dataset.classes) != segmenter.classes:
        raise UserError(
            f"The model knows the classes {', '.join(segmenter.classes)};"
            f" the data set has {', '.join(dataset.classes)}; they should be the same."
        )
    ids = [id_ for id_, *_ in dataset.files]
    if twice := [id_ for id_, times in Counter(ids).items() if times > 1]:
        warnings.warn(f"The data set names {twice[0]} more than once, and so it counts.", stacklevel=2)
    counts = Counts(len(dataset), len(dataset.classes))
    others = list(protocols)

    def predict(image: Array) -> Array:
        height, width = image.shape[:2]
        counts.windowed += segmenter.window_side(height, width, inference) is not None
        return segmenter.predict(image, inference)

    def measure(prediction: Array, truth: Array) -> tuple[Counts, list[Tensor]]:
        own = Counts(1, len(dataset.classes))
        own.update(0, prediction, truth)
        return own, [score.count(prediction, truth) for score in others]

    with threads() as pool:
        for index, (own, of_others) in _measured(pool, dataset, share, predict, measure):
            counts.add(index, own)
            for score, found in zip(others, of_others, strict=True):
                score.add(found)
            if advance:
                advance()
    return counts


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

    def probability(image: Array) -> Tensor:
        return segmenter.logits(image)[0, 0].sigmoid().cpu()

    def measure(probability: Tensor, truth: Array) -> Tensor:
        own = Thresholds(IGNORE_INDEX)
        own.update(probability, torch.from_numpy(truth))
        return own.counts

    with threads() as pool:
        for _, own in _measured(pool, dataset, share, probability, measure):
            counts.counts += own
    return counts


def _measured(
    pool: ThreadPoolExecutor,
    dataset: SegmentationDataset,
    share: Iterable[int] | None,
    run: Callable[[Array], B],
    measure: Callable[[B, Array], R],
) -> Iterator[tuple[int, R]]:
    """Yield the number of each image and what is measured of it, in order; the network alone is not run in threads."""
    samples = read_ahead(pool, range(len(dataset)) if share is None else share, dataset.__getitem__)

    def found() -> Iterator[tuple[tuple[int, B, Array], int]]:
        for index, sample in samples:
            result = run(sample.image)
            yield (index, result, sample.label), result.nbytes + sample.label.nbytes

    for (index, *_), measured in work_behind(pool, found(), lambda item: measure(*item[1:])):
        yield index, measured.result()


def _protocols(protocols: Mapping[str, ProtocolScore], classes: Sequence[str]) -> dict[str, Any]:
    rows = {}
    for name, score in protocols.items():
        result = score.scores()
        rows[name] = {
            "mean_iu": _number(result.mean_iu),
            "pixel_accuracy": _number(result.pixel_accuracy),
            "about": score.protocol.about,
            "per_class_iu": {name: _number(iu) for name, iu in zip([*classes, "void"], result.iu, strict=False)},
        }
    return rows


def _binary(scores: Scores, name: str) -> dict[str, Any]:
    precision, recall = scores.precision[1], scores.accuracy[1]
    numbers = {"iu": scores.iu[1], "precision": precision, "recall": recall}
    numbers |= {f"f{beta:g}": f_score(precision, recall, beta) for beta in (1, 0.5, 2)}
    return {"class": name, **{key: _number(value) for key, value in numbers.items()}}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6) + 0.0  # which makes of -0 a 0
