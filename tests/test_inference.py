"""Windows and views: what a network gives in pieces and on average, against whole images and straight loops."""

import math
from itertools import pairwise

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fcn_smp import inference
from fcn_smp.data.voc import voc_palette
from fcn_smp.errors import UserError
from fcn_smp.inference import Inference, blended, bytes_per_pixel, parse, places
from fcn_smp.models.encoder import encoder_preprocessing
from fcn_smp.segmenter import Segmenter


def build(encoder="tu-test_resnet.r160_in1k", classes=5, depth=5, resize=None):
    """Return a segmenter with random weights that do give something."""
    model = networks.build("fcn8s", encoder, encoder_depth=depth, classes=classes)
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    preprocessing = encoder_preprocessing(encoder)._replace(resize=resize)
    names = [f"c{k}" for k in range(max(classes, 2))]
    return Segmenter(model, preprocessing, names, voc_palette())


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def receptive_field_radius(segmenter, side=256):
    """Return how far from a pixel in the middle the network looks, in pixels, by the gradient of its logits."""
    x = torch.randn(1, 3, side, side, requires_grad=True)
    radius = 0
    for row in range(side // 2, side // 2 + 8):  # all places within a cell of the finest map
        (gradient,) = torch.autograd.grad(segmenter.model(x)[0, :, row, row].sum(), x)
        seen = gradient[0].abs().sum(0).nonzero()
        radius = max(radius, int((seen - row).abs().max()))
    return radius


@pytest.mark.parametrize(
    ("encoder", "size", "window", "overlap"),
    [
        ("tu-test_resnet.r160_in1k", (300, 517), 256, 192),
        ("tu-test_resnet.r160_in1k", (511, 140), 256, 176),
        ("resnet18", (230, 630), 512, 352),
    ],
)
def test_windows_give_what_the_whole_image_gives_where_the_receptive_field_is_covered(encoder, size, window, overlap):
    """The tolerance is that of floating-point sums in another order: 1e-5 of the largest logit."""
    segmenter = build(encoder=encoder, depth=3)
    assert receptive_field_radius(segmenter) <= overlap / 4
    image = noise(*size)
    whole = segmenter.logits(image)
    bands = list(segmenter.bands([image], Inference(window=window, overlap=overlap)))
    torch.testing.assert_close(torch.cat(bands, 2), whole, rtol=0, atol=1e-5 * whole.abs().max().item())
    if size[0] > window:
        assert len(bands) > 1


def test_a_receptive_field_that_is_not_covered_shows():
    """Else the test above would show nothing."""
    segmenter, image = build("resnet18"), noise(300, 517)
    whole = segmenter.logits(image)
    pieces = segmenter.logits(image, Inference(window=128, overlap=32))
    assert (whole - pieces).abs().max() > 0.01 * whole.abs().max()


def test_labels_in_windows_are_those_of_the_logits_in_windows():
    segmenter, image, windows = build(), noise(200, 333), Inference(window=128, overlap=64)
    expected = segmenter.logits(image, windows).argmax(1)[0].numpy()
    assert np.array_equal(segmenter.predict(image, windows), expected)


@given(
    st.integers(1, 3000),
    st.integers(64, 900).flatmap(lambda side: st.tuples(st.just(side), st.integers(0, side - 64))),
    st.sampled_from([1, 14, 32]),
)
def test_windows_cover_an_axis_begin_on_the_grid_and_overlap(length, sides, grid):
    side, overlap = sides
    found = places(length, side, overlap, grid)
    assert found[0][0] == 0
    assert found[-1][1] == length
    for (start, end), (following, further) in pairwise(found):
        assert following % grid == 0
        assert start < following
        assert end < further
        assert end - following >= min(overlap, side - grid)
    assert all(end - start <= side for start, end in found)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(16, 40), st.integers(0, 39), st.integers(1, 16))
def test_blending_what_agrees_changes_nothing_and_weights_sum_to_one(height, width, side, overlap, grid):
    truth = torch.randn(2, 3, height, width, dtype=torch.float64)
    axes = [places(length, side, min(overlap, side - 1), grid) for length in (height, width)]
    bands = list(blended(lambda rows, columns: truth[:, :, rows, columns].clone(), *axes))
    torch.testing.assert_close(torch.cat(bands, 2), truth)


def test_the_outer_quarters_of_an_overlap_are_context_and_the_middle_fades():
    """Windows that give 0, 1, 2 ...: what is blended tells the weights."""
    numbers = iter(range(9))
    axis = places(40, 32, 24, 8)
    assert axis == [(0, 32), (8, 40)]

    def number(rows, columns):
        return torch.full((1, 1, rows.stop - rows.start, columns.stop - columns.start), float(next(numbers)))

    (band,) = blended(number, [(0, 5)], axis)
    fade = [(place + 0.5 - 6) / 12 for place in range(24)]
    expected = [0.0] * 8 + [min(max(weight, 0.0), 1.0) for weight in fade] + [1.0] * 8
    np.testing.assert_allclose(band[0, 0, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 4])
def test_views_are_averaged_as_probabilities(classes):
    segmenter, image = build(classes=classes), noise(70, 90)
    scales = (0.5, 1.0, 1.25)
    x = segmenter._preprocess(image)[None]
    total = 0
    with torch.inference_mode():
        for scale in scales:
            size = [round(70 * scale), round(90 * scale)]
            small = scale < 1
            view = x if scale == 1 else F.interpolate(x, size=size, mode="bilinear", antialias=small)
            for mirrored in (False, True):
                logits = segmenter.model(torch.flip(view, [3]) if mirrored else view)
                logits = torch.flip(logits, [3]) if mirrored else logits
                p = logits.sigmoid() if classes == 1 else logits.softmax(1)
                total = total + F.interpolate(p, size=(70, 90), mode="bilinear")
    found = segmenter.logits(image, Inference(flip=True, scales=scales))
    found = found.sigmoid() if classes == 1 else found.softmax(1)
    torch.testing.assert_close(found, total / 6, atol=1e-5, rtol=1e-5)


def test_a_mirrored_image_gives_the_mirrored_labels_where_flips_are_averaged():
    segmenter, image, flip = build(), noise(65, 97), Inference(flip=True)
    mirrored = segmenter.logits(np.ascontiguousarray(image[:, ::-1]), flip)
    torch.testing.assert_close(segmenter.logits(image, flip), mirrored.flip(3))


def test_certain_probabilities_stay_finite():
    """Blending takes 0 times a logit, which must not be infinite."""
    for classes in (1, 3):
        segmenter, image = build(classes=classes), noise(150, 200)
        for parameter in segmenter.model.decoder.parameters():
            parameter.data.mul_(1e4)
        logits = segmenter.logits(image, Inference(flip=True, window=128, overlap=64))
        assert torch.isfinite(logits).all()
        assert logits.abs().max() > 16  # as sure as can be


def test_a_batch_gives_what_its_images_give_alone():
    segmenter, images = build(), [noise(50, 60, seed) for seed in range(3)]
    (together,) = segmenter.bands(images)
    alone = torch.cat([segmenter.logits(image) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_windows_are_chosen_by_the_memory(monkeypatch):
    segmenter = build()
    free = 10**9
    monkeypatch.setattr(inference, "_free_memory", lambda device: free)
    auto, per_pixel = Inference(), bytes_per_pixel(segmenter.model)
    fits = math.isqrt(int(free / 2 / per_pixel))
    assert segmenter.window_side(fits, fits, auto) is None
    assert segmenter.window_side(fits + 1, fits + 1, auto) in inference.SIDES
    assert segmenter.window_side(fits, fits, auto, images=2) in inference.SIDES
    assert segmenter.window_side(fits, fits, Inference(scales=(2.0,))) in inference.SIDES
    free = 10**12
    assert segmenter.window_side(10_000, 10_000, auto) is None
    free = 10**3
    assert segmenter.window_side(2000, 2000, auto) == min(inference.SIDES)
    assert segmenter.window_side(2000, 2000, Inference(window=None)) is None
    assert segmenter.window_side(300, 600, Inference(window=512)) == 512
    assert segmenter.window_side(300, 512, Inference(window=512)) is None


@pytest.mark.parametrize("encoder", ["resnet18", "vgg11", "convnext_atto", "tu-swin_tiny_patch4_window7_224"])
def test_what_a_network_takes_is_told_without_running_it(encoder):
    """By far most of it is maps: at least those that the encoder hands to the decoder, and not a hundred times that."""
    model = build(encoder=encoder).model
    with torch.inference_mode():
        maps = model.encoder(model.any_size(torch.zeros(1, 3, 224, 224)))
    handed = sum(4 * each.numel() for each in maps[1:]) / 224**2
    assert handed < bytes_per_pixel(model) < 100 * handed


def test_a_network_that_sees_one_size_takes_no_windows():
    for segmenter in (build(resize=(64, 64)), build(encoder="vit_tiny_patch16_224", depth=3)):
        assert segmenter.window_side(30_000, 30_000, Inference()) is None or segmenter.preprocessing.resize is None
    with pytest.raises(UserError, match="one size"):
        build(resize=(64, 64)).predict(noise(200, 200), Inference(window=128))


@pytest.mark.parametrize(
    ("tta", "window", "expected"),
    [
        (None, "auto", Inference()),
        ("flip", "none", Inference(flip=True, window=None)),
        ("scales=0.5..1.75", "auto", Inference(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75))),
        ("flip,scales=0.5,1,2", "1024", Inference(True, (0.5, 1.0, 2.0), 1024)),
        ("scales=.75,1 , flip", "512,128", Inference(True, (0.75, 1.0), 512, 128)),
    ],
)
def test_what_the_command_line_takes(tta, window, expected):
    assert parse(tta, window) == expected


@pytest.mark.parametrize(
    "tta", ["flop", "scales=", "scales=2..1", "flip,flip", "scales=a", "scales=0", "scales=0.5..99"]
)
def test_mistyped_views_are_errors_in_words(tta):
    with pytest.raises(UserError, match=r"scales"):
        parse(tta)


@pytest.mark.parametrize("window", ["big", "63", "512,500", "-1", "512,", "1e3"])
def test_mistyped_windows_are_errors_in_words(window):
    with pytest.raises(UserError, match=r"window|overlap"):
        parse(None, window)
