"""Draw what each loss does to a pixel's gradient: docs/explained/imbalance-gradients.svg.

    python docs/figures/imbalance.py

Needs no package; the curves are the derivatives of the losses, written out.
"""

import math
from collections.abc import Callable
from pathlib import Path

from drawing import GREY, Drawing


def cross_entropy(p: float) -> float:
    """Size of the derivative of -log p by the score of the true class, of which p is the probability."""
    return 1 - p


def weighted(p: float, weight: float = 4) -> float:
    """The same with a class weight."""
    return weight * cross_entropy(p)


def hardest(p: float, share: float = 0.25, bound: float = 0.4) -> float:
    """The same where only a share of the pixels counts, those below a bound, whose mean is taken."""
    return cross_entropy(p) / share if p < bound else 0


def focal(p: float, gamma: float = 2) -> float:
    """Size of the derivative of -(1 - p) ** gamma * log p by the score, where p is its sigmoid."""
    return (1 - p) ** gamma * ((1 - p) - gamma * p * math.log(p))


CURVES: tuple[tuple[str, Callable[[float], float], str, tuple[float, float]], ...] = (
    ("class weight 4", weighted, "#c2410c", (0.5, 2.25)),
    ("ohem: 0.25", hardest, "#5d4fb3", (0.08, 2.1)),
    ("cross-entropy", cross_entropy, "#22303c", (0.47, 0.66)),
    ("focal, gamma 2", focal, "#2a7f4f", (0.03, 1.28)),
)
"""Name, function, colour, and where the name stands."""


def draw() -> Drawing:
    """Draw the curves over the probability of the true class."""
    drawing = Drawing("How strongly a pixel pulls at the score of its class, by the probability that it already has")
    left, bottom, wide, high = 70, 500, 690, 100
    drawing.text(24, drawing.y, "pull of a pixel at its class's score", font_weight="bold")
    for tick in range(5):
        y = bottom - high * tick
        drawing.line([(left, y), (left + wide, y)], stroke="#cfd6db")
        drawing.text(left - 14, y + 9, str(tick), text_anchor="end", fill=GREY)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        drawing.text(left + wide * tick, bottom + 38, f"{tick:g}", text_anchor="middle", fill=GREY)
    drawing.text(left + wide, bottom + 80, "probability of the true class", text_anchor="end", font_weight="bold")
    steps = 400
    for _, pull, colour, _ in CURVES:
        points = [((i + 0.5) / steps, pull((i + 0.5) / steps)) for i in range(steps)]
        style = {"stroke_dasharray": "12 8"} if pull is hardest else {}
        drawing.line([(left + wide * p, bottom - high * y) for p, y in points], stroke=colour, stroke_width=5, **style)
    for name, _, colour, (p, y) in CURVES:
        drawing.text(left + wide * p, bottom - high * y, name, fill=colour, font_weight="bold")
    drawing.y = bottom + 104
    return drawing


def main() -> None:
    """Write the picture."""
    draw().save(Path(__file__).parent.parent / "explained/imbalance-gradients.svg")


if __name__ == "__main__":
    main()
