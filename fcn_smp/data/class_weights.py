"""Class weights for the loss, computed from the labels of the training set."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.files import cache_folder, write_text

Method = Literal["inverse_frequency", "median_frequency", "effective_number"]


@dataclass(frozen=True)
class ClassCounts:
    """How often each class occurs in a data set; int64 (C,) each.

    Attributes:
        pixels: Pixels of the class.
        images: Images that show the class.
        image_pixels: Labelled pixels of those images.
    """

    pixels: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    image_pixels: npt.NDArray[np.int64]


def count_classes(dataset: SegmentationDataset) -> ClassCounts:
    """Count the classes over all labels of ``dataset``.

    Raises:
        UserError: A label is missing or damaged.
    """

    def histogram(index: int) -> npt.NDArray[np.int64]:
        label = dataset.read_label(index)
        return np.bincount(label[label != IGNORE_INDEX], minlength=len(dataset.classes))

    # Decoding releases the interpreter's lock, so that threads do.
    with ThreadPoolExecutor() as pool:
        return add_up(np.stack(list(pool.map(histogram, range(len(dataset))))))


def cached_counts(dataset: SegmentationDataset, fingerprint: str) -> ClassCounts:
    """Count as ``count_classes`` does, or take what was counted before from the user's cache folder.

    Args:
        dataset: The data set.
        fingerprint: What ``dataset.fingerprint()`` gives.

    Raises:
        UserError: A label is missing or damaged.
    """
    try:
        path = cache_folder() / f"class-counts/{fingerprint}.json"
    except RuntimeError:  # a user without a home
        return count_classes(dataset)
    counts = _read(path, len(dataset.classes))
    if counts is None:
        counts = count_classes(dataset)
        with suppress(OSError):  # what cannot be kept is counted again
            write_text(path, json.dumps({name: count.tolist() for name, count in vars(counts).items()}))
    return counts


def _read(path: Path, classes: int) -> ClassCounts | None:
    """Read counts from a file, or return None if it is missing or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        table = np.array([content[field.name] for field in fields(ClassCounts)])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    fits = table.dtype == np.int64 and table.shape == (3, classes) and (table >= 0).all()
    return ClassCounts(*table) if fits else None


def add_up(table: npt.NDArray[np.int64]) -> ClassCounts:
    """Add up the pixels of each class in each image, int64 (N, C)."""
    present = table > 0
    return ClassCounts(table.sum(0), present.sum(0), (table.sum(1, keepdims=True) * present).sum(0))


def class_weights(counts: ClassCounts, method: Method) -> list[float]:
    """Turn counts into one weight for each class.

    * ``inverse_frequency``: all pixels / (classes * pixels of the class).
    * ``median_frequency``: median frequency / frequency of the class, where the frequency is the class's share of
      the images that show it (Eigen and Fergus, ICCV 2015, section 4.3.3).
    * ``effective_number``: (1 - b) / (1 - b ** n) with b = 0.999 and n the images that show the class, scaled to a
      mean of 1 (Cui et al., CVPR 2019). Pixels of one image are anything but independent, so images are counted.

    A class that never occurs weighs 0, and takes no part in median or mean.

    Args:
        counts: Of the training set.
        method: One of those above.

    Returns:
        The weights, 0 or more, in the order of the classes.
    """
    present = counts.pixels > 0
    pixels, images, image_pixels = counts.pixels[present], counts.images[present], counts.image_pixels[present]
    if method == "inverse_frequency":
        weights = pixels.sum() / (len(pixels) * pixels)
    elif method == "median_frequency":
        frequency = pixels / image_pixels
        weights = np.median(frequency) / frequency
    else:
        base = 0.999
        weights = (1 - base) / (1 - base**images)
        weights /= weights.mean()
    result = np.zeros(len(present))
    result[present] = weights
    return [float(weight) for weight in result]
