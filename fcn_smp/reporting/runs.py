"""What a report reads of a run directory; nothing of it needs the data set, the model or torch."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from fcn_smp.errors import UserError
from fcn_smp.recipe import Recipe, load_recipe
from fcn_smp.resampling import Counts


class ImageScore(NamedTuple):
    """A row of ``images.csv``, counted from 0 in the order of the data set; undefined scores are NaN."""

    row: int
    name: str
    mean_iu: float
    pixel_accuracy: float


class Sample(NamedTuple):
    """The pictures of one image: a JPEG, and two PNG files of mode P whose pixels are class numbers, 255 for void."""

    image: Path
    truth: Path
    prediction: Path


@dataclass(frozen=True)
class Run:
    """What a run directory says of one run; what it lacks is empty.

    Attributes:
        name: What the page calls it.
        recipe: What was run.
        split: The split of the scores, as the recipe writes it.
        starts: Where and with what it was started, first to last.
        rows: Those of ``metrics.csv``.
        scores: What ``scores.json`` holds.
        images: The scores of each image of the split.
        samples: Pictures by the row of their image.
        counts: Pixels of each image and class, int64 (N, 3, C), as ``fcn_smp.resampling`` has them.
    """

    name: str
    recipe: Recipe
    split: str
    starts: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, str]]
    scores: Mapping[str, Any]
    images: Sequence[ImageScore]
    samples: Mapping[int, Sample]
    counts: Counts | None


def read_run(directory: Path, split: str | None = None) -> Run:
    """Read a run directory.

    Args:
        directory: The run directory; it may lack all but its ``recipe.yaml``.
        split: The split whose scores are read; None: the recipe's ``data.val``, if there are any.

    Raises:
        UserError: It is no run, has no scores on the split that is named, or a file is damaged.
    """
    recipe = _read_recipe(directory)
    scored = directory / "eval" / Path(split or recipe.data.val).stem
    if split and not (scored / "scores.json").is_file():
        raise UserError(f"{directory} has no scores on {split}; fcn-smp eval {directory} --split {split} gives them.")
    scores = _read_json(scored / "scores.json")
    return Run(
        name=directory.resolve().name,
        recipe=recipe,
        split=str(scores.get("split") or split or recipe.data.val),
        starts=read_starts(directory),
        rows=_read_table(directory / "metrics.csv"),
        scores=scores,
        images=_read_images(scored / "images.csv"),
        samples=_find_samples(scored / "samples"),
        counts=_read_counts(scored / "counts.npz"),
    )


def read_stages(directory: Path, split: str | None = None) -> list[Run]:
    """Read the stages of a staged run that have begun, in their order; of another run nothing.

    Raises:
        UserError: As ``read_run``, or none has begun.
    """
    stages = _read_recipe(directory).stages
    begun = [directory / name for name in stages if (directory / name / "recipe.yaml").is_file()]
    if stages and not begun:
        raise UserError(f"No stage of {directory} has begun; its stages are {', '.join(stages)}.")
    return [replace(read_run(stage, split), name=stage.name) for stage in begun]


def read_starts(run: Path) -> list[dict[str, Any]]:
    """Return what ``environment.json`` holds of each start, first to last; nothing if it is missing or damaged."""
    try:
        starts = json.loads((run / "environment.json").read_text(encoding="utf-8"))["starts"]
        return [dict(start) for start in starts]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _read_recipe(directory: Path) -> Recipe:
    path = directory / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{directory} is no run directory: it has no recipe.yaml.")
    return load_recipe(path)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split()).rstrip('.')}.") from error


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _read_images(path: Path) -> list[ImageScore]:
    try:
        return [
            ImageScore(row, cells["image"], *(float(cells[key] or math.nan) for key in ImageScore._fields[2:]))
            for row, cells in enumerate(_read_table(path))
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged; fcn-smp eval writes it anew.") from error


def _read_counts(path: Path) -> Counts | None:
    if not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            counts: Counts = arrays["counts"]
    except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
        raise UserError(f"{path} is damaged; fcn-smp eval writes it anew.") from error
    return counts


def _find_samples(folder: Path) -> dict[int, Sample]:
    return dict(_samples(folder))


def _samples(folder: Path) -> Iterator[tuple[int, Sample]]:
    for image in sorted(folder.glob("*_image.jpg")):
        number = image.name.removesuffix("_image.jpg")
        sample = Sample(image, folder / f"{number}_truth.png", folder / f"{number}_prediction.png")
        if number.isdecimal() and all(path.is_file() for path in sample):
            yield int(number), sample
