"""How fast predictions are written beside the network alone, and how much memory they take.

    OMP_NUM_THREADS=1 python benchmarks/prediction.py speed [--images 500] [--batch-size 1]
    OMP_NUM_THREADS=1 python benchmarks/prediction.py memory

FCN-8s with ResNet-18 and random weights of 21 classes. Speed is that of `predict_files` on photos of VOC2007, relative
to the same network on the same batches, which are decoded and normalised beforehand: the median over chunks of 20
photos, in which all take turns, so that what else the machine does falls on all. Memory is the peak of a process of its
own for each line, network included: of many photos through a small network, and of one large image.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch

from fcn_smp.data.dataset import read_image
from fcn_smp.data.transforms import Preprocess
from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.models.encoder import Preprocessing
from fcn_smp.prediction import Kind, _batches, plan, predict_files
from fcn_smp.segmenter import Segmenter

DATA = Path(os.environ.get("FCN_SMP_DATA", "")) / "voc2007-segmentation-trainval.tar"
WRITTEN: dict[str, list[Kind]] = {
    "masks": ["label"],
    "masks and overlays": ["label", "overlay"],
    "all four": ["label", "overlay", "confidence", "probabilities"],
}
CHUNK = 20


def network(encoder="resnet18", **options):
    torch.manual_seed(0)
    model = smp.create_model("fcn8s", encoder_name=encoder, encoder_weights=None, classes=21, **options)
    for score in (model.decoder.score, *model.decoder.skip_scores):
        torch.nn.init.normal_(score.weight, std=score.in_channels**-0.5)  # else all is background
    normal = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Segmenter(model, normal, VOCSegmentation.classes, voc_palette())


def photos(archive, folder, count):
    """Unpack the photos of VOC2007 and link them under other names until there are ``count``; return their paths."""
    with tarfile.open(archive) as file:
        members = sorted((member for member in file if member.name.endswith(".jpg")), key=lambda member: member.name)
        for member in members:
            member.name = Path(member.name).name
            file.extract(member, folder / "photos", filter="data")
    originals = [folder / "photos" / member.name for member in members]
    links = []
    for number in range(count):
        links.append(folder / f"links/{number:05}.jpg")
        links[-1].parent.mkdir(exist_ok=True)
        links[-1].symlink_to(originals[number % len(originals)])
    return links


def jobs_of(paths, directory, kinds):
    return plan([(path, Path(path.name)) for path in paths], directory, kinds)


def seconds_alone(segmenter, paths, batch_size):
    """Return how long the network alone takes for images that lie in memory as it takes them."""
    preprocess = Preprocess(*segmenter.preprocessing)
    groups = list(_batches(((None, read_image(path)) for path in paths), batch_size))
    batches = [torch.stack([preprocess(image) for _, image in group]) for group in groups]
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            segmenter.model(batch)
    return time.perf_counter() - started


def seconds_written(segmenter, paths, kinds, batch_size, directory):
    jobs = jobs_of(paths, directory, kinds)
    started = time.perf_counter()
    predict_files(segmenter, jobs, stop_at_an_error, batch_size=batch_size)
    return time.perf_counter() - started


def stop_at_an_error(_, error):
    if error:
        raise error


def speed(options):
    segmenter = network()
    seconds = {name: [] for name in ("the network alone", *WRITTEN)}
    with tempfile.TemporaryDirectory() as folder:
        paths = photos(options.data, Path(folder), options.images)
        seconds_alone(segmenter, paths[:8], options.batch_size)  # warms up
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            seconds["the network alone"].append(seconds_alone(segmenter, chunk, options.batch_size))
            for name, kinds in WRITTEN.items():
                with tempfile.TemporaryDirectory(dir=folder) as output:
                    seconds[name].append(seconds_written(segmenter, chunk, kinds, options.batch_size, Path(output)))
    threads = torch.get_num_threads()
    print(f"{len(paths)} photos, batch {options.batch_size}, {threads} of {os.cpu_count()} cores for the network")
    for name, values in seconds.items():
        ratios = [alone / value for alone, value in zip(seconds["the network alone"], values, strict=True)]
        print(f"{name:20} {CHUNK / statistics.median(values):7.2f} images/s  {statistics.median(ratios):5.2f}")


def memory(options):
    for amount in ("500", "5000", "10000px"):
        subprocess.run([sys.executable, __file__, "peak", amount, "--data", str(options.data)], check=True)


def peak(options):
    """Write masks and overlays of so many photos, or of one image of so many pixels a side (``10000px``)."""
    large = options.amount.endswith("px")
    segmenter = network() if large else network("test_resnet", decoder_hidden_channels=8)
    with tempfile.TemporaryDirectory() as folder:
        if large:
            paths = [Path(folder, "large.jpg")]
            coarse = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
            side = int(options.amount.removesuffix("px"))
            subprocess.run([sys.executable, "-c", ENLARGE, paths[0], str(side)], check=True, input=coarse.tobytes())
        else:
            paths = photos(options.data, Path(folder), int(options.amount))
        seconds = seconds_written(segmenter, paths, WRITTEN["masks and overlays"], None, Path(folder, "output"))
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.amount:>8}  {mebibytes:6.0f} MiB  {seconds:6.1f} s", flush=True)


ENLARGE = """
import sys
from PIL import Image
image = Image.frombytes("RGB", (50, 50), sys.stdin.buffer.read())
image.resize([int(sys.argv[2])] * 2).save(sys.argv[1])
"""
"""In a process of its own, whose memory does not count."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "peak"])
    parser.add_argument("amount", nargs="?", help="of peak: a number of photos, or pixels a side such as 10000px")
    parser.add_argument("--data", type=Path, default=DATA, help="VOC2007's archive")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    {"speed": speed, "memory": memory, "peak": peak}[options.what](options)


if __name__ == "__main__":
    main()
