"""The U-Net, with padding and batch norm.

Olaf Ronneberger, Philipp Fischer, Thomas Brox: U-Net: convolutional networks for biomedical image segmentation.
MICCAI 2015, https://arxiv.org/abs/1505.04597
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fcn_smp.models.origins.base import OriginNetwork
from fcn_smp.models.origins.encoders import DoubleConv


class UpConv(nn.Module):
    """Double a map, append the encoder's map of that size to its channels, and convolve twice.

    Args:
        in_channels: Channels of the map.
        skip_channels: Channels of the encoder's map; 0 where there is none.
        channels: Channels of the result.
    """

    def __init__(self, in_channels: int, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, channels, kernel_size=2, stride=2)
        self.convs = DoubleConv(channels + skip_channels, channels)
        self.has_skip = skip_channels > 0

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) and the encoder's (N, skip_channels, 2H, 2W) to (N, channels, 2H, 2W)."""
        x = self.upsample(x)
        if self.has_skip:
            x = torch.cat([x, skip], dim=1)
        output: Tensor = self.convs(x)
        return output


class ClassicUNetDecoder(nn.Module):
    """The expanding path of the U-Net: a level for each halving of the encoder, then a 1x1 convolution.

    Args:
        encoder_channels: Channels of each feature of the encoder, fine to coarse; 0 where there is none.
        classes: Number of classes C.
    """

    def __init__(self, encoder_channels: list[int], classes: int) -> None:
        super().__init__()
        *skips, last = encoder_channels
        widths = [last, *[1024, 512, 256, 128, 64][5 - len(skips) :]]
        self.levels = nn.ModuleList(
            UpConv(width, skip, channels)
            for (width, channels), skip in zip(pairwise(widths), reversed(skips), strict=True)
        )
        self.score = nn.Conv2d(widths[-1], classes, kernel_size=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the encoder's features, each half the size of the one before it, to scores (N, C, H, W)."""
        x = features[-1]
        for k, level in enumerate(self.levels):
            x = level(x, features[len(features) - 2 - k])
        scores: Tensor = self.score(x)
        return scores


class ClassicUNet(OriginNetwork):
    """The U-Net of Ronneberger et al., with the padding and the batch norm of the VOC 2007 project.

    64, 128, 256, 512 and 1024 channels, two 3x3 convolutions a level, max pooling down, 2x2 transposed convolutions
    up, skips by concatenation. The paper's convolutions have neither padding nor norms, so that its scores are smaller
    than the image.

    Both convolutions of a level share one batch norm, in the encoder as in the decoder, as in the project: what it
    learns, and in evaluation its running statistics, serve two layers. (``smp.Unet`` has one for each.)

    Arguments, input and output are those of ``fcn_smp.models.origins.base.OriginNetwork``. The default encoder
    has no weights to start from. What differs from the original: other encoders may be taken whose maps have the
    strides 1, 2, 4 ...; a level that an encoder lacks has no skip, and its feature 0, if only the image, is a skip all
    the same; and the size of the image need not be a multiple of 16, where the original crops what is left over.

    Source: https://github.com/jackljk/Semantic-Segementation-VOC2007 (``unet_with_crop.py``), and Ronneberger et al.,
    MICCAI 2015, https://arxiv.org/abs/1505.04597
    """

    def __init__(
        self,
        encoder_name: str = "double_conv",
        encoder_depth: int = 4,
        encoder_weights: str | None = None,
        in_channels: int = 3,
        classes: int = 1,
        activation: str | Callable[..., Any] | None = None,
        aux_params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            encoder_name, encoder_depth, encoder_weights, in_channels, classes, activation, aux_params, **kwargs
        )

    def build_decoder(self, strides: list[float], classes: int) -> nn.Module:
        """Build the expanding path.

        Raises:
            ValueError: The encoder's maps do not halve from level to level.
        """
        levels = [level for level, stride in enumerate(strides) if stride]
        self.require([2**level for level in levels], [strides[level] for level in levels])
        return ClassicUNetDecoder(self.encoder.out_channels, classes)
