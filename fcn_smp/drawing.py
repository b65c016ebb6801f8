"""Pictures of images, labels and predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fcn_smp.data.labels import IGNORE_INDEX, Array
from fcn_smp.files import whole


def palette_image(label: Array, palette: Array) -> Image.Image:
    """Turn a label, uint8 (H, W), into an image of mode P: pixels stay class numbers, viewers show colours."""
    image = Image.fromarray(label).convert("P")
    image.putpalette(palette.ravel().tobytes())
    return image


def overlay(image: Array, label: Array, palette: Array, opacity: float = 0.6, clear: Sequence[int] = ()) -> Image.Image:
    """Lay a label's colours over its image, uint8 (H, W, 3); the classes ``clear`` stay as they are."""
    shown = np.where(np.isin(np.arange(256), clear), 0, opacity).astype(np.float32)[:, None]
    kept, added = 1 - shown, palette * shown
    blended = np.empty_like(image)
    for top in range(0, len(image), _BAND):  # floats of a large image would take eight times its memory
        rows = slice(top, top + _BAND)
        blended[rows] = (image[rows] * kept[label[rows]] + added[label[rows]]).round()
    return Image.fromarray(blended)


def overlay_with_legend(image: Array, label: Array, palette: Array, classes: Sequence[str]) -> Image.Image:
    """Lay a label's colours over its image, uint8 (H, W, 3), and name below it the classes that occur.

    The background stays clear, as ``clear_classes`` says. The letters of a large image are larger.
    """
    clear, occurs = clear_classes(palette, classes), Image.fromarray(label).histogram()
    white = np.full(3, 255, np.uint8)
    names = [
        (f"{name} (clear)", _swatch(white)) if k in clear else (name, _swatch(palette[k]))
        for k, name in enumerate(classes)
        if occurs[k]
    ]
    picture = overlay(image, label, palette, clear=clear)
    scale = max(1, picture.width // 1000)
    legend = _legend(names, max(200, picture.width // scale))
    return _stack([picture, legend.resize((scale * legend.width, scale * legend.height))])


def clear_classes(palette: Array, classes: Sequence[str]) -> list[int]:
    """Return the classes that an overlay leaves clear: those that are called background or are black."""
    return [k for k, name in enumerate(classes) if name == "background" or not palette[k].any()]


def panel(
    rows: Sequence[tuple[Array, Array, Array]], palette: Array, classes: Sequence[str], height: int = 200
) -> Image.Image:
    """Draw one row for each (image, truth, prediction), side by side, and a legend of the classes that occur.

    Where the truth is void, the prediction is shown all the same.
    """
    strips = [_strip([image, palette[truth], palette[prediction]], height) for image, truth, prediction in rows]
    present = np.unique(np.concatenate([np.unique(label) for _, *labels in rows for label in labels]))
    names = [(classes[i] if i != IGNORE_INDEX else "void", _swatch(palette[i])) for i in present]
    width = max(strip.width for strip in strips)
    return _stack([_heading(("image", "truth", "prediction"), strips[0], width), *strips, _legend(names, width)])


class Row(NamedTuple):
    """An image (H, W, 3), its truth and a prediction (H, W), all uint8, and what is written above them."""

    image: Array
    truth: Array
    prediction: Array
    caption: str


def comparison(
    rows: Sequence[Row], palette: Array, classes: Sequence[str], box: tuple[int, int] = (270, 200)
) -> Image.Image:
    """Draw each image, beside it truth and prediction laid over it, and where they differ; below a legend.

    What is wrong is orange there, what is right dim, and void is hatched.

    Args:
        rows: What is drawn, from top to bottom.
        palette: Colour of each label, uint8 (256, 3).
        classes: Name of each class.
        box: Width and height in pixels into which each picture is fitted.
    """
    clear = clear_classes(palette, classes)
    strips = []
    for row in rows:
        true, predicted = (
            np.array(overlay(row.image, label, palette, clear=[*clear, IGNORE_INDEX]))
            for label in (row.truth, row.prediction)
        )
        true = np.array(_hatched(Image.fromarray(true), row.truth))
        pictures = [Image.fromarray(pixels) for pixels in (row.image, true, predicted, _errors(row))]
        strips.append(_row([ImageOps.contain(picture, box) for picture in pictures], len(pictures), box[0]))
    present = np.unique(np.concatenate([np.unique(label) for row in rows for label in (row.truth, row.prediction)]))
    shown = [(classes[k], _swatch(palette[k])) for k in present if k != IGNORE_INDEX and k not in clear]
    names = [*shown, ("wrong", _swatch(_WRONG)), ("void", _void_swatch())]
    width = strips[0].width
    parts = [_heading(("image", "truth", "prediction", "errors"), strips[0], width, left=_GAP)]
    for row, strip in zip(rows, strips, strict=True):
        parts += [_caption(row.caption, width), strip]
    return _stack([*parts, _legend(names, width)])


class Tile(NamedTuple):
    """A picture of a contact sheet: an image (H, W, 3) and its label (H, W), both uint8, and what is written below."""

    image: Array
    label: Array
    caption: str


def contact_sheet(
    tiles: Sequence[Tile],
    palette: Array,
    classes: Sequence[str],
    columns: int = 4,
    box: tuple[int, int] = (240, 180),
) -> Image.Image:
    """Draw each image above the same with its label's colours laid over it, and a legend of all classes.

    Void is hatched; the background stays clear, as ``clear_classes`` says.

    Args:
        tiles: What is drawn, row by row.
        palette: Colour of each label, uint8 (256, 3).
        classes: Name of each class.
        columns: Number of tiles in a row.
        box: Width and height in pixels into which each image is fitted.
    """
    clear = clear_classes(palette, classes)
    names = [
        (f"{name} (clear)", _swatch(np.full(3, 255, np.uint8))) if k in clear else (name, _swatch(palette[k]))
        for k, name in enumerate(classes)
    ]
    names.append(("void", _void_swatch()))
    pictures = [_tile(tile, palette, clear, box) for tile in tiles]
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    columns = min(columns, len(tiles))
    return _stack([*(_row(row, columns, box[0]) for row in rows), _legend(names, columns * (box[0] + 2 * _GAP))])


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format of the path's suffix, at once."""
    with whole(path) as temporary:
        image.save(temporary)


_GAP = 6
_BAND = 64
"""Rows that are blended at a time."""
_WRONG = np.array((213, 94, 0), np.uint8)
"""Orange of Okabe and Ito, which people of every kind of colour vision tell from grey."""
_SWATCH = (18, 13)
"""Width and height of a colour in a legend."""


def _stack(parts: Sequence[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height
    return canvas


def _row(pictures: Sequence[Image.Image], columns: int, width: int) -> Image.Image:
    """Put pictures of so large a width at most side by side."""
    column = width + 2 * _GAP
    row = Image.new("RGB", (columns * column, max(picture.height for picture in pictures) + 2 * _GAP), "white")
    for number, picture in enumerate(pictures):
        row.paste(picture, (number * column + _GAP, _GAP))
    return row


def _tile(tile: Tile, palette: Array, clear: Sequence[int], box: tuple[int, int]) -> Image.Image:
    height, width = tile.label.shape
    scale = min(box[0] / width, box[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(tile.image).resize(size, Image.Resampling.BILINEAR)
    label = np.array(Image.fromarray(tile.label).resize(size, Image.Resampling.NEAREST))
    labelled = _hatched(overlay(np.array(image), label, palette, clear=[*clear, IGNORE_INDEX]), label)
    picture = Image.new("RGB", (box[0], 2 * size[1] + 3 + 20), "white")
    draw = ImageDraw.Draw(picture)
    left = (box[0] - size[0]) // 2
    for top, part in ((0, image), (size[1] + 3, labelled)):
        picture.paste(part, (left, top))
        draw.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), outline="gray")
    font = ImageFont.load_default(13)
    caption = tile.caption
    while len(caption) > 2 and font.getlength(caption) > box[0]:
        caption = f"…{caption[2:]}"  # what tells samples apart is most often at the end
    draw.text(((box[0] - font.getlength(caption)) / 2, 2 * size[1] + 5), caption, fill="black", font=font)
    return picture


def _hatched(image: Image.Image, label: Array) -> Image.Image:
    """Draw diagonal stripes where a label is void."""
    pixels = np.array(image)
    stripes = np.add(*np.indices(label.shape)) % 6 < 3
    void = label == IGNORE_INDEX
    pixels[void & stripes] = 255
    pixels[void & ~stripes] //= 3
    return Image.fromarray(pixels)


def _swatch(color: Array) -> Image.Image:
    return Image.new("RGB", _SWATCH, tuple(int(value) for value in color))


def _void_swatch() -> Image.Image:
    return _hatched(_swatch(np.full(3, 128, np.uint8)), np.full(_SWATCH[::-1], IGNORE_INDEX, np.uint8))


def _errors(row: Row) -> Array:
    dim = np.array(Image.fromarray(row.image).convert("L").convert("RGB")) // 3
    dim[row.truth != row.prediction] = _WRONG
    return np.array(_hatched(Image.fromarray(dim), row.truth))


def _caption(text: str, width: int) -> Image.Image:
    caption = Image.new("RGB", (width, 20), "white")
    ImageDraw.Draw(caption).text((_GAP, 3), text, fill="black", font=ImageFont.load_default(13))
    return caption


def _strip(images: Sequence[Array], height: int) -> Image.Image:
    scale = height / images[0].shape[0]
    width = max(1, round(images[0].shape[1] * scale))
    strip = Image.new("RGB", (len(images) * (width + _GAP) - _GAP, height + _GAP), "white")
    for column, pixels in enumerate(images):
        resampling = Image.Resampling.BILINEAR if column == 0 else Image.Resampling.NEAREST
        strip.paste(Image.fromarray(pixels).resize((width, height), resampling), (column * (width + _GAP), 0))
    return strip


def _heading(titles: Sequence[str], strip: Image.Image, width: int, left: int = 2) -> Image.Image:
    heading = Image.new("RGB", (width, 22), "white")
    column = (strip.width + _GAP) // len(titles)
    for k, title in enumerate(titles):
        ImageDraw.Draw(heading).text((k * column + left, 3), title, fill="black", font=ImageFont.load_default(14))
    return heading


def _legend(names: Sequence[tuple[str, Image.Image]], width: int) -> Image.Image:
    font = ImageFont.load_default(13)
    places, left, top = [], 4, 4
    for name, swatch in names:
        advance = 24 + int(font.getlength(name)) + 14
        if left + advance > width and left > 4:
            left, top = 4, top + 20
        places.append((left, top, name, swatch))
        left += advance
    legend = Image.new("RGB", (width, top + 22), "white")
    draw = ImageDraw.Draw(legend)
    for left, top, name, swatch in places:
        draw.rectangle((left, top, left + swatch.width + 1, top + swatch.height + 1), outline="black")
        legend.paste(swatch, (left + 1, top + 1))
        draw.text((left + 24, top - 1), name, fill="black", font=font)
    return legend
