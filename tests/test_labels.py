"""Labels by number and by colour against lookups written here; images of every mode, depth and size."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import encode, one_sentence, pack
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_smp.data.camvid import CamVid
from fcn_smp.data.dataset import decode_image
from fcn_smp.data.folder import ImageFolder
from fcn_smp.data.labels import Color, Colors, LabelError, Numbers
from fcn_smp.errors import UserError

BYTES = st.integers(0, 255)
COLORS = st.tuples(BYTES, BYTES, BYTES)
FEW = settings(deadline=None, max_examples=60)


def png(pixels: np.ndarray, mode: str | None = None, **options: object) -> bytes:
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    return encode(image.convert(mode) if mode else image, "PNG", **options)


def indexed(numbers: np.ndarray, palette: list[Color], **options: object) -> bytes:
    """Return a PNG with a palette."""
    image = Image.fromarray(np.asarray(numbers, np.uint8))
    image.putpalette([value for color in palette for value in color])
    return encode(image, "PNG", **options)


# --- Numbers


@st.composite
def numbered(draw: st.DrawFn) -> tuple[list[int], list[int], np.ndarray]:
    """Draw numbers of classes, numbers of void and a picture of them."""
    numbers = draw(st.lists(BYTES, min_size=1, max_size=12, unique=True))
    count = draw(st.integers(1, len(numbers)))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    pixels = draw(st.lists(st.sampled_from(numbers), min_size=height * width, max_size=height * width))
    return numbers[:count], numbers[count:], np.reshape(pixels, (height, width))


def looked_up(pixels: np.ndarray, meaning: dict[int, int]) -> np.ndarray:
    return np.array([[meaning[int(pixel)] for pixel in row] for row in pixels], np.uint8)


@FEW
@given(numbered(), st.sampled_from(["L", "P", "RGB", "RGBA"]))
def test_numbers_are_looked_up(drawn: tuple[list[int], list[int], np.ndarray], mode: str) -> None:
    values, void, pixels = drawn
    channel = None
    if mode == "P":
        content = indexed(pixels, [(7 * k % 256, k // 2, 255 - k) for k in range(256)])
    elif mode == "L":
        content = png(pixels)
    else:
        others = [pixels[::-1, ::-1] ^ 85 ^ k for k in range(len(mode) - 1)]  # the other channels hold something else
        content, channel = png(np.stack([pixels, *others], axis=-1)), 0
    label = Numbers(values, void, channel)(content, "x.png")
    expected = looked_up(pixels, {value: k for k, value in enumerate(values)} | dict.fromkeys(void, 255))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, expected)


@FEW
@given(numbered(), st.data())
def test_number_of_neither_class_nor_void_is_named(
    drawn: tuple[list[int], list[int], np.ndarray], data: st.DataObject
) -> None:
    values, void, pixels = drawn
    stray = data.draw(BYTES.filter(lambda number: number not in values + void))
    pixels = pixels.copy()
    pixels[data.draw(st.integers(0, len(pixels) - 1)), data.draw(st.integers(0, pixels.shape[1] - 1))] = stray
    with one_sentence("a b/é.png", f"the label {stray};"):
        Numbers(values, void)(png(pixels), "a b/é.png")


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_channel_is_the_one_that_is_asked_for(channel: int) -> None:
    pixels = np.arange(27).reshape(3, 3, 3)
    np.testing.assert_array_equal(Numbers(range(27), channel=channel)(png(pixels), "x"), pixels[..., channel])


@pytest.mark.parametrize("mode", ["L", "P"])
def test_picture_without_channels_needs_none(mode: str) -> None:
    pixels = np.array([[0, 3], [2, 1]])
    content = png(pixels) if mode == "L" else indexed(pixels, [(9, 9, k) for k in range(4)])
    np.testing.assert_array_equal(Numbers(range(4), channel=0)(content, "x"), pixels)


@pytest.mark.parametrize(("values", "expected"), [((0, 1), [[0, 1], [1, 0]]), ((1, 0), [[1, 0], [0, 1]])])
def test_label_of_one_bit_holds_0_and_1(values: tuple[int, int], expected: list[list[int]]) -> None:
    content = encode(Image.fromarray(np.array([[False, True], [True, False]])), "PNG")
    np.testing.assert_array_equal(Numbers(values)(content, "x"), expected)
    with one_sentence("x", "the label 1;"):
        Numbers([0])(content, "x")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_of_any_depth_keeps_its_numbers(bits: int) -> None:
    pixels = np.array([[0, 1, 1, 0, 1]])
    content = indexed(pixels, [(50, 60, 70)] * 2**bits, transparency=0)
    assert content[24:26] == bytes([bits, 3])  # depth, and that there is a palette
    np.testing.assert_array_equal(Numbers([0, 1])(content, "x"), pixels)


def test_255_is_void_unless_it_is_a_class() -> None:
    content = png([[0, 255]])
    np.testing.assert_array_equal(Numbers([0])(content, "x"), [[0, 255]])
    np.testing.assert_array_equal(Numbers([0, 255])(content, "x"), [[0, 1]])
    np.testing.assert_array_equal(Numbers([255, 0])(content, "x"), [[1, 0]])
    with one_sentence("x", "the label 255;", "0 to 0"):
        Numbers([0], void=())(content, "x")


def test_message_says_what_is_allowed() -> None:
    with one_sentence("x", "the label 9;", "3, 1 ", "255 (void)"):
        Numbers([3, 1])(png([[9]]), "x")
    with one_sentence("x", "0 to 2", "7, 8 (void)"):
        Numbers([0, 1, 2], [7, 8])(png([[9]]), "x")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F", "I;16"])
def test_label_that_is_no_picture_of_numbers_is_named_with_its_mode(mode: str) -> None:
    content = encode(Image.new(mode, (2, 3)), "TIFF")
    with one_sentence("x.tif", f"mode {mode};"):
        Numbers([0])(content, "x.tif")


# --- Colours


@st.composite
def coloured(draw: st.DrawFn) -> tuple[list[Color], list[Color], np.ndarray]:
    """Draw colours of classes, colours of void and numbers of colours."""
    # Colours that differ in one bit of one channel only are the ones that a careless code confuses.
    near = st.tuples(*[st.sampled_from([0, 1, 128, 254, 255])] * 3)
    colors = draw(st.lists(COLORS | near, min_size=1, max_size=12, unique=True))
    count = draw(st.integers(1, len(colors)))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    cells = st.integers(0, len(colors) - 1)
    numbers = np.reshape(draw(st.lists(cells, min_size=height * width, max_size=height * width)), (height, width))
    return colors[:count], colors[count:], numbers


@FEW
@given(coloured(), st.sampled_from(["RGB", "RGBA", "P"]))
def test_colours_are_looked_up(drawn: tuple[list[Color], list[Color], np.ndarray], mode: str) -> None:
    colors, void, numbers = drawn
    pixels = np.array(colors + void)[numbers]
    if mode == "P":
        content = indexed(numbers, colors + void)
    elif mode == "RGBA":  # transparent or not, a colour is a colour
        content = png(np.concatenate([pixels, numbers[..., None] * 20], axis=-1))
    else:
        content = png(pixels)
    label = Colors(colors, void)(content, "x.png")
    meaning = {color: k for k, color in enumerate(colors)} | dict.fromkeys(void, 255)
    expected = [[meaning[tuple(pixel)] for pixel in row] for row in pixels.tolist()]
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, expected)


@FEW
@given(coloured(), st.data())
def test_unknown_colour_is_named_with_its_place(
    drawn: tuple[list[Color], list[Color], np.ndarray], data: st.DataObject
) -> None:
    colors, void, numbers = drawn
    base = data.draw(st.sampled_from(colors + void))
    channel, change = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 255))
    near = tuple(value ^ change if k == channel else value for k, value in enumerate(base))
    stray = near if near not in colors + void else data.draw(COLORS.filter(lambda color: color not in colors + void))
    row, column = data.draw(st.integers(0, len(numbers) - 1)), data.draw(st.integers(0, numbers.shape[1] - 1))
    pixels = np.array(colors + void)[numbers]
    pixels[row, column] = stray
    red, green, blue = stray
    with one_sentence("a b/é.png", f"({red}, {green}, {blue}) at row {row}, column {column},"):
        Colors(colors, void)(png(pixels), "a b/é.png")


def test_first_of_several_unknown_colours_is_named() -> None:
    pixels = np.zeros((3, 4, 3))
    pixels[1, 2], pixels[2, 0] = (1, 2, 3), (4, 5, 6)
    with one_sentence("x", "(1, 2, 3) at row 1, column 2,"):
        Colors([(0, 0, 0)])(png(pixels), "x")


def test_grey_and_one_bit_pictures_have_colours_too() -> None:
    colors = Colors([(255, 255, 255), (0, 0, 0)], [(7, 7, 7)])
    np.testing.assert_array_equal(colors(png([[0, 255, 7]]), "x"), [[1, 0, 255]])
    np.testing.assert_array_equal(colors(encode(Image.fromarray(np.array([[False, True]])), "PNG"), "x"), [[1, 0]])


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])], ids=["one", "each its own"])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_palette_with_transparency_has_its_colours(transparency: int | bytes) -> None:
    palette = [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
    content = indexed([[2, 0, 1]], palette, transparency=transparency)
    np.testing.assert_array_equal(Colors(palette)(content, "x"), [[2, 0, 1]])
    np.testing.assert_array_equal(Numbers(range(3))(content, "x"), [[2, 0, 1]])
    np.testing.assert_array_equal(decode_image(content, "x"), [[palette[k] for k in (2, 0, 1)]])


# --- Damage


@pytest.mark.parametrize(
    "decode", [Numbers(range(4)), Colors([(k, 0, 0) for k in range(4)])], ids=["numbers", "colours"]
)
def test_label_that_ends_early_is_whole_or_named(decode: Numbers | Colors) -> None:
    numbers = np.random.default_rng(0).integers(0, 4, (9, 11))
    content = indexed(numbers, [(k, 0, 0) for k in range(4)], bits=8)
    whole = 0
    for length in range(len(content)):
        try:
            label = decode(content[:length], "a b.png")
        except LabelError:
            pytest.fail("a damaged file is not one that holds something wrong")
        except UserError as error:
            message = str(error)
            assert message.startswith("a b.png cannot be read as a label: "), message
            assert message.endswith("."), message
            assert "\n" not in message, message
        else:
            np.testing.assert_array_equal(label, numbers)
            whole += 1
    assert whole <= 20  # the checksums and the end, which hold no pixels, can be spared


@pytest.mark.parametrize(
    "content", [b"", b"noise", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM" + bytes(60), b"P5\n0 0\n255\n"]
)
@pytest.mark.parametrize("decode", [Numbers([0]), Colors([(0, 0, 0)])], ids=["numbers", "colours"])
def test_file_that_is_no_label_is_named(decode: Numbers | Colors, content: bytes) -> None:
    with one_sentence("a b/é.png cannot be read as a label: "):
        decode(content, "a b/é.png")


def test_jpeg_that_ends_early_is_named() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), "JPEG")
    assert decode_image(content, "x").shape == (24, 32, 3)
    for length in range(0, len(content) - 60, 17):
        with one_sentence("a b/é.jpg cannot be read as an image: "):
            decode_image(content[:length], "a b/é.jpg")


# --- Images of all depths


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(pixels: np.ndarray) -> bytes:
    """Write a PNG of 16 bits and 1 to 4 channels, which Pillow cannot for most."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep_tiff(pixels: np.ndarray, order: str) -> bytes:
    """Write a TIFF of 16 bits and 1 or 3 channels, the lower byte first (<) or the higher (>)."""
    height, width, channels = pixels.shape
    content = pixels.astype(f"{order}u2").tobytes()
    depth = b"".join(struct.pack(f"{order}H", 16) for _ in range(channels))
    content += depth
    place = 8 + len(content) - len(depth)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, place if channels > 2 else None), (259, 3, 1, 1),
        (262, 3, 1, 2 if channels == 3 else 1), (273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height),
        (279, 4, 1, pixels.size * 2),
    ]  # fmt: skip
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        if value is None:
            field = depth.ljust(4, b"\0")
        elif kind == 3 and count == 1:
            field = struct.pack(f"{order}HH", value, 0)
        else:
            field = struct.pack(f"{order}I", value)
        table += struct.pack(f"{order}HHI", tag, kind, count) + field
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(content))
    return start + content + table + bytes(4)


DEEP = np.random.default_rng(1).integers(0, 1 << 16, (5, 7, 4))
DEEP[0, 0], DEEP[0, 1], DEEP[0, 2], DEEP[0, 3] = 0, 65535, 255, 256


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_of_a_png_of_16_bits_the_upper_8_are_taken(channels: int) -> None:
    expected = DEEP[..., :channels] >> 8
    expected = expected[..., :3] if channels > 2 else np.repeat(expected[..., :1], 3, axis=-1)
    decoded = decode_image(deep_png(DEEP[..., :channels]), "x.png")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3])
def test_of_a_tiff_of_16_bits_the_upper_8_are_taken(channels: int, order: str) -> None:
    expected = np.broadcast_to(DEEP[..., :channels] >> 8, (5, 7, 3))
    np.testing.assert_array_equal(decode_image(deep_tiff(DEEP[..., :channels], order), "x.tif"), expected)


def test_of_a_pgm_of_16_bits_the_upper_8_are_taken() -> None:
    content = b"P5 7 5 65535\n" + DEEP[..., 0].astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(content, "x.pgm"), np.repeat(DEEP[..., :1] >> 8, 3, axis=-1))


@pytest.mark.parametrize(
    ("mode", "transparency", "color", "expected"),
    [
        ("L", 5, 5, (5, 5, 5)),
        ("RGB", (5, 6, 7), (5, 6, 7), (5, 6, 7)),
        ("1", None, 0, (0, 0, 0)),
    ],
)
def test_colour_that_is_called_transparent_stays(
    mode: str, transparency: object, color: object, expected: tuple[int, int, int]
) -> None:
    options = {} if transparency is None else {"transparency": transparency}
    content = encode(Image.new(mode, (3, 2), color), "PNG", **options)
    assert (b"tRNS" in content) == bool(options)
    np.testing.assert_array_equal(decode_image(content, "x"), np.broadcast_to(expected, (2, 3, 3)))


STORED = {  # how a camera stores the upright picture, by its EXIF orientation
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: np.swapaxes(picture, 0, 1),
    6: lambda picture: np.swapaxes(picture, 0, 1)[::-1],
    7: lambda picture: np.swapaxes(picture[::-1, ::-1], 0, 1),
    8: lambda picture: np.swapaxes(picture, 0, 1)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16"])
def test_image_of_any_mode_is_turned_upright(mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.arange(6).reshape(2, 3) * 40
    stored = np.ascontiguousarray(STORED[orientation](upright))
    if mode == "I;16":
        image = Image.fromarray((stored * 256 + 255 - stored).astype(np.uint16))
    else:
        image = Image.fromarray(stored.astype(np.uint8))
        if mode == "P":
            image.putpalette([value for k in range(256) for value in (k, k, k)])
        else:
            image = image.convert(mode)
    assert image.mode == mode
    expected = np.repeat(upright[..., None], 3, axis=-1)
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode_image(encode(image, form, exif=exif), "x"), expected)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"),
     ("I;16", "TIFF"), ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("P", "GIF"), ("RGB", "BMP")],
)  # fmt: skip
def test_one_pixel_is_an_image(mode: str, form: str) -> None:
    decoded = decode_image(encode(Image.new(mode, (1, 1)), form), "x")
    assert (decoded.shape, decoded.dtype) == ((1, 1, 3), np.uint8)


HUGE = """
import sys
from fcn_smp.data.dataset import decode_image
from fcn_smp.data.labels import Numbers
from pathlib import Path
content = Path(sys.argv[1]).read_bytes()
label = Numbers([1, 0])(content, "x")
print(label.shape, label[0, 0], label[9999, 10002])
del label
image = decode_image(content, "x")
print(image.shape, image[0, 0], image[9999, 10002])
"""


def test_hundred_megapixels_are_read_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("1", (10003, 10000))
    image.putpixel((10002, 9999), 1)
    image.save(tmp_path / "huge.png", compress_level=1)
    # In a process of its own, with the warnings that a user sees: pytest has filters of its own.
    command = [sys.executable, "-c", HUGE, str(tmp_path / "huge.png")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "(10000, 10003) 1 0\n(10000, 10003, 3) [0 0 0] [255 255 255]\n"


# --- Paths


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("name", ["straße 1", "図 書", "a  b.c", "weiß (2)'\"%20", "-x", "e\u0301"])
def test_names_may_hold_any_character(tmp_path: Path, name: str, packed: bool) -> None:
    root = tmp_path / f"mein {name}"
    pixels = np.random.default_rng(0).integers(0, 3, (4, 5))
    for folder in ("Bilder für alle", "Étiquettes", "train", "trainannot"):
        (root / folder).mkdir(parents=True)
        image = folder in ("Bilder für alle", "train")
        (root / folder / f"{name}.png").write_bytes(png(np.stack([pixels * 9] * 3, -1) if image else pixels))
    (tmp_path / f"{name}.txt").write_text(f"{name}.png\n", encoding="utf-8")
    place = pack(root, tmp_path / f"mein {name}.tar", ".") if packed else root
    options = {"images": "Bilder für alle", "labels": "Étiquettes"}
    for split in ("all", str(tmp_path / f"{name}.txt")):
        [sample] = [*map(ImageFolder(place, split, {"a": 0, "b": 1, "c": 2}, **options).__getitem__, range(1))]
        assert sample.id == name
        np.testing.assert_array_equal(sample.image[..., 0], pixels * 9)
        np.testing.assert_array_equal(sample.label, pixels)
    np.testing.assert_array_equal(CamVid(place, "train")[0].label, pixels)
    with one_sentence(place, f"Étiquettes/{name}.png", "the label 2;"):
        ImageFolder(place, "all", {"a": 0, "b": 1}, **options).read_label(0)
