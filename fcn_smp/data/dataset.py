"""What every data set gives, and how an image and its label are read and checked."""

import copy
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import Dataset

from fcn_smp.data.labels import IGNORE_INDEX, Array, Colors, Numbers, reason
from fcn_smp.data.storage import Storage
from fcn_smp.errors import UserError

# Pillow takes pictures of more than 89 megapixels for an attack; a warning is enough, of twice as many an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Selection = Mapping[str, Sequence[int | str] | Literal["rest"]]
"""New classes by name, each with the classes of a data set, by number or name, that it is made of."""


class IncompleteError(UserError):
    """Files of a data set are missing.

    Args:
        message: Which one, in a sentence.
        dataset: The data set.

    Attributes:
        dataset: The data set all the same, for those who ask what else is wrong with it.
    """

    def __init__(self, message: str, dataset: "SegmentationDataset") -> None:
        super().__init__(message)
        self.dataset = dataset


class SizeError(UserError):
    """An image and its label differ in size."""


class Sample(NamedTuple):
    """One labelled image at native size.

    Attributes:
        image: RGB, uint8 (H, W, 3).
        label: Class of each pixel, uint8 (H, W); 255 is void.
        id: Its name in the data set.
    """

    image: Array
    label: Array
    id: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.image.nbytes + self.label.nbytes


class SegmentationDataset(Dataset[Sample]):
    """Labelled images, read anew at each access.

    Args:
        storage: Where the files lie.
        files: Id, image path and label path of each sample.
        decode: Turns the content of a label file, and its name for messages, into classes, uint8 (H, W); void is 255.
            None: the files hold the classes' numbers.
        split: What the split is called, for messages.
        official: Number of images that those who made the data set give for this split, where they do.

    Attributes:
        classes: Name of each class; its position is its label.
        palette: Colour of each label, uint8 (256, 3).

    Raises:
        IncompleteError: A file is missing.
    """

    classes: Sequence[str]
    palette: Array

    def __init__(
        self,
        storage: Storage,
        files: Sequence[tuple[str, str, str]],
        decode: Callable[[bytes, str], Array] | None = None,
        *,
        split: str = "",
        official: int | None = None,
    ) -> None:
        self.storage = storage
        self.files = files
        self.decode = decode or Numbers(range(len(self.classes)))
        self.official = official
        self.lookup: Array | None = None
        self.samples: list[Sample] | None = None
        if not files:
            raise UserError(f"The split {split!r} has no images; there must be one at least.")
        # Last, so that the error carries a whole data set.
        for _, *paths in files:
            for path in paths:
                if not storage.exists(path):
                    raise IncompleteError(f"{storage.locate(path)} is missing, which the split {split!r} names.", self)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Read the sample ``index``.

        Raises:
            UserError: A file is missing or damaged, image and label differ in size, or a label is no class.
        """
        if self.samples is not None:
            return self.samples[index]
        image, label = self.read_image(index), self.read_label(index)
        self.check_size(index, image, label)
        return Sample(image, label, self.files[index][0])

    def check_size(self, index: int, image: Array, label: Array) -> None:
        """See that the image (H, W, 3) and the label (H, W) of the sample ``index`` are of one size.

        Raises:
            SizeError: They are not.
        """
        if image.shape[:2] != label.shape:
            image_name, label_name = map(self.storage.locate, self.files[index][1:])
            raise SizeError(
                f"{label_name} is {label.shape[1]}x{label.shape[0]} pixels, its image"
                f" {image_name} {image.shape[1]}x{image.shape[0]}; they must be of one size."
            )

    def read_image(self, index: int) -> Array:
        """Read the image of the sample ``index`` alone, uint8 (H, W, 3) RGB.

        Raises:
            UserError: The file is missing or damaged.
        """
        path = self.files[index][1]
        return decode_image(self.storage.read(path), self.storage.locate(path))

    def read_label(self, index: int) -> Array:
        """Read the label of the sample ``index`` alone, uint8 (H, W).

        Raises:
            UserError: The file is missing or damaged, or a pixel is no class.
        """
        if self.samples is not None:
            return self.samples[index].label
        path = self.files[index][2]
        label = self.decode(self.storage.read(path), self.storage.locate(path))
        return label if self.lookup is None else self.lookup[label]

    def in_memory(self) -> Self:
        """Return the same samples, read once and kept, to be shared by the processes that are forked later.

        Raises:
            UserError: As reading a sample does.
        """
        loaded = copy.copy(self)
        with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
            loaded.samples = list(pool.map(self.__getitem__, range(len(self))))
        return loaded

    def fingerprint(self) -> str:
        """Return a SHA-256 in hex of what the samples are, in their order, wherever the data set lies.

        It covers the ids, the labels with the classes that they are read as, and of the images the size of each file:
        an image that is replaced by another one of as many bytes goes unnoticed.

        Raises:
            UserError: A file is missing, or a label is damaged and ``decode`` is one of the user's own.
        """
        settings = _settings(self.decode)

        def sample(index: int) -> list[Any]:
            id_, image, label = self.files[index]
            # Whether another decoder reads the same as before shows in nothing but what it reads.
            content = self.storage.read(label) if settings else _content(self.read_label(index))
            return [id_, self.storage.size(image), hashlib.sha256(content).hexdigest()]

        lookup = None if self.lookup is None else self.lookup.tolist()
        digest = hashlib.sha256(_line([list(self.classes), lookup, settings]))
        with ThreadPoolExecutor() as pool:  # reading and hashing release the interpreter's lock
            for described in pool.map(sample, range(len(self))):
                digest.update(_line(described))
        return digest.hexdigest()

    def readable(self) -> tuple[Self, list[str]]:
        """Read all samples; return those that can be read, and a sentence for each of the others on why it cannot."""

        def complaint(index: int) -> str | None:
            try:
                self[index]
            except UserError as error:
                return str(error)
            return None

        with ThreadPoolExecutor() as pool:
            complaints = list(pool.map(complaint, range(len(self))))
        kept = copy.copy(self)
        kept.files = [files for files, wrong in zip(self.files, complaints, strict=True) if wrong is None]
        return kept, [wrong for wrong in complaints if wrong is not None]

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
        for name, old in classes.items():
            if not len(old):
                raise UserError(f"The class {name} is made of nothing; name at least one class that it takes.")
        for number in taken:
            if taken.count(number) > 1:
                raise UserError(f"The class {self.classes[number]} is taken twice; each goes to one new class.")
        selected = copy.copy(self)
        selected.samples = None
        selected.classes = tuple(classes)
        lookup = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        selected.palette = self.palette.copy()
        for new, (name, numbers) in enumerate(members.items()):
            lookup[numbers] = new
            selected.palette[new] = 0 if classes[name] == "rest" else self.palette[numbers[0]]
        selected.lookup = lookup if self.lookup is None else lookup[self.lookup]
        return selected

    def _number(self, one: int | str) -> int:
        if one in self.classes:
            return list(self.classes).index(str(one))
        if isinstance(one, int) and 0 <= one < len(self.classes):
            return one
        known = ", ".join(f"{number} {name}" for number, name in enumerate(self.classes))
        raise UserError(f"There is no class {one!r} to select; the classes are {known}.")


def _settings(decode: Callable[[bytes, str], Array]) -> list[Any] | None:
    """Return all that a decoder's result depends on besides the file, or None for one that is not known here."""
    if type(decode) is Numbers:
        return ["numbers", decode.lookup.tolist(), decode.known.tolist(), decode.channel]
    if type(decode) is Colors:
        return ["colors", decode.codes.tolist(), decode.classes.tolist()]
    return None


def _content(label: Array) -> bytes:
    return _line(label.shape) + label.tobytes()


def _line(values: Sequence[Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def decode_image(content: bytes, name: str) -> Array:
    """Decode an image file as ``upright_rgb`` does.

    Raises:
        UserError: The file is not an image or is damaged; ``name`` is how the message calls it.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return upright_rgb(image)
    except Exception as error:  # a damaged file leads Pillow to errors of any kind
        raise UserError(f"{name} cannot be read as an image: {reason(error)}.") from error


def upright_rgb(image: Image.Image) -> Array:
    """Turn an image into RGB, uint8 (H, W, 3), upright as its EXIF orientation says.

    Of 16 bits the upper 8 are taken, of transparent pixels the colour.
    """
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    upright = ImageOps.exif_transpose(image) if turned else image  # which would copy it all the same
    if upright.mode.startswith("I"):  # Pillow would cut off what is above 255
        upright = Image.fromarray((np.array(upright) >> 8).clip(0, 255).astype(np.uint8))
    if upright.mode == "P" and "transparency" in upright.info:  # Pillow warns of the direct way
        upright = upright.convert("RGBA")
    return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def is_picture(path: str) -> bool:
    """Tell by its path whether a file is a picture; hidden files, and all in hidden folders, are none."""
    _, dot, ending = path.rpartition(".")
    hidden = any(part.startswith(".") for part in path.split("/"))
    return dot + ending.lower() in Image.registered_extensions() and not hidden


def read_image(path: Path) -> Array:
    """Read an image file as ``decode_image`` does.

    Raises:
        UserError: There is no such file, or it is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return decode_image(content, str(path))
