"""Draw the pictures of docs/explained/fcn.md that need no network: its plan and its upsampling.

    python docs/figures/fcn.py

writes fcn-plan.svg and fcn-upsampling.svg into docs/explained/. Needs no package; the curves are computed.
"""

from collections.abc import Sequence
from itertools import pairwise
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
    Drawing,
    tent,
    transposed,
)


def upsample(scores: Sequence[float], factor: int) -> list[float]:
    """As long as ``scores`` are, times ``factor``."""
    return transposed(scores, factor, margin=factor // 2)


# ---- The plan -------------------------------------------------------------------------------------------------------

LEFT, RIGHT, HIGH = 215, 550, 46
WIDTHS = {1: 250, 2: 206, 4: 170, 8: 140, 16: 116, 32: 96}
ROWS = {1: 96, 2: 186, 4: 266, 8: 356, 16: 466, 32: 576}
"""Where the boxes of each stride have their upper edge."""


def box(drawing: Drawing, middle: float, stride: int, colour: str, text: str) -> None:
    """Draw a map of a stride; the smaller the map, the narrower its box."""
    wide, top = WIDTHS[stride], ROWS[stride]
    drawing.add("rect", x=middle - wide / 2, y=top, width=wide, height=HIGH, rx=5, fill=colour, stroke=GREY)
    drawing.text(middle, top + 32, text, text_anchor="middle", font_size=25, stroke="none")


def arrow(drawing: Drawing, points: Sequence[tuple[float, float]], **style: object) -> None:
    """Draw a line with a head at its end, which comes straight along one axis."""
    (x0, y0), (x, y) = points[-2:]
    dx, dy = ((x > x0) - (x < x0)) * 10, ((y > y0) - (y < y0)) * 10
    drawing.line(points, below=True, **({"stroke_width": 3} | style))
    head = [(x - dx - dy * 0.7, y - dy - dx * 0.7), (x, y), (x - dx + dy * 0.7, y - dy + dx * 0.7)]
    drawing.line(head, below=True, stroke_width=3, **{key: value for key, value in style.items() if key == "stroke"})


def draw_plan() -> Drawing:
    """Draw FCN-8s with VGG16, and where FCN-16s and FCN-32s leave it."""
    drawing = Drawing("FCN-8s: maps of stride 8, 16 and 32 are scored, and the scores are added from coarse to fine")
    drawing.text(24, 54, "stride", fill=GREY, font_size=24)
    drawing.text(LEFT, 54, "VGG16", text_anchor="middle", font_weight="bold")
    drawing.text(RIGHT, 54, "scores of C classes", text_anchor="middle", font_weight="bold")
    names = {1: ("image", IMAGE_COLOUR), 2: ("pool1", "#dfe5ea"), 4: ("pool2", "#dfe5ea")}
    names |= {8: ("pool3", POOL3), 16: ("pool4", POOL4), 32: ("pool5", POOL5)}
    for stride, (name, colour) in names.items():
        drawing.text(24, ROWS[stride] + 32, str(stride), fill=GREY, font_size=25)
        box(drawing, LEFT, stride, colour, name)
        if stride > 1:
            arrow(drawing, [(LEFT, ROWS[stride // 2] + HIGH), (LEFT, ROWS[stride] - 3)])
    for stride, colour, text in ((32, FC6, "score"), (16, SUM4, "sum"), (8, SUM3, "sum"), (1, SCORES, "logits")):
        box(drawing, RIGHT, stride, colour, text)
    for stride in (16, 8):
        y = ROWS[stride] + HIGH / 2
        arrow(drawing, [(LEFT + WIDTHS[stride] / 2, y), (RIGHT - WIDTHS[stride] / 2 - 3, y)])
        drawing.text(LEFT + 180, y - 12, "1x1", text_anchor="middle", font_size=25)
    # fc6 and fc7
    y = ROWS[32] + HIGH / 2
    arrow(drawing, [(LEFT + WIDTHS[32] / 2, y), (RIGHT - WIDTHS[32] / 2 - 3, y)])
    drawing.add("rect", x=LEFT + 78, y=y - 32, width=182, height=64, rx=5, fill=FC6, stroke=GREY)
    drawing.text(LEFT + 169, y - 5, "fc6 7x7", text_anchor="middle", font_size=24, stroke="none")
    drawing.text(LEFT + 169, y + 23, "fc7 1x1, 1x1", text_anchor="middle", font_size=24, stroke="none")
    # upwards
    for stride, below in ((16, 32), (8, 16), (1, 8)):
        arrow(drawing, [(RIGHT, ROWS[below]), (RIGHT, ROWS[stride] + HIGH + 3)])
        factor = below // stride
        y = (ROWS[below] + ROWS[stride] + HIGH) / 2 + 9
        drawing.text(RIGHT - 16, y, f"times {factor}", text_anchor="end", font_size=25)
    for stride, lane, height in ((16, 716, 10), (32, 772, 36)):
        y, end = ROWS[stride] + HIGH / 2, ROWS[1] + height
        corners = [(RIGHT + WIDTHS[stride] / 2, y), (lane, y), (lane, end), (RIGHT + WIDTHS[1] / 2 + 3, end)]
        arrow(drawing, corners, stroke=GREY, stroke_dasharray="7 6")
        drawing.text(lane + 6, y + 36, f"times {stride}", text_anchor="end", font_size=25, fill=GREY)
        turned = {"transform": f"rotate(-90 {lane - 10} 320)", "text_anchor": "middle"}
        drawing.text(lane - 10, 320, f"FCN-{stride}s", font_size=25, fill=GREY, **turned)
    drawing.y = ROWS[32] + HIGH + 34
    return drawing


# ---- The upsampling -------------------------------------------------------------------------------------------------


def draw_kernel(drawing: Drawing, left: float, top: float, cell: float) -> None:
    """Write down the kernel that doubles."""
    weights = [round(4 * weight) for weight in tent(2)]
    for i, row in enumerate(weights):
        for k, column in enumerate(weights):
            x, y, weight = left + cell * k, top + cell * i, row * column
            drawing.add("rect", x=x, y=y, width=cell, height=cell, fill=PAPER, stroke=GREY)
            drawing.add("rect", x=x, y=y, width=cell, height=cell, fill=FC6, opacity=weight / 9)
            middle = {"text_anchor": "middle", "stroke": "none", "font_size": 26}
            drawing.text(x + cell / 2, y + cell / 2 + 9, str(weight), **middle)


def draw_tents(drawing: Drawing, left: float, bottom: float, wide: float, high: float) -> None:
    """Draw a row of scores doubled: a tent for each, and the sum."""
    scores = [0.35, 0.95, 0.75, 0.15, 0.5]
    padded = [scores[0], *scores, scores[-1]]
    drawing.line([(left, bottom), (left + wide * 2 * len(scores), bottom)], stroke=GREY)
    for i, score in enumerate(padded):
        middle = 2 * (i - 1) + 1
        points = [(middle + d, score * (1 - abs(d) / 2)) for d in (-2, 0, 2)]
        inside = _clipped(points, 0, 2 * len(scores))
        style = {"stroke_dasharray": "5 5"} if i in (0, len(padded) - 1) else {}
        drawing.line([(left + wide * x, bottom - high * y) for x, y in inside], stroke="#d98a2b", **style)
    for i, score in enumerate(scores):
        x = left + wide * (2 * i + 1)
        drawing.add("rect", x=x - 8, y=bottom - high * score - 8, width=16, height=16, fill="#d98a2b")
    doubled = upsample(padded, 2)[2:-2]
    points = [(left + wide * (i + 0.5), bottom - high * value) for i, value in enumerate(doubled)]
    drawing.line(points, stroke="#2a6f97", stroke_width=4)
    for x, y in points:
        drawing.add("circle", cx=x, cy=y, r=7, fill="#2a6f97")


def _clipped(points: Sequence[tuple[float, float]], start: float, end: float) -> list[tuple[float, float]]:
    """Cut a line that rises along x at two places."""

    def at(x: float) -> float:
        for (x0, y0), (x1, y1) in pairwise(points):
            if x0 <= x <= x1:
                return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        return 0.0

    first, last = max(start, points[0][0]), min(end, points[-1][0])
    return [(first, at(first)), *((x, y) for x, y in points if first < x < last), (last, at(last))]


def draw_spread(drawing: Drawing, left: float, bottom: float, wide: float, high: float) -> None:
    """Draw what one score of stride 32 adds to its surroundings, in one step and in three."""
    cells = 5
    alone = [1.0 if i == cells // 2 else 0.0 for i in range(cells)]
    once = upsample(alone, 32)
    thrice = upsample(upsample(upsample(alone, 2), 2), 8)
    for tick in (0, 0.5, 1):
        y = bottom - high * tick
        drawing.line([(left, y), (left + wide * len(once), y)], stroke="#cfd6db")
        drawing.text(left - 12, y + 8, f"{tick:g}", text_anchor="end", fill=GREY, font_size=24)
    for pixels in range(-64, 65, 32):
        x = left + wide * (16 * cells + pixels)
        drawing.line([(x, bottom), (x, bottom + 8)], stroke=GREY)
        drawing.text(x, bottom + 36, f"{pixels}".replace("-", "&#8722;"), text_anchor="middle", fill=GREY, font_size=24)
    for curve, colour in ((once, "#c2410c"), (thrice, "#2a6f97")):
        points = [(left + wide * (i + 0.5), bottom - high * value) for i, value in enumerate(curve)]
        drawing.line(points, stroke=colour, stroke_width=4)
    drawing.text(left + wide * 92, bottom - high * 0.93, "times 32 (32s)", fill="#c2410c", font_weight="bold")
    drawing.text(left + wide * 101, bottom - high * 0.64, "times 2, 2, 8 (8s)", fill="#2a6f97", font_weight="bold")
    drawing.text(left + wide * 160, bottom + 72, "pixels from its centre", text_anchor="end", font_weight="bold")


def draw_upsampling() -> Drawing:
    """Draw the kernel, what it does to a row of scores, and how far a score reaches."""
    drawing = Drawing("Bilinear upsampling by transposed convolution")
    drawing.text(24, 48, "the kernel,", font_weight="bold")
    drawing.text(24, 80, "in sixteenths", font_weight="bold")
    draw_kernel(drawing, left=24, top=106, cell=60)
    drawing.text(330, 48, "a row of scores, doubled:", font_weight="bold")
    drawing.text(330, 80, "one tent each, and their sum", font_weight="bold", fill=INK)
    draw_tents(drawing, left=332, bottom=346, wide=44, high=230)
    drawing.text(24, 424, "what becomes of one score of stride 32", font_weight="bold")
    draw_spread(drawing, left=76, bottom=700, wide=4.35, high=230)
    drawing.y = 796
    return drawing


def main() -> None:
    """Write the pictures."""
    folder = Path(__file__).parent.parent / "explained"
    for name, drawing in (("plan", draw_plan()), ("upsampling", draw_upsampling())):
        drawing.save(folder / f"fcn-{name}.svg")


if __name__ == "__main__":
    main()
