"""FCNs that add features, not scores."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from fcn_smp.models.origins.base import OriginNetwork
from fcn_smp.models.taps import Taps


class FeatureFCNDecoder(nn.Module):
    """Double the coarsest tap and add the next one, again and again; the last upsampling gives the scores.

    Every upsampling is a transposed convolution without bias whose kernel is as large as its stride. Nothing in the
    decoder is nonlinear.

    Args:
        taps: Chooses the maps to add among the encoder's features; each must be half as large as the next one.
        classes: Number of classes C.
    """

    def __init__(self, taps: Taps, classes: int) -> None:
        super().__init__()
        self.taps = taps
        self.upsamplings = nn.ModuleList(_upsampling(coarse, fine, 2) for coarse, fine in pairwise(taps.channels))
        self.score = _upsampling(taps.channels[-1], classes, taps.strides[-1])

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the encoder's features to scores (N, C, H, W) of the input's size."""
        taps = self.taps(features)
        x = taps[0]
        for k, upsample in enumerate(self.upsamplings):
            x = upsample(x) + taps[k + 1]
        scores: Tensor = self.score(x)
        return scores


def _upsampling(in_channels: int, channels: int, factor: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, channels, kernel_size=factor, stride=factor, bias=False)


class FeatureFCN(OriginNetwork):
    """Base of ``FeatureFCN8s`` and ``FeatureFCN2s``.

    Where FCN-8s scores each map and adds the scores, these bring each map to the channels of the next one by a learned
    upsampling and add the features. There is nothing of fc6 and fc7.

    Arguments, input and output are those of ``fcn_smp.models.origins.base.OriginNetwork``. What differs from the
    original: other encoders may be taken whose maps have all the strides from the coarsest to the finest that is
    added; the size of the image need not be a multiple of 32; the softmax is left to the loss (``activation`` adds
    it); and the layers start as PyTorch's do, not as those of Keras.

    Source: https://github.com/albertnew2012/Fully-Convolutional-Networks-for-Semantic-Segmentation-tensorflow-2.x
    """

    finest_stride: ClassVar[int]
    """Stride of the finest map that is added, and the factor of the last upsampling."""

    def __init__(
        self,
        encoder_name: str = "vgg16",
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
        """Build the upsamplings.

        Raises:
            ValueError: The encoder lacks a map that is to be added.
        """
        taps = Taps(self.encoder, self.finest_stride)
        found = [strides[source] * (1 + pooled) for source, pooled in zip(taps.sources, taps.pooled, strict=True)]
        finest = min(self.finest_stride, 2 ** (len(strides) - 1))
        self.require([finest * 2**step for step in reversed(range(len(found)))], found)
        return FeatureFCNDecoder(taps, classes)


class FeatureFCN8s(FeatureFCN):
    """The FCN8 of albertnew2012: features of stride 32, 16 and 8 added, then 8 times enlarged in one step.

    Arguments, input, output and source are those of ``FeatureFCN``.
    """

    finest_stride = 8


class FeatureFCN2s(FeatureFCN):
    """The FCN2s of albertnew2012: features of stride 32, 16, 8, 4 and 2 added, then doubled.

    Arguments, input, output and source are those of ``FeatureFCN``.
    """

    finest_stride = 2
