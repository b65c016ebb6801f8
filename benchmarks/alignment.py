"""What ``decoder_alignment="caffe"`` costs beside ``"same"``: operations, time and memory of FCN-8s with VGG16.

    python benchmarks/alignment.py --size 375 500 --repeats 7

Operations are counted by torch.utils.flop_counter, on the meta device. Times are processor seconds of all threads,
which a busy machine disturbs less than the clock, of one image in float32; the alignments take turns in one process,
the first turn warms up, and medians are reported. Memory is the highest resident set (VmHWM, Linux) less that with the
weights and the image alone, each case in a fresh process; in training it includes the gradients of the weights,
0.5 GiB in either case.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from fcn_smp.models.fcn import FCN8s

ALIGNMENTS = ("same", "caffe")
CLASSES = 21


def build(alignment):
    model = FCN8s(encoder_name="vgg16", encoder_weights=None, decoder_alignment=alignment, classes=CLASSES)
    # Scores start from zero, and nothing would flow back through zeros.
    for score in (model.decoder.score, *model.decoder.skip_scores):
        torch.nn.init.normal_(score.weight, std=0.01)
    return model


def predict(model, image):
    with torch.inference_mode():
        model.eval()(image)


def train(model, image):
    model.train().zero_grad()
    target = torch.zeros(image.shape[0], *image.shape[2:], dtype=torch.long)
    F.cross_entropy(model(image), target).backward()


TASKS = {"forward": predict, "forward and backward": train}


def count_flops(height, width):
    """Operations of one forward pass of each alignment, a multiplication and an addition being two."""
    counts = {}
    for alignment in ALIGNMENTS:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            predict(build(alignment), torch.empty(1, 3, height, width))
        counts[alignment] = counter.get_total_flops()
    return counts


def measure_seconds(task, size, repeats):
    """Processor seconds of each of ``repeats`` runs of each alignment, taken in turn."""
    image = torch.randn(1, 3, *size)
    models = {alignment: build(alignment) for alignment in ALIGNMENTS}
    seconds = {alignment: [] for alignment in ALIGNMENTS}
    for repeat in range(repeats + 1):
        for alignment, model in models.items():
            start = time.process_time()
            TASKS[task](model, image)
            if repeat:  # the first warms up
                seconds[alignment].append(time.process_time() - start)
    return seconds


def highest_resident_set():
    """Bytes. Not getrusage's ru_maxrss, which a process inherits from the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def print_memory_growth(alignment, task, size):
    """Run ``task`` once, and print by how many bytes that raises the highest resident set."""
    model, image = build(alignment), torch.randn(1, 3, *size)
    Path("/proc/self/clear_refs").write_text("5")  # what building needed for a moment does not count
    before = highest_resident_set()
    TASKS[task](model, image)
    print(highest_resident_set() - before)


def measure_memory(task, args):
    """Bytes that ``task`` needs with each alignment, measured in processes of their own."""
    options = ["--size", *map(str, args.size), "--threads", str(args.threads)]
    return {
        alignment: int(subprocess.check_output([sys.executable, __file__, *options, "--memory", alignment, task]))
        for alignment in ALIGNMENTS
    }


def add_row(table, name, values, unit, spread=""):
    same, caffe = (values[alignment] for alignment in ALIGNMENTS)
    table.add_row(name, f"{same:.2f} {unit}", f"{caffe:.2f} {unit}", f"{caffe / same:.2f}", spread)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)  # what a fresh process is to measure
    return parser.parse_args()


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print_memory_growth(*args.memory, args.size)
        return
    height, width = args.size
    table = Table("", *ALIGNMENTS, "ratio", "fastest to slowest", title=f"FCN-8s, VGG16, {height}x{width}")
    for size in dict.fromkeys(((height, width), (224, 224), (512, 512), (1024, 2048))):
        counts = count_flops(*size)
        add_row(table, "operations, {}x{}".format(*size), {k: v / 1e9 for k, v in counts.items()}, "GFLOP")
    for task in TASKS:
        seconds = measure_seconds(task, args.size, args.repeats)
        spread = ", ".join(f"{min(values):.2f} to {max(values):.2f}" for values in seconds.values())
        add_row(table, f"time, {task}", {k: statistics.median(v) for k, v in seconds.items()}, "s", spread)
    for task in TASKS:
        add_row(table, f"memory, {task}", {k: v / 2**30 for k, v in measure_memory(task, args).items()}, "GiB")
    Console().print(table)


if __name__ == "__main__":
    main()
