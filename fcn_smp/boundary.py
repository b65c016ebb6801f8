"""How well a prediction follows boundaries, which a score over all pixels hardly shows."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import KDTree
from torch import Tensor

from fcn_smp.data.labels import Array
from fcn_smp.metrics import ConfusionMatrix, f_score

WIDTHS = (1, 2, 4, 8, 16, 32)
"""Half widths of the trimaps in pixels."""
TOLERANCE = 0.0075
"""How far apart boundaries may be that match, as a share of the image's diagonal; not rounded."""
DEPTH = 5
"""Distance in pixels from the nearest label beyond which void is no border, but a region that is hard to tell."""

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BoundaryScores:
    """Scores in [0, 1]; NaN where nothing defines them.

    Attributes:
        trimap_iu: Mean IU within each of ``WIDTHS`` pixels of a boundary of the truth.
        f1: Mean over classes of the boundary F1.
        f1_per_class: Mean over images of the boundary F1 of each class.
    """

    trimap_iu: dict[int, float]
    f1: float
    f1_per_class: list[float]


class Boundary(torch.nn.Module):
    """Adds up images and tells how well their boundaries are met; processes that share them add up their buffers.

    *Trimap mean IU* (Kohli, Ladicky and Torr, IJCV 2009, who count errors; Chen et al., DeepLab, as mean IU): the mean
    IU over the whole set, of those labelled pixels alone that lie within some pixels of a boundary. That is the
    Euclidean distance to the nearest pixel whose truth is another label; void is one, since it is the border in VOC.

    *Boundary F1* (Csurka, Larlus and Perronnin, BMVC 2013): of each image and class the share of predicted boundary
    pixels less than 0.75 % of the image's diagonal away from a true one (precision), the same the other way round
    (recall), and their F1. What is decided here:

    * Boundary pixels of a class are its pixels with a 4-neighbour of another class in the image.
    * Void of the truth gets the nearest class first, of equally near ones the smaller, so that the true boundary runs
      in the middle of a void border. Boundary pixels of either map that are more than 5 pixels into void do not count.
    * A class counts in the images where either map has boundary pixels of it; where one map alone has, F1 is 0.
    * The F1 of a class is the mean over these images; the whole is the mean over classes.

    Args:
        classes: Number of classes C.
        ignore_index: Label of void pixels.
    """

    _f1: Tensor
    _images: Tensor

    def __init__(self, classes: int, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self._trimaps = torch.nn.ModuleList(ConfusionMatrix(classes, ignore_index) for _ in WIDTHS)
        self.register_buffer("_f1", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("_images", torch.zeros(classes, dtype=torch.int64))

    def update(self, prediction: Array, truth: Array) -> None:
        """Add an image: predicted classes, and true classes or void, both uint8 (H, W). All void, it changes nothing.

        Raises:
            ValueError: The sizes differ.
        """
        if prediction.shape != truth.shape:
            raise ValueError(f"The prediction is {prediction.shape}, the truth {truth.shape}; they should be the same.")
        if (truth != self.ignore_index).any():
            self._add_trimaps(prediction, truth)
            self._add_f1(prediction, truth)

    def scores(self) -> BoundaryScores:
        """Return the scores of all images that were added."""
        f1 = self._f1 / self._images
        return BoundaryScores(
            trimap_iu={width: matrix.scores().mean_iu for width, matrix in self._matrices()},
            f1=f1.nanmean().item(),
            f1_per_class=f1.tolist(),
        )

    def _matrices(self) -> Iterable[tuple[int, ConfusionMatrix]]:
        return zip(WIDTHS, cast("Iterable[ConfusionMatrix]", self._trimaps), strict=True)

    def _add_trimaps(self, prediction: Array, truth: Array) -> None:
        squares = _to_other_label(truth, self.ignore_index)
        for width, matrix in reversed(list(self._matrices())):  # a narrower trimap lies in the wider one
            near = squares <= width**2
            prediction, truth, squares = prediction[near], truth[near], squares[near]
            matrix.update(torch.from_numpy(prediction), torch.from_numpy(truth))

    def _add_f1(self, prediction: Array, truth: Array) -> None:
        truth, squares = _complete(truth, self.ignore_index)
        true, predicted = (_boundaries(label, squares <= DEPTH**2) for label in (truth, prediction))
        tolerance = TOLERANCE * math.hypot(*truth.shape)
        for k in true.keys() | predicted.keys():
            self._f1[k] += _f1(true[k], predicted[k], tolerance) if k in true and k in predicted else 0
            self._images[k] += 1


def _labels(label: Array) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.bincount(label.ravel(), minlength=1))


def _box(mask: Mask, margin: int = 0) -> tuple[slice, slice]:
    """Return the rows and columns of a mask's pixels, of which there is one at least, and ``margin`` more around."""
    rows, columns = (
        slice(max(places[0] - margin, 0), places[-1] + 1 + margin)
        for places in (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    )
    return rows, columns


def _squared_distances(mask: Mask, places: Mask) -> Floats:
    """Return the squares of the Euclidean distances of some pixels to the nearest one of a mask; > 1e9 if it has none.

    OpenCV's distances may be off by a unit in the last place; with one thread they are. Their squares are whole
    numbers, so that rounding makes them exact (below 500 pixels, which is more than what depends on them).
    """
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.rint(np.square(distance[places], dtype=np.float64))


def _to_other_label(label: Array, ignore_index: int) -> Floats:
    """Return the square of each pixel's distance to the nearest one of another label; infinite for void."""
    squares = np.full(label.shape, np.inf)
    for k in _labels(label):
        if k != ignore_index:
            own = label == k
            box = _box(own, margin=1)  # no pixel of another label is nearer than the one straight across the margin
            own = own[box]
            squares[box][own] = _squared_distances(~own, own)
    return squares


def _complete(label: Array, ignore_index: int) -> tuple[Array, Floats]:
    """Return a label whose void has the nearest class, and the square of each pixel's distance to what was labelled."""
    label, squares = label.copy(), np.zeros(label.shape)
    void = label == ignore_index
    if void.any():
        box = _box(void, margin=1)  # as above
        part, void = label[box], void[box]
        classes = np.setdiff1d(_labels(part), ignore_index)
        to_classes = np.stack([_squared_distances(part == k, void) for k in classes])
        part[void] = classes[to_classes.argmin(0)]
        squares[box][void] = to_classes.min(0)
    return label, squares


def _boundaries(label: Array, counts: Mask) -> dict[int, npt.NDArray[np.intp]]:
    """Return the places (M, 2) of the boundary pixels of each class that has any."""
    edge = np.zeros(label.shape, dtype=bool)
    below, right = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    edge[1:] |= below
    edge[:-1] |= below
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    places = np.argwhere(edge & counts)
    classes = label[edge & counts]
    return {int(k): places[classes == k] for k in _labels(classes)}


def _f1(true: npt.NDArray[np.intp], predicted: npt.NDArray[np.intp], tolerance: float) -> float:
    """Return the F1 of two boundaries, places (M, 2) and (N, 2)."""
    precision, recall = (
        np.mean(KDTree(others).query(places, distance_upper_bound=tolerance)[0] < tolerance).item()
        for places, others in ((predicted, true), (true, predicted))
    )
    return f_score(precision, recall)
