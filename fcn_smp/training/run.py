"""From a recipe to a run directory."""

import json
import logging
import platform
import shutil
import sys
import tempfile
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as lightning
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from fcn_smp.data.class_weights import class_weights, count_classes
from fcn_smp.data.dataset import IGNORE_INDEX, SegmentationDataset
from fcn_smp.errors import Interrupted, UserError
from fcn_smp.files import whole, write_text
from fcn_smp.losses import SegmentationLoss
from fcn_smp.models.encoder import Preprocessing, encoder_preprocessing
from fcn_smp.models.fcn import FCN
from fcn_smp.optim import freeze
from fcn_smp.recipe import Recipe
from fcn_smp.registry import ARCHITECTURES
from fcn_smp.segmenter import Segmenter
from fcn_smp.training.callbacks import (
    MetricsTable,
    ProgressReport,
    SamplePictures,
    ValidateLastEpoch,
    checkpoints,
)
from fcn_smp.training.data_module import SegmentationDataModule
from fcn_smp.training.task import SegmentationTask
from fcn_smp.weights import transfer

# What may differ when a run is resumed: where it runs, not what it computes.
_PLACE = ("name", *(f"trainer.{key}" for key in ("workers", "accelerator", "devices", "num_nodes", "strategy")))


class Parts(NamedTuple):
    """All that a run is made of, built and checked before anything is written."""

    task: SegmentationTask
    data: SegmentationDataModule
    preprocessing: Preprocessing
    fresh: list[str]
    """Weights that ``model.init_from`` does not have."""


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
        _check_directory(recipe, run, resume=resume)
    if resume and (run / "model").is_dir():
        console.print(f"{run} is complete; there is nothing to resume.", highlight=False, soft_wrap=True)
    elif recipe.stages:
        _train_stages(recipe, run, resume=resume, console=console, first=first)
    else:
        _train_one(recipe, run, resume=resume, console=console, first=first)


def _train_one(recipe: Recipe, run: Path, *, resume: bool, console: Console, first: bool) -> None:
    parts = build(recipe)
    trainer = _trainer(recipe, run, parts, console)
    if parts.fresh:
        console.print(f"New to {recipe.model.init_from}: {', '.join(parts.fresh)}.", highlight=False, soft_wrap=True)
    if first:
        _write_record(recipe, run)
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
    for stage in list(stages.values())[1:]:
        # A mistake in a later stage should not wait for the earlier ones.
        _network(_starting_from(stage, None), len(stage.data.open(stage.data.train).classes))
    if first:
        _write_record(recipe, run)
    before: Path | None = None
    for name, stage in stages.items():
        console.print(f"Stage {name}", highlight=False)
        directory = run / name
        if before and "init_from" not in recipe.stages[name].get("model", {}):
            stage = _starting_from(stage, before / "model")
        if not (directory / "model").is_dir():
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


def _starting_from(recipe: Recipe, model: Path | None) -> Recipe:
    """Return the recipe with another start than its own: a model, or random weights."""
    start = {"init_from": str(model.absolute())} if model else {"init_from": None, "encoder_weights": None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=start)})


def _write_record(recipe: Recipe, run: Path) -> None:
    write_text(run / "recipe.yaml", recipe.dump())
    write_text(run / "environment.json", json.dumps(environment(), indent=2) + "\n")


def dry_run(recipe: Recipe, console: Console) -> None:
    """Build everything, train and validate on two batches, write to a folder that is removed again.

    A stage is tried without the weights of the one before.
    """
    for name, stage in recipe.staged().items():
        console.print(f"Stage {name}", highlight=False)
        dry_run(stage, console)
    if recipe.stages:
        return
    parts = build(recipe)
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


def build(recipe: Recipe) -> Parts:
    """Build all parts of a run.

    Raises:
        UserError: Something does not fit; the message names it.
    """
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    train_set, val_set = recipe.data.open(recipe.data.train), recipe.data.open(recipe.data.val)
    if recipe.augmentation is None and recipe.trainer.batch_size > 1:
        raise UserError("trainer.batch_size must be 1 where augmentation is null, since whole images differ in size.")
    if len(train_set) < recipe.trainer.batch_size:
        raise UserError(
            f"trainer.batch_size is {recipe.trainer.batch_size}, but the split {recipe.data.train} has only"
            f" {len(train_set)} images; it should be that or less."
        )
    model, usual, fresh = _network(recipe, len(train_set.classes))
    asked = {key: value for key, value in recipe.preprocessing if value is not None}
    preprocessing = usual._replace(**asked)
    options = recipe.loss
    loss = SegmentationLoss(_class_weights(recipe, train_set), IGNORE_INDEX, options.label_smoothing, options.reduction)
    task = SegmentationTask(model, loss, recipe, len(train_set.classes))
    return Parts(task, SegmentationDataModule(recipe, train_set, val_set, preprocessing), preprocessing, fresh)


def _network(recipe: Recipe, classes: int) -> tuple[FCN, Preprocessing, list[str]]:
    """Build the network with the weights that it starts from; tell what they expect of the input and what is new."""
    try:
        model, preprocessing, fresh = _model(recipe, classes)
        freeze(model, recipe.model.frozen)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"model: {str(error).splitlines()[0]}") from error
    return model, preprocessing, fresh


def _model(recipe: Recipe, classes: int) -> tuple[FCN, Preprocessing, list[str]]:
    options = recipe.model.model_dump(exclude={"arch", "encoder_options", "init_from", "frozen"})
    source = recipe.model.init_from and Segmenter.load(recipe.model.init_from)
    if source:
        options |= {"encoder_weights": None, "decoder_hidden_weights": None}
    model = ARCHITECTURES[recipe.model.arch](**options, classes=classes, **recipe.model.encoder_options)
    if not source:
        return model, encoder_preprocessing(recipe.model.encoder_name, recipe.model.encoder_weights), []
    return model, source.preprocessing, transfer(source.model, model)


def environment() -> dict[str, Any]:
    """Return where and with what a run was made."""
    packages = ("fcn_smp", "torch", "segmentation-models-pytorch", "timm", "albumentations", "lightning", "numpy")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
    }


def _check_directory(recipe: Recipe, run: Path, *, resume: bool) -> None:
    if not resume:
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise UserError(f"{run} holds another run; name another directory with --output, or go on with --resume.")
        return
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} cannot be resumed: it has no recipe.yaml; leave out --resume to start anew.")
    try:
        before = _settings(Recipe.model_validate(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))))
    except ValueError as error:
        raise UserError(f"{run} cannot be resumed: its recipe.yaml is not one of this version.") from error
    now = _settings(recipe)
    for key in before | now:
        if now.get(key) != before.get(key):
            raise UserError(
                f"{run} was begun with {key}={before.get(key)}, now it is {now.get(key)}; a run is resumed with the"
                " recipe that it was begun with."
            )


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return what must not differ when a run is resumed: ``{"trainer.epochs": 60, "stages.one.model.arch": ...}``."""
    flat: dict[str, Any] = {}
    for key, value in recipe.model_dump(mode="json", exclude={"stages"}).items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    flat = {key: value for key, value in flat.items() if key not in _PLACE}
    for name, stage in recipe.staged().items():
        flat |= {f"stages.{name}.{key}": value for key, value in _settings(stage).items()}
    return flat


def _class_weights(recipe: Recipe, dataset: SegmentationDataset) -> list[float] | None:
    asked = recipe.loss.class_weights
    classes = list(dataset.classes)
    if asked is None:
        return None
    if isinstance(asked, str):
        return class_weights(count_classes(dataset), asked)
    if isinstance(asked, dict):
        for name in asked:
            if name not in classes:
                raise UserError(
                    f"loss.class_weights: there is no class {name!r}; the classes are {', '.join(classes)}."
                )
        return [asked.get(name, 1.0) for name in classes]
    if len(asked) != len(classes):
        raise UserError(
            f"loss.class_weights has {len(asked)} numbers; it should have {len(classes)}, one for each class."
        )
    return asked


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
