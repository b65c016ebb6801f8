"""Bilinear upsampling: by transposed convolution between two taps, by interpolation to the input's size.

With ``decoder_alignment="same"`` every map is anchored at the top-left corner of the image: pixel ``i`` of a map at
stride ``s`` covers the image pixels ``[s * i, s * (i + 1))``. A map of an encoder that rounds down may end before the
image does, one of an encoder that rounds up may end behind it; both are fitted at the bottom and right, so that no
pixel moves.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]


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


def crop(x: Tensor, offset: int, height: int, width: int) -> Tensor:
    """Cut ``x`` of shape (N, C, h, w) to ``height`` by ``width`` pixels from row and column ``offset`` on.

    A negative padding, not a slice: ``torch.export`` cannot prove a slice's bounds when sizes are dynamic.
    """
    return F.pad(x, (-offset, offset + width - x.shape[3], -offset, offset + height - x.shape[2]))


def replicate(x: Tensor, before: int, behind: int) -> Tensor:
    """Repeat the first row and column of ``x`` of shape (N, C, h, w) ``before`` times, the last ones ``behind`` times.

    Written out: the gradient of torch's padding comes in an order of memory that its compiler does not expect, and on
    CUDA it is not the same every time.
    """
    x = torch.cat([x[:, :, :1]] * before + [x] + [x[:, :, -1:]] * behind, 2)
    return torch.cat([x[:, :, :, :1]] * before + [x] + [x[:, :, :, -1:]] * behind, 3)


class TransposedConv(nn.Module):
    """A transposed convolution without padding that starts as bilinear interpolation.

    Args:
        channels: Number of channels C.
        factor: Upsampling factor, even; the kernel is twice as large.
        learned: Whether the kernel is a parameter of shape (C, C, 2 * factor, 2 * factor), as in Long et al.,
            section 4.1. A fixed kernel is the same for all channels; it is not saved, since nothing can change it.
    """

    weight: Tensor

    def __init__(self, channels: int, factor: int, *, learned: bool = False) -> None:
        super().__init__()
        self.factor = factor
        self.groups = 1 if learned else channels
        kernel = bilinear_kernel(factor)
        if learned:
            identity = torch.eye(channels)[:, :, None, None]
            self.weight = nn.Parameter(identity * kernel)
        else:
            self.register_buffer("weight", kernel.repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C, factor * (h + 1), factor * (w + 1)); the border fades towards zero."""
        return F.conv_transpose2d(x, self.weight, stride=self.factor, groups=self.groups)


class FuseUpsampled(nn.Module):
    """Double scores and add them to those of a skip.

    The border is replicated before the transposed convolution, so that scores do not fade to zero there, and the fixed
    form equals ``torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")``.

    Args:
        channels: Number of channels C.
        learned: As in ``TransposedConv``.
    """

    def __init__(self, channels: int, *, learned: bool = False) -> None:
        super().__init__()
        self.upsample = TransposedConv(channels, 2, learned=learned)

    def forward(self, scores: Tensor, skip: Tensor) -> Tensor:
        """Map scores (N, C, h, w) and those of a skip (N, C, H, W), at most 2h + 2 by 2w + 2, to their sum."""
        # One replicated pixel on the left keeps the border from fading; on the right a second one lets an odd
        # size, which the encoder rounded down, be filled.
        scores = self.upsample(replicate(scores, 1, 2))
        return crop(scores, 3, skip.shape[2], skip.shape[3]) + skip


class Upsample(nn.Module):
    """Interpolate scores bilinearly: the last layer, which Long et al. (section 4.1) fix to bilinear.

    Args:
        factor: How many times, 1 or more; need not be a whole number.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = float(factor)

    def forward(self, scores: Tensor, feature: Tensor) -> Tensor:
        """Map scores (N, C, h, w) to (N, C, H, W), the size of a feature.

        It is at most (h + 1) * factor by (w + 1) * factor.
        """
        height, width = feature.shape[2], feature.shape[3]
        if self.factor == 1:
            return crop(scores, 0, height, width)
        # Not one condition: TorchScript leaves out what this guards, but reads the whole of an "and".
        if not is_scripting():  # noqa: SIM102
            if torch.compiler.is_exporting():
                return self.in_steps(scores, height, width)
        # What F.interpolate calls, with a size and a factor, of which it takes one: all in one, without copies. (It
        # would copy a map of more than one row or column that is as large as its image, but there is none.)
        output: Tensor = torch.ops.aten.upsample_bilinear2d(scores, [height, width], False, self.factor, self.factor)
        return output

    @torch.jit.unused
    def in_steps(self, scores: Tensor, height: int, width: int) -> Tensor:
        """Give the same in operators that every format of files has: ONNX takes a size or a factor, not both."""
        scores = replicate(scores, 0, 1)
        scores = F.interpolate(scores, scale_factor=self.factor, mode="bilinear", align_corners=False)
        return crop(scores, 0, height, width)

    def places(self, length: int, size: int) -> Tensor:
        """Return where so many pixels of an axis lie on a map of ``length``, as ``CoarseScores`` takes it."""
        return ((torch.arange(size) + 0.5) / self.factor - 0.5).clamp(0, length - 1)


class FuseInterpolated(nn.Module):
    """Interpolate scores and add them to those of a skip whose stride is not half of theirs.

    Args:
        factor: As in ``Upsample``.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.upsample = Upsample(factor)

    def forward(self, scores: Tensor, skip: Tensor) -> Tensor:
        """Map scores (N, C, h, w) and those of a skip (N, C, H, W) to their sum (N, C, H, W)."""
        output: Tensor = self.upsample(scores, skip)
        return output + skip


def same_alignment(classes: int, strides: Sequence[int], *, learned: bool) -> tuple[list[nn.Module], nn.Module]:
    """Return one module for each skip that fuses its scores with the coarser ones, and the last upsampling.

    Args:
        classes: Number of classes C.
        strides: Stride of each tap, coarse to fine.
        learned: Whether the upsampling between taps is learned, where one stride is half of the other.
    """
    fusions: list[nn.Module] = [
        FuseUpsampled(classes, learned=learned) if coarse == 2 * fine else FuseInterpolated(coarse / fine)
        for coarse, fine in pairwise(strides)
    ]
    return fusions, Upsample(strides[-1])
