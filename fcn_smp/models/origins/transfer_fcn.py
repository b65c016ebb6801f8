"""A trained classifier's last map, doubled up to half the size of the image."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from torch import nn

from fcn_smp.models.origins.base import LastMapDecoder, OriginNetwork, doublings


class TransferFCN(OriginNetwork):
    """The transfer network of the VOC 2007 project: a ResNet-50, and transposed convolutions on its last map.

    The decoder narrows the map to 1024 and 512 channels by 1x1 convolutions with ReLU, doubles it by 3x3 transposed
    convolutions with ReLU in 256, 128, 64 and 64 channels, the last two with batch norm, scores the result by a 1x1
    convolution, and interpolates the scores, of half the size of the image, bilinearly.

    Arguments, input and output are those of ``fcn_smp.models.origins.base.OriginNetwork``. What differs from the
    original: other encoders may be taken, of which the decoder undoes all halvings but one; the scores have the size
    of the image, not always 224x224; and the encoder is not frozen (``freeze_encoder()`` does that, and unlike the
    original it also keeps the running statistics of the encoder's norms).

    Source: https://github.com/jackljk/Semantic-Segementation-VOC2007 (``transfer_fcn.py``)
    """

    def __init__(
        self,
        encoder_name: str = "resnet50",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
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
        """Build the 1x1 and the transposed convolutions and the score."""
        widths = [512, *[256, 128, 64, 64][5 - doublings(self.encoder) :]]
        layers = [*_narrow(self.encoder.out_channels[-1]), *_enlarge(widths)]
        return LastMapDecoder(layers, nn.Conv2d(widths[-1], classes, kernel_size=1), interpolate=True)


def _narrow(in_channels: int) -> Iterator[nn.Module]:
    for width, channels in pairwise([in_channels, 1024, 512]):
        yield nn.Conv2d(width, channels, kernel_size=1)
        yield nn.ReLU(inplace=True)


def _enlarge(widths: list[int]) -> Iterator[nn.Module]:
    for step, (width, channels) in enumerate(pairwise(widths), 1):
        yield nn.ConvTranspose2d(width, channels, kernel_size=3, stride=2, padding=1, output_padding=1)
        yield nn.ReLU(inplace=True)
        if step > len(widths) - 3:  # the last two
            yield nn.BatchNorm2d(channels)
