"""What a run writes and shows while it goes on."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.drawing import panel, save_image
from fcn_smp.metrics import Scores
from fcn_smp.training.stopwatch import PARTS

SCORES = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
COLUMNS = (
    "epoch", "step", "seconds", "lr", "train_loss", *SCORES,
    "images_per_second", *(f"{part}_seconds" for part in PARTS), "peak_memory_gib",
)  # fmt: skip
"""Of ``metrics.csv``, which has a row for each epoch, with scores where it was validated."""


def draw_samples(
    dataset: SegmentationDataset, indices: Sequence[int], predictions: Sequence[Tensor], path: Path
) -> None:
    """Draw the first of some images with truth and prediction, as many as there are predictions (H, W)."""
    rows = []
    for index, prediction in zip(indices, predictions, strict=False):
        sample = dataset[index]
        rows.append((sample.image, sample.label, prediction.numpy().astype(np.uint8)))
    save_image(panel(rows, dataset.palette, dataset.classes), path)


class Display:
    """A bar with the time left and the mean IU, and one line for each validation that stays.

    Without a terminal there are only the lines.

    Args:
        console: Where to show.
        epochs: Epochs of the run.
        steps: Steps of the run.
        first: Step with which it starts or goes on.
    """

    def __init__(self, console: Console, epochs: int, steps: int, first: int) -> None:
        self.console = console
        self.epochs = epochs
        self.steps = steps
        self.first = first
        self.started = time.monotonic()
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("loss {task.fields[loss]}  mIoU {task.fields[mean_iu]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=steps, completed=first, epoch="", loss="-", mean_iu="-")

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    def step(self, step: int, epoch: int, loss: float) -> None:
        """Show that so many steps are done, in the epoch ``epoch``, counted from 0."""
        self.bar.update(self.task, completed=step, epoch=f"{epoch + 1}/{self.epochs}", loss=f"{loss:.3f}")

    def validated(self, step: int, epoch: int, loss: float, scores: Scores) -> None:
        """Print the line of an epoch that was validated."""
        elapsed = time.monotonic() - self.started
        left = elapsed * (self.steps - step) / max(1, step - self.first)
        self.bar.update(self.task, mean_iu=f"{scores.mean_iu:.3f}")
        self.console.print(
            f"epoch {epoch + 1:>3}/{self.epochs}  loss {loss:.3f}  mIoU {scores.mean_iu:.3f}"
            f"  pixel accuracy {scores.pixel_accuracy:.3f}  {_clock(elapsed)} gone, {_clock(left)} left",
            highlight=False,
            soft_wrap=True,
        )

    def warn(self, sentence: str) -> None:
        """Print something that the user should see to."""
        self.console.print(f"Warning: {sentence}", style="bold yellow", highlight=False, soft_wrap=True, markup=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
