"""torchvision's weights: ``fcn_resnet50`` and ``fcn_resnet101``, and the classifiers of the VGG family (timm's too)."""

import re
from pathlib import Path

from torch import Tensor

from fcn_smp.errors import UserError
from fcn_smp.models.dilated import DilatedFCN
from fcn_smp.models.fcn import FCN
from fcn_smp.models.hidden import transplant
from fcn_smp.models.pretrained import in_caffe_names
from fcn_smp.registry import FCNS
from fcn_smp.weights.layers import Layers

_DILATED_KEYS = {
    r"backbone\.": "encoder.model.",
    r"classifier\.([01])\.": r"decoder.hidden.\1.",
    r"classifier\.4\.": "decoder.score.",
    r"aux_classifier\.([01])\.": r"auxiliary_decoder.hidden.\1.",
    r"aux_classifier\.4\.": "auxiliary_decoder.score.",
}


def build_dilated(state: dict[str, Tensor], path: Path) -> tuple[DilatedFCN, list[str]]:
    """Build the network of torchvision's ``fcn_resnet50`` or ``fcn_resnet101`` and load its weights.

    Args:
        state: The weights by torchvision's names.
        path: Where they come from, for messages.

    Returns:
        The network, and the keys that it has no use for.

    Raises:
        UserError: A weight is missing, has another shape or is none of such a network.
    """
    depth = "101" if "backbone.layer3.22.conv1.weight" in state else "50"
    classes = state.get("classifier.4.weight")
    if classes is None or classes.ndim != 4 or not len(classes):
        raise UserError(f"{path} lacks classifier.4.weight of torchvision's fcn_resnet{depth}.")
    auxiliary = any(key.startswith("aux_classifier.") for key in state)
    model: DilatedFCN = DilatedFCN(
        f"tu-resnet{depth}", encoder_weights=None, decoder_auxiliary=auxiliary, classes=len(classes)
    )
    renamed = {_renamed(key): value for key, value in state.items()}
    own = model.state_dict()
    try:
        model.load_state_dict({key: value for key, value in renamed.items() if key in own})
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip().rstrip(".")
        raise UserError(f"{path} is no fcn_resnet{depth} of torchvision: {reason}.") from error
    return model, [key for key in state if _renamed(key) not in own]


def _renamed(key: str) -> str:
    for old, new in _DILATED_KEYS.items():
        if re.match(old, key):
            return re.sub(f"^{old}", new, key)
    return key


def build_from_classifier(state: dict[str, Tensor], path: Path, arch: str) -> tuple[FCN, list[str]]:
    """Turn a VGG classifier into a fully convolutional network (Long et al., CVPR 2015, section 3.1).

    fc6 and fc7 become convolutions, and so does the last layer, which becomes the coarsest score.

    Args:
        state: The weights by torchvision's or timm's names.
        path: The file that they come from, of which the encoder is read.
        arch: ``"fcn32s"``, ``"fcn16s"`` ...

    Returns:
        The network, of as many classes as the classifier, and the keys that it has no use for.

    Raises:
        UserError: The weights are of another network.
    """
    encoders = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}
    convs = [key for key, value in state.items() if key.startswith("features.") and value.ndim == 4]
    if len(convs) not in encoders:
        raise UserError(f"{path} has {len(convs)} convolutions under features.; those of VGG have 8, 10, 13 or 16.")
    norm = any(key.endswith("running_mean") for key in state)
    layers = Layers(in_caffe_names(state), path)
    width, classes = layers.count("fc6.weight"), layers.count("fc8.weight")
    shapes = {"fc6": (width, 512, 7, 7), "fc7": (width, width, 1, 1), "fc8": (classes, width, 1, 1)}
    classifier = {}
    for name, shape in shapes.items():
        classifier[f"{name}.weight"] = layers.take(f"{name}.weight", shape)
        classifier[f"{name}.bias"] = layers.take(f"{name}.bias", shape[:1])
    try:
        model: FCN = FCNS[arch](
            encoder_name=encoders[len(convs)] + "_bn" * norm,
            encoder_weights=str(path.absolute()),
            decoder_hidden_weights=None,
            decoder_hidden_channels=width,
            classes=classes,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    transplant(model.decoder.hidden, classifier)
    model.decoder.score.load_state_dict({"weight": classifier["fc8.weight"], "bias": classifier["fc8.bias"]})
    return model, [key for key in layers.unused if not key.startswith("features.")]
