"""What the full-resolution loss and the labels of all pixels cost, with and without the logits of all pixels.

    OMP_NUM_THREADS=1 python benchmarks/loss.py [--device cpu] [--rounds 7]

Scores of 64 x 64 places, four images, and labels of 512 x 512 pixels, a twentieth of them void; 21 and 150 classes. The
loss is `F.interpolate` and `F.cross_entropy` beside the two in one operator, forward and backward, whose values and
gradients must agree; the labels are `F.interpolate` and `argmax`, or `max`, beside the most likely class band by band.
Prints the median over the rounds, in each of which all take their turn, the peak of what is allocated beside scores and
labels, and both as ratios to ours.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from fcn_smp.benchmark import peak_bytes
from fcn_smp.losses import SegmentationLoss
from fcn_smp.models.coarse import CoarseScores
from fcn_smp.models.upsampling import Upsample
from fcn_smp.segmenter import most_likely

IMAGES, MAP, SIDE, STRIDE, VOID = 4, 64, 512, 8, 255
OURS = "in one operator", "band by band"


def contestants(classes, device):
    """Return the ways to the loss and the ways to the labels, each by name."""
    generator = torch.Generator().manual_seed(0)
    values = 3 * torch.randn(IMAGES, classes, MAP, MAP, generator=generator)
    labels = torch.randint(0, classes, (IMAGES, SIDE, SIDE), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.05] = VOID
    scores, labels = values.to(device).requires_grad_(), labels.to(device)
    places = Upsample(STRIDE).places(MAP, SIDE)
    loss = SegmentationLoss(None, VOID).to(device)

    def interpolated():
        return F.interpolate(scores, scale_factor=STRIDE, mode="bilinear", align_corners=False)

    def learn(value):
        scores.grad = None
        value.backward()
        return value.detach(), scores.grad

    @torch.no_grad()
    def by_bands():
        return torch.cat([most_likely(logits) for logits in CoarseScores(scores, places, places).logits()], 1)

    losses = {
        OURS[0]: lambda: learn(loss(CoarseScores(scores, places, places), labels)),
        "F.interpolate, F.cross_entropy": lambda: learn(F.cross_entropy(interpolated(), labels, ignore_index=VOID)),
    }
    with_labels = {
        OURS[1]: by_bands,
        "F.interpolate, argmax": torch.no_grad()(lambda: interpolated().argmax(1)),
        "F.interpolate, max": torch.no_grad()(lambda: interpolated().max(1).indices),
    }
    return losses, with_labels


def compare(actions, device, rounds):
    seconds = {name: [] for name in actions}
    for round_ in range(rounds + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {name: peak_bytes(action, device) or 0 for name, action in actions.items()}
    ours = next(iter(actions))
    for name in actions:
        time_ratio, memory_ratio = medians[name] / medians[ours], peaks[name] / max(1, peaks[ours])
        print(
            f"  {name:32} {1000 * medians[name]:8.1f} ms {time_ratio:6.1f} {peaks[name] / 2**20:8.1f} MiB"
            f" {memory_ratio:6.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"{IMAGES} x {SIDE} x {SIDE} pixels, {options.device}, {torch.get_num_threads()} threads")
    for classes in (21, 150):
        losses, labels = contestants(classes, options.device)
        (value, gradient), (expected, expected_gradient) = (learn() for learn in losses.values())
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
        near = 1e-5 * expected_gradient.abs().max().item()
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=near)
        first, *others = (action() for action in labels.values())
        differing = max(int((first != other).sum()) for other in others)
        print(f"{classes} classes; {differing:,} labels differ, where two scores are equal but for rounding")
        compare(losses, options.device, options.rounds)
        compare(labels, options.device, options.rounds)


if __name__ == "__main__":
    main()
