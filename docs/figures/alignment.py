"""Draw the pictures of docs/explained/alignment.md.

    python docs/figures/alignment.py

writes alignment-caffe.svg, alignment-same.svg and alignment-border.svg into docs/explained/. Nothing is placed by hand:
sizes, places and offsets follow from the arithmetic of the layers in the first part, the curves from the transposed
convolutions. Needs no package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drawing import (
    FC6,
    GREY,
    IMAGE_COLOUR,
    INK,
    PAPER,
    POOL3,
    POOL4,
    POOL5,
    SCORES,
    SUM3,
    SUM4,
    WIDTH,
    Drawing,
    transposed,
)

# ---- The arithmetic -------------------------------------------------------------------------------------------------

IMAGE = 80
"""Pixels of the row of the image. Not a multiple of 32, so that the pictures show what happens to the remainder."""
WINDOW = 7


@dataclass(frozen=True)
class Map:
    """A row of ``size`` pixels, of which pixel i covers ``stride`` image pixels, from ``start + stride * i`` on."""

    stride: int
    start: int
    size: int


def pools(padding: int, *, ceil: bool) -> dict[int, Map]:
    """pool1 to pool5 of VGG by stride, where conv1_1 is padded by ``padding`` and the other convolutions by 1."""
    size = IMAGE + 2 * padding - 2
    maps = {}
    for stride in (2, 4, 8, 16, 32):
        size = (size + ceil) // 2
        maps[stride] = Map(stride, 1 - padding, size)
    return maps


def fc6(x: Map, padding: int) -> Map:
    """A 7x7 convolution: its first pixel lies three pixels further in, less its padding."""
    margin = WINDOW // 2 - padding
    return Map(x.stride, x.start + x.stride * margin, x.size - 2 * margin)


def upsample(x: Map, factor: int) -> Map:
    """A bilinear transposed convolution, not padded: the result begins half a pixel of ``x`` further out."""
    return Map(x.stride // factor, x.start - x.stride // 2, factor * (x.size + 1))


def offset(x: Map, start: int) -> int:
    """How many pixels of ``x`` must go so that it begins at ``start``."""
    pixels, rest = divmod(start - x.start, x.stride)
    assert rest == 0, "No crop by whole pixels aligns these maps."
    return pixels


def upsampled_ones(size: int, factors: Sequence[int], *, padded: bool) -> list[float]:
    """What is left of scores of 1 after bilinear transposed convolutions by ``factors``."""
    scores = [1.0] * size
    for factor in factors:
        scores = transposed(scores, factor, margin=factor // 2 if padded else 0)
    return scores


# ---- The drawing ----------------------------------------------------------------------------------------------------

SCALE, ORIGIN = 2.5, 300
"""Units per image pixel, and where the image begins."""
BOX = 40


def at(x: float) -> float:
    """Where the image pixel ``x`` begins in a drawing."""
    return ORIGIN + SCALE * x


def row(
    drawing: Drawing,
    colour: str,
    text: str,
    note: str,
    x: Map,
    kept: range,
    numbers: Sequence[int | None] | None = None,
) -> float:
    """Draw a map as a row of boxes under its name, and return their upper edge.

    Args:
        drawing: Where to.
        colour: Of the boxes that are kept; the others are pale.
        text: Name of the map.
        note: What else there is to say.
        x: The map.
        kept: The pixels that are not cropped, padding or repeated.
        numbers: What to write into the boxes; by default the number of the pixel, where there is room.
    """
    drawing.text(24, drawing.y, text, font_weight="bold")
    drawing.text(WIDTH - 24, drawing.y, note.replace("-", "&#8722;"), text_anchor="end", fill=GREY)
    top = drawing.y + 12
    width = SCALE * x.stride
    for i in range(x.size):
        left = at(x.start + x.stride * i)
        style = {"fill": colour} if i in kept else {"fill": PAPER, "stroke_dasharray": "3 3"}
        drawing.add("rect", x=left, y=top, width=width, height=BOX, stroke=GREY, **style)
    if numbers is None:
        numbers = range(x.size if width > 30 else 0)
    for i, number in enumerate(numbers):
        if number is not None:
            middle = at(x.start + x.stride * (i + 0.5))
            fill = INK if i in kept else GREY
            drawing.add("text", str(number), x=middle, y=top + 28, font_size=20, text_anchor="middle", fill=fill)
    drawing.y = top + BOX + 44
    return top


def bar(drawing: Drawing, colour: str, text: str, note: str, before: int, after: int) -> None:
    """Draw pixels as wide as the image's as a bar: ``before`` of them, those of the image, ``after`` of them."""
    top = row(drawing, colour, text, note, Map(IMAGE, 0, 1), range(1), ())
    for start, size in ((-before, before), (IMAGE, after)):
        if size:
            style = {"fill": PAPER, "stroke_dasharray": "3 3", "stroke": GREY}
            drawing.add("rect", x=at(start), y=top, width=SCALE * size, height=BOX, **style)
    for start, size in ((-before, before), (0, IMAGE), (IMAGE, after)):
        if size:
            middle = at(start + size / 2)
            drawing.add("text", str(size), x=middle, y=top + 28, font_size=20, text_anchor="middle")


def measure(drawing: Drawing, start: int, end: int, text: str) -> None:
    """Draw an arrow with two heads below the last row, and write beside it."""
    y, left, right = drawing.y - 28, at(start), at(end)
    drawing.line([(left + 8, y - 6), (left, y), (left + 8, y + 6)])
    drawing.line([(right - 8, y - 6), (right, y), (right - 8, y + 6)])
    drawing.line([(left, y), (right, y)])
    drawing.text(right + 12, y + 8, text, font_weight="bold")
    drawing.y += 20


def wedge(drawing: Drawing, x: Map, target: Map) -> None:
    """Draw the window of the row ``x``, the last one drawn, from which the first pixel of ``target`` is computed."""
    y, left, right = drawing.y - 44, x.start, x.start + WINDOW * x.stride
    corners = [(at(left), y), (at(right), y), (at(target.start + target.stride), y + 56), (at(target.start), y + 56)]
    drawing.line(corners, below=True, fill=POOL5, stroke="none", opacity=0.5)


def verticals(drawing: Drawing, top: float, bottom: float, *places: int) -> None:
    """Draw lines at places of the image, below everything else."""
    for x in places:
        drawing.line([(at(x), top), (at(x), bottom)], below=True, stroke="#d1495b", opacity=0.55)


def draw_caffe(padding: int = 100) -> Drawing:
    """Draw the released FCN-8s along one row of the image."""
    drawing = Drawing(f"caffe: an image of {IMAGE} pixels through FCN-8s, with the crops")
    maps = pools(padding, ceil=True)
    scores = fc6(maps[32], padding=0)
    sum4 = upsample(scores, 2)
    sum3 = upsample(sum4, 2)
    output = upsample(sum3, 8)
    bar(drawing, IMAGE_COLOUR, "image", f"padded by {padding}", padding, padding)
    tops = {}
    for name, colour, x, target in (("pool3", POOL3, maps[8], sum3), ("pool4", POOL4, maps[16], sum4)):
        first = offset(x, target.start)
        kept = range(first, first + target.size)
        tops[target] = row(drawing, colour, name, f"begins at {x.start}", x, kept)
        measure(drawing, x.start, target.start, f"{first} cropped")
    x = maps[32]
    row(drawing, POOL5, "pool5", f"begins at {x.start}", x, range(x.size))
    wedge(drawing, x, scores)
    note = f"{x.start} + 3·{x.stride} = {scores.start}"
    row(drawing, FC6, "fc6, 7 wide", note, scores, range(scores.size))
    for name, colour, before, x in (("doubled + pool4", SUM4, scores, sum4), ("doubled + pool3", SUM3, sum4, sum3)):
        note = f"{before.start} - {before.stride}/2 = {x.start}"
        top = row(drawing, colour, name, note, x, range(x.size))
        drawing.line(
            [(at(x.start), tops[x] + BOX), (at(x.start), top)], below=True, stroke=GREY, stroke_dasharray="6 5"
        )
    note = f"{sum3.start} - {sum3.stride}/2 = {output.start}"
    first = offset(output, 0)
    bar(drawing, SCORES, "times 8", note, first, output.size - first - IMAGE)
    measure(drawing, output.start, 0, f"{first} cropped")
    verticals(drawing, 16, drawing.y - 24, 0, IMAGE)
    return drawing


def draw_same() -> Drawing:
    """Draw FCN-8s as ``decoder_alignment="same"`` builds it, along one row of the image."""
    drawing = Drawing(f"same: an image of {IMAGE} pixels through FCN-8s")
    maps = pools(padding=1, ceil=False)
    zeros = WINDOW // 2
    scores = fc6(maps[32], padding=zeros)
    bar(drawing, IMAGE_COLOUR, "image", "not padded", 0, 0)
    for name, colour, x in (("pool3", POOL3, maps[8]), ("pool4", POOL4, maps[16])):
        row(drawing, colour, name, f"begins at {x.start}", x, range(x.size))
    x = Map(32, maps[32].start - zeros * 32, maps[32].size + 2 * zeros)
    kept = range(zeros, x.size - zeros)
    numbers = [i - zeros if i in kept else None for i in range(x.size)]
    row(drawing, POOL5, "pool5", f"{zeros} zeros on each side", x, kept, numbers)
    wedge(drawing, x, scores)
    repeated = Map(32, scores.start - 32, scores.size + 2)
    numbers = [0, *range(scores.size), scores.size - 1]
    note = f"{x.start} + {zeros}·{x.stride} = {scores.start}"
    row(drawing, FC6, "fc6, 7 wide", note, repeated, range(1, 1 + scores.size), numbers)
    end = scores.start + 32 * scores.size
    measure(drawing, end, end + 32, "repeated")
    for name, colour, x in (("doubled + pool4", SUM4, maps[16]), ("doubled + pool3", SUM3, maps[8])):
        row(drawing, colour, name, f"begins at {x.start}", x, range(x.size))
    bar(drawing, SCORES, "times 8", "nothing cropped", 0, 0)
    verticals(drawing, 16, drawing.y - 24, 0, IMAGE)
    return drawing


def draw_border(pixels: int = 48) -> Drawing:
    """Draw what the upsampling of FCN-8s leaves of fc6's scores at the left border of the image."""
    drawing = Drawing("What is left of fc6's scores at the left border of the image, FCN-8s")
    left, bottom, wide, high = 84, 470, 14.0, 330
    size, factors = 32, (2, 2, 8)
    x = fc6(pools(padding=100, ceil=True)[32], padding=0)
    for factor in factors:
        x = upsample(x, factor)
    curves = (
        ("same", [1.0] * pixels, "#2a7f4f", (2, 1.05)),
        ("caffe", upsampled_ones(size, factors, padded=False)[-x.start :][:pixels], "#c2410c", (2, 0.84)),
        ("padded transposed convolutions", upsampled_ones(size, factors, padded=True)[:pixels], "#5d4fb3", (9, 0.6)),
    )
    drawing.text(24, drawing.y, "what is left of fc6's scores", font_weight="bold")
    for tick in (0, 0.5, 1):
        y = bottom - high * tick
        drawing.line([(left, y), (left + wide * pixels, y)], stroke="#cfd6db")
        drawing.text(left - 14, y + 8, f"{tick:g}", text_anchor="end", fill=GREY)
    for tick in range(0, pixels + 1, 8):
        drawing.text(left + wide * tick, bottom + 36, str(tick), text_anchor="middle", fill=GREY)
    drawing.text(left + wide * pixels, bottom + 76, "pixels from the border", text_anchor="end", font_weight="bold")
    for _, values, colour, _ in curves:
        points = [(left + wide * (i + 0.5), bottom - high * value) for i, value in enumerate(values)]
        drawing.line(points, stroke=colour, stroke_width=5)
    for name, _, colour, (pixel, value) in curves:
        drawing.text(left + wide * pixel, bottom - high * value, name, fill=colour, font_weight="bold")
    drawing.y = bottom + 100
    return drawing


def main() -> None:
    """Write the pictures."""
    folder = Path(__file__).parent.parent / "explained"
    for name, drawing in (("caffe", draw_caffe()), ("same", draw_same()), ("border", draw_border())):
        drawing.save(folder / f"alignment-{name}.svg")


if __name__ == "__main__":
    main()
