"""What a run writes and shows while it goes on."""

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.drawing import panel, save_image
from fcn_smp.files import write_text
from fcn_smp.training.data_module import Batch
from fcn_smp.training.task import SegmentationTask

COLUMNS = (
    "epoch", "step", "seconds", "lr", "train_loss",
    "pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu",
)  # fmt: skip


def checkpoints(directory: Path) -> list[ModelCheckpoint]:
    """Keep ``last.ckpt``, of every epoch, and ``best.ckpt``, of the best mean IU; Lightning writes them at once."""
    # At the end of the epoch, not of its validation: a run is resumed with the epoch that follows.
    when: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(directory, "best", monitor="mean_iu", mode="max", **when)
    last = ModelCheckpoint(directory, "last", **when)
    return [best, last]


class ValidateLastEpoch(Callback):
    """Validate after the last epoch too, where it is no multiple of the interval."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class MetricsTable(Callback):
    """Keep ``metrics.csv``: one row for each epoch, with scores where it was validated.

    A resumed run keeps the rows of the epochs that it does not repeat.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        assert isinstance(task, SegmentationTask)
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        row["epoch"] = trainer.current_epoch + 1
        row["step"] = trainer.global_step
        row["seconds"] = round(time.monotonic() - self.started, 2)
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups if group["name"] == "decoder"]
        row["lr"] = f"{min(rates, default=math.nan):.3g}"  # that of the biases may be larger
        row["train_loss"] = f"{trainer.callback_metrics['train_loss'].item():.5f}"
        if task.scores is not None:
            row |= {name: f"{getattr(task.scores, name):.5f}" for name in COLUMNS[5:]}
        task.scores = None
        self.rows.append(row)
        if trainer.is_global_zero:
            table = io.StringIO(newline="")
            writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.path, table.getvalue())


class SamplePictures(Callback):
    """Draw the first validation images with truth and prediction at each validation, ``epoch-005.png``."""

    def __init__(self, directory: Path, dataset: SegmentationDataset, count: int) -> None:
        self.directory = directory
        self.dataset = dataset
        self.count = count
        self.predictions: list[Tensor] = []

    def on_validation_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        self.predictions.clear()

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        task: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx < self.count:
            self.predictions.append(outputs[0].cpu())

    def on_validation_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        if not trainer.is_global_zero or not self.predictions:
            return
        rows = []
        for k, prediction in enumerate(self.predictions):
            sample = self.dataset[k * trainer.world_size]
            rows.append((sample.image, sample.label, prediction.numpy().astype(np.uint8)))
        picture = panel(rows, self.dataset.palette, self.dataset.classes)
        save_image(picture, self.directory / f"epoch-{trainer.current_epoch + 1:03d}.png")


class ProgressReport(Callback):
    """Show a bar with the time left and the mean IU, and one line for each validation that stays.

    Without a terminal there are only the lines.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
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

    def on_train_start(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        self.first_step = trainer.global_step
        self.started = time.monotonic()
        self.total = int(trainer.estimated_stepping_batches)
        if trainer.is_global_zero:
            self.bar.start()
            self.bar_task = self.bar.add_task("", total=self.total, epoch="", loss="-", mean_iu="-")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, task: lightning.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.is_global_zero:
            self.bar.update(
                self.bar_task,
                completed=trainer.global_step,
                epoch=f"{trainer.current_epoch + 1}/{trainer.max_epochs}",
                loss=f"{outputs['loss'].item():.3f}",
            )

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        assert isinstance(task, SegmentationTask)
        if not trainer.is_global_zero or task.scores is None:
            return
        elapsed = time.monotonic() - self.started
        left = elapsed * (self.total - trainer.global_step) / max(1, trainer.global_step - self.first_step)
        loss, mean_iu = trainer.callback_metrics["train_loss"].item(), task.scores.mean_iu
        self.bar.update(self.bar_task, mean_iu=f"{mean_iu:.3f}")
        self.console.print(
            f"epoch {trainer.current_epoch + 1:>3}/{trainer.max_epochs}  loss {loss:.3f}  mIoU {mean_iu:.3f}"
            f"  pixel accuracy {task.scores.pixel_accuracy:.3f}  {_clock(elapsed)} gone, {_clock(left)} left",
            highlight=False,
            soft_wrap=True,
        )

    def teardown(self, trainer: lightning.Trainer, task: lightning.LightningModule, stage: str) -> None:
        self.bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
