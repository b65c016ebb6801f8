"""From decoded images to what the network takes. The only file that knows albumentations.

Processes that load data resize, crop and shift colours, all in uint8; the network's device normalises. What is copied
from one to the other, and to the device, is thus a quarter of what floats would be.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal

# Albumentations asks the package index for a newer release at import, whose licence would be another.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fcn_smp.data.labels import IGNORE_INDEX, Array

# The loader's workers are processes already; OpenCV's threads in each of them would fight over the cores.
cv2.setNumThreads(0)

# Plain INTER_NEAREST takes the upper left neighbour: labels would be shifted.
_LABEL = cv2.INTER_NEAREST_EXACT

LUMA = np.array([0.299, 0.587, 0.114])
"""How bright red, green and blue are (ITU-R BT.601)."""


class Normalize(nn.Module):
    """Bring pixels into the range and the order that the network expects, on whatever device they are.

    Args:
        mean: Mean of each channel, in the order of ``input_space`` and for values in ``input_range``.
        std: Standard deviation of each channel, likewise.
        input_space: Order of the channels that the network expects, ``"RGB"`` or ``"BGR"``.
        input_range: Smallest and largest value that the network expects before normalisation, (0, 1) or (0, 255).
    """

    factor: Tensor
    offset: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        input_space: Literal["RGB", "BGR"] = "RGB",
        input_range: tuple[float, float] = (0, 1),
    ) -> None:
        super().__init__()
        self.reverse = input_space == "BGR"
        center, spread = (torch.tensor(tuple(values), dtype=torch.float64)[:, None, None] for values in (mean, std))
        self.register_buffer("factor", (input_range[1] / 255 / spread).float(), persistent=False)
        self.register_buffer("offset", (-center / spread).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB images, uint8 (N, 3, H, W), to float32 (N, 3, H, W) of the same memory format."""
        images = images.flip(1) if self.reverse else images
        return torch.addcmul(self.offset, images.float(), self.factor)  # one pass, not two


class Preprocess:
    """Turn an image into what the network expects.

    Args:
        mean: As of ``Normalize``.
        std: Likewise.
        input_space: Likewise.
        input_range: Likewise.
        resize: Height and width to which every image is stretched, in pixels; None: it keeps its size.

    Attributes:
        normalize: What is left to be done with the images of ``resized``, for a batch on its device.
        stretch: The transforms, one or none, that resize image and label.
        gray: Mean colour, RGB from 0 to 255, rounded.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        input_space: Literal["RGB", "BGR"] = "RGB",
        input_range: tuple[float, float] = (0, 1),
        resize: tuple[int, int] | None = None,
    ) -> None:
        self.normalize = Normalize(mean, std, input_space, input_range)
        options = {"area_for_downscale": "image", "mask_interpolation": _LABEL}
        self.stretch = [] if resize is None else [A.Resize(*resize, **options)]
        rgb = tuple(mean)[:: -1 if input_space == "BGR" else 1]
        self.gray = tuple(round(255 / input_range[1] * value) for value in rgb)

    def resized(self, image: Array) -> Array:
        """Return a uint8 RGB image (H, W, 3) in the size that the network gets."""
        for stretch in self.stretch:
            image = stretch(image=image)["image"]
        return image

    def __call__(self, image: Array) -> Tensor:
        """Map a uint8 RGB image (H, W, 3) to a float32 tensor (3, H, W), or of the size of ``resize``."""
        pixels = torch.from_numpy(self.resized(image)).permute(2, 0, 1).contiguous()
        tensor: Tensor = self.normalize(pixels[None])[0]
        return tensor


class ScaledCrop(A.DualTransform):  # type: ignore[misc]  # albumentations has no types
    """Take a window of the image at random and scale it; what is not kept is not scaled either.

    The window is as large as what it becomes, divided by a random factor and rounded to whole pixels, which it may thus
    miss by half a pixel of the image. Where the scaled image is no larger than the crop, all of it is kept. Images are
    enlarged bilinearly and reduced by areas; a label's pixels are those under the centres.

    Or the window lies around a pixel of a random class. The class is one of those that the label shows, each as likely
    as the others, then the pixel one of the class, and the window one of those inside the image that hold the pixel.
    (Of a window that is reduced not every pixel is left, so that one at the edge may be missing.)
    This is the class uniform sampling of Zhu et al. (Improving semantic segmentation via video propagation and label
    relaxation, CVPR 2019) within each image: theirs draws the class, and thereby the image, from the whole data set.

    Args:
        height: Largest height of the result in pixels.
        width: Largest width, likewise.
        scale: Smallest and largest factor.
        class_balance: Probability of a window around a pixel, 0 to 1. A label without classes has none.
    """

    def __init__(self, height: int, width: int, scale: tuple[float, float], class_balance: float) -> None:
        super().__init__(p=1)
        self.crop = height, width
        self.scale = scale
        self.class_balance = class_balance

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Choose the window, and the size that it gets."""
        rng, label = self.random_generator, data["mask"]
        factor = rng.uniform(*self.scale)
        extents = [_extent(length, crop, factor) for length, crop in zip(label.shape, self.crop, strict=True)]
        places = rng.random(2)
        ranges = [(0, length - taken) for length, (taken, _) in zip(label.shape, extents, strict=True)]
        # Drawn last, so that the others lie where they would anyway.
        if rng.random() < self.class_balance and (label != IGNORE_INDEX).any():
            for axis, pixel in enumerate(draw_pixel(label, rng)):
                first, last = ranges[axis]
                ranges[axis] = max(first, pixel - extents[axis][0] + 1), min(pixel, last)
        starts = [first + int(place * (last - first + 1)) for place, (first, last) in zip(places, ranges, strict=True)]
        window = tuple(slice(start, start + taken) for start, (taken, _) in zip(starts, extents, strict=True))
        return {"window": window, "size": tuple(becomes for _, becomes in extents)}

    def apply(self, img: Array, window: tuple[slice, slice], size: tuple[int, int], **_: Any) -> Array:
        """Cut a window out of an image (H, W, 3) and scale it to ``size``, height and width."""
        part = img[window]
        smaller = size[0] < part.shape[0] or size[1] < part.shape[1]
        return _scaled(part, size, cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: Array, window: tuple[slice, slice], size: tuple[int, int], **_: Any) -> Array:
        """Do the same with a label (H, W)."""
        return _scaled(mask[window], size, _LABEL)


def _scaled(pixels: Array, size: tuple[int, int], interpolation: int) -> Array:
    return cv2.resize(pixels, size[::-1], interpolation=interpolation).astype(np.uint8, copy=False)


def _extent(length: int, crop: int, factor: float) -> tuple[int, int]:
    """Return how many pixels of an axis are taken, and how many they become."""
    scaled = max(1, round(length * factor))
    return (length, scaled) if scaled <= crop else (min(length, max(1, round(crop / factor))), crop)


def draw_pixel(label: Array, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a class of a label (H, W), each as likely, then one of its pixels; return row and column."""
    counts = np.bincount(label.ravel(), minlength=256)
    counts[IGNORE_INDEX] = 0
    drawn = rng.choice(np.flatnonzero(counts))
    place = np.flatnonzero(label == drawn)[rng.integers(counts[drawn])]
    row, column = divmod(int(place), label.shape[1])
    return row, column


class ShiftColors(A.ImageOnlyTransform):  # type: ignore[misc]
    """Change brightness, contrast, saturation and hue at random, by one map that is applied once.

    The first three are those of torchvision and Pillow. Hue is turned about the axis of greys rather than in HSV, so
    that all four are affine (Karras et al., Training generative adversarial networks with limited data, NeurIPS 2020,
    appendix B): grey stays grey, and no channel is cut off before the last one is done.

    Args:
        strength: Largest change of brightness, contrast and saturation as a factor; hue turns by a sixth of a circle
            times it at most.
    """

    def __init__(self, strength: float) -> None:
        super().__init__(p=0.8)
        self.strength = strength

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the changes for an image."""
        low, high = max(0.0, 1 - self.strength), 1 + self.strength
        brightness, contrast, saturation = self.random_generator.uniform(low, high, 3)
        turn = self.random_generator.uniform(-self.strength, self.strength) / 6
        mean = np.array(cv2.mean(data["image"])[:3])
        return {"matrix": color_matrix(mean, brightness, contrast, saturation, turn)}

    def apply(self, img: Array, matrix: npt.NDArray[np.float64], **_: Any) -> Array:
        """Map the colours of an image (H, W, 3)."""
        return cv2.transform(img, matrix).astype(np.uint8, copy=False)


def color_matrix(
    mean: npt.NDArray[np.float64], brightness: float, contrast: float, saturation: float, turn: float
) -> npt.NDArray[np.float64]:
    """Return the affine map (3, 4) of RGB colours that changes them by these factors.

    Args:
        mean: Mean colour of the image (3,); contrast is that to its brightness.
        brightness: 0 makes it black.
        contrast: 0 leaves a grey image.
        saturation: 0 leaves the greys.
        turn: Of the hue, in circles; 1/3 makes red green.
    """
    cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn) / np.sqrt(3)
    third = (1 - cos) / 3
    # Rodrigues' formula for the axis (1, 1, 1).
    hue = np.array(
        [
            [cos + third, third - sin, third + sin],
            [third + sin, cos + third, third - sin],
            [third - sin, third + sin, cos + third],
        ]
    )
    colors = brightness * (saturation * np.eye(3) + (1 - saturation) * LUMA) @ hue
    gray = LUMA @ colors @ mean
    return np.column_stack([contrast * colors, np.full(3, (1 - contrast) * gray)])


class Augment:
    """Crop and scale at random, flip, shift colours and pad with void, after what ``preprocess`` does first.

    What is not kept costs nothing: the crop is taken before it is scaled, and the padding comes last.

    Args:
        preprocess: May resize the image first; its mean, rounded, is the colour of the padding.
        crop: Height and width of the result in pixels.
        scale: Smallest and largest factor of the random scale.
        flip: Probability of a horizontal flip.
        color_jitter: Largest change of brightness, contrast and saturation as a factor; hue changes a sixth of it. Of
            five images four are changed.
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
        self.transform = A.Compose(
            [
                *preprocess.stretch,
                ScaledCrop(*crop, scale, class_balance),
                A.HorizontalFlip(p=flip),
                ShiftColors(color_jitter),
                A.PadIfNeeded(*crop, border_mode=cv2.BORDER_CONSTANT, fill=preprocess.gray, fill_mask=IGNORE_INDEX),
            ]
        )

    def __call__(self, image: Array, label: Array, seed: Sequence[int]) -> tuple[Array, Array]:
        """Map an image (H, W, 3) and its label (H, W) to an image (h, w, 3) and a label (h, w), all uint8.

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
        return result["image"], result["mask"]
