"""Which format a file has, and how each becomes a model with its preprocessing and classes."""

from pathlib import Path
from typing import Any, NamedTuple

from segmentation_models_pytorch.base import SegmentationModel

from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.errors import UserError
from fcn_smp.models.encoder import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from fcn_smp.models.pretrained import read_state_dict
from fcn_smp.registry import FCNS
from fcn_smp.segmenter import Segmenter
from fcn_smp.weights.caffe import read_caffemodel
from fcn_smp.weights.class_names import PASCAL_CONTEXT, SIFT_FLOW
from fcn_smp.weights.keras import read_keras
from fcn_smp.weights.layers import Layers, build, found_arch, is_classifier
from fcn_smp.weights.own import fold_skip_scales, transfer
from fcn_smp.weights.torchvision import build_dilated, build_from_classifier

# The authors' solvers and torchfcn subtract this mean; that of SIFT Flow's is its own.
CAFFE = Preprocessing((104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0), "BGR", (0, 255))
CAFFE_SIFT_FLOW = CAFFE._replace(mean=(114.578, 115.294, 108.353))
KERAS = CAFFE._replace(mean=(103.939, 116.779, 123.68))
IMAGENET = Preprocessing(IMAGENET_MEAN, IMAGENET_STD)

AT_ONCE = (0.01, 0.0001)
"""Scales of pool4 and pool3 in the authors' FCN-8s that is trained at once."""


class Imported(NamedTuple):
    """What came of a file."""

    segmenter: Segmenter
    """The model with its preprocessing and classes; ``fcn_smp.segmenter.Segmenter.save`` writes it."""
    source: str
    """What the file is, in words."""
    unused: list[str]
    """Names of the tensors in the file that the model has no use for."""


def import_weights(path: str | Path, *, arch: str | None = None, at_once: bool = False) -> Imported:
    """Turn a file of somebody's weights into a model; what the file is, is found by looking.

    It may be a ``.caffemodel`` of the authors (voc, pascalcontext, siftflow's semantic head; 32s, 16s, 8s, at once)
    or of a VGG16 classifier, a state dict or checkpoint of torchfcn, a Keras-FCN or VGG16 ``.h5``, torchvision's
    ``fcn_resnet50`` and ``fcn_resnet101``, a VGG classifier of torchvision or timm, or a run or model directory of
    this package. Nothing in a file is executed.

    Args:
        path: The file or directory.
        arch: ``"fcn32s"``, ``"fcn16s"`` or ``"fcn8s"`` (for our own models also 4s and 2s), where the file leaves it
            open: a classifier becomes any of them (32s by default), a model of this package a finer one.
        at_once: The FCN-8s scales its skips by 0.01 and 0.0001. A caffemodel tells by itself; torchfcn's FCN8s and
            FCN8sAtOnce have the same keys. A model of this package keeps its scales; without the flag they are folded
            into the scores.

    Returns:
        The model with its preprocessing and classes, what the file is, and what of it is not used.

    Raises:
        UserError: The file is missing, damaged, of an unknown kind, or does not fit; the message says where.
    """
    path = Path(path)
    if arch is not None:
        _checked(arch, path)
    if path.is_dir():
        return _import_own(path, arch, at_once)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"\x89HDF"):
        return _import_layers(Layers(read_keras(path), path), "Keras", KERAS, arch, at_once)
    # Torch files are zip archives or, of old, pickles; a safetensors file begins with the length of its JSON header.
    if head.startswith((b"PK", b"\x80")) or head[8:] == b"{":
        return _import_state_dict(path, arch, at_once)
    tensors = read_caffemodel(path)
    if not tensors:
        raise UserError(f"{path} holds no weights of a known format: Caffe, torchfcn, torchvision, timm or Keras.")
    if "score_fr_sem.weight" in tensors:  # SIFT Flow's networks have a second, geometric head
        tensors = {name.replace("_sem.", "."): tensor for name, tensor in tensors.items()}
        return _import_layers(Layers(tensors, path), "Caffe", CAFFE_SIFT_FLOW, arch, at_once)
    return _import_layers(Layers(tensors, path), "Caffe", CAFFE, arch, at_once)


def _import_state_dict(path: Path, arch: str | None, at_once: bool) -> Imported:
    try:
        state = read_state_dict(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    if "conv1_1.weight" in state:
        return _import_layers(Layers(state, path), "torchfcn", CAFFE, arch, at_once)
    if "backbone.conv1.weight" in state:
        if arch or at_once:
            raise UserError(
                f"{path} is torchvision's dilated network, none of the paper's; leave the other options out."
            )
        model, unused = build_dilated(state, path)
        source = f"torchvision's {model.name.replace('dilatedfcn-tu-', 'fcn_')}"
        return Imported(_segmenter(model, IMAGENET, path), source, unused)
    if "features.0.weight" in state:
        arch = _checked(arch or "fcn32s", path)
        if at_once:
            raise UserError(f"{path} is a classifier, and none is trained at once; leave --at-once out.")
        network, unused = build_from_classifier(state, path, arch)
        source = f"a {network.name.partition('-')[2]} classifier of torchvision or timm"
        return Imported(_segmenter(network, IMAGENET, path), source, unused)
    raise UserError(
        f"{path} is of no known network; it has {', '.join(list(state)[:3])} ..., expected were the layers of torchfcn"
        " (conv1_1), of torchvision's FCN (backbone.conv1) or of a VGG classifier (features.0)."
    )


def _import_layers(
    layers: Layers, origin: str, preprocessing: Preprocessing, arch: str | None, at_once: bool
) -> Imported:
    classifier = is_classifier(layers)
    found = "fcn32s" if classifier else found_arch(layers)
    if arch not in (None, found) and not classifier:
        raise UserError(
            f"{layers.source} is an {found}, not an {arch}; import it as it is, then import the result with"
            f" --arch {arch}."
        )
    arch = _checked(arch or found, layers.source)
    if classifier and at_once:
        raise UserError(f"{layers.source} is a classifier, and none is trained at once; leave --at-once out.")
    scales = _skip_scales(layers, at_once) if not classifier else None
    if scales and arch != "fcn8s":
        raise UserError(f"{layers.source} is an {arch}; only an fcn8s is trained at once.")
    keras = origin == "Keras"
    model = build(
        layers,
        arch,
        alignment="same" if keras else "caffe",
        dropout=0.2 if keras else 0.5,
        skip_scales=scales,
    )
    what = "a VGG16 classifier" if classifier else f"an {arch}{' trained at once' if scales else ''}"
    return Imported(_segmenter(model, preprocessing, layers.source), f"{what} of {origin}", list(layers.unused))


def _skip_scales(layers: Layers, at_once: bool) -> list[float] | None:
    names = ("scale_pool4.weight", "scale_pool3.weight")
    if not any(name.startswith(("scale_pool4.", "scale_pool3.")) for name in layers.tensors):
        return list(AT_ONCE) if at_once else None
    scales = [layers.take(name) for name in names]
    if any(scale.ndim != 1 or not len(scale) for scale in scales):
        raise UserError(f"{layers.source}: the shapes of scale_pool4 and scale_pool3 should be numbers of channels.")
    if any(name.startswith("scale_") and name not in names for name in layers.tensors):
        raise UserError(f"{layers.source}: scale_pool4 or scale_pool3 has a bias, which no scale here has.")
    if any((scale != scale[0]).any() for scale in scales):
        raise UserError(f"{layers.source}: scale_pool4 and scale_pool3 should have one factor for all channels.")
    return [float(f"{scale[0].item():.7g}") for scale in scales]


def _import_own(path: Path, arch: str | None, at_once: bool) -> Imported:
    source = Segmenter.load(path)
    found = type(source.model).__name__.lower()
    if found not in FCNS:
        raise UserError(f"{path} is a {found}; only {', '.join(FCNS)} turn into each other.")
    decoder: Any = source.model.decoder
    if at_once and all(scale == 1 for scale in decoder.skip_scales):
        raise UserError(f"{path} has no skip scales that --at-once could keep.")
    if not at_once:
        fold_skip_scales(source.model)
    if arch in (None, found):
        return Imported(source, f"an {found} of fcn_smp", [])
    config = {key: value for key, value in source.model.config.items() if not key.startswith("_")}
    try:
        model = FCNS[_checked(arch, path)](**config)
    except ValueError as error:
        raise UserError(f"{path} cannot become an {arch}: {error}") from error
    transfer(source.model, model)
    unused = sorted(set(source.model.state_dict()) - set(model.state_dict()))
    segmenter = Segmenter(model, source.preprocessing, source.classes, source.palette)
    return Imported(segmenter, f"an {found} of fcn_smp", unused)


def _checked(arch: str | None, source: object) -> str:
    if arch not in FCNS:
        raise UserError(f"{source}: there is no network {arch!r}; it may be one of {', '.join(FCNS)}.")
    return arch


def _segmenter(model: SegmentationModel, preprocessing: Preprocessing, source: object) -> Segmenter:
    classes = model.config["classes"]
    known = {len(names): names for names in (VOCSegmentation.classes, PASCAL_CONTEXT, SIFT_FLOW)}
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise UserError(f"{source} holds values that are no numbers (NaN or infinity).")
    names = known.get(classes) or [f"class {k}" for k in range(classes)]
    return Segmenter(model, preprocessing, names, voc_palette())
