"""What counting a batch of predictions costs, by the metric and by what is commonly called, in one process.

    OMP_NUM_THREADS=1 python benchmarks/metric.py [--rounds 15]

Four label maps of 512 x 512 pixels, a twentieth of them void, and predictions that are right nine times out of ten; as
bytes, and as the int64 that argmax gives. All must count the same integers. Prints the milliseconds of each, the least
of the rounds, in each of which all take their turn, and how many times as long it takes as ours.
"""

import argparse
import time

import numpy as np
import sklearn.metrics
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from fcn_smp.metrics import ConfusionMatrix

VOID = 255
SHAPE = (4, 512, 512)
BLOCK = 32
"""Labels are blocks of so many pixels a side, as things in photos are; noise would be counted more slowly or faster."""


def ours(prediction, target, classes):
    matrix = ConfusionMatrix(classes, VOID)
    matrix.update(prediction, target)
    return matrix.counts


def torchmetrics(prediction, target, classes):
    return MulticlassConfusionMatrix(classes, ignore_index=VOID)(prediction, target)


def torchmetrics_unchecked(prediction, target, classes):
    return MulticlassConfusionMatrix(classes, ignore_index=VOID, validate_args=False)(prediction, target)


def torch_bincount(prediction, target, classes):
    labelled = target != VOID
    pairs = target[labelled].long() * classes + prediction[labelled].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def numpy_bincount(prediction, target, classes):
    prediction, target = prediction.numpy().ravel(), target.numpy().ravel()
    labelled = target != VOID
    pairs = target[labelled].astype(np.int64) * classes + prediction[labelled]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def numpy_bincount_of_bytes(prediction, target, classes):
    """Count pairs of bytes, void among them, which is cut off."""
    pairs = target.numpy().astype(np.uint16).ravel() << 8 | prediction.numpy().astype(np.uint8).ravel()
    return np.bincount(pairs, minlength=2**16).reshape(256, 256)[:classes, :classes]


def scikit_learn(prediction, target, classes):
    prediction, target = prediction.numpy().ravel(), target.numpy().ravel()
    labelled = target != VOID
    return sklearn.metrics.confusion_matrix(target[labelled], prediction[labelled], labels=range(classes))


CONTESTANTS = {
    "ours": ours,
    "torchmetrics": torchmetrics,
    "torchmetrics, validate_args=False": torchmetrics_unchecked,
    "torch.bincount of labelled pixels": torch_bincount,
    "numpy.bincount of labelled pixels": numpy_bincount,
    "numpy.bincount of all, as 16 bits": numpy_bincount_of_bytes,
    "scikit-learn": scikit_learn,
}


def maps(classes):
    """Return predictions and labels, uint8."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, classes, (SHAPE[0], SHAPE[1] // BLOCK, SHAPE[2] // BLOCK), dtype=np.uint8)
    target = blocks.repeat(BLOCK, 1).repeat(BLOCK, 2)
    others = rng.integers(0, classes, SHAPE, dtype=np.uint8)
    prediction = np.where(rng.random(SHAPE) < 0.1, others, target)
    target[rng.random(SHAPE) < 0.05] = VOID
    return torch.from_numpy(prediction), torch.from_numpy(target)


def seconds_of_all(prediction, target, classes, rounds):
    expected = np.asarray(scikit_learn(prediction, target, classes))
    seconds = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, count in CONTESTANTS.items():
            started = time.perf_counter()
            found = count(prediction, target, classes)
            seconds[name].append(time.perf_counter() - started)
            assert np.array_equal(np.asarray(found), expected), name
    return {name: min(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(f"{' x '.join(map(str, SHAPE))} pixels, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for classes in (21, 150):
        prediction, target = maps(classes)
        for kind, labels in {"uint8": (prediction, target), "int64": (prediction.long(), target.long())}.items():
            seconds = seconds_of_all(*labels, classes, options.rounds)
            print(f"{classes} classes, {kind}")
            for name, value in seconds.items():
                print(f"  {name:36} {1000 * value:8.2f} ms {value / seconds['ours']:8.1f}")


if __name__ == "__main__":
    main()
