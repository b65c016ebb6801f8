"""Encoders by name, their weights from files, and the preprocessing that they expect."""

import pickle
import re

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fcn_smp.models.encoder import build_encoder, encoder_preprocessing, resolve_encoder_name

TINY = "test_efficientnet"


def build(name, weights=None, in_channels=3, depth=5):
    return build_encoder(name, in_channels=in_channels, depth=depth, weights=weights and str(weights)).eval()


def write(state, path):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def halved(state):
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def assert_holds(encoder, state):
    own = {key.removeprefix("model."): value for key, value in encoder.state_dict().items()}
    shared = own.keys() & state.keys()
    assert {key for key in own.keys() - shared if "num_batches_tracked" not in key} == set()
    for key in shared:
        assert torch.equal(own[key], state[key].to(own[key].dtype)), key


@pytest.fixture(scope="module")
def tiny_state():
    return timm.create_model(TINY).state_dict()


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("resnet18", "resnet18"),
        ("tu-resnet18", "tu-resnet18"),
        ("vgg16", "vgg16"),
        ("tu-vgg16", "tu-vgg16"),
        ("efficientnet-b0", "efficientnet-b0"),
        ("convnext_tiny", "tu-convnext_tiny"),
        ("tu-convnext_tiny", "tu-convnext_tiny"),
        ("resnet50.a1_in1k", "tu-resnet50.a1_in1k"),
        ("tu-resnet50.a1_in1k", "tu-resnet50.a1_in1k"),
    ],
)
def test_names_of_smp_come_first_then_those_of_timm(name, resolved):
    assert resolve_encoder_name(name) == resolved


def test_every_name_of_smp_and_timm_resolves_to_itself():
    for name in smp.encoders.encoders:
        assert resolve_encoder_name(name) == name
    for name in timm.list_models():
        resolved = resolve_encoder_name(name)
        assert resolved == (name if name in smp.encoders.encoders else f"tu-{name}")
        assert resolve_encoder_name(resolved) == resolved


def suggestions(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))) as raised:
        resolve_encoder_name(name)
    _, _, near = str(raised.value).partition("Did you mean ")
    return re.findall(r"[\w.-]+(?<!\.)", near.replace(" or ", " "))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet5", "resnet50"),
        ("tu-resnet5o", "resnet50"),
        ("convnext_tny", "convnext_tiny"),
        ("vgg_16", "vgg16"),
        ("efficientnet-b", "efficientnet-b7"),
    ],
)
def test_near_names_are_suggested_once_each(name, meant):
    near = suggestions(name)
    assert meant in near
    assert len(near) == len(set(near))


def test_nothing_is_suggested_for_a_name_like_no_other():
    assert suggestions("zzzzqqqq") == []


@settings(deadline=None, max_examples=15)
@given(data=st.data(), name=st.sampled_from(["resnet18", "vgg19_bn", "mobilenet_v2", "convnext_atto", "densenet121"]))
def test_every_suggestion_for_a_misspelt_name_resolves(data, name):
    cut = data.draw(st.integers(0, len(name) - 1))
    try:
        near = suggestions(name[:cut] + "~" + name[cut + 1 :])
    finally:
        assert resolve_encoder_name(name)
    assert near
    for suggestion in near:
        assert resolve_encoder_name(suggestion)


@pytest.mark.parametrize("name", ["", "tu-", "no_such_net", "tu-no_such_net.in1k"])
def test_unknown_encoder_is_refused_by_its_name(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        build(name)


@pytest.mark.parametrize("prefix", ["", "tu-"])
@pytest.mark.parametrize("ask", [build, encoder_preprocessing])
def test_an_unknown_tag_is_refused_with_those_that_there_are(ask, prefix):
    with pytest.raises(ValueError, match=r"no_such_tag.*resnet50.*a1_in1k"):
        ask(f"{prefix}resnet50.no_such_tag")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"weights": "imagenett"}),
        ("resnet18", {"output_stride": 7}),
        ("vgg11", {"output_stride": 16}),
        ("test_resnet", {"output_stride": 7}),
    ],
)
def test_options_that_an_encoder_cannot_meet_are_refused_by_its_name(name, options):
    with pytest.raises(ValueError, match=rf"'{name}'.*[^: ]$"):
        build_encoder(name, **{"in_channels": 3, "depth": 5, "weights": None, **options})


@pytest.mark.parametrize("name", ["resnet18", "tu-test_resnet"])
def test_without_a_network_named_weights_are_refused_and_a_file_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=rf"'imagenet'.*'{name}'.*file"):
        build(name, "imagenet")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("prefix", ["", "model."], ids=["keys of timm", "keys of SMP"])
def test_weights_of_a_timm_encoder_are_read_from_a_file(tmp_path, tiny_state, prefix, suffix):
    assert any("classifier" in key for key in tiny_state)
    state = {prefix + key: value for key, value in tiny_state.items()}
    assert_holds(build(TINY, write(state, tmp_path / f"weights{suffix}")), tiny_state)


def test_weights_in_half_precision_with_keys_of_torchvision_are_read(tmp_path):
    state = {
        key: value
        for key, value in halved(timm.create_model("resnet18").state_dict()).items()
        if "num_batches_tracked" not in key
    }
    assert "fc.weight" in state
    encoder = build("resnet18", write(state, tmp_path / "resnet18.safetensors"))
    assert_holds(encoder, state)
    assert all(parameter.dtype == torch.float32 for parameter in encoder.parameters())


def test_a_path_may_lack_a_suffix_or_start_at_the_home_directory(tmp_path, tiny_state, monkeypatch):
    torch.save(tiny_state, tmp_path / "weights")
    assert_holds(build(TINY, tmp_path / "weights"), tiny_state)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert_holds(build(TINY, "~/weights"), tiny_state)


def test_a_file_of_a_shallower_use_still_serves(tmp_path, tiny_state):
    encoder = build(TINY, write(tiny_state, tmp_path / "weights.pth"), depth=3)
    assert len(encoder(torch.rand(1, 3, 64, 64))) == 4
    assert_holds(encoder, tiny_state)


@pytest.mark.parametrize("name", ["resnet18", TINY])
@pytest.mark.parametrize("in_channels", [1, 6])
def test_grey_images_look_the_same_through_weights_adapted_to_other_channels(tmp_path, name, in_channels):
    path = write(timm.create_model(name).state_dict(), tmp_path / "weights.safetensors")
    grey = torch.rand(1, 1, 64, 96)
    adapted = build(name, path, in_channels)(grey.expand(-1, in_channels, -1, -1))
    original = build(name, path)(grey.expand(-1, 3, -1, -1))
    for ours, theirs in zip(adapted[1:], original[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_weights_of_as_many_channels_as_the_input_are_taken_as_they_are(tmp_path):
    state = timm.create_model(TINY, in_chans=4).state_dict()
    path = write(state, tmp_path / "weights.pth")
    assert_holds(build(TINY, path, in_channels=4), state)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        build(TINY, path)


class Code:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def lack_a_tensor(state, path):
    write({key: value for key, value in state.items() if key != "conv_stem.weight"}, path)


def hold_another_shape(state, path):
    write({**state, "conv_stem.weight": state["conv_stem.weight"][:5].clone()}, path)


def be_of_another_network(_, path):
    write(timm.create_model("test_resnet").state_dict(), path)


def end_too_soon(state, path):
    whole = write(state, path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def be_empty(_, path):
    path.touch()


def be_text(_, path):
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def be_a_directory(_, path):
    path.mkdir()


def not_exist(_, path):
    assert not path.exists()


def nest_its_weights(state, path):
    torch.save({"weights": {"encoder": state}, "epoch": 3}, path)


def be_a_list(state, path):
    torch.save(list(state.values()), path)


def hold_a_whole_module(_, path):
    torch.save(torch.nn.Linear(2, 2), path)


def hold_code(_, path):
    torch.save({"conv_stem.weight": Code(path.with_name("ran"))}, path)


def be_a_pickle_of_code(_, path):
    path.write_bytes(pickle.dumps(Code(path.with_name("ran")), protocol=2))


ANY_FORMAT = [
    lack_a_tensor,
    hold_another_shape,
    be_of_another_network,
    end_too_soon,
    be_empty,
    be_text,
    be_a_directory,
    not_exist,
]
PICKLES = [nest_its_weights, be_a_list, hold_a_whole_module, hold_code, be_a_pickle_of_code]


@pytest.mark.parametrize(
    ("flaw", "suffix"),
    [(flaw, ".safetensors") for flaw in ANY_FORMAT] + [(flaw, ".pth") for flaw in [*ANY_FORMAT, *PICKLES]],
)
def test_a_file_that_does_not_fit_is_refused_by_its_name(tmp_path, tiny_state, flaw, suffix):
    path = tmp_path / f"weights{suffix}"
    flaw(tiny_state, path)
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        build(TINY, path)
    assert "\n" not in str(raised.value)
    assert "()" not in str(raised.value)
    assert not (tmp_path / "ran").exists(), "the file's code was run"


def test_the_missing_tensor_and_the_wrong_shape_are_named(tmp_path, tiny_state):
    lack_a_tensor(tiny_state, tmp_path / "lacking.pth")
    with pytest.raises(ValueError, match=r"conv_stem\.weight"):
        build(TINY, tmp_path / "lacking.pth")
    hold_another_shape(tiny_state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"conv_stem\.weight.*\(5, 3, 3, 3\).*\(24, 3, 3, 3\)"):
        build(TINY, tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("name", "file", "options"),
    [
        ("resnet18", "resnet18_imagenet_bn_recalibrated_fp16.safetensors", {}),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0_imagenet_fp16.safetensors", {}),
        (
            "vgg16",
            "vgg16_imagenet_features_fp16.safetensors",
            {"decoder_hidden_channels": 8, "decoder_hidden_weights": None},
        ),
    ],
)
def test_a_network_starts_from_real_weights(weights, name, file, options):
    model = smp.create_model("fcn8s", encoder_name=name, encoder_weights=str(weights / file), **options)
    assert_holds(model.encoder, load_file(weights / file))


# timm's features of networks built from a sequence of layers have other names than the layers: features_0, stem_0.
@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "tu-vgg11", "convnext_atto"])
def test_what_timm_writes_for_a_network_is_read_back(tmp_path, name):
    options = {"mlp_ratio": 0.001} if "vgg" in name else {}
    whole = timm.create_model(name.removeprefix("tu-"), **options)
    path = write(whole.state_dict(), tmp_path / "weights.safetensors")
    encoder = build_encoder(name, in_channels=3, depth=5, weights=str(path), **options).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x)[-1], whole.eval().forward_features(x))


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("resnet18", None, IMAGENET),
        ("resnet18", "some/where.safetensors", IMAGENET),
        ("vgg16", None, IMAGENET),
        ("mit_b0", None, IMAGENET),
        ("convnext_tiny", "imagenet", IMAGENET),
        ("tf_efficientnet_lite0", None, HALVES),
        ("tu-tf_efficientnet_lite0", "imagenet", HALVES),
        ("tf_efficientnet_lite0", "some/where.pth", HALVES),
        ("timm-tf_efficientnet_lite0", None, HALVES),
        ("inceptionv4", None, HALVES),
        ("tf_efficientnet_b0.ap_in1k", None, HALVES),
        ("tf_efficientnet_b0.ns_jft_in1k", None, IMAGENET),
    ],
)
def test_preprocessing_is_known_without_a_network(name, weights, expected):
    assert encoder_preprocessing(name, weights) == (*expected, "RGB", (0, 1), None)


def test_preprocessing_of_smps_own_weights_is_what_smp_says(monkeypatch):
    settings = {"mean": [1, 2, 3], "std": [4, 5, 6], "input_space": "BGR", "input_range": [0, 255]}
    monkeypatch.setattr("segmentation_models_pytorch.encoders.get_preprocessing_params", lambda *_, **__: settings)
    assert encoder_preprocessing("resnet18", "imagenet") == ((1, 2, 3), (4, 5, 6), "BGR", (0, 255), None)
    for name, weights in [("resnet18", None), ("resnet18", "a/b.pth"), ("tu-resnet18", "imagenet")]:
        assert encoder_preprocessing(name, weights) == (*IMAGENET, "RGB", (0, 1), None)


def test_preprocessing_of_an_unknown_encoder_is_refused_by_its_name():
    with pytest.raises(ValueError, match="'no_such_net'"):
        encoder_preprocessing("no_such_net")
