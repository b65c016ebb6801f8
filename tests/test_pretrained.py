"""fc6 and fc7 of a VGG, taken from the classifier that it was trained with."""

import json
import re
import warnings
from unittest.mock import patch

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import one_sentence, write_voc
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import fcn_smp
from fcn_smp.models.hidden import fc6_fc7, transplant
from fcn_smp.recipe import load_recipe
from fcn_smp.training.parts import build

WIDTH = 24  # of the classifiers here; 4096 in truth
KINDS = ["weight", "bias"]


class Unallocated(nn.Linear):
    """Stands in for the 120 million random numbers of VGG's classifier, which SMP drops once they are drawn."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "device": "meta"})


class Lean:
    """torch.nn as torchvision's VGG is to see it."""

    Linear = Unallocated

    def __getattr__(self, name):
        return getattr(nn, name)


# As thin as can be, but with the 512 maps that fc6 takes.
SLENDER = {
    "config": [4, "M", 4, "M", 4, 4, "M", 4, 4, "M", 4, 512, "M"],
    "out_channels": [4, 4, 4, 4, 512, 512],
    "batch_norm": False,
}


@pytest.fixture(scope="module", autouse=True)
def lean():
    slender = {**smp.encoders.encoders["vgg11"], "params": SLENDER}
    with patch("torchvision.models.vgg.nn", Lean()), patch.dict(smp.encoders.encoders, slender=slender):
        yield


def network(encoder="slender", arch="fcn32s", seed=0, **options):
    if "tu-" in encoder and "mlp_ratio" not in options:
        options["mlp_ratio"] = 0.001  # of a classifier that is dropped
    torch.manual_seed(seed)
    options = {"classes": 3, "decoder_hidden_channels": WIDTH, "encoder_weights": None, **options}
    return smp.create_model(arch, encoder_name=encoder, **options).eval()


@pytest.fixture(scope="module")
def vggs():
    """torchvision's VGG-11, plain and with batch norm, with classifiers of 24 channels."""
    torch.manual_seed(2)
    networks = {}
    for name in ("vgg11", "vgg11_bn"):
        vgg = getattr(torchvision.models, name)(weights=None)
        vgg.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, WIDTH), nn.ReLU(), nn.Dropout(),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(),
            nn.Linear(WIDTH, 5),
        )  # fmt: skip
        with torch.no_grad():
            for key, values in vgg.state_dict().items():
                if key.endswith("running_var"):
                    values.uniform_(0.5, 2)
                elif key.endswith(("bias", "running_mean")):
                    values.normal_(std=0.1)
        networks[name] = vgg.eval()
    return networks


def renamed(state, form):
    """Return a state dict of torchvision's as timm or Caffe (and what reads its files) would name and shape it."""
    if form == "torchvision":
        return dict(state)
    first, second, third = {"timm": ("pre_logits.fc1", "pre_logits.fc2", "head.fc")}.get(form, ("fc6", "fc7", "fc8"))
    names = {"classifier.0": first, "classifier.3": second, "classifier.6": third}
    result = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if form in ("timm", "Caffe") and kind == "weight" and layer in ("classifier.0", "classifier.3"):
            value = value.reshape(len(value), -1, 7, 7) if layer == "classifier.0" else value[:, :, None, None]
        result[f"{names.get(layer, layer)}.{kind}"] = value
    return result


FORMS = {"torchvision": ".pth", "timm": ".safetensors", "Caffe": ".pt", "Caffe, linear": ".safetensors"}


def write(state, path):
    if path.suffix == ".safetensors":
        save_file({key: value.detach().contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


def only(state, *prefixes):
    return {key: value for key, value in state.items() if key.startswith(prefixes)}


def fully_connected(hidden=WIDTH, given=512 * 49):
    """Return random layers of the names that Caffe gives them."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"fc6": (hidden, given), "fc7": (hidden, hidden)}
    state = {f"{name}.weight": torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return state | {f"{name}.bias": torch.randn(hidden, generator=generator) for name in shapes}


def assert_hidden_is(model, state):
    """``state`` has the names of Caffe, and the width and kernel of the model's layers."""
    for layer, name in ((0, "fc6"), (3, "fc7")):
        for kind in KINDS:
            own = getattr(model.decoder.hidden[layer], kind)
            assert torch.equal(own, state[f"{name}.{kind}"].float().view_as(own)), (name, kind)


def hidden_weights(model):
    return [model.decoder.hidden[layer].weight for layer in (0, 3)]


def caffe_names(vgg):
    return renamed(only(vgg.state_dict(), "classifier"), "Caffe")


# --- The same numbers as the classifier's


def copy_features(vgg, encoder):
    """Give an encoder the convolutions and batch norms of ``vgg``, one after the other."""
    theirs = [value for key, value in vgg.state_dict().items() if key.startswith("features")]
    own = [value for key, value in encoder.state_dict().items() if "features" in key]
    for ours, value in zip(own, theirs, strict=True):
        ours.copy_(value)


def windows(vgg, maps):
    """Apply fc6 and fc7, as the linear layers that they are, to every window of 7x7 pixels."""
    tiles = maps.unfold(2, 7, 1).unfold(3, 7, 1)  # N, C, h, w, 7, 7
    n, _, h, w = tiles.shape[:4]
    vectors = tiles.permute(0, 2, 3, 1, 4, 5).reshape(n * h * w, -1)
    return vgg.classifier[:5](vectors).view(n, h, w, -1).permute(0, 3, 1, 2)


def hidden_output(model, x):
    return model.decoder.hidden(model.decoder.taps(model.encoder(x))[0])


@torch.no_grad()
# Whether the classifier is in a file of its own, and not in the encoder's.
@pytest.mark.parametrize(
    ("encoder", "form", "separate"),
    [
        ("vgg11", "torchvision", False),
        ("vgg11", "timm", True),
        ("vgg11_bn", "torchvision", True),
        ("vgg11_bn", "Caffe", False),
        ("tu-vgg11", "timm", False),
        ("tu-vgg11", "Caffe, linear", True),
        ("vgg11_bn", "Caffe, linear", False),
    ],
)
def test_hidden_layers_see_what_the_classifier_saw(vggs, tmp_path, encoder, form, separate):
    vgg = vggs[encoder.removeprefix("tu-")]
    state = renamed(vgg.state_dict(), form)
    if separate:
        file = write({key: v for key, v in state.items() if "features" not in key}, tmp_path / f"own{FORMS[form]}")
        model = network(encoder, decoder_hidden_weights=file)
        copy_features(vgg, model.encoder)
    else:
        model = network(encoder, encoder_weights=write(state, tmp_path / f"whole{FORMS[form]}"))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    theirs = vgg.classifier[:5](vgg.avgpool(vgg.features(x)).flatten(1))
    assert theirs.count_nonzero() > WIDTH / 4
    torch.testing.assert_close(hidden_output(model, x)[:, :, 3, 3], theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_window_of_another_image_is_classified_too(vggs, tmp_path):
    vgg = vggs["vgg11"]
    model = network("vgg11", encoder_weights=write(vgg.state_dict(), tmp_path / "vgg.pth"))
    x = torch.randn(1, 3, 256, 300, generator=torch.Generator().manual_seed(5))
    theirs = windows(vgg, vgg.features(x))
    assert theirs.shape == (1, WIDTH, 2, 3)
    torch.testing.assert_close(hidden_output(model, x)[:, :, 3:-3, 3:-3], theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_caffes_alignment_every_window_of_the_padded_image_is_classified(vggs, tmp_path):
    vgg = vggs["vgg11"]
    file = write(vgg.state_dict(), tmp_path / "vgg.pth")
    model = network("vgg11", encoder_weights=file, decoder_alignment="caffe")
    x = image = torch.randn(1, 3, 50, 70, generator=torch.Generator().manual_seed(6))
    for layer in vgg.features:
        if isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, layer.bias, padding=100 if x is image else 1)
        else:
            x = F.max_pool2d(x, 2, ceil_mode=True) if isinstance(layer, nn.MaxPool2d) else x.relu()
    theirs = windows(vgg, x)
    assert theirs.shape[2:] == (2, 3)
    torch.testing.assert_close(hidden_output(model, image), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alignment", ["same", "caffe"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_file_gives_the_same_weights(vggs, tmp_path, form, alignment):
    state = only(vggs["vgg11"].state_dict(), "classifier")
    file = write(renamed(state, form), tmp_path / f"fc{FORMS[form]}")
    model = network(decoder_hidden_weights=file, decoder_alignment=alignment)
    assert_hidden_is(model, caffe_names(vggs["vgg11"]))
    assert all(weight.requires_grad for weight in hidden_weights(model))


@pytest.mark.parametrize("arch", ["fcn8s", "fcn2s"])
def test_finer_networks_take_the_classifier_too_and_still_answer_nothing(vggs, tmp_path, arch):
    file = write(only(vggs["vgg11"].state_dict(), "classifier"), tmp_path / "fc.pth")
    model = network(arch=arch, decoder_hidden_weights=file)
    assert_hidden_is(model, caffe_names(vggs["vgg11"]))
    assert (model(torch.rand(1, 3, 40, 56)) == 0).all()


def test_numbers_of_half_precision_and_those_in_a_checkpoint_are_read(tmp_path):
    state = {key: value.half() for key, value in fully_connected().items()}
    path = write({"model_state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    model = network(decoder_hidden_weights=path)
    assert_hidden_is(model, state)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_file_of_its_own_wins_over_the_encoders_classifier(tmp_path):
    encoder = only(network().encoder.state_dict(), "features")
    whole = write(encoder | renamed_linear(seed=7), tmp_path / "whole.pth")
    own = write(fully_connected(), tmp_path / "own.pth")
    assert_hidden_is(network(encoder_weights=whole, decoder_hidden_weights=own), fully_connected())


def renamed_linear(seed):
    torch.manual_seed(seed)
    layers = {"classifier.0": nn.Linear(512 * 49, WIDTH), "classifier.3": nn.Linear(WIDTH, WIDTH)}
    return {f"{name}.{kind}": getattr(layer, kind) for name, layer in layers.items() for kind in KINDS}


# --- Random weights


@pytest.fixture
def encoder_only(tmp_path):
    return write(network(seed=9).encoder.state_dict(), tmp_path / "encoder.safetensors")


def test_without_weights_or_with_none_the_layers_start_at_random(tmp_path):
    encoder = only(network(seed=9).encoder.state_dict(), "features")
    whole = write(encoder | renamed_linear(seed=7), tmp_path / "whole.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        random = network()
        off = network(encoder_weights=whole, decoder_hidden_weights=None)
    for ours, theirs in zip(hidden_weights(off), hidden_weights(random), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(off.encoder.features[0].weight, encoder["features.0.weight"])
    assert all((layer.bias == 0).all() for layer in (off.decoder.hidden[0], off.decoder.hidden[3]))


def test_a_file_of_the_encoder_alone_warns_that_the_layers_start_at_random(encoder_only):
    with pytest.warns(UserWarning, match=r"holds no fc6 and fc7.*decoder_hidden_weights") as caught:
        model = network(encoder_weights=encoder_only)
    [warning] = caught
    assert encoder_only in str(warning.message)
    for ours, theirs in zip(hidden_weights(model), hidden_weights(network()), strict=True):
        assert torch.equal(ours, theirs)


def test_the_warning_points_at_who_built_the_network(encoder_only):
    with pytest.warns(UserWarning, match="fc6") as caught:
        fcn_smp.FCN32s("slender", encoder_weights=encoder_only, decoder_hidden_channels=4)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "options",
    [
        {"decoder_hidden_weights": None},
        {"decoder_hidden_channels": 0},
        {"decoder_hidden_channels": 0, "decoder_hidden_weights": None},
    ],
    ids=str,
)
def test_nothing_is_said_where_nobody_wants_a_classifier(encoder_only, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(encoder_weights=encoder_only, **options)


def test_nothing_is_said_of_other_encoders(tmp_path):
    file = write(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network("test_resnet", encoder_weights=file)
        network("test_resnet", encoder_weights=file, decoder_hidden_weights=None)


# --- What does not fit


def refused(*parts, **options):
    with pytest.raises(ValueError, match=re.escape(str(parts[0]))) as caught:
        network(**options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("."), message
    for part in parts:
        assert str(part) in message, message


@pytest.mark.parametrize("value", ["imagenet", "some/file.pth", "imagenett"])
@pytest.mark.parametrize(
    "options", [{"encoder": "resnet18"}, {"encoder": "test_resnet"}, {"decoder_hidden_channels": 0}]
)
def test_a_classifier_for_what_has_no_fc6_is_refused(options, value):
    refused("decoder_hidden_weights", decoder_hidden_weights=value, **options)


def test_a_name_of_no_weights_is_refused():
    refused("'imagenett'", "decoder_hidden_weights", "'imagenet'", decoder_hidden_weights="imagenett")


def not_exist(path):
    pass


def be_empty(path):
    path.touch()


def be_text(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def be_a_directory(path):
    path.mkdir()


def end_too_soon(path):
    write(fully_connected(), path)
    path.write_bytes(path.read_bytes()[:-100])


def hold_the_encoder_alone(path):
    write(network().encoder.state_dict(), path)


def hold_another_network(path):
    write(timm.create_model("test_resnet").state_dict(), path)


def lack_a_bias(path):
    state = fully_connected()
    del state["fc7.bias"]
    write(state, path)


def be_too_narrow(path):
    write(fully_connected(WIDTH - 1), path)


def have_too_small_a_kernel(path):
    write({**fully_connected(), "fc6.weight": torch.rand(WIDTH, 512, 5, 5)}, path)


def have_too_few_maps(path):
    write({**fully_connected(), "fc6.weight": torch.rand(WIDTH, 256, 7, 7)}, path)


def be_a_mobilenet(path):
    """torchvision's MobileNet-V3 has layers of the same names."""
    state = {"classifier.0": nn.Linear(96, 128), "classifier.3": nn.Linear(128, 100)}
    write({f"{name}.{kind}": getattr(layer, kind) for name, layer in state.items() for kind in KINDS}, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "flaw",
    [
        not_exist,
        be_empty,
        be_text,
        be_a_directory,
        end_too_soon,
        hold_the_encoder_alone,
        hold_another_network,
        lack_a_bias,
        be_too_narrow,
        have_too_small_a_kernel,
        have_too_few_maps,
        be_a_mobilenet,
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(tmp_path, flaw, suffix):
    path = tmp_path / f"fc{suffix}"
    flaw(path)
    shaped = flaw in (be_too_narrow, have_too_small_a_kernel, have_too_few_maps, be_a_mobilenet)
    refused("decoder_hidden" if shaped else path, decoder_hidden_weights=str(path))


def test_a_classifier_that_came_with_the_encoder_must_fit_too(tmp_path):
    state = network().encoder.state_dict() | fully_connected(WIDTH - 1)
    path = write(state, tmp_path / "whole.pth")
    shapes = f"({WIDTH - 1}, 512, 7, 7)", f"({WIDTH}, 512, 7, 7)"
    refused(*shapes, "decoder_hidden_channels", "decoder_hidden_weights to None", encoder_weights=path)
    network(encoder_weights=path, decoder_hidden_weights=None)
    network(encoder_weights=path, decoder_hidden_channels=WIDTH - 1)


@pytest.mark.parametrize("kernel", [9, 11])
def test_a_kernel_wider_than_the_classifiers_is_refused(tmp_path, kernel):
    file = write(fully_connected(), tmp_path / "fc.pth")
    refused("decoder_hidden_kernel", decoder_hidden_weights=file, decoder_hidden_kernel=kernel)


# fc6 has learned what is in pool5; pool4 and pool3 are other maps, and pool3 has half as many.
@pytest.mark.parametrize("depth", [3, 4])
def test_a_classifier_of_pool5_is_not_put_on_other_maps(tmp_path, depth):
    file = write(fully_connected(), tmp_path / "fc.pth")
    refused("encoder_depth", encoder="vgg11", encoder_depth=depth, decoder_hidden_weights=file)


@pytest.mark.parametrize("flaw", [not_exist, be_too_narrow, be_a_mobilenet])
def test_a_recipe_with_such_a_file_is_answered_in_one_sentence(tmp_path, flaw):
    lists = write_voc(tmp_path / "data", 2012, ["t0"], ["v0"]) / "ImageSets/Segmentation"
    flaw(tmp_path / "fc.pth")
    recipe = {
        "data": {"kind": "voc", "year": 2012, "root": str(tmp_path / "data")}
        | {split: str(lists / f"{split}.txt") for split in ("train", "val")},
        "model": {"encoder_name": "slender", "encoder_weights": None, "decoder_hidden_channels": WIDTH}
        | {"decoder_hidden_weights": str(tmp_path / "fc.pth")},
        "trainer": {"batch_size": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with one_sentence("model: "):
        build(load_recipe(tmp_path / "recipe.yaml"))


# --- Narrower layers and smaller kernels


def numbered(hidden):
    """Number every weight of the layers, so that each tells where it came from."""
    return {
        "fc6.weight": torch.arange(hidden * 512 * 49).float().view(hidden, 512, 7, 7),
        "fc7.weight": torch.arange(hidden * hidden).float().view(hidden, hidden, 1, 1),
        "fc6.bias": torch.arange(hidden).float(),
        "fc7.bias": torch.arange(hidden).float(),
    }


POSITIONS = {7: [0, 1, 2, 3, 4, 5, 6], 5: [0, 2, 3, 4, 6], 3: [1, 3, 5], 1: [3]}


@pytest.mark.parametrize("kernel", POSITIONS)
@pytest.mark.parametrize(("given", "channels"), [(32, 8), (32, 32), (30, 7), (32, 31), (10, 1)])
def test_smaller_layers_take_evenly_spaced_channels_and_positions(tmp_path, given, channels, kernel):
    state = numbered(given)
    assert state["fc6.weight"].max() < 2**24  # whole numbers, exactly
    file = write(state, tmp_path / "fc.safetensors")
    model = network(
        decoder_hidden_weights=file, decoder_hidden_channels=channels, decoder_hidden_kernel=kernel, decoder_dropout=0
    )
    fc6, fc7 = model.decoder.hidden[0], model.decoder.hidden[3]
    taken = fc6.bias.long()
    positions = torch.tensor(POSITIONS[kernel])
    assert torch.equal(fc6.weight, state["fc6.weight"][taken][:, :, positions][..., positions])
    assert torch.equal(fc7.weight, state["fc7.weight"][taken][:, taken])  # what fc6 gives is what fc7 takes
    assert torch.equal(fc7.bias, fc6.bias)
    assert (taken.diff() > 0).all()
    assert taken.diff().unique().numel() <= 2
    assert len(taken) == channels


def channels_taken(given, channels):
    classifier = {
        "fc6.weight": torch.zeros(given, 1, 1, 1),
        "fc7.weight": torch.zeros(1, 1, 1, 1).expand(given, given, 1, 1),
        "fc6.bias": torch.arange(given).float(),
        "fc7.bias": torch.arange(given).float(),
    }
    hidden = fc6_fc7(1, channels, kernel=1, dropout=0, padding=0)
    transplant(hidden, classifier)
    assert torch.equal(hidden[0].bias, hidden[3].bias)
    return hidden[0].bias.long()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_channels_are_distinct_and_as_even_as_can_be(data):
    given_ = data.draw(st.integers(1, 400))
    channels = data.draw(st.integers(1, given_))
    taken = channels_taken(given_, channels)
    gaps = taken.diff()
    assert 0 <= taken[0] <= taken[-1] < given_
    assert channels == 1 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    mirrored = given_ - 1 - taken.flip(0)
    assert (taken - mirrored).abs().max() <= 1  # to the half of a channel


@pytest.mark.parametrize(("channels", "gaps"), [(1024, {4}), (1000, {4, 5}), (4095, {1, 2}), (3, {1365, 1366})])
def test_channels_of_vggs_own_width_are_even(channels, gaps):
    taken = channels_taken(4096, channels)
    assert set(taken.diff().tolist()) == gaps
    assert abs(int(taken[0]) - (4095 - int(taken[-1]))) <= 1


# --- From the Hugging Face Hub


class Cache:
    """Lays files out as the Hub's library caches them."""

    def __init__(self, folder):
        self.folder = folder

    def put(self, repository, revision="0" * 40, **files):
        home = self.folder / f"models--{repository.replace('/', '--')}"
        snapshot = home / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (home / "refs").mkdir()
        (home / "refs/main").write_text(revision)
        for name, content in files.items():
            if name == "model":
                write(content, snapshot / "model.safetensors")
            else:
                (snapshot / f"{name}.json").write_text(content)
        return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return Cache(tmp_path / "hub")


def put_smps(cache, name, vgg):
    hub = smp.encoders.encoders[name]["pretrained_settings"]["imagenet"]
    cache.put(hub["repo_id"], hub["revision"], config="{}", model=only(vgg.state_dict(), "features"))


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_the_classifier_of_smps_weights_is_fetched_from_timm(vggs, cache, name):
    put_smps(cache, name, vggs[name])
    cache.put(f"timm/{name}.tv_in1k", model=renamed(vggs[name].state_dict(), "timm"))
    model = network(name, encoder_weights="imagenet")
    assert_hidden_is(model, caffe_names(vggs[name]))
    assert torch.equal(model.encoder.features[0].weight, vggs[name].features[0].weight)


@pytest.fixture(scope="module")
def timms():
    """timm's VGG-11 with a narrow fc6; its fc7 always has 4096 channels."""
    torch.manual_seed(8)
    return timm.create_model("vgg11", mlp_ratio=WIDTH / 4096).state_dict()


@pytest.mark.parametrize(
    ("encoder", "weights"),
    [
        ("tu-vgg11", "imagenet"),
        ("vgg11.tv_in1k", "imagenet"),
        ("tu-vgg11.tv_in1k", "imagenet"),
        ("tu-vgg11", True),
    ],
)
def test_the_classifier_of_timms_weights_comes_along(timms, cache, encoder, weights):
    cache.put("timm/vgg11.tv_in1k", model=timms)
    model = network(encoder, encoder_weights=weights, mlp_ratio=WIDTH / 4096)
    fc6, fc7 = model.decoder.hidden[0], model.decoder.hidden[3]
    assert torch.equal(fc6.weight, timms["pre_logits.fc1.weight"])
    assert torch.equal(fc6.bias, timms["pre_logits.fc1.bias"])
    taken = [int((k + 0.5) * 4096 / WIDTH) for k in range(WIDTH)]
    assert torch.equal(fc7.weight, timms["pre_logits.fc2.weight"][taken])
    assert torch.equal(model.encoder.model.features_0.weight, timms["features.0.weight"])


@pytest.mark.parametrize("encoder", ["vgg11", "tu-vgg11"])
def test_imagenets_classifier_may_be_had_without_its_encoder(vggs, cache, encoder):
    cache.put("timm/vgg11.tv_in1k", model=renamed(vggs["vgg11"].state_dict(), "timm"))
    model = network(encoder, encoder_weights=None, decoder_hidden_weights="imagenet")
    assert_hidden_is(model, caffe_names(vggs["vgg11"]))


@pytest.mark.parametrize(
    ("encoder", "options", "named"),
    [
        ("vgg11", {"encoder_weights": "imagenet"}, "encoder_weights"),
        ("tu-vgg11", {"encoder_weights": "imagenet"}, "encoder_weights"),
        ("vgg11", {"decoder_hidden_weights": "imagenet"}, "decoder_hidden_weights"),
        ("tu-vgg11", {"decoder_hidden_weights": "imagenet"}, "decoder_hidden_weights"),
    ],
)
def test_without_a_network_one_is_told_what_helps(cache, encoder, options, named):
    refused("cannot be fetched", repr(encoder), named, "path of a file", encoder=encoder, **options)


def test_weights_that_were_fetched_before_still_serve_without_their_classifier(vggs, cache):
    put_smps(cache, "vgg11", vggs["vgg11"])
    refused("cannot be fetched", "decoder_hidden_weights", encoder="vgg11", encoder_weights="imagenet")
    model = network("vgg11", encoder_weights="imagenet", decoder_hidden_weights=None)
    assert torch.equal(model.encoder.features[0].weight, vggs["vgg11"].features[0].weight)


# --- Saved and loaded


@pytest.mark.parametrize("separate", [False, True], ids=["of the encoder", "a file of its own"])
@pytest.mark.parametrize("alignment", ["same", "caffe"])
def test_a_saved_network_needs_neither_file_nor_network(tmp_path, cache, alignment, separate):
    file = tmp_path / "whole.pth"
    write(network().encoder.state_dict() | fully_connected(), file)
    options = {"decoder_hidden_weights": str(file)} if separate else {"encoder_weights": str(file)}
    model = network(arch="fcn16s", decoder_alignment=alignment, **options)
    nn.init.normal_(model.decoder.score.weight)
    model.save_pretrained(tmp_path / "saved")
    file.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = smp.from_pretrained(tmp_path / "saved").eval()
    assert_hidden_is(again, fully_connected())
    assert again.config["decoder_hidden_weights"] is again.config["encoder_weights"] is None
    assert again.config["decoder_alignment"] == alignment
    x = torch.rand(1, 3, 33, 47)
    with torch.no_grad():
        answer = again(x)
        assert torch.equal(answer, model(x))
    assert answer.abs().max() > 0
