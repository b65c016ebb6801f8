"""``decoder_alignment="caffe"``, held against the authors' prototxts written out as straight lines of torch."""

import json
import re
from copy import deepcopy
from functools import cache
from itertools import chain, islice
from unittest.mock import patch

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim

import fcn_smp

# The at-once network is the one that scales what it takes of pool4 and pool3.
NETWORKS = ["fcn32s", "fcn16s", "fcn8s", "fcn8s-atonce"]
# Nobody released these; they go on by the rule of the others.
FINER = ["fcn4s", "fcn2s"]

# Convolutions before each pooling, by how many there are: VGG-11, 13, 16 and 19.
BLOCKS = {8: (1, 1, 2, 2, 2), 10: (2, 2, 2, 2, 2), 13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}

SIZES = [
    (1, 1),
    (1, 7),
    (7, 1),
    (2, 3),
    (9, 2),
    (16, 17),
    (25, 27),
    (26, 26),
    (26, 58),
    (31, 33),
    (32, 32),
    (33, 31),
    (48, 20),
    (57, 90),
    (59, 123),
    (64, 96),
    (75, 100),
    (90, 26),
    (96, 65),
    (101, 67),
    (127, 129),
    (130, 5),
    (500, 375),
]


class Unallocated(torch.nn.Linear):
    """Stands in for the 120 million random numbers of VGG's classifier, which SMP drops once they are drawn."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "device": "meta"})


def narrowed(encoder, width):
    """Return the registration of one of SMP's VGGs with other widths."""
    params = smp.encoders.encoders[encoder]["params"]
    config = [width(layer) if isinstance(layer, int) else layer for layer in params["config"]]
    out_channels = [width(channels) for channels in params["out_channels"]]
    params = {**params, "config": config, "out_channels": out_channels}
    return {**smp.encoders.encoders[encoder], "params": params}


@pytest.fixture(scope="module", autouse=True)
def narrow_vggs():
    """Register each VGG at an eighth of its width, and with a single channel: 500x375 in float64 takes its time."""
    vggs = [name for name in smp.encoders.encoders if name.startswith("vgg")]
    narrow = {f"narrow-{name}": narrowed(name, lambda channels: channels // 8) for name in vggs}
    single = {f"single-{name}": narrowed(name, lambda _: 1) for name in vggs}
    with patch.dict(smp.encoders.encoders, narrow | single), patch.object(torch.nn, "Linear", Unallocated):
        yield


def build(network, encoder="narrow-vgg11", **options):
    arch, _, at_once = network.partition("-")
    options = {"classes": 3, "decoder_hidden_channels": 16, "decoder_alignment": "caffe", **options}
    if at_once:
        options["decoder_skip_scales"] = (0.01, 0.0001)
    if encoder == "tu-vgg11":
        options["mlp_ratio"] = 0.001
    torch.manual_seed(0)
    return smp.create_model(arch, encoder_name=encoder, encoder_weights=None, **options).eval()


def scores_of(model):
    return [model.decoder.score, *model.decoder.skip_scores]


@torch.no_grad()
def randomise(model):
    """Let every number count: scores start from zero, and so do the biases and the statistics of the encoder."""
    generator = torch.Generator().manual_seed(0)
    for score in scores_of(model):
        score.weight.normal_(std=score.in_channels**-0.5, generator=generator)
    for name, values in chain(model.named_parameters(), model.named_buffers()):
        if name.endswith("running_var"):
            values.uniform_(0.5, 2, generator=generator)
        elif name.endswith(("bias", "running_mean")):
            values.normal_(std=0.3, generator=generator)
    return model


@cache
def random_network(network, encoder="narrow-vgg11"):
    return randomise(build(network, encoder))


@cache
def exact_network(network, encoder="narrow-vgg11"):
    return deepcopy(random_network(network, encoder)).double()


def images(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def poolings(encoder, x):
    """Return pool1 to pool5 of the encoder's convolutions; how it pads and pools them itself must not matter here."""
    layers = list(encoder.modules())
    convs = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, torch.nn.BatchNorm2d)] or [None] * len(convs)
    normalised = zip(convs, norms, strict=True)
    padding = 100
    maps = []
    for convs_of_block in BLOCKS[len(convs)]:
        for layer, norm in islice(normalised, convs_of_block):
            x = F.conv2d(x, layer.weight, layer.bias, padding=padding)
            padding = 1
            if norm is not None:
                x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
            x = F.relu(x)
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        maps.append(x)
    return maps


def conv(layer, x):
    return F.conv2d(x, layer.weight, layer.bias)


def deconv(x, kernel, stride):
    """Upsample by a full kernel whose diagonal is what the authors' surgery.interp puts there."""
    factor = (kernel + 1) // 2
    centre = factor - 1 if kernel % 2 else factor - 0.5
    tent = 1 - (torch.arange(kernel, dtype=x.dtype) - centre).abs() / factor
    weight = x.new_zeros(x.shape[1], x.shape[1], kernel, kernel)
    weight[range(x.shape[1]), range(x.shape[1])] = tent[:, None] * tent
    return F.conv_transpose2d(x, weight, stride=stride)


def crop(x, offset, like):
    height, width = like.shape[2:]
    cropped = x[:, :, offset : offset + height, offset : offset + width]
    assert cropped.shape[2:] == like.shape[2:]
    return cropped


def as_released(network, model, x):
    """Compute what the authors' val.prototxt says, with the parameters of ``model``."""
    arch, _, at_once = network.partition("-")
    pool1, pool2, pool3, pool4, pool5 = poolings(model.encoder, x)
    score_fr, *score_pool = scores_of(model)
    fc6 = F.relu(conv(model.decoder.hidden[0], pool5))
    fc7 = F.relu(conv(model.decoder.hidden[3], fc6))
    if at_once:
        pool4 = pool4 * 0.01
        pool3 = pool3 * 0.0001

    scores = conv(score_fr, fc7)
    if arch == "fcn32s":
        return crop(deconv(scores, 64, 32), 19, x)
    upscore2 = deconv(scores, 4, 2)
    fuse_pool4 = upscore2 + crop(conv(score_pool[0], pool4), 5, upscore2)
    if arch == "fcn16s":
        return crop(deconv(fuse_pool4, 32, 16), 27, x)
    upscore_pool4 = deconv(fuse_pool4, 4, 2)
    fuse_pool3 = upscore_pool4 + crop(conv(score_pool[1], pool3), 9, upscore_pool4)
    if arch == "fcn8s":
        return crop(deconv(fuse_pool3, 16, 8), 31, x)
    upscore_pool3 = deconv(fuse_pool3, 4, 2)
    fuse_pool2 = upscore_pool3 + crop(conv(score_pool[2], pool2), 17, upscore_pool3)
    if arch == "fcn4s":
        return crop(deconv(fuse_pool2, 8, 4), 33, x)
    upscore_pool2 = deconv(fuse_pool2, 4, 2)
    fuse_pool1 = upscore_pool2 + crop(conv(score_pool[3], pool1), 33, upscore_pool2)
    return crop(deconv(fuse_pool1, 4, 2), 34, x)


def assert_the_same_bits(ours, theirs):
    assert theirs.std() > 0.01
    assert ours.shape == theirs.shape
    assert torch.equal(ours, theirs), f"they differ by up to {(ours - theirs).abs().max()}"


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_a_network_computes_what_the_released_one_does_to_the_last_bit(network, height, width):
    model = exact_network(network)
    x = images(1, 3, height, width, dtype=torch.float64)
    assert_the_same_bits(model(x), as_released(network, model, x))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 33), (64, 96)])
@pytest.mark.parametrize("network", FINER)
@torch.no_grad()
def test_finer_networks_go_on_by_the_same_rule(network, height, width):
    model = exact_network(network)
    x = images(2, 3, height, width, dtype=torch.float64)
    assert_the_same_bits(model(x), as_released(network, model, x))


@pytest.mark.parametrize(
    ("encoder", "height", "width"),
    [
        ("vgg16", 5, 34),
        ("tu-vgg11", 34, 5),
        ("narrow-vgg13", 45, 70),
        ("narrow-vgg19", 71, 33),
        ("narrow-vgg11_bn", 1, 1),
        ("narrow-vgg16_bn", 50, 66),
    ],
)
@torch.no_grad()
def test_every_vgg_is_aligned_to_the_last_bit(encoder, height, width):
    model = randomise(build("fcn8s", encoder)).double()
    x = images(1, 3, height, width, dtype=torch.float64)
    assert_the_same_bits(model(x), as_released("fcn8s", model, x))


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_a_batch_is_aligned_to_the_last_bit(network):
    model = exact_network(network)
    x = images(2, 3, 61, 83, dtype=torch.float64)
    assert_the_same_bits(model(x), as_released(network, model, x))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (63, 34), (97, 131)])
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_single_precision_differs_by_its_rounding(network, height, width):
    model = random_network(network)
    x = images(2, 3, height, width)
    ours, theirs = model(x), as_released(network, model, x)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("encoder", ["narrow-vgg11", "narrow-vgg13_bn"])
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_are_those_of_the_released_network(network, encoder):
    model = exact_network(network, encoder)
    x = images(2, 3, 47, 70, dtype=torch.float64).requires_grad_()
    direction = torch.randn(2, 3, 47, 70, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    named = {"input": x, **dict(model.named_parameters())}
    ours = torch.autograd.grad((model(x) * direction).sum(), list(named.values()))
    theirs = torch.autograd.grad((as_released(network, model, x) * direction).sum(), list(named.values()))
    for name, our, their in zip(named, ours, theirs, strict=True):
        assert their.any(), name
        assert (our - their).abs().max() <= 1e-12 * their.abs().max(), name


@pytest.mark.parametrize(("arch", "taps"), [("fcn32s", 1), ("fcn16s", 2), ("fcn8s", 3), ("fcn4s", 4), ("fcn2s", 5)])
@torch.no_grad()
def test_each_tap_answers_an_impulse_where_it_is(arch, taps):
    """A cell of stride s covers s pixels, so the answer is centred up to (s - 1) / 2 off, and on the mean not at all.

    One pixel of the last offset, or one cell of a skip's, would shift it beyond that.
    """
    model = build(arch, "single-vgg11", classes=1, decoder_hidden_channels=1).double()
    for name, parameter in model.named_parameters():
        parameter.zero_()
        if "score" not in name and name.endswith("weight"):
            middle = parameter.shape[-1] // 2
            parameter[0, 0, middle, middle] = 1
    down, right = torch.arange(64, 96), torch.arange(101, 69, -1)
    x = torch.zeros(32, 3, 160, 170, dtype=torch.float64)
    x[range(32), 0, down, right] = 1

    for tap, score in enumerate(scores_of(model)[:taps]):
        stride = 2 ** (5 - tap)
        score.weight.fill_(1)
        answer = model(x[:stride])[:, 0]
        score.weight.zero_()
        mass = answer.sum(dim=(1, 2))
        torch.testing.assert_close(mass, torch.full_like(mass, stride**2))
        for position, profile in [(down, answer.sum(dim=2)), (right, answer.sum(dim=1))]:
            shift = (profile * torch.arange(profile.shape[1])).sum(dim=1) / mass - position[:stride]
            reach = (stride - 1) / 2
            torch.testing.assert_close(shift.min().item(), -reach, rtol=0, atol=1e-9)
            torch.testing.assert_close(shift.max().item(), reach, rtol=0, atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS + FINER)
@torch.no_grad()
def test_output_has_the_size_of_the_input(network):
    model = build(network, "single-vgg11_bn", classes=2, decoder_hidden_channels=1)
    for height in range(1, 131):
        model.train(height % 3 == 0)
        assert model(images(1, 3, height, 131 - height)).shape == (1, 2, height, 131 - height)


@cache
def tiny_network(arch):
    return randomise(build(arch, "single-vgg11", classes=2, decoder_hidden_channels=1)).double()


@settings(deadline=None, max_examples=40)
@given(arch=st.sampled_from(["fcn32s", "fcn16s", "fcn8s"]), height=st.integers(1, 300), width=st.integers(1, 300))
@torch.no_grad()
def test_any_size_is_aligned(arch, height, width):
    model = tiny_network(arch)
    x = images(1, 3, height, width, dtype=torch.float64)
    # Not assert_the_same_bits: the logits of a few pixels may well be alike.
    assert torch.equal(model(x), as_released(arch, model, x))


@pytest.mark.parametrize("learned", [False, True])
def test_both_alignments_take_the_same_parameters(learned):
    same = build("fcn8s", decoder_alignment="same", decoder_learn_upsampling=learned)
    build("fcn8s", decoder_learn_upsampling=learned).load_state_dict(same.state_dict())


@pytest.mark.parametrize("network", NETWORKS)
def test_learned_upsampling_starts_as_released_and_learns(network):
    fixed = random_network(network)
    learned = build(network, decoder_learn_upsampling=True)
    added = learned.load_state_dict(fixed.state_dict(), strict=False).missing_keys
    assert len(added) == len(learned.decoder.skip_scores)
    x = images(2, 3, 33, 47)
    output = learned(x)
    torch.testing.assert_close(output, fixed(x))
    output.square().sum().backward()
    for name, parameter in learned.named_parameters():
        if name in added:
            assert (parameter.grad != 0).all(), name


@torch.no_grad()
def test_a_saved_network_keeps_its_alignment(tmp_path):
    model = random_network("fcn8s-atonce")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["decoder_alignment"] == "caffe"
    x = images(2, 3, 33, 47)
    for loaded in (smp.from_pretrained(tmp_path), fcn_smp.FCN8s.from_pretrained(tmp_path)):
        assert torch.equal(loaded.eval()(x), model(x))


# FCN-8s has all that FCN-16s has, and of the two the one that scales its skips has more.
GRAPHS = ["fcn32s", "fcn8s-atonce", "fcn2s"]


@pytest.mark.parametrize("network", GRAPHS)
@pytest.mark.filterwarnings("ignore:.*jit.script.* is deprecated")
@torch.no_grad()
def test_torchscript_gives_the_same(network):
    model = random_network(network)
    scripted = torch.jit.script(model)
    for shape in [(2, 3, 64, 96), (1, 3, 1, 1), (1, 3, 97, 131)]:
        torch.testing.assert_close(scripted(images(*shape)), model(images(*shape)))


@pytest.mark.parametrize("network", ["fcn32s", "fcn8s-atonce"])
@torch.no_grad()
def test_compilation_is_one_graph_for_all_sizes(network):
    model = random_network(network)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for shape in [(2, 3, 64, 96), (3, 3, 97, 131), (2, 3, 5, 3)]:
        torch.testing.assert_close(compiled(images(*shape)), model(images(*shape)))


# From 27 pixels on, fc6 leaves more than one pixel, which an export with dynamic sizes needs.
@pytest.mark.parametrize("network", GRAPHS)
@torch.no_grad()
def test_an_exported_network_takes_any_batch_and_size(network):
    model = random_network(network)
    sizes = {0: Dim("batch", min=1), 2: Dim("height", min=27), 3: Dim("width", min=27)}
    exported = torch.export.export(model, (images(2, 3, 128, 160),), dynamic_shapes=(sizes,)).module()
    for shape in [(3, 3, 97, 131), (1, 3, 27, 27), (2, 3, 225, 28)]:
        torch.testing.assert_close(exported(images(*shape)), model(images(*shape)))


@pytest.mark.parametrize(
    ("encoder", "options", "says"),
    [
        ("narrow-vgg11", {"decoder_alignment": "valid"}, "decoder_alignment .* 'valid'"),
        ("resnet18", {}, "decoder_alignment.* VGG"),
        ("narrow-vgg11", {"encoder_depth": 4}, "decoder_alignment.* encoder_depth.* 4"),
        ("narrow-vgg11", {"decoder_hidden_kernel": 3}, "decoder_alignment.* decoder_hidden_kernel"),
        ("narrow-vgg11", {"decoder_hidden_channels": 0}, "decoder_alignment.* decoder_hidden_channels"),
    ],
)
def test_what_the_alignment_does_not_allow_is_refused_in_one_sentence(encoder, options, says):
    with pytest.raises(ValueError, match=says) as raised:
        build("fcn8s", encoder, **options)
    assert re.fullmatch(r"[^\n]+\.", str(raised.value))
    assert ". " not in str(raised.value)
