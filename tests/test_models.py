"""The networks, held against the paper's arithmetic written straight down from their weights."""

import json
import re
from copy import deepcopy
from functools import cache
from itertools import product

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import STRIDES, build, images, scores_of, with_constant_scores, with_random_scores
from safetensors.torch import save_file

import fcn_smp

# SMP's, timm's by its bare name, VGG of SMP and of timm, and one without a map of stride 2.
ROUND_UP = ["resnet18", "test_efficientnet"]
ROUND_DOWN = ["vgg11", "tu-vgg11", "tu-test_convnext"]
SIZES = [(97, 131), (64, 33), (32, 32), (63, 95)]


@pytest.fixture(scope="module", params=product(STRIDES, ROUND_UP + ROUND_DOWN), ids="-".join)
def fresh(request):
    return build(*request.param)


@pytest.fixture(scope="module")
def model(fresh):
    return with_random_scores(fresh)


@torch.no_grad()
def test_a_fresh_network_answers_zero(fresh):
    assert torch.equal(fresh(images(2, 3, 64, 96)), torch.zeros(2, 2, 64, 96))


@pytest.mark.parametrize(("height", "width"), SIZES)
@torch.no_grad()
def test_output_has_the_size_of_the_input(model, height, width):
    output = model(images(2, 3, height, width))
    assert output.shape == (2, 2, height, width)
    assert output.isfinite().all()
    assert output.std() > 0


@pytest.mark.parametrize(("height", "width"), SIZES)
@torch.no_grad()
def test_a_score_that_is_the_same_everywhere_stays_so_up_to_the_last_pixel(fresh, height, width):
    constant, total = with_constant_scores(fresh)
    expected = torch.full((1, 2, height, width), total)
    torch.testing.assert_close(constant(images(1, 3, height, width)), expected)


def test_every_parameter_learns(model):
    model = deepcopy(model).train()
    torch.manual_seed(0)
    model(images(2, 3, 96, 64)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def enlarge(x, factor, reference):
    x = F.pad(x, (0, 1, 0, 1), mode="replicate")
    x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return x[:, :, : reference.shape[2], : reference.shape[3]]


def score(layer, x):
    return F.conv2d(x, layer.weight, layer.bias)


def poolings(model, x):
    """Return pool1 to pool5 of the paper: VGG's features are taken before each pooling but the last."""
    if "vgg" not in model.name:
        return model.encoder(x)[1:]
    conv1, conv2, conv3, conv4, _, pool5 = model.encoder(x)
    return [*(F.max_pool2d(conv, 2) for conv in (conv1, conv2, conv3, conv4)), pool5]


def hidden(model, pool5):
    if "vgg" not in model.name:
        return model.decoder.hidden(pool5)
    fc6, fc7 = [layer for layer in model.decoder.hidden.modules() if isinstance(layer, torch.nn.Conv2d)]
    x = F.relu(F.conv2d(pool5, fc6.weight, fc6.bias, padding=3))
    return F.relu(F.conv2d(x, fc7.weight, fc7.bias))


def as_in_the_paper(arch, model, x):
    pool1, pool2, pool3, pool4, pool5 = poolings(model, x)
    last, *skips = scores_of(model)

    scores = score(last, hidden(model, pool5))
    if arch == "fcn32s":
        return enlarge(scores, 32, x)
    scores = enlarge(scores, 2, pool4) + score(skips[0], pool4)
    if arch == "fcn16s":
        return enlarge(scores, 16, x)
    scores = enlarge(scores, 2, pool3) + score(skips[1], pool3)
    if arch == "fcn8s":
        return enlarge(scores, 8, x)
    scores = enlarge(scores, 2, pool2) + score(skips[2], pool2)
    if arch == "fcn4s":
        return enlarge(scores, 4, x)
    scores = enlarge(scores, 2, pool1) + score(skips[3], pool1)
    return enlarge(scores, 2, x)


def assert_equal_to_rounding(ours, theirs):
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.fixture(scope="module", params=product(STRIDES, ["vgg11", *ROUND_UP]), ids="-".join)
def exact(request):
    arch, encoder = request.param
    return arch, with_random_scores(build(arch, encoder, classes=3)).double()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (97, 131), (63, 34)])
@torch.no_grad()
def test_network_computes_what_the_paper_says(exact, height, width):
    arch, model = exact
    x = images(1, 3, height, width, dtype=torch.float64)
    assert_equal_to_rounding(model(x), as_in_the_paper(arch, model, x))


@torch.no_grad()
def test_vgg_of_timm_is_tapped_where_that_of_smp_is():
    ours, theirs = build("fcn2s", "vgg11"), build("fcn2s", "tu-vgg11")
    ours = with_random_scores(ours)
    for source, target in zip(ours.parameters(), theirs.parameters(), strict=True):
        target.copy_(source)
    x = images(1, 3, 65, 95)
    torch.testing.assert_close(theirs(x), ours(x))


@pytest.mark.parametrize(
    ("arch", "parameters"), [("fcn32s", 134_346_581), ("fcn16s", 134_357_354), ("fcn8s", 134_362_751)]
)
def test_vgg16_has_the_layers_of_the_paper(arch, parameters):
    with torch.device("meta"):
        model = build(arch, "vgg16", classes=21, decoder_hidden_channels=None)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    fc6, fc7 = [layer for layer in model.decoder.hidden.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert fc6.weight.shape == (4096, 512, 7, 7)
    assert fc7.weight.shape == (4096, 4096, 1, 1)
    dropouts = [layer.p for layer in model.decoder.hidden.modules() if isinstance(layer, torch.nn.Dropout)]
    assert dropouts == [0.5, 0.5]
    assert [layer.in_channels for layer in scores_of(model)] == [4096, 512, 256][: len(scores_of(model))]


@pytest.mark.parametrize("encoder", ["resnet50", "resnet18", "tu-convnext_tiny"])
def test_hidden_layer_of_other_encoders_costs_little(encoder):
    with torch.device("meta"):
        model = build("fcn8s", encoder)
    own = sum(parameter.numel() for parameter in model.decoder.hidden.parameters())
    assert 0 < own < 0.1 * sum(parameter.numel() for parameter in model.encoder.parameters())


@pytest.mark.parametrize("encoder", ["vgg11", "test_efficientnet"])
@torch.no_grad()
def test_no_hidden_channels_means_no_hidden_layer(encoder):
    model = with_random_scores(build("fcn32s", encoder, decoder_hidden_channels=0)).double()
    x = images(1, 3, 64, 97, dtype=torch.float64)
    assert list(model.decoder.hidden.parameters()) == []
    assert_equal_to_rounding(model(x), enlarge(score(model.decoder.score, model.encoder(x)[5]), 32, x))


@cache
def bare_decoder(arch, encoder):
    return build(arch, encoder, decoder_hidden_channels=0, classes=1).double()


@pytest.mark.parametrize("encoder", ["resnet18", "vgg11", "tu-test_convnext"])
@pytest.mark.parametrize("arch", STRIDES)
@settings(deadline=None, max_examples=10)
@given(
    height=st.integers(96, 200),
    width=st.integers(96, 200),
    round_up=st.booleans(),
    slopes=st.tuples(*[st.floats(-1, 1)] * 3),
    gains=st.tuples(*[st.floats(0.5, 2)] * 5),
)
@torch.no_grad()
def test_maps_of_all_strides_lie_on_one_another(arch, encoder, height, width, round_up, slopes, gains):
    """Maps that sample one plane at the centres of their pixels give that plane, wherever no edge is near."""
    offset, down, right = slopes

    def plane(stride, rounded_up=False):
        def centres(size):
            return (
                torch.arange(-(-size // stride) if rounded_up else size // stride, dtype=torch.float64) + 0.5
            ) * stride

        return offset + down * centres(height)[:, None] + right * centres(width)

    model = bare_decoder(arch, encoder)
    features = []
    for level, channels in enumerate(model.encoder.out_channels):
        if encoder == "vgg11" and level < 5:
            # What the pooling behind it turns into the plane at the next stride.
            sampled = plane(2 ** (level + 1)).repeat_interleave(2, 0).repeat_interleave(2, 1)
            sampled = sampled if level else F.pad(sampled, (0, width % 2, 0, height % 2))
        else:
            sampled = plane(2**level, rounded_up=round_up and encoder == "resnet18")
        feature = sampled.new_zeros(1, channels, *sampled.shape)
        feature[:, :1] = sampled
        features.append(feature)
    for layer, gain in zip(scores_of(model), gains, strict=False):
        layer.weight.zero_()
        layer.weight[0, 0] = gain
    output = model.decoder(features)
    assert output.shape == (1, 1, height, width)
    inside = slice(32, 32 * (height // 32 - 1)), slice(32, 32 * (width // 32 - 1))
    expected = sum(gains[: len(scores_of(model))]) * plane(1)
    torch.testing.assert_close(output[0, 0][inside], expected[inside], rtol=0, atol=1e-9)


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("encoder", ["resnet18", "vgg11", "tu-test_convnext", "test_efficientnet"])
def test_every_channel_of_the_input_counts(encoder, in_channels):
    model = with_random_scores(build("fcn2s", encoder, in_channels=in_channels))
    x = images(1, in_channels, 65, 97).requires_grad_()
    output = model(x)
    output.square().sum().backward()
    assert output.shape == (1, 2, 65, 97)
    assert x.grad.abs().amax(dim=(0, 2, 3)).all()


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        *product(STRIDES, ["test_efficientnet", "tu-test_convnext"]),
        *product(["fcn8s"], ["resnet18", "vgg11", "tu-vgg11"]),
    ],
)
@torch.no_grad()
def test_shallower_encoders_are_tapped_from_their_last_level_on(arch, encoder, depth):
    model = build(arch, encoder, encoder_depth=depth)
    finest = min(STRIDES[arch], 2**depth)
    assert finest * 2 ** len(model.decoder.skip_scores) == 2**depth
    assert len(model.encoder(images(1, 3, 64, 64))) == depth + 1
    constant, total = with_constant_scores(model)
    torch.testing.assert_close(constant(images(1, 3, 69, 97)), torch.full((1, 2, 69, 97), total))


@pytest.mark.parametrize("depth", [3, 4])
@torch.no_grad()
def test_a_shallower_encoder_alone_is_enlarged_by_its_own_stride(depth):
    model = with_random_scores(build("fcn32s", encoder_depth=depth)).double()
    x = images(1, 3, 69, 97, dtype=torch.float64)
    scores = score(model.decoder.score, model.decoder.hidden(model.encoder(x)[depth]))
    assert_equal_to_rounding(model(x), enlarge(scores, 2**depth, x))


@pytest.mark.parametrize("output_stride", [8, 16])
@torch.no_grad()
def test_dilated_encoders_are_tapped_at_the_strides_that_they_have(output_stride):
    model = with_random_scores(build("fcn8s", "resnet18", output_stride=output_stride)).double()
    x = images(1, 3, 69, 97, dtype=torch.float64)
    _, _, _, level3, level4, level5 = model.encoder(x)
    last, skip4, skip3 = scores_of(model)
    scores = score(last, model.decoder.hidden(level5)) + score(skip4, level4)
    if output_stride == 16:
        scores = enlarge(scores, 2, level3)
    assert_equal_to_rounding(model(x), enlarge(scores + score(skip3, level3), 8, x))


@torch.no_grad()
def test_skip_scales_are_factors_of_the_skips_weights_but_not_of_their_biases():
    scaled = with_random_scores(build("fcn8s", decoder_skip_scales=(0.01, 0.0001))).double()
    plain = build("fcn8s").double()
    plain.load_state_dict(scaled.state_dict())
    x = images(1, 3, 65, 97, dtype=torch.float64)
    assert not torch.allclose(plain(x), scaled(x))
    for layer, factor in zip(plain.decoder.skip_scores, (0.01, 0.0001), strict=True):
        layer.weight.mul_(factor)
    assert_equal_to_rounding(scaled(x), plain(x))


def test_learned_upsampling_starts_bilinear_and_learns():
    fixed = with_random_scores(build("fcn4s"))
    learned = build("fcn4s", decoder_learn_upsampling=True)
    added = learned.load_state_dict(fixed.state_dict(), strict=False).missing_keys
    assert len(added) == 3
    x = images(2, 3, 65, 97)
    output = learned(x)
    torch.testing.assert_close(output, fixed(x))
    output.square().sum().backward()
    for name, parameter in learned.named_parameters():
        if name in added:
            assert (parameter.grad != 0).all(), name


@pytest.mark.parametrize(
    ("arch", "options", "says"),
    [
        ("fcn8s", {"classes": 0}, "classes .* 0"),
        ("fcn8s", {"encoder_depth": 2}, "encoder_depth .* 2"),
        ("fcn8s", {"encoder_depth": 6}, "encoder_depth .* 6"),
        ("fcn8s", {"decoder_hidden_channels": -1}, "decoder_hidden_channels .* -1"),
        ("fcn8s", {"decoder_hidden_kernel": 4}, "decoder_hidden_kernel .* odd.* 4"),
        ("fcn8s", {"decoder_hidden_kernel": -1}, "decoder_hidden_kernel .* -1"),
        ("fcn8s", {"decoder_dropout": 1.0}, "decoder_dropout .* 1.0"),
        ("fcn8s", {"decoder_dropout": -0.1}, "decoder_dropout .* -0.1"),
        ("fcn8s", {"decoder_skip_scales": (0.1,)}, "decoder_skip_scales .* 2 "),
        ("fcn32s", {"decoder_skip_scales": (0.1,)}, "decoder_skip_scales .* 0 "),
        ("fcn2s", {"decoder_skip_scales": (1, 1, 1), "encoder_depth": 3}, "decoder_skip_scales .* 2 "),
    ],
)
def test_an_argument_out_of_range_is_refused_in_one_sentence(arch, options, says):
    with pytest.raises(ValueError, match=says) as raised:
        build(arch, **options)
    assert re.fullmatch(r"[^\n]+\.", str(raised.value))
    assert ". " not in str(raised.value)


@torch.no_grad()
def test_a_saved_network_needs_no_file_of_its_encoder(tmp_path):
    encoder_file = tmp_path / "encoder.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), encoder_file)
    model = with_random_scores(
        build(
            "fcn8s",
            encoder_weights=str(encoder_file),
            classes=3,
            decoder_skip_scales=(0.5, 0.25),
            decoder_learn_upsampling=True,
            aux_params={"classes": 4},
            output_stride=16,
        )
    )
    model.save_pretrained(tmp_path / "model")
    encoder_file.unlink()
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["encoder_weights"] is None
    assert config["_model_class"] == "FCN8s"
    x = images(2, 3, 65, 97)
    for loaded, saved in zip(smp.from_pretrained(tmp_path / "model").eval()(x), model(x), strict=True):
        torch.testing.assert_close(loaded, saved)


def test_keys_of_the_configuration_that_begin_with_an_underscore_survive(tmp_path):
    build("fcn16s").save_pretrained(tmp_path / "first")
    config = json.loads((tmp_path / "first/config.json").read_text())
    (tmp_path / "first/config.json").write_text(json.dumps({**config, "_origin": "here"}))
    for loaded in (smp.from_pretrained(tmp_path / "first"), fcn_smp.FCN16s.from_pretrained(tmp_path / "first")):
        assert type(loaded) is fcn_smp.FCN16s
        loaded.save_pretrained(tmp_path / "second")
        assert json.loads((tmp_path / "second/config.json").read_text()) == {**config, "_origin": "here"}


@torch.no_grad()
def test_a_saved_network_starts_from_zero_scores_for_other_classes(tmp_path):
    model = with_random_scores(build("fcn8s"))
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="Mismatched keys"):
        other = smp.from_pretrained(tmp_path, classes=5, strict=False).eval()
    x = images(1, 3, 64, 64)
    assert torch.equal(other(x), torch.zeros(1, 5, 64, 64))
    torch.testing.assert_close(other.encoder(x)[5], model.encoder(x)[5])


def test_a_mistyped_argument_of_the_decoder_is_named():
    with pytest.raises(ValueError, match=r"'decoder_aligment'; did you mean 'decoder_alignment'\?$"):
        build("fcn8s", decoder_aligment="caffe")


def test_a_script_for_another_decoder_of_smp_runs_and_is_told(tmp_path):
    with pytest.warns(UserWarning, match="decoder_channels"):
        model = build("fcn8s", decoder_channels=(256, 128, 64, 32, 16))
    model.save_pretrained(tmp_path)
    assert "decoder_channels" not in json.loads((tmp_path / "config.json").read_text())
