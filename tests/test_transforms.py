"""What the network sees: normalised as told, augmented at random but the same for the same seed."""

import colorsys
from collections import Counter
from collections.abc import Iterator, Sequence

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.stats import chisquare
from torch.utils.data import DataLoader, Dataset

from fcn_smp.data.labels import IGNORE_INDEX, Array
from fcn_smp.data.transforms import Augment, Preprocess, ScaledCrop, color_matrix

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAW = Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # pads with black
CAFFE_MEAN = (104.00699, 116.66877, 122.67892)
CAFFE = Preprocess(CAFFE_MEAN, (1.0, 1.0, 1.0), "BGR", (0, 255))
SEEDS = range(200)


def augment(preprocess: Preprocess = RAW, **changes: object) -> Augment:
    options = {"crop": (48, 64), "scale": (0.5, 2.0), "flip": 0.5, "color_jitter": 0.0, "class_balance": 0.0, **changes}
    return Augment(preprocess, **options)


def blocks(seed: int = 0, block: int = 24, classes: Sequence[int] = (*range(21), IGNORE_INDEX)) -> Array:
    """Draw a label of square blocks of random classes."""
    numbers = np.random.default_rng(seed).choice(classes, (5, 6)).astype(np.uint8)
    return numbers.repeat(block, 0).repeat(block, 1)


def coded(label: Array) -> Array:
    """Draw the image whose colours tell the label's classes."""
    return np.stack([label, 255 - label, label * 7 % 251], -1).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- Normalisation


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(0.01, 2)] * 3),
    st.integers(0, 1000),
)
def test_normalised_is_by_mean_and_standard_deviation(
    size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> None:
    image = noise(*size, seed)
    result = Preprocess(mean, std)(image)
    assert result.shape == (3, *size)
    assert result.dtype == torch.float32
    for channel in range(3):
        expected = (image[..., channel] / 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(result[channel].numpy(), expected, rtol=1e-5, atol=1e-4)


def test_an_augmentation_that_does_nothing_leaves_image_and_label_as_they_are() -> None:
    image, label = noise(48, 64), blocks()[:48, :64]
    same = augment(scale=(1, 1), flip=0)(image, label, (0,))
    np.testing.assert_array_equal(same[0], image)
    np.testing.assert_array_equal(same[1], label)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("preprocess", [Preprocess(MEAN, STD), CAFFE], ids=["ImageNet", "Caffe"])
def test_batch_is_normalised_as_albumentations_does_it(
    preprocess: Preprocess, memory_format: torch.memory_format
) -> None:
    images = np.stack([noise(48, 64, seed) for seed in range(3)])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    result = preprocess.normalize(batch)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=memory_format)
    for image, normalized in zip(images, result, strict=True):
        if preprocess is CAFFE:
            expected = A.Normalize(CAFFE_MEAN, (1, 1, 1), max_pixel_value=1)(image=image[..., ::-1])["image"]
        else:
            expected = A.Normalize(MEAN, STD)(image=image)["image"]
        np.testing.assert_allclose(normalized.numpy(), expected.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(normalized, preprocess(image))


def test_a_caffe_network_gets_blue_first_from_0_to_255_without_the_mean() -> None:
    image = noise(5, 7)
    expected = image[..., ::-1].astype(np.float32) - np.array([104.00699, 116.66877, 122.67892], np.float32)
    np.testing.assert_allclose(CAFFE(image).numpy(), expected.transpose(2, 0, 1), rtol=1e-6)


# --- Seeds


def test_same_seed_gives_the_same_whatever_was_drawn_before() -> None:
    image, label = noise(120, 144), blocks()
    transform = augment(color_jitter=0.3, class_balance=0.5)
    first = transform(image, label, (3, 1, 4))
    for again in (transform, augment(color_jitter=0.3, class_balance=0.5)):
        again(image, label, (0, 0, 0))
        for one, other in zip(first, again(image, label, (3, 1, 4)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_other_seeds_give_others() -> None:
    image, label = noise(120, 144), blocks()
    transform = augment(color_jitter=0.3)
    seeds = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    results = {transform(image, label, seed)[0].tobytes() for seed in seeds}
    assert len(results) == len(seeds)


class Augmented(Dataset[tuple[Array, Array]]):
    def __init__(self) -> None:
        self.transform = augment(color_jitter=0.3, class_balance=0.5)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Array, Array]:
        return self.transform(noise(120, 144), blocks(), (0, index))


def test_same_seed_gives_the_same_in_every_process() -> None:
    here = Augmented()
    there = DataLoader(here, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for index, (image, label) in enumerate(there):
        np.testing.assert_array_equal(image, here[index][0])
        np.testing.assert_array_equal(label, here[index][1])


# --- Geometry


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)).map(sorted),
    st.floats(0, 0.9),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_any_image_is_brought_to_the_size_of_the_crop(
    size: tuple[int, int], crop: tuple[int, int], scale: list[float], jitter: float, balance: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 3, 20, IGNORE_INDEX], size).astype(np.uint8)
    options = {"crop": crop, "scale": tuple(scale), "color_jitter": jitter, "class_balance": balance}
    transform = augment(Preprocess(MEAN, STD), **options)
    image, result = transform(noise(*size, seed), label, (seed,))
    assert image.shape == (*crop, 3)
    assert result.shape == crop
    assert image.dtype == result.dtype == np.uint8
    assert set(np.unique(result).tolist()) <= {*np.unique(label).tolist(), IGNORE_INDEX}


@pytest.mark.parametrize(
    ("size", "scale"), [((1, 1), 0.5), ((1, 40), 0.5), ((40, 1), 0.5), ((3, 40), 0.3), ((10, 40), 0.1)]
)
def test_small_image_survives_the_smallest_scale(size: tuple[int, int], scale: float) -> None:
    image, label = augment(scale=(scale, scale))(noise(*size), np.zeros(size, np.uint8), (0,))
    assert image.shape[:2] == label.shape == (48, 64)
    assert (label == 0).any()


def places_of(part: Array, whole: Array) -> list[tuple[int, int]]:
    """Return where a part begins in the whole."""
    height, width = part.shape
    windows = np.lib.stride_tricks.sliding_window_view(whole, width, 1)
    starts = np.argwhere((windows[: len(whole) - height + 1] == part[0]).all(-1))
    return [(t, left) for t, left in starts.tolist() if (whole[t : t + height, left : left + width] == part).all()]


@pytest.mark.parametrize(("scale", "aligned"), [(3, 1), (2, 1), (4 / 3, 1 / 9), (1, 1), (0.5, 1 / 4)])
@pytest.mark.parametrize("class_balance", [0.0, 1.0])
def test_crop_is_what_the_scaled_image_has_there(scale: float, aligned: float, class_balance: float) -> None:
    image = cv2.resize(noise(30, 40), (150, 120))
    source = noise(120, 150, 1)[..., 0] % 21
    size = round(150 * scale), round(120 * scale)
    whole = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    labels = cv2.resize(source, size, interpolation=cv2.INTER_NEAREST_EXACT)
    transform = augment(crop=(48, 60), scale=(scale, scale), flip=0, class_balance=class_balance)
    found = 0
    for seed in range(100):
        part, label = transform(image, source, (seed,))
        places = places_of(label, labels)
        # A crop begins at a pixel of the image, which need not lie on a pixel of the scaled image.
        found += len(places)
        for top, left in places:
            expected = whole[top : top + 48, left : left + 60].astype(int)
            # Its outermost pixels are not blended with what is not kept.
            assert np.abs(part - expected)[2:-2, 2:-2].max() <= 1
    assert found >= 100 if aligned == 1 else 0 < found / 100 < 2 * aligned


def interior(label: Array, reach: int) -> NDArray[np.bool_]:
    """Tell the pixels with no other label within ``reach``."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    inside = cv2.erode(label, kernel) == cv2.dilate(label, kernel)
    inside[:reach] = inside[-reach:] = False
    inside[:, :reach] = inside[:, -reach:] = False
    return inside


@pytest.mark.parametrize("class_balance", [0.0, 1.0])
@pytest.mark.parametrize("color_jitter", [0.0, 0.3])
def test_image_and_label_stay_together(color_jitter: float, class_balance: float) -> None:
    source = blocks(classes=range(21))
    transform = augment(color_jitter=color_jitter, class_balance=class_balance)
    plain = augment(class_balance=class_balance)
    checked = 0
    for seed in SEEDS:
        label = transform(coded(source), source, (seed,))[1]
        # Colours may change with the seed, places may not.
        image, same = plain(coded(source), source, (seed,))
        np.testing.assert_array_equal(label, same)
        inside = interior(label, reach=3) & (label != IGNORE_INDEX)
        np.testing.assert_allclose(image[inside].astype(int), coded(label[inside]), atol=1)
        checked += len(np.unique(label[inside])) >= 2
    assert checked > len(SEEDS) * 0.9


@pytest.mark.parametrize("scale", [0.25, 0.3, 0.5, 0.75, 1.5])
def test_label_is_not_shifted_against_the_image(scale: float) -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    size = int(200 * scale)
    image, label = augment(crop=(size, size), scale=(scale, scale), flip=0)(ramp[..., None].repeat(3, 2), ramp, (0,))
    shift = (image[..., 0].astype(int) - label)[4:-4, 4:-4].mean()  # in pixels of the ramp
    assert abs(shift) < 0.25  # the right one of two that are equally near


def test_colour_jitter_changes_colours() -> None:
    source, image = blocks(), noise(120, 144)
    pairs = [(augment()(image, source, (s,))[0], augment(color_jitter=0.3)(image, source, (s,))[0]) for s in range(50)]
    changed = [not np.array_equal(plain, jittered) for plain, jittered in pairs]
    assert 0.6 < np.mean(changed) < 0.95  # four of five


def recolored(image: Array, **changes: float) -> NDArray[np.float64]:
    """Return colours (H, W, 3) after some of the changes of colour, not cut off at 0 and 255."""
    still = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "turn": 0.0}
    matrix = color_matrix(image.mean((0, 1)), **{**still, **changes})
    return image @ matrix[:, :3].T + matrix[:, 3]


@pytest.mark.parametrize("factor", [0.7, 0.9, 1.3])
@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation"])
def test_brightness_contrast_and_saturation_are_those_of_pillow(change: str, factor: float) -> None:
    image = noise(40, 30) // 2 + 40  # which stays within 0 and 255
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }[change](Image.fromarray(image))
    np.testing.assert_allclose(recolored(image, **{change: factor}), np.array(enhance.enhance(factor)), atol=1.5)


@pytest.mark.parametrize("turn", [-0.05, -0.02, 0.02, 0.05])
def test_hue_turns_as_far_as_in_hsv_and_grey_stays(turn: float) -> None:
    image = noise(40, 30)
    turned = recolored(image, turn=turn)
    np.testing.assert_allclose(turned.mean(-1), image.mean(-1))
    vivid = np.ptp(image, -1) > 30
    hues = [[colorsys.rgb_to_hsv(*(color / 255))[0] for color in colors[vivid]] for colors in (image, turned)]
    difference = (np.subtract(hues[1], hues[0]) + 0.5) % 1 - 0.5
    # A circle's angle and the hexagon's of HSV come apart by a hundredth of a circle at most.
    assert np.abs(difference - turn).max() < 0.01
    assert abs(difference.mean() - turn) < 0.001
    grey = np.full((2, 2, 3), 77, np.uint8)
    np.testing.assert_allclose(recolored(grey, turn=turn), grey)


def test_a_third_of_a_circle_makes_red_green() -> None:
    red = np.array([[[200, 0, 0]]], np.uint8)
    np.testing.assert_allclose(recolored(red, turn=1 / 3), [[[0, 200, 0]]], atol=1e-9)


def test_changes_of_colour_are_drawn_within_their_bounds() -> None:
    # Of a grey image nothing changes but the brightness.
    grey = np.full((48, 64, 3), 100, np.uint8)
    transform = augment(color_jitter=0.3, scale=(1, 1))
    levels = np.array([transform(grey, blocks()[:48, :64], (seed,))[0][0, 0] for seed in range(300)]).astype(int)
    assert (np.ptp(levels, 1) <= 1).all()  # rounding
    assert 70 <= levels.min() < 73
    assert 127 < levels.max() <= 130


def test_changes_of_colour_are_made_in_one_go() -> None:
    image = noise(48, 64)
    for seed in range(20):
        result = augment(color_jitter=0.5, scale=(1, 1), flip=0)(image, blocks()[:48, :64], (seed,))[0].astype(float)
        inside = (result > 0).all(-1) & (result < 255).all(-1)
        known = np.column_stack([image[inside], np.ones(inside.sum())])
        matrix, *_ = np.linalg.lstsq(known, result[inside], rcond=None)
        assert np.abs(known @ matrix - result[inside]).max() < 1.2  # rounding


@pytest.mark.parametrize("preprocess", [Preprocess(MEAN, STD), CAFFE])
def test_padding_is_void_in_the_label_and_mean_in_the_image(preprocess: Preprocess) -> None:
    source, image = np.full((20, 30), 5, np.uint8), np.full((20, 30, 3), 255, np.uint8)
    for seed in range(50):
        pixels, label = augment(preprocess, color_jitter=0.3)(image, source, (seed,))
        void = label == IGNORE_INDEX
        assert 0 < void.mean() < 1
        assert (label[~void] == 5).all()
        seen, above = (preprocess(np.full((1, 1, 3), pixels[void][0]) + step)[:, 0, 0] for step in np.uint8([0, 1]))
        assert (pixels[void] == pixels[void][0]).all()
        assert (seen.abs() <= (above - seen) / 2).all()  # half a step of a colour
        assert (pixels[~void] > 170).all()


def seen() -> Iterator[tuple[float, float, bool, float, float]]:
    """Give, for each seed, the scale in both directions, whether it was flipped, and where the crop lies."""
    whole = np.ones((60, 80), np.uint8)
    whole[:, 40:] = 2
    rows, columns = np.mgrid[0:240, 0:240].astype(np.uint8)
    places = np.stack([rows, columns, 0 * rows], -1)
    for seed in SEEDS:
        label = augment(crop=(160, 200))(coded(whole), whole, (seed,))[1]
        rows, columns = (label != IGNORE_INDEX).nonzero()
        first, last = label[rows[0], columns.min()], label[rows[0], columns.max()]
        assert {int(first), int(last)} == {1, 2}
        # The crop's place is told by a second image, which is larger than the crop at any scale.
        corners = augment(crop=(48, 48))(places, places[..., 0], (seed,))[0]
        yield (
            len(np.unique(rows)) / 60,
            len(np.unique(columns)) / 80,
            int(first) == 2,
            corners[..., 0].min(),
            corners[..., 1].min(),
        )


def test_scale_flip_and_crop_are_drawn_independently() -> None:
    vertical, horizontal, flipped, top, left = np.array(list(seen())).T
    np.testing.assert_allclose(vertical, horizontal, atol=0.04)
    assert 0.48 <= vertical.min() < 0.6
    assert 1.9 < vertical.max() <= 2
    assert 0.4 < flipped.mean() < 0.6
    # How far down a crop may start depends on the scale: its place is taken as a share of that.
    room = np.round(240 * vertical) - 48
    down, right = top * vertical / room, left * vertical / room
    assert down.max() > 0.9
    assert down.min() < 0.1
    numbers = np.corrcoef([vertical, flipped, down, right])
    assert np.abs(numbers[np.triu_indices(4, 1)]).max() < 0.2


@pytest.mark.parametrize(("flip", "expected"), [(0.0, False), (1.0, True)])
def test_flip_is_never_or_always_done_when_told_so(flip: float, expected: bool) -> None:
    source = np.ones((60, 80), np.uint8)
    source[:, 40:] = 2
    for seed in range(30):
        label = augment(crop=(60, 80), scale=(1, 1), flip=flip)(coded(source), source, (seed,))[1]
        np.testing.assert_array_equal(label, source[:, ::-1] if expected else source)


# --- Crops around a pixel of a class


def test_as_many_crops_as_told_are_balanced_and_the_others_stay_where_they_were() -> None:
    places = np.stack([*np.mgrid[0:120, 0:144], np.zeros((120, 144))], -1).astype(np.uint8)
    plain, balanced = augment(), augment(class_balance=0.3)
    moved = 0
    for seed in range(400):
        one, other = (transform(places, blocks(), (seed,))[0] for transform in (plain, balanced))
        moved += not np.array_equal(one, other)
    assert 0.22 < moved / 400 < 0.38


@settings(deadline=None)
@given(st.data())
def test_balanced_crop_holds_the_only_labelled_pixel(data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    row, column = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    source = np.full((height, width), IGNORE_INDEX, np.uint8)
    source[row, column] = number = data.draw(st.integers(0, 254))
    image = np.full((height, width, 3), 200, np.uint8)
    image[row, column] = 10, 20, 30
    crop = data.draw(st.tuples(st.integers(1, 80), st.integers(1, 80)))
    still = augment(crop=crop, scale=(1, 1), flip=data.draw(st.sampled_from([0, 0.5, 1])), class_balance=1)
    result, label = still(image, source, (data.draw(st.integers(0, 2**32)),))
    assert label.shape == crop
    places = np.argwhere(label != IGNORE_INDEX).tolist()
    assert len(places) == 1
    assert label[tuple(places[0])] == number
    assert result[*places[0]].tolist() == [10, 20, 30]


# Of a pixel at the edge of a window that is reduced nothing may be left.
@pytest.mark.parametrize(("scale", "side", "least"), [((1, 3), 1, 1.0), ((0.25, 1), 5, 0.96)])
def test_scaled_class_of_few_pixels_is_found(scale: tuple[float, float], side: int, least: float) -> None:
    source = np.full((90, 120), IGNORE_INDEX, np.uint8)
    source[70 : 70 + side, 15 : 15 + side] = 4
    transform = augment(crop=(20, 30), scale=scale, class_balance=1)
    found = [(transform(noise(90, 120), source, (seed,))[1] == 4).any() for seed in SEEDS]
    assert np.mean(found) >= least


@settings(deadline=None)
@given(st.tuples(st.integers(1, 60), st.integers(1, 60)), st.floats(0, 1), st.integers(0, 2**32))
def test_label_without_classes_is_cropped_as_ever(size: tuple[int, int], balance: float, seed: int) -> None:
    source = noise(*size), np.full(size, IGNORE_INDEX, np.uint8)
    for one, other in zip(augment(class_balance=balance)(*source, (seed,)), augment()(*source, (seed,)), strict=True):
        np.testing.assert_array_equal(one, other)


def windows_by_definition(label: Array, crop: tuple[int, int], class_balance: float) -> dict[tuple[int, int], float]:
    """Return how likely a crop is to begin at each row and column, by going through all that may be drawn."""
    height, width = label.shape
    windows = [(top, left) for top in range(height - crop[0] + 1) for left in range(width - crop[1] + 1)]
    classes = {*label.ravel().tolist()} - {IGNORE_INDEX}
    odds = dict.fromkeys(windows, (1 - class_balance if classes else 1) / len(windows))
    for number in classes:
        pixels = [(row, column) for row in range(height) for column in range(width) if label[row, column] == number]
        for row, column in pixels:
            around = [w for w in windows if 0 <= row - w[0] < crop[0] and 0 <= column - w[1] < crop[1]]
            for window in around:
                odds[window] += class_balance / len(classes) / len(pixels) / len(around)
    return odds


FEW, VOID = 7, IGNORE_INDEX
SCENES = {
    "two classes, one of them rare": [[0, 0, 0, 0, 0, 0]] * 4 + [[0, 0, 0, 0, 0, FEW]],
    "three classes in void": [[VOID, 1, 1, 1, VOID, VOID]] * 3 + [[VOID, 2, VOID, VOID, 0, 0]] * 2,
    "one class in the middle": [[VOID] * 6] * 2 + [[VOID, VOID, 3, VOID, VOID, VOID]] + [[VOID] * 6] * 2,
    "one class everywhere": [[5] * 6] * 5,
    "void": [[VOID] * 6] * 5,
}


@pytest.mark.parametrize("class_balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("crop", [(2, 3), (1, 1), (4, 6), (5, 6)])
@pytest.mark.parametrize("scene", SCENES)
def test_crops_are_as_likely_as_the_definition_says(scene: str, crop: tuple[int, int], class_balance: float) -> None:
    label = np.array(SCENES[scene], np.uint8)
    places = np.stack([*np.mgrid[0:5, 0:6], np.zeros((5, 6))], -1).astype(np.uint8)
    transform = ScaledCrop(*crop, (1, 1), class_balance)
    odds = {window: share for window, share in windows_by_definition(label, crop, class_balance).items() if share}
    draws = 2000 if len(odds) > 1 else 50
    seen: Counter[tuple[int, int]] = Counter()
    for seed in range(draws):
        transform.set_random_seed(seed)
        result = transform(image=places, mask=label)
        top, left = result["image"][0, 0, :2].tolist()
        np.testing.assert_array_equal(result["mask"], label[top : top + crop[0], left : left + crop[1]])
        assert result["mask"].shape == crop
        seen[top, left] += 1
    assert seen.keys() <= odds.keys()
    if len(odds) > 1:
        assert chisquare([seen[w] for w in odds], [share * draws for share in odds.values()]).pvalue > 1e-4


def test_classes_are_drawn_evenly_however_few_their_pixels() -> None:
    label = np.zeros((40, 50), np.uint8)
    label[:4] = IGNORE_INDEX
    label[30, 40], label[10:12, 3:8] = 1, 2
    transform = augment(crop=(1, 1), scale=(1, 1), class_balance=1)
    seen = Counter(transform(noise(40, 50), label, (seed,))[1].item() for seed in range(1500))
    assert seen.keys() == {0, 1, 2}
    assert chisquare(list(seen.values())).pvalue > 1e-4
