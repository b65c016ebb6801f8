"""What ``decoder_alignment="caffe"`` means: the geometry of the networks that the authors released, number for number.

The first convolution pads the image by 100 pixels, so that even one pixel leaves fc6, which is not padded, its 7x7
window. Poolings round up, transposed convolutions are not padded, and what is too large is cropped where it belongs.
docs/explained/alignment.md derives all of it.

Source: https://github.com/shelhamer/fcn.berkeleyvision.org, voc-fcn{32s,16s,8s}/net.py
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn_smp.models.upsampling import TransposedConv, crop

PADDING = 100
BORDER = PADDING - 1
"""Pixels that the feature maps have on each side beyond the image: a 3x3 convolution takes one of the padding."""


def check_caffe(depth: int, hidden_channels: int | None, hidden_kernel: int | None) -> None:
    """See that there is such a network.

    Args:
        depth: As ``encoder_depth``.
        hidden_channels: As ``decoder_hidden_channels``.
        hidden_kernel: As ``decoder_hidden_kernel``.

    Raises:
        ValueError: There is none.
    """
    if depth != 5:
        raise ValueError(f"decoder_alignment='caffe' needs encoder_depth 5, got {depth}.")
    if hidden_channels == 0 or hidden_kernel not in (None, 7):
        raise ValueError(
            "decoder_alignment='caffe' needs fc6 and fc7: decoder_hidden_channels of 1 or more and"
            " decoder_hidden_kernel 7."
        )


def pad_and_round_up(encoder: nn.Module) -> None:
    """Make a VGG encoder pad its input by 100 and its poolings round up; no parameter changes."""
    modules = list(encoder.modules())
    first = next(module for module in modules if isinstance(module, nn.Conv2d))
    first.padding = (PADDING, PADDING)
    for parent in modules:
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, name, MaxPoolRoundingUp())


class MaxPoolRoundingUp(nn.Module):
    """2x2 max pooling whose last row and column may be half outside the map.

    (The poolings of the taps need not: no crop reaches the last row and column of theirs.)

    A row and a column of padding, not ``ceil_mode``, with which ``torch.export`` cannot prove sizes when they are
    dynamic.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C, ceil(h / 2), ceil(w / 2))."""
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), kernel_size=2)


def crop_offsets(strides: Sequence[int]) -> tuple[list[int], int]:
    """Return the offset at which each skip is cropped, coarse to fine, and that of the last crop.

    ``[5, 9]`` and 31 for FCN-8s, ``[5]`` and 27 for FCN-16s, ``[]`` and 19 for FCN-32s.

    Args:
        strides: Stride of each tap from 32 on, coarse to fine.
    """
    # Where a map's first pixel begins in the image: with the padding, but for fc6, which takes three pixels of pool5.
    begin = 3 * strides[0] - BORDER
    offsets = []
    for coarse, fine in pairwise(strides):
        # A kernel of twice the stride sticks out by half a coarse pixel.
        begin -= coarse // 2
        offsets.append((begin + BORDER) // fine)
    return offsets, strides[-1] // 2 - begin


class FuseCropped(nn.Module):
    """Double the scores and add those of a skip, cropped at an offset.

    Args:
        channels: Number of channels C.
        offset: Rows and columns of the skip that are left out at the top and left.
        learned: As in ``fcn_smp.models.upsampling.TransposedConv``.
    """

    def __init__(self, channels: int, offset: int, *, learned: bool) -> None:
        super().__init__()
        self.upsample = TransposedConv(channels, 2, learned=learned)
        self.offset = offset

    def forward(self, scores: Tensor, skip: Tensor) -> Tensor:
        """Map scores (N, C, h, w) and those of a skip to their sum (N, C, 2h + 2, 2w + 2)."""
        scores = self.upsample(scores)
        return scores + crop(skip, self.offset, scores.shape[2], scores.shape[3])


class UpsampleCropped(nn.Module):
    """Upsample the scores and crop the image's part.

    Args:
        channels: Number of channels C.
        stride: Stride of the scores.
        offset: Rows and columns that are left out at the top and left.
    """

    def __init__(self, channels: int, stride: int, offset: int) -> None:
        super().__init__()
        self.upsample = TransposedConv(channels, stride)
        self.offset = offset
        self.borders = 2 * BORDER

    def forward(self, scores: Tensor, feature: Tensor) -> Tensor:
        """Map scores (N, C, h, w), with the encoder's first feature for its size, to (N, C, H, W) of the image."""
        scores = self.upsample(scores)
        return crop(scores, self.offset, feature.shape[2] - self.borders, feature.shape[3] - self.borders)

    def places(self, length: int, size: int) -> Tensor:
        """Return where so many pixels of an axis lie on the map, as ``CoarseScores`` takes it.

        At the border they may lie outside the map, where the transposed convolution fades to zero.
        """
        return (torch.arange(size) + self.offset + 0.5) / self.upsample.factor - 1


def caffe_alignment(classes: int, strides: Sequence[int], *, learned: bool) -> tuple[list[nn.Module], nn.Module]:
    """Return one module for each skip that fuses its scores with the coarser ones, and the last upsampling.

    Args:
        classes: Number of classes C.
        strides: Stride of each tap from 32 on, coarse to fine.
        learned: Whether the upsampling between taps is learned.
    """
    offsets, last = crop_offsets(strides)
    fusions: list[nn.Module] = [FuseCropped(classes, offset, learned=learned) for offset in offsets]
    return fusions, UpsampleCropped(classes, strides[-1], last)
