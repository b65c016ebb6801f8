"""Pictures: labels as palette images, overlays, and panels."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_smp.data.labels import IGNORE_INDEX, Array
from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.drawing import overlay, palette_image, panel, save_image

PALETTE = voc_palette()
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def noise(size: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@settings(deadline=None)
@given(SIZES, st.integers(0, 1000))
def test_palette_image_keeps_the_numbers_and_shows_the_colours(size: tuple[int, int], seed: int) -> None:
    label = noise(size, seed)
    image = palette_image(label, PALETTE)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.array(image), label)
    np.testing.assert_array_equal(np.array(image.getpalette()).reshape(-1, 3), PALETTE)
    shown = np.array(image.convert("RGB"))
    for row in range(size[0]):
        for column in range(size[1]):
            assert tuple(shown[row, column]) == tuple(PALETTE[label[row, column]])


@pytest.mark.parametrize("label", [noise((7, 9), 0), noise((9, 7), 1).T, noise((20, 20), 2)[::2, ::-3]])
def test_palette_image_survives_its_png_file(label: Array, tmp_path: Path) -> None:
    save_image(palette_image(label, PALETTE), tmp_path / "below/x.png")
    with Image.open(tmp_path / "below/x.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image), label)
        np.testing.assert_array_equal(np.array(image.convert("RGB")), PALETTE[label])
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["x.png"]


@settings(deadline=None)
@given(SIZES, st.integers(0, 1000), st.floats(0, 1))
def test_overlay_mixes_colours_but_leaves_the_background(size: tuple[int, int], seed: int, opacity: float) -> None:
    image = noise((*size, 3), seed)
    label = np.random.default_rng(seed).choice([0, 1, 20, IGNORE_INDEX], size).astype(np.uint8)
    mixed = np.array(overlay(image, label, PALETTE, opacity, clear=(0,)))
    assert mixed.shape == image.shape
    for place in np.ndindex(size):
        expected = image[place].astype(float)
        if label[place] != 0:
            expected = (1 - opacity) * expected + opacity * PALETTE[label[place]]
        np.testing.assert_allclose(mixed[place], expected, atol=0.51 if label[place] else 0)


def flat(size: tuple[int, int], colour: tuple[int, int, int], truth: int, guess: int) -> tuple[Array, Array, Array]:
    image = np.broadcast_to(np.array(colour, np.uint8), (*size, 3))
    return image, np.full(size, truth, np.uint8), np.full(size, guess, np.uint8)


ROWS = [
    flat((50, 60), (250, 10, 90), 3, 3),
    flat((75, 50), (10, 250, 90), 8, 15),
    flat((33, 100), (10, 90, 250), IGNORE_INDEX, 20),
]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("height", [30, 200])
def test_panel_shows_image_truth_and_prediction_of_each_row(count: int, height: int) -> None:
    picture = panel(ROWS[:count], PALETTE, VOCSegmentation.classes, height)
    widths = [round(row[0].shape[1] * height / row[0].shape[0]) for row in ROWS[:count]]
    gap = 6
    assert picture.mode == "RGB"
    assert picture.width == max(3 * width + 2 * gap for width in widths)
    heading = 22
    for number, (width, (image, truth, prediction)) in enumerate(zip(widths, ROWS, strict=False)):
        middle = heading + number * (height + gap) + height // 2
        for column, colour in enumerate([image[0, 0], PALETTE[truth[0, 0]], PALETTE[prediction[0, 0]]]):
            left = column * (width + gap)
            for x in (left + 1, left + width // 2, left + width - 2):
                assert picture.getpixel((x, middle)) == tuple(colour)
    assert picture.height > heading + count * (height + gap)


def test_panel_draws_the_prediction_where_the_truth_is_void() -> None:
    picture = panel([ROWS[2]], PALETTE, VOCSegmentation.classes, 30)
    assert picture.getpixel((picture.width - 10, 30)) == tuple(PALETTE[20])


@pytest.mark.parametrize("height", [20, 200], ids=["legend in many lines", "legend in one line"])
def test_legend_shows_the_classes_that_occur_and_no_other(height: int) -> None:
    truth, prediction = (np.array([k], np.uint8).repeat(5, 0).repeat(2, 1) for k in ([0, 3, IGNORE_INDEX], [8, 3, 15]))
    picture = panel([(noise((5, 6, 3), 0), truth, prediction)], PALETTE, VOCSegmentation.classes, height)
    legend = np.array(picture)[22 + height + 6 :].reshape(-1, 3)
    shown = {tuple(colour) for colour in legend.tolist()}
    for k in (0, 3, 8, 15, IGNORE_INDEX):
        assert tuple(PALETTE[k].tolist()) in shown
    for k in set(range(1, 21)) - {3, 7, 8, 15}:  # 7 is a gray, as are the edges of letters
        assert tuple(PALETTE[k].tolist()) not in shown


def test_picture_is_saved_in_the_format_of_its_suffix(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), (200, 30, 30))
    for suffix, form in (("png", "PNG"), ("jpg", "JPEG")):
        save_image(picture, tmp_path / f"x.{suffix}")
        with Image.open(tmp_path / f"x.{suffix}") as image:
            assert image.format == form
            np.testing.assert_allclose(np.array(image), np.array(picture), atol=3)
