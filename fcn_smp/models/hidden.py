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
    build = fc6_fc7 if vgg else separable_conv
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
