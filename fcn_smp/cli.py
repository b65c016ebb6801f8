"""The command line: each command parses, calls one function and prints.

Everything heavy is imported inside the commands, so that help and mistakes are answered at once.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcn_smp.errors import Interrupted, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from fcn_smp.segmenter import Segmenter

app = typer.Typer(
    name="fcn-smp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with the package.")
app.add_typer(recipes_app, name="recipes")
weights_app = typer.Typer(no_args_is_help=True, help="Other people's weights.")
app.add_typer(weights_app, name="weights")

Run = Annotated[str, typer.Argument(help="A run directory, a model directory or a model of the Hugging Face Hub.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe: trainer.epochs=3")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...", metavar="DEVICE")]


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    warnings.formatwarning = lambda message, *_, **__: f"fcn-smp: {message}\n"
    try:
        app()
    except UserError as error:
        print(f"fcn-smp: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"fcn-smp: {error.filename} cannot be read or written: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
    except Interrupted:
        print("fcn-smp: interrupted; the same command with --resume goes on.", file=sys.stderr)
        sys.exit(130)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run directory.", show_default="runs/NAME")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the run directory.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try everything on two batches; keep nothing.")] = False,
) -> None:
    """Train a network by a recipe; everything lands in one run directory."""
    from fcn_smp.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from fcn_smp.training import run

    console = _console()
    if dry_run:
        run.dry_run(loaded, console)
        return
    directory = output or Path("runs") / loaded.name
    run.train(loaded, directory, resume=resume, console=console)
    console.print(f"The run is in {directory}, its model in {directory / 'model'}.", highlight=False, soft_wrap=True)


@app.command(name="eval")
def evaluate(
    run: Run,
    overrides: Overrides = None,
    recipe: Annotated[
        str | None, typer.Option(help="Take the data set from this recipe.", show_default="the run's own")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to score.", show_default="the recipe's data.val")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the scores.", show_default="RUN/eval/SPLIT")
    ] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score a model at native size: the four metrics of the paper, and each class."""
    from fcn_smp.recipe import load_recipe

    own = Path(run) / "recipe.yaml"
    if recipe is None and not own.is_file():
        raise UserError(f"{run} is no run directory with a recipe.yaml; name a recipe with --recipe.")
    data = load_recipe(recipe or own, overrides or []).data
    from fcn_smp import evaluation

    split = split or data.val
    directory = output or (Path(run) / "eval" / Path(split).stem if Path(run).is_dir() else None)
    dataset = data.open(split)
    segmenter = _load(run, device)
    console = _console(stderr=as_json)
    with _progress(console) as progress:
        task = progress.add_task(f"scoring {split}", total=len(dataset))
        scores = evaluation.evaluate(segmenter, dataset, lambda: progress.advance(task)).scores()
    summary = evaluation.summary(scores, segmenter.classes, model=run, split=split, images=len(dataset))
    if directory:
        evaluation.write(summary, directory)
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    _print_scores(console, summary)
    if directory:
        console.print(f"Written to {directory}.", highlight=False, soft_wrap=True)


@app.command()
def predict(
    run: Run,
    images: Annotated[list[str], typer.Argument(help="Files, folders or glob patterns.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")],
    device: Device = "auto",
) -> None:
    """Label images: a PNG of classes with a colour palette, and an overlay, each of the image's size."""
    from fcn_smp import prediction

    paths = prediction.find_images(images)
    segmenter = _load(run, device)
    console = _console()
    with _progress(console) as progress:
        task = progress.add_task("predicting", total=len(paths))
        for _ in prediction.predict(segmenter, paths, output):
            progress.advance(task)
    count = f"{len(paths)} image{'s' * (len(paths) > 1)}"
    console.print(f"{count} labelled; the pictures are in {output}.", highlight=False, soft_wrap=True)


@weights_app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="A file of weights, or a run or model directory.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model directory to write.")],
    arch: Annotated[
        str | None, typer.Option(help="fcn32s, fcn16s or fcn8s, where the file leaves it open.", show_default="found")
    ] = None,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="The FCN-8s scales its skips, where the file cannot tell.")
    ] = False,
) -> None:
    """Turn weights of Caffe, torchfcn, Keras, torchvision or timm into a model; nothing in the file is executed."""
    if output.exists():
        raise UserError(f"{output} is there already; name another directory with --output.")
    from fcn_smp.weights import import_weights

    imported = import_weights(file, arch=arch, at_once=at_once)
    imported.segmenter.save(output)
    console = _console()

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    classes = len(imported.segmenter.classes)
    say(f"{file} is {imported.source}, of {classes} classes.")
    if imported.unused:
        say(f"Not used: {', '.join(imported.unused)}.")
    use = f"fcn-smp predict {output} IMAGES" if classes < 256 else f"fcn-smp train RECIPE model.init_from={output}"
    kind = type(imported.segmenter.model).__name__
    say(f"The model, a {kind}, is in {output}: {use}, or smp.from_pretrained({str(output)!r}).")


@recipes_app.command(name="list")
def list_recipes() -> None:
    """List the shipped recipes and what each is for."""
    from fcn_smp.recipe import shipped_recipes

    recipes = shipped_recipes()
    for name, path in recipes.items():
        about = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{name:<{max(map(len, recipes))}}  {about}")


@recipes_app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
) -> None:
    """Print a recipe whole: what it extends, the overrides and every default filled in."""
    from fcn_smp.recipe import load_recipe

    print(load_recipe(recipe, overrides or []).dump(), end="")


@recipes_app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from fcn_smp.recipe import json_schema

    print(json.dumps(json_schema(), indent=2))


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"fcn-smp {version('fcn_smp')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, score and use fully convolutional networks (FCN) with any encoder of SMP and timm."""


def _load(run: str, device: str) -> "Segmenter":
    import torch

    from fcn_smp.segmenter import Segmenter

    if device == "auto":
        device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} is not to be had here; cpu always is.") from error
    return Segmenter.load(run, device)


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)


def _progress(console: "Console") -> "Progress":
    from rich.progress import Progress

    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _print_scores(console: "Console", summary: dict[str, Any]) -> None:
    from rich.table import Table

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    table = Table("class")
    for header in ("IU %", "accuracy %", "pixels"):
        table.add_column(header, justify="right")
    for row in summary["per_class"]:
        table.add_row(row["class"], percent(row["iu"]), percent(row["accuracy"]), f"{row['pixels']:,}")
    console.print(table)
    for key, title in (
        ("mean_iu", "mean IU"),
        ("pixel_accuracy", "pixel accuracy"),
        ("mean_accuracy", "mean accuracy"),
        ("frequency_weighted_iu", "frequency-weighted IU"),
    ):
        console.print(f"{title:<22} {percent(summary[key]):>6} %", highlight=False)
