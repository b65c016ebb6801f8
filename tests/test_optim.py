"""Which parameter learns at which rate, and how the rate changes."""

import math
import re
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.base import SegmentationModel
from torch import Tensor, nn

import fcn_smp  # noqa: F401
from fcn_smp.optim import batch_factor, build_optimizer, freeze, learning_rate_factor, parameter_groups
from fcn_smp.recipe import Constant, Cosine, Poly, Schedule, Step

LR, ENCODER_LR, DECAY = 0.1, 0.01, 0.5
ENCODERS = ["resnet18", "vgg11_bn", "tu-convnext_atto"]


def build(encoder_name: str, arch: str = "fcn8s", **options: Any) -> SegmentationModel:
    # Values do not matter, and drawing them takes long. SMP's MiT is only built with them.
    with nullcontext() if encoder_name.startswith("mit") else torch.device("meta"):
        return smp.create_model(arch, encoder_name=encoder_name, encoder_weights=None, classes=3, **options)


@pytest.fixture(params=ENCODERS)
def model(request: pytest.FixtureRequest) -> SegmentationModel:
    return build(request.param, decoder_learn_upsampling=True, aux_params={"classes": 2})


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
    model = build("resnet18", "fcn32s")
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
    model = build("resnet18")
    with pytest.raises(ValueError, match=re.escape(repr(part))) as caught:
        freeze(model, [part])
    assert near in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parts", [["encoder", "decoder"], [""], ["decoder", "encoder.conv1", "encoder"]], ids=str)
def test_something_must_be_left_to_train(parts: list[str]) -> None:
    model = build("resnet18")
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


# Blocks of the encoder

BLOCKS = {
    "resnet18": ["conv1|bn1", *(rf"layer{stage}\.{block}" for stage in range(1, 5) for block in range(2))],
    "vgg11": [rf"features\.{conv}" for conv in (0, 3, 6, 8, 11, 13, 16, 18)],
    "vgg11_bn": [rf"features\.({conv}|{conv + 1})" for conv in (0, 4, 8, 11, 15, 18, 22, 25)],
    "mobilenet_v2": [rf"features\.{block}" for block in range(19)],
    "mit_b0": [
        block
        for stage in range(1, 5)
        for block in (f"patch_embed{stage}", rf"block{stage}\.0", rf"block{stage}\.1|norm{stage}")
    ],
    "tu-test_resnet": [r"model\.(conv1|bn1)", *(rf"model\.layer{stage}\.0" for stage in range(1, 5))],
    "tu-test_vit": [
        r"model\.model\.(patch_embed|pos_embed|cls_token)",
        *(rf"model\.model\.blocks\.{block}" for block in range(6)),
    ],
    "tu-convnext_atto": [
        r"model\.stem_[01]",
        *(
            rf"model\.stages_{stage}\.({'downsample|' if block == 0 else ''}blocks\.{block})"
            for stage, depth in enumerate((2, 2, 6, 2))
            for block in range(depth)
        ),
    ],
}


@pytest.mark.parametrize("layer_decay", [0.75, 0.5])
@pytest.mark.parametrize("encoder", BLOCKS)
def test_rates_of_the_encoder_fall_from_block_to_block_towards_its_input(encoder: str, layer_decay: float) -> None:
    model = build(encoder)
    plain = actual_settings(model, 2.0)
    blocks = BLOCKS[encoder]
    seen = set()
    for name, (rate, decay) in actual_settings(model, 2.0, layer_decay).items():
        plain_rate, plain_decay = plain[name]
        factor = 1.0
        if name.startswith("encoder."):
            (number,) = (k for k, block in enumerate(blocks) if re.match(rf"encoder\.({block})(\.|$)", name))
            seen.add(number)
            factor = layer_decay ** (len(blocks) - 1 - number)
        assert rate == pytest.approx(plain_rate * factor, rel=1e-12)
        assert decay == plain_decay
    assert seen == set(range(len(blocks)))


@pytest.mark.parametrize(
    "encoder",
    [
        "densenet121",
        "se_resnet50",
        "xception",
        "timm-skresnet18",
        "timm-mobilenetv3_small_minimal_100",
        "tu-test_efficientnet",
        "tu-vgg11_bn",
        "tu-pit_ti_224",  # whose authors name no blocks
        "tu-inception_resnet_v2",  # which has parts named repeat.1 and repeat_1
        "tu-swin_tiny_patch4_window7_224",
        "tu-levit_128s",
    ],
)
def test_rates_never_fall_on_the_way_of_the_image(encoder: str) -> None:
    model = build(encoder)
    rates = {name: rate for name, (rate, _) in actual_settings(model, 1.0, 0.5).items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    passed: list[str] = []
    for module in model.encoder.modules():
        own = [names[id(parameter)] for parameter in module.parameters(recurse=False)]
        module.register_forward_pre_hook(lambda _module, _inputs, own=own: passed.extend(own))
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    assert len(passed) > 0.7 * len(list(model.encoder.parameters()))
    assert all(rates[one] <= rates[other] for one, other in pairwise(passed))
    distances = {math.log2(ENCODER_LR / rates[name]) for name in passed}
    assert distances == set(range(len(distances)))
    assert len(distances) >= 5


@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_vit"])
def test_what_is_frozen_does_not_move_the_blocks(encoder: str) -> None:
    model = build(encoder)
    settings = actual_settings(model, 1.0, 0.5)
    last = "layer4" if encoder == "resnet18" else "model.model.blocks.5"
    freeze(model, [f"encoder.{last}"])
    assert actual_settings(model, 1.0, 0.5).items() < settings.items()


def test_groups_that_agree_are_one() -> None:
    groups = parameter_groups(build("resnet18"), LR, ENCODER_LR, DECAY, 3.0, 0.5)
    settings = [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
    assert len(set(settings)) == len(settings)
    # Of each of the nine blocks and of the decoder: weights, biases, and factors of normalisation.
    assert len(settings) == 3 * (9 + 1)


EXCEPTIONS = {
    "tu-test_vit": {"encoder.model.model.pos_embed", "encoder.model.model.cls_token"},
    "tu-swin_tiny_patch4_window7_224": {
        f"encoder.model.layers_{stage}.blocks.{block}.attn.relative_position_bias_table"
        for stage, depth in enumerate((2, 2, 6, 2))
        for block in range(depth)
    },
    "tu-coat_lite_tiny": {f"encoder.model.model.cls_token{stage}" for stage in range(1, 5)},
    "tu-convnext_atto": set(),
    "resnet18": set(),
}


@pytest.mark.parametrize("encoder", EXCEPTIONS)
def test_what_the_authors_except_does_not_decay(encoder: str) -> None:
    model = build(encoder)
    decays = {name: decay for name, (_, decay) in actual_settings(model).items()}
    large = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    assert {name for name in large if decays[name] == 0} == EXCEPTIONS[encoder]
    assert {name for name, decay in decays.items() if decay == DECAY} == large - EXCEPTIONS[encoder]


# The factor for another batch


def test_rates_follow_the_batch() -> None:
    assert batch_factor("sgd", 32, 8) == 4
    assert batch_factor("sgd", 2, 8) == 0.25
    for kind in ("adam", "adamw"):
        assert batch_factor(kind, 32, 8) == 2
        assert batch_factor(kind, 2, 8) == 0.5


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_rates_stay_without_a_reference_or_with_its_batch(kind: str) -> None:
    assert batch_factor(kind, 7, None) == 1
    assert batch_factor(kind, 7, 7) == 1


# Optimisers

OPTIMIZERS = {
    "adamw": ("adamw", {}),
    "adam": ("adam", {}),
    "sgd": ("sgd", {}),
    "sgd without momentum": ("sgd", {"momentum": 0.0}),
    "nesterov": ("sgd", {"nesterov": True}),
}
each_optimizer = pytest.mark.parametrize(("kind", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS)


def small_model() -> SegmentationModel:
    torch.manual_seed(0)
    return smp.create_model("fcn8s", encoder_name="tu-test_resnet", encoder_weights=None, classes=3)


def steps(optimizer: torch.optim.Optimizer, model: nn.Module, count: int = 3) -> None:
    """Take steps with gradients that do not depend on the weights."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient if parameter.requires_grad else None
        optimizer.step()


def reference(kind: str, weight: Tensor, gradients: list[Tensor], lr: float, decay: float, **options: Any) -> Tensor:
    """Write out the updates of the papers in float64."""
    momentum, nesterov = options.get("momentum", 0.9), options.get("nesterov", False)
    first = second = torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        if kind != "adamw":
            gradient = gradient + decay * weight
        if kind == "sgd":
            first = momentum * first + gradient
            weight = weight - lr * (gradient + momentum * first if nesterov else first)
        else:
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            update = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            weight = weight - lr * update - (lr * decay * weight if kind == "adamw" else 0)
    return weight


@pytest.mark.parametrize("fused", [False, True], ids=["not fused", "fused"])
@each_optimizer
def test_steps_are_those_of_the_papers(kind: str, options: dict[str, Any], fused: bool) -> None:
    weights = [torch.randn(4, 3), torch.randn(5)]
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    rates = [(0.1, 0.2), (0.01, 0.0)]
    groups = [
        {"name": "decoder", "params": [parameter], "lr": lr, "weight_decay": decay}
        for parameter, (lr, decay) in zip(parameters, rates, strict=True)
    ]
    optimizer = build_optimizer(kind, groups, fused=fused, **options)
    gradients = [[torch.randn_like(weight) for _ in range(4)] for weight in weights]
    for step in range(4):
        for parameter, of_parameter in zip(parameters, gradients, strict=True):
            parameter.grad = of_parameter[step].clone()
        optimizer.step()
    for weight, parameter, of_parameter, (lr, decay) in zip(weights, parameters, gradients, rates, strict=True):
        expected = reference(kind, weight.double(), [each.double() for each in of_parameter], lr, decay, **options)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-4, atol=1e-5)


@each_optimizer
def test_fused_steps_are_those_of_all_others(kind: str, options: dict[str, Any]) -> None:
    models = []
    for fused in (False, True):
        model = small_model()
        optimizer = build_optimizer(kind, parameter_groups(model, LR, ENCODER_LR, DECAY), fused=fused, **options)
        assert optimizer.defaults["fused"] is (fused or None)  # False would also forbid what is called foreach
        assert optimizer.defaults["foreach"] is None
        steps(optimizer, model)
        models.append(model)
    before, (plain, fast) = small_model().state_dict(), (model.state_dict() for model in models)
    assert any(not torch.equal(before[name], plain[name]) for name in before)
    torch.testing.assert_close(plain, fast, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True], ids=["not fused", "fused"])
@each_optimizer
def test_frozen_parameters_stay(kind: str, options: dict[str, Any], fused: bool) -> None:
    model = small_model()
    # Of those that are trained later the optimiser knows from the start.
    optimizer = build_optimizer(kind, parameter_groups(model, LR, ENCODER_LR, DECAY), fused=fused, **options)
    freeze(model, ["encoder"])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    steps(optimizer, model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("encoder.")
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(True)
    steps(optimizer, model)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name])


@each_optimizer
def test_optimizer_keeps_rates_and_names(kind: str, options: dict[str, Any]) -> None:
    groups = parameter_groups(small_model(), LR, ENCODER_LR, DECAY, 2.0, 0.5)
    optimizer = build_optimizer(kind, groups, fused=False, **options)
    for key in ("name", "lr", "weight_decay"):
        assert [group[key] for group in optimizer.param_groups] == [group[key] for group in groups]


# Schedules

SCHEDULES = {
    "cosine": {"kind": "cosine"},
    "cosine to 0.1": {"kind": "cosine", "final": 0.1},
    "poly": {"kind": "poly"},
    "poly 2": {"kind": "poly", "power": 2.0},
    "step": {"kind": "step", "epochs": [3, 5]},
    "constant": {"kind": "constant"},
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@each_schedule
def test_warm_up_rises_from_its_first_share_to_the_peak(schedule: dict[str, Any]) -> None:
    factor = learning_rate_factor(**schedule, warmup_steps=4, steps_per_epoch=10, total_steps=60)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@each_schedule
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (5, 5), (5, 3), (0, 0)])
def test_training_may_be_as_short_as_its_warm_up(schedule: dict[str, Any], warmup: int, total: int) -> None:
    factor = learning_rate_factor(**schedule, warmup_steps=warmup, steps_per_epoch=max(total, 2), total_steps=total)
    assert all(0 <= factor(step) <= 1 for step in range(10))
    assert factor(warmup) == 1


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 300), st.integers(11, 100), st.sampled_from(list(SCHEDULES.values())))
def test_rate_falls_from_the_peak_and_is_never_negative(
    warmup: int, rest: int, steps_per_epoch: int, schedule: dict[str, Any]
) -> None:
    factor = learning_rate_factor(
        **schedule, warmup_steps=warmup, steps_per_epoch=steps_per_epoch, total_steps=warmup + rest
    )
    values = [factor(step) for step in range(warmup + rest + 5)]
    assert values[warmup] == max(values) == 1
    assert all(one >= other for one, other in pairwise(values[warmup:]))
    assert min(values) >= 0


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_cosine_is_half_a_wave(final: float) -> None:
    factor = learning_rate_factor("cosine", warmup_steps=10, steps_per_epoch=7, total_steps=10 + 600, final=final)
    for step, value in [(10, 1), (110, (1 + math.sqrt(3) / 2) / 2), (210, 0.75), (310, 0.5), (410, 0.25), (610, 0)]:
        assert factor(step) == pytest.approx(final + (1 - final) * value, abs=1e-12)
    assert 0 < factor(609) - final < 1e-5
    assert factor(700) == final


@pytest.mark.parametrize("power", [0.9, 1.0, 2.5])
def test_poly_is_a_power_of_what_is_left(power: float) -> None:
    factor = learning_rate_factor("poly", warmup_steps=10, steps_per_epoch=7, total_steps=110, power=power)
    for step in range(10, 110):
        assert factor(step) == pytest.approx(((110 - step) / 100) ** power, rel=1e-9)
    assert factor(110) == factor(120) == 0
    assert 0 < factor(109) < 0.02


@pytest.mark.parametrize("warmup", [0, 5, 27])
@pytest.mark.parametrize("factor", [0.1, 0.5])
def test_steps_fall_after_epochs_of_the_whole_training(factor: float, warmup: int) -> None:
    options = {"steps_per_epoch": 7, "total_steps": 70, "epochs": [6, 2], "factor": factor}
    factor_at = learning_rate_factor("step", warmup_steps=warmup, **options)
    for step in range(70):
        falls = (step >= 2 * 7) + (step >= 6 * 7)
        expected = (step + 1) / warmup if step < warmup else factor**falls
        assert factor_at(step) == pytest.approx(expected, rel=1e-12)


def test_constant_keeps_the_rate() -> None:
    factor = learning_rate_factor("constant", warmup_steps=2, steps_per_epoch=7, total_steps=50)
    assert {factor(step) for step in range(2, 60)} == {1.0}


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        (Cosine(kind="cosine", warmup_steps=2, final=0.5), 0.75),
        (Poly(kind="poly", warmup_steps=2, power=2.0), 0.25),
        (Step(kind="step", warmup_steps=2, epochs=[2, 4], factor=0.2), 0.2),
        (Constant(kind="constant", warmup_steps=2), 1.0),
    ],
    ids=["cosine", "poly", "step", "constant"],
)
def test_schedules_of_a_recipe_are_understood(schedule: Schedule, factor: float) -> None:
    factor_at = learning_rate_factor(**schedule.model_dump(), steps_per_epoch=3, total_steps=18)
    assert factor_at(0) == 0.5
    assert factor_at(10) == pytest.approx(factor)


def test_scheduler_applies_the_factor_to_both_rates() -> None:
    model = small_model()
    optimizer = build_optimizer("sgd", parameter_groups(model, LR, ENCODER_LR, DECAY), fused=False)
    factor_at = learning_rate_factor("cosine", warmup_steps=2, steps_per_epoch=3, total_steps=6)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor_at)
    for factor in (0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5):
        for group in optimizer.param_groups:
            base = ENCODER_LR if group["name"] == "encoder" else LR
            assert group["lr"] == pytest.approx(base * factor)
        optimizer.step()
        scheduler.step()
