"""What the pixels of a label file mean: numbers or colours, turned into classes."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fcn_smp.errors import UserError

Array = npt.NDArray[np.uint8]
Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

IGNORE_INDEX = 255
"""Label of pixels that belong to no class: borders, void, padding. Neither trained on nor scored."""


class LabelError(UserError):
    """A label file is whole, but its pixels are not what they should be."""


class Numbers:
    """Decodes labels whose pixels are numbers: palette or grayscale pictures.

    Args:
        values: Number of each class, 0 to 255.
        void: Numbers that stand for no class.
        channel: For pictures of more channels, the one that holds the numbers, 0 for red. None: they are refused.
    """

    def __init__(
        self, values: Sequence[int], void: Iterable[int] = (IGNORE_INDEX,), channel: int | None = None
    ) -> None:
        self.values, self.void, self.channel = tuple(values), tuple(void), channel
        self.lookup = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        self.lookup[list(self.values)] = np.arange(len(self.values))
        self.known = np.isin(np.arange(256), [*self.values, *self.void])

    def __call__(self, content: bytes, name: str) -> Array:
        """Decode a label file to classes, uint8 (H, W); void is 255.

        Raises:
            UserError: The file is damaged, or a pixel is neither a class nor void; ``name`` is what the message calls
                the file.
        """
        raw = decode_numbers(content, name, self.channel)
        # As bytes, which are looked up five times as fast as by NumPy.
        numbers = bytearray(raw)
        if wrong := numbers.translate(None, np.flatnonzero(self.known).astype(np.uint8).tobytes()):
            raise LabelError(f"{name} holds the label {min(wrong)}; allowed are {self._allowed()}.")
        return np.frombuffer(numbers.translate(self.lookup.tobytes()), np.uint8).reshape(raw.shape)

    def _allowed(self) -> str:
        count = len(self.values)
        values = f"0 to {count - 1}" if self.values == tuple(range(count)) else ", ".join(map(str, self.values))
        void = f" and {', '.join(map(str, self.void))} (void)" if self.void else ""
        return f"{values} (the {count} classes){void}"


class Colors:
    """Decodes labels whose pixels are colours.

    Args:
        colors: Colour of each class.
        void: Colours that stand for no class.
    """

    def __init__(self, colors: Sequence[Color], void: Iterable[Color] = ()) -> None:
        codes = _codes(np.array([*colors, *void]))
        classes = [*range(len(colors)), *[IGNORE_INDEX] * (len(codes) - len(colors))]
        order = np.argsort(codes)
        self.codes, self.classes = codes[order], np.array(classes, dtype=np.uint8)[order]

    def __call__(self, content: bytes, name: str) -> Array:
        """Decode a label file to classes, uint8 (H, W); void is 255.

        Raises:
            UserError: The file is damaged, or a pixel's colour is none of those; ``name`` is what the message calls
                the file.
        """
        with _open(content, name) as picture:
            pixels = np.array(picture.convert("RGB"))
        codes = _codes(pixels)
        places = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        wrong = np.argwhere(self.codes[places] != codes)
        if wrong.size:
            row, column = wrong[0]
            red, green, blue = pixels[row, column]
            raise LabelError(
                f"{name} has the colour ({red}, {green}, {blue}) at row {row}, column {column}, which is that of no"
                " class; list it among the classes or as void."
            )
        label: Array = self.classes[places]
        return label


def decode_numbers(content: bytes, name: str, channel: int | None = None) -> Array:
    """Decode a label picture to its numbers, uint8 (H, W).

    Args:
        content: The file.
        name: What a message calls it.
        channel: As in ``Numbers``.

    Raises:
        UserError: The file is damaged, or its pixels are no numbers.
    """
    with _open(content, name) as picture:
        mode, label = picture.mode, np.array(picture)
    if channel is not None and mode in ("RGB", "RGBA"):
        return np.ascontiguousarray(label[:, :, channel])
    if mode == "1":
        return label.astype(np.uint8)
    if mode not in ("P", "L"):
        raise LabelError(
            f"{name} is a label of mode {mode}; its pixels must be class numbers (mode P or L),"
            " unless the classes are colours (data.names of a folder: {road: [128, 64, 128]})."
        )
    return label


def _open(content: bytes, name: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except Exception as error:  # a damaged file leads Pillow to errors of any kind
        raise UserError(f"{name} cannot be read as a label: {reason(error)}.") from error
    return picture


def reason(error: Exception) -> str:
    """Say in a few words why Pillow could not read a file."""
    if isinstance(error, UnidentifiedImageError):
        return "it is in no known image format"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _codes(pixels: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    codes: npt.NDArray[np.int64] = red << 16 | green << 8 | blue
    return codes
