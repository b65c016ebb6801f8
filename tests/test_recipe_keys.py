"""Every key of a recipe does something: each is given a value, and what becomes of it is looked at."""

import functools
import multiprocessing
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin
from unittest.mock import MagicMock, patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import rows, run_command, write_sbd, write_voc
from networks import lean_vgg
from PIL import Image
from pydantic import BaseModel
from rich.console import Console
from test_data_sets import save, write_camvid, write_carla, write_kitti
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fcn_smp.data.demo import DemoScenes
from fcn_smp.data.sbd import convert
from fcn_smp.data.storage import Folder
from fcn_smp.errors import UserError
from fcn_smp.models.base import Network
from fcn_smp.models.encoder import Preprocessing
from fcn_smp.recipe import Recipe, Section, json_schema, load_recipe
from fcn_smp.registry import ARCHITECTURES
from fcn_smp.segmenter import Segmenter
from fcn_smp.training import checkpoint
from fcn_smp.training.loaders import Batch, training_samples
from fcn_smp.training.loop import Loop
from fcn_smp.training.parts import Parts, build
from fcn_smp.training.processes import launch
from fcn_smp.training.reports import Display

pytestmark = pytest.mark.usefixtures("undrawn")

BASE = """
data: {kind: folder, root: pictures, names: [ground, box, ball], train: lists/train.txt, val: lists/val.txt}
model: {encoder_name: test_resnet, encoder_weights: null, decoder_hidden_channels: 8}
augmentation: {crop: [40, 48]}
optimizer: {kind: adamw, lr: 0.01, encoder_lr: 0.001}
schedule: {kind: constant}
trainer: {epochs: 2, batch_size: 2, workers: 0, samples: 1, accelerator: cpu, precision: fp32}
"""
SIZE = (40, 48)
TRAIN, VAL = [f"t{k}" for k in range(8)], ["v0", "v1"]


class Case(NamedTuple):
    """A value of a key and what it leads to.

    Attributes:
        change: The key with its value, as an override of the command line.
        observe: What is looked at, given overrides.
        expected: What is then seen, or a function that says so; ``...``: anything but what is seen without the key.
        base: Overrides that come first, with the key and without.
        how: Where the test does not see the key at its work, what it sees instead.
    """

    change: str
    observe: Callable[..., Any]
    expected: Any
    base: tuple[str, ...]
    how: str


CASES: dict[str, list[Case]] = defaultdict(list)


def case(key: str, value: str, observe: Callable[..., Any], expected: Any, *base: str, how: str = "") -> None:
    """Add a case to the table.

    Args:
        key: As :func:`keys` calls it.
        value: Its value as YAML, or all of its section as ``section={...}``.
        observe: As :class:`Case` says, as do ``expected``, ``base`` and ``how``.
    """
    section, _, inner = key.partition(".")
    written = f"{section}.{inner.rpartition('.')[2]}" if inner else key  # a recipe does not repeat the section's kind
    change = value if value.startswith(f"{section}=") else f"{written}={value}"
    CASES[key].append(Case(change, observe, expected, base, how))


# --- What is looked at


IN_A_FILE = ("extends", "stages")
"""Keys that no override can add."""


def written(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Return the recipe and its overrides; a recipe with a key that cannot be one is another file."""
    inside = [override.replace("=", ": ", 1) for override in overrides if override.startswith(IN_A_FILE)]
    Path("mine.yaml").write_text("\n".join([BASE, *inside]))
    return "mine.yaml", *(override for override in overrides if not override.startswith(IN_A_FILE))


def read(overrides: tuple[str, ...]) -> Recipe:
    path, *others = written(overrides)
    return load_recipe(path, others)


def once(observe: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what was observed, since many keys are compared with one recipe without them."""
    cached = functools.cache(observe)
    CACHES.append(cached.cache_clear)
    return cached


CACHES: list[Callable[[], None]] = []


@once
def parts(*overrides: str) -> Parts:
    """Build what a run is made of."""
    with lean_vgg(shrink=1) if any("vgg" in override for override in overrides) else nullcontext():
        return build(read(overrides))


@once
def outcome(*overrides: str) -> str:
    """Build it, and return how many images there are to train on, or what is wrong."""
    try:
        return str(len(build(read(overrides)).train))
    except UserError as error:
        return str(error)


def children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


class Seen:
    """What went through networks and optimisers while something was run.

    Attributes:
        inputs: What networks were given, in training (True) and else.
        types: Of the numbers that convolutions gave in training.
        facts: How torch was set at each step of the training, and how many processes there were.
        kinds: The optimiser of each step.
        steps: Its groups at each step, with the sum of the squares of their gradients.
        saved: The names of the checkpoints that were written, with the step.
        run: The run directory, if there is one.
        out: What was printed.
    """

    def __init__(self) -> None:
        self.inputs: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        self.types: set[torch.dtype] = set()
        self.facts: list[dict[str, Any]] = []
        self.steps: list[list[dict[str, Any]]] = []
        self.kinds: list[str] = []
        self.saved: list[tuple[str, int]] = []
        self.run = Path()
        self.out = ""
        self.others = children()  # of other tests

    def forward(self, module: nn.Module, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d) and module.training:
            self.types.add(output.dtype)
        if not isinstance(module, Network):
            return
        (image,) = arguments
        self.inputs[module.training].append(image)
        if module.training:
            self.facts.append(
                {
                    "deterministic": torch.are_deterministic_algorithms_enabled(),
                    "cudnn": torch.backends.cudnn.enabled,
                    "benchmark": torch.backends.cudnn.benchmark,
                    "children": len(children() - self.others),
                    "seed": torch.initial_seed(),
                }
            )

    def step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.kinds.append(type(optimizer).__name__)
        groups = []
        for group in optimizer.param_groups:
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            square = sum(float(gradient.square().sum()) for gradient in gradients)
            groups.append({**group, "params": len(group["params"]), "square": square, "trained": bool(gradients)})
        self.steps.append(groups)

    def save(self, path: Path, **content: Any) -> None:
        self.saved.append((path.name, content["state"].step if "state" in content else -1))
        SAVE(path, **content)


SAVE = checkpoint.save


def watched(action: Callable[[Seen], None]) -> Seen:
    """Do something and return what was seen meanwhile."""
    seen = Seen()
    hooks = [register_module_forward_hook(seen.forward), register_optimizer_step_pre_hook(seen.step)]
    try:
        with patch.object(checkpoint, "save", seen.save):
            action(seen)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def command(seen: Seen, overrides: tuple[str, ...], *options: Any) -> None:
    code, seen.out, err = run_command("train", *written(overrides), *options)
    assert code == 0, err


@once
def tried(*overrides: str) -> Seen:
    """Try the recipe on two batches by the command line."""
    return watched(lambda seen: command(seen, overrides, "--dry-run"))


@once
def trained(*overrides: str) -> Seen:
    """Run the recipe by the command line."""

    def run(seen: Seen) -> None:
        seen.run = Path(tempfile.mkdtemp(prefix="run-", dir="."))
        command(seen, overrides, "-o", seen.run)

    return watched(run)


@once
def fitted(*overrides: str) -> Seen:
    """Run the recipe without a run directory."""

    def fit(seen: Seen) -> None:
        recipe = read(overrides)
        loop = Loop(launch(recipe.trainer), recipe, build(recipe), None)
        with Display(Console(quiet=True), recipe.trainer.epochs, loop.steps, 0) as display:
            loop.fit(display)

    return watched(fit)


@once
def asked_of_fabric(*overrides: str) -> dict[str, Any]:
    """Return what Lightning's Fabric is asked for, with which the devices of other machines are not needed here."""
    with patch("fcn_smp.training.processes.Fabric", side_effect=ValueError("not here")) as fabric:
        code, _, err = run_command("train", *written(overrides), "--dry-run")
    assert (code, err) == (2, "fcn-smp: trainer: not here\n")
    return dict(fabric.call_args.kwargs)


# --- Data


def ids(dataset: Any) -> list[str]:
    return [id_ for id_, *_ in dataset.files]


def images_of(role: str) -> Callable[..., list[str]]:
    return lambda *overrides: ids(getattr(parts(*overrides), role))


def reads_of_a_sample(*overrides: str) -> int:
    """Count the files that are read for a sample once everything is built."""
    dataset = parts(*overrides).train
    with patch.object(Folder, "read", autospec=True, side_effect=Folder.read) as read:
        dataset[0]
    return read.call_count


def first(*overrides: str) -> Any:
    return parts(*overrides).train[0]


def is_dark(*overrides: str) -> bool:
    return first(*overrides).image.max() == 0


def labels_seen(*overrides: str) -> list[int]:
    """Return which numbers the first label holds."""
    return np.unique(first(*overrides).label).tolist()


def classes(*overrides: str) -> tuple[list[str], int]:
    """Return the classes and how many the network scores."""
    built = parts(*overrides)
    return list(built.train.classes), built.model.decoder.score.out_channels


KINDS = {
    "voc": (
        "VOCSegmentation",
        "data={kind: voc, year: 2012, root: voc, train: lists/train.txt, val: lists/val.txt}",
        ("lists/val.txt", "lists/train.txt"),
    ),
    "sbd": ("SBD", "data={kind: sbd, root: sbd}", ("val", "train")),
    "camvid": ("CamVid", "data={kind: camvid, root: camvid}", ("val", "train")),
    "kitti_road": ("KITTIRoad", "data={kind: kitti_road, root: kitti_road}", ("val", "train")),
    "carla": ("CARLA", "data={kind: carla, root: carla}", ("val", "train")),
    "folder": (
        "ImageFolder",
        "data={kind: folder, root: folder, names: [ground, box, ball], train: lists/train.txt, val: lists/val.txt}",
        ("lists/val.txt", "lists/train.txt"),
    ),
    "demo": ("DemoScenes", "data={kind: demo, root: demo}", ("val", "train")),
}
"""Of each kind of data: its class, its section of a recipe, and its two splits the wrong way round."""


def write_data() -> None:
    """Write a little of each kind, once as it is, once with the first image black, once with a damaged label."""
    for year in (2007, 2012):
        write_voc(Path("voc"), year, TRAIN, VAL)
    write_sbd(Path("sbd"), TRAIN, VAL)
    convert(Path("sbd"), lambda *_: None)
    write_camvid(Path("camvid"), "segnet")
    write_kitti(Path("kitti_road"))
    write_carla(Path("carla"), ["a/", "b/"], count=5)
    write_pictures(Path("folder"))
    for kind, (_, section, _) in KINDS.items():
        for other in ("dark", "damaged"):
            dataset = parts(section, "trainer.batch_size=1").train  # draws the demo scenes
            _, image, label = dataset.files[0]
            copy = shutil.copytree(kind, Path(f"{kind}-{other}"))
            if other == "dark":
                Image.new("RGB", dataset[0].image.shape[1::-1]).save(copy / image)
            else:
                (copy / label).write_bytes(b"no picture")


def write_pictures(root: Path) -> None:
    """Write pictures of a box and a ball on the ground, with labels of several kinds."""
    rng = np.random.default_rng(0)
    for name in (*TRAIN, *VAL):
        label = np.zeros(SIZE, np.uint8)
        label[4:16, 6:20], label[30:33, 40:43] = 1, 2
        image = rng.integers(0, 256, (*SIZE, 3))
        image[label > 0] //= 3
        save(root / f"images/{name}.png", image)
        save(root / f"dark/{name}.png", 0 * image)
        save(root / f"labels/{name}.png", label)
        save(root / f"labels/{name}_mask.png", 0 * label + 2)
        save(root / f"boxes/{name}.png", 0 * label + 1)


for kind, (name, section, (train, val)) in KINDS.items():
    # The kinds have splits of few images, down to one.
    bare = (section, "trainer.batch_size=1")
    other = "data={kind: demo, root: demo}" if kind == "folder" else KINDS["folder"][1]
    case(f"data.{kind}.kind", section, lambda *o: type(parts(*o).train).__name__, name, other, bare[1])
    case(f"data.{kind}.root", f"{kind}-dark", is_dark, True, *bare)
    for role, changed, opposite in (("train", train, "val"), ("val", val, "train")):
        same = functools.partial(lambda opposite, *bare: images_of(opposite)(*bare), opposite, *bare)
        case(f"data.{kind}.{role}", changed, images_of(role), same, *bare, "data.allow_overlap=true")
    case(f"data.{kind}.classes", "{thing: [0]}", classes, (["background", "thing"], 2), *bare)
    whole = functools.partial(lambda *bare: str(len(parts(*bare).train) - 1), *bare)
    case(f"data.{kind}.on_error", "skip", outcome, whole, *bare, f"data.root={kind}-damaged")
    case(f"data.{kind}.cache", "ram", reads_of_a_sample, 0, *bare)
    alike = functools.partial(lambda *bare: str(len(parts(*bare).train)), *bare)
    case(f"data.{kind}.allow_overlap", "true", outcome, alike, *bare, f"data.val={val}")

FOLDER = KINDS["folder"][1]
DRAWN = "data={kind: folder, root: folder, names: [ground, box, ball], train: train, val: val}"
VOC2007 = "voc/VOCdevkit/VOC2007/JPEGImages/t0.jpg"


def is_of_2007(*overrides: str) -> bool:
    return np.array_equal(first(*overrides).image, np.array(Image.open(VOC2007)))


case("data.voc.year", "2007", is_of_2007, True, KINDS["voc"][1])
case("data.camvid.void_class", "true", lambda *o: classes(*o)[0][11:], ["unlabelled"], KINDS["camvid"][1])
case("data.camvid.void_class", "true", lambda *o: 255 in labels_seen(*o), False, KINDS["camvid"][1])
case("data.folder.images", "dark", is_dark, True, FOLDER)
case("data.folder.labels", "boxes", labels_seen, [1], FOLDER)
case("data.folder.label_suffix", "_mask", labels_seen, [2], FOLDER)
case("data.folder.names", "[a, b, c]", classes, (["a", "b", "c"], 3), FOLDER)
case(
    "data.folder.names", "{a: 0, b: 2, c: 1}", labels_seen, [1], FOLDER, "data.labels=labels", "data.label_suffix=_mask"
)
case("data.folder.void", "[2]", outcome, "8", FOLDER, "data.names=[ground, box]")
case("data.folder.val_share", "0.5", lambda *o: len(images_of("val")(*o)), 5, DRAWN)
case("data.folder.seed", "1", images_of("val"), ..., DRAWN)


# --- Model


def network(*overrides: str) -> Any:
    return parts(*overrides).model


def looks(attribute: Callable[[Any], Any]) -> Callable[..., Any]:
    """Look at the network in some way."""
    return lambda *overrides: attribute(network(*overrides))


def sizes_of_maps(model: Any) -> list[int]:
    with torch.inference_mode():
        return [map_.shape[-1] for map_ in model.eval().encoder(torch.zeros(1, 3, 64, 64))]


def starts_from(path: str) -> Callable[..., bool]:
    """Tell whether a network has the weights of a file of these."""

    def compare(*overrides: str) -> bool:
        state = network(*overrides).state_dict()
        return all(torch.equal(state[name], tensor) for name, tensor in torch.load(path).items())

    return compare


def write_weights() -> None:
    """Write weights for the encoder, the hidden layers of a VGG and the whole network, and which those are."""
    torch.manual_seed(3)
    model = ARCHITECTURES["fcn8s"](
        encoder_name="test_resnet", encoder_weights=None, decoder_hidden_channels=8, classes=3
    )
    with torch.no_grad():
        model.decoder.score.weight.normal_()
    Segmenter(model, Preprocessing((0.5,) * 3, (0.5,) * 3), ["ground", "box", "ball"], np.zeros((256, 3))).save(
        Path("start")
    )
    torch.save(model.state_dict(), "start.pth")
    torch.save(model.encoder.state_dict(), "encoder.pth")
    torch.save({f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}, "encoder-inside.pth")
    layers = {"fc6": torch.randn(8, 512, 1, 1), "fc7": torch.randn(8, 8, 1, 1)}
    hidden = {f"{name}.weight": weight for name, weight in layers.items()} | {
        f"{name}.bias": torch.randn(8) for name in layers
    }
    torch.save(hidden, "hidden.pth")
    torch.save({f"decoder.hidden.{place}.weight": layers[name] for name, place in (("fc6", 0), ("fc7", 3))}, "fc.pth")


def hidden(kind: type[nn.Module]) -> Callable[[Any], Any]:
    """Return the first hidden layer of a kind."""
    return lambda model: next(module for module in model.decoder.hidden if isinstance(module, kind))


VGG = "model={encoder_name: vgg11, decoder_hidden_kernel: 1}"
WIDE = "model={encoder_name: vgg11}"
case(
    "model.arch", "fcn16s", looks(lambda model: (model.name, len(model.decoder.skip_scores))), ("fcn16s-test_resnet", 1)
)
case("model.binary", "true", looks(lambda model: model.decoder.score.out_channels), 1, "data.classes={thing: [0]}")
case(
    "model.encoder_name", "test_efficientnet", looks(lambda model: model.encoder.out_channels[1:]), [16, 24, 32, 48, 64]
)
case("model.encoder_depth", "4", looks(lambda model: len(model.encoder.out_channels) - 1), 4)
case("model.encoder_weights", "./encoder.pth", starts_from("encoder-inside.pth"), True)
case(
    "model.decoder_alignment", "caffe", looks(lambda model: next(model.encoder.children())[0].padding), (100, 100), WIDE
)
case("model.decoder_hidden_weights", "./hidden.pth", starts_from("fc.pth"), True, VGG)
case("model.decoder_hidden_channels", "16", looks(lambda model: model.decoder.score.in_channels), 16)
case("model.decoder_hidden_kernel", "3", looks(lambda model: hidden(nn.Conv2d)(model).kernel_size), (3, 3))
case("model.decoder_dropout", "0.25", looks(lambda model: hidden(nn.Dropout)(model).p), 0.25)
case("model.decoder_skip_scales", "[0.5, 0.25]", looks(lambda model: model.decoder.skip_scales), [0.5, 0.25])
case(
    "model.decoder_learn_upsampling",
    "true",
    looks(lambda model: len(list(model.decoder.fusions.parameters()))),
    2,
)
case("model.encoder_options", "{output_stride: 16}", looks(sizes_of_maps), [64, 32, 16, 8, 4, 4])
case("model.init_from", "start", starts_from("start.pth"), True)


def groups_trained(seen: Seen) -> list[list[str]]:
    """Return the parts that have gradients at each step."""
    return [sorted({group["name"] for group in groups if group["trained"]}) for groups in seen.steps]


WHOLE = "trainer.batch_size=8"  # a step is an epoch then
BOTH, ONE = ["decoder", "encoder"], ["decoder"]
case("model.frozen", "[encoder]", lambda *o: groups_trained(tried(*o)), [ONE, ONE])
case("model.frozen_epochs", "1", lambda *o: groups_trained(fitted(*o)), [ONE, BOTH], "model.frozen=[encoder]", WHOLE)


# --- Augmentation and preprocessing


def draws(*overrides: str) -> list[Batch]:
    """Return what is trained on in the first epoch, in the order of the data set."""
    built = parts(*overrides)
    samples = training_samples(read(overrides), built.train, built.preprocessing)
    return [samples[0, index] for index in range(len(built.train))]


def share(hits: list[bool]) -> float:
    return float(np.mean(hits))


def labelled(*overrides: str) -> list[int]:
    return [int((sample.labels != 255).sum()) for sample in draws(*overrides)]


def mirrored(*overrides: str) -> float:
    wanted = [sample.label[:, ::-1] for sample in parts(*overrides).train]
    return share([np.array_equal(d.labels.numpy(), want) for d, want in zip(draws(*overrides), wanted, strict=True)])


def recoloured(*overrides: str) -> bool:
    plain = draws(*overrides, "augmentation=null", "trainer.batch_size=1")
    return any(
        not torch.allclose(ours.images, theirs.images) for ours, theirs in zip(draws(*overrides), plain, strict=True)
    )


def shapes(*overrides: str) -> set[tuple[int, ...]]:
    """Return the shapes of what the network is trained on."""
    return {tuple(image.shape) for image in tried(*overrides).inputs[True]}


PLAIN = "augmentation={crop: [40, 48], scale: [1, 1], flip: 0, color_jitter: 0}"
BALLS = ("data.names={ball: 2}", "data.void=[0, 1]", "augmentation={crop: [8, 8], scale: [1, 1]}")
case("augmentation", "null", shapes, {(1, 3, *SIZE)}, "augmentation.crop=64", "trainer.batch_size=1")
case("augmentation.crop", "64", shapes, {(2, 3, 64, 64)})
case("augmentation.crop", "[64, 96]", shapes, {(2, 3, 64, 96)})
case("augmentation.scale", "[2, 2]", labelled, [2 * 40 * 2 * 48] * 8, PLAIN, "augmentation.crop=128")
case("augmentation.flip", "1", mirrored, 1.0, PLAIN)
case("augmentation.color_jitter", "0.9", recoloured, True, PLAIN)
case("augmentation.class_balance", "1", lambda *o: share([n > 0 for n in labelled(*o)]), 1.0, *BALLS)

ALONE = ("data.train=lists/one.txt", "trainer.batch_size=1", "trainer.epochs=1", "augmentation=null")
CENTERED = "preprocessing={mean: [0.5, 0.5, 0.5], std: [1, 1, 1], input_space: RGB, input_range: [0, 1]}"


def pixels(*overrides: str) -> list[list[float]]:
    """Return the first pixel of the first image that is trained on, and of the first that is validated on."""
    inputs = tried(*overrides).inputs
    return [inputs[training][0][0, :, 0, 0].tolist() for training in (True, False)]


def preprocessed(mean: Any = 0.5, std: Any = 1, order: int = 1, largest: int = 1) -> Callable[[], Any]:
    """Return what these pixels should be."""

    def prepare() -> Any:
        files = [np.array(Image.open(f"pictures/images/{name}.png"), float)[0, 0] for name in ("t0", "v0")]
        prepared = [(pixel[::order] * largest / 255 - np.array(mean)) / np.array(std) for pixel in files]
        return [pytest.approx(pixel.tolist(), abs=1e-4) for pixel in prepared]

    return prepare


case(
    "preprocessing.resize", "[80, 112]", lambda *o: {tuple(x.shape) for x in tried(*o).inputs[False]}, {(1, 3, 80, 112)}
)
case("preprocessing.mean", "[1, 2, 3]", pixels, preprocessed(mean=[1, 2, 3]), CENTERED, *ALONE)
case("preprocessing.std", "[1, 2, 4]", pixels, preprocessed(std=[1, 2, 4]), CENTERED, *ALONE)
case("preprocessing.input_space", "BGR", pixels, preprocessed(order=-1), CENTERED, *ALONE)
case("preprocessing.input_range", "[0, 255]", pixels, preprocessed(largest=255), CENTERED, *ALONE)


# --- Loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0], [-2.0, 0.5, 0.0], [0.0, 0.0, 9.0]])
"""Of four pixels; the last one is void."""
LABELS = torch.tensor([0, 1, 1, 255])


def loss(*overrides: str) -> float:
    logits = LOGITS.T.reshape(1, 3, 2, 2)
    return float(parts(*overrides).loss(logits, LABELS.reshape(1, 2, 2)))


def cross_entropy(factor: float = 1, **options: Any) -> Any:
    return pytest.approx(factor * float(F.cross_entropy(LOGITS, LABELS, ignore_index=255, **options)), rel=1e-5)


def focal(gamma: float) -> Any:
    """Compute the focal loss by its definition: each class against the rest."""
    right = torch.sigmoid(torch.where(F.one_hot(LABELS[:3], 3).bool(), LOGITS[:3], -LOGITS[:3]))
    return pytest.approx(float((-((1 - right) ** gamma) * right.log()).mean()), rel=1e-5)


def inverse_frequency() -> Any:
    """A box has 168 of the 1920 pixels of each picture, a ball 9."""
    return cross_entropy(weight=torch.tensor([1 / (1920 - 177), 1 / 168, 1 / 9]))


case("loss.terms", "{focal: 1.0}", loss, focal(2.0))
case("loss.terms", "{cross_entropy: 2.0}", loss, cross_entropy(2))
case("loss.class_weights", "[1, 2, 3]", loss, cross_entropy(weight=torch.tensor([1.0, 2.0, 3.0])))
case("loss.class_weights", "{box: 5}", loss, cross_entropy(weight=torch.tensor([1.0, 5.0, 1.0])))
case("loss.class_weights", "inverse_frequency", loss, inverse_frequency())
case("loss.label_smoothing", "0.3", loss, cross_entropy(label_smoothing=0.3))
case("loss.reduction", "sum", loss, cross_entropy(reduction="sum"))
case("loss.ohem", "0.3", loss, pytest.approx(float(F.cross_entropy(LOGITS[:3], LABELS[:3], reduction="none").max())))
case("loss.focal_gamma", "0.5", loss, focal(0.5), "loss.terms={focal: 1.0}")


# --- Optimiser and schedule


def at_first_step(*wanted: str) -> Callable[..., set[Any]]:
    """Return what the optimiser's groups have of the names given."""

    def look(*overrides: str) -> set[Any]:
        found = {tuple(group[name] for name in wanted) for group in tried(*overrides).steps[0]}
        return found if len(wanted) > 1 else {value for (value,) in found}

    return look


def ratios(*overrides: str) -> Any:
    """Return how much smaller the rate of each block of the encoder is than that of the next, the last one's first."""
    rates = sorted({rate for part, rate in at_first_step("name", "lr")(*overrides) if part == "encoder"}, reverse=True)
    return rates[0], sorted({round(after / before, 6) for before, after in pairwise(rates)})


RATES = at_first_step("name", "lr")
for kind, name in (("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD")):
    key, own = f"optimizer.{kind}", f"optimizer={{kind: {kind}, lr: 0.01, encoder_lr: 0.001}}"
    another = "optimizer={kind: %s}" % ("sgd" if kind == "adam" else "adam")
    case(f"{key}.kind", own, lambda *o: set(tried(*o).kinds), {name}, another)
    case(f"{key}.lr", "0.5", RATES, {("decoder", 0.5), ("encoder", 0.001)}, own)
    case(f"{key}.encoder_lr", "0.5", RATES, {("decoder", 0.01), ("encoder", 0.5)}, own)
    scale = 1 / 4 if kind == "sgd" else 1 / 2
    case(f"{key}.reference_batch", "8", RATES, {("decoder", 0.01 * scale), ("encoder", 0.001 * scale)}, own)
    case(
        f"{key}.bias_lr_factor",
        "2",
        RATES,
        {("decoder", 0.01), ("decoder", 0.02), ("encoder", 0.001), ("encoder", 0.002)},
        own,
    )
    case(f"{key}.layer_decay", "0.5", ratios, (0.001, [0.5]), own)
    case(f"{key}.weight_decay", "0.25", at_first_step("weight_decay"), {0.0, 0.25}, own)
    case(f"{key}.fused", "true", at_first_step("fused"), {True}, own, how="on a CPU")
SGD = "optimizer={kind: sgd, lr: 0.01, encoder_lr: 0.001}"
case("optimizer.sgd.momentum", "0.5", at_first_step("momentum"), {0.5}, SGD)
case("optimizer.sgd.nesterov", "true", at_first_step("nesterov"), {True}, SGD)


def factors(*overrides: str) -> Any:
    """Return by what the decoder's rate of 0.01 is multiplied at each of four steps, each an epoch."""
    seen = fitted(*overrides, WHOLE, "trainer.epochs=4")
    return [
        group["lr"] / 0.01 for groups in seen.steps for group in groups[:1] + groups[-1:] if group["name"] == "decoder"
    ]


def falls(*numbers: float) -> Any:
    return pytest.approx(numbers, abs=1e-6)


HALF = 0.5**0.5
COSINE = [1, (1 + HALF) / 2, 0.5, (1 - HALF) / 2]
SCHEDULES = {
    "cosine": ("schedule={kind: cosine}", COSINE, [1, 0.5]),
    "poly": ("schedule={kind: poly}", [(1 - k / 4) ** 0.9 for k in range(4)], [1, 0.5**0.9]),
    "step": ("schedule={kind: step, epochs: [3]}", [1, 1, 1, 0.1], [1, 0.1]),
    "constant": ("schedule={kind: constant}", [1, 1, 1, 1], [1, 1]),
}
"""Of each kind: its section, the factors at four steps, and those that come after two steps of warm-up."""

for kind, (section, usual, warm) in SCHEDULES.items():
    another = "schedule={kind: cosine}" if kind == "constant" else "schedule={kind: constant}"
    case(f"schedule.{kind}.kind", section, factors, falls(*usual), another)
    case(f"schedule.{kind}.warmup_steps", "2", factors, falls(0.5, 1, *warm), section)
case("schedule.cosine.final", "0.5", factors, falls(*(0.5 + factor / 2 for factor in COSINE)), SCHEDULES["cosine"][0])
case("schedule.poly.power", "2", factors, falls(1, 9 / 16, 4 / 16, 1 / 16), SCHEDULES["poly"][0])
case("schedule.step.epochs", "[1, 3]", factors, falls(1, 0.1, 0.1, 0.01), SCHEDULES["step"][0])
case("schedule.step.factor", "0.5", factors, falls(1, 1, 1, 0.5), SCHEDULES["step"][0])


# --- Trainer


def table(*columns: str) -> Callable[..., list[Any]]:
    """Return columns of the table that a run leaves."""
    return lambda *overrides: [tuple(row[name] for name in columns) for row in rows(trained(*overrides).run)]


def validated(*overrides: str) -> list[bool]:
    return [row["mean_iu"] != "" for row in rows(trained(*overrides).run)]


def norms(*overrides: str) -> list[float]:
    return [sum(group["square"] for group in groups) ** 0.5 for groups in tried(*overrides).steps]


def best_is_last(*overrides: str) -> bool:
    best, last = (checkpoint.load(trained(*overrides).run / f"checkpoints/{name}.ckpt") for name in ("best", "last"))
    return all(torch.equal(tensor, last["model"][name]) for name, tensor in best["model"].items())


def checkpoints(*overrides: str) -> list[int]:
    return [step for name, step in trained(*overrides).saved if name == "last.ckpt"]


def within_an_epoch(*overrides: str) -> bool:
    return bool({*checkpoints(*overrides)} - {4, 8})


def pictures(*overrides: str) -> list[tuple[str, int]]:
    """Return which pictures are drawn, and of how many images; each takes 200 rows of pixels."""
    folder = trained(*overrides).run / "samples"
    return [(path.name, Image.open(path).height // 200) for path in sorted(folder.glob("*"))]


def fact(name: str) -> Callable[..., set[Any]]:
    return lambda *overrides: {facts[name] for facts in tried(*overrides).facts}


def in_order(*overrides: str) -> bool:
    """Tell whether the channels of all images come last in memory."""
    return all(i.is_contiguous(memory_format=torch.channels_last) for i in tried(*overrides).inputs[True])


@once
def compiled(*overrides: str) -> list[str]:
    """Return what torch is asked to compile, which would take too long here."""
    with patch("torch.compile", side_effect=lambda network: network) as compile_:
        watched(lambda seen: command(seen, overrides, "--dry-run"))
    return [network.name for (network,), _ in compile_.call_args_list]


@once
def refusal(*overrides: str) -> str:
    code, _, err = run_command("train", *written(overrides), "--dry-run")
    return err if code else ""


def synchronised(*overrides: str) -> bool:
    """Tell whether a loop takes batch statistics over all processes; a CPU's is refused before it is built."""
    recipe = read(overrides)
    built = build(recipe)
    Loop(launch(read(()).trainer), recipe, built, None)
    return any(isinstance(module, nn.SyncBatchNorm) for module in built.model.modules())


@once
def logged(*overrides: str) -> tuple[list[str], list[int]]:
    """Return which loggers are opened, and after which steps they are told something."""
    logger = MagicMock()
    with patch("fcn_smp.training.run.open_loggers", return_value=[logger]) as open_:
        trained.__wrapped__(*overrides)
    return list(open_.call_args.args[0]), [call.args[1] for call in logger.log.call_args_list]


def asked(name: str) -> Callable[..., Any]:
    return lambda *overrides: asked_of_fabric(*overrides)[name]


REFUSAL = "fcn-smp: trainer.sync_batchnorm works on GPUs alone; leave it out.\n"
STUCK = "optimizer={kind: sgd, lr: 1e-12, encoder_lr: 1e-12}"  # calls everything ground, as at the start
SHORT = "trainer.epochs=1"
case("trainer.epochs", "3", table("epoch", "step"), [("1", "4"), ("2", "8"), ("3", "12")])
case("trainer.batch_size", "4", lambda *o: [len(image) for image in fitted(*o).inputs[True]], [4, 4], SHORT)
case("trainer.accumulate", "2", lambda *o: [len(image) for image in tried(*o).inputs[True]], [1] * 4)
case("trainer.validate_every", "2", validated, [False, True])
case("trainer.early_stop", "1", table("epoch"), [("1",), ("2",)], STUCK, "trainer.epochs=3")
case("trainer.gradient_clip", "0.001", norms, pytest.approx([0.001] * 2, rel=1e-3))
case("trainer.ema", "0.5", best_is_last, False, SHORT)
case("trainer.checkpoint_minutes", "1e-9", within_an_epoch, True)
case("trainer.checkpoint_steps", "3", checkpoints, [3, 4, 6, 8])
case("trainer.samples", "2", pictures, [("epoch-001.png", 2), ("epoch-002.png", 2)])
case("trainer.samples", "0", pictures, [])
case("trainer.workers", "1", fact("children"), {1})
case("trainer.precision", "bf16", lambda *o: tried(*o).types, {torch.bfloat16})
case("trainer.precision", "fp16", asked("precision"), "16-mixed", how="as Fabric is asked")
case("trainer.channels_last", "false", in_order, False)
case("trainer.compile", "true", compiled, ["fcn8s-test_resnet"], how="as torch is asked")
case("trainer.deterministic", "true", fact("deterministic"), {True}, how="on a CPU")
case("trainer.deterministic", "true", fact("benchmark"), {False}, how="as cuDNN is told")
case("trainer.accelerator", "cuda", asked("accelerator"), "cuda", how="as Fabric is asked")
case("trainer.devices", "2", asked("devices"), 2, how="as Fabric is asked")
case("trainer.num_nodes", "2", asked("num_nodes"), 2, how="as Fabric is asked")
case("trainer.strategy", "ddp", asked("strategy"), "ddp", how="as Fabric is asked")
case("trainer.sync_batchnorm", "true", refusal, REFUSAL, how="as a CPU refuses it")
case("trainer.sync_batchnorm", "true", synchronised, True, how="where a CPU would be allowed")
case(
    "trainer.loggers", "[tensorboard, wandb]", logged, (["tensorboard", "wandb"], [4]), SHORT, how="as they are opened"
)
case("trainer.collapse_steps", "2", lambda *o: "For 2 steps" in tried(*o).out, True, STUCK)


# --- The recipe itself


def run_of_its_own(*overrides: str) -> list[str]:
    """Return the names of the run directories that there are after a run whose directory is not named."""
    before = {path.name for path in Path("runs").glob("*")}
    watched(lambda seen: command(seen, overrides))
    return sorted({path.name for path in Path("runs").glob("*")} - before)


def epochs_of_stages(*overrides: str) -> dict[str, int]:
    """Return the stages that were run, and how many epochs each has."""
    return {path.parent.name: len(rows(path.parent)) for path in trained(*overrides).run.glob("*/metrics.csv")}


def images_in_order(*overrides: str) -> list[list[float]]:
    return [image[0, :, 0, 0].tolist() for image in tried(*overrides).inputs[True]]


case("name", "another", run_of_its_own, ["another"], SHORT)
case("seed", "1", looks(lambda model: next(model.encoder.parameters()).sum().item()), ...)
case("seed", "1", images_in_order, ..., "augmentation=null", "trainer.batch_size=1")
case("seed", "1", lambda *o: [sample.images.sum().item() for sample in draws(*o)], ...)
case("seed", "1", fact("seed"), ...)  # of dropout
case("stages", "{a: {trainer: {epochs: 1}}, b: {trainer: {epochs: 2}}}", epochs_of_stages, {"a": 1, "b": 2})
case("extends", "other.yaml", classes, (["background", "thing"], 2))


# --- The tests


def keys(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Give all keys of a recipe; in a section that may be of several kinds, its keys by kind."""
    for name, field in section.model_fields.items():
        sections = list(sections_of(field.annotation))
        if not sections or type(None) in get_args(field.annotation):
            yield prefix + name
        for inner in sections:
            kind = inner.model_fields.get("kind")
            yield from keys(inner, f"{prefix}{name}.{get_args(kind.annotation)[0]}." if kind else f"{prefix}{name}.")


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in () if get_origin(annotation) is Literal else get_args(annotation):
        yield from sections_of(inner)


def test_the_table_has_every_key_of_a_recipe_and_no_other():
    # What a recipe extends is a key of the file alone.
    beside = json_schema()["properties"].keys() - Recipe.model_fields.keys()
    assert beside == {"extends"}
    assert set(CASES) == {*keys(), *beside}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A recipe and all that it or another may need, at paths from the working directory on."""
    place = tmp_path_factory.mktemp("keys")
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare(monkeypatch, place)
        Path("other.yaml").write_text("data: {classes: {thing: [0]}}")
        Path("lists").mkdir()
        for name, content in (("train", TRAIN), ("val", VAL), ("one", ["t0"])):
            Path(f"lists/{name}.txt").write_text("\n".join(content))
        write_pictures(Path("pictures"))
        write_data()
        write_weights()
    yield place
    for clear in CACHES:
        clear()


@pytest.fixture(autouse=True)
def _inside(monkeypatch, place):
    prepare(monkeypatch, place)


def prepare(monkeypatch, place):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setattr(DemoScenes, "splits", {"train": 6, "val": 3, "test": 2})


@pytest.mark.filterwarnings("ignore:Of lists/train.txt, left out", "ignore:Of train, left out")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=key + f", {case.how}" * bool(case.how) + f"-{number}" * bool(number))
        for key, cases in CASES.items()
        for number, case in enumerate(cases)
    ],
)
def test_a_key_does_what_it_says(case):
    before = case.observe(*case.base)
    after = case.observe(*case.base, case.change)
    assert after != before
    if case.expected is ...:
        for clear in CACHES:
            clear()
        assert case.observe(*case.base) == before, "it differs from time to time anyway"
    else:
        assert after == (case.expected() if callable(case.expected) else case.expected)


@pytest.mark.parametrize("deterministic", ["false", "true"])
def test_cudnn_stays_on_while_a_network_is_trained(deterministic):
    assert fact("cudnn")(f"trainer.deterministic={deterministic}") == {True}
