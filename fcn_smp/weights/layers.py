"""The released VGG16 networks by the layer names of Caffe, which torchfcn shares: from tensors to a model.

Source: https://github.com/shelhamer/fcn.berkeleyvision.org, voc-fcn{32s,16s,8s,8s-atonce}/net.py
        https://github.com/wkentaro/pytorch-fcn, torchfcn/models/
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fcn_smp.errors import UserError
from fcn_smp.models.fcn import FCN
from fcn_smp.models.pretrained import as_convolution
from fcn_smp.models.upsampling import bilinear_kernel
from fcn_smp.registry import FCNS

CONVS = [f"conv{block}_{k}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for k in range(1, count + 1)]

# The last upsampling, and the score and the upsampling that each skip adds.
_LAST = {"fcn32s": "upscore", "fcn16s": "upscore16", "fcn8s": "upscore8"}
_SKIPS = {
    "fcn32s": [],
    "fcn16s": [("score_pool4", "upscore2")],
    "fcn8s": [("score_pool4", "upscore2"), ("score_pool3", "upscore_pool4")],
}


class Layers:
    """Named tensors of a file, each asked for with the shape that it must have.

    Args:
        tensors: ``<layer>.weight`` and ``<layer>.bias``.
        source: The file, for messages.

    Attributes:
        unused: Names that nobody asked for yet.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: object) -> None:
        self.tensors = {name: as_convolution(name, _without_units(name, t.float())) for name, t in tensors.items()}
        self.source = source
        self.unused = dict.fromkeys(tensors)

    def __contains__(self, layer: str) -> bool:
        return f"{layer}.weight" in self.tensors

    def count(self, name: str) -> int:
        """Return how many channels a convolution's weight gives.

        Raises:
            UserError: It is missing, or is no convolution's.
        """
        tensor = self.take(name)
        if tensor.ndim != 4 or not tensor.numel():
            raise UserError(
                f"{self.source}: {name} has the shape {tuple(tensor.shape)}, a convolution's has four numbers."
            )
        return len(tensor)

    def take(self, name: str, shape: tuple[int, ...] | torch.Size | None = None) -> Tensor:
        """Return a tensor.

        Raises:
            UserError: It is missing, or its shape is another.
        """
        if name not in self.tensors:
            raise UserError(f"{self.source} lacks {name}; it has {_some(self.tensors)}.")
        tensor = self.tensors[name]
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            raise UserError(f"{self.source}: {name} has the shape {tuple(tensor.shape)}, it should be {tuple(shape)}.")
        self.unused.pop(name, None)
        return tensor


def _without_units(name: str, tensor: Tensor) -> Tensor:
    """Drop the ones that Caffe's V1 form puts before the dimensions of a fully connected layer."""
    fully_connected = name in ("fc6.weight", "fc7.weight", "fc8.weight")
    return tensor[0, 0] if fully_connected and tensor.ndim == 4 and tensor.shape[:2] == (1, 1) else tensor


def is_classifier(layers: Layers) -> bool:
    """Tell whether the layers are of a VGG16 classifier, which has fc8 instead of scores."""
    return "fc8" in layers and "score_fr" not in layers


def found_arch(layers: Layers) -> Literal["fcn32s", "fcn16s", "fcn8s"]:
    """Tell which network the layers are of, by the skips that it scores."""
    if any(name in layers for name in ("score_pool3", "upscore_pool4", "upscore8")):
        return "fcn8s"
    return "fcn16s" if any(name in layers for name in ("score_pool4", "upscore2", "upscore16")) else "fcn32s"


def build(
    layers: Layers,
    arch: str,
    *,
    alignment: Literal["same", "caffe"],
    dropout: float = 0.5,
    skip_scales: list[float] | None = None,
) -> FCN:
    """Build a network and give it the layers' weights.

    The coarsest score is ``score_fr``, or ``fc8`` of a VGG16 classifier turned convolutional (Long et al., CVPR 2015,
    section 3.1); where the layers are of a classifier, skips have nothing to start from but zero.

    Args:
        layers: Weights by Caffe's layer names.
        arch: ``"fcn32s"``, ``"fcn16s"`` or ``"fcn8s"``.
        alignment: As ``decoder_alignment``.
        dropout: As ``decoder_dropout``.
        skip_scales: As ``decoder_skip_scales``.

    Raises:
        UserError: A layer is missing, has another shape, or is an upsampling that the network cannot do.
    """
    classifier = is_classifier(layers)
    score = "fc8" if classifier else "score_fr"
    hidden, classes = layers.count("fc6.weight"), layers.count(f"{score}.weight")
    skips = [] if classifier else _SKIPS[arch]
    kernels = [_upsampling(layers, name, classes, 2) for _, name in skips]
    fixed = all(_is_bilinear(kernel) for kernel in kernels)
    if not classifier and not _is_bilinear(_upsampling(layers, _LAST[arch], classes, FCNS[arch].finest_stride)):
        raise UserError(
            f"{layers.source}: {_LAST[arch]}.weight is not bilinear interpolation, which is all that the last"
            " upsampling here does."
        )
    model: FCN = FCNS[arch](
        encoder_name="vgg16",
        encoder_weights=None,
        decoder_alignment=alignment,
        decoder_hidden_channels=hidden,
        decoder_dropout=dropout,
        decoder_skip_scales=skip_scales,
        decoder_learn_upsampling=not fixed,
        classes=classes,
    )
    decoder: Any = model.decoder
    modules: dict[str, Any] = dict(zip(CONVS, _convs(model.encoder), strict=True))
    modules |= {"fc6": decoder.hidden[0], "fc7": decoder.hidden[3], score: decoder.score}
    if not classifier:
        modules |= {name: module for (name, _), module in zip(skips, decoder.skip_scores, strict=True)}
    for name, module in modules.items():
        _copy(module.weight, layers.take(f"{name}.weight", module.weight.shape))
        _copy(module.bias, layers.take(f"{name}.bias", module.bias.shape))
    if not fixed:
        for kernel, fuse in zip(kernels, decoder.fusions, strict=True):
            _copy(fuse.upsample.weight, kernel)
    return model


def _convs(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (child for child in module.modules() if isinstance(child, nn.Conv2d))


def _upsampling(layers: Layers, name: str, classes: int, factor: int) -> Tensor:
    """Return the full kernel (C, C, 2 * factor, 2 * factor) of an upsampling."""
    if f"{name}.bias" in layers.tensors:
        raise UserError(f"{layers.source}: {name} has a bias, which no upsampling here has.")
    weight = layers.take(f"{name}.weight")
    if weight.ndim == 4 and weight.shape[:2] == (classes, 1):  # one group for each class
        weight = torch.eye(classes)[:, :, None, None] * weight
    size = 2 * factor
    if weight.shape != (classes, classes, size, size):
        return layers.take(f"{name}.weight", (classes, classes, size, size))
    return weight


def _is_bilinear(kernel: Tensor) -> bool:
    expected = torch.eye(len(kernel))[:, :, None, None] * bilinear_kernel(kernel.shape[2] // 2)
    # The largest kernels are not exact in the precisions that a file may have.
    rounded = (expected.to(dtype).float() for dtype in (torch.float32, torch.float16, torch.bfloat16))
    return any(torch.allclose(kernel, form, rtol=1e-6, atol=1e-6) for form in rounded)


def _copy(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


def _some(names: Mapping[str, Tensor]) -> str:
    first = list(names)[:4]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
