"""Upsampling and cross-entropy in one operator, against torch's two and the networks' own upsampling."""

import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import build, images, narrowed, with_random_scores
from torch.utils._python_dispatch import TorchDispatchMode

from fcn_smp.losses import SegmentationLoss, upsampled_cross_entropy
from fcn_smp.models.caffe import UpsampleCropped
from fcn_smp.models.coarse import CoarseScores
from fcn_smp.models.upsampling import Upsample

VOID = 255


def plain(upsample, scores, target, **options):
    """Upsample by the network's own layer, and take torch's cross-entropy of all pixels."""
    borders = getattr(upsample, "borders", 0)
    image = torch.empty(1, 1, target.shape[1] + borders, target.shape[2] + borders)
    logits = upsample(scores, image)
    return F.cross_entropy(logits, target.long(), reduction="sum", **options)


def placed(upsample, scores, size):
    return CoarseScores(scores, *map(upsample.places, scores.shape[2:], size))


def value_and_gradient(loss, scores):
    scores = scores.clone().requires_grad_()
    value = loss(scores)
    value.backward()
    return value.detach(), scores.grad


def assert_same(upsample, scores, target, **options):
    expected, expected_gradient = value_and_gradient(lambda s: plain(upsample, s, target, **options), scores)
    value, gradient = value_and_gradient(
        lambda s: upsampled_cross_entropy(placed(upsample, s, target.shape[1:]), target, **options), scores
    )
    assert torch.isfinite(expected)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    # A score's gradient is a sum over the pixels around it, of which each adds 1 at most and some cancel others.
    pixels = target[0].numel() / scores[0, 0].numel()
    scale = expected_gradient.abs().max().clamp(min=max(1, pixels))
    torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=0, atol=1e-5)


def draw_scores(data, shape, spread):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    return spread * torch.randn(shape, generator=generator)


def draw_target(data, shape, classes, void):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    target = torch.randint(0, classes, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))] = void
    return target.to(data.draw(st.sampled_from([torch.uint8, torch.int64])))


@settings(deadline=None, max_examples=150)
@given(st.data())
@pytest.mark.parametrize("alignment", ["same", "caffe"])
def test_value_and_gradient_are_those_of_upsampling_and_cross_entropy(alignment, data):
    classes, (height, width) = data.draw(st.integers(1, 6)), data.draw(st.tuples(*[st.integers(1, 5)] * 2))
    shape = data.draw(st.integers(1, 3)), classes, height, width
    scores = draw_scores(data, shape, data.draw(st.sampled_from([1, 9])))
    if alignment == "same":
        factor = data.draw(st.sampled_from([1, 2, 8, 32, 2.5]))
        upsample, offset, most = Upsample(factor), 0, [int(factor * (n + (factor > 1))) for n in (height, width)]
    else:
        factor, offset = data.draw(st.sampled_from([(2, 0), (8, 3), (16, 27)]))
        upsample, most = UpsampleCropped(classes, factor, offset), [factor * (n + 1) - offset for n in (height, width)]
    assume(min(most) >= 1)
    size = [data.draw(st.integers(1, side)) for side in most]
    assume(all(side > n or side == n == 1 or factor == 1 for side, n in zip(size, (height, width), strict=True)))
    void = data.draw(st.sampled_from([VOID, 0]))
    weight = torch.rand(classes) if data.draw(st.booleans()) else None
    assert_same(
        upsample, scores, draw_target(data, (len(scores), *size), classes, void),
        weight=weight, ignore_index=void, label_smoothing=data.draw(st.sampled_from([0.0, 0.3])),
    )  # fmt: skip


@pytest.mark.parametrize("spread", [50, 1e4])
def test_neighbours_that_are_far_apart_leave_the_pixels_between_finite(spread):
    scores = torch.tensor([[[[spread, -spread]], [[-spread, spread]], [[0.0, 0.0]]]])
    target = torch.arange(16).view(1, 1, 16) % 3
    assert_same(Upsample(8), scores, target)


def test_images_of_many_bands_are_whole():
    generator = torch.Generator().manual_seed(0)
    scores, target = torch.randn(2, 150, 33, 40, generator=generator), torch.randint(0, 150, (2, 260, 317))
    assert len(list(placed(Upsample(8), scores, target.shape[1:]).bands())) > 10
    assert_same(Upsample(8), scores, target, label_smoothing=0.1)


def test_a_label_that_is_no_class_is_an_error():
    scores = placed(Upsample(2), torch.zeros(1, 3, 2, 2), (4, 4))
    for weight in (None, torch.ones(3)):
        for label in (3, 254, -1):
            with pytest.raises(ValueError, match=f"The label {label} is none of the classes 0 to 2, nor 255 for void"):
                upsampled_cross_entropy(scores, torch.full((1, 4, 4), label), weight)


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 16, 17), (2, 1, 16, 16), (2, 15, 16)], ids=str)
@pytest.mark.parametrize("terms", [{"cross_entropy": 1}, {"dice": 1}, {"lovasz": 1}, {"focal": 1}], ids=str)
def test_labels_of_another_shape_are_an_error(terms, shape):
    scores = placed(Upsample(8), torch.zeros(2, 3, 2, 2), (16, 16))
    with pytest.raises(ValueError, match=r"must be integers \(2, 16, 16\)"):
        SegmentationLoss(terms=terms)(scores, torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"terms": {"crossentropy": 1}}, "crossentropy"),
        ({"terms": {}}, "terms"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"reduction": "none"}, "reduction"),
        ({"ohem": 0.0}, "ohem"),
        ({"ignore_index": 300}, "ignore_index"),
        ({"focal_gamma": -1}, "focal_gamma"),
    ],
    ids=str,
)
def test_options_that_are_none_are_errors(options, word):
    with pytest.raises(ValueError, match=word):
        SegmentationLoss(**options)


def test_class_weights_are_as_many_as_the_classes():
    with pytest.raises(ValueError, match="3 class weights, got 5"):
        SegmentationLoss(torch.ones(5))(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="one logit"):
        SegmentationLoss(binary=True)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))


class Allocations(TorchDispatchMode):
    """Sees the largest tensor that an operator gives, in bytes."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


def test_the_logits_of_all_pixels_never_exist():
    scores, target = torch.randn(4, 21, 64, 64, requires_grad=True), torch.randint(0, 21, (4, 512, 512))
    logits = 4 * scores.numel() * 8 * 8
    with Allocations() as seen:
        plain(Upsample(8), scores, target).backward()
    assert seen.largest >= logits
    with Allocations() as seen:
        coarse = placed(Upsample(8), scores, (512, 512))
        SegmentationLoss(None, VOID)(coarse, target).backward()
        labels = [band.max(1).indices for band in coarse.logits()]
    assert len(labels) > 1
    assert target.nbytes <= seen.largest < logits / 8


# --- Of networks


NETWORKS = {
    "fcn32s": ("fcn32s", "test_efficientnet", {}),
    "fcn8s": ("fcn8s", "test_efficientnet", {}),
    "fcn2s of an odd pyramid": ("fcn2s", "test_convnext", {}),
    "enlarged or padded": ("fcn8s", "tu-test_vit", {}),
    "caffe": ("fcn8s", "vgg11", {"decoder_alignment": "caffe"}),
    "caffe, 16s": ("fcn16s", "vgg11", {"decoder_alignment": "caffe"}),
    "activation": ("fcn16s", "test_efficientnet", {"activation": "sigmoid"}),
    "dilated": ("dilatedfcn", "tu-test_resnet", {}),
    "U-Net": ("classicunet", "test_efficientnet", {}),
}


@pytest.mark.parametrize(("arch", "encoder", "options"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("size", [(64, 96), (75, 50), (3, 70)], ids=str)
def test_coarse_scores_are_the_networks_own_before_its_last_upsampling(arch, encoder, options, size):
    with narrowed(encoder, 8) if encoder == "vgg11" else nullcontext():
        model = build(arch, encoder, classes=3, **options)
    model = with_random_scores(model) if "fcn" in arch else model
    x = images(2, 3, *size)
    with torch.inference_mode():
        coarse, expected = model.coarse(x), model(x)
    assert coarse.size == size
    logits = torch.cat(list(coarse.logits()), 2)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    if arch.endswith("8s") and "activation" not in options:
        assert coarse.scores.numel() < expected.numel() / 4 or size == (3, 70)


def test_bands_are_of_full_precision_and_leave_autocast_as_it_is():
    scores = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    coarse = placed(Upsample(32), scores, (288, 288))
    expected = list(coarse.logits())
    with torch.autocast("cpu", torch.bfloat16):
        for logits, other in zip(coarse.logits(), expected, strict=True):
            assert torch.is_autocast_enabled("cpu")
            assert torch.equal(logits, other)


# --- The kernels


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


INTERPRETED = """
import torch, torch.nn.functional as F
torch.set_num_threads(1)
import fcn_smp.losses.kernels as kernels
from test_cross_entropy import placed, plain, value_and_gradient
from fcn_smp.models.caffe import UpsampleCropped
from fcn_smp.models.upsampling import Upsample

kernels._BLOCK = 4  # so that there are several
generator = torch.Generator().manual_seed(0)
for upsample, classes, map_size, size, weighted, smoothing in (
    (Upsample(2), 3, (3, 2), (6, 5), False, 0.0),
    (Upsample(2), 2, (2, 3), (4, 7), True, 0.3),
    (UpsampleCropped(3, 2, 1), 3, (3, 3), (5, 6), True, 0.0),
):
    scores = 3 * torch.randn(2, classes, *map_size, generator=generator)
    target = torch.randint(0, classes, (2, *size), generator=generator, dtype=torch.uint8)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    weight = torch.rand(classes, generator=generator) if weighted else None
    options = {"weight": weight, "ignore_index": 255, "label_smoothing": smoothing}
    expected = value_and_gradient(lambda s: plain(upsample, s, target, **options), scores)
    found = value_and_gradient(
        lambda s: 2 * kernels.upsampled_cross_entropy(placed(upsample, s, size), target, weight, 255, smoothing), scores
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one / 2, other, rtol=1e-5, atol=1e-5)
target[:] = classes  # no class
assert kernels.upsampled_cross_entropy(placed(upsample, scores, size), target, None, 255, 0.0).isnan()
print("the same")
"""


@needs_triton
def test_kernels_give_the_same_as_triton_interprets_them(tmp_path):
    """In a process of its own: Triton is for interpreting or for compiling from its import on."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_INTERPRET": "1",
    }
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout


@needs_triton
def test_kernels_compile_for_a_gpu_that_need_not_be_there(monkeypatch, tmp_path):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fcn_smp.losses.kernels import _gradients, _losses

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # as it is; left unsaid, it is warned of

    floats = ["scores", "rows", "columns", "weight", "total_weight", "loss", "log_sum", "gradient"]
    integers = ["first_rows", "row_counts", "first_columns", "column_counts"]
    for kernel in (_losses, _gradients):
        for labels in ("*i64", "*u8"):
            kinds = {"target": labels, "smoothing": "fp32", "BLOCK": "constexpr"}
            kinds |= dict.fromkeys(floats, "*fp32") | dict.fromkeys(integers, "*i32")
            signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
            source = ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": 128})
            assert compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]
