"""The networks, held against the paper's arithmetic written straight down from the weights."""

import json
import subprocess
import sys
from copy import deepcopy
from itertools import product

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.export import Dim

import fcn_smp

STRIDES = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8, "fcn4s": 4, "fcn2s": 2}
SKIPS = {"fcn32s": 0, "fcn16s": 1, "fcn8s": 2, "fcn4s": 3, "fcn2s": 4}

# One of each kind: SMP's, VGG of SMP and of timm, one without a map of stride 2, and timm's by its bare name.
ROUND_UP = ["resnet18", "test_efficientnet"]
ROUND_DOWN = ["vgg11", "tu-vgg11", "tu-test_convnext"]
SIZES = [(97, 131), (64, 33), (32, 32), (63, 95)]


def build(arch, encoder="test_efficientnet", **options):
    if "vgg" in encoder:
        options.setdefault("decoder_hidden_channels", 8)
    options = {"encoder_weights": None, "classes": 2, **options}
    return smp.create_model(arch, encoder_name=encoder, **options).eval()


def scores_of(model):
    return [model.decoder.score, *model.decoder.skip_scores]


def with_random_scores(model, seed=0):
    """Return a copy whose scores say something; a new model's are zero."""
    generator = torch.Generator().manual_seed(seed)
    model = deepcopy(model)
    with torch.no_grad():
        for score in scores_of(model):
            score.weight.normal_(std=score.in_channels**-0.5, generator=generator)
            score.bias.normal_(generator=generator)
    return model


def images(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.fixture(
    scope="module",
    params=product(STRIDES, ROUND_UP + ROUND_DOWN),
    ids=lambda pair: "-".join(pair),
)
def fresh(request):
    return build(*request.param)


@pytest.fixture(scope="module")
def model(fresh):
    return with_random_scores(fresh)


@torch.no_grad()
def test_a_fresh_network_answers_zero(fresh):
    assert torch.equal(fresh(images(2, 3, 64, 96)), torch.zeros(2, 2, 64, 96))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_output_has_the_size_of_the_input(model, height, width):
    output = model(images(2, 3, height, width))
    assert output.shape == (2, 2, height, width)
    assert output.isfinite().all()
    assert output.std() > 0


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_score_that_is_everywhere_the_same_stays_so_up_to_the_last_pixel(fresh, height, width):
    model = deepcopy(fresh)
    for score, bias in zip(scores_of(model), [1.0, 2.0, 4.0, 8.0, 16.0], strict=False):
        score.bias.fill_(bias)
    expected = torch.full((1, 2, height, width), 2.0 ** len(scores_of(model)) - 1)
    torch.testing.assert_close(model(images(1, 3, height, width)), expected)


def test_every_parameter_learns(model):
    model = deepcopy(model).train()
    torch.manual_seed(0)
    model(images(2, 3, 96, 64)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@torch.no_grad()
@pytest.mark.parametrize("encoder", ROUND_UP)
@pytest.mark.parametrize("arch", STRIDES)
@settings(deadline=None, max_examples=8)
@given(height=st.integers(1, 140), width=st.integers(1, 140))
def test_encoders_that_round_up_take_any_size(arch, encoder, height, width):
    assert CACHE(arch, encoder)(images(1, 3, height, width)).shape == (1, 2, height, width)


@torch.no_grad()
@pytest.mark.parametrize("arch", STRIDES)
@settings(deadline=None, max_examples=12)
@given(height=st.integers(32, 140), width=st.integers(32, 140))
def test_encoders_that_round_down_take_any_size_from_32_on(arch, height, width):
    model = CACHE(arch, "tu-test_convnext")
    assert model(images(1, 3, height, width)).shape == (1, 2, height, width)
