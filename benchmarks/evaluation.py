"""How fast images are evaluated beside the network alone.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py [--images 200]

FCN-8s with ResNet-18 and random weights of 21 classes on photos of VOC2007 val. All take turns in chunks of 20 photos,
so that what else the machine does falls on all: the network alone, on images that are decoded and normalised
beforehand; the same and all else one after the other, as one writes it by hand; and `count`, the way of `evaluate`.
Prints images per second and the speed relative to the network's, the medians over the chunks, and what reading,
predicting and measuring an image take one after the other. Both ways count the same to the last bit, or it stops.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from prediction import CHUNK, DATA, network

from fcn_smp.data.transforms import Preprocess
from fcn_smp.data.voc import VOCSegmentation
from fcn_smp.evaluation import Counts, count


def alone(segmenter, dataset, share):
    preprocess = Preprocess(*segmenter.preprocessing)
    images = [preprocess(dataset.read_image(index))[None] for index in share]
    started = time.perf_counter()
    with torch.inference_mode():
        for image in images:
            segmenter.model(image)
    return time.perf_counter() - started


def one_by_one(segmenter, dataset, share, counts):
    """Return the seconds of reading, of the network, and of measuring."""
    seconds = [0.0, 0.0, 0.0]
    for index in share:
        times = [time.perf_counter()]
        sample = dataset[index]
        times.append(time.perf_counter())
        prediction = segmenter.predict(sample.image)
        times.append(time.perf_counter())
        counts.update(index, prediction, sample.label)
        times.append(time.perf_counter())
        seconds = [total + after - before for total, before, after in zip(seconds, times, times[1:], strict=False)]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="VOC2007's archive")
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    segmenter = network()
    dataset = VOCSegmentation(options.data, "val", 2007)
    seconds = {"the network alone": [], "one after the other": [], "count": []}
    parts = []
    alone(segmenter, dataset, range(8))  # warms up
    for start in range(0, min(options.images, len(dataset)) // CHUNK * CHUNK, CHUNK):
        share = range(start, start + CHUNK)
        seconds["the network alone"].append(alone(segmenter, dataset, share))
        expected = Counts(len(dataset), len(dataset.classes))
        parts.append(one_by_one(segmenter, dataset, share, expected))
        seconds["one after the other"].append(sum(parts[-1]))
        started = time.perf_counter()
        found = count(segmenter, dataset, share)
        seconds["count"].append(time.perf_counter() - started)
        assert all(map(torch.equal, found.buffers(), expected.buffers()))
    print(f"{len(parts) * CHUNK} photos, {torch.get_num_threads()} of {os.cpu_count()} cores for the network")
    for name, values in seconds.items():
        ratios = [alone / value for alone, value in zip(seconds["the network alone"], values, strict=True)]
        print(f"{name:20} {CHUNK / statistics.median(values):7.2f} images/s  {statistics.median(ratios):5.2f}")
    for name, values in zip(("reading", "predicting", "measuring"), zip(*parts, strict=True), strict=True):
        print(f"{name:20} {1000 * statistics.median(values) / CHUNK:7.1f} ms an image")


if __name__ == "__main__":
    main()
