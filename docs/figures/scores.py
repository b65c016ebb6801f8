"""Draw how the scores of a trained network add up: docs/explained/fcn-scores.png.

    fcn-smp train stages.yaml
    python docs/figures/scores.py runs/stages

shows a held-out scene of the package's own, the scores of one class at strides 32, 16 and 8, their sums, and the
classes by each sum; and prints the mean IU of each sum over all validation scenes. The run is one of the recipe demo or
of one that extends it, whose last network is an FCN-8s.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from drawing import GREY, INK, PAPER
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Patch
from torch import Tensor

from fcn_smp.data.demo import DemoScenes
from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.data.transforms import Preprocess
from fcn_smp.metrics import ConfusionMatrix
from fcn_smp.models.upsampling import Upsample
from fcn_smp.segmenter import Segmenter


class Step(NamedTuple):
    """A map's own scores (C, h, w), their sum with all coarser ones, and the sum for each pixel (C, H, W)."""

    stride: int
    own: Tensor
    total: Tensor
    logits: Tensor


@torch.no_grad()
def steps(model: Any, x: Tensor) -> Iterator[Step]:
    """Run an FCN on an image (1, 3, H, W) as its decoder does, and give what is there after each tap."""
    features = model.encoder(model.any_size(x))
    decoder = model.decoder
    taps = decoder.taps(features)
    own = total = decoder.score(decoder.hidden(taps[0]))
    for k, stride in enumerate(decoder.taps.strides):
        if k:
            own = decoder.skip_scores[k - 1](taps[k] * decoder.skip_scales[k - 1])
            total = decoder.fusions[k - 1](total, own)
        yield Step(stride, own[0], total[0], Upsample(stride)(total, features[0])[0])


def mean_ius(segmenter: Segmenter) -> dict[int, float]:
    """Score the classes by each sum on the validation scenes, in %."""
    scenes, preprocess = DemoScenes(None, "val"), Preprocess(*segmenter.preprocessing)
    matrices: dict[int, ConfusionMatrix] = {}
    for index in range(len(scenes)):
        image, label, _ = scenes[index]
        for step in steps(segmenter.model, preprocess(image)[None]):
            matrix = matrices.setdefault(step.stride, ConfusionMatrix(len(scenes.classes), IGNORE_INDEX))
            matrix.update(step.logits.argmax(0), torch.from_numpy(label))
    return {stride: 100 * matrix.scores().mean_iu for stride, matrix in matrices.items()}


def show(axes: Axes, picture: npt.NDArray[Any], title: str, **style: Any) -> None:
    """Show a picture or a map, as large as the others, under its title."""
    axes.imshow(picture, interpolation="nearest", extent=(0, 1, 0, 0.75), **style)
    axes.set_title(title, color=INK, fontsize=17, pad=7)


def draw(segmenter: Segmenter, scene: int, name: str) -> pyplot.Figure:
    """Draw the picture of a test scene and the class ``name``."""
    scenes = DemoScenes(None, "test")
    image, label, _ = scenes[scene]
    number = scenes.classes.index(name)
    found = list(steps(segmenter.model, Preprocess(*segmenter.preprocessing)(image)[None]))
    colours = scenes.palette
    limit = max(float(part[number].max()) for step in found for part in (step.own, step.total))
    style = {"cmap": "RdBu_r", "norm": Normalize(-limit, limit)}

    figure, grid = pyplot.subplots(4, 3, figsize=(8, 8.3), facecolor=PAPER)
    for axes in grid.flat:
        axes.set_axis_off()
    show(grid[0, 0], image, "image")
    show(grid[0, 1], colours[label], "truth")
    names = [Patch(color=colours[k] / 255, label=each) for k, each in enumerate(scenes.classes)]
    legend = {"loc": "center", "ncols": 2, "fontsize": 13, "frameon": False, "labelcolor": INK}
    legend |= {"handlelength": 1, "handletextpad": 0.5, "columnspacing": 1}
    grid[0, 2].legend(handles=names, **legend)
    for row, step in zip(grid[1:], found, strict=True):
        show(row[0], step.own[number].numpy(), f"{name}, stride {step.stride}", **style)
        if step.stride < found[0].stride:
            show(row[1], step.total[number].numpy(), f"{name}, sum so far", **style)
        show(row[2], colours[step.logits.argmax(0).numpy()], "classes by the sum")
    place = grid[1, 1].inset_axes((0.06, 0.46, 0.88, 0.13))
    bar = figure.colorbar(grid[1, 0].images[0], cax=place, orientation="horizontal", extend="min")
    bar.set_label("score", color=INK, fontsize=16)
    bar.ax.tick_params(labelsize=14, colors=GREY)
    bar.outline.set_edgecolor(GREY)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.955, wspace=0.04, hspace=0.24)
    return figure


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--scene", type=int, default=3, help="Number of the test scene.")
    parser.add_argument("--name", default="car", help="The class whose scores are shown.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "explained/fcn-scores.png")
    options = parser.parse_args()
    segmenter = Segmenter.load(options.run)
    for stride, mean_iu in mean_ius(segmenter).items():
        print(f"classes by the sum up to stride {stride}: mean IU {mean_iu:.1f} %")
    draw(segmenter, options.scene, options.name).savefig(options.output, dpi=100)


if __name__ == "__main__":
    main()
