"""The command line: each command parses, calls one function and prints.

Everything heavy is imported inside the commands, so that help and mistakes are answered at once.
"""

import json
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fcn_smp.errors import Interrupted, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from fcn_smp.data.download import Progress as Watch
    from fcn_smp.inference import Inference
    from fcn_smp.segmenter import Segmenter

app = typer.Typer(
    name="fcn-smp",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with the package.")
app.add_typer(recipes_app, name="recipes")
data_app = typer.Typer(no_args_is_help=True, help="Data sets: get them, check them, look at them.")
app.add_typer(data_app, name="data")
weights_app = typer.Typer(no_args_is_help=True, help="Other people's weights.")
app.add_typer(weights_app, name="weights")

Run = Annotated[str, typer.Argument(help="A run directory, a model directory or a model of the Hugging Face Hub.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as trainer.epochs=3.")
]
Device = Annotated[str, typer.Option(help="Where the network runs: auto, cpu, cuda, cuda:1 ...", metavar="DEVICE")]
Tta = Annotated[
    str | None,
    typer.Option(
        "--tta",
        metavar="flip,scales=A..B",
        help="Average over the mirrored image and over scales: flip,scales=0.5..1.75 (takes many times as long).",
        show_default="none",
    ),
]
Window = Annotated[
    str,
    typer.Option(
        "--window",
        metavar="auto|none|SIDE",
        help="Side in pixels of the windows into which large images are cut; none: whole; auto: whole where they fit.",
    ),
]


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
        reason = f"cannot be read or written: {error.strerror}"
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "is a file, or lies in one; it should be a folder"
        print(f"fcn-smp: {error.filename} {reason}.", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            print(f"fcn-smp: {stopped}; the same command with --resume goes on.", file=sys.stderr)
            sys.exit(130)
        arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
        print(f"fcn-smp: {stopped}; this goes on:\n{shlex.join(['fcn-smp', *arguments, '--resume'])}", file=sys.stderr)
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
    try:
        run.train(loaded, directory, resume=resume, console=console)
    except KeyboardInterrupt as error:  # before the training has begun, or a second one
        raise Interrupted("interrupted") from error
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
        Path | None,
        typer.Option("--output", "-o", help="Folder for the scores.", show_default="RUN/eval/SPLIT"),
    ] = None,
    device: Device = "auto",
    tta: Tta = None,
    window: Window = "auto",
    protocol: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Count as this project does, too, or as all; may be repeated."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="RUN2", help="Compare with this model on the same images, by paired tests."),
    ] = None,
    voc_server: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tgz",
            help="Score nothing, but predict --split (test) into the archive that VOC's evaluation server takes.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score a model at native size: the four metrics of the paper, each class, boundaries, the worst images."""
    from fcn_smp.inference import parse
    from fcn_smp.recipe import load_recipe

    inference = parse(tta, window)
    own = Path(run) / "recipe.yaml"
    if voc_server and (protocol or against or output or as_json):
        raise UserError("--voc-server scores nothing; leave --protocol, --against, --output and --json away.")
    if recipe is None and not own.is_file():
        what = "no run directory with a recipe.yaml" if Path(run).exists() else "not there"
        raise UserError(f"{run} is {what}; name a run directory, or a model and a recipe with --recipe.")
    loaded = load_recipe(recipe or own, overrides or [])
    data = loaded.data
    console = _console(stderr=as_json)
    if voc_server:
        _write_server_archive(console, _load(run, device), data, split or "test", voc_server, inference)
        return
    from fcn_smp import evaluation, score_files, tables

    split = split or data.val
    dataset = data.load(split)
    other = f"{loaded.name}_".replace("/", "-") if recipe else ""  # the run's own scores stay
    folder = other + Path(split).stem + "_tta" * (inference.views > 1)
    directory = output or (Path(run) / "eval" / folder if Path(run).is_dir() else None)
    again = directory is not None and (directory / "scores.json").exists()
    models = {name: _load(name, device) for name in (run, against) if name}
    scores = {}
    with _progress(console) as progress:
        for name, segmenter in models.items():
            task = progress.add_task(f"scoring {split}", total=len(dataset))
            advance = partial(progress.advance, task)
            scores[name] = evaluation.evaluate(
                segmenter, dataset, inference=inference, protocols=protocol or [], advance=advance
            )
    summary = scores[run].summary(model=run, split=split)
    if against:
        summary["against"] = scores[run].against(scores[against], against)
    if directory:
        score_files.write_scores(scores[run], summary, directory)
        score_files.write_samples(scores[run], models[run], dataset, directory, inference)
    if as_json:
        print(score_files.to_json(summary), end="")
        return
    tables.print_scores(console, summary)
    if protocol:
        tables.print_protocols(console, summary)
    if against:
        tables.print_comparison(console, summary)
    if directory:
        before = ", in place of an earlier evaluation" * again
        console.print(f"Written to {directory}{before}; look at worst.png.", highlight=False, soft_wrap=True)


def _write_server_archive(
    console: "Console", segmenter: "Segmenter", data: Any, split: str, path: Path, inference: "Inference"
) -> None:
    from fcn_smp.voc_server import server_images, write_server_archive

    if data.kind != "voc":
        raise UserError(f"--voc-server is for data of kind voc; the recipe's is {data.kind}.")
    storage, images = server_images(data.root, data.year, split)
    with _progress(console) as progress:
        task = progress.add_task(f"predicting {split}", total=len(images))
        advance = partial(progress.advance, task)
        write_server_archive(segmenter, storage, images, data.year, path, inference, advance)
    line = f"{path} holds the predictions of {len(images):,} images of {split}."
    console.print(line, highlight=False, soft_wrap=True)


@app.command()
def predict(
    run: Run,
    images: Annotated[
        list[str], typer.Argument(help="Files, folders with all that is in them, glob patterns, .txt lists of paths.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what is written.")],
    no_overlay: Annotated[bool, typer.Option("--no-overlay", help="Write no NAME_overlay.jpg.")] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Write NAME_confidence.png: 255 times the probability of the label.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write NAME.npz: those of all classes, float16 (C, H, W).")
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Write only what is not there yet, as after an interruption.")
    ] = False,
    tta: Tta = None,
    window: Window = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images of one size run at once.", show_default="1 on a CPU, else 8")
    ] = None,
    device: Device = "auto",
) -> None:
    """Label images: NAME.png holds the class of each pixel, NAME_overlay.jpg shows them on the image.

    The pixels of NAME.png are class numbers with a palette of colours: viewers that ignore the palette show it nearly
    black. Images that cannot be read are named and passed over; the exit code is then 1.
    """
    from fcn_smp import prediction
    from fcn_smp.inference import parse

    inference = parse(tta, window)
    wanted = {"label": True, "overlay": not no_overlay, "confidence": confidence, "probabilities": probabilities}
    kinds = [kind for kind in prediction.ENDINGS if wanted[kind]]
    found = prediction.find_images(images, output)
    jobs = prediction.plan(found, output, kinds, skip_existing=skip_existing)
    segmenter = _load(run, device)
    console = _console()
    failures: list[UserError] = []
    with _rated_progress(console) as progress:
        task = progress.add_task("predicting", total=len(jobs))

        def done(_: prediction.Job, error: UserError | None) -> None:
            if error:
                failures.append(error)
                print(f"fcn-smp: {error}", file=sys.stderr)
            progress.advance(task)

        try:
            prediction.predict_files(segmenter, jobs, done, inference=inference, batch_size=batch_size)
        except KeyboardInterrupt as error:
            print("fcn-smp: interrupted; the same command with --skip-existing goes on.", file=sys.stderr)
            raise typer.Exit(130) from error
    labelled, present = len(jobs) - len(failures), len(found) - len(jobs)
    line = f"{labelled:,} image{'s' * (labelled != 1)} labelled" + f"; what is written is in {output}" * bool(labelled)
    line += "."
    if present:
        line += f" {present:,} had been before."
    if failures:
        line += f" {len(failures):,} of {len(found):,} failed."
    console.print(line, highlight=False, soft_wrap=True, markup=False)
    if failures:
        raise typer.Exit(1)


def _rated_progress(console: "Console") -> "Progress":
    """Return a bar with count, images per second and the time that is left."""
    from rich import progress as bars
    from rich.text import Text

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{task.speed:.1f} images/s" if task.speed else "")

    count, left = bars.MofNCompleteColumn(), bars.TimeRemainingColumn()
    columns = bars.TextColumn("{task.description}"), bars.BarColumn(), count, Rate(), left
    return bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run directories.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file to write.", show_default="RUN/report.html of one run"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split whose scores are shown.", show_default="the recipe's data.val")
    ] = None,
) -> None:
    """Write one HTML page about a run, or one that compares several or the stages of one, to hand on."""
    from fcn_smp.reporting import report as report_

    print(f"The report is {report_(runs, output, split=split)}.")


@app.command()
def benchmark(
    encoder: Annotated[str, typer.Argument(help="An encoder of SMP or a model of timm.")] = "resnet50",
    size: Annotated[str, typer.Option(metavar="SIDE|HEIGHTxWIDTH", help="Size of the images in pixels.")] = "512",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once; some networks cannot be trained on one.")] = 2,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 21,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A network of ours or of SMP, or torchvision; may be repeated.",
            show_default="FCNs, FPN, Unet, DeepLabV3Plus, PAN, Linknet, UPerNet, torchvision",
        ),
    ] = None,
    device: Device = "auto",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of the arithmetic; bf16 is autocast.")] = "fp32",
    compile: Annotated[bool, typer.Option("--compile", help="Measure each network compiled, too.")] = False,
    optimizer: Annotated[bool, typer.Option("--optimizer", help="Take AdamW's work into the step.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each network, whose medians are shown.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure what networks cost beside their encoder alone: forward pass, training step and its memory."""
    sides = size.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise UserError(f"--size {size} should be a side in pixels or a height and a width: 512 or 512x768.")
    from fcn_smp.benchmark import CONTESTANTS, Setting
    from fcn_smp.benchmark import benchmark as benchmark_

    setting = Setting(
        encoder, (int(sides[0]), int(sides[-1])), batch_size, classes, device, precision, compile, optimizer
    )
    # torchvision has an FCN for two encoders; for others it is left out, unless it is asked for.
    applicable = [name for name in CONTESTANTS if name != "torchvision" or encoder.endswith(("resnet50", "resnet101"))]
    console, archs = _console(stderr=as_json), arch or applicable
    with _progress(console) as progress:
        task = progress.add_task("measuring", total=(1 + len(archs)) * (1 + rounds))
        summary = benchmark_(setting, archs, rounds, lambda: progress.advance(task))
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    from fcn_smp.tables import print_benchmark

    print_benchmark(console, summary)


@app.command()
def export(
    run: Run,
    format: Annotated[Literal["onnx", "torch_export"], typer.Option("--format", help="Kind of file.")],
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Take RGB images, uint8 from 0 to 255, and normalise inside.")
    ] = False,
    argmax: Annotated[bool, typer.Option("--argmax", help="Give the most likely class of each pixel.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default="RUN/NAME.onnx or .pt2")
    ] = None,
) -> None:
    """Write a model as one file for other programs, once it is found to give the same on images of several sizes."""
    from fcn_smp.export import MismatchError, default_path
    from fcn_smp.export import export as export_

    path = output or default_path(run, format)
    segmenter = _load(run, "cpu")
    try:
        exported = export_(segmenter, path, format=format, with_preprocessing=with_preprocessing, argmax=argmax)
    except MismatchError as error:
        print(f"fcn-smp: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    difference = f"the logits differ by {exported.difference:.2g} at most"
    if argmax:
        difference = f"labels that differ: {exported.differing:,}"
        difference += f", where logits are {exported.difference:.2g} apart at most" * (exported.differing > 0)
    largest = f"the largest logit is {exported.largest:.3g}"
    print(f"{path} takes any batch, height and width from {exported.smallest} pixel{'s' * (exported.smallest > 1)}.")
    print(f"Compared with the model on {exported.pixels:,} random pixels: {difference}; {largest}.")
    if size := segmenter.preprocessing.resize:
        print(f"Stretch images to a height of {size[0]} and a width of {size[1]} pixels before.")
    if segmenter.binary and not argmax:
        print(f"A pixel is {segmenter.classes[1]} where the sigmoid of its logit is above {segmenter.threshold:.3g}.")
    if not exported.largest:
        print("The model gives nothing but 0, as if it was never trained, so that the comparison tells little.")
    result = "labels" if argmax else "logits"
    image = "image: uint8 (N, 3, H, W), RGB" if with_preprocessing else "image: float32 (N, C, H, W), normalised"
    if format == "onnx":
        print(f'    session = onnxruntime.InferenceSession("{path}")')
        print(f'    [{result}] = session.run(None, {{"image": image}})  # {image}')
    else:
        print(f'    network = torch.export.load("{path}").module()')
        print(f"    {result} = network(image)  # {image}")


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="voc2007, voc2012, sbd, voc2012_sbd, camvid, kitti_road or carla.")],
    root: Annotated[Path, typer.Option(help="Folder for the data set; archives that lie in it are used.")],
    archive: Annotated[
        list[Path] | None, typer.Option(help="An archive that lies elsewhere or has another name; may be repeated.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the archives that are missing.")] = False,
) -> None:
    """Unpack a data set and make of it what recipes read; called again, it does what is left."""
    from fcn_smp.data.prepare import prepare as prepare_

    console = _console()
    try:
        with _steps(console) as progress:
            for line in prepare_(name, root, archive or [], download=download, progress=progress):
                console.print(line, highlight=False, soft_wrap=True, markup=False)
    except KeyboardInterrupt as error:
        print("fcn-smp: interrupted; the same command goes on.", file=sys.stderr)
        raise typer.Exit(130) from error


@data_app.command(name="check")
def check_data(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Read a recipe's data set whole, and say what is wrong with it; the exit code is then 1."""
    from fcn_smp.recipe import load_recipe

    data = load_recipe(recipe, overrides or []).data
    from fcn_smp.data.check import check

    train, val = (data.open(split, incomplete=True) for split in (data.train, data.val))
    console = _console(stderr=as_json)
    with _progress(console) as progress:
        task = progress.add_task("reading", total=len(train) + len(val))
        report = check(train, val, allow_overlap=data.allow_overlap, advance=lambda: progress.advance(task))
    summary = report.summary()
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        from fcn_smp.tables import print_check

        print_check(console, summary)
    if not summary["clean"]:
        raise typer.Exit(1)


@data_app.command(name="show")
def show_data(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")],
    overrides: Overrides = None,
    split: Annotated[
        str | None, typer.Option(help="Split to draw from.", show_default="the recipe's data.train")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of samples, drawn by the recipe's seed.")] = 12,
    augmented: Annotated[bool, typer.Option("--augmented", help="Show what the network sees of each, too.")] = False,
) -> None:
    """Draw some samples of a recipe's data set, each with its label laid over it, into one picture."""
    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output} should end in .png.")
    if output.exists():
        raise UserError(f"{output} is there already; name another file with --output.")
    from fcn_smp.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from fcn_smp.contact_sheet import contact_sheet
    from fcn_smp.drawing import save_image

    save_image(contact_sheet(loaded, split or loaded.data.train, samples, augmented=augmented), output)
    _console().print(f"The picture is {output}.", highlight=False, soft_wrap=True, markup=False)


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
    say(f"The {kind} is in {output}: {use}, or smp.from_pretrained({str(output)!r}).")


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
    from fcn_smp.segmenter import Segmenter

    return Segmenter.load(run, device)


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr)


def _progress(console: "Console") -> "Progress":
    from rich.progress import Progress

    return Progress(console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def _steps(console: "Console") -> "Iterator[Watch]":
    """Give what draws a bar for each step that it is told of."""
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    amount, about = TextColumn("{task.fields[amount]}"), TextColumn("{task.description}")
    columns = about, BarColumn(), amount, TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(step: str, done: int, total: int | None, unit: str) -> None:
            numbers = [f"{count:,}" if unit == "files" else decimal(count) for count in (done, total) if count]
            shown = "/".join(numbers)
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, completed=done, amount=shown)
            bars.update(tasks[step], total=total, completed=done, amount=shown)

        yield progress
