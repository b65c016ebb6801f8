"""The dilated network, held against torchvision's ``fcn_resnet50`` and ``fcn_resnet101``."""

import json
import re
from copy import deepcopy
from itertools import product

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.segmentation import FCN_ResNet50_Weights, FCN_ResNet101_Weights

from fcn_smp.models.dilated import DilatedFCN

# SMP's and timm's, of residual blocks and of none, with a map of stride 2 and without, rounding sizes up and down.
ENCODERS = ["resnet18", "tu-resnet18", "test_efficientnet", "tu-test_convnext"]


def build(encoder="test_efficientnet", **options):
    options = {"encoder_weights": None, "classes": 2, **options}
    torch.manual_seed(0)
    return smp.create_model("dilatedfcn", encoder_name=encoder, **options).eval()


def images(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def torchvision_state_dict(state, backbone="encoder.model."):
    """Rename the weights of torchvision's network to those of ours."""
    names = {
        r"backbone\.": backbone,
        r"classifier\.([01])\.": r"decoder.hidden.\1.",
        r"classifier\.4\.": "decoder.score.",
        r"aux_classifier\.([01])\.": r"auxiliary_decoder.hidden.\1.",
        r"aux_classifier\.4\.": "auxiliary_decoder.score.",
    }
    renamed = {}
    for key, value in state.items():
        [new] = [re.sub(f"^{old}", name, key) for old, name in names.items() if re.match(old, key)]
        renamed[new] = value
    return renamed


def torchvision_network(encoder):
    """Return torchvision's network with weights and statistics that differ in every channel."""
    torch.manual_seed(2)
    network = getattr(torchvision.models.segmentation, f"fcn_{encoder}")(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return network.double().eval()


def ours_for(theirs, encoder, **options):
    ours = build(f"tu-{encoder}", classes=21, decoder_auxiliary=True, **options).double()
    ours.load_state_dict(torchvision_state_dict(theirs.state_dict()))
    return ours


@pytest.mark.parametrize(("encoder", "height", "width"), [("resnet50", 65, 97), ("resnet101", 48, 56)])
@torch.no_grad()
def test_network_computes_what_torchvision_computes(encoder, height, width):
    theirs = torchvision_network(encoder)
    ours = ours_for(theirs, encoder)
    x = images(2, 3, height, width, dtype=torch.float64)
    expected = theirs(x)
    # Two images differ, and so do the pixels of each.
    assert all((logits[0] - logits[1]).std() > 0.1 for logits in expected.values())
    assert all(logits.std((2, 3)).min() > 0.1 for logits in expected.values())
    logits, auxiliary = ours.forward_auxiliary(x)
    # The same operations in the same order, so that not even rounding differs.
    assert torch.equal(logits, expected["out"])
    assert torch.equal(auxiliary, expected["aux"])

    expected = theirs.float()(x.float())
    for own, key in zip(ours.float().forward_auxiliary(x.float()), ("out", "aux"), strict=True):
        torch.testing.assert_close(own, expected[key], rtol=1e-5, atol=1e-5 * expected[key].std().item())


def test_training_follows_torchvision():
    theirs = torchvision_network("resnet50")
    ours = ours_for(theirs, "resnet50", decoder_dropout=0.0)
    for layer in theirs.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    x = images(2, 3, 40, 33, dtype=torch.float64)
    labels = torch.arange(2 * 40 * 33).remainder(21).view(2, 40, 33)

    outputs = theirs.train()(x)
    (F.cross_entropy(outputs["out"], labels) + 0.5 * F.cross_entropy(outputs["aux"], labels)).backward()
    logits, auxiliary = ours.train().forward_auxiliary(x)
    (F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(auxiliary, labels)).backward()

    expected = torchvision_state_dict({name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert expected[name].any(), name
        torch.testing.assert_close(parameter.grad, expected.pop(name), rtol=1e-9, atol=1e-12, msg=name)
    assert not expected
    for name, value in torchvision_state_dict(theirs.state_dict()).items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("encoder", "weights"),
    [
        ("tu-resnet50", FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1),
        ("tu-resnet101", FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1),
    ],
)
def test_network_has_the_parameters_that_torchvision_publishes(encoder, weights):
    with torch.device("meta"):
        model = build(encoder, classes=21, decoder_auxiliary=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights.meta["num_params"]
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.1, 0.1]


@torch.no_grad()
def test_the_resnet_of_smp_is_dilated_otherwise():
    theirs = torchvision_network("resnet50")
    ours = build("resnet50", classes=21, decoder_auxiliary=True).double()
    ours.load_state_dict(torchvision_state_dict(theirs.state_dict(), backbone="encoder."))
    x = images(1, 3, 64, 64, dtype=torch.float64)
    expected = theirs(x)["out"]
    assert ours(x).shape == expected.shape
    assert (ours(x) - expected).std() > 0.1 * expected.std()


def with_statistics(model):
    """Return a copy whose batch norms have seen images; those of a new network change nothing."""
    model = deepcopy(model).train()
    with torch.no_grad():
        for _ in range(3):
            x = images(2, model.encoder.out_channels[0], 48, 48)
            model(x) if model.auxiliary_decoder is None else model.forward_auxiliary(x)
    return model.eval()


def scores_as_written(decoder, feature, size):
    conv, norm, score = decoder.hidden[0], decoder.hidden[1], decoder.score
    hidden = F.conv2d(feature, conv.weight, padding=1)
    hidden = F.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return F.interpolate(F.conv2d(hidden.relu(), score.weight, score.bias), size=size, mode="bilinear")


@pytest.mark.parametrize(
    ("encoder", "output_stride", "depth"),
    [
        *product(ENCODERS, [8, 32], [5]),
        *((encoder, *strides) for encoder in ENCODERS[2:] for strides in [(8, 3), (32, 3), (16, 4), (16, 5)]),
    ],
)
@torch.no_grad()
def test_heads_score_the_last_two_maps_of_any_encoder(encoder, output_stride, depth):
    model = build(encoder, encoder_output_stride=output_stride, encoder_depth=depth, decoder_auxiliary=True)
    model = with_statistics(model).double()
    stride = min(output_stride, 2**depth)
    height, width = 69, 97
    x = images(2, 3, height, width, dtype=torch.float64)
    *_, before_last, last = model.encoder(x)
    assert tuple(last.shape[2:]) in [(height // stride, width // stride), (-(-height // stride), -(-width // stride))]
    logits, auxiliary = model.forward_auxiliary(x)
    assert torch.equal(model(x), logits)
    for own, decoder, feature in [(logits, model.decoder, last), (auxiliary, model.auxiliary_decoder, before_last)]:
        assert decoder.hidden[0].out_channels == feature.shape[1] // 4
        expected = scores_as_written(decoder, feature, (height, width))
        assert expected.std() > 0.001
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_an_encoder_without_dilation_serves_at_stride_32():
    model = build("tu-vgg11", encoder_output_stride=32, decoder_auxiliary=True, mlp_ratio=0.001)
    for logits in model.forward_auxiliary(images(2, 3, 65, 97)):
        assert logits.shape == (2, 2, 65, 97)
        assert logits.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (7, 8), (9, 17)])
@torch.no_grad()
def test_images_may_be_small(height, width):
    model = build("resnet18", decoder_auxiliary=True)
    for logits in model.forward_auxiliary(images(1, 3, height, width)):
        assert logits.shape == (1, 2, height, width)
        assert logits.isfinite().all()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_parameter_learns(encoder):
    # The residual branches of timm's ResNet start from zero, unless its constructor is told otherwise.
    options = {"zero_init_last": False} if encoder == "tu-resnet18" else {}
    model = build(encoder, decoder_auxiliary=True, **options).train()
    logits, auxiliary = model.forward_auxiliary(images(2, 3, 65, 48))
    (logits.square().mean() + auxiliary.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_the_encoder_runs_once_for_both_logits():
    model = build(decoder_auxiliary=True)
    runs = []
    model.encoder.register_forward_hook(lambda *_: runs.append(None))
    model.forward_auxiliary(images(1, 3, 32, 32))
    assert len(runs) == 1


@torch.no_grad()
def test_the_auxiliary_head_changes_nothing_of_the_logits():
    model = with_statistics(build(decoder_auxiliary=True))
    plain = build()
    lost = plain.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert lost
    assert all(key.startswith("auxiliary_decoder.") for key in lost)
    x = images(1, 3, 65, 97)
    assert torch.equal(plain(x), model(x))
    with pytest.raises(ValueError, match=r"^[^\n]*decoder_auxiliary=True\.$"):
        plain.forward_auxiliary(x)


def test_hidden_channels_and_dropout_are_those_asked_for():
    model = build(decoder_channels=20, decoder_dropout=0.25, decoder_auxiliary=True)
    assert model.decoder.hidden[0].out_channels == model.decoder.score.in_channels == 20
    assert model.auxiliary_decoder.score.in_channels == model.encoder.out_channels[-2] // 4
    rates = [layer.p for name, layer in model.named_modules() if "decoder." in name and isinstance(layer, nn.Dropout)]
    assert rates == [0.25, 0.25]


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_channel_of_the_input_counts(encoder, in_channels):
    model = with_statistics(build(encoder, in_channels=in_channels))
    x = images(1, in_channels, 65, 97).requires_grad_()
    output = model(x)
    output.square().sum().backward()
    assert output.shape == (1, 2, 65, 97)
    assert x.grad.abs().amax(dim=(0, 2, 3)).all()


@torch.no_grad()
def test_labels_of_the_whole_image_are_not_among_both_logits():
    model = with_statistics(build(aux_params={"classes": 5, "dropout": None}, decoder_auxiliary=True))
    x = images(2, 3, 65, 97)
    masks, labels = model(x)
    assert labels.shape == (2, 5)
    logits, auxiliary = model.forward_auxiliary(x)
    assert torch.equal(logits, masks)
    assert auxiliary.shape == masks.shape


@torch.no_grad()
def test_activation_is_applied_to_both_logits():
    x = images(2, 3, 33, 65)
    logits = with_statistics(build(classes=4, decoder_auxiliary=True))
    for activation, apply in [("softmax2d", lambda y: y.softmax(1)), ("argmax2d", lambda y: y.argmax(1))]:
        model = build(classes=4, decoder_auxiliary=True, activation=activation)
        model.load_state_dict(logits.state_dict())
        for own, plain in zip(model.forward_auxiliary(x), logits.forward_auxiliary(x), strict=True):
            torch.testing.assert_close(own, apply(plain))


@pytest.mark.parametrize(
    ("encoder", "options", "says"),
    [
        ("resnet18", {"classes": 0}, "classes .* 0"),
        ("resnet18", {"encoder_output_stride": 4}, "encoder_output_stride .* 8, 16 or 32.* 4"),
        ("resnet18", {"encoder_depth": 2}, "encoder_depth .* 2"),
        ("resnet18", {"decoder_channels": 0}, "decoder_channels .* 0"),
        ("resnet18", {"decoder_dropout": 1.0}, "decoder_dropout .* 1.0"),
        ("resnet18", {"decoder_dropout": -0.1}, "decoder_dropout .* -0.1"),
        ("resnet_18", {}, "'resnet_18'.* resnet18"),
        ("tu-dla34", {}, "'tu-dla34' .* output_stride=8"),
        ("tu-vgg11", {"encoder_output_stride": 16}, "'tu-vgg11' .* output_stride=16"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(encoder, options, says):
    with pytest.raises(ValueError, match=says) as raised:
        build(encoder, **options)
    assert "\n" not in str(raised.value)
    assert ". " not in str(raised.value).replace(". Did you mean", "")


@torch.no_grad()
def test_a_saved_network_needs_no_file_of_its_encoder(tmp_path):
    encoder_file = tmp_path / "encoder.safetensors"
    encoder_state = {key: value + 1 for key, value in build().encoder.state_dict().items()}
    save_file(encoder_state, encoder_file)
    model = build(
        encoder_weights=str(encoder_file),
        encoder_output_stride=16,
        classes=3,
        decoder_channels=12,
        decoder_auxiliary=True,
        aux_params={"classes": 4},
    )
    assert all(torch.equal(value, encoder_state[key]) for key, value in model.encoder.state_dict().items())
    model = with_statistics(model)
    model.save_pretrained(tmp_path / "model")
    encoder_file.unlink()
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["encoder_weights"] is None
    assert config["_model_class"] == "DilatedFCN"
    x = images(2, 3, 65, 97)
    loaded = smp.from_pretrained(tmp_path / "model").eval()
    assert type(loaded) is DilatedFCN
    for network in ("__call__", "forward_auxiliary"):
        for ours, saved in zip(getattr(loaded, network)(x), getattr(model, network)(x), strict=True):
            torch.testing.assert_close(ours, saved)
    without = smp.from_pretrained(tmp_path / "model", decoder_auxiliary=False, strict=False).eval()
    assert without.auxiliary_decoder is None
    torch.testing.assert_close(without(x)[0], model(x)[0])


@torch.no_grad()
def test_compilation_of_both_logits_is_one_graph_for_all_sizes():
    model = with_statistics(build(decoder_auxiliary=True))
    torch._dynamo.reset()
    compiled = torch.compile(model.forward_auxiliary, fullgraph=True, dynamic=True, backend="eager")
    for shape in [(2, 3, 64, 96), (3, 3, 97, 131)]:
        torch.testing.assert_close(compiled(images(*shape)), model.forward_auxiliary(images(*shape)))
