"""Scores before the last upsampling, which is interpolation, so that the scores of all pixels need never exist at once.

With C classes and stride s, the scores of a map are s * s times fewer than those of the image's pixels. A loss over all
pixels and the most likely class of each can be computed for some rows after the other; only the interpolation of those
rows is held.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_HELD = 2**19
"""Scores of pixels that are held at a time on a CPU: 2 MiB, which its caches hold."""
_HELD_ELSEWHERE = 2**26
_ROWS = 16
"""Rows at least, however many classes: neighbouring ones share the same rows of the map."""


class Band(NamedTuple):
    """Some rows of the image, and the rows of the map from which their scores are interpolated.

    Attributes:
        rows: The r rows of the image.
        sources: The k rows of the map.
        weights: What each of these contributes to each of those, (r, k); None where both are the same.
        columns: What each column of the map contributes to each of the image, (W, w), likewise.
    """

    rows: slice
    sources: slice
    weights: Tensor | None
    columns: Tensor | None

    def upsample(self, scores: Tensor) -> Tensor:
        """Map the scores of the whole map (..., h, w) to those of the band's pixels (..., r, W)."""
        scores = scores[..., self.sources, :]
        if self.weights is None or self.columns is None:
            return scores
        # Rows lie first in memory, so that each step is one product of two matrices, not one for each class.
        wide = scores.movedim(-2, 0).flatten(0, -2) @ self.columns.mT
        rows = self.weights @ wide.view(len(self.weights.mT), -1)
        return rows.view(-1, *scores.shape[:-2], len(self.columns)).movedim(0, -2)

    def downsample(self, gradient: Tensor) -> Tensor:
        """Map a gradient with respect to the pixels' scores (..., r, W) to that of the map's (..., k, w)."""
        if self.weights is None or self.columns is None:
            return gradient
        rows = self.weights.mT @ gradient.movedim(-2, 0).flatten(1)
        narrow = rows.view(-1, len(self.columns)) @ self.columns
        return narrow.view(len(rows), *gradient.shape[:-2], -1).movedim(0, -2)


class CoarseScores(NamedTuple):
    """Scores of a map, and where the pixels of the image lie on it.

    The logits of a pixel are interpolated bilinearly between the four nearest scores; outside the map there is 0.

    Attributes:
        scores: Float (N, C, h, w).
        rows: Where each of the image's H rows lies on the map, whose rows lie at 0, 1 ... h - 1; rising, on the CPU.
            None: the scores are those of the pixels already.
        columns: Likewise, (W,).
    """

    scores: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None

    def __repr__(self) -> str:
        """Say what is held instead of showing it."""
        (images, classes, *places), size = self.scores.shape, self.size
        sides = ["x".join(map(str, side)) for side in (places, size)]
        return f"CoarseScores({images} images, {classes} classes, {sides[0]} places for {sides[1]} pixels)"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        if self.rows is None or self.columns is None:
            return self.scores.shape[2], self.scores.shape[3]
        return len(self.rows), len(self.columns)

    def bands(self, images: int = 1) -> Iterator[Band]:
        """Divide the image's rows, from the top to the bottom, into bands whose scores fit a cache together.

        Args:
            images: Of how many images the scores exist at a time.
        """
        scores, (height, width) = self.scores, self.size
        held = _HELD if scores.device.type == "cpu" else _HELD_ELSEWHERE
        count = max(_ROWS, held // (images * scores.shape[1] * width))
        columns = None if self.columns is None else hat(self.columns, scores.shape[3]).to(scores.device)
        for top in range(0, height, count):
            rows = slice(top, min(top + count, height))
            if self.rows is None:
                yield Band(rows, rows, None, None)
                continue
            places = self.rows[rows]
            first = max(0, int(places[0].floor()))
            sources = slice(first, min(scores.shape[2], int(places[-1].floor()) + 2))
            weights = hat(places - first, sources.stop - first).to(scores.device)
            yield Band(rows, sources, weights, columns)

    def sample(self, step: int) -> Tensor:
        """Return the scores (N, C, ...) that are nearest to every ``step``-th pixel of every ``step``-th row."""
        scores = self.scores
        for dim, places in ((2, self.rows), (3, self.columns)):
            length = scores.shape[dim]
            nearest = torch.arange(length) if places is None else places.round().long().clamp(0, length - 1)
            scores = scores.index_select(dim, nearest[::step].to(scores.device))
        return scores

    def logits(self) -> Iterator[Tensor]:
        """Yield the float32 logits (N, C, r, W) of the next r rows of the image, from the top to the bottom."""
        for band in self.bands(len(self.scores)):
            with torch.autocast(self.scores.device.type, enabled=False):
                logits = band.upsample(self.scores.float())
            yield logits


def hat(places: Tensor, length: int) -> Tensor:
    """Return the matrix (n, length) of linear interpolation at n places between values at 0, 1 ... length - 1."""
    return (1 - (places[:, None] - torch.arange(length)).abs()).clamp(min=0)
