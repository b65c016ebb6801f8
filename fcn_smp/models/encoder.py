"""Encoders by name, with weights by name or from a file."""

import difflib
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import segmentation_models_pytorch as smp
import timm
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from fcn_smp.models.pretrained import read_state_dict, weight_file
from fcn_smp.models.timm_encoder import TimmEncoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# SMP's own encoders whose weights were ported from a timm model of another name.
_TIMM_NAMES = {
    "inceptionv4": "inception_v4",
    "inceptionresnetv2": "inception_resnet_v2",
    "xception": "legacy_xception",
}


class Preprocessing(NamedTuple):
    """What a network expects of its input, in the words of SMP's ``get_preprocessing_params``."""

    mean: tuple[float, ...]
    """Of each channel, in the order of ``input_space`` and for values in ``input_range``."""
    std: tuple[float, ...]
    """Standard deviation of each channel, likewise."""
    input_space: Literal["RGB", "BGR"] = "RGB"
    """Order of the channels."""
    input_range: tuple[float, float] = (0, 1)
    """Smallest and largest value of a channel before the mean is subtracted: (0, 1) or (0, 255)."""
    resize: tuple[int, int] | None = None
    """Height and width to which every image is stretched, in pixels; None: the network sees it at its own size."""


def resolve_encoder_name(name: str) -> str:
    """Return the name by which SMP knows the encoder ``name``.

    SMP's own names come first, then ``tu-`` and bare timm names (``convnext_tiny``, ``resnet50.a1_in1k``).

    Raises:
        ValueError: No such encoder; the message names near ones.
    """
    if name in smp.encoders.encoders or smp.encoders.is_equivalent_to_timm_universal(name):
        return name
    timm_name, _, tag = name.removeprefix("tu-").partition(".")
    if timm.is_model(timm_name):
        try:
            timm.models.get_pretrained_cfg(name.removeprefix("tu-"))
        except RuntimeError as error:
            tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{timm_name}.*")]
            raise ValueError(
                f"timm has no weights {tag!r} for {timm_name}; it has {', '.join(tags) or 'none'}."
            ) from error
        return f"tu-{name.removeprefix('tu-')}"
    known = {*smp.encoders.encoders, *timm.list_models()}
    near = difflib.get_close_matches(timm_name, sorted(known), n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else " Any encoder of SMP or model of timm will do."
    raise ValueError(f"There is no encoder named {name!r}.{hint}")


def build_encoder(name: str, *, in_channels: int, depth: int, weights: str | None, **kwargs: Any) -> Any:
    """Build an encoder of SMP or timm.

    Args:
        name: A name as ``resolve_encoder_name`` takes it.
        in_channels: Channels of the input; weights of three channels are adapted to them.
        depth: Number of halvings, 3 to 5.
        weights: A name of pretrained weights (``"imagenet"``), None for random ones, or the path of a file
            (safetensors, or a PyTorch state dict) that holds the whole encoder; a classifier beside it is skipped.
        kwargs: ``output_stride``, or arguments of a timm model.

    Returns:
        A module that maps an image (N, in_channels, H, W) to a list of features, as those of SMP do.

    Raises:
        ValueError: The name, the depth, the weights or the file do not fit.
    """
    smp_name = resolve_encoder_name(name)
    if not 3 <= depth <= 5:
        raise ValueError(f"encoder_depth must be 3, 4 or 5, got {depth}.")
    path = weight_file(weights)
    named = None if path else weights
    if smp_name.startswith("tu-") and named not in (None, True, "imagenet"):
        raise ValueError(
            f"timm has no weights named {named!r}; set encoder_weights to 'imagenet', and choose among timm's by the"
            " encoder's name, as in resnet50.a1_in1k."
        )
    unknown = [key for key in kwargs if key != "output_stride"]
    if unknown and smp_name in smp.encoders.encoders:  # which would take anything and pass over it
        raise ValueError(f"Encoder {name!r} of SMP takes no argument {unknown[0]!r}; output_stride is the only one.")
    if named and not smp.encoders.encoders.get(smp_name, {}).get("pretrained_settings", True):
        raise ValueError(f"Encoder {name!r} has no pretrained weights; set encoder_weights to None (null in a recipe).")
    try:
        if smp_name.startswith("tu-"):
            encoder = TimmEncoder(
                smp_name.removeprefix("tu-"),
                in_channels=in_channels,
                depth=depth,
                pretrained=named is not None,
                **kwargs,
            )
        else:
            encoder = smp.encoders.get_encoder(smp_name, in_channels=in_channels, depth=depth, weights=named, **kwargs)
    except (KeyError, ValueError, AssertionError, TypeError, IndexError) as error:
        # Whatever SMP and timm raise where options do not suit a network. str() of a KeyError quotes its message; an
        # assertion of timm has none.
        reason = error.args[0] if error.args else type(error).__name__
        if not_taken := re.search(r"unexpected keyword argument ('\w+')", str(reason)):
            reason = f"it takes no argument {not_taken[1]}."
        options = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise ValueError(f"Encoder {name!r} cannot be built{options and f' with {options}'}: {reason}") from error
    except OSError as error:
        raise ValueError(
            f"The weights {weights!r} of encoder {name!r} cannot be fetched; without a network, give encoder_weights"
            " the path of a file."
        ) from error
    if path:
        _load_file(encoder, path, in_channels)
    return encoder


def encoder_preprocessing(name: str, weights: str | None = None) -> Preprocessing:
    """Return what the weights of an encoder expect of the input.

    For named weights of SMP's own encoders SMP is asked, as it is for the weights themselves. Everything else is
    answered offline, from timm's configuration of the same network; without one, by ImageNet's usual values.

    Args:
        name: Name of the encoder, as the networks take it.
        weights: Name of its weights, the path of a file, or None.

    Raises:
        ValueError: There is no such encoder.
    """
    smp_name = resolve_encoder_name(name)
    if not smp_name.startswith("tu-") and weights is not None and weight_file(weights) is None:
        params = smp.encoders.get_preprocessing_params(smp_name, pretrained=weights)
        mean, std, space, (low, high) = (params[key] for key in ("mean", "std", "input_space", "input_range"))
        return Preprocessing(tuple(mean), tuple(std), space, (low, high))
    timm_name = smp_name.removeprefix("tu-").removeprefix("timm-").replace("-", "_")
    config = timm.models.get_pretrained_cfg(_TIMM_NAMES.get(timm_name, timm_name), allow_unregistered=True)
    if config is None:
        return Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
    return Preprocessing(tuple(config.mean), tuple(config.std))


def _load_file(encoder: nn.Module, path: Path, in_channels: int) -> None:
    """Load every tensor of ``encoder`` from ``path``; tensors of the file that it does not have are skipped."""
    loaded = read_state_dict(path)
    own: dict[str, Tensor] = encoder.state_dict()
    # SMP wraps timm's networks in an attribute `model`, some of which timm itself has wrapped in `model` or `body`, and
    # timm calls some of their parts stem_0 instead of stem.0.
    flat = {key.replace(".", "_"): value for key, value in loaded.items()}
    state = {
        key: loaded.get(key, flat.get(re.sub(r"^model\.((model|body)\.)?", "", key).replace(".", "_"))) for key in own
    }
    missing = [key for key, value in state.items() if value is None and not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"{path} does not hold the weights of this encoder: it lacks {missing[0]!r}"
            f" and {len(missing) - 1} more of {len(own)} tensors."
        )
    for key, value in state.items():
        if value is None:
            continue
        if value.ndim == 4 and value.shape[1] == 3 != in_channels and own[key].shape[1] == in_channels:
            value = adapt_input_conv(in_channels, value.float())
        if value.shape != own[key].shape:
            raise ValueError(
                f"{path} is of another network: {key!r} has shape {tuple(value.shape)},"
                f" the encoder's has {tuple(own[key].shape)}."
            )
        own[key].copy_(value)
