"""What class weights and losses do where classes are rare: one layer trained on fixed features, again and again.

    python benchmarks/imbalance.py --weights resnet18_imagenet_bn_recalibrated_fp16.safetensors

An FCN-8s with a ResNet-18 of ImageNet, of which only the 1x1 scores are trained: the encoder stays as it is and there
is no hidden layer, so that the maps of VOC 2007's images, stretched to 320x320, are computed once. Trained on `train`
with the label of every 8th pixel, scored on `val` at native size. With cross-entropy the problem is convex: what
differs is the loss, not the luck of the optimiser. Some minutes on one core.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from fcn_smp.data.class_weights import class_weights, count_classes
from fcn_smp.data.transforms import Preprocess
from fcn_smp.data.voc import VOCSegmentation
from fcn_smp.losses import SegmentationLoss
from fcn_smp.metrics import ConfusionMatrix
from fcn_smp.models.encoder import encoder_preprocessing
from fcn_smp.models.fcn import FCN8s

DATA = Path(os.environ.get("FCN_SMP_DATA", "")) / "voc2007-segmentation-trainval.tar"
SIDE = 320
METHODS = ("inverse_frequency", "median_frequency", "effective_number")


def losses(counts):
    """Return the losses by the names of their keys."""
    weighted = {f"class_weights: {method}": SegmentationLoss(class_weights(counts, method)) for method in METHODS}
    return {
        "cross-entropy": SegmentationLoss(),
        **weighted,
        "ohem: 0.25": SegmentationLoss(ohem=0.25),
        "terms: {focal: 1}": SegmentationLoss(terms={"focal": 1}),
        "terms: {dice: 1}": SegmentationLoss(terms={"dice": 1}),
        "terms: {cross_entropy: 1, dice: 1}": SegmentationLoss(terms={"cross_entropy": 1, "dice": 1}),
        "terms: {cross_entropy: 1, lovasz: 1}": SegmentationLoss(terms={"cross_entropy": 1, "lovasz": 1}),
    }


@torch.no_grad()
def features(model, dataset):
    """Return the three taps of all images, float16 (N, C, h, w) each, coarse to fine, and the labels as they are."""
    preprocess = Preprocess(*encoder_preprocessing("resnet18")._replace(resize=(SIDE, SIDE)))
    taps, labels = [], []
    for image, label, _ in track([dataset[k] for k in range(len(dataset))], "features"):
        found = model.decoder.taps(model.encoder(preprocess(image)[None]))
        taps.append([tap[0].half() for tap in found])
        labels.append(torch.from_numpy(label))
    return [torch.stack(maps) for maps in zip(*taps, strict=True)], labels


class Scores(nn.Module):
    """The 1x1 scores of three maps, summed as in FCN-8s; maps are standardised, which changes no optimum."""

    def __init__(self, taps, classes, upsampling):
        super().__init__()
        self.means = [tap.float().mean((0, 2, 3)) for tap in taps]
        self.deviations = [tap.float().std((0, 2, 3)) + 1e-3 for tap in taps]
        self.layers = nn.ModuleList(nn.Conv2d(tap.shape[1], classes, 1) for tap in taps)
        self.upsampling = upsampling
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, taps):
        total = None
        for k, (tap, layer) in enumerate(zip(taps, self.layers, strict=True)):
            mean, deviation = (each[k].view(-1, 1, 1) for each in (self.means, self.deviations))
            own = layer((tap.float() - mean) / deviation)
            total = own if total is None else self.upsampling[k - 1](total, own)
        return total


def train(taps, labels, loss, model, options):
    """Train the scores; what is random is the order of the images."""
    scores = Scores(taps, 21, model.decoder.fusions)
    size = SIDE // 8, SIDE // 8
    small = [F.interpolate(label[None, None].float(), size=size, mode="nearest-exact") for label in labels]
    target = torch.cat(small)[:, 0].long()
    steps = options.epochs * (len(target) // 16)
    biases = [layer.bias for layer in scores.layers]
    weights = [layer.weight for layer in scores.layers]
    # How rare a class is goes into the biases; they must get there in the same time.
    groups = [{"params": weights}, {"params": biases, "lr": 50 * options.rate}]
    optimizer = torch.optim.Adam(groups, lr=options.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(options.epochs):
        for batch in torch.randperm(len(target), generator=generator).split(16)[: len(target) // 16]:
            optimizer.zero_grad()
            loss(scores([tap[batch] for tap in taps]), target[batch]).backward()
            optimizer.step()
            schedule.step()
    return scores


@torch.no_grad()
def evaluate(scores, taps, labels):
    """Score at native size."""
    matrix = ConfusionMatrix(21, 255)
    for k, label in enumerate(labels):
        logits = F.interpolate(scores([tap[k : k + 1] for tap in taps]), size=label.shape, mode="bilinear")
        matrix.update(logits[0].max(0).indices, label)
    return matrix.scores()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=DATA, help="VOC 2007, a folder or an archive.")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0, help="Of the order of the images.")
    options = parser.parse_args()
    model = FCN8s("resnet18", encoder_weights=str(options.weights), decoder_hidden_channels=0, classes=21).eval()
    training, validation = (VOCSegmentation(options.root, split, 2007) for split in ("train", "val"))
    counts = count_classes(training)
    train_taps, train_labels = features(model, training)
    val_taps, val_labels = features(model, validation)
    columns = ("mean IU", "pixel accuracy", "mean accuracy", "mean precision", "IU of background")
    table = Table("loss", *columns)
    for name, loss in losses(counts).items():
        scores = train(train_taps, train_labels, loss, model, options)
        found = evaluate(scores, val_taps, val_labels)
        precision = torch.tensor(found.precision).nanmean().item()
        values = found.mean_iu, found.pixel_accuracy, found.mean_accuracy, precision, found.iu[0]
        table.add_row(name, *(f"{100 * value:.1f}" for value in values))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
