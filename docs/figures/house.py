"""Draw the rooms of the package for docs/contributing/house.md.

    python docs/figures/house.py

writes docs/contributing/house.svg from the contracts in pyproject.toml: the layers as they stand there, each of which
may use those below it, and the models apart, which use none of them.
"""

import tomllib
from pathlib import Path

from drawing import GREY, WIDTH, Drawing

ROOT = Path(__file__).parent.parent.parent
ROW, GAP, MARGIN, MODELS = 52, 12, 20, 164
FLOORS = ("#e8ecf7", "#dfe7f5")
EXPLAINED = {
    "training": "Lightning Fabric",
    "recipe": "YAML",
    "data": "albumentations, in transforms alone",
    "cli": "one function for each command",
    "errors": "one sentence each",
}
"""What is said in a room besides its name, where there is space: what it alone knows."""


def layers() -> list[list[str]]:
    """Return the rooms of each layer, from the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = [each for each in settings["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    return [[room.strip().removeprefix("fcn_smp.") for room in layer.split("|")] for layer in contract["layers"]]


def draw(floors: list[list[str]]) -> Drawing:
    """Draw a row for each layer, and the models as a room as high as the house."""
    drawing = Drawing("Rooms of fcn_smp: each may use those below it; models use none of them")
    drawing.y = 2 * MARGIN + len(floors) * (ROW + GAP) - GAP
    room(drawing, (MARGIN, MARGIN, MODELS, drawing.y - 2 * MARGIN), "models", "torch, SMP, timm", "#fdeee2")
    for number, rooms in enumerate(floors):
        floor(drawing, rooms, MARGIN + number * (ROW + GAP), FLOORS[number % 2])
    return drawing


def floor(drawing: Drawing, rooms: list[str], top: float, fill: str) -> None:
    """Divide a row among rooms by the length of their names."""
    left = MARGIN + MODELS + 2 * GAP
    lengths = [len(name) + 2 for name in rooms]
    unit = (WIDTH - MARGIN - left - GAP * (len(rooms) - 1)) / sum(lengths)
    for name, length in zip(rooms, lengths, strict=True):
        more = EXPLAINED.get(name, "") if len(rooms) <= 2 else ""
        room(drawing, (left, top, unit * length, ROW), name, more, fill)
        left += unit * length + GAP


def room(drawing: Drawing, place: tuple[float, float, float, float], name: str, more: str, fill: str) -> None:
    """Draw a room at a place (x, y, width, height), with its name and what else is said of it."""
    x, y, width, height = place
    middle, centre = x + width / 2, y + height / 2
    drawing.add("rect", x=x, y=y, width=width, height=height, rx=8, fill=fill, stroke=GREY)
    style = {"text_anchor": "middle", "stroke": "none"}
    size = min(22, 1.4 * width / len(name))
    drawing.text(middle, centre + (-3 if more else 7), name, font_size=size, font_weight="bold", **style)
    if more:
        drawing.text(middle, centre + 18, more, font_size=17, **style)


def main() -> None:
    """Write the picture."""
    draw(layers()).save(ROOT / "docs/contributing/house.svg")


if __name__ == "__main__":
    main()
