"""From an encoder's features to the maps that the decoder scores, coarse to fine, by stride."""

from typing import Any

import torch.nn.functional as F
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from segmentation_models_pytorch.encoders.vgg import VGGEncoder
from torch import Tensor, nn


class Taps(nn.Module):
    """Choose, for each stride asked for, one map of the encoder's feature list.

    SMP numbers an encoder's features by level: feature ``k`` has stride ``2 ** k``, feature 0 the size of the input.
    The strides 32, 16, 8 ... ask for the levels 5, 4, 3 ...

    * A **VGG** encoder hands out its features *before* each pooling. The taps of the paper lie behind it, so
      pool3, pool4 and pool5 are recovered by pooling the feature of the level above.
    * In a **dilated** encoder and in a vision transformer, levels differ in depth but share a stride.
    * An encoder of **fewer levels** (``encoder_depth`` 3 or 4) is tapped from its last level on.
    * For a **missing** level (SMP's map of 0 channels) stands the next coarser map, scored at its own stride: the
      score is linear, so resampling the map first would only cost more.

    Args:
        encoder: An encoder as SMP or ``fcn_smp.models.timm_encoder.TimmEncoder`` builds it.
        finest_stride: The smallest stride asked for: 32, 16, 8, 4 or 2.

    Attributes:
        channels: Channels of each tap, coarse to fine.
        strides: Stride of each tap, coarse to fine.
    """

    def __init__(self, encoder: Any, finest_stride: int) -> None:
        super().__init__()
        widths: list[int] = list(encoder.out_channels)
        strides = getattr(encoder, "strides", [min(2**level, encoder.output_stride) for level in range(len(widths))])
        last = len(widths) - 1
        levels = list(range(last, min(finest_stride.bit_length() - 1, last) - 1, -1))
        pools = is_vgg(encoder)
        # A VGG's last feature is pool5 itself; every other tap is one level above its stride.
        self.sources = [level - 1 if pools and level < last else _nearest_present(level, widths) for level in levels]
        self.pooled = [source < level for source, level in zip(self.sources, levels, strict=True)]
        self.channels = [widths[source] for source in self.sources]
        self.strides = [strides[max(source, level)] for source, level in zip(self.sources, levels, strict=True)]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map the encoder's features, each (N, C_k, H_k, W_k), to the taps, coarse to fine."""
        taps: list[Tensor] = []
        for source, pooled in zip(self.sources, self.pooled):  # noqa: B905  (TorchScript)
            taps.append(F.max_pool2d(features[source], kernel_size=2) if pooled else features[source])
        return taps


def is_vgg(encoder: Any) -> bool:
    """Tell whether ``encoder`` is one of the VGG family, of SMP or of timm."""
    return isinstance(encoder, VGGEncoder) or (
        isinstance(encoder, TimmUniversalEncoder) and encoder.name.startswith("vgg")
    )


def _nearest_present(level: int, widths: list[int]) -> int:
    return next(k for k in range(level, len(widths)) if widths[k] > 0)
