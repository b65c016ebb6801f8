"""Pretrained weights as state dicts: from a file, or by name from the Hugging Face Hub."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")

# Where the checkpoints of torchfcn, torchvision and many training scripts have the weights.
_CHECKPOINT_KEYS = ("model_state_dict", "state_dict", "model")

# Names of VGG's fully connected layers: timm's and torchvision's, and Caffe's for them.
_FULLY_CONNECTED = {
    "pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8",
    "classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8",
}  # fmt: skip


def weight_file(weights: str | bool | None) -> Path | None:
    """Return ``weights`` as a path where it names a file, not a set of pretrained weights."""
    if isinstance(weights, str) and (weights.endswith(WEIGHT_FILES) or re.search(r"[/\\]", weights)):
        return Path(weights).expanduser()
    return None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or one that ``torch.save`` wrote.

    Raises:
        ValueError: There is no such file, or it is damaged or holds something else; nothing in it is executed.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] == b"{":
            return safetensors.torch.load_file(path)
        # A file, since torch.load goes by a path's suffix; and torchvision's training script writes its arguments too.
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(f"{path} cannot be read as weights ({reason}).") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, or is damaged; only tensors are read.") from error
    except Exception as error:  # whatever a damaged zip raises
        raise ValueError(f"{path} is not a plain PyTorch state dict.") from error
    for key in _CHECKPOINT_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise ValueError(f"{path} is not a plain PyTorch state dict.")
    # What DataParallel wraps has a prefix.
    prefix = "module." if loaded and all(key.startswith("module.") for key in loaded) else ""
    return {key.removeprefix(prefix): value for key, value in loaded.items()}


def vgg_classifier(encoder_name: str, weights: str | bool) -> dict[str, Tensor] | None:
    """Return the first two fully connected layers that come with the weights of a VGG encoder.

    Args:
        encoder_name: Name by which SMP knows the encoder.
        weights: ``"imagenet"``, or the path of a file.

    Returns:
        ``fc6.weight`` of shape (N, C, k, k), ``fc7.weight`` (N, N, 1, 1) and their biases (N); None where
        ``weights`` holds no classifier.

    Raises:
        ValueError: A file cannot be read, or the classifier cannot be fetched.
    """
    path = weight_file(weights)
    if path:
        return _as_convolutions(read_state_dict(path))
    if weights not in ("imagenet", True):  # True is how SMP would have it for timm's encoders
        raise ValueError(f"decoder_hidden_weights must be 'imagenet', the path of a file or None, got {weights!r}.")
    # SMP's weights and timm's are torchvision's; SMP does not keep the classifier, timm does.
    config = timm.models.get_pretrained_cfg(encoder_name.removeprefix("tu-"))
    try:
        return _as_convolutions(timm.models.load_state_dict_from_hf(config.hf_hub_id))
    except OSError as error:
        raise ValueError(
            f"ImageNet's classifier for {encoder_name!r} cannot be fetched; without a network, give"
            " decoder_hidden_weights the path of a file, or None for fc6 and fc7 from random weights."
        ) from error


def _as_convolutions(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    layers = in_caffe_names(state)
    names = ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias")
    if any(name not in layers for name in names) or layers["fc6.weight"].ndim != 4:
        return None
    return {name: layers[name] for name in names}


def in_caffe_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the fully connected layers of a VGG fc6, fc7 and fc8, as convolutions; other tensors stay as they are."""
    named = {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        name = f"{_FULLY_CONNECTED[layer]}.{kind}" if layer in _FULLY_CONNECTED else key
        named[name] = as_convolution(name, tensor)
    return named


def as_convolution(name: str, tensor: Tensor) -> Tensor:
    """Give the weight of one of VGG's fully connected layers, by Caffe's name, the shape of a convolution's."""
    if name == "fc6.weight" and tensor.ndim == 2 and tensor.shape[1] == 512 * 7 * 7:
        return tensor.view(-1, 512, 7, 7)  # it takes the 512 maps of 7x7 pixels one after the other
    if name in ("fc7.weight", "fc8.weight") and tensor.ndim == 2:
        return tensor[:, :, None, None]
    return tensor
