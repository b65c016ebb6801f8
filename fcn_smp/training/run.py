"""From a recipe to a run directory."""

import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from fcn_smp.errors import Interrupted, UserError
from fcn_smp.files import whole
from fcn_smp.recipe import Recipe
from fcn_smp.segmenter import Segmenter
from fcn_smp.training.callbacks import (
    MetricsTable,
    ProgressReport,
    SamplePictures,
    ValidateLastEpoch,
    checkpoints,
)
from fcn_smp.training.parts import Parts, build, check_stages
from fcn_smp.training.record import check_directory, write_record


def train(recipe: Recipe, run: Path, *, resume: bool, console: Console) -> None:
    """Run a recipe and leave everything in the directory ``run``.

    Args:
        recipe: What to train, on what, and how.
        run: The directory to write; it must not hold anything, unless the run is resumed.
        resume: Go on from ``checkpoints/last.ckpt`` of ``run``, or from the start if it did not get that far.
        console: Where to report.

    Raises:
        UserError: The recipe does not fit the data, a file is missing or damaged, or ``run`` is not free.
    """
    # Every process of a distributed run comes this way; the first one writes.
    first = getattr(rank_zero_only, "rank", 0) == 0
    if first:
        check_directory(recipe, run, resume=resume)
    if resume and (run / "model").is_dir():
        console.print(f"{run} is complete; there is nothing to resume.", highlight=False, soft_wrap=True)
    elif recipe.stages:
        _train_stages(recipe, run, resume=resume, console=console, first=first)
    else:
        _train_one(recipe, run, resume=resume, console=console, first=first)


def _train_one(recipe: Recipe, run: Path, *, resume: bool, console: Console, first: bool) -> None:
    parts = build(recipe)
    trainer = _trainer(recipe, run, parts, console)
    _print_notes(parts, console)
    if first:
        write_record(recipe, run)
    last = run / "checkpoints" / "last.ckpt"
    try:
        _fit(trainer, parts, last if resume and last.exists() else None)
    except UserError:
        if first and not last.exists():
            shutil.rmtree(run)  # nothing was reached that would be worth keeping or could be resumed
        raise
    if trainer.is_global_zero:
        best = torch.load(run / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
        parts.task.load_state_dict(best["state_dict"])
        dataset = parts.data.train
        segmenter = Segmenter(parts.task.model.cpu(), parts.preprocessing, dataset.classes, dataset.palette)
        segmenter.save(run / "model")
    trainer.strategy.barrier()  # a stage that follows reads the model


def _train_stages(recipe: Recipe, run: Path, *, resume: bool, console: Console, first: bool) -> None:
    """Run the stages one after the other, each in a folder of its own; the model is that of the last."""
    stages = recipe.staged()
    check_stages(recipe)
    if first:
        write_record(recipe, run)
    before: Path | None = None
    for name, stage in stages.items():
        directory = run / name
        done = (directory / "model").is_dir()
        console.print(f"Stage {name}{': complete' * done}", highlight=False)
        if before and "init_from" not in recipe.stages[name].get("model", {}):
            stage = _starting_from(stage, before / "model")
        if not done:
            try:
                _train_one(stage, directory, resume=resume, console=console, first=first)
            except UserError:
                if first and before is None and not directory.exists():
                    shutil.rmtree(run)
                raise
        before = directory
    if first and before:
        with whole(run / "model") as temporary:
            shutil.copytree(before / "model", temporary)


def _starting_from(recipe: Recipe, model: Path) -> Recipe:
    start = recipe.model.model_copy(update={"init_from": str(model.absolute())})
    return recipe.model_copy(update={"model": start})


def _print_notes(parts: Parts, console: Console) -> None:
    for note in parts.notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)


def dry_run(recipe: Recipe, console: Console) -> None:
    """Build everything, train and validate on two batches, write to a folder that is removed again.

    A stage is tried without the weights of the one before.
    """
    if recipe.stages:
        check_stages(recipe)
        for name, stage in recipe.staged().items():
            console.print(f"Stage {name}", highlight=False)
            dry_run(stage, console)
        return
    parts = build(recipe)
    _print_notes(parts, console)
    with tempfile.TemporaryDirectory() as folder:
        short = recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"epochs": 1})})
        trainer = _trainer(short, Path(folder), parts, console, limit_train_batches=2, limit_val_batches=2)
        _fit(trainer, parts, None)
    millions = sum(parameter.numel() for parameter in parts.task.model.parameters()) / 1e6
    console.print(
        f"The recipe works: {parts.task.model.name} with {millions:.1f} million weights,"
        f" {len(parts.data.train)} images to train on, {len(parts.data.val)} to validate.",
        highlight=False,
        soft_wrap=True,
    )


def _trainer(recipe: Recipe, run: Path, parts: Parts, console: Console, **options: Any) -> lightning.Trainer:
    _hush_lightning()
    settings = recipe.trainer
    try:
        return lightning.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=_precision(settings.precision, settings.accelerator),
            max_epochs=settings.epochs,
            check_val_every_n_epoch=settings.validate_every,
            gradient_clip_val=settings.gradient_clip,
            # The order in which callbacks are called is the order here: the table clears the scores, so it is last.
            callbacks=[
                ValidateLastEpoch(),
                ProgressReport(console),
                SamplePictures(run / "samples", parts.data.val, settings.samples),
                MetricsTable(run / "metrics.csv"),
                *checkpoints(run / "checkpoints"),
            ],
            default_root_dir=run,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def _fit(trainer: lightning.Trainer, parts: Parts, checkpoint: Path | None) -> None:
    try:
        trainer.fit(parts.task, parts.data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        # Lightning turns an interrupt into an exit.
        raise (Interrupted if trainer.interrupted else error) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "augmentation.crop and trainer.batch_size leave a batch norm with a single value; enlarge one of them."
        ) from error
    except FloatingPointError as error:
        raise UserError(
            f"The loss became {error} in epoch {trainer.current_epoch + 1}; lower optimizer.lr and"
            " optimizer.encoder_lr, lengthen schedule.warmup_steps or set trainer.gradient_clip."
        ) from error


def _precision(asked: str, accelerator: str) -> Any:
    names = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}
    if asked != "auto":
        return names[asked]
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return names["bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
    # Without such instructions bfloat16 is emulated, which is slower than float32.
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return names["bf16" if on_cpu and fast else "fp32"]


def _hush_lightning() -> None:
    """Keep Lightning's hints to itself: what a user must know, this package says."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*(num_workers|isinstance.treespec|lr_scheduler.step).*")
