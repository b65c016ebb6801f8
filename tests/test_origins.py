"""The networks of the projects that this package grew out of, held against their layers written straight down."""

from functools import cache

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import build, images
from torch import nn

from fcn_smp.models.origins.encoders import ENCODERS

ORIGINALS = {
    "plainfcn": ("strided_conv", {}),
    "simplifiedunet": ("single_conv", {"encoder_depth": 3}),
    "classicunet": ("double_conv", {"encoder_depth": 4}),
    "transferfcn": ("resnet50", {}),
    "featurefcn8s": ("vgg16", {}),
    "featurefcn2s": ("vgg16", {}),
}
# What the references are computed with: as deep, but quicker.
QUICKER = {"resnet50": "resnet18", "vgg16": "vgg11"}


def with_random_norms(model):
    """Make norms say something: those of a new network change nothing."""
    generator = torch.Generator().manual_seed(3)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight, norm.running_var):
                nn.init.uniform_(values, 0.5, 1.5, generator=generator)
            for values in (norm.bias, norm.running_mean):
                nn.init.normal_(values, std=0.1, generator=generator)
    return model


def with_random_weights(model):
    """Make all layers say as much as the one before: those of a new network say less and less."""
    generator = torch.Generator().manual_seed(4)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            added = layer.weight.numel() / layer.out_channels
            if isinstance(layer, nn.ConvTranspose2d):
                added /= layer.stride[0] * layer.stride[1]
            nn.init.normal_(layer.weight, std=(2 / added) ** 0.5, generator=generator)
    return model


@cache
def network(arch):
    encoder, options = ORIGINALS[arch]
    model = build(arch, QUICKER.get(encoder, encoder), classes=5, **options)
    return with_random_norms(with_random_weights(model)).double()


# What each of them computes, from the weights by name


class Layers:
    """The layers of a network by name, as functions of their weights."""

    def __init__(self, model):
        self.state = model.state_dict()

    def conv(self, name, x, **options):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def up(self, name, x, **options):
        return F.conv_transpose2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), stride=2, **options)

    def up3(self, name, x):
        return self.up(name, x, padding=1, output_padding=1)

    def norm(self, name, x):
        names = "running_mean", "running_var", "weight", "bias"
        return F.batch_norm(x, *(self.state[f"{name}.{key}"] for key in names))

    def twice(self, name, x):
        """Convolve twice and use one norm for both."""
        for conv in ("conv1", "conv2"):
            x = F.relu(self.norm(f"{name}.norm", self.conv(f"{name}.{conv}", x, padding=1)))
        return x


def plain_fcn(layers, model, x):
    for stage in range(1, 6):
        x = layers.conv(f"encoder.stages.{stage}.0", x, stride=2, padding=1)
        x = layers.norm(f"encoder.stages.{stage}.2", F.relu(x))
    for stage in range(5):
        x = layers.up3(f"decoder.layers.{stage}.0", x)
        x = layers.norm(f"decoder.layers.{stage}.2", F.relu(x))
    return layers.conv("decoder.score", x)


def simplified_unet(layers, model, x):
    x = F.max_pool2d(F.relu(layers.conv("encoder.stages.0.0", x, padding=1)), 2)
    x = F.max_pool2d(F.relu(layers.conv("encoder.stages.1.1.0", x, padding=1)), 2)
    x = F.max_pool2d(F.relu(layers.conv("encoder.stages.2.1.0", x, padding=1)), 2)
    x = F.relu(layers.conv("encoder.stages.3.1.0", x, padding=1))
    for level in range(3):
        x = F.relu(layers.up(f"decoder.layers.{level}.0", x))
        x = F.relu(layers.conv(f"decoder.layers.{level}.2.0", x, padding=1))
    return layers.conv("decoder.score", x)


def classic_unet(layers, model, x):
    level1 = layers.twice("encoder.stages.0", x)
    level2 = layers.twice("encoder.stages.1.1", F.max_pool2d(level1, 2))
    level3 = layers.twice("encoder.stages.2.1", F.max_pool2d(level2, 2))
    level4 = layers.twice("encoder.stages.3.1", F.max_pool2d(level3, 2))
    x = layers.twice("encoder.stages.4.1", F.max_pool2d(level4, 2))
    for level, skip in enumerate([level4, level3, level2, level1]):
        x = torch.cat([layers.up(f"decoder.levels.{level}.upsample", x), skip], 1)
        x = layers.twice(f"decoder.levels.{level}.convs", x)
    return layers.conv("decoder.score", x)


def transfer_fcn(layers, model, x):
    y = model.encoder(x)[-1]
    y = F.relu(layers.conv("decoder.layers.0", y))
    y = F.relu(layers.conv("decoder.layers.2", y))
    y = F.relu(layers.up3("decoder.layers.4", y))
    y = F.relu(layers.up3("decoder.layers.6", y))
    y = F.relu(layers.up3("decoder.layers.8", y))
    y = layers.norm("decoder.layers.10", y)
    y = F.relu(layers.up3("decoder.layers.11", y))
    y = layers.norm("decoder.layers.13", y)
    y = layers.conv("decoder.score", y)
    assert 2 * y.shape[2] == x.shape[2]
    return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)


def poolings(vgg, x):
    """Return what the five poolings of a VGG give."""
    pools = []
    for layer in vgg.features:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            pools.append(x)
    return pools


def feature_fcn8s(layers, model, x):
    _, _, pool3, pool4, pool5 = poolings(model.encoder, x)
    y = layers.up("decoder.upsamplings.0", pool5) + pool4
    y = layers.up("decoder.upsamplings.1", y) + pool3
    return F.conv_transpose2d(y, layers.state["decoder.score.weight"], stride=8)


def feature_fcn2s(layers, model, x):
    pool1, pool2, pool3, pool4, pool5 = poolings(model.encoder, x)
    y = layers.up("decoder.upsamplings.0", pool5) + pool4
    y = layers.up("decoder.upsamplings.1", y) + pool3
    y = layers.up("decoder.upsamplings.2", y) + pool2
    y = layers.up("decoder.upsamplings.3", y) + pool1
    return layers.up("decoder.score", y)


REFERENCES = {
    "plainfcn": plain_fcn,
    "simplifiedunet": simplified_unet,
    "classicunet": classic_unet,
    "transferfcn": transfer_fcn,
    "featurefcn8s": feature_fcn8s,
    "featurefcn2s": feature_fcn2s,
}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96)])
@pytest.mark.parametrize("arch", REFERENCES)
@torch.no_grad()
def test_network_computes_what_the_original_computes(arch, height, width):
    model = network(arch)
    x = images(2, 3, height, width, dtype=torch.float64)
    expected = REFERENCES[arch](Layers(model), model, x)
    assert expected.std() > 0.1
    assert (expected[0] - expected[1]).std() > 0.1
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)


# Its parameters: the shape of each weight, and how many biases there are

PLAIN_FCN = {
    "encoder.stages.1.0": ((32, 3, 3, 3), 32),
    "encoder.stages.1.2": ((32,), 32),
    "encoder.stages.2.0": ((64, 32, 3, 3), 64),
    "encoder.stages.2.2": ((64,), 64),
    "encoder.stages.3.0": ((128, 64, 3, 3), 128),
    "encoder.stages.3.2": ((128,), 128),
    "encoder.stages.4.0": ((256, 128, 3, 3), 256),
    "encoder.stages.4.2": ((256,), 256),
    "encoder.stages.5.0": ((512, 256, 3, 3), 512),
    "encoder.stages.5.2": ((512,), 512),
    "decoder.layers.0.0": ((512, 512, 3, 3), 512),
    "decoder.layers.0.2": ((512,), 512),
    "decoder.layers.1.0": ((512, 256, 3, 3), 256),
    "decoder.layers.1.2": ((256,), 256),
    "decoder.layers.2.0": ((256, 128, 3, 3), 128),
    "decoder.layers.2.2": ((128,), 128),
    "decoder.layers.3.0": ((128, 64, 3, 3), 64),
    "decoder.layers.3.2": ((64,), 64),
    "decoder.layers.4.0": ((64, 21, 3, 3), 21),
    "decoder.layers.4.2": ((21,), 21),
    "decoder.score": ((21, 21, 1, 1), 21),
}
SIMPLIFIED_UNET = {
    "encoder.stages.0.0": ((64, 3, 3, 3), 64),
    "encoder.stages.1.1.0": ((128, 64, 3, 3), 128),
    "encoder.stages.2.1.0": ((256, 128, 3, 3), 256),
    "encoder.stages.3.1.0": ((512, 256, 3, 3), 512),
    "decoder.layers.0.0": ((512, 256, 2, 2), 256),
    "decoder.layers.0.2.0": ((256, 256, 3, 3), 256),
    "decoder.layers.1.0": ((256, 128, 2, 2), 128),
    "decoder.layers.1.2.0": ((128, 128, 3, 3), 128),
    "decoder.layers.2.0": ((128, 64, 2, 2), 64),
    "decoder.layers.2.2.0": ((64, 64, 3, 3), 64),
    "decoder.score": ((21, 64, 1, 1), 21),
}
CLASSIC_UNET = {
    "encoder.stages.0.conv1": ((64, 3, 3, 3), 64),
    "encoder.stages.0.conv2": ((64, 64, 3, 3), 64),
    "encoder.stages.0.norm": ((64,), 64),
    "encoder.stages.1.1.conv1": ((128, 64, 3, 3), 128),
    "encoder.stages.1.1.conv2": ((128, 128, 3, 3), 128),
    "encoder.stages.1.1.norm": ((128,), 128),
    "encoder.stages.2.1.conv1": ((256, 128, 3, 3), 256),
    "encoder.stages.2.1.conv2": ((256, 256, 3, 3), 256),
    "encoder.stages.2.1.norm": ((256,), 256),
    "encoder.stages.3.1.conv1": ((512, 256, 3, 3), 512),
    "encoder.stages.3.1.conv2": ((512, 512, 3, 3), 512),
    "encoder.stages.3.1.norm": ((512,), 512),
    "encoder.stages.4.1.conv1": ((1024, 512, 3, 3), 1024),
    "encoder.stages.4.1.conv2": ((1024, 1024, 3, 3), 1024),
    "encoder.stages.4.1.norm": ((1024,), 1024),
    "decoder.levels.0.upsample": ((1024, 512, 2, 2), 512),
    "decoder.levels.0.convs.conv1": ((512, 1024, 3, 3), 512),
    "decoder.levels.0.convs.conv2": ((512, 512, 3, 3), 512),
    "decoder.levels.0.convs.norm": ((512,), 512),
    "decoder.levels.1.upsample": ((512, 256, 2, 2), 256),
    "decoder.levels.1.convs.conv1": ((256, 512, 3, 3), 256),
    "decoder.levels.1.convs.conv2": ((256, 256, 3, 3), 256),
    "decoder.levels.1.convs.norm": ((256,), 256),
    "decoder.levels.2.upsample": ((256, 128, 2, 2), 128),
    "decoder.levels.2.convs.conv1": ((128, 256, 3, 3), 128),
    "decoder.levels.2.convs.conv2": ((128, 128, 3, 3), 128),
    "decoder.levels.2.convs.norm": ((128,), 128),
    "decoder.levels.3.upsample": ((128, 64, 2, 2), 64),
    "decoder.levels.3.convs.conv1": ((64, 128, 3, 3), 64),
    "decoder.levels.3.convs.conv2": ((64, 64, 3, 3), 64),
    "decoder.levels.3.convs.norm": ((64,), 64),
    "decoder.score": ((21, 64, 1, 1), 21),
}
TRANSFER_FCN = {
    "decoder.layers.0": ((1024, 2048, 1, 1), 1024),
    "decoder.layers.2": ((512, 1024, 1, 1), 512),
    "decoder.layers.4": ((512, 256, 3, 3), 256),
    "decoder.layers.6": ((256, 128, 3, 3), 128),
    "decoder.layers.8": ((128, 64, 3, 3), 64),
    "decoder.layers.10": ((64,), 64),
    "decoder.layers.11": ((64, 64, 3, 3), 64),
    "decoder.layers.13": ((64,), 64),
    "decoder.score": ((21, 64, 1, 1), 21),
}
FEATURE_FCN8S = {
    "decoder.upsamplings.0": ((512, 512, 2, 2), 0),
    "decoder.upsamplings.1": ((512, 256, 2, 2), 0),
    "decoder.score": ((256, 12, 8, 8), 0),
}
FEATURE_FCN2S = {
    "decoder.upsamplings.0": ((512, 512, 2, 2), 0),
    "decoder.upsamplings.1": ((512, 256, 2, 2), 0),
    "decoder.upsamplings.2": ((256, 128, 2, 2), 0),
    "decoder.upsamplings.3": ((128, 64, 2, 2), 0),
    "decoder.score": ((64, 12, 2, 2), 0),
}
# Of torchvision's ResNet-50 and VGG-16 without what classifies.
RESNET50, VGG16 = 25_557_032 - 2049 * 1000, 14_714_688

# Convolution by convolution: weights + biases + the two of each norm.
COUNTS = {
    "plainfcn": (27 * 32 + 32 + 64)
    + (288 * 64 + 64 + 128)
    + (576 * 128 + 128 + 256)
    + (1152 * 256 + 256 + 512)
    + (2304 * 512 + 512 + 1024)
    + (4608 * 512 + 512 + 1024)
    + (4608 * 256 + 256 + 512)
    + (2304 * 128 + 128 + 256)
    + (1152 * 64 + 64 + 128)
    + (576 * 21 + 21 + 42)
    + (21 * 21 + 21),
    "simplifiedunet": (27 * 64 + 64)
    + (576 * 128 + 128)
    + (1152 * 256 + 256)
    + (2304 * 512 + 512)
    + (2048 * 256 + 256)
    + (2304 * 256 + 256)
    + (1024 * 128 + 128)
    + (1152 * 128 + 128)
    + (512 * 64 + 64)
    + (576 * 64 + 64)
    + (64 * 21 + 21),
    "classicunet": (27 * 64 + 64 + 576 * 64 + 64 + 128)
    + (576 * 128 + 128 + 1152 * 128 + 128 + 256)
    + (1152 * 256 + 256 + 2304 * 256 + 256 + 512)
    + (2304 * 512 + 512 + 4608 * 512 + 512 + 1024)
    + (4608 * 1024 + 1024 + 9216 * 1024 + 1024 + 2048)
    + (4096 * 512 + 512 + 9216 * 512 + 512 + 4608 * 512 + 512 + 1024)
    + (2048 * 256 + 256 + 4608 * 256 + 256 + 2304 * 256 + 256 + 512)
    + (1024 * 128 + 128 + 2304 * 128 + 128 + 1152 * 128 + 128 + 256)
    + (512 * 64 + 64 + 1152 * 64 + 64 + 576 * 64 + 64 + 128)
    + (64 * 21 + 21),
    "transferfcn": RESNET50
    + (2048 * 1024 + 1024)
    + (1024 * 512 + 512)
    + (4608 * 256 + 256)
    + (2304 * 128 + 128)
    + (1152 * 64 + 64 + 128)
    + (576 * 64 + 64 + 128)
    + (64 * 21 + 21),
    "featurefcn8s": 16_484_160,
    "featurefcn2s": 16_454_464,
}


@pytest.mark.parametrize(
    ("arch", "table", "elsewhere"),
    [
        ("plainfcn", PLAIN_FCN, 0),
        ("simplifiedunet", SIMPLIFIED_UNET, 0),
        ("classicunet", CLASSIC_UNET, 0),
        ("transferfcn", TRANSFER_FCN, RESNET50),
        ("featurefcn8s", FEATURE_FCN8S, VGG16),
        ("featurefcn2s", FEATURE_FCN2S, VGG16),
    ],
)
def test_network_has_the_parameters_of_the_original(arch, table, elsewhere):
    with torch.device("meta"):
        model = smp.MODEL_ARCHITECTURES_MAPPING[arch](
            encoder_weights=None, classes=12 if arch.startswith("feature") else 21
        )
    parameters = dict(model.named_parameters())
    taken_over = [name for name in parameters if elsewhere and name.startswith("encoder.")]
    assert sum(parameters.pop(name).numel() for name in taken_over) == elsewhere
    expected = {f"{name}.weight": shape for name, (shape, _) in table.items()}
    expected |= {f"{name}.bias": (biases,) for name, (_, biases) in table.items() if biases}
    assert {name: tuple(parameter.shape) for name, parameter in parameters.items()} == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[arch]


def count(arch, **options):
    with torch.device("meta"):
        model = build(arch, "vgg16", **options)
    return sum(parameter.numel() for parameter in model.parameters())


def test_fcn8s_has_the_parameters_of_the_one_class_network_but_for_those_that_it_does_without():
    ours = count("fcn8s", classes=1, decoder_hidden_channels=0, decoder_learn_upsampling=True)
    assert ours == VGG16 + (512 + 1) + (512 + 1) + (256 + 1) + 16 + 16
    biases_of_the_upsamplings, last_upsampling, factor_and_offset = 1 + 1, 16 * 16 + 1, 1 + 1
    theirs = ours + biases_of_the_upsamplings + last_upsampling + factor_and_offset
    assert theirs == 14_716_264
    assert theirs - VGG16 == 1_576


def test_fcn32s_and_fcn8s_have_the_parameters_of_those_for_keras():
    frozen_upsampling = 64 * 64 * 21 * 21
    assert count("fcn32s", classes=21, decoder_hidden_channels=4096) == 134_346_581 == 136_152_917 - frozen_upsampling
    assert count("fcn8s", classes=21, decoder_hidden_channels=4096) == 134_362_751


def test_two_layers_of_the_unet_share_one_norm():
    model = build("classicunet", "double_conv", encoder_depth=4).train()
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == [64, 128, 256, 512, 1024, 512, 256, 128, 64]
    model(images(2, 3, 32, 32))
    assert [norm.num_batches_tracked.item() for norm in norms] == [2] * 9


# Any size, any encoder


@pytest.mark.parametrize("arch", ORIGINALS)
@settings(deadline=None, max_examples=6)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
@torch.no_grad()
def test_an_image_of_any_size_is_continued_to_the_next_multiple_and_its_scores_cropped(arch, height, width):
    model, stride = network(arch), {"simplifiedunet": 8, "classicunet": 16}.get(arch, 32)
    x = images(1, 3, height, width, dtype=torch.float64)
    continued = F.pad(x, (0, -width % stride, 0, -height % stride), mode="replicate")
    output = model(x)
    assert output.shape == (1, 5, height, width)
    expected = REFERENCES[arch](Layers(model), model, continued)[:, :, :height, :width]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


# Strides that double, of SMP and timm; without one of 2; before pooling; dilated; one stride for all; for one size or
# multiples of one alone; with no map of stride 8 or finer; 16 but for a first map of 8.3; and of no exact stride.
ANY_ENCODER = [
    ("resnet18", {}),
    ("vgg11", {}),
    ("tu-test_convnext", {}),
    ("single_conv", {"encoder_depth": 5}),
    ("strided_conv", {"output_stride": 8}),
    ("resnet18", {"output_stride": 8}),
    ("test_vit", {}),
    ("test_coatnet", {"img_size": 64}),
    ("test_maxvit", {"img_size": (32, 64)}),
    ("levit_128s", {"encoder_depth": 5}),
    ("pit_ti_224", {"encoder_depth": 3}),
    ("tu-inception_v3", {"encoder_depth": 3}),
]


# Their decoders are of one kind: the first architecture takes all encoders, the others a third of them each.
@pytest.mark.parametrize(
    ("arch", "encoder", "options"),
    [
        *(("plainfcn", *encoder) for encoder in ANY_ENCODER),
        *(("simplifiedunet", *encoder) for encoder in ANY_ENCODER[::3]),
        *(("transferfcn", *encoder) for encoder in ANY_ENCODER[1::3]),
    ],
)
@torch.no_grad()
def test_the_last_map_of_any_encoder_is_enlarged_to_the_image(arch, encoder, options):
    options = {"encoder_depth": 5, **options}
    model = with_random_norms(build(arch, encoder, **options))
    for size in [(1, 1), (45, 83)]:
        x = images(1, 3, *size)
        features = model.encoder(model.any_size(x))
        scores = model.decoder(features)
        assert scores.shape == (1, 2, *features[0].shape[2:])
        output = model(x)
        assert output.shape == (1, 2, *size)
        assert output.isfinite().all()


@pytest.mark.parametrize("encoder", ["pit_ti_224", "tu-inception_v3"])
@pytest.mark.parametrize(("arch", "blocks"), [("plainfcn", 3), ("simplifiedunet", 3)])
@torch.no_grad()
def test_scores_of_a_map_without_exact_stride_are_interpolated_by_size(arch, blocks, encoder):
    model = with_random_norms(build(arch, encoder, encoder_depth=3))
    features = model.encoder(model.any_size(images(1, 3, 64, 96)))
    y = features[-1]
    for block in range(blocks):
        y = model.decoder.layers[block](y)
    assert y.shape[2:] == tuple(8 * side for side in features[-1].shape[2:]) != features[0].shape[2:]
    expected = F.interpolate(model.decoder.score(y), size=features[0].shape[2:], mode="bilinear")
    torch.testing.assert_close(model.decoder(features), expected)


def test_an_encoder_that_cannot_be_tried_without_arithmetic_is_taken_at_its_word():
    """The pass of this one depends on values, which torch's meta device lacks."""
    with torch.device("meta"):
        model = build("plainfcn", "gemma4_vit_167m")
    assert len(model.decoder.layers) == 4
    assert not model.decoder.interpolate


@pytest.mark.parametrize(
    ("arch", "depth", "widths"),
    [
        ("plainfcn", 3, [128, 64, 2, 2]),
        ("plainfcn", 4, [256, 128, 64, 2, 2]),
        ("plainfcn", 5, [512, 256, 128, 64, 2, 2]),
        ("simplifiedunet", 3, [256, 256, 128, 128, 64, 64, 2]),
        ("simplifiedunet", 4, [512, 512, 256, 256, 128, 128, 64, 64, 2]),
        ("simplifiedunet", 5, [512, 512, 512, 512, 256, 256, 128, 128, 64, 64, 2]),
        ("classicunet", 3, [256, 256, 256, 128, 128, 128, 64, 64, 64, 2]),
        ("classicunet", 5, [1024] * 3 + [512] * 3 + [256] * 3 + [128] * 3 + [64] * 3 + [2]),
        ("transferfcn", 3, [1024, 512, 64, 64, 2]),
        ("transferfcn", 4, [1024, 512, 128, 64, 64, 2]),
        ("featurefcn8s", 3, [2]),
        ("featurefcn8s", 4, [32, 2]),
        ("featurefcn2s", 3, [24, 16, 2]),
    ],
)
@torch.no_grad()
def test_the_decoder_has_a_level_for_each_halving_and_the_last_widths_of_the_original(arch, depth, widths):
    model = build(arch, "test_efficientnet", encoder_depth=depth)
    convs = [layer for layer in model.decoder.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    assert [conv.out_channels for conv in convs] == widths
    assert model(images(1, 3, 33, 41)).shape == (1, 2, 33, 41)
    if arch == "transferfcn":
        assert [type(layer) for layer in model.decoder.layers[-6:]] == [nn.ConvTranspose2d, nn.ReLU, nn.BatchNorm2d] * 2


@pytest.mark.parametrize(
    ("encoder", "skips"),
    [("tu-test_convnext", [1, 1, 1, 0, 1]), ("mit_b0", [1, 1, 1, 0, 1]), ("resnet18", [1, 1, 1, 1, 1])],
)
@torch.no_grad()
def test_a_level_that_the_encoder_lacks_has_no_skip_in_the_unet(encoder, skips):
    model = build("classicunet", encoder, encoder_depth=5)
    added = [level.convs.conv1.in_channels - level.upsample.out_channels for level in model.decoder.levels]
    assert added == model.encoder.out_channels[-2::-1]
    assert [channels > 0 for channels in added] == skips
    assert model(images(1, 3, 45, 83)).shape == (1, 2, 45, 83)


@pytest.mark.parametrize("arch", ["classicunet", "featurefcn2s"])
@pytest.mark.parametrize(
    ("encoder", "options"), [("resnet18", {}), ("single_conv", {"encoder_depth": 3}), ("dla46_c", {})]
)
def test_every_map_of_the_encoder_counts(arch, encoder, options):
    model = with_random_norms(build(arch, encoder, **options))
    features = [feature.detach().requires_grad_() for feature in model.encoder(images(1, 3, 64, 64))]
    model.decoder(features).square().sum().backward()
    for level, feature in enumerate(features):
        if arch == "featurefcn2s" and level == 0:
            assert feature.grad is None
        else:
            assert feature.grad.any(), level


@pytest.mark.parametrize("arch", ORIGINALS)
def test_every_parameter_learns(arch):
    """In evaluation: in training a norm takes away what a bias before it adds."""
    model = network(arch)
    model.zero_grad()
    model(images(2, 3, 64, 64, dtype=torch.float64)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("arch", "encoder", "options", "says"),
    [
        ("classicunet", "test_vit", {}, "'test_vit' are 1, 16, 16, 16, 16; .*resnet34"),
        ("classicunet", "resnet18", {"output_stride": 16}, "1, 2, 4, 8, 16, 32, .*'resnet18' are 1, 2, 4, 8, 16, 16;"),
        ("classicunet", "pit_ti_224", {}, "1, 8, 16, 32, .*'pit_ti_224' are 1, 8.2963, 16, 32;"),
        ("classicunet", "tu-inception_v3", {"encoder_depth": 3}, "1, 2, 4, 8, .*'tu-inception_v3' are 1, 2.105"),
        ("featurefcn8s", "test_vit", {}, "32, 16, 8, .*'test_vit' are 16, 16, 16;"),
        ("featurefcn8s", "resnet18", {"output_stride": 8}, "32, 16, 8, .*'resnet18' are 8, 8, 8;"),
        ("featurefcn2s", "tu-test_convnext", {}, "32, 16, 8, 4, 2, .*'tu-test_convnext' are 32, 16, 8, 4, 4;"),
        ("featurefcn2s", "single_conv", {"output_stride": 8}, "'single_conv' .*output_stride=8.* pooling"),
        ("plainfcn", "strided_conv", {"classes": 0}, "classes .* 0"),
        ("plainfcn", "strided_conv", {"encoder_depth": 2}, "encoder_depth .* 2"),
        ("plainfcn", "strided_conv", {"encoder_weights": "imagenet"}, "'strided_conv' has no pretrained weights"),
        ("plainfcn", "strided_conv", {"layers": 3}, "'strided_conv' .*'layers'"),
        ("transferfcn", "resnet18", {"depth": 3}, "'depth'; did you mean 'encoder_depth'"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(arch, encoder, options, says):
    with pytest.raises(ValueError, match=says) as raised, torch.device("meta"):
        build(arch, encoder, **{"encoder_depth": 5, **options})
    assert "\n" not in str(raised.value)


# The encoders that came with them


CHANNELS = {
    "strided_conv": [3, 32, 64, 128, 256, 512],
    "single_conv": [64, 128, 256, 512, 1024, 2048],
    "double_conv": [64, 128, 256, 512, 1024, 2048],
}


@cache
def encoder(name, depth, in_channels):
    torch.manual_seed(0)
    return smp.encoders.get_encoder(name, depth=depth, in_channels=in_channels).eval()


@pytest.mark.parametrize(("depth", "in_channels"), [(1, 1), (2, 4), (3, 3), (4, 1), (5, 3)])
@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.filterwarnings("ignore:.*jit.(script|trace).* is deprecated")
@torch.no_grad()
def test_an_encoder_gives_one_map_for_each_halving(name, depth, in_channels):
    own = encoder(name, depth, in_channels)
    channels = CHANNELS[name][: depth + 1]
    if name == "strided_conv":
        channels = [in_channels, *channels[1:]]
    assert own.out_channels == channels
    assert own.output_stride == 2**depth
    x = images(2, in_channels, 32, 64)
    features = own(x)
    expected = [(2, width, 32 // 2**level, 64 // 2**level) for level, width in enumerate(channels)]
    assert [tuple(feature.shape) for feature in features] == expected
    for scripted, feature in zip(torch.jit.script(own)(x), features, strict=True):
        torch.testing.assert_close(scripted, feature)


@pytest.mark.parametrize("name", CHANNELS)
def test_depth_is_one_to_five(name):
    assert {*CHANNELS} == {*ENCODERS}
    for depth in (0, 6):
        with pytest.raises(ValueError, match=f"depth .* 1 to 5, got {depth}"):
            smp.encoders.get_encoder(name, depth=depth)


@torch.no_grad()
def test_strides_may_be_traded_for_dilation_and_poolings_may_not():
    x = images(1, 3, 64, 96)
    plain = encoder("strided_conv", 5, 3)
    dilated = smp.encoders.get_encoder("strided_conv", output_stride=8).eval()
    dilated.load_state_dict(plain.state_dict())
    assert [feature.shape[2] for feature in dilated(x)] == [64, 32, 16, 8, 8, 8]
    *_, third, fourth, _ = dilated(x)
    for ours, theirs in zip(dilated(x)[:4], plain(x)[:4], strict=True):
        assert torch.equal(ours, theirs)
    conv, _, norm = plain.stages[4]
    expected = norm(F.conv2d(third, conv.weight, conv.bias, padding=2, dilation=2).relu())
    torch.testing.assert_close(fourth, expected)
    for name in ("single_conv", "double_conv"):
        with pytest.raises(ValueError, match="pooling"):
            smp.encoders.get_encoder(name, output_stride=16)


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize(
    ("arch", "options"),
    [("unet", {"decoder_channels": (16, 8, 8)}), ("linknet", {}), ("fcn8s", {}), ("featurefcn2s", {})],
)
def test_other_networks_take_these_encoders_too(arch, name, options):
    model = smp.create_model(arch, name, encoder_weights=None, encoder_depth=3, classes=2, **options)
    output = model(images(2, 3, 64, 96))
    assert output.shape == (2, 2, 64, 96)
    output.square().mean().backward()
    assert model.segmentation_head is not None


@torch.no_grad()
def test_a_dilated_network_takes_the_encoder_that_dilates():
    for arch in ("deeplabv3", "dilatedfcn"):
        model = smp.create_model(arch, "strided_conv", encoder_weights=None, classes=2).eval()
        assert model.encoder.output_stride == 8
        assert model(images(1, 3, 64, 96)).shape == (1, 2, 64, 96)
