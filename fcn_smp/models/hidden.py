"""What stands between the encoder's coarsest map and its score."""

from torch import nn


def build_hidden(
    in_channels: int, *, vgg: bool, channels: int | None, kernel: int | None, dropout: float | None
) -> tuple[nn.Module, int]:
    """Build the hidden layers for a map of ``in_channels``; None stands for the encoder family's default.

    Returns:
        The layers, which keep the map's size, and the number of channels that they give.

    Raises:
        ValueError: A value is out of range.
    """
    # VGG: its classifier turned convolutional (Long et al., CVPR 2015, section 4.1). Others: docs/hidden-layer.md
    # has the measurements behind the choice.
    default_channels, default_kernel, default_dropout = (4096, 7, 0.5) if vgg else (256, 3, 0.1)
    channels = default_channels if channels is None else channels
    kernel = default_kernel if kernel is None else kernel
    dropout = default_dropout if dropout is None else dropout
    if channels < 0:
        raise ValueError(f"decoder_hidden_channels must be 0 (no hidden layer) or more, got {channels}.")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"decoder_hidden_kernel must be odd, got {kernel}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"decoder_dropout must lie in [0, 1), got {dropout}.")
    if channels == 0:
        return nn.Identity(), in_channels
    build = fc6_fc7 if vgg else conv_norm_relu
    return build(in_channels, channels, kernel, dropout), channels


def fc6_fc7(in_channels: int, channels: int, kernel: int, dropout: float) -> nn.Sequential:
    """Build VGG's two fully connected layers as convolutions: (N, in_channels, h, w) to (N, channels, h, w)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(channels, channels, kernel_size=1),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )


def conv_norm_relu(in_channels: int, channels: int, kernel: int, dropout: float) -> nn.Sequential:
    """Build one normalised convolution: (N, in_channels, h, w) to (N, channels, h, w).

    A map of more than twice the hidden width is first squeezed by a 1x1 convolution, so that the layer costs a few
    percent of the encoder (for the 2,048 channels of a ResNet-50: 1.1 instead of 4.7 million weights).
    """
    layers: list[nn.Module] = []
    if in_channels > 2 * channels:
        layers += _conv(in_channels, channels, kernel=1)
        in_channels = channels
    layers += [*_conv(in_channels, channels, kernel), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _conv(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
