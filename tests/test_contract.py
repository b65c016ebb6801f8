"""What SMP promises of every one of its architectures, kept by ours."""

import inspect
import json
import os
import subprocess
import sys
from itertools import islice

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from networks import STRIDES, build, images, scores_of, with_random_scores
from safetensors.torch import save_file
from torch.export import Dim
from torch.nn.modules.batchnorm import _NormBase

from fcn_smp.models.origins.encoders import ENCODERS

ARCHITECTURES = [
    name for name, cls in smp.MODEL_ARCHITECTURES_MAPPING.items() if cls.__module__.partition(".")[0] == "fcn_smp"
]

# What only an encoder that is adapted to any size, or one that holds its own shapes, may get wrong.
FURTHER = [
    ("fcn8s", "resnet18", {"output_stride": 8, "decoder_learn_upsampling": True}),
    ("fcn4s", "vgg11", {}),
    ("fcn2s", "tu-test_convnext", {}),
    ("fcn8s", "dla46_c", {}),
    ("fcn8s", "test_coatnet", {"img_size": 64}),
    ("dilatedfcn", "resnet18", {"decoder_auxiliary": True}),
    ("dilatedfcn", "tu-test_convnext", {}),
]

# The networks that come with an encoder, and that encoder or a smaller one of its kind. The first three are our own.
ORIGINS = [
    ("plainfcn", "strided_conv", {}),
    ("simplifiedunet", "single_conv", {"encoder_depth": 3}),
    ("classicunet", "double_conv", {"encoder_depth": 3}),
    ("transferfcn", "resnet18", {}),
    ("featurefcn8s", "vgg11", {}),
    ("featurefcn2s", "vgg11", {}),
]
WITHOUT_NORMS = ["simplifiedunet", "featurefcn8s", "featurefcn2s"]

# Each architecture, and each kind of encoder, at least once.
COMBINED = [("fcn32s", "test_efficientnet", {}), ("fcn16s", "test_efficientnet", {}), *FURTHER, *ORIGINS]


def seen(model):
    """Return a copy that is not new: its scores are random, and its norms have seen images."""
    model = with_random_scores(model).train()
    with torch.no_grad():
        model(images(2, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def model(arch):
    return seen(build(arch))


def test_all_twelve_are_registered():
    assert {*ARCHITECTURES} == {*STRIDES, "dilatedfcn", *(arch for arch, _, _ in ORIGINS)}
    assert {*ARCHITECTURES} == {arch for arch, _, _ in COMBINED}


def test_names_may_be_written_in_any_case(arch):
    cls = smp.MODEL_ARCHITECTURES_MAPPING[arch]
    for name in (arch, arch.upper(), cls.__name__):
        with torch.device("meta"):
            assert type(smp.create_model(name, encoder_name="test_efficientnet", encoder_weights=None)) is cls


def test_arguments_have_the_names_and_defaults_that_they_have_in_smp(arch):
    """``encoder_name`` and ``encoder_depth`` are each architecture's own choice, in SMP too.

    So is None for ``encoder_weights`` where that encoder is one that has none.
    """
    own = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[arch]).parameters
    theirs = inspect.signature(smp.Unet).parameters
    for name in ("in_channels", "classes", "activation", "aux_params"):
        assert own[name].default == theirs[name].default
    without_weights = own["encoder_name"].default in ENCODERS
    assert own["encoder_weights"].default == (None if without_weights else theirs["encoder_weights"].default)
    assert list(own)[:3] == list(theirs)[:3] == ["encoder_name", "encoder_depth", "encoder_weights"]


@pytest.mark.parametrize(("depth", "in_channels", "classes"), [(3, 1, 3), (4, 3, 1), (5, 4, 3)])
def test_it_runs_and_learns_with_any_depth_channels_and_classes(arch, depth, in_channels, classes):
    model = build(arch, encoder_depth=depth, in_channels=in_channels, classes=classes)
    model = with_random_scores(model).train()
    x = images(2, in_channels, 64, 96).requires_grad_()
    output = model(x)
    assert output.shape == (2, classes, 64, 96)
    output.square().mean().backward()
    assert x.grad.abs().amax(dim=(0, 2, 3)).all()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    assert all(score.weight.grad.any() for score in scores_of(model))
    assert len(model.encoder(x)) == len(model.encoder.out_channels) == depth + 1


@torch.no_grad()
def test_activation_is_applied_to_the_logits(arch):
    x = images(2, 3, 33, 65)
    logits = seen(build(arch, classes=4))
    applied = {
        "softmax2d": lambda y: y.softmax(1),
        "sigmoid": lambda y: y.sigmoid(),
        "argmax2d": lambda y: y.argmax(1),
        "identity": lambda y: y,
        torch.nn.Tanh: lambda y: y.tanh(),
    }
    # They are SMP's; all that an architecture does is to hand them on.
    for activation, apply in islice(applied.items(), None if arch == "fcn8s" else 1):
        model = build(arch, classes=4, activation=activation)
        model.load_state_dict(logits.state_dict())
        torch.testing.assert_close(model(x), apply(logits(x)))


@torch.no_grad()
def test_aux_params_add_labels_of_the_whole_image(arch):
    model = seen(build(arch, aux_params={"classes": 5, "dropout": 0.5, "activation": "sigmoid"}))
    x = images(2, 3, 65, 97)
    masks, labels = model(x)
    assert masks.shape == (2, 2, 65, 97)
    assert labels.shape == (2, 5)
    dropout, head = model.classification_head[2], model.classification_head[3]
    assert dropout.p == 0.5
    expected = F.linear(model.encoder(model.any_size(x))[-1].mean(dim=(2, 3)), head.weight, head.bias).sigmoid()
    torch.testing.assert_close(labels, expected)


def test_predicting_is_evaluation_without_gradients_at_any_size(model):
    for size in [(64, 96), (97, 131), (1, 1), (7, 40)]:
        x = images(1, 3, *size)
        expected = model.eval()(x)
        given = model.train().predict(x)
        assert not any(layer.training for layer in model.modules())
        assert torch.equal(given, expected)
        assert given.shape == (1, 2, *size)
        assert given.is_inference()


def test_a_frozen_encoder_stays_as_it_is_until_it_is_unfrozen(arch):
    model = with_random_scores(build(arch)).train()
    norms = [layer for layer in model.encoder.modules() if isinstance(layer, _NormBase)]
    outside = [layer for layer in model.decoder.modules() if isinstance(layer, _NormBase)]
    assert norms
    assert bool(outside) == (arch not in WITHOUT_NORMS)
    x = images(2, 3, 64, 64)

    def changed():
        """Take a step, and return which parts changed."""
        before = {key: value.clone() for key, value in model.state_dict().items()}
        optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return {
            key.partition(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])
        }

    model.freeze_encoder()
    for mode in (True, False, True):
        model.train(mode)
        assert not any(norm.training for norm in norms)
        assert all(norm.training == mode for norm in outside)
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.decoder.parameters())
    assert changed() == {"decoder"}
    model.unfreeze_encoder()
    assert all(norm.training for norm in norms)
    assert changed() == {"encoder", "decoder"}
    model.eval()
    assert not any(norm.training for norm in norms)


@pytest.mark.parametrize(
    ("arch", "encoder", "options"),
    [
        *((arch, "test_efficientnet", {}) for arch in (*STRIDES, "dilatedfcn", *(arch for arch, *_ in ORIGINS[3:]))),
        *ORIGINS[:3],
        ("fcn8s", "test_vit_relpos", {"img_size": (32, 64)}),
    ],
)
@torch.no_grad()
def test_a_saved_network_is_read_back_as_it_was(tmp_path, arch, encoder, options):
    model = seen(build(arch, encoder, **options))
    model.save_pretrained(tmp_path / "first", dataset="a_data_set", metrics={"a_metric": 0.5})
    x = images(2, 3, 65, 97)
    read = smp.from_pretrained(tmp_path / "first").eval()
    assert type(read) is type(model)
    assert torch.equal(read(x), model(x))
    assert model(x).std() > 0
    read.save_pretrained(tmp_path / "second")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second")]
    assert configs[0] == configs[1]
    assert torch.equal(type(model).from_pretrained(tmp_path / "second").eval()(x), model(x))


def test_the_card_of_a_saved_network_tells_how_to_load_it_and_no_licence(tmp_path, model):
    model.save_pretrained(tmp_path, dataset="a_data_set", metrics={"a_metric": 0.5})
    card = (tmp_path / "README.md").read_text()
    code = [line.partition("#")[0].strip() for line in card.splitlines()]
    assert code.index("import fcn_smp") + 1 == code.index("import segmentation_models_pytorch as smp")
    assert "a_data_set" in card
    assert "a_metric" in card
    assert type(model).__name__ in card
    assert "license" not in card.lower()


OFFLINE = """
import socket, sys

def refuse(*_, **__):
    raise SystemExit("A network was asked for.")

class NoSocket(socket.socket):
    __init__ = refuse

socket.socket, socket.create_connection, socket.getaddrinfo = NoSocket, refuse, refuse
import fcn_smp
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file

for folder in sys.argv[1:]:
    data = load_file(f"{folder}/data.safetensors")
    assert torch.equal(smp.from_pretrained(folder).eval()(data["x"]), data["y"])
"""


@torch.no_grad()
def test_a_saved_network_is_read_back_in_a_new_process_without_a_network(tmp_path):
    folders = []
    for arch, encoder in [("fcn8s", "resnet18"), ("fcn4s", "test_resnet.r160_in1k"), ("dilatedfcn", "test_convnext")]:
        model, x = seen(build(arch, encoder)), images(1, 3, 33, 65)
        model.save_pretrained(tmp_path / arch)
        save_file({"x": x, "y": model(x).contiguous()}, tmp_path / arch / "data.safetensors")
        folders.append(str(tmp_path / arch))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *folders],
        env={**environment, "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arch", "encoder", "options"),
    [
        *COMBINED,
        pytest.param(
            "fcn8s",
            "test_vit",
            {},
            marks=pytest.mark.xfail(strict=True, reason="forward_intermediates of timm is not TorchScript"),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*jit.(script|trace).* is deprecated")
@torch.no_grad()
def test_torchscript_gives_the_same(arch, encoder, options):
    model = seen(build(arch, encoder, **options))
    scripted = torch.jit.script(model)
    for shape in [(2, 3, 64, 96), (1, 3, 97, 131)]:
        torch.testing.assert_close(scripted(images(*shape)), model(images(*shape)))


@pytest.mark.parametrize(
    ("arch", "encoder", "options"),
    [
        *((arch, "test_efficientnet", {}) for arch in ("fcn2s", "dilatedfcn")),
        *(network for network in ORIGINS if network[0] != "featurefcn8s"),
        ("fcn8s", "test_vit", {}),
        ("fcn8s", "dla46_c", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*jit.(script|trace).* is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_a_trace_gives_the_same_for_images_of_its_size(arch, encoder, options):
    model = seen(build(arch, encoder, **options))
    traced = torch.jit.trace(model, images(1, 3, 64, 97))
    torch.testing.assert_close(traced(images(2, 3, 64, 97)), model(images(2, 3, 64, 97)))


@pytest.mark.parametrize(
    ("arch", "encoder", "options"),
    [
        ("fcn8s", "dla46_c", {}),
        ("fcn4s", "test_coatnet", {"img_size": 64}),
        ("fcn2s", "tu-test_convnext", {}),
        ("dilatedfcn", "test_resnet", {}),
        ("transferfcn", "strided_conv", {}),
        *(network for network in ORIGINS if network[0] not in ("transferfcn", "featurefcn8s")),
    ],
)
@torch.no_grad()
def test_compilation_is_one_graph_for_all_sizes(arch, encoder, options):
    model = seen(build(arch, encoder, **options))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for shape in [(2, 3, 64, 96), (3, 3, 97, 131)]:
        torch.testing.assert_close(compiled(images(*shape)), model(images(*shape)))


# The last map of an encoder must be more than one pixel high and wide: 33 for those that round up, else 64, or 65;
# dilated ones 9 or 16; for the networks of the origins, which continue an image, one more than a multiple. timm pads
# the convolutions of a dilated ConvNeXt by the size of the map, in terms that torch.export cannot hold against a Dim.
@pytest.mark.parametrize(
    ("arch", "encoder", "options", "smallest"),
    [
        ("fcn32s", "test_coatnet", {"img_size": 64}, 1),
        ("fcn16s", "dla46_c", {}, 33),
        ("fcn8s", "resnet18", {}, 33),
        ("fcn4s", "vgg11", {}, 64),
        ("fcn2s", "tu-test_convnext", {}, 65),
        ("dilatedfcn", "tu-resnet18", {"decoder_auxiliary": True}, 9),
        ("dilatedfcn", "test_efficientnet", {}, 9),
        ("dilatedfcn", "tu-test_convnext", {}, 16),
        *((*network, smallest) for network, smallest in zip(ORIGINS, [33, 9, 9, 33, 33, 33], strict=True)),
    ],
)
@torch.no_grad()
def test_an_exported_network_takes_any_batch_and_size(arch, encoder, options, smallest):
    model = seen(build(arch, encoder, **options))
    named = (arch, encoder) != ("dilatedfcn", "tu-test_convnext")
    height, width = [Dim(name, min=smallest) if named else Dim.DYNAMIC for name in ("height", "width")]
    sizes = {0: Dim("batch", min=1) if named else Dim.DYNAMIC, 2: height, 3: width}
    exported = torch.export.export(model, (images(2, 3, 128, 160),), dynamic_shapes=(sizes,)).module()
    for shape in [(3, 3, 97, 131), (1, 3, smallest, smallest)]:
        torch.testing.assert_close(exported(images(*shape)), model(images(*shape)))
