"""How images are run through a network: whole or in windows, as they are or in several views."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn_smp.errors import UserError
from fcn_smp.models.any_size import Resized, on_meta

SIDES = (2048, 1024, 512)
"""Sides of the windows of which the largest that fits into the memory is taken, in pixels."""
_STEP = 0.25


@dataclass(frozen=True)
class Inference:
    """How images are run through a network.

    Attributes:
        flip: Average the probabilities with those of the mirrored image.
        scales: Average the probabilities over the image at these scales.
        window: Side of sliding windows in pixels; None: whole images; ``auto``: whole where the memory allows.
        overlap: How many pixels neighbouring windows share at least; None: a quarter of the side. Of these, the outer
            quarters are context and the middle is blended: a network that sees no further than a quarter of the
            overlap gives what it gives for the whole image.

    Raises:
        UserError: A value is out of range.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    window: int | Literal["auto"] | None = "auto"
    overlap: int | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise UserError(f"scales are {', '.join(map(str, self.scales))}; there must be some, each from 0.1 to 10.")
        if isinstance(self.window, int) and self.window < 64:
            raise UserError(f"The window is {self.window} pixels wide; it must be 64 at least.")
        if self.overlap is not None and not (isinstance(self.window, int) and 0 <= self.overlap <= self.window - 64):
            raise UserError(f"The overlap is {self.overlap}; it must be 0 to the window's side less 64 pixels.")

    @property
    def views(self) -> int:
        """How often each image is run through the network."""
        return len(self.scales) * (1 + self.flip)

    @property
    def is_plain(self) -> bool:
        """Whether each image is run through the network as it is."""
        return not self.flip and self.scales == (1.0,)


def parse(tta: str | None = None, window: str = "auto") -> Inference:
    """Read what the command line takes.

    Args:
        tta: Test-time augmentation: ``flip``, ``scales=0.5,1,1.5`` or ``scales=0.5..1.75`` (in steps of 0.25), or both
            with a comma between.
        window: ``auto``, ``none``, a side in pixels, or side and overlap, ``1024,512``.

    Raises:
        UserError: A text is none of these, or a number is out of range.
    """
    return Inference(*_parse_tta(tta), *_parse_window(window))


def _parse_tta(text: str | None) -> tuple[bool, tuple[float, ...]]:
    number = r"\d*\.?\d+"
    rest = re.sub(r"\s", "", text or "")
    found = re.search(rf"scales=({number}(?:,{number})*|{number}\.\.{number})(?=,[a-z]|$)", rest)
    scales: tuple[float, ...] = (1.0,)
    if found:
        rest = rest.replace(found[0], "").strip(",")
        low, _, high = found[1].partition("..")
        if high:
            steps = round((float(high) - float(low)) / _STEP)
            scales = tuple(float(low) + _STEP * step for step in range(steps + 1))
        else:
            scales = tuple(map(float, found[1].split(",")))
    if rest not in ("", "flip") or not scales:
        raise UserError(f"--tta {text} should be flip, scales=0.5..1.75 or scales=0.5,1,1.5, or flip,scales=...")
    return rest == "flip", scales


def _parse_window(text: str) -> tuple[int | Literal["auto"] | None, int | None]:
    if text == "auto":
        return "auto", None
    if text == "none":
        return None, None
    numbers = re.fullmatch(r"(\d{1,6})(?:,(\d{1,6}))?", text)
    if not numbers:
        raise UserError(f"--window {text} should be auto, none, a side in pixels, or side,overlap such as 1024,512.")
    return int(numbers[1]), int(numbers[2]) if numbers[2] else None


def views(network: Callable[[Tensor], Tensor], images: Tensor, inference: Inference, size: Sequence[int]) -> Tensor:
    """Return the logits (N, C, H, W) of images (N, 3, h, w), averaged over their views; ``size`` is (H, W).

    The mean is one of probabilities; what is returned is its logarithm, or of a single logit the mean's own logit.
    """
    if inference.is_plain:
        return stretched(network(images), size)

    def probabilities() -> Iterator[Tensor]:
        for scale in inference.scales:
            view = _scaled(images, scale)
            for mirrored in (False, True)[: 1 + inference.flip]:
                logits = network(view.flip(3)).flip(3) if mirrored else network(view)
                yield stretched(logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1), size)

    mean = sum(probabilities(), torch.zeros((), device=images.device)) / inference.views
    return mean.logit(1e-7) if mean.shape[1] == 1 else mean.clamp_min(1e-30).log()


def stretched(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate logits (N, C, h, w) of an image that was resized for the network to the image's size (N, C, H, W)."""
    if logits.shape[2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _scaled(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)


def places(length: int, side: int, overlap: int, grid: int) -> list[tuple[int, int]]:
    """Return where windows begin and end along an axis of ``length`` pixels; the last one may be shorter.

    They begin at multiples of ``grid``, so that the network's maps lie as in the whole image.
    """
    stride = max(grid, (side - overlap) // grid * grid)
    starts = range(0, max(length - side, 0) + stride, stride)
    return [(start, min(start + side, length)) for start in starts]


def blended(
    logits: Callable[[slice, slice], Tensor], rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]
) -> Iterator[Tensor]:
    """Blend the logits of windows, and yield them band by band.

    Args:
        logits: Gives those of a window (N, C, h, w), of rows and columns of the image.
        rows: Where windows begin and end from top to bottom.
        columns: From left to right.

    Yields:
        The logits (N, C, height, W) of rows that no further window reaches, from the top to the bottom. Only those of
        one row of windows exist at a time.
    """
    held: Tensor | None = None
    for (top, bottom), after in zip(rows, [*(start for start, _ in rows[1:]), None], strict=True):
        band = _row((logits(slice(top, bottom), slice(*column)) for column in columns), columns)
        if held is not None:
            _fade(band[:, :, : held.shape[2]], held, 2)
        if after is None:
            yield band
        else:
            held = band[:, :, after - top :].clone()
            yield band[:, :, : after - top]


def _row(windows: Iterator[Tensor], columns: Sequence[tuple[int, int]]) -> Tensor:
    """Blend the windows of a row as they come, so that it and one of them is all that there is at a time."""
    row, known = torch.empty(0), 0
    for window, (left, right) in zip(windows, columns, strict=True):
        if known:
            _fade(window[..., : known - left], row[..., left:known], 3)
        else:
            row = window.new_empty((*window.shape[:3], columns[-1][1]))
        row[..., left:right] = window
        known = right
    return row


def _fade(later: Tensor, earlier: Tensor, dim: int) -> None:
    """Let the earlier of two windows fade into the later one along an axis, in place, within the middle half."""
    length = later.shape[dim]
    place = torch.arange(length, device=later.device, dtype=later.dtype) + 0.5
    weight = ((place - length / 4) / (length / 2)).clamp(0, 1)
    later.lerp_(earlier, 1 - weight.view([-1 if axis == dim else 1 for axis in range(4)]))


def side_that_fits(height: int, width: int, per_pixel: float, device: torch.device) -> int | None:
    """Return the side of windows for an image, or None where the whole of it fits into half of the free memory.

    Args:
        height: Of the image in pixels.
        width: Likewise.
        per_pixel: Bytes that each of its pixels takes, as of ``bytes_per_pixel``.
        device: Where the network lies.
    """
    budget = _free_memory(device) / 2
    if height * width * per_pixel <= budget:
        return None
    # Besides the window there is the row of windows that is blended, of which there are but the logits.
    return next((side for side in SIDES if side * max(side, width / 4) * per_pixel <= budget), SIDES[-1])


def bytes_per_pixel(model: nn.Module, in_channels: int = 3) -> float:
    """Return how much memory a network takes for each pixel of its input at most: as if it kept every map.

    It is not run for that: a copy on the meta device has shapes, but no arithmetic.
    """
    total = 0

    def add(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal total
        for tensor in output if isinstance(output, list | tuple) else [output]:
            if isinstance(tensor, Tensor):
                total += tensor.numel() * tensor.element_size()

    twin = on_meta(model)
    for module in twin.modules():
        if not list(module.children()):
            module.register_forward_hook(add)
    side = 256
    try:
        twin(torch.empty(1, in_channels, side, side, device="meta"))
    except Exception:  # one whose pass depends on values; a large network takes as much
        return 20_000
    return total / side**2


def takes_windows(model: nn.Module) -> bool:
    """Tell whether a network takes images as large as they are, so that windows would save it memory."""
    return not isinstance(getattr(model, "any_size", None), Resized)


def grid_of(model: nn.Module) -> int:
    """Return of what windows' places should be multiples, in pixels, so that maps lie as in the whole image."""
    return math.lcm(32, *getattr(getattr(model, "any_size", None), "multiple", ()))


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes
        return torch.cuda.mem_get_info(device)[0] + kept
    return int(psutil.virtual_memory().available)
