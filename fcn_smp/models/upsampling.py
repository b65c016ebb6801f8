"""Bilinear upsampling: by transposed convolution between two taps, by interpolation to the input's size.

Every map is anchored at the top-left corner of the image: pixel ``i`` of a map at stride ``s`` covers the image
pixels ``[s * i, s * (i + 1))``. A map of an encoder that rounds down may end before the image does, one of an encoder
that rounds up may end behind it; both are fitted at the bottom and right, so that no pixel moves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bilinear_kernel(factor: int) -> Tensor:
    """Return the kernel with which a transposed convolution of stride ``factor`` interpolates bilinearly.

    Args:
        factor: Upsampling factor, even.

    Returns:
        Tensor of shape (2 * factor, 2 * factor), values in (0, 1], summing to ``factor ** 2``.

    Source: Long et al., "Fully convolutional networks for semantic segmentation" (CVPR 2015), section 3.3.
    """
    offsets = torch.arange(2 * factor) - (factor - 0.5)
    weights = 1 - offsets.abs() / factor
    return weights[:, None] * weights


def fit(x: Tensor, reference: Tensor) -> Tensor:
    """Cut ``x`` of shape (N, C, h, w) at the bottom and right to the height and width of ``reference``.

    A negative padding, not a slice: ``torch.export`` cannot prove a slice's bounds when sizes are dynamic.
    """
    return F.pad(x, (0, reference.shape[3] - x.shape[3], 0, reference.shape[2] - x.shape[2]))


class Fit(nn.Module):
    """:func:`fit` as a module, for two taps of the same stride."""

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """Cut (N, C, h, w) to the height and width of ``reference``."""
        return fit(x, reference)


class Upsample2x(nn.Module):
    """Double a map by a transposed convolution that starts as bilinear interpolation.

    The border is replicated before the convolution, so that scores do not fade to zero there, and the fixed form
    equals ``torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")``.

    Args:
        channels: Number of channels C.
        learned: Whether the kernel is a parameter of shape (C, C, 4, 4), as in Long et al., section 4.1. A fixed
            kernel is one (4, 4) buffer for all channels; it is not saved, since nothing can change it.
    """

    weight: Tensor

    def __init__(self, channels: int, *, learned: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.groups = 1 if learned else channels
        kernel = bilinear_kernel(2)
        if learned:
            identity = torch.eye(channels)[:, :, None, None]
            self.weight = nn.Parameter(identity * kernel)
        else:
            self.register_buffer("weight", kernel.expand(channels, 1, 4, 4).clone(), persistent=False)

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C, H, W), the size of ``reference``, at most 2h + 2 by 2w + 2."""
        # One replicated pixel on the left keeps the border from fading; on the right a second one lets an odd
        # size, which the encoder rounded down, be filled.
        x = F.pad(x, (1, 2, 1, 2), mode="replicate")
        x = F.conv_transpose2d(x, self.weight, stride=2, padding=3, groups=self.groups)
        return fit(x, reference)


def upsample_to_input(x: Tensor, stride: int, reference: Tensor) -> Tensor:
    """Interpolate the scores ``x`` of shape (N, C, h, w) by ``stride`` and fit them to the size of ``reference``.

    The last layer of the network, which Long et al. (section 4.1) fix to bilinear interpolation.

    Returns:
        Tensor of shape (N, C, H, W), the size of ``reference``, at most (h + 1) * stride by (w + 1) * stride.
    """
    if stride > 1:
        x = F.pad(x, (0, 1, 0, 1), mode="replicate")
        x = F.interpolate(x, scale_factor=float(stride), mode="bilinear", align_corners=False)
    return fit(x, reference)
