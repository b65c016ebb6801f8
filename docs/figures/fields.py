"""Draw and measure how much of an image a score sees: docs/explained/fcn-fields.png.

    python docs/figures/fields.py --vgg16 FILE --resnet18 FILE

The files hold ImageNet weights of the encoders. The theoretical field follows from kernels and strides; the effective
one is the gradient of a map's middle pixel, all channels summed, with respect to the image: absolute values, averaged
over drawn scenes (Luo et al., Understanding the effective receptive field in deep convolutional neural networks,
NeurIPS 2016). Prints the side of the theoretical square, and of the square around its middle that has 90 % of the
gradient. Some minutes on one core.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from drawing import INK, PAPER
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

import fcn_smp
from fcn_smp.data import scenes
from fcn_smp.data.transforms import Preprocess
from fcn_smp.models.encoder import encoder_preprocessing
from fcn_smp.models.fcn import FCN8s

# ---- The arithmetic -------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """Pixel i of a map sees ``size`` image pixels, from ``start + stride * i`` on."""

    size: int = 1
    stride: int = 1
    start: int = 0

    def after(self, kernel: int, stride: int = 1) -> "Field":
        """The field behind a convolution or pooling, padded by half its kernel unless that is even."""
        padding = (kernel - 1) // 2
        return Field(self.size + (kernel - 1) * self.stride, self.stride * stride, self.start - padding * self.stride)


def vgg16() -> Iterator[Field]:
    """The fields of pool3, pool4, pool5 and fc6."""
    field = Field()
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for _ in range(convolutions):
            field = field.after(3)
        field = field.after(2, stride=2)
        if block > 2:
            yield field
    yield field.after(7)


def resnet18() -> Iterator[Field]:
    """The fields of the second, third and fourth stage, and of the hidden layers behind it."""
    field = Field().after(7, stride=2).after(3, stride=2)
    for stage, convolutions in enumerate((4, 4, 4, 4), start=1):
        for convolution in range(convolutions):
            field = field.after(3, stride=2 if stage > 1 and convolution == 0 else 1)
        if stage > 1:
            yield field
    yield field.after(7)


# ---- The measurement ------------------------------------------------------------------------------------------------


def scene(seed: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Draw a scene larger than those of the demonstration; ``size`` is width and height."""
    small, scenes.SIZE = scenes.SIZE, size
    try:
        return np.array(scenes.draw_scene(np.random.default_rng(seed))[0])
    finally:
        scenes.SIZE = small


def gradients(encoder_name: str, weights: Path, images: int, side: int) -> list[npt.NDArray[np.float64]]:
    """Return the mean absolute gradient (side, side) of the middle pixel of each tap, fine to coarse."""
    model = FCN8s(encoder_name, encoder_weights=str(weights), decoder_hidden_channels=0, classes=1).eval()
    preprocess = Preprocess(*encoder_preprocessing(encoder_name))
    totals = [np.zeros((side, side)) for _ in range(3)]
    for seed in range(images):
        x = preprocess(scene(seed, (side, side)))[None].requires_grad_()
        taps = model.decoder.taps(model.encoder(x))[::-1]
        for total, tap in zip(totals, taps, strict=True):
            middle = tap[0, :, tap.shape[2] // 2, tap.shape[3] // 2].sum()
            [gradient] = torch.autograd.grad(middle, x, retain_graph=True)
            total += gradient[0].abs().sum(0).double().numpy() / images
    return totals


def inner_side(gradient: npt.NDArray[np.float64], field: Field, share: float) -> int:
    """Return the side of the smallest square around the middle of the field that has a share of the gradient."""
    index = gradient.shape[0] // field.stride // 2
    begin, end = field.start + field.stride * index, field.start + field.stride * index + field.size
    outside = gradient.sum() - gradient[max(0, begin) : end, max(0, begin) : end].sum()
    assert outside <= 1e-9 * gradient.sum(), "The gradient leaves the theoretical field."
    for cut in range(field.size // 2, -1, -1):
        inner = slice(max(0, begin + cut), end - cut)
        if gradient[inner, inner].sum() >= share * gradient.sum():
            return field.size - 2 * cut
    raise AssertionError


# ---- The drawing ----------------------------------------------------------------------------------------------------

SIZE = 500, 375
PLACE = 250, 215
"""The place in the picture whose scores are shown."""
COLOURS = "#15803d", "#1d63a8", "#6b46c1", "#c2570c"
"""From the finest map to the coarsest."""


class Network(NamedTuple):
    """What is drawn of a network: its name, its maps, their fields, and the sides that have 90 % of the gradient."""

    name: str
    maps: Sequence[str]
    fields: Sequence[Field]
    inner: Sequence[int]


def square(axes: Axes, field: Field, side: int, colour: str, **style: object) -> None:
    """Draw a square of a side around the middle of the field of the map's pixel at :data:`PLACE`."""
    middle = [field.start + field.stride * (place // field.stride) + field.size / 2 for place in PLACE]
    corner = middle[0] - side / 2, middle[1] - side / 2
    axes.add_patch(Rectangle(corner, side, side, fill=False, color=PAPER, linewidth=8, alpha=0.8))
    axes.add_patch(Rectangle(corner, side, side, fill=False, color=colour, linewidth=4, **style))


def draw(networks: Sequence[Network]) -> pyplot.Figure:
    """Draw the fields of networks on a scene."""
    heights = [max(field.size for field in network.fields) for network in networks]
    figure, grid = pyplot.subplots(len(networks), 1, figsize=(8, 14.8), facecolor=PAPER, height_ratios=heights)
    picture = scene(7, SIZE) // 8 * 8  # fewer colours, a smaller file
    for axes, network in zip(grid, networks, strict=True):
        axes.set_axis_off()
        axes.imshow(picture, alpha=0.45, extent=(0, SIZE[0], SIZE[1], 0))
        inner = [*network.inner, *[None] * len(network.fields)]
        for map_, field, side, colour in reversed([*zip(network.maps, network.fields, inner, COLOURS, strict=False)]):
            square(axes, field, field.size, colour, label=f"{map_}: {field.size}" + (f" ({side})" if side else ""))
            if side:
                square(axes, field, side, colour, linestyle=(0, (2, 1)))
        widest = network.fields[-1]
        top = widest.start + widest.stride * (PLACE[1] // widest.stride)
        axes.set_xlim(-105, 540)
        axes.set_ylim(max(SIZE[1], top + widest.size) + 8, min(0, top) - 8)
        axes.set_title(network.name, color=INK, fontsize=21, fontweight="bold", loc="left", pad=6)
        handles, labels = axes.get_legend_handles_labels()
        style = {"fontsize": 18, "frameon": False, "labelcolor": INK, "handlelength": 1.2, "columnspacing": 1.5}
        axes.legend(handles[::-1], labels[::-1], loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, **style)
    figure.subplots_adjust(0.01, 0.07, 0.99, 0.97, hspace=0.3)
    return figure


def save(figure: pyplot.Figure, path: Path) -> None:
    """Write a figure with few colours, so that the file is small."""
    figure.savefig(path, dpi=100)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vgg16", type=Path, required=True)
    parser.add_argument("--resnet18", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--side", type=int, default=480, help="Of the scenes that are measured, in pixels.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "explained/fcn-fields.png")
    options = parser.parse_args()
    networks = []
    for title, encoder_name, weights, maps, fields in (
        ("VGG16", "vgg16", options.vgg16, ("pool3", "pool4", "pool5", "fc6"), list(vgg16())),
        ("ResNet-18", "resnet18", options.resnet18, ("stage 2", "stage 3", "stage 4", "hidden"), list(resnet18())),
    ):
        found = gradients(encoder_name, weights, options.images, options.side)
        inner = [inner_side(one, field, 0.9) for one, field in zip(found, fields, strict=False)]
        for name, field, side in zip(maps, fields, [*inner, None], strict=True):
            print(f"{title} {name}: stride {field.stride}, sees {field.size}, 90 % of the gradient in {side}")
        networks.append(Network(title, maps, fields, inner))
    save(draw(networks), options.output)


if __name__ == "__main__":
    assert fcn_smp  # registers the networks
    main()
