"""Little landscapes with houses, trees, sheep, cars, boats and balloons, drawn with their labels.

A scene is drawn with Pillow, object upon object, on a canvas three times as large as its picture, so that the picture
comes out anti-aliased and its label exact. Colours are RGB; a texture is brightness about 1, float32 (H, W).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from fcn_smp.data.labels import IGNORE_INDEX, Array

Colour = tuple[int, int, int]
Point = tuple[float, float]
Size = tuple[int, int]
Texture = npt.NDArray[np.float32]

SIZE = (128, 96)
"""Width and height of a picture in pixels."""

SCALE = 3
"""Pixels of the canvas to a pixel of the picture, each way; odd, so that one of them is the middle."""


def pick(rng: Generator, *colours: Colour) -> Colour:
    """Return one of the colours, a little off."""
    r, g, b = np.clip(rng.choice(colours) + rng.normal(0, 7, 3), 0, 255)
    return int(r), int(g), int(b)


def ramp(size: Size, top: float, bottom: float) -> Texture:
    """Return brightness that runs from ``top`` to ``bottom``."""
    return np.broadcast_to(np.linspace(top, bottom, size[1], dtype=np.float32)[:, None], size[::-1])


def noise(rng: Generator, size: Size, spot: Size, contrast: float) -> Texture:
    """Return smooth noise with spots ``spot`` (width, height) pixels large."""
    width, height = (length // cell + 2 for length, cell in zip(size, spot, strict=True))
    spots = Image.fromarray(rng.uniform(1 - contrast, 1 + contrast, (height, width)).astype(np.float32))
    return np.asarray(spots.resize(size, Image.Resampling.BICUBIC))


def bricks(rng: Generator, size: Size, course: int) -> Texture:
    """Return bricks of various shades in light joints, in courses ``course`` pixels high."""
    y, x = np.ogrid[: size[1], : size[0]]
    row = y // course
    x = x + row % 2 * course
    shades = rng.uniform(0.75, 1.12, (size[1] // course + 1, size[0] // (2 * course) + 2)).astype(np.float32)
    joints = (y % course == 0) | (x % (2 * course) == 0)
    return np.where(joints, np.float32(1.3), shades[row, x // (2 * course)])


def tint(colour: Colour, *textures: Texture | float) -> Image.Image:
    """Return the RGB picture of a colour under the product of textures."""
    brightness = np.asarray(math.prod(textures), dtype=np.float32)[..., None]
    return Image.fromarray((brightness * np.array(colour, dtype=np.float32)).clip(0, 255).astype(np.uint8))


def paint(
    canvas: Image.Image,
    shape: Literal["polygon", "rectangle", "ellipse"],
    points: Sequence[Point],
    filling: Colour | Image.Image,
) -> None:
    """Paint a shape on a canvas, RGB or RGBA, where what is painted becomes opaque.

    Args:
        canvas: What to paint on.
        shape: Rectangles and ellipses are given by two opposite corners.
        points: (x, y) in shares of the canvas's width and height.
        filling: A colour, or a picture of the canvas's size that shows through the shape.
    """
    flat = isinstance(filling, tuple)
    target = canvas if flat else Image.new("L", canvas.size)
    corners = [(x * (canvas.width - 1), y * (canvas.height - 1)) for x, y in points]
    getattr(ImageDraw.Draw(target), shape)(corners, fill=filling if flat else 255)
    if not flat:
        canvas.paste(filling, mask=target)


def draw_house(rng: Generator, height: float) -> Image.Image:
    """Draw a brick house with a tiled roof, RGBA, ``height`` pixels high."""
    house = Image.new("RGBA", (int(height * rng.uniform(0.85, 1.35)), int(height)))
    eaves, ridge = rng.uniform(0.42, 0.52), rng.uniform(0, 0.34)
    brick = pick(rng, (178, 84, 62), (196, 112, 76), (222, 196, 152), (202, 150, 134), (150, 74, 66))
    wall = tint(brick, bricks(rng, house.size, 6))
    tile = pick(rng, (92, 96, 112), (132, 62, 50), (108, 78, 60), (70, 84, 92))
    roof = tint(tile, bricks(rng, house.size, 4), ramp(house.size, 1.2, 0.6))
    paint(house, "rectangle", [(0.68, 0), (0.8, eaves)], wall)
    paint(house, "rectangle", [(0.07, eaves), (0.93, 1)], wall)
    paint(house, "polygon", [(0, eaves), (0.5 - ridge, 0.06), (0.5 + ridge, 0.06), (1, eaves)], roof)
    door, *windows = rng.permutation([0.16, 0.41, 0.66])
    paint(house, "rectangle", [(door, 0.66), (door + 0.17, 1)], pick(rng, (92, 58, 40), (52, 92, 84), (140, 40, 44)))
    glass = pick(rng, (130, 170, 190), (250, 218, 130), (70, 88, 110))
    for x in windows:
        paint(house, "rectangle", [(x - 0.02, 0.60), (x + 0.19, 0.84)], (244, 238, 224))
        paint(house, "rectangle", [(x, 0.62), (x + 0.075, 0.82)], glass)
        paint(house, "rectangle", [(x + 0.095, 0.62), (x + 0.17, 0.82)], glass)
    return house


def draw_tree(rng: Generator, height: float) -> Image.Image:
    """Draw a fir, or a broad-leaved tree in summer or autumn, RGBA, ``height`` pixels high."""
    tree = Image.new("RGBA", (int(height * rng.uniform(0.55, 0.8)), int(height)))
    leaves = noise(rng, tree.size, (5, 4), 0.3) * noise(rng, tree.size, (14, 12), 0.15)
    bark = tint(pick(rng, (104, 74, 52), (84, 66, 54)), noise(rng, tree.size, (3, 20), 0.3))
    paint(tree, "polygon", [(0.44, 0.6), (0.56, 0.6), (0.61, 1), (0.39, 1)], bark)
    if rng.random() < 0.35:
        green = pick(rng, (38, 88, 68), (52, 100, 62))
        for foot, shade in [(0.9, 0.7), (0.68, 0.9), (0.46, 1.1)]:
            branches = [(0.5, foot - 0.46), (0.5 + foot / 2, foot), (0.5, foot - 0.05), (0.5 - foot / 2, foot)]
            paint(tree, "polygon", branches, tint(green, leaves, shade))
    else:
        green = pick(rng, (76, 128, 48), (100, 144, 56), (58, 108, 56), (204, 128, 44), (188, 84, 48))
        # The lighter the leaves, the nearer to the light at the upper left.
        for shade in np.linspace(0.65, 1.2, 9):
            x, y = rng.uniform((0.24, 0.24), (0.76, 0.62)) - (shade - 0.65) * np.array((0.12, 0.16))
            paint(tree, "ellipse", [(x - 0.23, y - 0.17), (x + 0.23, y + 0.17)], tint(green, leaves, shade))
    return tree


def draw_sheep(rng: Generator, height: float) -> Image.Image:
    """Draw a sheep, RGBA, ``height`` pixels high."""
    sheep = Image.new("RGBA", (int(height * rng.uniform(1.25, 1.45)), int(height)))
    face = pick(rng, (52, 46, 48), (92, 76, 66))
    fleece = pick(rng, (238, 232, 218), (232, 226, 222), (226, 214, 190), (112, 92, 80))
    wool = tint(fleece, noise(rng, sheep.size, (6, 6), 0.16), ramp(sheep.size, 1.1, 0.7))
    for x in (0.2, 0.34, 0.58, 0.7):
        paint(sheep, "rectangle", [(x, 0.6), (x + 0.075, 1)], face)
    paint(sheep, "ellipse", [(0.08, 0.16), (0.82, 0.76)], wool)
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        x, y = 0.45 + 0.31 * np.cos(angle), 0.45 + 0.26 * np.sin(angle)
        paint(sheep, "ellipse", [(x - 0.13, y - 0.17), (x + 0.13, y + 0.17)], wool)
    paint(sheep, "ellipse", [(0.73, 0.14), (1, 0.6)], face)
    paint(sheep, "ellipse", [(0.70, 0.04), (0.92, 0.28)], wool)
    return sheep


def draw_car(rng: Generator, height: float) -> Image.Image:
    """Draw a car from its side, RGBA, ``height`` pixels high."""
    car = Image.new("RGBA", (int(height * rng.uniform(1.9, 2.4)), int(height)))
    lacquer = pick(rng, (196, 44, 40), (40, 96, 172), (238, 186, 52), (226, 226, 220), (52, 140, 124), (66, 68, 78))
    body = tint(lacquer, ramp(car.size, 1.3, 0.65), noise(rng, car.size, (40, 6), 0.06))
    glass = tint(pick(rng, (120, 160, 180), (70, 92, 108)), ramp(car.size, 1.4, 0.5))
    back, front = rng.uniform(0.1, 0.24), rng.uniform(0.66, 0.8)
    mid = (back + front) / 2 - 0.04
    paint(car, "polygon", [(back - 0.07, 0.5), (back + 0.03, 0.02), (front - 0.17, 0.02), (front, 0.5)], body)
    paint(car, "polygon", [(0.01, 0.46), (front, 0.42), (0.95, 0.5), (1, 0.6), (1, 0.84), (0, 0.84)], body)
    paint(car, "polygon", [(back, 0.43), (back + 0.05, 0.1), (mid - 0.02, 0.1), (mid - 0.02, 0.43)], glass)
    paint(car, "polygon", [(mid + 0.02, 0.43), (mid + 0.02, 0.1), (front - 0.19, 0.1), (front - 0.06, 0.43)], glass)
    paint(car, "rectangle", [(0.94, 0.56), (1, 0.66)], (255, 240, 180))
    paint(car, "rectangle", [(0, 0.54), (0.04, 0.66)], (210, 50, 40))
    for radius, colour in [(0.22, (36, 36, 40)), (0.11, (176, 178, 180))]:
        for x in (0.21, 0.78):
            across = radius * car.height / car.width
            paint(car, "ellipse", [(x - across, 0.78 - radius), (x + across, 0.78 + radius)], colour)
    return car


def draw_boat(rng: Generator, height: float) -> Image.Image:
    """Draw a sailing boat with a wooden hull, RGBA, ``height`` pixels high."""
    boat = Image.new("RGBA", (int(height * rng.uniform(0.75, 1)), int(height)))
    wood = pick(rng, (134, 82, 48), (168, 56, 48), (48, 76, 116), (226, 220, 206))
    hull = tint(wood, noise(rng, boat.size, (40, 3), 0.25))
    cloth = pick(rng, (244, 238, 224), (240, 226, 190), (196, 84, 60), (226, 232, 236))
    sail = tint(cloth, noise(rng, boat.size, (90, 7), 0.12))
    paint(boat, "polygon", [(0.5, 0.02), (0.94, 0.7), (0.5, 0.76)], sail)
    paint(boat, "polygon", [(0.47, 0.08), (0.47, 0.76), (0.08, 0.72)], tint(cloth, noise(rng, boat.size, (90, 7), 0.2)))
    paint(boat, "rectangle", [(0.46, 0), (0.5, 0.8)], (98, 74, 54))
    paint(boat, "polygon", [(0, 0.76), (1, 0.74), (0.84, 1), (0.14, 1)], hull)
    paint(boat, "polygon", [(0, 0.76), (1, 0.74), (0.98, 0.79), (0.03, 0.81)], (240, 234, 222))
    return boat


def draw_balloon(rng: Generator, height: float) -> Image.Image:
    """Draw a hot-air balloon in two colours, RGBA, ``height`` pixels high."""
    balloon = Image.new("RGBA", (int(height * rng.uniform(0.68, 0.8)), int(height)))
    warm = pick(rng, (212, 58, 50), (244, 190, 60), (224, 122, 54))
    cool = pick(rng, (52, 112, 180), (240, 232, 214), (74, 150, 96), (140, 72, 140))
    wicker = tint(pick(rng, (150, 104, 62), (122, 84, 54)), bricks(rng, balloon.size, 3))
    paint(balloon, "rectangle", [(0.42, 0.76), (0.58, 1)], (80, 60, 50))
    paint(balloon, "rectangle", [(0.38, 0.86), (0.62, 1)], wicker)
    light = ramp(balloon.size, 1.15, 0.7) * noise(rng, balloon.size, (20, 20), 0.08)
    angle = np.linspace(-0.72, 0.72, 40) * np.pi
    # Gores: the same outline, ever narrower.
    for index, width in enumerate((1, 0.84, 0.58, 0.22)):
        x = [0.4, *(0.5 + np.sin(angle) / 2), 0.6]
        y = [0.82, *(0.35 - np.cos(angle) * 0.35), 0.82]
        gore = tint((warm, cool)[index % 2], light, 1.05 - 0.25 * width)
        paint(balloon, "polygon", [(0.5 + (u - 0.5) * width, v) for u, v in zip(x, y, strict=True)], gore)
    return balloon


class Thing(NamedTuple):
    """How a class is drawn and where; what stands lower in the picture is nearer and larger.

    ``height`` and ``foot``, the place of the lower end, run from far to near in shares of the picture's height from
    its top; at most ``most`` of them stand in a scene whose front is one of ``fronts``.
    """

    draw: Callable[[Generator, float], Image.Image]
    height: tuple[float, float]
    foot: tuple[float, float]
    most: int
    fronts: tuple[str, ...] = ("road", "lake", "meadow")


THINGS = {
    "house": Thing(draw_house, (0.3, 0.46), (0.54, 0.68), 2),
    "tree": Thing(draw_tree, (0.34, 0.58), (0.54, 0.72), 3),
    "sheep": Thing(draw_sheep, (0.17, 0.27), (0.64, 0.8), 3),
    "car": Thing(draw_car, (0.21, 0.29), (0.84, 0.97), 2, ("road",)),
    "boat": Thing(draw_boat, (0.38, 0.58), (0.84, 0.97), 2, ("lake",)),
    "balloon": Thing(draw_balloon, (0.3, 0.5), (0.36, 0.54), 2),
}

CLASSES = ("background", *THINGS)


def draw_sky(rng: Generator, size: Size) -> Image.Image:
    """Draw the sky of some hour of the day, with clouds."""
    blue, rose, grey = [(84, 150, 214), (208, 230, 238)], [(112, 134, 196), (252, 210, 176)], [(168, 182, 196)] * 2
    top, bottom = np.array([blue, rose, grey], dtype=np.float32)[rng.integers(3)]
    depth = ramp(size, 0, 1.6).clip(0, 1)[..., None]
    clouds = noise(rng, size, (70, 24), 0.5) * noise(rng, size, (16, 8), 0.12) - np.float32(rng.uniform(1, 1.3))
    white = (clouds * 2.5).clip(0, 0.85)[..., None]
    sky = (top * (1 - depth) + bottom * depth) * (1 - white) + white * 240
    return Image.fromarray(sky.astype(np.uint8))


def hills(rng: Generator, height: float, swing: float) -> list[Point]:
    """Return the outline of hills with a ridge at ``height``, give or take ``swing``."""
    x, y = np.linspace(0, 1, 65), np.full(65, height)
    for n in (1, 2, 4):
        y += swing / n * np.sin(x * rng.uniform(3, 6) * n + rng.uniform(0, 7))
    return [*zip(x, y, strict=True), (1, 1), (0, 1)]


def draw_landscape(rng: Generator, front: str) -> Image.Image:
    """Draw the background, RGB: sky, sun, hills and a meadow, and before them a road, a lake or more meadow."""
    canvas = draw_sky(rng, (SIZE[0] * SCALE, SIZE[1] * SCALE))
    x, y = rng.uniform((0.08, 0.06), (0.92, 0.6))  # may be behind the hills
    paint(canvas, "ellipse", [(x - 0.05, y - 0.067), (x + 0.05, y + 0.067)], (255, 240, 196))
    grass = noise(rng, canvas.size, (4, 3), 0.1) * noise(rng, canvas.size, (60, 12), 0.1)
    paint(canvas, "polygon", hills(rng, 0.36, 0.06), tint(pick(rng, (132, 156, 178), (142, 150, 172)), grass**0.4))
    paint(canvas, "polygon", hills(rng, 0.43, 0.03), tint(pick(rng, (106, 146, 124), (126, 152, 104)), grass**0.7))
    meadow = pick(rng, (126, 170, 84), (152, 176, 88), (182, 172, 98))
    paint(canvas, "polygon", hills(rng, 0.5, 0.01), tint(meadow, grass, ramp(canvas.size, 1.1, 0.9)))
    for x, y in rng.uniform((0, 0.56), (1, 0.98), (rng.integers(40), 2)):
        paint(canvas, "ellipse", [(x, y), (x + 0.009, y + 0.012)], pick(rng, (250, 240, 200), (220, 90, 80)))
    if front == "road":
        asphalt = tint(pick(rng, (122, 120, 124), (98, 100, 108)), noise(rng, canvas.size, (3, 2), 0.1))
        paint(canvas, "rectangle", [(0, 0.78), (1, 0.97)], (206, 196, 170))
        paint(canvas, "rectangle", [(0, 0.8), (1, 0.95)], asphalt)
        for x in np.arange(-rng.random() * 0.2, 1, 0.2):
            paint(canvas, "rectangle", [(x, 0.866), (x + 0.1, 0.884)], (236, 232, 220))
    elif front == "lake":
        shore = hills(rng, 0.74, 0.015)
        waves = noise(rng, canvas.size, (30, 4), 0.15) * ramp(canvas.size, 1.6, 0.75)
        paint(canvas, "polygon", [(x, y - 0.015) for x, y in shore], (222, 206, 160))
        paint(canvas, "polygon", shore, tint(pick(rng, (70, 132, 168), (84, 142, 146)), waves))
    return canvas


def draw_things(rng: Generator, front: str, size: Size) -> Iterator[tuple[float, float, str, Image.Image]]:
    """Draw what stands in a scene; yield the foot's height and middle in pixels, the class and the picture."""
    for name, thing in THINGS.items():
        if front not in thing.fronts:
            continue
        count = rng.integers(len(thing.fronts) == 1, thing.most, endpoint=True)
        for slot in rng.permutation(count):
            x, nearness = (slot + rng.uniform(0.1, 0.9)) / count, rng.random()
            height, foot = (far + nearness * (near - far) for far, near in (thing.height, thing.foot))
            picture = thing.draw(rng, height * rng.uniform(0.9, 1.15) * size[1])
            yield foot * size[1], x * size[0], name, picture if rng.random() < 0.5 else ImageOps.mirror(picture)


def draw_scene(rng: Generator) -> tuple[Image.Image, Array]:
    """Draw a scene: an RGB picture of ``SIZE`` and its label, uint8 (H, W)."""
    front = str(rng.choice(["road", "lake", "meadow"], p=[0.4, 0.4, 0.2]))
    canvas = draw_landscape(rng, front)
    owner, labels = Image.new("L", canvas.size), [0]
    for foot, x, name, picture in sorted(draw_things(rng, front, canvas.size), key=lambda thing: thing[0]):
        corner = int(x - picture.width / 2), int(foot - picture.height)
        if name != "balloon":
            shadow = Image.new("L", picture.size)
            ImageDraw.Draw(shadow).ellipse([(0, 0.9 * picture.height), picture.size], fill=90)
            canvas.paste((24, 32, 36), (corner[0], corner[1] + picture.height // 25), shadow)
        canvas.paste(picture, corner, picture)
        owner.paste(len(labels), corner, picture.getchannel("A"))
        labels.append(CLASSES.index(name))
    return photograph(rng, canvas), label_owners(owner, labels)


def photograph(rng: Generator, canvas: Image.Image) -> Image.Image:
    """Shrink the canvas to the picture, in the light of some hour and with a camera's noise."""
    light = rng.choice([(1, 1, 1), (1.08, 0.99, 0.86), (0.9, 0.95, 1), (0.96, 0.86, 0.92)]) * rng.uniform(0.9, 1.1)
    pixels = np.asarray(canvas.resize(SIZE, Image.Resampling.LANCZOS)) * light
    return Image.fromarray((pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8))


def label_owners(owner: Image.Image, labels: Sequence[int]) -> Array:
    """Turn the canvas's map of object numbers into the picture's label, with void where two objects meet."""
    picture = Image.fromarray(np.asarray(owner)[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE])
    label: Array = np.array(labels, dtype=np.uint8)[np.asarray(picture)]
    highest, lowest = picture.filter(ImageFilter.MaxFilter(3)), picture.filter(ImageFilter.MinFilter(3))
    label[np.asarray(highest) != np.asarray(lowest)] = IGNORE_INDEX
    return label
