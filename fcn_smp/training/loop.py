"""The training loop: it can be stopped after any step, and goes on as if it had not been."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric

from fcn_smp.curves import draw_curves
from fcn_smp.data.sampling import StepSampler
from fcn_smp.data.transforms import Preprocess
from fcn_smp.errors import Interrupted
from fcn_smp.files import write_csv
from fcn_smp.metrics import Scores
from fcn_smp.recipe import Recipe
from fcn_smp.training import checkpoint
from fcn_smp.training.checkpoint import State
from fcn_smp.training.health import Health, NotFinite, check_rates
from fcn_smp.training.learner import Learner
from fcn_smp.training.loaders import Batch, stop_workers, training_batches, training_samples
from fcn_smp.training.loggers import Logger
from fcn_smp.training.parts import Parts
from fcn_smp.training.processes import Interruption, add_up
from fcn_smp.training.reports import COLUMNS, SCORES, Display, draw_samples
from fcn_smp.training.stopwatch import Deferred, Stopwatch
from fcn_smp.training.validation import Validation


class _Report(NamedTuple):
    """What a step has to say, once the device is through with it."""

    numbers: Deferred
    batch: Batch
    step: int


class Loop:
    """Trains a network by a recipe.

    Args:
        fabric: The processes and devices.
        recipe: Says how.
        parts: What the run is made of.
        run: The run directory, or None to leave nothing.
        limit: Steps and validation images of an epoch at most.

    Attributes:
        state: How far it is.
        loggers: Where the rows of ``metrics.csv`` go besides.
    """

    def __init__(
        self, fabric: Fabric, recipe: Recipe, parts: Parts, run: Path | None, limit: int | None = None
    ) -> None:
        self.fabric = fabric
        self.recipe = recipe
        self.parts = parts
        self.run = run
        self.limit = limit
        self.loggers: Sequence[Logger] = ()
        self.state = State()
        options = recipe.trainer
        self.steps_per_epoch = min(len(parts.train) // options.batch_size, limit or sys.maxsize)
        self.steps = options.epochs * self.steps_per_epoch
        self.learner = Learner(fabric, recipe, parts, self.steps_per_epoch)
        self.normalize = Preprocess(*parts.preprocessing).normalize.to(fabric.device)
        self.validation = Validation(fabric, parts, options.workers, options.samples, limit)
        self.watch = Stopwatch(fabric.device)
        self._pending: _Report | None = None
        self._last: _Report | None = None
        self._loss = 0.0
        self._stop = self._save = False

    @property
    def path(self) -> Path | None:
        """The checkpoint to go on from."""
        return self.run / "checkpoints/last.ckpt" if self.run else None

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or the scores have stopped rising."""
        patience = self.recipe.trainer.early_stop
        return self.state.epoch >= self.recipe.trainer.epochs or (patience is not None and self.state.worse >= patience)

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one.

        Raises:
            UserError: It is damaged.
        """
        if self.path and self.path.exists():
            content = checkpoint.load(self.path)
            try:
                self.state = content["state"]
                self.learner.load_state_dict(content)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise checkpoint.unreadable(self.path) from error

    def fit(self, display: Display) -> None:
        """Train to the end.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
            NotFinite: The loss is not a number.
            UserError: A file is damaged, or cannot be written.
        """
        self.display = display
        self.health = Health(
            display.warn,
            [id_ for id_, *_ in self.parts.train.files],
            self.parts.train.classes[0],
            self.recipe.trainer.collapse_steps,
        )
        for sentence in check_rates(self.learner.factor, self.steps) if self.limit is None else ():
            display.warn(sentence)
        self._started = self._saved = time.monotonic()
        with Interruption() as self.interruption:
            batches = self._batches()
            try:
                while not self.done:
                    self._train_epoch(batches)
                    self._end_epoch(self._validate() if self._is_validated() else None)
            finally:
                stop_workers(batches)
                self.validation.close()

    def _batches(self) -> Iterator[Batch]:
        sampler = StepSampler(
            len(self.parts.train),
            self.recipe.trainer.batch_size,
            self.recipe.seed,
            range(self.state.step, self.steps),
            self.fabric.global_rank,
            self.fabric.world_size,
        )
        samples = training_samples(self.recipe, self.parts.train, self.parts.preprocessing)
        return iter(training_batches(samples, sampler, self.recipe.trainer.workers, pin_memory=self._on_cuda))

    @property
    def _on_cuda(self) -> bool:
        return self.fabric.device.type == "cuda"

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        self.learner.begin_epoch(self.state.epoch)
        end = (self.state.epoch + 1) * self.steps_per_epoch
        # Trying which algorithm is fastest pays off for crops, which are all of one size.
        with torch.backends.cudnn.flags(enabled=True, benchmark=not self.recipe.trainer.deterministic):
            while self.state.step < end:
                with self.watch("wait"):
                    batch = next(batches)
                self._step(batch)
                if (self._save or self._stop) and self.state.step < end:
                    self._checkpoint()
        self._settle()
        self._check_weights()
        if self._stop:
            self._checkpoint()

    def _step(self, batch: Batch) -> None:
        device, state = self.fabric.device, self.state
        pixels = batch.images.to(device, non_blocking=True).permute(0, 3, 1, 2)
        images = self.normalize(pixels.contiguous(memory_format=self.learner.memory_format))
        labels = batch.labels.to(device, non_blocking=True).long()
        # All processes must know what the loss is divided by, and whether one of them wants to stop or to save.
        wishes = torch.tensor([self.interruption.asked, self._is_due()], dtype=torch.float32)
        normalizer = self.learner.loss.normalizer(labels)[None]
        shared = add_up(self.fabric, torch.cat([normalizer, wishes.to(device, non_blocking=True)]))
        numbers = self.learner.learn(images, labels, shared[0], state.step, self.watch)
        before, self._pending = self._pending, _Report(Deferred(torch.cat([numbers, shared[1:]])), batch, state.step)
        state.step += 1
        self._take_note(before)
        interval = self.recipe.trainer.checkpoint_steps
        self._save |= interval is not None and state.step % interval == 0

    def _is_due(self) -> bool:
        """Tell whether the first process wants a checkpoint for the time that has gone."""
        minutes = self.recipe.trainer.checkpoint_minutes
        waited = time.monotonic() - self._saved
        return minutes is not None and self.fabric.is_global_zero and waited > 60 * minutes

    def _take_note(self, report: _Report | None) -> None:
        """Read what an earlier step reported, by now without waiting for the device."""
        if report is None:
            return
        loss, void, other, something, stop, save = report.numbers.read()
        if not math.isfinite(loss):
            raise NotFinite(f"The loss became {loss}", report.step, report.batch)
        self._last = report
        self._loss += loss
        self._stop |= stop > 0
        self._save |= save > 0
        self.health.step(report.step, report.batch, int(void), bool(other), bool(something))
        self.display.step(report.step + 1, self.state.epoch, loss * self.fabric.world_size)

    def _settle(self) -> None:
        """Bring the state up to date with the last step."""
        report, self._pending = self._pending, None
        self._take_note(report)
        if self.fabric.world_size > 1:
            self._loss = add_up(self.fabric, torch.tensor(self._loss, device=self.fabric.device)).item()
        self.state.loss += self._loss
        now = time.monotonic()
        self.state.elapsed += now - self._started
        for part, seconds in self.watch.take().items():
            self.state.seconds[part] = self.state.seconds.get(part, 0.0) + seconds
        self._loss, self._started = 0.0, now

    def _check_weights(self) -> None:
        """Make sure that no weight is kept that is not a number: a gradient may be none where the loss still is."""
        finite = torch.stack([parameter.isfinite().all() for parameter in self.learner.model.parameters()]).all()
        if self._last and not finite:
            raise NotFinite("A weight became infinite or nan", self._last.step, self._last.batch)

    def _checkpoint(self) -> None:
        """Write the last checkpoint, and stop here if that was asked."""
        self._settle()
        self._check_weights()
        if self.path and self.fabric.is_global_zero:
            checkpoint.save(self.path, **self.learner.state_dict(), state=self.state)
        self._save, self._saved = False, time.monotonic()
        if self._stop:
            self.fabric.barrier()  # the others leave when it is written
            if not self.fabric.is_global_zero:
                sys.exit(130)
            raise Interrupted(f"stopped after step {self.state.step} of {self.steps}")

    def _is_validated(self) -> bool:
        epoch = self.state.epoch + 1
        return epoch % self.recipe.trainer.validate_every == 0 or epoch == self.recipe.trainer.epochs

    def _validate(self) -> Scores:
        with self.watch("validate"):
            scores = self.validation.scores(self.learner.kept, self.interruption)
        if scores is None:
            self._stop = True
            self._checkpoint()
        assert scores
        if self.run and self.validation.predictions and self.fabric.is_global_zero:
            path = self.run / "samples" / f"epoch-{self.state.epoch + 1:03d}.png"
            draw_samples(self.parts.val, self.validation.share, self.validation.predictions, path)
        return scores

    def _end_epoch(self, scores: Scores | None) -> None:
        """Write down what an epoch came to, and keep the weights if they are the best so far."""
        self._settle()
        state = self.state
        seconds = state.elapsed - state.seconds["validate"]
        self.health.epoch(state.epoch, state.seconds["wait"], seconds, self.recipe.trainer.workers)
        if scores:
            self.display.validated(state.step, state.epoch, state.loss / self.steps_per_epoch, scores)
        state.rows.append(self._row(seconds, scores))
        state.begin_epoch()
        for logger in self.loggers:  # before the checkpoint: what is logged beyond it is logged anew
            logger.log({key: float(value) for key, value in state.rows[-1].items() if value}, state.step)
        if scores:
            self._keep_best(scores)
            self._checkpoint()
        if self.run and self.fabric.is_global_zero:
            write_csv(self.run / "metrics.csv", COLUMNS, state.rows)
            if scores:
                draw_curves(state.rows, self.run / "curves.png")

    def _keep_best(self, scores: Scores) -> None:
        state = self.state
        value = -1.0 if math.isnan(scores.mean_iu) else scores.mean_iu
        state.worse += 1
        if value > state.best:
            state.best, state.best_epoch, state.worse = value, state.epoch, 0
            if self.run and self.fabric.is_global_zero:
                checkpoint.save(self.run / "checkpoints/best.ckpt", model=self.learner.kept.state_dict())

    def _row(self, seconds: float, scores: Scores | None) -> dict[str, str]:
        state = self.state
        images = self.steps_per_epoch * self.recipe.trainer.batch_size
        row = {
            "epoch": str(state.epoch + 1),
            "step": str(state.step),
            "seconds": f"{state.elapsed:.2f}",
            "lr": f"{self.learner.decoder_rate(state.step - 1):.3g}",
            "train_loss": f"{state.loss / self.steps_per_epoch:.5f}",
            "images_per_second": f"{images / seconds:.2f}",
            **{f"{part}_seconds": f"{value:.2f}" for part, value in state.seconds.items()},
        }
        if scores:
            row |= {name: f"{getattr(scores, name):.5f}" for name in SCORES}
        if self._on_cuda:
            row["peak_memory_gib"] = f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"
            torch.cuda.reset_peak_memory_stats()
        return dict.fromkeys(COLUMNS, "") | row
