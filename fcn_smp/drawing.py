"""Pictures of images, labels and predictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcn_smp.data.labels import IGNORE_INDEX, Array
from fcn_smp.files import whole


def palette_image(label: Array, palette: Array) -> Image.Image:
    """Turn a label, uint8 (H, W), into an image of mode P: pixels stay class numbers, viewers show colours."""
    image = Image.fromarray(label).convert("P")
    image.putpalette(palette.ravel().tobytes())
    return image


def overlay(image: Array, label: Array, palette: Array, opacity: float = 0.6) -> Image.Image:
    """Lay a label's colours over its image, uint8 (H, W, 3); class 0, the background, stays clear."""
    colors = palette[label].astype(np.float32)
    shown = (label != 0)[..., None] * opacity
    return Image.fromarray((image * (1 - shown) + colors * shown).round().astype(np.uint8))


def panel(
    rows: Sequence[tuple[Array, Array, Array]], palette: Array, classes: Sequence[str], height: int = 200
) -> Image.Image:
    """Draw one row for each (image, truth, prediction), side by side, and a legend of the classes that occur.

    Where the truth is void, the prediction is shown all the same.
    """
    strips = [_strip([image, palette[truth], palette[prediction]], height) for image, truth, prediction in rows]
    present = np.unique(np.concatenate([np.unique(label) for _, *labels in rows for label in labels]))
    names = [(classes[i] if i != IGNORE_INDEX else "void", palette[i]) for i in present]
    width = max(strip.width for strip in strips)
    parts = [_heading(strips[0], width), *strips, _legend(names, width)]
    canvas = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height
    return canvas


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format of the path's suffix, at once."""
    with whole(path) as temporary:
        image.save(temporary)


_GAP = 6


def _strip(images: Sequence[Array], height: int) -> Image.Image:
    scale = height / images[0].shape[0]
    width = max(1, round(images[0].shape[1] * scale))
    strip = Image.new("RGB", (3 * width + 2 * _GAP, height + _GAP), "white")
    for column, pixels in enumerate(images):
        resampling = Image.Resampling.BILINEAR if column == 0 else Image.Resampling.NEAREST
        strip.paste(Image.fromarray(pixels).resize((width, height), resampling), (column * (width + _GAP), 0))
    return strip


def _heading(strip: Image.Image, width: int) -> Image.Image:
    heading = Image.new("RGB", (width, 22), "white")
    column = (strip.width - 2 * _GAP) // 3 + _GAP
    for k, title in enumerate(("image", "truth", "prediction")):
        ImageDraw.Draw(heading).text((k * column + 2, 3), title, fill="black", font=ImageFont.load_default(14))
    return heading


def _legend(names: Sequence[tuple[str, Array]], width: int) -> Image.Image:
    font = ImageFont.load_default(13)
    places, left, top = [], 4, 4
    for name, color in names:
        advance = 24 + int(font.getlength(name)) + 14
        if left + advance > width and left > 4:
            left, top = 4, top + 20
        places.append((left, top, name, color))
        left += advance
    legend = Image.new("RGB", (width, top + 22), "white")
    draw = ImageDraw.Draw(legend)
    for left, top, name, color in places:
        draw.rectangle((left, top, left + 18, top + 13), fill=tuple(int(value) for value in color), outline="black")
        draw.text((left + 24, top - 1), name, fill="black", font=font)
    return legend
