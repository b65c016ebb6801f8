"""The encoders that some of these networks came with, as encoders of SMP: ``smp.Unet("double_conv", ...)`` works too.

They are small, have no pretrained weights, and take every depth from 1 to 5.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn


class SingleConv(nn.Sequential):
    """A 3x3 convolution and ReLU: (N, in_channels, H, W) to (N, channels, H, W)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, kernel_size=3, padding=1), nn.ReLU(inplace=True))


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU: (N, in_channels, H, W) to (N, channels, H, W).

    Both share one norm: its scale, its offset and, in evaluation, its running statistics serve two layers.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H, W)."""
        x = F.relu(self.norm(self.conv1(x)))
        return F.relu(self.norm(self.conv2(x)))


class StagedEncoder(nn.Module, EncoderMixin):
    """An encoder of SMP that is a chain of stages, each of which gives one feature.

    Args:
        out_channels: Channels of each feature, for the largest depth.
        stages: The stages of ``depth``: the first keeps the size of the image, each other one halves that of the last.
        depth: Number of halvings, 1 to 5.
        output_stride: What SMP asks of every encoder; anything but 32 is for ``make_dilated``.

    Raises:
        ValueError: The depth is out of range.
    """

    def __init__(
        self, out_channels: Sequence[int], stages: Sequence[nn.Module], depth: int, output_stride: int
    ) -> None:
        super().__init__()
        if not 1 <= depth <= 5:
            raise ValueError(f"The depth of {type(self).__name__} must be 1 to 5, got {depth}.")
        self._out_channels, self._in_channels = list(out_channels), 3
        self._depth, self._output_stride = depth, output_stride
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image (N, in_channels, H, W) to features (N, C_k, H / 2**k, W / 2**k), k from 0 to the depth."""
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class StridedConvEncoder(StagedEncoder):
    """Convolutions of stride 2, each followed by ReLU and batch norm; feature 0 is the image itself.

    Feature 5 has 512 channels, each finer one half of those. The stages may be dilated.

    Args:
        depth: Number of halvings, 1 to 5.
        output_stride: 32, or a smaller one for which SMP dilates the last stages.

    Source: https://github.com/jackljk/Semantic-Segementation-VOC2007 (``basic_fcn.py``)
    """

    def __init__(self, depth: int = 5, output_stride: int = 32) -> None:
        widths = [3, 32, 64, 128, 256, 512]
        stages = [
            nn.Sequential(
                nn.Conv2d(width, channels, kernel_size=3, stride=2, padding=1),
                nn.ReLU(inplace=True),
                nn.BatchNorm2d(channels),
            )
            for width, channels in pairwise(widths[: depth + 1])
        ]
        super().__init__(widths, [nn.Identity(), *stages], depth, output_stride)

    def get_stages(self) -> dict[int, Sequence[nn.Module]]:
        """Return the modules of each stride, for SMP to dilate."""
        return {2**level: [stage] for level, stage in enumerate(self.stages)}


class PooledConvEncoder(StagedEncoder):
    """Convolutions with max pooling between them; each feature is that before the pooling, as of SMP's VGG.

    Feature 0 has 64 channels, each coarser one twice as many: 2048 at depth 5.

    Args:
        block: Builds the convolutions of a stage: ``SingleConv`` or ``DoubleConv``.
        depth: Number of poolings, 1 to 5.
        output_stride: 32: pooling cannot be dilated.

    Source: https://github.com/jackljk/Semantic-Segementation-VOC2007 (``custom_fcn.py`` and ``unet_with_crop.py``)
    """

    def __init__(self, block: Callable[[int, int], nn.Module], depth: int = 5, output_stride: int = 32) -> None:
        widths = [64 * 2**level for level in range(6)]
        coarser = [nn.Sequential(nn.MaxPool2d(2), block(*pair)) for pair in pairwise(widths[: depth + 1])]
        super().__init__(widths, [block(3, widths[0]), *coarser], depth, output_stride)

    def make_dilated(self, output_stride: int) -> None:
        """Refuse what SMP asks for where ``output_stride`` is not 32.

        Raises:
            ValueError: Always.
        """
        raise ValueError("an encoder that halves its maps by pooling cannot be dilated.")


ENCODERS: dict[str, dict[str, Any]] = {
    "strided_conv": {"encoder": StridedConvEncoder, "pretrained_settings": {}, "params": {}},
    "single_conv": {"encoder": PooledConvEncoder, "pretrained_settings": {}, "params": {"block": SingleConv}},
    "double_conv": {"encoder": PooledConvEncoder, "pretrained_settings": {}, "params": {"block": DoubleConv}},
}
"""The encoders by name, as ``smp.encoders.encoders`` describes its own."""
