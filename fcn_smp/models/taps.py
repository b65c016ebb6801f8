"""From an encoder's features to the maps that the decoder scores, coarse to fine, by stride."""

from typing import Any

import torch.nn.functional as F
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from segmentation_models_pytorch.encoders.vgg import VGGEncoder
from torch import Tensor, nn


class Taps(nn.Module):
    """Choose, for each stride asked for, one map of the encoder's feature list.

    SMP numbers an encoder's features by level: feature ``k`` has stride ``2 ** k`` (less where the encoder is
    dilated), feature 0 the size of the input.

    * A **VGG** encoder hands out its features *before* each pooling. The taps of the paper lie behind it, so
      pool3, pool4 and pool5 are recovered by pooling the feature of the level above.
    * A **dilated** encoder keeps its levels and their order; only their strides shrink.
    * An encoder of **fewer levels** (``encoder_depth`` 3 or 4) is tapped from its last level on.
    * A **missing** stride (SMP's map of 0 channels) is resampled from the next coarser map.

    Args:
        encoder: An encoder as SMP builds it.
        depth: The ``encoder_depth`` that it was built with.
        finest_stride: The smallest stride asked for: 32, 16, 8, 4 or 2.

    Attributes:
        channels: Channels of each tap, coarse to fine.
        strides: Stride of each tap, coarse to fine.
    """

    def __init__(self, encoder: Any, depth: int, finest_stride: int) -> None:
        super().__init__()
        widths: list[int] = list(encoder.out_channels)
        finest_level = min(finest_stride.bit_length() - 1, depth)
        levels = list(range(depth, finest_level - 1, -1))
        pools = is_vgg(encoder)
        # A VGG's last feature is pool5 itself; every other tap is one level above its stride.
        self.sources = [
            level - 1 if pools and level < len(widths) - 1 else _nearest_present(level, widths) for level in levels
        ]
        self.pooled = [pools and source < level for source, level in zip(self.sources, levels, strict=True)]
        self.upsampled = [2 ** max(source - level, 0) for source, level in zip(self.sources, levels, strict=True)]
        self.channels = [widths[source] for source in self.sources]
        self.strides = [min(2**level, encoder.output_stride) for level in levels]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map the encoder's features, each (N, C_k, H_k, W_k), to the taps, coarse to fine."""
        taps: list[Tensor] = []
        for source, pooled, factor in zip(self.sources, self.pooled, self.upsampled):  # noqa: B905  (TorchScript)
            tap = features[source]
            if pooled:
                tap = F.max_pool2d(tap, kernel_size=2)
            elif factor > 1:
                # One pixel more than the source has, which an encoder that rounds down may have cut off.
                tap = F.pad(tap, (0, 1, 0, 1), mode="replicate")
                tap = F.interpolate(tap, scale_factor=float(factor), mode="bilinear", align_corners=False)
            taps.append(tap)
        return taps


def is_vgg(encoder: Any) -> bool:
    """Tell whether ``encoder`` is one of the VGG family, of SMP or of timm."""
    return isinstance(encoder, VGGEncoder) or (
        isinstance(encoder, TimmUniversalEncoder) and encoder.name.startswith("vgg")
    )


def _nearest_present(level: int, widths: list[int]) -> int:
    return next(k for k in range(level, len(widths)) if widths[k] > 0)
