"""Which parameter learns at which rate, and how the rate changes."""

import math
import re
from collections.abc import Callable
from itertools import pairwise

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.base import SegmentationModel
from torch import nn

import fcn_smp  # noqa: F401
from fcn_smp.optim import constant, cosine, freeze, parameter_groups, poly, warm_up_then

LR, ENCODER_LR, DECAY = 0.1, 0.01, 0.5
ENCODERS = ["resnet18", "vgg11_bn", "tu-convnext_atto"]

DECAYS = {"cosine": cosine, "poly": poly(0.9), "poly 2": poly(2.0), "constant": constant}


@pytest.fixture(params=ENCODERS)
def model(request: pytest.FixtureRequest) -> SegmentationModel:
    with torch.device("meta"):  # values do not matter, and drawing them takes long
        return smp.create_model(
            "fcn8s",
            encoder_name=request.param,
            encoder_weights=None,
            classes=3,
            decoder_learn_upsampling=True,
            aux_params={"classes": 2},
        )


def expected_settings(model: nn.Module, bias_lr_factor: float = 1.0) -> dict[str, tuple[float, float]]:
    """Go through the modules: rate and decay of each parameter, by what it is and where it lies."""
    settings = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            is_norm = "Norm" in type(module).__name__
            is_bias = name.endswith("bias")
            is_scale = name.endswith("gamma")  # of ConvNeXt's blocks: one factor a channel, as of a normalisation
            rate = (ENCODER_LR if path.startswith("encoder.") else LR) * (bias_lr_factor if is_bias else 1)
            if parameter.requires_grad:
                settings[name] = (rate, 0.0 if is_norm or is_bias or is_scale else DECAY)
    return settings


def actual_settings(model: SegmentationModel, *options: float) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, LR, ENCODER_LR, DECAY, *options)
    assert all(group["params"] for group in groups)
    given_out = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    settings = dict(given_out)
    assert len(settings) == len(given_out)
    return settings


def test_each_parameter_has_its_rate_and_decay_once(model: SegmentationModel) -> None:
    settings = actual_settings(model)
    assert settings == expected_settings(model)
    assert set(settings.values()) == {(LR, DECAY), (LR, 0.0), (ENCODER_LR, DECAY), (ENCODER_LR, 0.0)}


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_biases_learn_at_a_rate_of_their_own(model: SegmentationModel, factor: float) -> None:
    settings = actual_settings(model, factor)
    assert settings == expected_settings(model, factor)
    biases = {name for name, (rate, _) in settings.items() if rate in (factor * LR, factor * ENCODER_LR)}
    assert biases == {name for name in settings if name.rpartition(".")[2] == "bias"}
    assert {"decoder.score.bias", "classification_head.3.bias"} <= biases


def test_equal_rates_keep_encoder_and_decoder_apart() -> None:
    with torch.device("meta"):
        model = smp.create_model("fcn32s", encoder_name="resnet18", encoder_weights=None, classes=3)
    groups = parameter_groups(model, LR, LR, 0.0, 1.0)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("encoder", LR, 0.0),
        ("decoder", LR, 0.0),
    ]
    assert [len(group["params"]) for group in groups] == [
        len(list(model.encoder.parameters())),
        len(list(model.decoder.parameters())),
    ]


PARTS = [
    ["encoder"],
    ["decoder"],
    ["encoder", "decoder.hidden"],
    ["decoder.score.weight"],
    ["decoder.skip_scores.1", "decoder.score.bias", "classification_head"],
    ["decoder.hidden.0", "decoder.hidden.0"],
    [],
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_what_is_named_and_nothing_else_is_frozen(model: SegmentationModel, parts: list[str]) -> None:
    everything = dict(model.named_parameters())
    inside = {name for name in everything if any(f"{name}.".startswith(f"{part}.") for part in parts)}
    freeze(model, parts)
    assert {name for name, parameter in everything.items() if not parameter.requires_grad} == inside
    assert bool(inside) == bool(parts)
    settings = actual_settings(model, 2.0)
    assert settings == expected_settings(model, 2.0)
    assert set(settings) == set(everything) - inside


@pytest.mark.parametrize(
    ("part", "near"),
    [
        ("encodr", "encoder"),
        ("decoder.hiden", "decoder.hidden"),
        ("decoder.score.weights", "decoder.score"),
        ("decoder.scor", "decoder.score"),  # how names begin is not enough
        ("decoder.hidden.99", "decoder.hidden"),
        ("model.encoder", "encoder"),
        ("xyz", "such as encoder or decoder.hidden"),
        ("segmentation_head", ""),  # there, but without weights
        ("encoder.bn1.running_mean", ""),
    ],
)
def test_an_unknown_part_is_answered_with_near_ones(part: str, near: str) -> None:
    with torch.device("meta"):
        model = smp.create_model("fcn8s", encoder_name="resnet18", encoder_weights=None, classes=3)
    with pytest.raises(ValueError, match=re.escape(repr(part))) as caught:
        freeze(model, [part])
    assert near in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parts", [["encoder", "decoder"], [""], ["decoder", "encoder.conv1", "encoder"]], ids=str)
def test_something_must_be_left_to_train(parts: list[str]) -> None:
    with torch.device("meta"):
        model = smp.create_model("fcn8s", encoder_name="resnet18", encoder_weights=None, classes=3)
    with pytest.raises(ValueError, match="at least one"):
        freeze(model, parts)


def test_frozen_parameters_are_left_out(model: SegmentationModel) -> None:
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    model.decoder.score.weight.requires_grad_(False)
    settings = actual_settings(model)
    assert settings == expected_settings(model)
    assert {rate for rate, _ in settings.values()} == {LR}
    assert "decoder.score.weight" not in settings
    assert "decoder.score.bias" in settings


def test_groups_are_named_and_an_optimizer_takes_them(model: SegmentationModel) -> None:
    groups = parameter_groups(model, LR, ENCODER_LR, DECAY)
    assert {(group["name"], group["lr"]) for group in groups} == {("encoder", ENCODER_LR), ("decoder", LR)}
    optimizer = torch.optim.SGD(groups, lr=1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in groups]


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
def test_warm_up_rises_from_its_first_share_to_the_peak(decay: Callable[[float], float]) -> None:
    factor = warm_up_then(decay, 4, 20)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (5, 5), (5, 3), (0, 0)])
def test_training_may_be_as_short_as_its_warm_up(decay: Callable[[float], float], warmup: int, total: int) -> None:
    factor = warm_up_then(decay, warmup, total)
    assert all(0 <= factor(step) <= 1 for step in range(10))
    assert factor(warmup) == 1


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 300), st.sampled_from(list(DECAYS.values())))
def test_rate_falls_from_the_peak_and_is_never_negative(
    warmup: int, rest: int, decay: Callable[[float], float]
) -> None:
    factor = warm_up_then(decay, warmup, warmup + rest)
    values = [factor(step) for step in range(warmup + rest + 5)]
    assert values[warmup] == max(values) == 1
    assert all(one >= other for one, other in pairwise(values[warmup:]))
    assert min(values) >= 0


def test_cosine_is_half_a_wave() -> None:
    factor = warm_up_then(cosine, 10, 10 + 600)
    for step, value in [(10, 1), (110, (1 + math.sqrt(3) / 2) / 2), (210, 0.75), (310, 0.5), (410, 0.25), (610, 0)]:
        assert factor(step) == pytest.approx(value, abs=1e-12)
    assert 0 < factor(609) < 1e-5


@pytest.mark.parametrize("power", [0.9, 1.0, 2.5])
def test_poly_is_a_power_of_what_is_left(power: float) -> None:
    factor = warm_up_then(poly(power), 10, 110)
    for step in range(10, 110):
        assert factor(step) == pytest.approx(((110 - step) / 100) ** power, rel=1e-9)
    assert factor(110) == 0
    assert 0 < factor(109) < 0.02


def test_constant_keeps_the_rate() -> None:
    factor = warm_up_then(constant, 2, 50)
    assert {factor(step) for step in range(2, 60)} == {1.0}


def test_scheduler_applies_the_factor_to_both_rates() -> None:
    model = smp.create_model("fcn32s", encoder_name="resnet18", encoder_weights=None, classes=2)
    optimizer = torch.optim.SGD(parameter_groups(model, LR, ENCODER_LR, DECAY))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_then(cosine, 2, 6))
    for factor in (0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5):
        for group in optimizer.param_groups:
            base = ENCODER_LR if group["name"] == "encoder" else LR
            assert group["lr"] == pytest.approx(base * factor)
        optimizer.step()
        scheduler.step()
