"""How much the stride alone costs: mean IU of the truth, downsampled and upsampled again (appendix A of the paper).

    python benchmarks/upper_bounds.py --root voc2007-segmentation-trainval.tar

VOC 2007 val, scored at native size without void by fcn_smp.metrics. The paper (Long et al., CVPR 2015) gives its
numbers for "a subset of PASCAL 2011 val" and does not say how it resampled. The default is the procedure that comes
closest to them: each class's share of a stride x stride cell, void counted as background, upsampled bilinearly, and
the largest share wins. It is 0.5 points off, as a mean over the strides; the eleven other combinations of --down, --up
and --void are 1.9 to 3.4 points off. One combination takes half a minute on one core.
"""

import argparse
import os
import sys
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.data.voc import VOCSegmentation
from fcn_smp.errors import UserError
from fcn_smp.metrics import ConfusionMatrix

PAPER = {128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5}
DATA = Path(os.environ.get("FCN_SMP_DATA", "")) / "voc2007-segmentation-trainval.tar"


def one_hot(label, void):
    """Return the classes of ``label`` (H, W), and one plane (1, K, H, W) for each of them."""
    if void == "background":
        label = label.where(label != IGNORE_INDEX, 0)
    classes = label[label != IGNORE_INDEX].unique()
    return classes, (label == classes[:, None, None]).float()[None]


def downsample(planes, stride, how):
    """Shares (1, K, h, w) of the classes in each cell; the last cells may be cut."""
    if how == "centre":
        rows, columns = (torch.arange(stride // 2, size + stride // 2, stride) for size in planes.shape[2:])
        return planes[:, :, rows.clamp(max=planes.shape[2] - 1)][..., columns.clamp(max=planes.shape[3] - 1)]
    shares = F.avg_pool2d(planes, stride, ceil_mode=True)
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-9)  # of what is not void
    return shares if how == "share" else F.one_hot(shares.argmax(1), shares.shape[1]).movedim(-1, 1).float()


def coarsen(label, stride, down, up, void):
    """Return ``label`` (H, W) as it comes back from stride ``stride``."""
    classes, planes = one_hot(label, void)
    shares = F.interpolate(downsample(planes, stride, down), scale_factor=float(stride), mode=up)
    return classes[shares[0, :, : label.shape[0], : label.shape[1]].argmax(0)]


def shift(label, pixels):
    """Return ``label`` (H, W) moved right and down, with void filled from around it and the border repeated."""
    label = coarsen(label, 4, "share", "bilinear", "ignored")
    rows, columns = (torch.arange(-pixels, size - pixels).clamp(min=0) for size in label.shape)
    return label[rows][:, columns]


def mean_iu(labels, change):
    """Score ``change(label)`` against ``label``, in percent."""
    matrix = ConfusionMatrix(len(VOCSegmentation.classes), IGNORE_INDEX)
    for label in labels:
        matrix.update(change(label), label)
    return 100 * matrix.scores().mean_iu


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=DATA, help="VOC 2007, a folder or tar (default: in $FCN_SMP_DATA)")
    parser.add_argument("--down", nargs="+", choices=("share", "vote", "centre"), default=["share"])
    parser.add_argument("--up", nargs="+", choices=("bilinear", "nearest"), default=["bilinear"])
    parser.add_argument("--void", nargs="+", choices=("background", "ignored"), default=["background"])
    parser.add_argument("--shift", nargs="+", type=int, default=[], help="score the truth moved by so many pixels")
    return parser.parse_args()


def main():
    args = parse_args()
    dataset = VOCSegmentation(args.root, "val", 2007)
    labels = [torch.from_numpy(dataset.read_label(i)).long() for i in range(len(dataset))]
    table = Table("downsampled, upsampled, void", *map(str, PAPER), title=f"mean IU by stride, {len(labels)} images")
    for procedure in product(args.down, args.up, args.void):
        scores = (mean_iu(labels, lambda label, s=s, p=procedure: coarsen(label, s, *p)) for s in track(PAPER))
        table.add_row(", ".join(procedure), *(f"{score:.1f}" for score in scores))
    table.add_row("the paper, VOC 2011 val", *map(str, PAPER.values()))
    Console().print(table)
    for pixels in args.shift:
        print(f"moved by {pixels}: {mean_iu(labels, lambda label, p=pixels: shift(label, p)):.1f}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
