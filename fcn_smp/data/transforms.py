"""From uint8 images and labels to the tensors that the network takes. The only file that knows albumentations."""

import math
import os
from collections.abc import Sequence
from typing import Any, Literal

# Albumentations asks the package index for a newer release at import, whose licence would be another.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from torch import Tensor

from fcn_smp.data.labels import IGNORE_INDEX, Array

# The loader's workers are processes already; OpenCV's threads in each of them would fight over the cores.
cv2.setNumThreads(0)

# Plain INTER_NEAREST takes the upper left neighbour: labels would be shifted.
_INTERPOLATION = {"area_for_downscale": "image", "mask_interpolation": cv2.INTER_NEAREST_EXACT}


class Preprocess:
    """Turn an image into what the network expects.

    Args:
        mean: Mean of each channel, in the order of ``input_space`` and for values in ``input_range``.
        std: Standard deviation of each channel, likewise.
        input_space: Order of the channels that the network expects, ``"RGB"`` or ``"BGR"``.
        input_range: Smallest and largest value that the network expects before normalisation, (0, 1) or (0, 255).
        resize: Height and width to which every image is stretched, in pixels; None: it keeps its size.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        input_space: Literal["RGB", "BGR"] = "RGB",
        input_range: tuple[float, float] = (0, 1),
        resize: tuple[int, int] | None = None,
    ) -> None:
        self.reverse = input_space == "BGR"
        order = -1 if self.reverse else 1
        self.max_pixel_value = 255 / input_range[1]
        self.mean, self.std = tuple(mean)[::order], tuple(std)[::order]
        self.normalize = A.Normalize(self.mean, self.std, max_pixel_value=self.max_pixel_value)
        self.resize = [] if resize is None else [A.Resize(*resize, **_INTERPOLATION)]
        self.transform = self.compose([])

    def compose(self, transforms: Sequence[Any]) -> A.Compose:
        """Return ``transforms`` of the RGB image between what this class does, but for the order of the channels."""
        return A.Compose([*self.resize, *transforms, self.normalize, A.ToTensorV2()])

    def order(self, tensor: Tensor) -> Tensor:
        """Bring the channels of an RGB tensor (3, H, W) into the network's order."""
        return tensor.flip(0) if self.reverse else tensor

    def __call__(self, image: Array) -> Tensor:
        """Map a uint8 RGB image (H, W, 3) to a float32 tensor (3, H, W), or of the size of ``resize``."""
        return self.order(self.transform(image=image)["image"])

    def undo(self, tensor: Tensor) -> Array:
        """Map what :meth:`__call__` gave back to the image, of the size that the network sees."""
        image = self.order(tensor).numpy().transpose(1, 2, 0) * np.array(self.std) + np.array(self.mean)
        pixels: Array = (image * self.max_pixel_value).round().clip(0, 255).astype(np.uint8)
        return pixels


class ClassBalancedCrop(A.RandomCrop):  # type: ignore[misc]  # albumentations has no types
    """Crop at random, or around a pixel of a random class.

    The class is one of those that the label shows, each as likely as the others, then the pixel one of the class, and
    the crop one of those inside the image that hold the pixel. This is the class uniform sampling of Zhu et al.
    (Improving semantic segmentation via video propagation and label relaxation, CVPR 2019) within each image: theirs
    draws the class, and thereby the image, from the whole data set.

    Args:
        height: Height of the crop in pixels; the image must be as high at least.
        width: Width of the crop in pixels, likewise.
        class_balance: Probability of a crop around a pixel, 0 to 1. A label without classes has none.
    """

    def __init__(self, height: int, width: int, class_balance: float) -> None:
        super().__init__(height, width)
        self.class_balance = class_balance

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Choose the place of the crop."""
        ordinary: dict[str, Any] = super().get_params_dependent_on_data(params, data)
        rng = self.random_generator  # the ordinary crop draws from another one, and so lies where it would anyway
        label = data["mask"]
        if rng.random() >= self.class_balance or (label == IGNORE_INDEX).all():
            return ordinary
        row, column = draw_pixel(label, rng)
        top = rng.integers(max(0, row - self.height + 1), min(row, label.shape[0] - self.height), endpoint=True)
        left = rng.integers(max(0, column - self.width + 1), min(column, label.shape[1] - self.width), endpoint=True)
        return ordinary | {"crop_coords": (left, top, left + self.width, top + self.height)}


def draw_pixel(label: Array, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a class of a label (H, W), each as likely, then one of its pixels; return row and column."""
    counts = np.bincount(label.ravel(), minlength=256)
    counts[IGNORE_INDEX] = 0
    drawn = rng.choice(np.flatnonzero(counts))
    place = np.flatnonzero(label == drawn)[rng.integers(counts[drawn])]
    row, column = divmod(int(place), label.shape[1])
    return row, column


class Augment:
    """Scale at random, pad with void, crop, flip, shift colours and normalise, after what ``preprocess`` does first.

    Args:
        preprocess: What comes first and last; its mean is also the colour of the padding.
        crop: Height and width of the result in pixels.
        scale: Smallest and largest factor of the random scale.
        flip: Probability of a horizontal flip.
        color_jitter: Largest change of brightness, contrast and saturation as a factor; hue changes a sixth of it.
        class_balance: Probability of a crop around a pixel of a random class, 0 to 1; else it lies anywhere.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        *,
        crop: tuple[int, int],
        scale: tuple[float, float],
        flip: float,
        color_jitter: float,
        class_balance: float,
    ) -> None:
        height, width = crop
        self.preprocess = preprocess

        def pad(height: int, width: int) -> A.PadIfNeeded:
            color = tuple(preprocess.max_pixel_value * value for value in preprocess.mean)
            return A.PadIfNeeded(height, width, border_mode=cv2.BORDER_CONSTANT, fill=color, fill_mask=IGNORE_INDEX)

        # The smallest scale must leave a pixel of the smallest image.
        smallest = math.floor(1 / scale[0]) + 1
        self.transform = preprocess.compose(
            [
                pad(smallest, smallest),
                A.RandomScale((scale[0] - 1, scale[1] - 1), **_INTERPOLATION, p=1),
                pad(height, width),
                ClassBalancedCrop(height, width, class_balance),
                A.HorizontalFlip(p=flip),
                A.ColorJitter(*[(max(0.0, 1 - color_jitter), 1 + color_jitter)] * 3, hue=color_jitter / 6, p=0.8),
            ]
        )

    def __call__(self, image: Array, label: Array, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Map a uint8 image (H, W, 3) and label (H, W) to a float32 (3, h, w) and an int64 (h, w) tensor.

        The same ``seed`` gives the same result, in whatever process.
        """
        # Compose would hand one seed to all transforms, which would then draw the same numbers.
        for transform, state in zip(
            self.transform.transforms,
            np.random.SeedSequence(seed).generate_state(len(self.transform.transforms)),
            strict=True,
        ):
            transform.set_random_seed(int(state))
        result = self.transform(image=image, mask=label)
        return self.preprocess.order(result["image"]), result["mask"].long()
