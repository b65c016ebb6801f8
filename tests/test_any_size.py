"""Images of any size, whatever sizes the encoder takes, held against what a user would do by hand."""

from copy import deepcopy
from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import STRIDES, build, images, with_constant_scores, with_random_scores

from fcn_smp.models.any_size import AsItIs, for_any_size
from fcn_smp.models.encoder import build_encoder

# Encoders that take every size; those that take none below a smallest; those that take multiples of a size, which
# for the last is its own; and those that take their own alone.
ANY = {"test_resnet": {}, "test_efficientnet": {}}
FROM_32 = {"test_convnext": {}, "tu-vgg11": {}}
MULTIPLES = {
    "test_vit": ({}, (16, 16)),
    "dla46_c": ({}, (32, 32)),
    "resnetaa34d": ({"layers": (1, 1, 1, 1)}, (32, 32)),
    "test_maxvit": ({"img_size": (32, 64)}, (32, 64)),
}
ONE = {
    "test_coatnet": ({"img_size": (64, 96)}, (64, 96)),
    "test_vit_relpos": ({"img_size": (48, 32)}, (48, 32)),
}
KINDS = (
    ANY
    | FROM_32
    | {name: options for name, (options, _) in MULTIPLES.items()}
    | {name: options for name, (options, _) in ONE.items()}
)


@cache
def network(arch, encoder):
    options = KINDS[encoder]
    if arch == "dilatedfcn":
        options = {"encoder_output_stride": 32, "decoder_auxiliary": True, **options}
    return with_random_scores(build(arch, encoder, **options))


def without_adaptation(model):
    model = deepcopy(model)
    model.any_size = AsItIs()
    return model


def outputs(model, x):
    """Return all logits that a network gives for an image."""
    return [model(x)] if model.name.startswith("fcn") else [model(x), *model.forward_auxiliary(x)]


quick = settings(deadline=None, max_examples=4)
sides = st.integers(1, 150)
sizes = st.tuples(sides, sides)


@cache
def constant_network(arch, encoder):
    return with_constant_scores(build(arch, encoder, **KINDS[encoder]))


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        *product(STRIDES, ["test_efficientnet", "test_convnext"]),
        *product(["fcn8s"], [name for name in KINDS if name not in ("test_efficientnet", "test_convnext")]),
    ],
)
@quick
@given(size=sizes)
@torch.no_grad()
def test_every_pixel_of_any_size_is_reached(arch, encoder, size):
    model, total = constant_network(arch, encoder)
    torch.testing.assert_close(model(images(1, 3, *size)), torch.full((1, 2, *size), total))


def assert_same(given, expected):
    for ours, theirs in zip(given, expected, strict=True):
        assert theirs.std() > 0
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("arch", "encoder"), [*product(["fcn8s", "dilatedfcn"], FROM_32), ("fcn2s", "test_convnext")])
@quick
@given(size=st.tuples(st.integers(1, 31), sides) | st.tuples(sides, st.integers(1, 31)))
@torch.no_grad()
def test_a_small_image_is_continued_to_the_smallest_that_the_encoder_takes(arch, encoder, size):
    model, (height, width) = network(arch, encoder), size
    x = images(1, 3, *size)
    by_hand = F.pad(x, (0, max(32 - width, 0), 0, max(32 - height, 0)), mode="replicate")
    expected = [y[:, :, :height, :width] for y in outputs(without_adaptation(model), by_hand)]
    assert_same(outputs(model, x), expected)


@pytest.mark.parametrize(("arch", "encoder"), [*product(["fcn8s", "dilatedfcn"], MULTIPLES), ("fcn2s", "dla46_c")])
@quick
@given(size=sizes)
@torch.no_grad()
def test_an_image_is_continued_to_the_next_size_that_the_encoder_takes(arch, encoder, size):
    model, (height, width), (down, right) = network(arch, encoder), size, MULTIPLES[encoder][1]
    x = images(1, 3, *size)
    by_hand = F.pad(x, (0, -width % right, 0, -height % down), mode="replicate")
    assert by_hand.shape[2] % down == by_hand.shape[3] % right == 0
    expected = [y[:, :, :height, :width] for y in outputs(without_adaptation(model), by_hand)]
    assert_same(outputs(model, x), expected)


def resized(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("arch", "encoder"), [*product(["fcn8s", "dilatedfcn"], ONE), ("fcn2s", "test_coatnet")])
@quick
@given(size=sizes)
@torch.no_grad()
def test_an_image_is_resized_to_the_only_size_that_the_encoder_takes(arch, encoder, size):
    model = network(arch, encoder)
    x = images(1, 3, *size)
    expected = [resized(y, size) for y in outputs(without_adaptation(model), resized(x, ONE[encoder][1]))]
    for ours, theirs in zip(outputs(model, x), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("encoder", "size"),
    [
        *product(ANY, [(1, 1), (33, 70)]),
        *product(FROM_32, [(32, 32), (33, 71)]),
        ("test_vit", (16, 48)),
        ("dla46_c", (64, 96)),
        ("resnetaa34d", (32, 96)),
        ("test_maxvit", (64, 64)),
        *((name, size) for name, (_, size) in ONE.items()),
    ],
)
@pytest.mark.parametrize("arch", ["fcn8s", "dilatedfcn"])
@torch.no_grad()
def test_a_size_that_the_encoder_takes_changes_nothing(arch, encoder, size):
    model = network(arch, encoder)
    x = images(2, 3, *size)
    for ours, theirs in zip(outputs(model, x), outputs(without_adaptation(model), x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("arch", "encoder"), [*product(["fcn8s", "dilatedfcn"], KINDS)])
def test_one_image_is_enough_to_train(arch, encoder):
    height, width = 97, 131
    model = deepcopy(network(arch, encoder)).train()
    x = images(1, 3, height, width).requires_grad_()
    logits = outputs(model, x)
    sum(y.square().mean() for y in logits).backward()
    assert all(y.shape == (1, 2, height, width) for y in logits)
    assert x.grad.isfinite().all()
    assert x.grad.any()


# PiT and Xception collect their maps with hooks.
TRIED = ["test_resnet", "test_convnext", "dla46_c", "levit_128s", "pit_ti_224", "legacy_xception", "resnet18"]


@pytest.mark.parametrize(("name", "device"), [*product(TRIED, ["cpu", "meta"]), ("mit_b0", "cpu")])
def test_an_encoder_is_as_it_was_after_it_was_tried(name, device):
    with torch.device(device):
        encoder = build_encoder(name, in_channels=4, depth=5, weights=None)
    for index, (parameter, layer) in enumerate(zip(encoder.parameters(), encoder.modules(), strict=False)):
        parameter.requires_grad = index % 2 == 0
        layer.training = index % 3 == 0

    def traits():
        return (
            [
                (key, parameter.requires_grad, parameter.device, id(parameter))
                for key, parameter in encoder.named_parameters()
            ],
            [(key, layer.training, len(layer._forward_hooks), id(layer)) for key, layer in encoder.named_modules()],
            [(key, buffer.device, id(buffer)) for key, buffer in encoder.named_buffers()],
        )

    before, state = traits(), {key: value.clone() for key, value in encoder.state_dict().items()}
    adaptation = for_any_size(encoder, name, 4)
    assert traits() == before
    assert list(adaptation.state_dict()) == []
    assert encoder.state_dict().keys() == state.keys()
    if device == "cpu":
        assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [*product(["fcn8s"], ["test_resnet", "test_convnext", "dla46_c", "test_coatnet"]), ("dilatedfcn", "dla46_c")],
)
@torch.no_grad()
def test_a_network_on_the_meta_device_is_adapted_alike(arch, encoder):
    with torch.device("meta"):
        model = network.__wrapped__(arch, encoder)
        assert all(y.shape == (2, 2, 45, 83) for y in outputs(model, torch.empty(2, 3, 45, 83)))
    ours, theirs = (copy.any_size(images(1, 3, 45, 83)) for copy in (model, network(arch, encoder)))
    assert torch.equal(ours, theirs)


def test_a_size_that_the_arguments_do_not_allow_for_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"'crossvit_9_240' .* 48 x 48 pixels") as raised, torch.device("meta"):
        build("fcn8s", "crossvit_9_240", img_size=48)
    assert "\n" not in str(raised.value)
