"""Models of timm as encoders, one for each way in which their maps shrink."""

import warnings

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from networks import build, images, with_random_scores
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from timm.layers import DropPath

from fcn_smp.models.encoder import build_encoder
from fcn_smp.models.timm_encoder import TimmEncoder

# Of each encoder: the stride of its map at the levels 0, 1, 2 ..., and those of the maps that FCN-8s scores.
# Derived by hand: timm's documentation of the model says where it halves, `TimmEncoder` to which levels that belongs.
POWERS = [1, 2, 4, 8, 16, 32]
NO_HALF = [1, 0, 4, 8, 16, 32]
PATTERNS = {
    # Five halvings.
    "test_resnet": (POWERS, [32, 16, 8]),
    "test_efficientnet": (POWERS, [32, 16, 8]),
    "resnetaa34d": (POWERS, [32, 16, 8]),
    "hrnet_w18_small": (POWERS, [32, 16, 8]),
    "lambda_resnet26t": (POWERS, [32, 16, 8]),
    "botnet26t_256": (POWERS, [32, 16, 8]),
    "test_coatnet": (POWERS, [32, 16, 8]),
    "test_maxvit": (POWERS, [32, 16, 8]),
    "halonet_h1": (POWERS, [32, 16, 8]),
    # The first map of these is as large as the image.
    "sedarknet21": (POWERS, [32, 16, 8]),
    "dla46_c": (POWERS, [32, 16, 8]),
    "tu-vgg11": (POWERS, [32, 16, 8]),
    # A stem of stride 4.
    "test_convnext": (NO_HALF, [32, 16, 8]),
    "tresnet_m": (NO_HALF, [32, 16, 8]),
    "test_mambaout": (NO_HALF, [32, 16, 8]),
    "swin_tiny_patch4_window7_224": (NO_HALF, [32, 16, 8]),
    "nest_tiny": ([1, 0, 4, 8, 16], [16, 8]),
    # Three or four stages, of which one of stride 64 is beyond the levels.
    "levit_128s": ([1, 0, 0, 0, 16, 32], [32, 16, 16]),
    "efficientvit_m0": ([1, 0, 0, 0, 16, 32], [32, 16, 16]),
    "csatv2": ([1, 0, 0, 8, 16, 32], [32, 16, 8]),
    # Patches of 8 and of 7 pixels, halved twice.
    "pit_ti_224": ([1, 0, 0, 8, 16, 32], [32, 16, 8]),
    "pit_b_224": ([1, 0, 0, 7, 14, 28], [28, 14, 7]),
    # Halved once, then three stages of one stride.
    "volo_d1_224": ([1, 0, 0, 8, 16, 16], [16, 16, 8]),
    "sequencer2d_s": ([1, 0, 0, 7, 14, 14], [14, 14, 7]),
    # Patches of 12 and 16 pixels side by side; those of 16 of an image of 224 pixels made from one of 240.
    "crossvit_9_240": ([1, 0, 0, 0, 12, 17], [17, 12, 12]),
    # One stride from the first block to the last.
    "test_vit": ([1, 0, 16, 16, 16, 16], [16, 16, 16]),
    "cait_xxs24_224": ([1, 0, 16, 16, 16, 16], [16, 16, 16]),
    "gemma4_vit_167m": ([1, 0, 16, 16, 16, 16], [16, 16, 16]),
    "eva02_tiny_patch14_224": ([1, 0, 14, 14, 14, 14], [14, 14, 14]),
    "xcit_nano_12_p8_224": ([1, 0, 8, 8, 8, 8], [8, 8, 8]),
    "vit_small_patch32_224": ([1, 0, 32, 32, 32, 32], [32, 32, 32]),
    "convmixer_768_32": ([1, 0, 7, 7, 7, 7], [7, 7, 7]),
}
# These get shapes but no numbers: they are large or slow.
SHAPES_ONLY = ["convmixer_768_32", "gemma4_vit_167m", "halonet_h1", "pit_b_224"]
# What makes others quick.
OPTIONS = {
    "cait_xxs24_224": {"img_size": 32},
    "nest_tiny": {"img_size": 32},
    "resnetaa34d": {"layers": (1, 1, 1, 1)},
    "sequencer2d_s": {"layers": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 1, 1)},
    "volo_d1_224": {"img_size": 64},
}


TRIED = [name for name in PATTERNS if name != "gemma4_vit_167m"]  # its pass depends on values, which meta lacks
HAS_IDLE_PARAMETERS = {
    "hrnet_w18_small": "each of its maps has layers of its own, and FCN-8s scores neither that of stride 2 nor 4",
    "pit_ti_224": "timm keeps the norm behind its last map",
    "crossvit_9_240": "timm keeps what mixes the class tokens behind its last maps",
}


@pytest.fixture(scope="module")
def network(request):
    with torch.device("meta" if request.param in SHAPES_ONLY else "cpu"):
        return build("fcn8s", request.param, **OPTIONS.get(request.param, {}))


def for_each(names):
    return pytest.mark.parametrize("network", names, indirect=True)


def device(network):
    return next(network.parameters()).device


@for_each(PATTERNS)
def test_maps_belong_to_the_levels_whose_strides_are_near(network):
    strides, tapped = PATTERNS[network.name.removeprefix("fcn8s-")]
    assert network.encoder.strides == strides
    assert network.encoder.output_stride == strides[-1]
    assert [channels > 0 for channels in network.encoder.out_channels] == [stride > 0 for stride in strides]
    assert network.decoder.taps.strides == tapped


@for_each(TRIED)
@torch.no_grad()
def test_maps_have_the_channels_and_strides_that_the_encoder_tells(network):
    height, width = network.encoder.image_size
    features = network.encoder(torch.empty(1, 3, height, width, device=device(network)))
    assert [feature.shape[1] for feature in features] == network.encoder.out_channels
    for feature, stride in zip(features, network.encoder.strides, strict=True):
        if stride:
            # The windows of PiT have no padding at the border.
            assert height / feature.shape[2] == pytest.approx(stride, rel=0.04)
            assert width / feature.shape[3] == pytest.approx(stride, rel=0.04)


@for_each(TRIED)
@torch.no_grad()
def test_output_has_the_size_of_any_image(network):
    assert network(torch.zeros(1, 3, 33, 57, device=device(network))).shape == (1, 2, 33, 57)


def awake(network):
    """Return a copy in training in which nothing starts from zero or is left out by chance."""
    network = with_random_scores(network).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().max() < 1e-3:  # such as the scale of a residual branch
                parameter.normal_(std=0.5)
    for layer in network.modules():
        if isinstance(layer, DropPath):
            layer.drop_prob = 0.0
    return network


@for_each(
    [
        pytest.param(
            name,
            marks=[pytest.mark.xfail(strict=True, reason=HAS_IDLE_PARAMETERS[name])]
            if name in HAS_IDLE_PARAMETERS
            else [],
        )
        for name in PATTERNS
        if name not in SHAPES_ONLY
    ]
)
def test_every_parameter_learns(network):
    network = awake(network)
    network(images(2, 3, 65, 90)).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


def encoder(name, in_channels=3, depth=5, **options):
    torch.manual_seed(0)
    return build_encoder(name, in_channels=in_channels, depth=depth, weights=None, **options).eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet18", {"output_stride": 8}),
        ("resnet18", {"output_stride": 16}),
        ("test_efficientnet", {"depth": 3}),
        ("test_efficientnet", {"depth": 4}),
        ("test_convnext", {}),
        ("test_convnext", {"output_stride": 8, "depth": 4}),
        ("test_mambaout", {"depth": 3}),
        ("mobilenetv3_small_050", {}),
        ("legacy_xception", {}),
        ("sedarknet21", {}),
        ("vgg11", {"mlp_ratio": 0.001}),
        ("dla46_c", {}),
        ("dla46_c", {"depth": 3}),
        ("tresnet_m", {}),
    ],
)
@torch.no_grad()
def test_models_that_smp_takes_give_what_they_give_there(name, options):
    theirs = TimmUniversalEncoder(name, pretrained=False, **options).eval()
    ours = encoder(f"tu-{name}", **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.output_stride == theirs.output_stride
    ours.load_state_dict(theirs.state_dict())
    x = images(1, 3, 64, 96)
    pairs = list(zip(ours.out_channels, theirs.out_channels, ours(x), theirs(x), strict=True))
    if name.startswith("dla"):  # SMP leaves out the map of stride 1
        channels, _, first, _ = pairs.pop(0)
        assert first.shape == (1, channels, 64, 96)
        assert channels != 3
    for channels, expected_channels, feature, expected in pairs:
        assert channels == expected_channels
        if channels:
            assert torch.equal(feature, expected)


# The blocks, counted from 0, behind which a quarter, two, three and all four have passed.
@pytest.mark.parametrize(
    ("name", "blocks"),
    [("test_vit", [1, 2, 4, 5]), ("test_vit2", [1, 3, 5, 7]), ("xcit_nano_12_p8_224", [2, 5, 8, 11])],
)
@torch.no_grad()
def test_maps_of_a_vision_transformer_come_from_evenly_spaced_blocks(name, blocks):
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    weights = whole.state_dict()
    height, width = timm.get_pretrained_cfg(name).input_size[1:]
    x = images(1, 3, height, width)
    maps = whole.forward_intermediates(x, indices=blocks, intermediates_only=True)
    assert len(maps) == 4
    parameters = []
    for depth in (3, 4, 5):
        ours = encoder(name, depth=depth)
        ours.load_state_dict({key: weights[key.removeprefix("model.model.")] for key in ours.state_dict()})
        image, nothing, *features = ours(x)
        assert torch.equal(image, x)
        assert nothing.shape[1] == 0
        assert len(features) == depth - 1
        for feature, expected in zip(features, maps, strict=False):
            assert torch.equal(feature, expected)
        parameters.append(sum(parameter.numel() for parameter in ours.parameters()))
    assert parameters[0] < parameters[1] < parameters[2]


@pytest.mark.parametrize(
    ("name", "depth", "strides"),
    [
        ("test_resnet", 3, [1, 2, 4, 8]),
        ("test_mambaout", 4, [1, 0, 4, 8, 16]),
        ("test_vit", 3, [1, 0, 16, 16]),
        ("levit_128s", 4, [1, 0, 0, 0, 16]),
        pytest.param(
            "pit_ti_224",
            4,
            [1, 0, 0, 8, 16],
            marks=pytest.mark.xfail(strict=True, reason="timm collects the maps of PiT with hooks and drops no stage"),
        ),
        ("dla46_c", 3, [1, 2, 4, 8]),
    ],
)
@torch.no_grad()
def test_a_shallower_encoder_ends_at_the_level_asked_for(name, depth, strides):
    with torch.device("meta"):
        network = build("fcn8s", name, encoder_depth=depth)
        whole = build("fcn8s", name)
        assert network(torch.empty(1, 3, 65, 97)).shape == (1, 2, 65, 97)
    assert network.encoder.strides == strides
    assert network.encoder.out_channels[1:] == whole.encoder.out_channels[1 : depth + 1]
    assert len(list(network.encoder.parameters())) < len(list(whole.encoder.parameters()))


def test_depths_at_which_an_encoder_has_no_map_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"'levit_128s' .*stride 8 .*encoder_depth\.$") as raised:
        build("fcn8s", "levit_128s", encoder_depth=3)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("name", ["test_vit", "test_mambaout", "dla46_c", "efficientvit_m0", "sedarknet21"])
def test_every_channel_of_the_input_counts(name, in_channels):
    ours = encoder(name, in_channels)
    x = images(1, in_channels, 64, 96).requires_grad_()
    features = ours(x)
    features[-1].square().sum().backward()
    assert [feature.shape[1] for feature in features] == ours.out_channels
    assert x.grad.abs().amax(dim=(0, 2, 3)).all()


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_byobnet"])
@torch.no_grad()
def test_levels_of_a_dilated_encoder_share_its_last_stride(name, output_stride):
    with torch.device("meta"):
        ours = encoder(name, output_stride=output_stride)
        features = ours(torch.empty(1, 3, 96, 128))
    strides = [stride and min(stride, output_stride) for stride in (NO_HALF if "convnext" in name else POWERS)]
    assert ours.strides == strides
    assert ours.output_stride == output_stride
    assert [96 // feature.shape[2] for feature, stride in zip(features, strides, strict=True) if stride] == [
        stride for stride in strides if stride
    ]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    "name", ["xcit_nano_12_p8_224", "test_vit", "swin_tiny_patch4_window7_224", "tu-vgg11", "levit_128s", "dla46_c"]
)
def test_an_encoder_that_does_not_dilate_is_refused_by_its_name(name, output_stride):
    with pytest.raises(ValueError, match=rf"'{name}' .*output_stride={output_stride}.*[^: ]$"), torch.device("meta"):
        encoder(name, output_stride=output_stride)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout", "levit_128s", "test_resnet.r160_in1k"])
def test_bare_names_mean_what_those_with_the_prefix_of_smp_mean(name):
    bare, prefixed = encoder(name), encoder(f"tu-{name}")
    assert type(bare) is type(prefixed) is TimmEncoder
    assert list(bare.state_dict()) == list(prefixed.state_dict())
    assert bare.strides == prefixed.strides


def test_a_name_that_smp_knows_too_is_smps():
    assert type(encoder("resnet18")) is type(smp.encoders.get_encoder("resnet18", weights=None))
    assert type(encoder("tu-resnet18")) is TimmEncoder


def test_a_tag_chooses_weights_and_not_layers():
    assert list(encoder("test_resnet.r160_in1k").state_dict()) == list(encoder("test_resnet").state_dict())


def test_named_weights_of_a_bare_name_are_asked_for_without_a_warning(tmp_path, monkeypatch):
    asked = []
    create_model = timm.create_model

    def create(name, pretrained=False, **options):
        asked.append(pretrained)
        return create_model(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build("fcn8s", "test_resnet", encoder_weights="imagenet")
    assert any(asked)


def test_arguments_of_the_model_reach_timm():
    assert encoder("cait_xxs24_224", img_size=(96, 128)).model.model.pos_embed.shape[1] == 6 * 8
    assert encoder("test_efficientnet", act_layer="gelu").model.bn1.act.__class__.__name__ == "GELU"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "dla46_c"])
def test_an_argument_that_the_model_does_not_know_is_refused_by_both_their_names(name):
    with pytest.raises(ValueError, match=rf"'{name}' .*no_such_argument=3") as raised:
        build("fcn8s", name, no_such_argument=3)
    assert "\n" not in str(raised.value)
