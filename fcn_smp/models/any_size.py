"""Images of any size for encoders that do not take any size.

What an encoder takes is not looked up but tried, when the network is built: a pass on torch's meta device has shapes
but no arithmetic.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn_smp.models.upsampling import crop


class AsItIs(nn.Module):
    """For encoders that take every size."""

    def forward(self, x: Tensor) -> Tensor:
        """Give the encoder the image (N, C, H, W) as it is."""
        return x

    @torch.jit.export
    def restore(self, scores: Tensor, x: Tensor) -> Tensor:
        """Leave the scores (N, classes, H, W) as they are."""
        return scores


class Enlarged(AsItIs):
    """Continue a small image at the bottom and right, and crop the scores.

    Args:
        smallest: Smallest height and width that the encoder takes, in pixels.
    """

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (N, C, h, w) to (N, C, H, W), no side below the smallest, the border replicated."""
        if x.shape[2] < self.smallest or x.shape[3] < self.smallest:
            below, right = max(self.smallest - x.shape[2], 0), max(self.smallest - x.shape[3], 0)
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        return x

    @torch.jit.export
    def restore(self, scores: Tensor, x: Tensor) -> Tensor:
        """Crop the scores (N, classes, H, W) to the image's (N, classes, h, w)."""
        if x.shape[2] < self.smallest or x.shape[3] < self.smallest:
            scores = crop(scores, 0, x.shape[2], x.shape[3])
        return scores


class Padded(AsItIs):
    """Continue the image at the bottom and right to a size that the encoder takes, and crop the scores.

    Args:
        multiple: Of what height and width must be multiples, in pixels.
    """

    def __init__(self, multiple: tuple[int, int]) -> None:
        super().__init__()
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (N, C, h, w) to (N, C, H, W), the border replicated."""
        (height, width), (_, _, h, w) = self.multiple, x.shape
        # Written so that torch.export sees the sum of size and padding as a multiple.
        below, right = (h + height - 1) // height * height - h, (w + width - 1) // width * width - w
        return F.pad(x, (0, right, 0, below), mode="replicate")

    @torch.jit.export
    def restore(self, scores: Tensor, x: Tensor) -> Tensor:
        """Crop the scores (N, classes, H, W) to the image's (N, classes, h, w)."""
        return crop(scores, 0, x.shape[2], x.shape[3])


class Resized(AsItIs):
    """Resize the image to the one size that the encoder takes, and the scores back.

    Args:
        size: Height and width in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (N, C, h, w) to (N, C, *size) bilinearly."""
        return F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)

    @torch.jit.export
    def restore(self, scores: Tensor, x: Tensor) -> Tensor:
        """Map the scores (N, classes, *size) to the image's (N, classes, h, w) bilinearly."""
        return F.interpolate(scores, size=x.shape[2:], mode="bilinear", align_corners=False)


def for_any_size(encoder: Any, name: str, in_channels: int) -> AsItIs:
    """Return what makes ``encoder`` take an image of any size, from one pixel on.

    Args:
        encoder: An encoder of SMP or timm; it is tried without arithmetic, on a copy.
        name: What messages call it.
        in_channels: Channels of its input.

    Returns:
        A module that gives the encoder the image as it is, enlarged, padded or resized, and whose ``restore`` brings
        the scores back to the image's size.

    Raises:
        ValueError: It does not even take an image of its own size, which its arguments do not allow for.
    """
    twin = on_meta(encoder)

    def last_map(height: int, width: int) -> tuple[int, int]:
        """Return the size of the last map of an image; raise whatever the model raises where it cannot go on."""
        maps = twin(torch.empty(1, in_channels, height, width, device="meta"))
        # A hybrid transformer of timm may misjudge how many rows and columns its tokens are.
        if [map.shape[1] for map in maps] != list(encoder.out_channels):
            raise ValueError("pixels and channels of its maps are mixed up")
        return maps[-1].shape[2], maps[-1].shape[3]

    def takes(height: int, width: int) -> bool:
        try:
            rows, columns = last_map(height, width)
        except Exception:
            return False
        # The maps of a model that resizes its input by itself would all have one size.
        return (columns > rows) == (width > height)

    # Neither is near a multiple of 32, where maps whose sizes are rounded in two ways may agree by chance.
    if takes(75, 149):
        smallest = next(size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size == 128 or takes(size, size))
        return AsItIs() if smallest == 1 else Enlarged(smallest)
    height, width = getattr(encoder, "image_size", (224, 224))
    stride = encoder.output_stride
    for multiple in ((stride, stride), (32, 32), (height, width)):
        if takes(3 * multiple[0], 5 * multiple[1]):
            return Padded(multiple)
    try:
        last_map(height, width)
    except Exception as error:
        # A model whose pass depends on values cannot be tried without arithmetic.
        if "meta tensors" not in str(error):
            reason = str(error) or "an assertion fails"
            raise ValueError(
                f"Encoder {name!r} does not take an image of {height} x {width} pixels: {reason}"
            ) from error
    return Resized((height, width))


def on_meta(module: nn.Module) -> Any:
    """Copy a module to the meta device, in evaluation mode; no weight is copied on the way."""
    tensors: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in module.buffers()}
    for parameter in module.parameters():
        tensors[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    return copy.deepcopy(module, tensors).eval()
