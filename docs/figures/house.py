"""Draw the rooms of the package for docs/contributing/house.md.

    python docs/figures/house.py

writes docs/contributing/house.svg from the contracts in pyproject.toml: the layers as they stand there, each of which
may use those below it, and the models apart, which use none of them.
"""

import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent.parent
WIDTH, ROW, GAP, MARGIN, MODELS = 1000, 62, 14, 24, 170
PAPER, INK, LINE = "#ffffff", "#1f2430", "#8a93a6"
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


def draw(floors: list[list[str]]) -> str:
    """Return the picture: a row for each layer, and the models as a room as high as the house."""
    height = 2 * MARGIN + len(floors) * (ROW + GAP) - GAP
    shapes = [_room(MARGIN, MARGIN, MODELS, height - 2 * MARGIN, "models", "torch, SMP, timm", "#fdeee2")]
    left, right = MARGIN + MODELS + 2 * GAP, WIDTH - MARGIN
    for number, rooms in enumerate(floors):
        shapes += _floor(rooms, left, right, MARGIN + number * (ROW + GAP), FLOORS[number % 2])
    title = "Rooms of fcn_smp: each may use those below it; models use none of them"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-family="sans-serif">',
        f"<title>{title}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="14" fill="{PAPER}"/>',
        *shapes,
        "</svg>\n",
    ])  # fmt: skip


def _floor(rooms: list[str], left: float, right: float, top: float, fill: str) -> list[str]:
    """Divide a row among rooms by the length of their names."""
    lengths = [len(room) + 2 for room in rooms]
    unit = (right - left - GAP * (len(rooms) - 1)) / sum(lengths)
    shapes, x = [], left
    for room, length in zip(rooms, lengths, strict=True):
        more = EXPLAINED.get(room, "") if len(rooms) <= 2 else ""
        shapes.append(_room(x, top, unit * length, ROW, room, more, fill))
        x += unit * length + GAP
    return shapes


def _room(x: float, y: float, width: float, height: float, name: str, more: str, fill: str) -> str:
    middle, centre = x + width / 2, y + height / 2
    size = min(24, 1.4 * width / len(name))
    lines = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="8" fill="{fill}"'
        f' stroke="{LINE}"/>',
        f'<text x="{middle:.1f}" y="{centre + (-4 if more else 8):.1f}" font-size="{size:.1f}" font-weight="bold"'
        f' text-anchor="middle" fill="{INK}">{escape(name)}</text>',
    ]
    if more:
        lines.append(
            f'<text x="{middle:.1f}" y="{centre + 20:.1f}" font-size="19" text-anchor="middle" fill="{INK}">'
            f"{escape(more)}</text>"
        )
    return "\n".join(lines)


def main() -> None:
    """Write the picture."""
    (ROOT / "docs/contributing/house.svg").write_text(draw(layers()), encoding="utf-8")


if __name__ == "__main__":
    main()
