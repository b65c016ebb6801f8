"""What is measured of networks beside their encoder, on an encoder and images so small that times mean nothing."""

import json
from functools import partial

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import fcn_smp  # noqa: F401  (registers the architectures)
from fcn_smp.benchmark import CONTESTANTS, ENCODER, Setting, benchmark, peak_bytes

TINY = Setting("test_resnet", size=(64, 64), classes=3, device="cpu")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def summary():
    return benchmark(TINY, rounds=1)


def measured(summary):
    return {row["name"]: row for row in summary["networks"] if "reason" not in row}


def test_every_contestant_is_measured_or_says_why_not(summary):
    rows = {row["name"]: row for row in summary["networks"]}
    assert set(rows) == {ENCODER, *CONTESTANTS}
    reasons = {name: row["reason"] for name, row in rows.items() if "reason" in row}
    assert set(reasons) == {"pan", "torchvision"}  # PAN pools a map of two pixels' side three times
    assert "resnet50 and resnet101" in reasons["torchvision"]
    json.dumps(summary)


def test_ratios_are_those_to_the_encoder(summary):
    rows = measured(summary)
    encoder = rows[ENCODER]
    for row in rows.values():
        for ratio, cost in (
            ("forward_ratio", "forward_seconds"), ("step_ratio", "step_seconds"), ("memory_ratio", "step_bytes"),
        ):  # fmt: skip
            assert row[ratio] == row[cost] / encoder[cost] > 0
        assert row["images_per_second"] == TINY.batch_size / row["step_seconds"]
        work = 3 * row["forward_flops"] / row["step_seconds"]
        assert row["peak_share"] == pytest.approx(work / summary["peak_flops"])
    assert [encoder[ratio] for ratio in ("forward_ratio", "step_ratio", "memory_ratio")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "arch", "options"),
    [
        ("fcn8s", "fcn8s", {}),
        ("fcn8s-no-hidden", "fcn8s", {"decoder_hidden_channels": 0}),
        ("unet", "unet", {}),
        ("upernet", "upernet", {}),
    ],
)
def test_parameters_are_those_of_the_network(summary, name, arch, options):
    network = smp.create_model(arch, encoder_name="tu-test_resnet", encoder_weights=None, classes=3, **options)
    assert measured(summary)[name]["parameters"] == sum(parameter.numel() for parameter in network.parameters())


def test_parameters_of_the_encoder_are_those_of_no_decoder(summary):
    network = smp.create_model("unet", encoder_name="tu-test_resnet", encoder_weights=None)
    assert measured(summary)[ENCODER]["parameters"] == sum(map(torch.Tensor.numel, network.encoder.parameters()))


def test_work_and_memory_grow_with_the_network(summary):
    rows = measured(summary)
    # Without hidden layers FCN-8s adds three scores to the encoder: 1x1 convolutions to 3 classes at strides 32, 16 and
    # 8, and two fixed upsamplings of their sums by kernels of 4x4 over 5x5 and 7x7 pixels.
    *_, fine, middle, coarse = smp.encoders.get_encoder("tu-test_resnet", weights=None).out_channels
    scores = 3 * (coarse * 2**2 + middle * 4**2 + fine * 8**2) + 3 * 4**2 * (5**2 + 7**2)
    extra = rows["fcn8s-no-hidden"]["forward_flops"] - rows[ENCODER]["forward_flops"]
    assert extra == 2 * TINY.batch_size * scores
    logits = 4 * TINY.batch_size * 3 * 64 * 64
    assert rows["fcn8s-no-hidden"]["step_bytes"] >= logits
    assert rows["fcn8s"]["step_bytes"] > rows["fcn8s-no-hidden"]["step_bytes"]
    assert rows["unet"]["step_bytes"] > rows["fcn8s"]["step_bytes"]


def test_memory_is_counted_to_the_byte():
    def allocate():
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(5000, dtype=torch.uint8)
        del first
        return second, torch.empty(300, dtype=torch.uint8)

    assert peak_bytes(allocate, CPU) == 6000
    assert peak_bytes(lambda: torch.empty(7000, dtype=torch.uint8), CPU) == 7000
    assert peak_bytes(lambda: None, CPU) == 0


def test_a_layer_holds_what_its_gradients_need():
    layer = nn.Conv2d(3, 8, kernel_size=1)
    images = torch.randn(1, 3, 32, 32)
    kept = 4 * 8 * 32 * 32
    assert kept <= peak_bytes(lambda: layer(images).relu().sum().backward(), CPU) < 8 * kept


def test_the_command_prints_a_table_that_fits_a_terminal(command):
    archs = ["--arch", "fcn8s-no-hidden", "--arch", "torchvision"]
    arguments = ["benchmark", "test_resnet", "--size", "64x96", "--device", "cpu", "--rounds", "1", *archs]
    code, output, _ = command(*arguments)
    assert code == 0
    lines = output.splitlines()
    assert f"torch {torch.__version__.partition('+')[0]}" in lines[0]
    assert f"{torch.get_num_threads()} thread" in lines[0]
    assert lines[1] == "$ fcn-smp " + " ".join(arguments)
    table = [line for line in lines if line[0] in "┃│"]
    assert max(map(len, table)) <= 80
    assert "…" not in output
    cells = {row[0]: row[1:] for row in ([cell.strip() for cell in line[1:-1].split("│")] for line in table[2:])}
    assert cells["encoder"][2:5] == ["1.00", "1.00", "1.00"]
    assert cells["torchvision"] == ["-"] * 7
    assert "2 images of 64x96" in output
    assert "torchvision: torchvision has an FCN for resnet50 and resnet101 alone." in lines


def test_the_command_prints_json_with_all_that_was_asked_for(command, monkeypatch):
    # The compiler itself would take a minute; what it is given is the same.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    code, output, _ = command(
        "benchmark", "test_resnet", "--size", "32", "--batch-size", "3", "--device", "cpu", "--rounds", "1", "--json",
        "--arch", "fcn32s", "--precision", "bf16", "--compile", "--optimizer",
    )  # fmt: skip
    assert code == 0
    summary = json.loads(output)
    assert [row["name"] for row in summary["networks"]] == ["encoder", "encoder*", "fcn32s", "fcn32s*"]
    assert summary["setting"] == {
        "encoder": "tu-test_resnet", "size": [32, 32], "batch_size": 3, "classes": 21, "device": "cpu",
        "precision": "bf16", "compiled": True, "optimizer": True, "rounds": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet5O"], "Did you mean resnet50"),
        (["test_resnet", "--arch", "fcn8"], "There is no architecture fcn8; did you mean fcn8s?"),
        (["test_resnet", "--arch", "Unet"], "did you mean unet?"),
        (["test_resnet", "--arch", "qqqq"], "There is no architecture qqqq; known are "),
        (["test_resnet", "--size", "64x"], "--size 64x should be a side in pixels"),
        (["test_resnet", "--size", "0"], "--size 0 should be"),
        (["test_resnet", "--device", "cuda:99"], "--device cuda:99 is not to be had here"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(command, arguments, message):
    code, output, error = command("benchmark", *arguments)
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert message in error
