"""What an evaluation leaves in a folder: numbers for programs and tables, pictures for people."""

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.labels import Array
from fcn_smp.drawing import Row, comparison, palette_image, save_image
from fcn_smp.evaluation import Evaluation
from fcn_smp.files import whole, write_csv, write_text
from fcn_smp.heatmap import draw_confusion
from fcn_smp.inference import Inference
from fcn_smp.public import METRICS, escape
from fcn_smp.segmenter import Segmenter

SAMPLES = 4
"""How many images are drawn of the worst, of the best, and of all, evenly spread."""
FEW = 10
"""Of fewer images than these the bootstrap has too little to draw from; of a single one, its interval has no width."""
LONGEST = 640
"""Longer side of the samples' pictures in pixels, at most."""


def write_scores(evaluation: Evaluation, summary: Mapping[str, Any], directory: Path) -> None:
    """Write an evaluation's numbers and its confusion matrix; those of an earlier one are replaced.

    Args:
        evaluation: The evaluation.
        summary: What ``Evaluation.summary`` gave of it.
        directory: Where ``scores.json``, ``scores.md``, ``per_class.csv``, ``images.csv``, ``counts.npz``,
            ``confusion.csv`` and ``confusion.png`` are written.
    """
    write_text(directory / "scores.json", to_json(summary))
    write_text(directory / "scores.md", markdown(summary))
    write_csv(directory / "per_class.csv", summary["per_class"][0], summary["per_class"])
    columns = [evaluation.ids, evaluation.image_iu, evaluation.image_accuracy]
    images = [
        {"image": id_, "mean_iu": _cell(iu), "pixel_accuracy": _cell(accuracy)}
        for id_, iu, accuracy in zip(*columns, strict=True)
    ]
    write_csv(directory / "images.csv", images[0], images)
    confusion = [
        {"truth": name, **dict(zip(evaluation.classes, row, strict=True))}
        for name, row in zip(evaluation.classes, evaluation.confusion.tolist(), strict=True)
    ]
    write_csv(directory / "confusion.csv", confusion[0], confusion)
    with whole(directory / "counts.npz") as temporary:
        np.savez_compressed(temporary, counts=evaluation.counts)
    draw_confusion(evaluation.confusion, evaluation.classes, directory / "confusion.png")


def write_samples(
    evaluation: Evaluation,
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    directory: Path,
    inference: Inference,
) -> None:
    """Draw the worst and the best images, and keep them and some others in ``samples/`` for reports.

    Args:
        evaluation: Of the same model and data set; it says which images are drawn.
        segmenter: The model, which predicts them once more.
        dataset: Has the images.
        directory: Where ``worst.png``, ``best.png`` and ``samples/`` are written; those of an earlier one are replaced.
        inference: How images are run through the network.
    """
    ranking = evaluation.ranking
    worst, best = ranking[:SAMPLES], ranking[-SAMPLES:][::-1]
    spread = np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).round().astype(int).tolist()
    rows = {}
    for index in sorted({*worst, *best, *spread}):
        sample = dataset[index]
        rows[index] = _shrunk(sample.image, sample.label, segmenter.predict(sample.image, inference))
    shutil.rmtree(directory / "samples", ignore_errors=True)
    with whole(directory / "samples") as folder:
        folder.mkdir()
        for index, (image, truth, prediction) in rows.items():
            Image.fromarray(image).save(folder / f"{index:05d}_image.jpg", quality=88)
            for name, label in (("truth", truth), ("prediction", prediction)):
                palette_image(label, evaluation.palette).save(folder / f"{index:05d}_{name}.png", optimize=True)
    for name, chosen in (("worst", worst), ("best", best)):
        if chosen:
            drawn = [Row(*rows[index], _caption(evaluation, index)) for index in chosen]
            save_image(comparison(drawn, evaluation.palette, evaluation.classes), directory / f"{name}.png")


def to_json(summary: Mapping[str, Any]) -> str:
    """Return a summary as JSON, each list of numbers on a line of its own."""
    text = json.dumps(summary, indent=2)
    return re.sub(r"\[\s+([\d.,\s-]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the scores of a summary as tables in Markdown."""
    of_classes = ("iu", "accuracy", "precision", "boundary_f1")
    rows = [
        f"| {escape(row['class'])} | {' | '.join(percent(row[key]) for key in of_classes)} | {row['pixels']:,} |"
        for row in summary["per_class"]
    ]
    lines = [
        "| metric | % |",
        "|---|---:|",
        *(f"| {escape(name)} | {value} |" for name, value in means(summary)),
        "",
        "| class | IU % | accuracy % | precision % | boundary F1 % | pixels |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
    ]
    if said := caution(summary):
        lines += ["", said]
    if protocols := summary.get("protocols"):
        lines += ["", "| protocol | mean IU % | pixel accuracy % | how it counts |", "|---|---:|---:|---|"]
        for name, row in protocols.items():
            lines.append(f"| {name} | {percent(row['mean_iu'])} | {percent(row['pixel_accuracy'])} | {row['about']} |")
    return "\n".join(lines) + "\n"


def means(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the scores of a summary over all classes, what they are called and their value in per cent."""
    for key, name in METRICS.items():
        ends = [percent(end) for end in summary["mean_iu_interval"]]
        yield (
            name[0].lower() + name[1:],
            percent(summary[key]) + f" (95 %: {ends[0]} to {ends[1]})" * (key == "mean_iu"),
        )
    boundary = summary["boundary"]
    yield f"boundary F1, within {boundary['tolerance']}", percent(boundary["f1"])
    for width, iu in boundary["trimap_iu"].items():
        yield f"mean IU within {width} px of a boundary", percent(iu)
    for name in ("precision", "recall", "f1", "f0.5", "f2") if "binary" in summary else ():
        yield f"{name.capitalize()} of {summary['binary']['class']}", percent(summary["binary"][name])


def caution(summary: Mapping[str, Any]) -> str | None:
    """Return a sentence that says that the scores rest on few images, where they do."""
    images: int = summary["images"]
    if images >= FEW:
        return None
    return f"With {images} image{'s' * (images != 1)}, fewer than {FEW}, the interval is too narrow to be trusted."


def percent(value: float | None) -> str:
    """Return a score in [0, 1] as a person reads it."""
    return "-" if value is None else f"{100 * value:.2f}"


def _caption(evaluation: Evaluation, index: int) -> str:
    return f"{evaluation.ids[index]}   mean IU {percent(evaluation.image_iu[index].item())} %"


def _shrunk(image: Array, truth: Array, prediction: Array) -> tuple[Array, Array, Array]:
    height, width = truth.shape
    scale = min(1, LONGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    labels = [Image.fromarray(label).resize(size, Image.Resampling.NEAREST) for label in (truth, prediction)]
    return small, np.array(labels[0]), np.array(labels[1])


def _cell(value: float) -> float | str:
    return "" if math.isnan(value) else round(float(value), 6)
