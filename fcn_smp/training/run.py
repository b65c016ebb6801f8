"""From a recipe to a run directory."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console

from fcn_smp.curves import draw_curves
from fcn_smp.errors import UserError
from fcn_smp.evaluation import Evaluation, count, thresholds
from fcn_smp.files import remove_unfinished, whole, write_csv
from fcn_smp.inference import Inference
from fcn_smp.model_card import Split, model_card
from fcn_smp.recipe import Recipe
from fcn_smp.reporting import report
from fcn_smp.reporting.runs import read_starts
from fcn_smp.score_files import write_samples, write_scores
from fcn_smp.segmenter import Segmenter
from fcn_smp.training import checkpoint
from fcn_smp.training.health import NotFinite
from fcn_smp.training.loggers import open_loggers
from fcn_smp.training.loop import Loop
from fcn_smp.training.parts import Parts, build, check_stages
from fcn_smp.training.processes import add_up_counts, in_company, launch, together
from fcn_smp.training.record import check_directory, write_record
from fcn_smp.training.reports import COLUMNS, Display


def train(recipe: Recipe, run: Path, *, resume: bool, console: Console) -> None:
    """Run a recipe and leave everything in the directory ``run``.

    Every process of a distributed run comes this way; the first one writes and speaks.

    Args:
        recipe: What to train, on what, and how.
        run: The directory to write; it must not hold anything, unless the run is resumed.
        resume: Go on from ``checkpoints/last.ckpt`` of ``run``, or from the start if it did not get that far.
        console: Where to report.

    Raises:
        UserError: The recipe does not fit the data, a file is missing or damaged, or ``run`` is not free.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    fabric = launch(recipe.trainer)
    console.quiet |= not fabric.is_global_zero
    with in_company(fabric):
        together(fabric, lambda: check_directory(recipe, run, resume=resume))
        if fabric.is_global_zero:
            remove_unfinished(run)
        if resume and (run / "model").is_dir():
            if fabric.is_global_zero:
                _report_if_missing(run)
            console.print(f"{run} is complete; there is nothing to resume.", highlight=False, soft_wrap=True)
            return
        if resume and not any(run.rglob("last.ckpt")):
            console.print("There is no checkpoint to go on from; the run begins.", highlight=False, soft_wrap=True)
        if recipe.stages:
            _train_stages(fabric, recipe, run, console)
        else:
            _train_one(fabric, recipe, run, console)


def _train_one(fabric: Fabric, recipe: Recipe, run: Path, console: Console) -> None:
    last = run / "checkpoints" / "last.ckpt"
    with _determinism(recipe):
        parts, loop = together(fabric, lambda: _build(fabric, recipe, run))
        try:
            together(fabric, lambda: _begin(fabric, recipe, run, parts, loop))
            _fit(loop, recipe, parts, console)
        except NotFinite as error:
            raise _explained(error, parts, loop, run) from error
        except UserError:
            if fabric.is_global_zero and not last.exists() and run.exists():
                shutil.rmtree(run)  # nothing was reached that would be worth keeping or could be resumed
            raise
        finally:
            for logger in loop.loggers:
                logger.close()
        _finish(fabric, recipe, parts, loop, run, console)


def _build(fabric: Fabric, recipe: Recipe, run: Path | None, limit: int | None = None) -> tuple[Parts, Loop]:
    parts = build(recipe, fabric.world_size)
    loop = Loop(fabric, recipe, parts, run, limit)
    loop.resume()
    return parts, loop


def _begin(fabric: Fabric, recipe: Recipe, run: Path, parts: Parts, loop: Loop) -> None:
    if not fabric.is_global_zero:
        return
    _refuse_other_data(run, parts, loop)
    precision = fabric.strategy.precision.precision
    write_record(recipe, run, fingerprints=parts.fingerprints, device=str(fabric.device), precision=precision)
    loop.loggers = open_loggers(recipe.trainer.loggers, run, recipe, loop.state.step)


def _refuse_other_data(run: Path, parts: Parts, loop: Loop) -> None:
    before = [start["fingerprints"] for start in read_starts(run) if "fingerprints" in start]
    for role, fingerprint in parts.fingerprints.items() if loop.state.step and before else ():
        if before[-1].get(role, fingerprint) != fingerprint:
            raise UserError(
                f"{run} cannot be resumed, since the images or labels of data.{role} have changed; bring them back, or"
                " begin anew with another --output."
            )


def _fit(loop: Loop, recipe: Recipe, parts: Parts, console: Console) -> None:
    for note in (*parts.notes, *_circumstances(loop, recipe)):
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    display = Display(console, recipe.trainer.epochs, loop.steps, loop.state.step)
    try:
        with display:
            loop.fit(display)
        if loop.state.epoch < recipe.trainer.epochs:
            worse = loop.state.worse
            console.print(f"Ended after epoch {loop.state.epoch}: {worse} validations without a better mean IU.")
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "augmentation.crop and trainer.batch_size leave a batch norm with a single value; enlarge one of them."
        ) from error
    except RuntimeError as error:
        if "finished reduction" in str(error):
            raise UserError(
                f"Parts of {recipe.model.encoder_name} have no gradient; set"
                " trainer.strategy: ddp_find_unused_parameters_true."
            ) from error
        raise


def _circumstances(loop: Loop, recipe: Recipe) -> Iterator[str]:
    batch, fabric = recipe.trainer.batch_size, loop.fabric
    millions = sum(parameter.numel() for parameter in loop.parts.model.parameters()) / 1e6
    precision = fabric.strategy.precision.precision
    yield (
        f"{loop.parts.model.name} with {millions:.1f} million weights on {fabric.world_size} x {fabric.device.type} in"
        f" {precision}: {loop.steps_per_epoch} steps an epoch, {batch} images a step."
    )
    if loop.state.step:
        yield f"Goes on after step {loop.state.step} of {loop.steps}, in epoch {loop.state.epoch + 1}."


def _explained(error: NotFinite, parts: Parts, loop: Loop, run: Path | None) -> UserError:
    """Return what a user should know of a loss that is no number, and save the batch that led to it."""
    ids = [parts.train.files[index][0] for index in error.batch.indices.tolist()]
    saved = ""
    if run:
        path = run / f"not-finite-{error.step + 1}.pt"
        checkpoint.save(path, **error.batch._asdict(), ids=ids)
        saved = f" The batch is in {path} (torch.load)."
    return UserError(
        f"{error} in epoch {loop.state.epoch + 1}, step {error.step + 1}, with the images {', '.join(ids)};"
        " lower optimizer.lr and optimizer.encoder_lr, lengthen schedule.warmup_steps or set trainer.gradient_clip."
        f"{saved}"
    )


def _finish(fabric: Fabric, recipe: Recipe, parts: Parts, loop: Loop, run: Path, console: Console) -> None:
    """Score the best weights as ``fcn-smp eval`` does, save them as a model, and write the report."""
    if fabric.is_global_zero:
        write_csv(run / "metrics.csv", COLUMNS, loop.state.rows)
        draw_curves(loop.state.rows, run / "curves.png")
    parts.model.load_state_dict(checkpoint.load(run / "checkpoints" / "best.ckpt")["model"])
    classes = parts.train.classes
    segmenter = Segmenter(parts.model.to(fabric.device), parts.preprocessing, classes, parts.train.palette)
    share, inference = loop.validation.share, Inference()
    if segmenter.binary:
        segmenter.threshold = add_up_counts(fabric, thresholds(segmenter, parts.val, share)).best()
    counts = add_up_counts(fabric, count(segmenter, parts.val, share, inference))
    if fabric.is_global_zero:
        evaluation = Evaluation.of(counts, segmenter, parts.val, inference)
        summary = evaluation.summary(model=str(run), split=recipe.data.val)
        directory = run / "eval" / Path(recipe.data.val).stem
        write_scores(evaluation, summary, directory)
        write_samples(evaluation, segmenter, parts.val, directory, inference)
        segmenter.model.cpu()
        segmenter.save(run / "model", _card(recipe, parts, loop, run, summary))
        report(run)
        console.print(_result(summary, loop.state.best_epoch), highlight=False, soft_wrap=True, markup=False)
    fabric.barrier()  # a stage that follows reads the model


def _result(summary: Mapping[str, Any], best_epoch: int) -> str:
    names = {"mean_iu": "mean IU", "pixel_accuracy": "pixel accuracy"}
    scores = [f"{title} {100 * summary[key]:.2f} %" for key, title in names.items() if summary[key] is not None]
    threshold = [f"threshold {summary['threshold']:.3g}"] if "threshold" in summary else []
    return (
        f"The best weights are those of epoch {best_epoch}: {', '.join([*scores, *threshold])} on {summary['split']}."
    )


def _card(recipe: Recipe, parts: Parts, loop: Loop, run: Path, summary: dict[str, Any]) -> str:
    splits = [
        Split(role, len(dataset), parts.fingerprints[role])
        for role, dataset in (("train", parts.train), ("val", parts.val))
    ]
    state = loop.state
    return model_card(recipe, summary, read_starts(run), splits, epochs=state.epoch, best_epoch=state.best_epoch)


def _train_stages(fabric: Fabric, recipe: Recipe, run: Path, console: Console) -> None:
    """Run the stages one after the other, each in a folder of its own; the model is that of the last."""
    together(fabric, lambda: check_stages(recipe))
    if fabric.is_global_zero:
        write_record(recipe, run)
    before: Path | None = None
    for name, stage in recipe.staged().items():
        directory = run / name
        done = (directory / "model").is_dir()
        if done and fabric.is_global_zero:
            _report_if_missing(directory)
        console.print(f"Stage {name}{': complete' * done}", highlight=False)
        if before and "init_from" not in recipe.stages[name].get("model", {}):
            stage = _starting_from(stage, before / "model")
        if not done:
            try:
                _train_one(launch(stage.trainer), stage, directory, console)
            except UserError:
                if fabric.is_global_zero and before is None and not directory.exists():
                    shutil.rmtree(run)
                raise
        before = directory
    if fabric.is_global_zero and before:
        with whole(run / "model") as temporary:
            shutil.copytree(before / "model", temporary)
        report(run)


def _report_if_missing(run: Path) -> None:
    """Write the report of a complete run that was killed right before it."""
    if not (run / "report.html").exists():
        report(run)


def _starting_from(recipe: Recipe, model: Path) -> Recipe:
    start = recipe.model.model_copy(update={"init_from": str(model.absolute())})
    return recipe.model_copy(update={"model": start})


def dry_run(recipe: Recipe, console: Console) -> None:
    """Build everything, train on two batches and validate on two images; leave nothing.

    A stage is tried without the weights of the one before.

    Args:
        recipe: What is tried.
        console: Where to report.

    Raises:
        UserError: The recipe does not fit the data, or a file is missing or damaged.
    """
    if recipe.stages:
        check_stages(recipe)
        for name, stage in recipe.staged().items():
            console.print(f"Stage {name}", highlight=False)
            dry_run(stage, console)
        return
    fabric = launch(recipe.trainer)
    console.quiet |= not fabric.is_global_zero
    short = recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"epochs": 1})})
    with _determinism(recipe):
        parts, loop = together(fabric, lambda: _build(fabric, short, None, limit=2))
        try:
            _fit(loop, short, parts, console)
        except NotFinite as error:
            raise _explained(error, parts, loop, None) from error
    millions = sum(parameter.numel() for parameter in parts.model.parameters()) / 1e6
    console.print(
        f"The recipe works: {parts.model.name} with {millions:.1f} million weights,"
        f" {len(parts.train)} images to train on, {len(parts.val)} to validate.",
        highlight=False,
        soft_wrap=True,
    )


@contextlib.contextmanager
def _determinism(recipe: Recipe) -> Iterator[None]:
    """Let torch choose only what gives the same numbers every time, if the recipe wants that."""
    before = torch.are_deterministic_algorithms_enabled()
    if recipe.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
