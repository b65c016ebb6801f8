"""Exported files, run as their users run them and held against the model that was saved."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext, redirect_stdout
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import torch
from helpers import one_sentence
from networks import lean_vgg

import fcn_smp
from fcn_smp import cli
from fcn_smp.data.voc import voc_palette
from fcn_smp.export import FORMATS, MismatchError, default_path, export
from fcn_smp.models.encoder import Preprocessing
from fcn_smp.segmenter import Segmenter

CAFFE = Preprocessing((104.0, 116.7, 122.7), (60.0, 58.0, 61.0), "BGR", (0, 255))
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def segmenter(arch="fcn8s", encoder="strided_conv", preprocessing=IMAGENET, classes=5, **options):
    """Build a network all of whose parameters are random: the scores of a new one are zero whatever comes in.

    What an export takes grows with the number of layers, of which this encoder has the fewest.
    """
    torch.manual_seed(0)
    model = smp.create_model(arch, encoder_name=encoder, encoder_weights=None, classes=classes, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) / 10)
        # All classes equally likely on the whole, so that labels vary.
        *_, finest = [model.decoder.score, *getattr(model.decoder, "skip_scores", [])]
        features = model.encoder(torch.randn(1, options.get("in_channels", 3), 128, 128))
        finest.bias -= model.decoder(features).mean((0, 2, 3))
    return Segmenter(model, preprocessing, [f"class {k}" for k in range(classes)], voc_palette())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory whose network takes blue first, from 0 to 255."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    segmenter(preprocessing=CAFFE).save(directory / "model")
    return directory


def opened(path):
    """Return what runs a file."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it reports what an image that is too small leads to
    session = onnxruntime.InferenceSession(path, options)
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def assert_close(given, expected):
    assert expected.std() > 0.1 * expected.abs().max(), "a comparison of constants shows nothing"
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def assert_labels(given, logits, dtype=torch.uint8):
    """Let labels differ only where the two best logits are as good as equal."""
    assert given.dtype == dtype
    first, second = logits.topk(2, dim=1).values.unbind(1)
    clear = first - second > 1e-4 * logits.abs().max()
    assert torch.equal(given.long()[clear], logits.argmax(1)[clear])
    assert clear.float().mean() > 0.99
    assert len(given.unique()) > 1 or given.numel() == 1


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """What the command prints and writes, for both formats, with and without what may go around the network."""

    def export_once(form, *flags):
        path = tmp_path_factory.mktemp("exported") / f"tiny{FORMATS[form].suffix}"
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.setattr(sys, "argv", ["fcn-smp", "export", str(run), "--format", form, "-o", str(path), *flags])
            with pytest.raises(SystemExit, match=r"^0$"):
                cli.main()
        return path, printed.getvalue()

    return cache(export_once)


BOTH = ("--with-preprocessing", "--argmax")


@pytest.mark.parametrize(("form", "flags"), [(form, flags) for form in FORMATS for flags in ((), BOTH)])
@torch.no_grad()
def test_a_file_gives_what_the_model_gives_at_any_batch_and_size(run, exported, form, flags):
    path, printed = exported(form, *flags)
    smallest = int(re.search(r"any batch, height and width from (\d+) pixels?\.$", printed, re.M)[1])
    graph, model = opened(path), smp.from_pretrained(run / "model").eval()
    mean, std = (np.array(values, np.float32)[:, None, None] for values in CAFFE[:2])
    for shape in [(1, smallest, smallest), (1, smallest + 3, 77), (3, 98, 131), (2, 256, 128)]:
        image = np.random.default_rng(shape).integers(0, 256, (shape[0], 3, *shape[1:]), dtype=np.uint8)
        normal = torch.from_numpy((image[:, ::-1] - mean) / std)
        if flags:
            assert_labels(graph(torch.from_numpy(image)), model(normal))
        else:
            assert_close(graph(normal), model(normal))


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_printed_says_what_was_found_and_how_to_go_on(exported, form):
    path, printed = exported(form, *BOTH)
    first, second, *code = printed.splitlines()
    assert re.match(rf"{re.escape(str(path))} takes any batch, height and width from \d+ pixels?\.$", first)
    assert re.match(r"Compared with the model on [\d,]+ random pixels: labels that differ: \d.*; the largest", second)
    assert "logits differ" in exported(form)[1]
    # The two lines run as they are.
    image = np.zeros((2, 3, 80, 90), np.uint8)
    names = {"onnxruntime": onnxruntime, "torch": torch, "image": torch.from_numpy(image)}
    if form == "onnx":
        names["image"] = image
    exec("\n".join(line.strip() for line in code), names)
    assert names["labels"].shape == (2, 80, 90)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_names_no_folder_of_the_machine_that_wrote_it(exported, form):
    for flags in ((), BOTH):
        content = exported(form, *flags)[0].read_bytes()
        assert str(Path(fcn_smp.__file__).parent).encode() not in content
        assert str(Path(torch.__file__).parent).encode() not in content


def test_an_onnx_file_tells_what_it_takes_and_gives(exported):
    for flags, pixels, given, shape in (
        ((), "float", ("logits", "tensor(float)"), ["batch", 5, "height", "width"]),
        (BOTH, "uint8", ("labels", "tensor(uint8)"), ["batch", "height", "width"]),
    ):
        path, _ = exported("onnx", *flags)
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path)
        (image,), (output,) = session.get_inputs(), session.get_outputs()
        assert (image.name, image.type, image.shape) == ("image", f"tensor({pixels})", ["batch", 3, "height", "width"])
        assert ((output.name, output.type), output.shape) == (given, shape)
        assert_tells(session.get_modelmeta().custom_metadata_map, CAFFE if not flags else None)


def test_a_file_of_torch_export_tells_its_classes_and_the_preprocessing_that_is_left(exported):
    for flags, left in (((), CAFFE), (BOTH, None)):
        about = {"classes": "", "colors": "", "preprocessing": ""}
        torch.export.load(exported("torch_export", *flags)[0], extra_files=about)
        assert_tells(about, left)


def assert_tells(about, preprocessing):
    assert {key: json.loads(value) for key, value in about.items()} == {
        "classes": [f"class {k}" for k in range(5)],
        "colors": voc_palette()[:5].tolist(),
        "preprocessing": preprocessing and json.loads(json.dumps(preprocessing._asdict())),
    }


@pytest.mark.parametrize(
    ("arch", "encoder", "form", "options"),
    [
        ("fcn2s", "tu-test_convnext", "onnx", {}),
        ("dilatedfcn", "test_efficientnet", "torch_export", {"aux_params": {"classes": 3}}),
        ("fcn8s", "vgg11", "torch_export", {"decoder_hidden_channels": 8}),
    ],
)
@torch.no_grad()
def test_the_smallest_size_is_the_smallest(tmp_path, arch, encoder, form, options):
    with lean_vgg() if encoder == "vgg11" else nullcontext():
        network = segmenter(arch, encoder, **options)
    path = tmp_path / f"a{FORMATS[form].suffix}"
    smallest = export(network, path, format=form).smallest
    graph = opened(path)

    def compare(height, width):
        image = torch.randn(1, 3, height, width)
        expected = network.model(image)
        assert_close(graph(image), expected[0] if options.get("aux_params") else expected)

    for size in [(smallest, smallest), (smallest + 1, smallest), (smallest, smallest + 32), (150, 150)]:
        compare(*size)
    assert smallest > 1
    with pytest.raises(Exception):  # noqa: B017, PT011  (of the runtime, of the network or of the comparison)
        compare(smallest - 1, smallest - 1)


@torch.no_grad()
def test_a_single_class_is_where_it_is_more_likely_than_not(tmp_path):
    network = segmenter("fcn32s", classes=1, activation="softmax2d")
    head = list(network.model.segmentation_head)
    export(network, tmp_path / "a.pt2", format="torch_export", argmax=True, with_preprocessing=True)
    assert list(network.model.segmentation_head) == head

    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    normal = (image / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    network.model.segmentation_head = torch.nn.Identity()
    logits = network.model(torch.from_numpy(normal).float().permute(2, 0, 1)[None])
    given = opened(tmp_path / "a.pt2")(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert_labels(given, torch.cat([-logits, logits], 1) / 2)


@torch.no_grad()
def test_many_classes_are_no_uint8_and_channels_may_be_others_than_rgb(tmp_path):
    network = segmenter("fcn32s", classes=300, in_channels=4)
    export(network, tmp_path / "a.pt2", format="torch_export", argmax=True)
    image = torch.randn(1, 4, 70, 80)
    given = opened(tmp_path / "a.pt2")(image)
    assert given.max() > 255
    assert_labels(given, network.model(image), torch.int64)


@pytest.fixture
def pretend(monkeypatch):
    """Let files of torch.export hold nothing, and be run by a function."""

    def pretend(run):
        kind = FORMATS["torch_export"]._replace(write=lambda *arguments: arguments[2].touch(), open=lambda path: run)
        monkeypatch.setitem(FORMATS, "torch_export", kind)
        monkeypatch.setattr("fcn_smp.export._trace", lambda *arguments: None)

    return pretend


def one_pixel_off(by):
    """Let one logit differ by this part of the largest."""

    def disturb(logits):
        logits = logits.clone()
        logits[0, 0, 0, 0] += by * logits.abs().max()
        return logits

    return disturb


def second_best(closer):
    """Give the second best label where the two best logits are closer than this part of the largest."""

    def disturb(logits):
        (first, second), (best, other) = (values.unbind(1) for values in logits.topk(2, dim=1))
        return torch.where(first - second < closer * logits.abs().max(), other, best).byte()

    return disturb


@pytest.mark.parametrize(
    ("disturb", "argmax"),
    [
        (one_pixel_off(2e-4), False),
        (one_pixel_off(float("nan")), False),
        (lambda logits: logits[:, :, 1:], False),
        (second_best(1e-2), True),
        (lambda logits: (logits.argmax(1).byte() + 1) % 5, True),
        (lambda logits: logits.argmax(1)[:, 1:].byte(), True),
    ],
)
def test_a_file_that_differs_is_not_kept(pretend, tmp_path, disturb, argmax):
    network = segmenter()
    pretend(lambda image: disturb(network.model(image)))
    with pytest.raises(MismatchError, match="no file was written"):
        export(network, tmp_path / "a.pt2", format="torch_export", argmax=argmax)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("disturb", "argmax"), [(one_pixel_off(5e-5), False), (second_best(5e-5), True)])
def test_rounding_is_no_difference(pretend, tmp_path, disturb, argmax):
    network = segmenter()
    pretend(lambda image: disturb(network.model(image)))
    found = export(network, tmp_path / "a.pt2", format="torch_export", argmax=argmax)
    assert 0 < found.difference <= 1e-4 * found.largest
    assert (found.differing > 0) == argmax
    assert (tmp_path / "a.pt2").exists()


def test_what_agrees_on_some_sizes_only_is_not_kept(pretend, tmp_path):
    network = segmenter()
    pretend(lambda image: network.model(image) + (image.shape[2] % 32 == 0))
    with pytest.raises(MismatchError, match="no file was written"):
        export(network, tmp_path / "a.pt2", format="torch_export")


def test_a_difference_ends_the_command_in_one_sentence_and_exit_code_1(run, command, tmp_path, pretend):
    model = smp.from_pretrained(run / "model").eval()
    pretend(lambda image: model(image).roll(1, -1))
    code, output, error = command("export", run, "--format", "torch_export", "-o", tmp_path / "a.pt2")
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith("fcn-smp: The exported graph is ")
    assert "takes" not in output
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_takes_too_little_is_not_kept(run, command, tmp_path, pretend):
    def refuse(image):
        raise ValueError(f"only 131 x 163, not {image.shape}.")

    pretend(refuse)
    code, _, error = command("export", run, "--format", "torch_export", "-o", tmp_path / "a.pt2")
    assert (code, error.count("\n")) == (1, 1)
    assert "does not take 1 image of" in error
    assert "only 131 x 163" in error
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_was_never_trained_is_told(command, tmp_path, pretend):
    network = segmenter()
    for score in (network.model.decoder.score, *network.model.decoder.skip_scores):
        torch.nn.init.zeros_(score.weight)
        torch.nn.init.zeros_(score.bias)
    network.save(tmp_path / "new")
    pretend(network.model)
    code, output, _ = command("export", tmp_path / "new", "--format", "torch_export")
    assert (code, "never trained" in output) == (0, True)
    assert (tmp_path / "new/new.pt2").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{run}", "--format", "onnx", "-o", "{tmp}/here.onnx"], ["here.onnx", "there already", "--output"]),
        (["{run}", "--format", "onnx", "-o", "{tmp}/a.pt2"], ["a.pt2", ".onnx"]),
        (["{run}", "--format", "torch_export", "-o", "{tmp}/a"], [".pt2"]),
        (["{tmp}", "--format", "onnx"], ["config.json"]),
        (["{tmp}/none", "--format", "torch_export"], ["none"]),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(run, command, tmp_path, arguments, expected):
    (tmp_path / "here.onnx").write_text("mine")
    code, output, error = command("export", *(argument.format(run=run, tmp=tmp_path) for argument in arguments))
    assert (code, output, error.count("\n")) == (2, "", 1), error
    assert all(part in error for part in expected), error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("here.onnx", "mine")]


def test_an_unknown_format_is_answered_with_those_that_there_are(run, command):
    code, _, error = command("export", run, "--format", "coreml")
    assert code == 2
    assert all(form in error for form in FORMATS)
    with one_sentence("coreml", *FORMATS):
        export(segmenter(), "a.onnx", format="coreml")


def test_a_missing_extra_is_named(run, command, tmp_path, monkeypatch):
    for package in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
    code, _, error = command("export", run, "--format", "onnx", "-o", tmp_path / "a.onnx")
    assert (code, error.count("\n")) == (2, 1)
    assert 'onnxruntime and onnxscript: pip install "fcn_smp[export]"' in error


def test_what_cannot_be_exported_is_refused_before_the_work(tmp_path, monkeypatch):
    network = segmenter()
    monkeypatch.setattr("fcn_smp.export.ONNX_LIMIT", 1000)
    with one_sentence("ONNX", "torch_export"):
        export(network, tmp_path / "a.onnx", format="onnx")
    network.model.to("meta")
    with one_sentence("CPU"):
        export(network, tmp_path / "a.pt2", format="torch_export")
    with one_sentence("4 channels"):
        export(segmenter(in_channels=4), tmp_path / "a.pt2", format="torch_export", with_preprocessing=True)
    assert list(tmp_path.iterdir()) == []


class ByValue(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class BySize(torch.nn.Module):
    def forward(self, x):
        return x if x.shape[2] <= 700 else -x


@pytest.mark.parametrize(("choice", "said"), [(ByValue, "data-dependent"), (BySize, "700 pixels at most")])
def test_a_network_that_chooses_its_way_is_refused(tmp_path, choice, said):
    network = segmenter()
    network.model.segmentation_head[-1] = choice()
    with one_sentence("fcn8s-strided_conv", "any batch, height and width", said):
        export(network, tmp_path / "a.pt2", format="torch_export")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_the_hub_is_exported_into_the_current_folder(run, monkeypatch, tmp_path):
    assert default_path("someone/fcn8s", "onnx") == Path("fcn8s.onnx")
    monkeypatch.chdir(run)
    assert default_path(".", "torch_export") == Path("tiny.pt2")


def test_help_is_answered_without_importing_torch_or_onnx():
    script = """
import sys, fcn_smp.cli
sys.argv = ["fcn-smp", "export", "--help"]
try:
    fcn_smp.cli.main()
finally:
    print(sorted({"torch", "onnx", "onnxruntime", "onnxscript", "numpy"} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert "--with-preprocessing" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
