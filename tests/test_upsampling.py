"""Upsampling, held against Caffe's published formula and against bilinear interpolation written as two matrices."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_smp.models.upsampling import FuseInterpolated, FuseUpsampled, Upsample, bilinear_kernel

quick = settings(deadline=None, max_examples=40)
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)


def random_map(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bilinear(x, factor, height, width):
    """Interpolate at the pixel centres of a map anchored at the top-left; beyond the last centre the edge goes on."""

    def matrix(old, new):
        centres = ((torch.arange(new, dtype=torch.float64) + 0.5) / factor - 0.5).clamp(0, old - 1)
        return (1 - (centres[:, None] - torch.arange(old)).abs()).clamp(min=0)

    return matrix(x.shape[2], height) @ x @ matrix(x.shape[3], width).T


def reference_of(height, width):
    """Return the scores of a skip that has nothing to add."""
    return torch.zeros(1, 1, height, width, dtype=torch.float64)


@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
def test_kernel_is_that_of_the_caffe_implementation(factor):
    size = 2 * factor
    caffe_factor = (size + 1) // 2
    centre = caffe_factor - 1 if size % 2 == 1 else caffe_factor - 0.5
    expected = [
        [(1 - abs(i - centre) / caffe_factor) * (1 - abs(j - centre) / caffe_factor) for j in range(size)]
        for i in range(size)
    ]
    kernel = bilinear_kernel(factor)
    torch.testing.assert_close(kernel, torch.tensor(expected))
    assert kernel.sum().item() == pytest.approx(factor**2)


@quick
@given(batch=st.integers(1, 3), channels=st.integers(1, 5), height=sizes, width=sizes, seed=seeds)
def test_fixed_doubling_is_bilinear_interpolation(batch, channels, height, width, seed):
    x = random_map(seed, batch, channels, height, width)
    doubled = FuseUpsampled(channels).double()(x, reference_of(2 * height, 2 * width))
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(doubled, expected, rtol=0, atol=1e-12)


@quick
@given(
    learned=st.booleans(),
    height=sizes,
    width=sizes,
    taller=st.sampled_from([-1, 0, 1]),
    wider=st.sampled_from([-1, 0, 1]),
    seed=seeds,
)
def test_doubling_meets_even_and_odd_sizes(learned, height, width, taller, wider, seed):
    x = random_map(seed, 2, 3, height, width)
    target = 2 * height + taller, 2 * width + wider
    doubled = FuseUpsampled(3, learned=learned).double()(x, reference_of(*target))
    torch.testing.assert_close(doubled, bilinear(x, 2, *target), rtol=0, atol=1e-12)


def test_fixed_doubling_has_nothing_to_learn_or_to_save():
    fixed = FuseUpsampled(4)
    assert list(fixed.parameters()) == []
    assert fixed.state_dict() == {}


def test_learned_doubling_trains_a_kernel_between_all_channels():
    learned = FuseUpsampled(3, learned=True).double()
    (weight,) = learned.parameters()
    assert weight.shape == (3, 3, 4, 4)
    learned(random_map(0, 2, 3, 5, 4), reference_of(11, 7)).square().sum().backward()
    assert (weight.grad != 0).all()


def test_learned_doubling_adds_what_one_channel_says_of_another():
    learned = FuseUpsampled(2, learned=True).double()
    x = random_map(1, 1, 2, 4, 5)
    with torch.no_grad():
        learned.upsample.weight[0, 1] = 3 * learned.upsample.weight[0, 0]
    doubled = bilinear(x, 2, 8, 10)
    expected = torch.stack([doubled[:, 0], doubled[:, 1] + 3 * doubled[:, 0]], dim=1)
    torch.testing.assert_close(learned(x, reference_of(8, 10)), expected, rtol=0, atol=1e-12)


@quick
@given(data=st.data(), stride=st.sampled_from([1, 2, 4, 8, 16, 32]), height=sizes, width=sizes, seed=seeds)
def test_last_upsampling_reaches_any_input_that_the_map_can_stem_from(data, stride, height, width, seed):
    def input_size(old):
        spare = 0 if stride == 1 else stride
        return data.draw(st.integers(max(1, stride * (old - 1)), stride * old + spare))

    target = input_size(height), input_size(width)
    x = random_map(seed, 1, 2, height, width)
    upsampled = Upsample(stride)(x, reference_of(*target))
    torch.testing.assert_close(upsampled, bilinear(x, stride, *target), rtol=0, atol=1e-12)


@quick
@given(height=sizes, width=sizes, shorter=st.integers(0, 8), narrower=st.integers(0, 8))
def test_fitting_cuts_at_the_bottom_and_right_alone(height, width, shorter, narrower):
    x = random_map(0, 1, 2, height + shorter, width + narrower)
    skip = random_map(1, 1, 2, height, width)
    assert torch.equal(FuseInterpolated(1)(x, skip), x[:, :, :height, :width] + skip)


@pytest.mark.parametrize("learned", [False, True])
def test_the_scores_of_a_skip_are_added(learned):
    x, skip = random_map(0, 2, 3, 4, 5), random_map(1, 2, 3, 9, 10)
    fuse = FuseUpsampled(3, learned=learned).double()
    torch.testing.assert_close(fuse(x, skip) - skip, fuse(x, torch.zeros_like(skip)), rtol=0, atol=1e-12)
