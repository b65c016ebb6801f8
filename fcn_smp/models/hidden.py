"""What stands between the encoder's coarsest map and its score."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fcn_smp.models.encoder import resolve_encoder_name
from fcn_smp.models.pretrained import vgg_classifier


def build_hidden(
    in_channels: int,
    *,
    vgg: bool,
    channels: int | None,
    kernel: int | None,
    dropout: float | None,
    padded: bool = True,
) -> tuple[nn.Module, int]:
    """Build the hidden layers for a map; None stands for the encoder family's default.

    Args:
        in_channels: Channels of the map.
        vgg: Whether the encoder is a VGG, whose hidden layers are fc6 and fc7.
        channels: Width of the hidden layers; 0 for none.
        kernel: Kernel size of the first one, odd.
        dropout: Dropout rate, in [0, 1).
        padded: Keep the map's size; only fc6 can do without.

    Returns:
        The layers, which keep the map's size if they are ``padded``, and the number of channels that they give.

    Raises:
        ValueError: A value is out of range.
    """
    # VGG: its classifier turned convolutional (Long et al., CVPR 2015, section 4.1). Others: the reasons, measured, are
    # in docs/explained/hidden-layer.md.
    default_channels, default_dropout = (4096, 0.5) if vgg else (256, 0.1)
    channels = default_channels if channels is None else channels
    kernel = 7 if kernel is None else kernel
    dropout = default_dropout if dropout is None else dropout
    if channels < 0:
        raise ValueError(f"decoder_hidden_channels must be 0 (no hidden layer) or more, got {channels}.")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"decoder_hidden_kernel must be odd, got {kernel}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"decoder_dropout must lie in [0, 1), got {dropout}.")
    if channels == 0:
        return nn.Identity(), in_channels
    if vgg:
        return fc6_fc7(in_channels, channels, kernel, dropout, padding=kernel // 2 if padded else 0), channels
    return separable_conv(in_channels, channels, kernel, dropout), channels


def fc6_fc7(in_channels: int, channels: int, kernel: int, dropout: float, padding: int) -> nn.Sequential:
    """Build VGG's two fully connected layers as convolutions: (N, in_channels, h, w) to (N, channels, h, w).

    Without padding the result is smaller by ``kernel`` - 1 pixels a side.

    Source: Long et al., CVPR 2015, section 3.1.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, padding=padding),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(channels, channels, kernel_size=1),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )


def separable_conv(in_channels: int, channels: int, kernel: int, dropout: float) -> nn.Sequential:
    """Build a light fc6 and fc7, a depthwise and a 1x1 convolution: (N, in_channels, h, w) to (N, channels, h, w).

    It sees as wide a window as fc6 but costs next to nothing: on the 2,048 channels of a ResNet-50 0.6 million
    weights, under one percent of the encoder's work, so that wide maps need not be squeezed first.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, kernel, padding=kernel // 2, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )


def start_from_classifier(
    hidden: nn.Module, weights: str | None, encoder_name: str, encoder_weights: str | None
) -> None:
    """Let fc6 and fc7 start from an ImageNet classifier, if there is one.

    Args:
        hidden: The layers of ``fc6_fc7``.
        weights: ``"classifier"`` for the one that comes with the encoder's weights, ``"imagenet"``, the path of a file,
            or None.
        encoder_name: Name of the VGG encoder.
        encoder_weights: What the encoder started from.

    Raises:
        ValueError: The classifier that was asked for cannot be had or does not fit.
    """
    source = encoder_weights if weights == "classifier" else weights
    if source is None:
        return
    classifier = vgg_classifier(resolve_encoder_name(encoder_name), source)
    if classifier is not None:
        transplant(hidden, classifier)
    elif weights == "classifier":
        warnings.warn(
            f"{source} holds no fc6 and fc7, so they start from random weights; name a file that does with"
            " decoder_hidden_weights, or set that to None.",
            stacklevel=4,
        )
    else:
        raise ValueError(f"decoder_hidden_weights: {source} holds no fc6 and fc7 of a VGG.")


def transplant(hidden: nn.Module, classifier: Mapping[str, Tensor]) -> None:
    """Let fc6 and fc7 start from a VGG's fully connected layers (Long et al., CVPR 2015, section 3.1).

    Narrower layers and smaller kernels take evenly spaced channels and positions, which is how DeepLab-LargeFOV makes
    VGG's layers smaller (Chen et al., ICLR 2015).

    Args:
        hidden: The layers of ``fc6_fc7``.
        classifier: ``fc6.weight`` (N, C, k, k), ``fc7.weight`` (N, N, 1, 1), ``fc6.bias`` and ``fc7.bias`` (N).

    Raises:
        ValueError: The classifier is smaller than the layers, or of another network.
    """
    own_layers = hidden.state_dict()  # of layers 0 and 3, the convolutions
    for name, place in (("fc6", "0"), ("fc7", "3")):
        for kind in ("weight", "bias"):
            given, own = classifier[f"{name}.{kind}"], own_layers[f"{place}.{kind}"]
            if given.ndim != own.ndim or any(new > old for new, old in zip(own.shape, given.shape, strict=True)):
                raise ValueError(
                    f"The classifier's {name}.{kind} has shape {tuple(given.shape)}, from which"
                    f" {tuple(own.shape)} cannot be taken; make decoder_hidden_channels and decoder_hidden_kernel"
                    " smaller, or set decoder_hidden_weights to None."
                )
            own.copy_(_evenly_spaced(given, own.shape))


def _evenly_spaced(weight: Tensor, shape: torch.Size) -> Tensor:
    for dim, (old, new) in enumerate(zip(weight.shape, shape, strict=True)):
        if new < old:
            weight = weight.index_select(dim, ((torch.arange(new) + 0.5) * old / new).long())
    return weight
