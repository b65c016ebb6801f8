"""torchvision's weights: ``fcn_resnet50`` and ``fcn_resnet101``, and the classifiers of the VGG family (timm's too)."""

import re
from pathlib import Path

import torch
from torch import Tensor

from fcn_smp.errors import UserError
from fcn_smp.models.dilated import DilatedFCN
from fcn_smp.models.fcn import FCN
from fcn_smp.registry import ARCHITECTURES

_DILATED_KEYS = {
    r"backbone\.": "encoder.model.",
    r"classifier\.([01])\.": r"decoder.hidden.\1.",
    r"classifier\.4\.": "decoder.score.",
    r"aux_classifier\.([01])\.": r"auxiliary_decoder.hidden.\1.",
    r"aux_classifier\.4\.": "auxiliary_decoder.score.",
}


def build_dilated(state: dict[str, Tensor], path: Path) -> DilatedFCN:
    """Build the network of torchvision's ``fcn_resnet50`` or ``fcn_resnet101`` and load its weights.

    Raises:
        UserError: A weight is missing, has another shape or is none of such a network.
    """
    depth = "101" if "backbone.layer3.22.conv1.weight" in state else "50"
    classes = state.get("classifier.4.weight")
    if classes is None:
        raise UserError(f"{path} lacks classifier.4.weight of torchvision's fcn_resnet{depth}.")
    auxiliary = any(key.startswith("aux_classifier.") for key in state)
    model: DilatedFCN = DilatedFCN(
        f"tu-resnet{depth}", encoder_weights=None, decoder_auxiliary=auxiliary, classes=len(classes)
    )
    renamed = {_renamed(key): value for key, value in state.items()}
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip().rstrip(".")
        raise UserError(f"{path} is no fcn_resnet{depth} of torchvision: {reason}.") from error
    return model


def _renamed(key: str) -> str:
    for old, new in _DILATED_KEYS.items():
        if re.match(old, key):
            return re.sub(f"^{old}", new, key)
    return key


def build_from_classifier(state: dict[str, Tensor], path: Path, arch: str) -> tuple[FCN, list[str]]:
    """Turn a VGG classifier into a fully convolutional network (Long et al., CVPR 2015, section 3.1).

    fc6 and fc7 become convolutions, and so does the last layer, which becomes the coarsest score.

    Returns:
        The network, of as many classes as the classifier, and the keys that it has no use for.

    Raises:
        UserError: The weights are of another network.
    """
    convs = [key for key, value in state.items() if key.startswith("features.") and value.ndim == 4]
    names = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}
    last = next((name for name in ("head.fc", "classifier.6") if f"{name}.weight" in state), None)
    hidden = next((name for name in ("pre_logits.fc2", "classifier.3") if f"{name}.weight" in state), None)
    if len(convs) not in names or last is None or hidden is None:
        raise UserError(
            f"{path} is no whole classifier of the VGG family: it should have the convolutions under features. and"
            " three fully connected layers."
        )
    norm = any(key.endswith("running_mean") for key in state)
    classes = state[f"{last}.weight"]
    try:
        model = ARCHITECTURES[arch](
            encoder_name=names[len(convs)] + "_bn" * norm,
            encoder_weights=str(path),
            decoder_hidden_channels=len(state[f"{hidden}.weight"]),
            classes=len(classes),
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    with torch.no_grad():
        model.decoder.score.weight.copy_(classes.view_as(model.decoder.score.weight))
        model.decoder.score.bias.copy_(state[f"{last}.bias"])
    used = ("features.", "classifier.0.", "classifier.3.", "pre_logits.", f"{last}.")
    return model, [key for key in state if not key.startswith(used)]
