"""The recipe: everything that makes one run, typed and checked. The only place that knows YAML."""

import difflib
import re
import reprlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from inspect import isclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from fcn_smp.errors import UserError

if TYPE_CHECKING:
    from fcn_smp.data.dataset import SegmentationDataset

Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# A run directory must find its data from wherever it is used.
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]

STAGE_NAME = r"^[\w-]+$"
RESERVED = ("model", "checkpoints", "samples", "eval")
"""Folders of a run directory, which stages cannot be called."""


class Section(BaseModel):
    """A part of a recipe: no unknown keys, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Architecture = Literal[
    "fcn32s", "fcn16s", "fcn8s", "fcn4s", "fcn2s", "dilatedfcn",
    "plainfcn", "simplifiedunet", "classicunet", "transferfcn", "featurefcn8s", "featurefcn2s",
]  # fmt: skip


class Model(Section):
    """The network; the keys are arguments of its class, such as ``fcn_smp.models.fcn.FCN``."""

    arch: Architecture = Field(
        "fcn8s",
        description="The network: one of the paper's, torchvision's, or one of the projects that this one grew out of.",
    )
    binary: bool = Field(
        False,
        description="For data of two classes: one score with a sigmoid in place of two with a softmax, at the threshold"
        " that has the best mean IU on val.",
    )
    encoder_name: str = Field("resnet34", description="An encoder of SMP or a model of timm.")
    encoder_depth: Literal[3, 4, 5] = Field(
        5, description="Halvings in the encoder; with 5 its coarsest map has stride 32."
    )
    encoder_weights: str | None = Field("imagenet", description="A name that SMP knows, null, or the path of a file.")
    decoder_alignment: Literal["same", "caffe"] = Field(
        "same", description="caffe: the geometry of the released networks, for VGG encoders."
    )
    decoder_hidden_weights: str | None = Field(
        "classifier", description="What fc6 and fc7 of a VGG start from: classifier, imagenet, null or a file's path."
    )
    decoder_hidden_channels: int | None = Field(
        None,
        ge=0,
        description="Width of the hidden layers before the coarsest score; 0: none; null: 4096 with a VGG, whose hidden"
        " layers are fc6 and fc7, 256 with others.",
    )
    decoder_hidden_kernel: int | None = Field(
        None, ge=1, description="Kernel size of the first hidden layer, odd; null: 7."
    )
    decoder_dropout: Fraction | None = Field(
        None, description="Dropout rate of the hidden layers; null: 0.5 with a VGG, 0.1 with others."
    )
    decoder_skip_scales: list[float] | None = Field(
        None,
        description="Factors of the maps of the skips before they are scored, coarse to fine; [0.01, 0.0001] is the"
        " authors' FCN-8s trained at once. null: none.",
    )
    decoder_learn_upsampling: bool = Field(
        False,
        description="Learn the upsampling between maps, from bilinear on; else it stays bilinear. The last one always"
        " does.",
    )
    encoder_options: dict[str, Any] = Field({}, description="Passed to the encoder, such as {output_stride: 16}.")
    init_from: str | None = Field(
        None, description="A run, a model directory or a model of the Hub whose weights are where this one starts."
    )
    frozen: list[str] = Field([], description="Parts that are not trained, such as encoder or decoder.hidden.")
    frozen_epochs: Positive | None = Field(None, description="Epochs after which they are trained; null: never.")

    @field_validator("init_from")
    @classmethod
    def _is_absolute(cls, source: str | None) -> str | None:
        local = source is not None and Path(source).expanduser().exists()
        return str(Path(source).expanduser().absolute()) if source and local else source


Code = Annotated[int, Field(ge=0, le=255)] | tuple[Byte, Byte, Byte]
"""What a class is in a label: a number, or a colour."""


class DataSection(Section):
    """What all data sets have."""

    train: str = Field("train", description="Split that is trained on.")
    val: str = Field("val", description="Split that is validated on; it chooses the weights that are kept.")
    classes: dict[str, list[int | str] | Literal["rest"]] | None = Field(
        None,
        description="Classes made of the data set's, by number or name: {vehicle: [car, bus], background: rest}; what"
        " none takes is void. A single class, {road: [7]}, stands against the rest.",
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="skip: leave out what cannot be read, found by reading everything once, and say so."
    )
    cache: Literal["ram"] | None = Field(None, description="ram: training reads everything once and keeps it.")
    allow_overlap: bool = Field(False, description="Train although images of train are in val too.")

    def open(self, split: str, *, incomplete: bool = False) -> "SegmentationDataset":
        """Open one split with the classes of the recipe.

        Args:
            split: Name of the split, or the path of a list where the data set takes one.
            incomplete: Open it although files of it are missing, an error unless ``on_error`` skips them.

        Raises:
            UserError: The data set or a file is missing, or there is no such split or class.
        """
        from fcn_smp.data.dataset import IncompleteError

        try:
            dataset = self.open_whole(split)
        except IncompleteError as error:
            if not incomplete and self.on_error == "stop":
                raise
            dataset = error.dataset
        return dataset.select(self.classes) if self.classes else dataset

    def load(self, split: str) -> "SegmentationDataset":
        """Open what can be read of one split, as ``on_error`` says; what is left out is a warning.

        Raises:
            UserError: As ``open``, or nothing of the split can be read.
        """
        dataset = self.open(split)
        if self.on_error == "skip":
            dataset, complaints = dataset.readable()
            if not len(dataset):
                raise UserError(f"Nothing of the split {split} can be read: {complaints[0]}")
            if complaints:
                more = f" and {len(complaints) - 1} more" if len(complaints) > 1 else ""
                warnings.warn(f"Of {split}, left out: {complaints[0].rstrip('.')}{more}.", stacklevel=2)
        return dataset

    def open_whole(self, split: str) -> "SegmentationDataset":
        """Open one split with the classes that the data set has."""
        raise NotImplementedError


class VOCData(DataSection):
    """PASCAL VOC 2007 or 2012."""

    kind: Literal["voc"]
    year: Literal[2007, 2012] = Field(description="Which of the challenges' data sets.")
    root: AbsolutePath = Field(description="The folder that holds VOCdevkit, or the tar archive itself.")
    train: str = Field("train", description="A split, or the path of a text file with one id a line.")

    def open_whole(self, split: str) -> "SegmentationDataset":
        """Open one split with the classes that the data set has."""
        from fcn_smp.data.voc import VOCSegmentation

        return VOCSegmentation(self.root, split, self.year)


class SBDData(DataSection):
    """SBD alone; with VOC 2012 together it is of the kind ``voc``."""

    kind: Literal["sbd"]
    root: AbsolutePath = Field(description="The folder that fcn-smp data prepare sbd has filled.")

    def open_whole(self, split: str) -> "SegmentationDataset":
        """Open one split with the classes that the data set has."""
        from fcn_smp.data.sbd import SBD

        return SBD(self.root, split)


class CamVidData(DataSection):
    """CamVid in SegNet's classes."""

    kind: Literal["camvid"]
    root: AbsolutePath = Field(description="The folder that holds CamVid, or a tar archive of it.")
    void_class: bool = Field(False, description="Make void a twelfth class.")

    def open_whole(self, split: str) -> "SegmentationDataset":
        """Open one split with the classes that the data set has."""
        from fcn_smp.data.camvid import CamVid

        return CamVid(self.root, split, void_class=self.void_class)


class KITTIRoadData(DataSection):
    """KITTI road: road against the rest."""

    kind: Literal["kitti_road"]
    root: AbsolutePath = Field(description="The folder that holds data_road.")

    def open_whole(self, split: str) -> "SegmentationDataset":
        """Open one split with the classes that the data set has."""
        from fcn_smp.data.kitti_road import KITTIRoad

        return KITTIRoad(self.root, split)


class CARLAData(DataSection):
    """Drives in CARLA, as Lyft and Udacity gave them out."""

    kind: Literal["carla"]
    root: AbsolutePath = Field(description="A folder with CameraRGB and CameraSeg at any depth.")

    def open_whole(self, split: str) -> "SegmentationDataset":
        """Open one split with the classes that the data set has."""
        from fcn_smp.data.carla import CARLA

        return CARLA(self.root, split)


class FolderData(DataSection):
    """Images and labels of one's own; see ``fcn_smp.data.folder.ImageFolder``."""

    kind: Literal["folder"]
    root: AbsolutePath = Field(description="What holds both folders, or a tar archive of it.")
    images: str = Field("images", description="Folder of the images; {split} stands for the split's name.")
    labels: str = Field("labels", description="Folder of the labels, likewise.")
    label_suffix: str = Field("", description="What names of labels have more than those of images, such as _mask.")
    names: dict[str, Code] | list[str] | AbsolutePath = Field(
        description="The classes: names, {name: number}, {name: [red, green, blue]}, or the path of a text file."
    )
    void: list[Code] = Field([], description="Numbers or colours of no class. 255 is, unless it is a class.")
    train: str = Field("train", description="A split, or the path of a text file with one name a line.")
    val_share: float = Field(0.2, gt=0, lt=1, description="Share of val where splits are drawn.")
    seed: int = Field(0, ge=0, description="Seed of that drawing; another one gives other splits.")

    def open_whole(self, split: str) -> "SegmentationDataset":
        """Open one split with the classes that the data set has."""
        from fcn_smp.data.folder import ImageFolder, read_names

        names = self.names
        if isinstance(names, Path):
            names = read_names(names)
        elif isinstance(names, list):
            names = {name: number for number, name in enumerate(names)}
        options = self.model_dump(include={"images", "labels", "label_suffix", "void", "val_share", "seed"})
        return ImageFolder(self.root, split, names, **options)


class DemoData(DataSection):
    """The embedded scenes: drawn at first use, no download."""

    kind: Literal["demo"]
    root: AbsolutePath | None = Field(None, description="Where the scenes are written; null: the user's cache folder.")

    def open_whole(self, split: str) -> "SegmentationDataset":
        """Open one split with the classes that the data set has."""
        from fcn_smp.data.demo import DemoScenes

        return DemoScenes(self.root, split)


Data = Annotated[
    VOCData | SBDData | CamVidData | KITTIRoadData | CARLAData | FolderData | DemoData, Field(discriminator="kind")
]


class Augmentation(Section):
    """What happens to a training image; see ``fcn_smp.data.transforms.Augment``."""

    crop: Positive | tuple[Positive, Positive] = Field(
        480, description="Size of what the network is trained on, in pixels: one number, or [height, width]."
    )
    scale: tuple[Rate, Rate] = Field((0.5, 2.0), description="Smallest and largest factor of the random scale.")
    flip: Probability = Field(0.5, description="How likely an image is mirrored left to right.")
    color_jitter: Fraction = Field(
        0.3,
        description="Largest change of brightness, contrast and saturation as a factor, in four of five images; hue"
        " turns by a sixth of a circle times it at most.",
    )
    class_balance: Probability = Field(
        0.0, description="How likely a crop is laid around a pixel of a class drawn from those in the image."
    )

    @field_validator("scale")
    @classmethod
    def _is_in_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError("the smallest factor first, then the largest")
        return scale


class Preprocessing(Section):
    """What the network gets; but for resize, null is what its weights expect, of the encoder or ``model.init_from``."""

    mean: tuple[float, float, float] | None = Field(
        None, description="Mean of each channel, in the order of input_space."
    )
    std: tuple[Rate, Rate, Rate] | None = Field(None, description="Standard deviation of each channel, likewise.")
    input_space: Literal["RGB", "BGR"] | None = Field(None, description="Order of the channels.")
    input_range: tuple[Literal[0], Literal[1, 255]] | None = Field(None, description="Smallest and largest value.")
    resize: tuple[Positive, Positive] | None = Field(
        None,
        description="Height and width to which every image is stretched before anything else; null: none is. Scores are"
        " stretched back, so that images are scored and labelled at their own size.",
    )


class Loss(Section):
    """A weighted sum of losses over the labelled pixels; see ``fcn_smp.losses.SegmentationLoss``."""

    terms: dict[Literal["cross_entropy", "dice", "lovasz", "focal"], Rate] = Field(
        {"cross_entropy": 1.0}, description="The losses that are added up, each with its factor.", min_length=1
    )
    class_weights: (
        Literal["inverse_frequency", "median_frequency", "effective_number"] | list[Weight] | dict[str, Weight] | None
    ) = Field(
        None,
        description="Weights of the classes in cross-entropy: computed by a method, a number for each class, or by"
        " class name (others weigh 1). null: all 1.",
    )
    label_smoothing: Fraction = Field(
        0.0, description="Share of cross-entropy's target that is spread over all classes."
    )
    reduction: Literal["mean", "sum"] = Field(
        "mean",
        description="What becomes of cross-entropy over the labelled pixels; the authors' networks took the sum.",
    )
    ohem: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Share of the pixels that cross-entropy counts, those of largest loss; null: all."
    )
    focal_gamma: float = Field(2.0, ge=0, description="Exponent of focal; the larger, the less do easy pixels count.")


class Optimizer(Section):
    """What all optimisers have."""

    kind: str
    lr: Rate = Field(1e-3, description="Learning rate of the decoder.")
    encoder_lr: Rate = Field(3e-4, description="Learning rate of the encoder.")
    reference_batch: Positive | None = Field(
        None,
        description="The batch that the rates are meant for: with another one they follow it, in proportion with sgd,"
        " by the square root with adam and adamw. null: they stay.",
    )
    bias_lr_factor: Rate = Field(1.0, description="Factor of the rates for biases.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Factor of the rate from each block of the encoder to the one before it."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decay of the weights; biases and normalisation do not decay.")
    fused: bool | None = Field(None, description="Update all weights in one kernel; null: on CUDA, but for fp16.")


class AdamW(Optimizer):
    """Loshchilov and Hutter, ICLR 2019."""

    kind: Literal["adamw"]
    weight_decay: float = Field(1e-2, ge=0, description="Decay of the weights; biases and normalisation do not decay.")


class Adam(Optimizer):
    """Kingma and Ba, ICLR 2015; the decay is part of the gradient."""

    kind: Literal["adam"]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"]
    lr: Rate = Field(1e-2, description="Learning rate of the decoder.")
    encoder_lr: Rate = Field(1e-2, description="Learning rate of the encoder.")
    weight_decay: float = Field(5e-4, ge=0, description="Decay of the weights; biases and normalisation do not decay.")
    momentum: Fraction = Field(0.9, description="Share of the last step that is taken along into the next one.")
    nesterov: bool = Field(
        False, description="Take the gradient where the momentum leads (Sutskever et al., ICML 2013)."
    )


class Schedule(Section):
    """How the learning rate changes, step by step, after a linear warm-up."""

    kind: str
    warmup_steps: int = Field(0, ge=0, description="Steps in which the rate rises from near 0 to its value.")


class Cosine(Schedule):
    """Half a cosine (Loshchilov and Hutter, ICLR 2017, without restarts)."""

    kind: Literal["cosine"]
    final: Fraction = Field(0.0, description="Factor of the rate at the end.")


class Poly(Schedule):
    """(1 - progress) ** power (Chen et al., DeepLab, 2018, section 4.1)."""

    kind: Literal["poly"]
    power: float = Field(0.9, gt=0, description="Exponent; 1 falls in a straight line.")


class Step(Schedule):
    """Falls after certain epochs."""

    kind: Literal["step"]
    epochs: list[Positive] = Field(description="Epochs after which the rate falls.", min_length=1)
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="What it is multiplied by then.")


class Constant(Schedule):
    """The rate stays."""

    kind: Literal["constant"]


class Trainer(Section):
    """How long, how much at once, and on what."""

    epochs: Positive = Field(60, description="How often each training image is taken.")
    batch_size: Positive = Field(8, description="Images of a step, on all devices together.")
    accumulate: Positive = Field(1, description="Parts in which a device takes its share of a batch, to save memory.")
    validate_every: Positive = Field(1, description="Epochs between two validations.")
    early_stop: Positive | None = Field(None, description="Validations without a better mean IU that end the run.")
    gradient_clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; null: any.")
    ema: Fraction | None = Field(
        None, description="Decay of a moving average of the weights, such as 0.999, which is then validated and kept."
    )
    checkpoint_minutes: float | None = Field(10, gt=0, description="Minutes between checkpoints within an epoch.")
    checkpoint_steps: Positive | None = Field(None, description="Steps between them.")
    samples: int = Field(4, ge=0, description="Validation images that are drawn at each validation.")
    workers: int = Field(2, ge=0, description="Processes that load images, per device; 0: none.")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", description="auto: bf16 where it is fast.")
    channels_last: bool = Field(True, description="Order of the numbers in memory that most hardware wants.")
    compile: bool = Field(False, description="Compile the network: minutes at first, then faster.")
    deterministic: bool = Field(False, description="The same numbers on every run of a GPU; slower there.")
    accelerator: str = Field("auto", description="auto, cpu, cuda or mps.")
    devices: Positive | Literal["auto"] = Field(1, description="Devices per node.")
    num_nodes: Positive = Field(1, description="Machines that take part; the same command runs on each.")
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = Field(
        "auto", description="How devices share the work; the last one for networks of which parts have no gradient."
    )
    sync_batchnorm: bool = Field(False, description="Take batch statistics over all GPUs.")
    loggers: list[Literal["tensorboard", "wandb"]] = Field([], description="Where the metrics go besides metrics.csv.")
    collapse_steps: Positive = Field(
        300, description="Warn when all pixels were called background for so many steps in a row."
    )


class Recipe(Section):
    """One reproducible run."""

    name: str = Field(
        "run", description="Names the run directory, runs/NAME; where a file gives none, it is the file's own name."
    )
    seed: int = Field(0, ge=0, description="Seed of all that is random: weights, order, augmentation and dropout.")
    model: Model = Model()
    data: Data
    augmentation: Augmentation | None = Field(
        Augmentation(), description="null: whole images as they are, one at a time."
    )
    preprocessing: Preprocessing = Preprocessing()
    loss: Loss = Loss()
    optimizer: Annotated[AdamW | Adam | SGD, Field(discriminator="kind")] = AdamW(kind="adamw")
    schedule: Annotated[Cosine | Poly | Step | Constant, Field(discriminator="kind")] = Cosine(kind="cosine")
    trainer: Trainer = Trainer()
    stages: dict[str, dict[str, Any]] = Field(
        {}, description="Runs one after the other, each by name with what it changes; each starts from the last one."
    )

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not name or name in (".", "..") or "/" in name or "\\" in name:
            raise ValueError("usable as the name of a folder")
        return name

    @field_validator("stages")
    @classmethod
    def _are_folder_names(cls, stages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, stage in stages.items():
            if not re.fullmatch(STAGE_NAME, name) or name in RESERVED or "stages" in stage:
                raise ValueError(
                    f"named by letters and digits, not {', '.join(RESERVED)}, and without stages of its own"
                )
        return stages

    def staged(self) -> dict[str, "Recipe"]:
        """Return the recipe of each stage by its name; without stages, nothing.

        Raises:
            UserError: A key or value of a stage is wrong.
        """
        base = self.model_dump(mode="json", exclude={"stages"})
        return {name: _validate(_merge(base, stage), f"stages.{name}") for name, stage in self.stages.items()}

    def dump(self) -> str:
        """Return the whole recipe as YAML, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, what it extends, and overrides.

    Args:
        source: The path of a YAML file, or the name of a shipped recipe.
        overrides: ``section.key=value`` each; the value is read as YAML.

    Returns:
        The recipe with every default filled in; nothing of the data or the network is looked at.

    Raises:
        UserError: The file, a key or a value is wrong; the message names it.
    """
    path = find_recipe(str(source))
    content = _read(path, seen=())
    changes: dict[str, Any] = {}
    for override in overrides:
        changes = _merge(changes, _parse_override(override))
    _check_stage_names(path, content.get("stages"), changes.get("stages"))
    defaults = {"name": path.stem, "optimizer": {"kind": "adamw"}, "schedule": {"kind": "cosine"}}
    content = _merge(_merge(defaults, content), changes)
    if content.get("stages", {}) is None:  # how a recipe drops the stages of the one that it extends
        del content["stages"]
    elif isinstance(content.get("stages"), dict):
        content["stages"] = {name: _overridden(name, stage, changes) for name, stage in content["stages"].items()}
    recipe = _validate(content, str(path))
    try:
        recipe.staged()
    except UserError as error:
        raise UserError("\n".join(f"{path}: {sentence}" for sentence in str(error).splitlines())) from error
    return recipe


def _check_stage_names(path: Path, stages: Any, overridden: Any) -> None:
    known = list(stages) if isinstance(stages, dict) else []
    for name in overridden if isinstance(overridden, dict) else ():
        if name not in known:
            raise UserError(f"{path} has no stage {name}; its stages: {', '.join(known) or 'none'}.")


def _overridden(name: str, stage: Any, changes: Mapping[str, Any]) -> Any:
    """Let an override win over a stage, and an override of that stage over both."""
    if not isinstance(stage, dict):
        return {} if stage is None else stage
    general = {key: value for key, value in changes.items() if key != "stages"}
    return _merge(_merge(stage, general), changes.get("stages", {}).get(name) or {})


def _validate(content: Mapping[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {sentence}" for sentence in _sentences(error))) from error


def find_recipe(source: str) -> Path:
    """Return the path of a recipe file, or of the shipped recipe of that name.

    Raises:
        UserError: There is neither; the message names what is near.
    """
    path = Path(source)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if source in shipped:
        return shipped[source]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(shipped)}."
    raise UserError(f"There is no recipe {source}; {hint}")


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name: ``voc2007``, ``origins/keras-fcn``."""
    package = Path(str(resources.files("fcn_smp")))
    # In a wheel they lie inside the package, in a checkout beside it.
    folder = next(folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir())
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: path.with_suffix(""))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema()
    for part in schema["$defs"].values():
        if "kind" in part["properties"]:
            part["properties"]["kind"]["description"] = part["description"]
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "A recipe that this one changes: a path from this file on, or the name of a shipped one.",
    }
    # A recipe that extends another need not repeat what that says, such as the kind of its optimiser.
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
    for section in schema["properties"].values():
        if "oneOf" in section:
            section["anyOf"] = section.pop("oneOf")
    stage = {
        "type": ["object", "null"],
        "properties": {key: value for key, value in schema["properties"].items() if key not in ("extends", "stages")},
        "additionalProperties": False,
    }
    schema["properties"]["stages"] |= {
        "type": ["object", "null"],
        "propertyNames": {"pattern": STAGE_NAME, "not": {"enum": list(RESERVED)}},
        "additionalProperties": stage,
    }
    return schema


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path} extends itself.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, such as 'data: {{kind: demo}}'.")
    base = content.pop("extends", None)
    if base is None:
        return content
    beside = path.parent / str(base)
    parent = beside if beside.is_file() else find_recipe(str(base))
    return _merge(_read(parent, (*seen, path.resolve())), content)


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``change`` over ``base``, section by section; a section of another kind replaces the one before."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _replaces(key, old, value):
            merged[key] = _merge(old, value)
        elif isinstance(old, dict) and isinstance(value, dict):
            merged[key] = {kept: old[kept] for kept in _KEPT.get(key, ()) if kept in old} | value
        else:
            merged[key] = value
    return merged


_KEPT = {"schedule": ("warmup_steps",)}
"""Keys that a section keeps when it becomes one of another kind."""


def _replaces(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether the section ``key`` is now of another kind, which has other keys, or is no section.

    Which classes or losses there are is one value, though it is written as keys.
    """
    if key in ("classes", "names", "terms"):
        return True
    kinds = {section["kind"] for section in (old, new) if "kind" in section}
    return len(kinds) > 1 and len(_sections(key)) > 1


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{text!r} is no override; write key=value, such as trainer.epochs=3.")
    try:
        nested = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"The value of {key} cannot be read as YAML: {value!r}.") from error
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def _sentences(error: ValidationError) -> Iterator[str]:
    by_key: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():
        by_key.setdefault(_locate(detail["loc"])[1], []).append(detail)
    for key, (detail, *others) in by_key.items():
        match detail["type"]:
            case "extra_forbidden":
                known = _locate(detail["loc"])[0].model_fields
                near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
                yield f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}.")
            case "missing" if detail["loc"][-1] in key.split("."):
                yield f"the key {key} is missing."
            case "union_tag_not_found" | "union_tag_invalid":
                kinds = ", ".join(_sections(key))
                yield f"{key}.kind is {detail['input'].get('kind', 'missing')!r}; it should be one of {kinds}."
            case _:
                # A value that may be of several types fails once for each.
                wanted = dict.fromkeys(_wanted(d) for d in (detail, *others))
                yield f"{key} is {reprlib.repr(detail['input'])}; it should be {' or '.join(wanted)}."


def _wanted(detail: ErrorDetails) -> str:
    phrases = {
        "path_type": "a path",
        "missing": "a longer list",
        "too_long": "a shorter list",
        "too_short": "not empty",
        "dict_type": "keys and values",
    }
    if detail["type"] in phrases:
        return phrases[detail["type"]]
    message = detail["msg"].removeprefix("Value error, ")
    return (
        message.removeprefix("Input should be ")
        .removeprefix("Keys should be ")
        .split(", unable")[0]
        .split(" or instance of")[0]
    )


def _locate(location: tuple[int | str, ...]) -> tuple[type[BaseModel], str]:
    """Return the model in which an error lies, and its key as the user writes it: ``section`` or ``section.key``."""
    section, *inner = map(str, location)
    sections = _sections(section)
    if not sections or not inner:
        return Recipe, section
    kind = inner.pop(0) if len(sections) > 1 else next(iter(sections))
    return sections[kind], f"{section}.{inner[0]}" if inner else section


def _sections(key: str) -> dict[str, type[BaseModel]]:
    """Return the models that the key ``key`` of a recipe may stand for, by their ``kind``."""
    field = Recipe.model_fields.get(key)
    annotation = field.annotation if field else None
    models = [model for model in get_args(annotation) or (annotation,) if isclass(model) and issubclass(model, Section)]
    if len(models) == 1:
        return {"": models[0]}
    return {get_args(model.model_fields["kind"].annotation)[0]: model for model in models}
