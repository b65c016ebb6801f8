"""What every data set gives, and how an image and its label are read and checked."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from fcn_smp.data.storage import Storage
from fcn_smp.errors import UserError

Array = npt.NDArray[np.uint8]

IGNORE_INDEX = 255
"""Label of pixels that belong to no class: borders, void, padding. Neither trained on nor scored."""


class Sample(NamedTuple):
    """One labelled image: ``image`` (H, W, 3) RGB and ``label`` (H, W), both uint8 at native size."""

    image: Array
    label: Array
    id: str


class SegmentationDataset(Dataset[Sample]):
    """Labelled images, read anew at each access.

    Args:
        storage: Where the files lie.
        files: Id, image path and label path of each sample.

    Attributes:
        classes: Name of each class; its position is its label.
        palette: Colour of each label, uint8 (256, 3).
    """

    classes: Sequence[str]
    palette: Array

    def __init__(self, storage: Storage, files: Sequence[tuple[str, str, str]]) -> None:
        self.storage = storage
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Read the sample ``index``.

        Raises:
            UserError: A file is missing or damaged, image and label differ in size, or a label is no class.
        """
        id_, image_path, label_path = self.files[index]
        image = decode_image(self.storage.read(image_path), self.storage.locate(image_path))
        label = self.read_label(index)
        if image.shape[:2] != label.shape:
            raise UserError(
                f"{self.storage.locate(label_path)} is {label.shape[1]}x{label.shape[0]} pixels, its image"
                f" {self.storage.locate(image_path)} {image.shape[1]}x{image.shape[0]}; they must be of one size."
            )
        return Sample(image, label, id_)

    def read_label(self, index: int) -> Array:
        """Read the label of the sample ``index`` alone, uint8 (H, W)."""
        path = self.files[index][2]
        label = decode_label(self.storage.read(path), self.storage.locate(path))
        wrong = np.setdiff1d(label[label != IGNORE_INDEX], np.arange(len(self.classes)))
        if wrong.size:
            raise UserError(
                f"{self.storage.locate(path)} holds the label {wrong[0]}; allowed are 0 to {len(self.classes) - 1}"
                f" (the {len(self.classes)} classes) and {IGNORE_INDEX} (void)."
            )
        return label


def decode_image(content: bytes, name: str) -> Array:
    """Decode an image file to RGB, uint8 (H, W, 3), turned upright as its EXIF orientation says.

    Raises:
        UserError: The file is not an image or is damaged; ``name`` is how the message calls it.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # a damaged file leads Pillow to errors of any kind
        raise UserError(f"{name} cannot be read as an image: {_reason(error)}.") from error


def decode_label(content: bytes, name: str) -> Array:
    """Decode a label image, whose pixels are class numbers (palette or grayscale), to uint8 (H, W).

    Raises:
        UserError: The file is damaged, or its pixels are colours; ``name`` is how the message calls it.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode, label = image.mode, np.array(image)
    except Exception as error:
        raise UserError(f"{name} cannot be read as a label: {_reason(error)}.") from error
    if mode not in ("P", "L"):
        raise UserError(f"{name} is a label of mode {mode}; its pixels must be class numbers (mode P or L).")
    return label


def read_image(path: Path) -> Array:
    """Read an image file as :func:`decode_image` does."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return decode_image(content, str(path))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is in no known image format"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
