"""What every data set gives, and how an image and its label are read and checked."""

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from fcn_smp.data.labels import IGNORE_INDEX, Array, Numbers, reason
from fcn_smp.data.storage import Storage
from fcn_smp.errors import UserError

Selection = Mapping[str, Sequence[int | str] | Literal["rest"]]
"""New classes by name, each with the classes of a data set, by number or name, that it is made of."""


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
        decode: Turns the content of a label file, and its name for messages, into classes, uint8 (H, W); void is 255.
            None: the files hold the classes' numbers.

    Attributes:
        classes: Name of each class; its position is its label.
        palette: Colour of each label, uint8 (256, 3).
    """

    classes: Sequence[str]
    palette: Array

    def __init__(
        self,
        storage: Storage,
        files: Sequence[tuple[str, str, str]],
        decode: Callable[[bytes, str], Array] | None = None,
    ) -> None:
        self.storage = storage
        self.files = files
        self.decode = decode or Numbers(range(len(self.classes)))
        self.lookup: Array | None = None

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
        label = self.decode(self.storage.read(path), self.storage.locate(path))
        return label if self.lookup is None else self.lookup[label]

    def select(self, classes: Selection) -> Self:
        """Return the same images with other classes: merged, left out, or one against the rest.

        Args:
            classes: Name of each new class and what it is made of; ``"rest"`` for what no other class takes. Without a
                ``"rest"`` that becomes void; but a single class stands against a first class ``background``.

        Raises:
            UserError: A class is unknown or taken twice.
        """
        if len(classes) == 1 and "rest" not in classes.values():
            classes = {"background": "rest", **classes}
        members = {name: [] if old == "rest" else [self._number(one) for one in old] for name, old in classes.items()}
        taken = [number for numbers in members.values() for number in numbers]
        for name, old in classes.items():
            if old == "rest":
                members[name] = [number for number in range(len(self.classes)) if number not in taken]
                taken += members[name]
        for number in taken:
            if taken.count(number) > 1:
                raise UserError(f"The class {self.classes[number]} is taken twice; each goes to one new class.")
        selected = copy.copy(self)
        selected.classes = tuple(classes)
        selected.lookup = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        selected.palette = self.palette.copy()
        for new, (name, numbers) in enumerate(members.items()):
            selected.lookup[numbers] = new
            selected.palette[new] = 0 if classes[name] == "rest" else self.palette[numbers[0]]
        return selected

    def _number(self, one: int | str) -> int:
        if one in self.classes:
            return list(self.classes).index(str(one))
        if isinstance(one, int) and 0 <= one < len(self.classes):
            return one
        known = ", ".join(f"{number} {name}" for number, name in enumerate(self.classes))
        raise UserError(f"There is no class {one!r} to select; the classes are {known}.")


def decode_image(content: bytes, name: str) -> Array:
    """Decode an image file to RGB, uint8 (H, W, 3), turned upright as its EXIF orientation says.

    Raises:
        UserError: The file is not an image or is damaged; ``name`` is how the message calls it.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # a damaged file leads Pillow to errors of any kind
        raise UserError(f"{name} cannot be read as an image: {reason(error)}.") from error


def read_image(path: Path) -> Array:
    """Read an image file as :func:`decode_image` does."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return decode_image(content, str(path))
