"""What the scripts beside this one draw with: an SVG, its colours, and bilinear upsampling of a row."""

from collections.abc import Sequence
from pathlib import Path

WIDTH = 800
"""Width of a drawing."""
INK, GREY, PAPER = "#22303c", "#66747f", "#fbfaf6"
IMAGE_COLOUR, POOL3, POOL4, POOL5, FC6 = "#b9c6d0", "#86cfae", "#8ec3ea", "#c5b4e8", "#f7b267"
SUM4, SUM3, SCORES = "#f3d17a", "#e4df80", "#f09a8f"


def tent(factor: int) -> list[float]:
    """The bilinear kernel for upsampling by ``factor``, along one axis."""
    return [1 - abs(i - (factor - 0.5)) / factor for i in range(2 * factor)]


def transposed(scores: Sequence[float], factor: int, margin: int) -> list[float]:
    """A transposed convolution with that kernel, of whose result ``margin`` values are cut off at each end."""
    result = [0.0] * (factor * (len(scores) + 1))
    for i, score in enumerate(scores):
        for k, weight in enumerate(tent(factor)):
            result[factor * i + k] += score * weight
    return result[margin : len(result) - margin]


class Drawing:
    """An SVG that grows downwards, with a background of its own for light and dark pages."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.below: list[str] = []
        self.shapes: list[str] = []
        self.y = 48.0

    def add(self, tag: str, content: str = "", *, below: bool = False, **attributes: object) -> None:
        """Add an element, on top or below the others; underscores in names of attributes stand for hyphens."""
        text = " ".join(f'{key.replace("_", "-")}="{_short(value)}"' for key, value in attributes.items())
        element = f"<{tag} {text}>{content}</{tag}>" if content else f"<{tag} {text}/>"
        (self.below if below else self.shapes).append(element)

    def text(self, x: float, y: float, text: str, **style: object) -> None:
        """Write at a place, with a rim that keeps lines away."""
        rim = {"stroke": PAPER, "stroke_width": 6, "paint_order": "stroke", "stroke_linejoin": "round"}
        self.add("text", text, x=x, y=y, **({"font_size": 27} | rim | style))

    def line(self, points: Sequence[tuple[float, float]], *, below: bool = False, **style: object) -> None:
        """Draw a line through points."""
        path = " ".join(f"{_short(x)},{_short(y)}" for x, y in points)
        self.add("polyline", below=below, points=path, **({"fill": "none", "stroke": INK, "stroke_width": 2} | style))

    def save(self, path: Path) -> None:
        """Write the file."""
        height = _short(self.y)
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
            f' font-family="sans-serif" fill="{INK}">',
            f"<title>{self.title}</title>",
            f'<rect width="{WIDTH}" height="{height}" rx="14" fill="{PAPER}"/>',
            *self.below,
            *self.shapes,
            "</svg>",
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
