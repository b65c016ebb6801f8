"""Other people's weights: a file goes in, and what comes out computes what its own network computes."""

import argparse
import io
import json
import pickle
import sys
import warnings
from functools import cache
from itertools import product
from pathlib import Path
from unittest.mock import patch

import foreign_weights as foreign
import h5py
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import one_sentence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import narrowed
from safetensors.torch import save_file
from timm.models.vgg import ConvMlp
from torch import nn

from fcn_smp import cli
from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.errors import UserError
from fcn_smp.models.encoder import Preprocessing
from fcn_smp.models.pretrained import read_state_dict
from fcn_smp.segmenter import Segmenter
from fcn_smp.weights import fold_skip_scales, import_weights, transfer

# Architecture, and the scales of the at-once network.
NETWORKS = {
    "fcn32s": ("fcn32s", None),
    "fcn16s": ("fcn16s", None),
    "fcn8s": ("fcn8s", None),
    "fcn8s-atonce": ("fcn8s", foreign.SCALES),
}
CAFFE_FORMS = {
    "caffemodel": {},
    "caffemodel of V1": {"v1": True},
    "caffemodel of doubles": {"double": True},
    "caffemodel of V1 with doubles": {"v1": True, "double": True},
    "caffemodel in pieces, with gradients": {"records": 3, "diff": True},
}
TORCH_FORMS = {"state dict": ".pth", "checkpoint": ".pth.tar", "old pickle": ".pth", "safetensors": ".safetensors"}

Linear = nn.Linear


class Unallocated(nn.Linear):
    """Stands in for the 120 million random numbers of VGG's classifier, which SMP drops once they are drawn."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "device": "meta"})


@pytest.fixture(scope="module", autouse=True)
def vggs_are_built_fast():
    with patch.object(nn, "Linear", Unallocated):
        yield


@pytest.fixture
def narrow():
    """Make SMP's VGG16 eight times narrower, so that there is time for many networks."""
    with narrowed("vgg16", 8):
        yield


@pytest.fixture
def tiny():
    """Make SMP's VGG16 two to eight channels wide, so that there is time for many files."""
    with narrowed("vgg16", 64):
        yield


@pytest.fixture
def command(capsys, monkeypatch):
    """Run ``fcn-smp weights import`` in this process; return exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fcn-smp", "weights", "import", *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as exited:
                cli.main()
        finally:
            captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return run


@pytest.fixture
def imported(command, tmp_path):
    """Import a file by the command line and return what SMP loads from the model directory."""

    def run(path, *options):
        code, output, error = command(path, "-o", tmp_path / "model", *options)
        assert code == 0, error
        assert "smp.from_pretrained(" in output
        return smp.from_pretrained(tmp_path / "model").eval()

    return run


@pytest.fixture
def refused(command, tmp_path):
    """Expect that the command line answers with one sentence about the file, and leaves nothing."""

    def run(path, *parts, options=()):
        before = listing(tmp_path)
        with warnings.catch_warnings(record=True) as warned:
            code, output, error = command(path, "-o", tmp_path / "new/folder", *options)
        assert code == 2, error
        assert error.startswith("fcn-smp: "), error
        assert error.count("\n") == 1, error
        assert error.endswith(".\n"), error
        assert (output, warned) == ("", [])
        for part in (path, *parts):
            assert str(part) in error, error
        assert listing(tmp_path) == before

    return run


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@cache
def caffe_tensors(network, classes=3, shrink=8):
    arch, scales = NETWORKS[network]
    return foreign.random_network(arch, classes, shrink=shrink, scales=scales)


def without_scales(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("scale_")}


def write(path, tensors, form):
    """Write a file of a form; return it, and the options with which it is to be imported."""
    if form in CAFFE_FORMS:
        path = path.with_suffix(".caffemodel")
        path.write_bytes(foreign.caffemodel(tensors, **CAFFE_FORMS[form]))
        return path, []
    path = path.with_name(path.name + TORCH_FORMS[form])
    foreign.write_torch(path, without_scales(tensors), form)
    return path, ["--at-once"] if "scale_pool4.weight" in tensors else []


def images(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype) * 60


def doubled(tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


@cache
def pools_of_full_vgg16(height, width):
    # The same for all networks of one seed.
    return foreign.caffe_pools(doubled(caffe_tensors("fcn32s", shrink=1)), images(1, 3, height, width))


def assert_the_same_bits(ours, theirs):
    assert theirs.std() > 1e-3
    assert ours.shape == theirs.shape
    assert torch.equal(ours, theirs), f"they differ by up to {(ours - theirs).abs().max()}"


# --- The released networks, of the authors and of torchfcn ---


@pytest.mark.parametrize(
    ("network", "form", "size"),
    [
        ("fcn32s", "caffemodel of V1", (1, 1)),
        ("fcn8s-atonce", "safetensors", (33, 47)),
    ],
)
@torch.no_grad()
def test_a_network_of_full_width_computes_the_same_to_the_last_bit(imported, tmp_path, network, form, size):
    tensors = caffe_tensors(network, shrink=1)
    path, options = write(tmp_path / "weights", tensors, form)
    model = imported(path, *options).double()
    x = images(1, 3, *size)
    expected = foreign.caffe_network(doubled(tensors), x, NETWORKS[network][1], pools_of_full_vgg16(*size))
    assert_the_same_bits(model(x), expected)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("network", "form"),
    [
        *product(("fcn32s", "fcn16s"), ("caffemodel", "state dict")),
        *product(("fcn8s",), (*CAFFE_FORMS, *TORCH_FORMS)),
        # At-once networks have Scale layers, which are younger than V1.
        *product(("fcn8s-atonce",), (form for form in (*CAFFE_FORMS, *TORCH_FORMS) if "V1" not in form)),
    ],
)
@torch.no_grad()
def test_every_form_of_a_network_computes_the_same_to_the_last_bit(imported, tmp_path, network, form):
    tensors = caffe_tensors(network)
    path, options = write(tmp_path / "weights", tensors, form)
    model = imported(path, *options).double()
    assert type(model).__name__.lower() == NETWORKS[network][0]
    for size in [(1, 1), (33, 47)]:
        x = images(1, 3, *size)
        assert_the_same_bits(model(x), foreign.caffe_network(doubled(tensors), x, NETWORKS[network][1]))


@pytest.mark.usefixtures("narrow")
@torch.no_grad()
def test_a_real_network_is_given_and_shown_by_name(command, tmp_path):
    path, _ = write(tmp_path / "voc", caffe_tensors("fcn8s-atonce", 21), "caffemodel")
    result = import_weights(path)
    assert (result.source, result.unused) == ("an fcn8s trained at once of Caffe", [])
    code, output, _ = command(path, "-o", tmp_path / "model")
    assert code == 0
    assert f"{path} is an fcn8s trained at once of Caffe, of 21 classes." in output
    assert "Not used" not in output


@pytest.mark.usefixtures("narrow")
def test_names_in_brackets_are_printed_as_they_are(command, tmp_path):
    path = tmp_path / "fcn[bold]8s.pth"
    foreign.write_torch(path, caffe_tensors("fcn8s"))
    code, output, _ = command(path, "-o", tmp_path / "model")
    assert (code, path.name in output) == (0, True)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("form", ["caffemodel", "state dict"])
@torch.no_grad()
def test_an_fcn8s_is_scaled_only_if_it_was_trained_so(tmp_path, form):
    path, _ = write(tmp_path / "weights", caffe_tensors("fcn8s"), form)
    x = images(1, 3, 20, 30, dtype=torch.float32)
    plain = import_weights(path).segmenter.model
    scaled = import_weights(path, at_once=True).segmenter.model
    assert plain.config["decoder_skip_scales"] is None
    assert scaled.config["decoder_skip_scales"] == [0.01, 0.0001]
    assert not torch.allclose(plain(x), scaled(x))


@pytest.mark.usefixtures("narrow")
@torch.no_grad()
def test_scales_are_those_of_the_file(imported, tmp_path):
    tensors = foreign.random_network("fcn8s", shrink=8, scales=(0.37, 0.000123456))
    path, _ = write(tmp_path / "weights", tensors, "caffemodel")
    model = imported(path).double()
    x = images(1, 3, 20, 30)
    expected = foreign.caffe_network(doubled(tensors), x, (0.37, 0.000123456))
    torch.testing.assert_close(model(x), expected, rtol=1e-7, atol=1e-7 * expected.std().item())
    assert model.config["decoder_skip_scales"] == pytest.approx([0.37, 0.000123456], rel=1e-6)


@pytest.mark.usefixtures("narrow")
def test_scales_that_differ_between_channels_are_refused(refused, tmp_path):
    tensors = dict(caffe_tensors("fcn8s-atonce"))
    tensors["scale_pool3.weight"] = tensors["scale_pool3.weight"] * torch.linspace(1, 2, 32)
    refused(write(tmp_path / "weights", tensors, "caffemodel")[0], "scale_pool3")


def grouped(weight):
    """Return a deconvolution's kernel as Caffe keeps it with one group for each class."""
    return torch.stack([weight[k, k] for k in range(len(weight))])[:, None]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("form", ["caffemodel", "caffemodel of V1", "state dict"])
@pytest.mark.parametrize("network", ["fcn32s", "fcn8s"])
@torch.no_grad()
def test_deconvolutions_may_have_a_group_for_each_class(imported, tmp_path, network, form):
    tensors = caffe_tensors(network)
    given = {name: grouped(tensor) if "upscore" in name else tensor for name, tensor in tensors.items()}
    model = imported(*write(tmp_path / "weights", given, form)[:1]).double()
    assert not model.config["decoder_learn_upsampling"]
    x = images(1, 3, 20, 30)
    assert_the_same_bits(model(x), foreign.caffe_network(doubled(tensors), x))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    "form",
    [
        "caffemodel",
        "caffemodel of V1",
        "state dict",
    ],
)
@torch.no_grad()
def test_one_class_is_a_class(imported, tmp_path, form):
    # Its kernels begin with two dimensions of one, as V1's fully connected layers do.
    tensors = caffe_tensors("fcn16s", 1)
    model = imported(*write(tmp_path / "weights", tensors, form)[:1]).double()
    x = images(1, 3, 20, 30)
    assert_the_same_bits(model(x), foreign.caffe_network(doubled(tensors), x))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("one_group_each", [False, True])
@pytest.mark.parametrize(
    ("network", "learned"), [("fcn16s", "upscore2"), ("fcn8s", "upscore2"), ("fcn8s", "upscore_pool4")]
)
@torch.no_grad()
def test_a_learned_upsampling_of_skips_is_kept(imported, tmp_path, network, learned, one_group_each):
    tensors = dict(caffe_tensors(network))
    noise = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 0.1
    tensors[f"{learned}.weight"] = tensors[f"{learned}.weight"] + noise
    given = dict(tensors)
    if one_group_each:
        tensors[f"{learned}.weight"] = tensors[f"{learned}.weight"] * torch.eye(3)[:, :, None, None]
        given[f"{learned}.weight"] = grouped(tensors[f"{learned}.weight"])
    model = imported(write(tmp_path / "weights", given, "caffemodel")[0]).double()
    assert model.config["decoder_learn_upsampling"]
    x = images(1, 3, 33, 47)
    assert_the_same_bits(model(x), foreign.caffe_network(doubled(tensors), x))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("network", "last"), [("fcn32s", "upscore"), ("fcn16s", "upscore16"), ("fcn8s", "upscore8")])
def test_a_learned_last_upsampling_is_refused(refused, tmp_path, network, last):
    tensors = dict(caffe_tensors(network))
    tensors[f"{last}.weight"] = tensors[f"{last}.weight"] + 0.01
    refused(write(tmp_path / "weights", tensors, "state dict")[0], f"{last}.weight", "bilinear")


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("form", ["state dict", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_other_precisions_become_single(imported, tmp_path, dtype, form):
    tensors = {name: tensor.to(dtype) for name, tensor in caffe_tensors("fcn8s").items()}
    model = imported(write(tmp_path / "weights", tensors, form)[0])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    x = images(1, 3, 20, 30)
    single = {name: tensor.float() for name, tensor in tensors.items()}
    assert_the_same_bits(model.double()(x), foreign.caffe_network(doubled(single), x))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_the_largest_bilinear_kernel_is_known_in_half_precision(imported, tmp_path, dtype):
    """It has no exact form there: 3969 of 4096 parts take twelve bits."""
    tensors = {name: tensor.to(dtype) for name, tensor in caffe_tensors("fcn32s").items()}
    assert not torch.equal(tensors["upscore.weight"].float(), caffe_tensors("fcn32s")["upscore.weight"])
    model = imported(write(tmp_path / "weights", tensors, "state dict")[0])
    assert not model.config["decoder_learn_upsampling"]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("network", "name", "value"),
    [
        ("fcn32s", "upscore.bias", torch.ones(3)),
        ("fcn8s", "upscore2.bias", torch.ones(3)),
        ("fcn8s-atonce", "scale_pool4.bias", torch.ones(8)),
        ("fcn8s", "scale_pool4.weight", torch.full((8,), 0.5)),
        ("fcn8s", "scale_pool3.weight", torch.full((4,), 0.5)),
    ],
)
def test_what_would_change_the_answers_is_not_left_out(refused, tmp_path, network, name, value):
    tensors = {**caffe_tensors(network, shrink=64), name: value}
    refused(write(tmp_path / "weights", tensors, "caffemodel")[0], "upscore" if "upscore" in name else "scale_pool")


# --- Classes and preprocessing ---


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("network", ["fcn32s", "fcn16s", "fcn8s"])
@torch.no_grad()
def test_of_the_heads_for_sift_flow_the_semantic_one_is_taken(command, tmp_path, network):
    tensors = caffe_tensors(network, 33)
    given = {name.replace(".", "_sem.") if "score" in name else name: value for name, value in tensors.items()}
    geometric = {
        name.replace("_sem.", "_geo."): value[:3, :3] if "upscore" in name else value[:3]
        for name, value in given.items()
        if "_sem." in name
    }
    path, _ = write(tmp_path / "siftflow", given | geometric, "caffemodel")
    result = import_weights(path)
    assert sorted(result.unused) == sorted(geometric)
    classes = result.segmenter.classes
    assert len(classes) == 33
    assert [classes[k] for k in (0, 1, 15, 27, 32)] == ["awning", "balcony", "moon", "sky", "window"]
    assert result.segmenter.preprocessing == Preprocessing((114.578, 115.294, 108.353), (1, 1, 1), "BGR", (0, 255))
    x = images(1, 3, 20, 30)
    assert_the_same_bits(result.segmenter.model.double()(x), foreign.caffe_network(doubled(tensors), x))

    code, output, _ = command(path, "-o", tmp_path / "model")
    assert code == 0
    [line] = [line for line in output.splitlines() if line.startswith("Not used: ")]
    assert sorted(line.removeprefix("Not used: ").removesuffix(".").split(", ")) == sorted(geometric)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("classes", "known"),
    [
        (21, dict(enumerate(VOCSegmentation.classes))),
        (
            60,
            {**dict(enumerate(VOCSegmentation.classes)), 21: "bag", 36: "grass", 42: "curtain", 50: "sky", 59: "wood"},
        ),
        (5, {0: "class 0", 4: "class 4"}),
    ],
)
def test_classes_have_the_names_of_their_data_set(command, tmp_path, classes, known):
    path, _ = write(tmp_path / "weights", caffe_tensors("fcn16s", classes, 64), "caffemodel")
    assert command(path, "-o", tmp_path / "model")[0] == 0
    segmenter = Segmenter.load(tmp_path / "model")
    assert len(set(segmenter.classes)) == classes
    assert {k: segmenter.classes[k] for k in known} == known
    assert np.array_equal(segmenter.palette, voc_palette())


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("form", ["caffemodel", "state dict"])
def test_as_many_classes_as_sift_flow_has_are_not_therefore_its_own(tmp_path, form):
    path, _ = write(tmp_path / "weights", caffe_tensors("fcn16s", 33, 64), form)
    segmenter = import_weights(path).segmenter
    assert segmenter.preprocessing.mean == pytest.approx(foreign.CAFFE_MEAN, abs=1e-4)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("form", ["caffemodel", "checkpoint"])
@torch.no_grad()
def test_an_image_is_prepared_as_caffe_does(command, tmp_path, form):
    tensors = caffe_tensors("fcn8s")
    path, _ = write(tmp_path / "weights", tensors, form)
    assert command(path, "-o", tmp_path / "model")[0] == 0
    config = json.loads((tmp_path / "model/config.json").read_text())["_preprocessing"]
    assert config["mean"] == pytest.approx(foreign.CAFFE_MEAN, abs=1e-4)
    assert (config["std"], config["input_space"], config["input_range"]) == ([1, 1, 1], "BGR", [0, 255])

    segmenter = Segmenter.load(tmp_path / "model")
    image = np.random.default_rng(3).integers(0, 256, (41, 58, 3), dtype=np.uint8)
    seen = []
    segmenter.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    label = segmenter.predict(image)
    prepared = foreign.caffe_image(image)
    torch.testing.assert_close(seen[0], prepared, rtol=0, atol=1e-4)
    scores = foreign.caffe_network(tensors, prepared)[0]
    best = scores.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-3 * scores.std()).numpy()
    assert clear.mean() > 0.99
    assert len(np.unique(label)) > 1
    assert np.array_equal(label[clear], scores.argmax(0).numpy()[clear])


# --- Keras ---


@pytest.mark.parametrize("form", ["weights", "model", "old", "new"])
@pytest.mark.parametrize(("arch", "border"), [("fcn32s", 16), ("fcn16s", 24), ("fcn8s", 28)])
@pytest.mark.usefixtures("narrow")
@torch.no_grad()
def test_a_network_of_keras_fcn_computes_the_same_but_at_the_border(imported, tmp_path, arch, border, form):
    """Transposed convolutions of Keras fade to zero at the border, where ours go on with the last pixel.

    The first upsampling reaches one pixel of stride 16 into the map, so 24 pixels of the image with those of the next;
    the second makes that three pixels of stride 8, so 28 of the image.
    """
    layers = foreign.keras_network(arch, shrink=8)
    foreign.write_keras(tmp_path / "weights.h5", layers, form)
    model = imported(tmp_path / "weights.h5").double()
    assert type(model).__name__.lower() == arch
    x = images(1, 3, 96, 128)
    ours, theirs = model(x), foreign.keras_network_scores(layers, x)

    def inside(scores, border):
        return scores[:, :, border:-border, border:-border]

    torch.testing.assert_close(inside(ours, border), inside(theirs, border), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(inside(ours, border - 1), inside(theirs, border - 1), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("narrow")
@torch.no_grad()
def test_an_upsampling_that_keras_learned_is_kept(imported, tmp_path):
    layers = foreign.keras_network("fcn16s", shrink=8)
    # Not symmetric, so that rows and columns, and what comes in and goes out, cannot be mixed up.
    noise = np.random.default_rng(4).standard_normal((4, 4, 3, 3)).astype(np.float32)
    layers["score7_upsample"]["kernel"] = layers["score7_upsample"]["kernel"] + noise / 10
    foreign.write_keras(tmp_path / "weights.h5", layers)
    model = imported(tmp_path / "weights.h5").double()
    assert model.config["decoder_learn_upsampling"]
    x = images(1, 3, 64, 96)
    ours, theirs = model(x)[:, :, 24:-24, 24:-24], foreign.keras_network_scores(layers, x)[:, :, 24:-24, 24:-24]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("tiny")
def test_a_network_of_keras_comes_with_its_settings(tmp_path):
    foreign.write_keras(tmp_path / "weights.h5", foreign.keras_network("fcn8s", 21, shrink=64), "model")
    result = import_weights(tmp_path / "weights.h5")
    segmenter = result.segmenter
    assert result.source == "an fcn8s of Keras"
    assert segmenter.preprocessing == Preprocessing((103.939, 116.779, 123.68), (1, 1, 1), "BGR", (0, 255))
    assert segmenter.classes == tuple(VOCSegmentation.classes)
    config = segmenter.model.config
    assert (config["decoder_alignment"], config["decoder_dropout"]) == ("same", 0.2)
    assert [module.p for module in segmenter.model.modules() if isinstance(module, nn.Dropout)] == [0.2, 0.2]


def classifier_of_keras(classes=5, hidden=8):
    """Return a VGG16 by the names of Keras' applications."""
    layers = foreign.keras_network("fcn32s", hidden=hidden)
    rng = np.random.default_rng(5)
    for name, width, out in [("fc1", 25088, hidden), ("fc2", hidden, hidden), ("predictions", hidden, classes)]:
        kernel = rng.standard_normal((width, out)) * (2 / width) ** 0.5
        layers[name] = {"kernel": kernel.astype(np.float32), "bias": rng.standard_normal(out).astype(np.float32)}
    return {name: arrays for name, arrays in layers.items() if name not in ("conv6", "conv7", "score7", "fcn32")}


@pytest.mark.parametrize("form", ["weights", "old"])
@torch.no_grad()
def test_a_classifier_of_keras_becomes_convolutional(imported, tmp_path, form):
    layers = classifier_of_keras()
    foreign.write_keras(tmp_path / "vgg16.h5", layers, form)
    model = imported(tmp_path / "vgg16.h5")
    assert type(model).__name__ == "FCN32s"
    x = images(1, 3, 64, 32, dtype=torch.float32)
    torch.testing.assert_close(model.encoder(x)[-1], foreign.keras_features(layers, x)[-1], rtol=1e-4, atol=1e-3)

    # Keras flattens the last map row by row, with its channels innermost.
    pool5 = torch.rand(512, 7, 7, generator=torch.Generator().manual_seed(6))
    flat = pool5.permute(1, 2, 0).flatten().numpy()
    hidden = np.maximum(flat @ layers["fc1"]["kernel"] + layers["fc1"]["bias"], 0)
    hidden = np.maximum(hidden @ layers["fc2"]["kernel"] + layers["fc2"]["bias"], 0)
    logits = hidden @ layers["predictions"]["kernel"] + layers["predictions"]["bias"]
    scores = model.decoder.score(model.decoder.hidden(pool5[None]))
    assert scores.shape == (1, 5, 7, 7)
    torch.testing.assert_close(scores[0, :, 3, 3], torch.from_numpy(logits), rtol=1e-4, atol=1e-4)


# --- Classifiers of the VGG family ---


def classifier_of_caffe(classes=5, hidden=8):
    """Return a VGG16 with InnerProduct layers."""
    tensors = {name: value for name, value in caffe_tensors("fcn32s", shrink=1).items() if name.startswith("conv")}
    generator = torch.Generator().manual_seed(7)
    for name, out, width in [("fc6", hidden, 25088), ("fc7", hidden, hidden), ("fc8", classes, hidden)]:
        tensors[f"{name}.weight"] = torch.randn(out, width, generator=generator) * (2 / width) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(out, generator=generator)
    return tensors


@pytest.mark.parametrize(("form", "arch"), [("caffemodel", "fcn8s"), ("caffemodel of V1", "fcn32s")])
@torch.no_grad()
def test_a_classifier_of_caffe_becomes_convolutional(imported, tmp_path, form, arch):
    tensors = classifier_of_caffe()
    path, _ = write(tmp_path / "vgg16", tensors, form)
    model = imported(path, "--arch", arch)
    assert type(model).__name__.lower() == arch
    convs = [module for module in model.encoder.modules() if isinstance(module, nn.Conv2d)]
    names = [name.removesuffix(".weight") for name in tensors if name.startswith("conv") and name.endswith(".weight")]
    for conv, name in zip(convs, names, strict=True):
        assert torch.equal(conv.weight, tensors[f"{name}.weight"])
        assert torch.equal(conv.bias, tensors[f"{name}.bias"])

    pool5 = torch.rand(1, 512, 7, 7, generator=torch.Generator().manual_seed(6))
    logits = pool5.flatten(1)
    for name in ("fc6", "fc7", "fc8"):
        logits = F.linear(logits, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
        logits = logits if name == "fc8" else F.relu(logits)
    scores = model.decoder.score(model.decoder.hidden(pool5))
    torch.testing.assert_close(scores, logits[:, :, None, None], rtol=1e-4, atol=1e-4)
    for score in model.decoder.skip_scores:
        assert not score.weight.any()


@torch.no_grad()
def randomise(network):
    """Draw weights that keep the size of what passes, and statistics that differ in every channel."""
    generator = torch.Generator().manual_seed(8)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | Linear):
            layer.weight.normal_(std=(2 / layer.weight[0].numel()) ** 0.5, generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.uniform_(0.5, 1.5, generator=generator)
            layer.running_mean.normal_(std=0.1, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
        if getattr(layer, "bias", None) is not None:
            layer.bias.normal_(std=0.1, generator=generator)
    return network.eval()


def classifier_of_torchvision(name, classes=5, hidden=8):
    network = getattr(torchvision.models, name)(weights=None, init_weights=False)
    network.classifier = nn.Sequential(
        Linear(25088, hidden),
        nn.ReLU(),
        nn.Dropout(),
        Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(),
        Linear(hidden, classes),
    )
    return randomise(network)


def classifier_of_timm(name, classes=5, hidden=8):
    network = timm.create_model(name, mlp_ratio=0.001)
    network.pre_logits = ConvMlp(512, hidden, 7)
    network.head.fc = Linear(hidden, classes)
    return randomise(network)


@pytest.mark.parametrize(
    ("library", "name", "file"),
    [
        (classifier_of_torchvision, "vgg11", "vgg11.pth"),
        (classifier_of_torchvision, "vgg11_bn", "vgg11_bn.safetensors"),
        (classifier_of_timm, "vgg11", "vgg11.safetensors"),
        (classifier_of_timm, "vgg11_bn", "vgg11_bn.pth"),
    ],
)
@torch.no_grad()
def test_a_classifier_becomes_convolutional(imported, tmp_path, library, name, file):
    network = library(name)
    form = "safetensors" if file.endswith("safetensors") else "state dict"
    foreign.write_torch(tmp_path / file, network.state_dict(), form)
    model = imported(tmp_path / file)
    assert (type(model).__name__, model.config["encoder_name"]) == ("FCN32s", name)
    maps = []
    model.decoder.score.register_forward_hook(lambda *arguments: maps.append(arguments[-1]))
    x = images(1, 3, 224, 224, dtype=torch.float32) / 60
    model(x)
    [scores] = maps
    assert scores.shape == (1, 5, 7, 7)
    expected = network(x)
    # Only there does the window of seven pixels see no padding.
    torch.testing.assert_close(scores[:, :, 3, 3], expected, rtol=1e-3, atol=1e-4 * expected.std().item())


@pytest.mark.parametrize("name", ["vgg13", "vgg13_bn", "vgg16", "vgg19_bn"])
def test_the_depth_of_a_classifier_is_found(tmp_path, name):
    foreign.write_torch(tmp_path / "vgg.pth", foreign.hollow(classifier_of_torchvision(name).state_dict()))
    result = import_weights(tmp_path / "vgg.pth", arch="fcn16s")
    assert result.segmenter.model.config["encoder_name"] == name
    assert result.source == f"a {name} classifier of torchvision or timm"
    assert result.unused == []
    assert result.segmenter.preprocessing == Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_classifier_may_have_more_classes_than_a_palette_has_colours(command, tmp_path):
    foreign.write_torch(tmp_path / "vgg.pth", foreign.hollow(classifier_of_torchvision("vgg11", 300).state_dict()))
    assert command(tmp_path / "vgg.pth", "-o", tmp_path / "model")[0] == 0
    segmenter = Segmenter.load(tmp_path / "model")
    assert len(segmenter.classes) == 300
    with one_sentence("300 classes", "255"):
        segmenter.predict(np.zeros((4, 4, 3), np.uint8))


def test_a_file_is_found_by_any_name_from_where_one_stands(tmp_path, monkeypatch):
    foreign.write_torch(
        tmp_path / "vgg11_from_torchvision", foreign.hollow(classifier_of_torchvision("vgg11").state_dict())
    )
    monkeypatch.chdir(tmp_path)
    assert import_weights("vgg11_from_torchvision").segmenter.model.config["encoder_name"] == "vgg11"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("form", "name"),
    [(form, f"weights{suffix}") for form in TORCH_FORMS for suffix in ("", ".pth", ".safetensors")],
)
def test_what_a_file_is_does_not_depend_on_its_name(tmp_path, form, name):
    path, _ = write(tmp_path / "original", caffe_tensors("fcn16s", shrink=64), form)
    path = path.rename(tmp_path / name)
    assert import_weights(path).source == "an fcn16s of torchfcn"


# --- Checkpoints ---


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_a_training_checkpoint_are_found(tmp_path, key, prefix):
    """As torchvision's script and many others write it, from one device or from several."""
    weights = {"layer.weight": torch.randn(2, 3), "layer.bias": torch.randn(2)}
    checkpoint = {key: {prefix + name: tensor for name, tensor in weights.items()}, "epoch": 3}
    torch.save({**checkpoint, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}, tmp_path / "c.pth")
    read = read_state_dict(tmp_path / "c.pth")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)


# --- torchvision's dilated networks ---


@cache
def dilated(depth, auxiliary=True):
    network = getattr(torchvision.models.segmentation, f"fcn_resnet{depth}")
    return network(weights=None, weights_backbone=None, num_classes=4, aux_loss=auxiliary)


def test_what_a_dilated_network_has_beside_its_own_is_listed(command, tmp_path):
    state = {**dilated(50, auxiliary=False).state_dict(), "backbone.fc.weight": torch.zeros(4, 2048)}
    foreign.write_torch(tmp_path / "fcn.pth", state)
    code, output, _ = command(tmp_path / "fcn.pth", "-o", tmp_path / "model")
    assert (code, "Not used: backbone.fc.weight." in output) == (0, True)


def test_weights_that_are_no_numbers_are_refused(refused, tmp_path):
    state = {**dilated(50, auxiliary=False).state_dict(), "classifier.4.bias": torch.tensor([0, 1, torch.nan, 2])}
    foreign.write_torch(tmp_path / "fcn.pth", state)
    refused(tmp_path / "fcn.pth", "NaN")


@torch.no_grad()
def test_torchvisions_dilated_network_computes_the_same_to_the_last_bit(imported, command, tmp_path):
    theirs = randomise(dilated(50))
    foreign.write_torch(tmp_path / "fcn_resnet50.pth", theirs.state_dict())
    ours = imported(tmp_path / "fcn_resnet50.pth").double()
    x = images(1, 3, 33, 47) / 60
    expected = theirs.double()(x)
    logits, auxiliary = ours.forward_auxiliary(x)
    assert_the_same_bits(logits, expected["out"])
    assert_the_same_bits(auxiliary, expected["aux"])
    config = json.loads((tmp_path / "model/config.json").read_text())["_preprocessing"]
    assert config == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "input_space": "RGB",
        "input_range": [0, 1],
        "resize": None,
    }


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("depth", [50, 101])
def test_torchvisions_dilated_network_is_known_by_its_layers(tmp_path, depth, auxiliary):
    with torch.device("meta"):
        state = dilated.__wrapped__(depth, auxiliary).state_dict()
    foreign.write_torch(tmp_path / "fcn.pth", foreign.hollow(state))
    result = import_weights(tmp_path / "fcn.pth")
    assert result.source == f"torchvision's fcn_resnet{depth}"
    assert result.segmenter.model.config["encoder_name"] == f"tu-resnet{depth}"
    assert result.segmenter.model.config["decoder_auxiliary"] is auxiliary
    assert len(result.segmenter.model.state_dict()) == len(state)


@pytest.mark.parametrize("options", [["--arch", "fcn8s"], ["--at-once"]])
def test_torchvisions_dilated_network_has_no_options(refused, tmp_path, options):
    with torch.device("meta"):
        state = dilated.__wrapped__(50).state_dict()
    foreign.write_torch(tmp_path / "fcn.pth", foreign.hollow(state))
    refused(tmp_path / "fcn.pth", options=options)


# --- Our own networks ---


def own_network(arch, classes=3, encoder="tu-test_resnet", **options):
    torch.manual_seed(9)
    model = smp.create_model(
        arch, encoder_name=encoder, encoder_weights=None, decoder_hidden_channels=8, classes=classes, **options
    )
    for score in (model.decoder.score, *model.decoder.skip_scores):
        nn.init.normal_(score.weight)
        nn.init.normal_(score.bias)
    return model.eval()


def save(model, folder):
    classes = [f"thing {k}" for k in range(model.config["classes"])]
    palette = np.arange(256 * 3, dtype=np.uint8).reshape(256, 3)
    Segmenter(model, Preprocessing((1, 2, 3), (4, 5, 6), "BGR", (0, 255)), classes, palette).save(folder)
    return folder


@torch.no_grad()
def test_a_finer_network_begins_with_the_answers_of_the_coarser_one(imported, command, tmp_path):
    coarse = own_network("fcn32s")
    save(coarse, tmp_path / "run/model")
    middle = imported(tmp_path / "run", "--arch", "fcn16s")
    code, output, _ = command(tmp_path / "model", "-o", tmp_path / "finer", "--arch", "fcn8s")
    assert code == 0
    assert "Not used" not in output
    fine = smp.from_pretrained(tmp_path / "finer").eval()
    x = images(2, 3, 96, 64, dtype=torch.float32) / 60
    scores = coarse.decoder.score(coarse.decoder.hidden(coarse.encoder(x)[-1]))

    def upsampled(scores, *factors):
        for factor in factors:
            scores = F.interpolate(scores, scale_factor=factor, mode="bilinear")
        return scores

    torch.testing.assert_close(coarse(x), upsampled(scores, 32))
    torch.testing.assert_close(middle(x), upsampled(scores, 2, 16))
    torch.testing.assert_close(fine(x), upsampled(scores, 2, 2, 8))
    for model, skips in [(middle, 1), (fine, 2)]:
        assert len(model.decoder.skip_scores) == skips
        for parameter in model.decoder.skip_scores.parameters():
            assert not parameter.any()
        for name, value in coarse.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name

    segmenter = Segmenter.load(tmp_path / "finer")
    assert segmenter.classes == ("thing 0", "thing 1", "thing 2")
    assert segmenter.preprocessing == Preprocessing([1, 2, 3], [4, 5, 6], "BGR", [0, 255])
    assert segmenter.palette[:3].ravel().tolist() == list(range(9))


@torch.no_grad()
def test_scores_and_learned_upsamplings_of_skips_are_transferred(tmp_path):
    source = own_network("fcn16s", decoder_learn_upsampling=True)
    nn.init.normal_(source.decoder.fusions[0].upsample.weight)
    result = import_weights(save(source, tmp_path / "model"), arch="fcn4s")
    model = result.segmenter.model
    assert result.unused == []
    for name in ("skip_scores.0.weight", "skip_scores.0.bias", "fusions.0.upsample.weight"):
        assert torch.equal(model.decoder.get_parameter(name), source.decoder.get_parameter(name))
    assert not model.decoder.skip_scores[1].weight.any()
    assert torch.equal(model.decoder.fusions[1].upsample.weight, foreign.bilinear(3, 4))


@torch.no_grad()
def test_scales_are_folded_before_the_scores_are_transferred(tmp_path):
    source = own_network("fcn8s", decoder_skip_scales=(0.5, 0.25))
    model = import_weights(save(source, tmp_path / "model"), arch="fcn4s").segmenter.model
    for k, scale in enumerate((0.5, 0.25)):
        score, scaled = model.decoder.skip_scores[k], source.decoder.skip_scores[k]
        assert torch.equal(score.weight, scaled.weight * scale)
        assert torch.equal(score.bias, scaled.bias)
    assert model.decoder.skip_scales == [1, 1, 1]


def test_a_coarser_network_leaves_the_skips_out(tmp_path):
    result = import_weights(save(own_network("fcn8s"), tmp_path / "model"), arch="fcn16s")
    assert result.unused == ["decoder.skip_scores.1.bias", "decoder.skip_scores.1.weight"]


def test_a_network_of_our_own_may_stay_what_it_is(tmp_path):
    source = own_network("fcn8s")
    result = import_weights(save(source, tmp_path / "model"))
    assert (result.source, result.unused) == ("an fcn8s of fcn_smp", [])
    for name, value in result.segmenter.model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_other_classes_keep_the_scores_of_the_target():
    source, target = own_network("fcn16s"), own_network("fcn8s", 7)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    fresh = transfer(source, target)
    assert sorted(fresh) == sorted(
        f"decoder.{score}.{kind}"
        for score in ("score", "skip_scores.0", "skip_scores.1")
        for kind in ("weight", "bias")
    )
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name] if name in fresh else source.state_dict()[name]), name


def test_other_encoders_have_nothing_to_transfer():
    source, target = own_network("fcn32s"), own_network("fcn16s", encoder="resnet18")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=r"^The encoders of .*test_resnet and .*resnet18 differ.*'tu-test_resnet'\.$"):
        transfer(source, target)
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name]), name


@torch.no_grad()
def test_folded_scales_change_nothing_but_rounding(tmp_path):
    model = own_network("fcn8s", decoder_skip_scales=(0.01, 0.0001)).double()
    x = images(1, 3, 65, 97)
    expected = model(x)
    biases = [score.bias.clone() for score in model.decoder.skip_scores]
    fold_skip_scales(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert model.decoder.skip_scales == [1, 1]
    assert all(torch.equal(score.bias, bias) for score, bias in zip(model.decoder.skip_scores, biases, strict=True))
    assert model.config["decoder_skip_scales"] is None
    model.save_pretrained(tmp_path)
    loaded = smp.from_pretrained(tmp_path).eval()
    assert loaded.decoder.skip_scales == [1, 1]
    assert torch.equal(loaded.double()(x), model.float().double()(x))


@pytest.mark.usefixtures("narrow")
@torch.no_grad()
def test_an_at_once_network_is_folded_unless_its_scales_are_to_be_kept(imported, command, tmp_path):
    path, options = write(tmp_path / "weights", caffe_tensors("fcn8s-atonce"), "state dict")
    model = imported(path, *options).double()
    assert command(tmp_path / "model", "-o", tmp_path / "folded")[0] == 0
    assert command(tmp_path / "model", "-o", tmp_path / "kept", "--at-once")[0] == 0
    folded, kept = (smp.from_pretrained(tmp_path / name).eval().double() for name in ("folded", "kept"))
    assert folded.config["decoder_skip_scales"] is None
    assert kept.config["decoder_skip_scales"] == [0.01, 0.0001]
    x = images(1, 3, 33, 47)
    expected = model(x)
    assert torch.equal(kept(x), expected)
    # Folded in single precision.
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5 * expected.std().item())


@pytest.mark.parametrize(
    ("model", "options", "parts"),
    [
        (lambda: own_network("fcn32s"), ["--at-once"], ["--at-once"]),
        (lambda: own_network("fcn8s"), ["--at-once"], ["--at-once"]),
        (lambda: own_network("fcn8s"), ["--arch", "fcn64s"], ["fcn64s", "fcn32s, fcn16s, fcn8s, fcn4s, fcn2s"]),
        (lambda: own_network("fcn8s", decoder_skip_scales=[0.1, 0.2]), ["--at-once", "--arch", "fcn4s"], ["fcn4s"]),
        (lambda: smp.Unet("resnet18", encoder_weights=None, classes=3), [], ["unet", "fcn8s"]),
    ],
)
def test_our_own_networks_refuse_what_they_cannot_become(refused, tmp_path, model, options, parts):
    refused(save(model(), tmp_path / "model"), *parts, options=options)


# --- What is wrong with a file ---


def tiny_file(path, form, **options):
    """Write a network of a few channels in any form."""
    if form == "h5":
        path = path.with_suffix(".h5")
        foreign.write_keras(path, foreign.keras_network("fcn8s", 2, hidden=2, shrink=64, **options))
        return path
    return write(path, foreign.random_network("fcn8s", 2, hidden=2, shrink=64, **options), form)[0]


ANY_FORM = [*CAFFE_FORMS, *TORCH_FORMS, "h5"]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("form", ANY_FORM)
def test_the_small_files_that_are_damaged_below_are_whole(tmp_path, form):
    assert import_weights(tiny_file(tmp_path / "weights", form)).unused == []


SMALL_FORMS = ["caffemodel", "caffemodel of V1", "state dict", "old pickle", "safetensors", "h5"]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("form", SMALL_FORMS)
def test_a_file_is_refused_wherever_it_is_cut_off(tmp_path, form):
    path = tiny_file(tmp_path / "weights", form)
    content = path.read_bytes()
    if "caffemodel" in form:
        content = content[: ends_of_fields(content)[-1]]
    # Near both ends, where headers and directories are, at every few bytes; and throughout.
    near = range(1, 80, 3)
    for cut in sorted({*near, *(len(content) - k for k in near), *range(97, len(content), len(content) // 40)}):
        path.write_bytes(content[:cut])
        with one_sentence(path):
            import_weights(path)


def ends_of_fields(content):
    """Return where the fields of a caffemodel end, up to the last layer that has weights."""

    def varint(position):
        number = shift = 0
        while True:
            number |= (content[position] & 127) << shift
            position, shift = position + 1, shift + 7
            if content[position - 1] < 128:
                return number, position

    ends = [0]
    while ends[-1] < len(content):
        tag, position = varint(ends[-1])
        value, position = varint(position)
        ends.append(position + value if tag & 7 == 2 else position)
    # Behind it come a layer without weights and a field that is not known.
    return ends[1:-2]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("form", ["caffemodel", "caffemodel of V1"])
def test_a_caffemodel_is_refused_if_it_ends_between_two_layers(tmp_path, form):
    path = tiny_file(tmp_path / "weights", form)
    content = path.read_bytes()
    for cut in ends_of_fields(content)[:-1]:
        path.write_bytes(content[:cut])
        with one_sentence(path):
            import_weights(path)


def message_about(path):
    try:
        import_weights(path)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "form",
    list(SMALL_FORMS),
)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), near_end=st.booleans(), damage=st.binary(min_size=1, max_size=4))
def test_damaged_bytes_are_never_answered_with_a_traceback(tmp_path, form, place, near_end, damage):
    path = next(tmp_path.glob("weights.*"), None) or tiny_file(tmp_path / "weights", form)
    content = path.read_bytes()
    reach = min(len(content), 4096)
    position = len(content) - 1 - int(place * reach) if near_end else int(place * len(content))
    damaged = tmp_path / f"damaged{path.suffix}"
    damaged.write_bytes(content[:position] + damage + content[position + len(damage) :])
    message = message_about(damaged)
    assert message is None or (str(damaged) in message and "\n" not in message), message


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(foreign.chunk(5, b"\0" * 7), id="half a float"),
        pytest.param(foreign.chunk(8, b"\0" * 9), id="half a double"),
        pytest.param(foreign.chunk(5, b"\0" * 4) + foreign.chunk(7, b""), id="a shape of no dimensions"),
        pytest.param(
            foreign.chunk(5, b"\0" * 8) + foreign.chunk(7, foreign.chunk(1, 2 * (b"\xff" * 9 + b"\1") + b"\2")),
            id="negative sizes",
        ),
        pytest.param(
            foreign.chunk(5, b"\0" * 8) + foreign.integer(1, 2**64 - 1) + foreign.integer(2, 2**64 - 2),
            id="negative sizes of V1",
        ),
        pytest.param(foreign.chunk(5, b"\0" * 4), id="no shape"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_an_odd_blob_is_refused(tmp_path, blob):
    path = tmp_path / "weights.caffemodel"
    for layer in ("conv1_1", "fc6", "score_fr", "upscore2", "scale_pool4"):
        tensors = dict(caffe_tensors("fcn8s-atonce", 2, 64))
        del tensors[f"{layer}.weight"]
        odd = foreign.chunk(100, foreign.chunk(1, layer.encode()) + foreign.chunk(7, blob))
        path.write_bytes(foreign.caffemodel(tensors) + odd)
        with one_sentence(path):
            import_weights(path)


REQUIRED = [
    *(f"conv{block}_{k}" for block, count in enumerate(foreign.BLOCKS, 1) for k in range(1, count + 1)),
    "fc6",
    "fc7",
    "score_fr",
    "score_pool4",
]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("layer", REQUIRED)
def test_a_missing_layer_or_bias_is_named(refused, tmp_path, layer):
    tensors = caffe_tensors("fcn8s", shrink=64)
    for gone in ([f"{layer}.bias"], [f"{layer}.weight", f"{layer}.bias"]):
        given = {name: value for name, value in tensors.items() if name not in gone}
        for form in ("caffemodel", "state dict"):
            path, _ = write(tmp_path / f"{form} without {len(gone)}", given, form)
            refused(path, layer)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("network", ["fcn16s", "fcn8s"])
def test_a_network_without_its_skips_is_not_taken_for_a_coarser_one(refused, tmp_path, network):
    gone = "score_pool4" if network == "fcn16s" else "score_pool3"
    given = {name: value for name, value in caffe_tensors(network, shrink=64).items() if not name.startswith(gone)}
    refused(write(tmp_path / "weights", given, "state dict")[0], gone)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv1_1.weight", (2, 4, 3, 3)),
        ("conv1_1.weight", (2, 3, 5, 5)),
        ("conv2_1.bias", (3,)),
        ("conv5_3.weight", (8, 8, 9)),
        ("fc6.weight", (8, 8, 5, 5)),
        ("fc6.weight", (8, 9, 7, 7)),
        ("fc6.weight", (0, 8, 7, 7)),
        ("fc6.weight", ()),
        ("fc6.bias", (9,)),
        ("fc7.weight", (8, 9, 1, 1)),
        ("fc7.weight", (8, 9)),
        ("score_fr.weight", (3, 9, 1, 1)),
        ("score_fr.weight", (4, 8, 1, 1)),
        ("score_fr.weight", (0, 8, 1, 1)),
        ("score_fr.weight", ()),
        ("score_fr.bias", ()),
        ("score_pool4.weight", (4, 8, 1, 1)),
        ("score_pool3.weight", (3, 8, 1, 1)),
        ("upscore2.weight", (3, 3, 2, 2)),
        ("upscore2.weight", (3, 1)),
        ("upscore2.weight", ()),
        ("upscore_pool4.weight", (4, 4, 4, 4)),
        ("upscore8.weight", (3, 3, 16, 15)),
        ("upscore8.weight", (3, 3, 32, 32)),
        ("upscore8.weight", (3, 1, 32, 32)),
    ],
)
def test_a_wrong_shape_is_named(refused, tmp_path, name, shape):
    given = {**caffe_tensors("fcn8s", shrink=64), name: torch.zeros(shape)}
    path, _ = write(tmp_path / "weights", given, "state dict")
    # One number out of place may make another tensor wrong.
    refused(path, "shape", *([name] if len(shape) > 1 and 0 not in shape and shape[0] != 4 else []))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "damage",
    [
        lambda layers: layers.pop("block3_conv2"),
        lambda layers: layers["conv7"].pop("bias"),
        lambda layers: layers["score4"].update(kernel=np.zeros((1, 1, 9, 2), np.float32)),
        lambda layers: layers["conv6"].update(kernel=np.zeros((5, 5, 8, 2), np.float32)),
        lambda layers: layers["conv6"].update(kernel=np.zeros((8, 5, 2), np.float32)),
        lambda layers: layers.clear(),
    ],
)
def test_a_network_of_keras_that_does_not_fit_is_refused(refused, tmp_path, damage):
    layers = foreign.keras_network("fcn8s", 2, hidden=2, shrink=64)
    damage(layers)
    foreign.write_keras(tmp_path / "weights.h5", layers)
    refused(tmp_path / "weights.h5")


def spoilt(state, name, shape):
    """Return the state without a tensor, or with one of another shape."""
    others = {key: tensor for key, tensor in state.items() if key != name}
    return others if shape is None else {**others, name: torch.zeros(()).expand(shape)}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("classifier.0.weight", (8, 512)),
        ("classifier.0.weight", (9, 25088)),
        ("classifier.0.weight", None),
        ("classifier.0.bias", None),
        ("classifier.3.weight", (8, 9)),
        ("classifier.3.weight", ()),
        ("classifier.3.bias", (9,)),
        ("classifier.3.bias", None),
        ("classifier.6.weight", (5, 9)),
        ("classifier.6.weight", (0, 8)),
        ("classifier.6.weight", None),
        ("classifier.6.bias", (4,)),
        ("classifier.6.bias", None),
        ("features.3.weight", (128, 64, 5, 5)),
        ("features.3.weight", None),
        ("features.3.bias", None),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(refused, tmp_path, name, shape):
    state = foreign.hollow(classifier_of_torchvision("vgg11").state_dict())
    foreign.write_torch(tmp_path / "vgg.pth", spoilt(state, name, shape))
    refused(tmp_path / "vgg.pth")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("backbone.layer4.2.bn3.running_var", None),
        ("backbone.layer1.0.conv1.weight", (64, 64, 3, 3)),
        ("classifier.4.weight", None),
        ("classifier.4.weight", ()),
        ("classifier.4.weight", (0, 512, 1, 1)),
        ("classifier.4.bias", (5,)),
        ("aux_classifier.4.bias", None),
    ],
)
def test_a_dilated_network_that_does_not_fit_is_refused(refused, tmp_path, name, shape):
    with torch.device("meta"):
        state = foreign.hollow(dilated.__wrapped__(50).state_dict())
    foreign.write_torch(tmp_path / "fcn.pth", spoilt(state, name, shape))
    refused(tmp_path / "fcn.pth")


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    ("dump", "load"),
    [
        (torch.save, lambda path: torch.load(io.BytesIO(path.read_bytes()), weights_only=False)),
        (
            lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
            lambda path: torch.load(io.BytesIO(path.read_bytes()), weights_only=False),
        ),
        (
            lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
            lambda path: pickle.loads(path.read_bytes()),
        ),
        (
            lambda content, path: path.write_bytes(pickle.dumps(content, protocol=0)),
            lambda path: pickle.loads(path.read_bytes()),
        ),
    ],
    ids=["zip", "old", "pickle", "pickle of letters"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".caffemodel", ".h5"])
def test_code_in_a_file_is_not_run(refused, tmp_path, dump, load, suffix):
    marker = tmp_path / "executed"
    path = tmp_path / f"weights{suffix}"
    dump({"conv1_1.weight": Malicious(marker)}, path)
    refused(path)
    assert not marker.exists()
    load(path)
    assert marker.exists()


def save_tensors(path, content):
    torch.save(content, path)


@pytest.mark.parametrize(
    ("name", "write_it"),
    [
        ("empty.pth", lambda path: path.write_bytes(b"")),
        ("empty.caffemodel", lambda path: path.write_bytes(b"")),
        ("empty.safetensors", lambda path: path.write_bytes(b"")),
        ("empty.h5", lambda path: path.write_bytes(b"")),
        ("note.txt", lambda path: path.write_text("no weights\n")),
        ("net.prototxt", lambda path: path.write_text('name: "FCN"\nlayer { name: "data" type: "Python" }\n')),
        ("ends in a brace", lambda path: path.write_text("12345678{")),
        ("page.html", lambda path: path.write_text("<!DOCTYPE html><html>404</html>\n" * 9)),
        ("noise", lambda path: path.write_bytes(np.random.default_rng(0).bytes(999))),
        ("no tensors.pth", lambda path: save_tensors(path, {})),
        ("list.pth", lambda path: save_tensors(path, [torch.zeros(2)])),
        ("tensor.pth", lambda path: save_tensors(path, torch.zeros(2))),
        ("numbered.pth", lambda path: save_tensors(path, {0: torch.zeros(2), 1: torch.zeros(2)})),
        ("text.pth", lambda path: save_tensors(path, {"conv1_1.weight": "zeros"})),
        ("other.pth", lambda path: save_tensors(path, {"layer1.0.conv1.weight": torch.zeros(2)})),
        ("other.safetensors", lambda path: save_file({"layer1.0.conv1.weight": torch.zeros(2)}, path)),
        ("no weights.caffemodel", lambda path: path.write_bytes(foreign.caffemodel({}))),
        ("unknown.caffemodel", lambda path: path.write_bytes(foreign.caffemodel({"ip.weight": torch.zeros(2, 2)}))),
        ("no groups.h5", lambda path: h5py.File(path, "w").close()),
        ("missing.pth", lambda path: None),
    ],
)
def test_what_is_no_network_is_refused(refused, tmp_path, name, write_it):
    write_it(tmp_path / name)
    refused(tmp_path / name)


def test_a_directory_without_a_model_is_refused(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "config.json")


@pytest.mark.parametrize("upsampling", [True, False])
def test_a_network_on_alexnet_is_refused(refused, tmp_path, upsampling):
    shapes = {
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
        "fc6": (8, 256, 6, 6),
        "fc7": (8, 8, 1, 1),
        "score_fr": (21, 8, 1, 1),
    }
    tensors = {}
    for name, shape in shapes.items():
        tensors |= {f"{name}.weight": torch.zeros(shape), f"{name}.bias": torch.zeros(shape[0])}
    if upsampling:
        tensors["upscore.weight"] = foreign.bilinear(21, 63)
    refused(write(tmp_path / "fcn-alexnet-pascal", tensors, "caffemodel")[0])


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("form", ["caffemodel", "state dict", "h5"])
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--arch", "fcn32s"], ["fcn8s", "--arch fcn32s"]),
        (["--arch", "fcn4s"], ["fcn8s", "--arch fcn4s"]),
        (["--arch", "fcn64s"], ["fcn64s"]),
    ],
)
def test_a_network_that_a_file_does_not_hold_is_refused(refused, tmp_path, form, options, parts):
    refused(tiny_file(tmp_path / "weights", form), *parts, options=options)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("network", ["fcn32s", "fcn16s"])
@pytest.mark.parametrize("form", ["caffemodel", "state dict"])
def test_only_an_fcn8s_is_trained_at_once(refused, tmp_path, network, form):
    path, _ = write(tmp_path / "weights", caffe_tensors(network, shrink=64), form)
    refused(path, network, "fcn8s", "at once", options=["--at-once"])


def write_classifier(path, kind):
    if kind == "torchvision":
        foreign.write_torch(path, foreign.hollow(classifier_of_torchvision("vgg11").state_dict()))
    else:
        path.write_bytes(foreign.caffemodel(classifier_of_caffe()))
    return path


@pytest.mark.parametrize("kind", ["torchvision", "Caffe"])
@pytest.mark.parametrize(
    "options",
    [
        ["--at-once"],
        ["--at-once", "--arch", "fcn16s"],
        ["--arch", "fcn64s"],
    ],
)
def test_a_classifier_refuses_what_it_cannot_become(refused, tmp_path, kind, options):
    refused(write_classifier(tmp_path / "vgg", kind), options=options)


@pytest.mark.parametrize("kind", ["torchvision", "Caffe"])
def test_a_classifier_becomes_what_it_is_told(tmp_path, kind):
    path = write_classifier(tmp_path / "vgg", kind)
    assert type(import_weights(path, arch="fcn4s").segmenter.model).__name__ == "FCN4s"


@pytest.mark.usefixtures("tiny")
def test_without_h5py_it_is_told_what_to_install(refused, tmp_path, monkeypatch):
    path = tiny_file(tmp_path / "weights", "h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, "h5py", "pip install")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_is_overwritten(command, tmp_path, kind):
    path = tiny_file(tmp_path / "weights", "state dict")
    output = tmp_path / "model"
    if kind == "folder":
        output.mkdir()
        (output / "notes.txt").write_text("mine")
    else:
        output.write_text("mine")
    before = listing(tmp_path)
    code, _, error = command(path, "-o", output)
    assert (code, error.count("\n")) == (2, 1)
    assert f"{output} is there already" in error
    assert listing(tmp_path) == before
