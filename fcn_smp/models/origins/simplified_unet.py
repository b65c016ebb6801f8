"""A U-Net without its skips."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import nn

from fcn_smp.models.origins.base import LastMapDecoder, OriginNetwork, doublings
from fcn_smp.models.origins.encoders import SingleConv


class SimplifiedUNet(OriginNetwork):
    """The "simplified U-Net" of the VOC 2007 project: one convolution a level, no skips, no batch norm.

    The decoder doubles the encoder's last map by 2x2 transposed convolutions with ReLU, each followed by a 3x3
    convolution with ReLU, in 256, 128 and 64 channels, and scores the result by a 1x1 convolution.

    Arguments, input and output are those of ``fcn_smp.models.origins.base.OriginNetwork``. The default encoder
    has no weights to start from. What differs from the original: other encoders may be taken, of which the decoder
    undoes as many halvings as there are (in 512 channels before the 256); the size of the image need not be a multiple
    of 8; and the layers start as PyTorch's do, not with biases drawn from a normal distribution of standard deviation
    1.

    Source: https://github.com/jackljk/Semantic-Segementation-VOC2007 (``custom_fcn.py``)
    """

    def __init__(
        self,
        encoder_name: str = "single_conv",
        encoder_depth: int = 3,
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
        """Build the levels of the decoder and the score."""
        count = doublings(self.encoder)
        widths = [self.encoder.out_channels[-1], *[512, 512, 256, 128, 64][5 - count :]]
        layers = [
            nn.Sequential(
                nn.ConvTranspose2d(width, channels, kernel_size=2, stride=2),
                nn.ReLU(inplace=True),
                SingleConv(channels, channels),
            )
            for width, channels in pairwise(widths)
        ]
        score = nn.Conv2d(widths[-1], classes, kernel_size=1)
        return LastMapDecoder(layers, score, interpolate=strides[-1] != 2**count)
