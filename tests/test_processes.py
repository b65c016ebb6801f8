"""A run that several processes share is the run that one would have done."""

import csv
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forked import Command, assert_same_run, at_call, at_change, die, slurm, table
from helpers import run_command, write_voc
from networks import build, with_random_scores
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fcn_smp import cli
from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.data.sampling import StepSampler
from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.errors import UserError
from fcn_smp.losses import SegmentationLoss
from fcn_smp.metrics import ConfusionMatrix
from fcn_smp.models.encoder import encoder_preprocessing
from fcn_smp.segmenter import Segmenter

ENCODER = "test_convnext"
"""Without batch norm, whose statistics are those of a device's share."""
TINY = """
data: {{kind: voc, year: {year}, root: {root}, train: {train}, val: {val}}}
model: {{encoder_name: {encoder}, encoder_weights: null, decoder_hidden_channels: 0, decoder_dropout: 0}}
augmentation: {{crop: [40, 56], color_jitter: 0}}
loss: {{class_weights: {{background: 0.05, person: 20, dog: 7}}}}
optimizer: {{kind: sgd, lr: 0.5, encoder_lr: 0.5, momentum: 0, weight_decay: 0}}
schedule: {{kind: constant}}
trainer: {{epochs: 1, batch_size: 6, samples: 1, workers: 0, accelerator: cpu, precision: fp32}}
"""
LEFT = "fcn-smp: Another process of the run has ended"
SIZES = ((40, 56), (48, 36), (33, 61), (64, 64), (35, 47))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set of images that have less and less void, and a recipe for a single step."""
    place = tmp_path_factory.mktemp("place")
    folder = write_voc(place / "data", 2012, [f"t{k}" for k in range(6)], [f"v{k}" for k in range(7)], SIZES)
    rng = np.random.default_rng(0)
    for k in range(6):
        label = np.full((40, 56), IGNORE_INDEX, np.uint8)
        label[: 2 + 7 * k, : 1 + 11 * k] = rng.choice([0, 0, 0, 12, 15], 1 if k < 2 else (2 + 7 * k, 1 + 11 * k))
        picture = Image.fromarray(label)
        picture.putpalette(voc_palette().tobytes())
        picture.save(folder / f"SegmentationClass/t{k}.png")
        image = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
        image.save(folder / f"JPEGImages/t{k}.jpg", quality=95)
    lists = folder / "ImageSets/Segmentation"
    write_recipe(place / "tiny.yaml", place / "data", lists / "train.txt", lists / "val.txt")
    return place


def write_recipe(path: Path, root: Path, train: Path, val: object, year: int = 2012) -> None:
    path.write_text(TINY.format(root=root, train=train, val=val, encoder=ENCODER, year=year))


@pytest.fixture
def start(tmp_path, place):
    """Start ``fcn-smp train``; whatever is left of it in the end is killed."""
    commands = []

    def begin(*options, recipe=place / "tiny.yaml", run="run", world=1, before=None, told=None):
        command = ["train", recipe, *options, "-o", tmp_path / run]
        commands.append(Command(tmp_path / f"command-{len(commands)}", command, world=world, before=before, told=told))
        return commands[-1]

    yield begin
    for command in commands:
        command.kill(range(len(command.processes)))


def finish(command: Command) -> None:
    world = len(command.processes)
    assert (command.wait(), [command.err(rank) for rank in range(world)]) == ([0] * world, [""] * world)


# The same scores.


def keep_counts(path: Path, stop: bool, rank: int) -> None:
    """Keep all confusion matrices of which there are scores, one after the other; stop after the first if asked."""
    scores, kept = ConfusionMatrix.scores, []

    def keeping(self):
        kept.append(self.counts.cpu().numpy())
        if rank == 0:
            np.save(path, np.stack(kept))
        if stop:
            os._exit(0)
        return scores(self)

    ConfusionMatrix.scores = keeping


@pytest.fixture(scope="module")
def model(place):
    """A model that finds something of every class."""
    network = with_random_scores(build("fcn8s", ENCODER, classes=21, decoder_hidden_channels=0))
    Segmenter(network, encoder_preprocessing(ENCODER, None), VOCSegmentation.classes, voc_palette()).save(
        place / "model"
    )
    return place / "model"


def still(model: Path) -> tuple[str, ...]:
    """Return changes to a recipe by which training starts from a model and leaves it as it is."""
    return f"model.init_from={model}", "optimizer.lr=1e-30", "optimizer.encoder_lr=1e-30"


def test_scores_are_those_of_one_process(start, place, model, tmp_path):
    counts, written = [], []
    for world in (1, 2, 3):
        keep = partial(keep_counts, tmp_path / f"counts-{world}.npy", False)
        finish(start(*still(model), world=world, run=f"run-{world}", before=keep))
        counts.append(np.load(tmp_path / f"counts-{world}.npy"))
        written.append(scores(tmp_path / f"run-{world}/eval/val/scores.json"))
    assert counts[0].shape == (8, 21, 21)  # while training, in the end, and within six widths of boundaries
    assert np.count_nonzero(counts[0][0].sum(0)) > 3
    for other in counts[1:]:
        np.testing.assert_array_equal(other, counts[0])
    assert written == [written[0]] * 3
    assert written[0]["images"] == 7
    code, _, _ = run_command("eval", tmp_path / "run-2", "--output", tmp_path / "scores")
    assert code == 0
    for name in ("scores.json", "per_class.csv"):
        assert scores(tmp_path / "scores" / name) == scores(tmp_path / "run-2/eval/val" / name)


def scores(path: Path) -> object:
    """Return what a file of scores holds, but for whose they are."""
    if path.suffix == ".csv":
        return list(csv.reader(path.read_text().splitlines()))
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "model"}


def test_real_images_are_counted_once_each(start, data, model, tmp_path):
    archive = data / "voc2007-segmentation-trainval.tar"
    for split, images in (("train", 6), ("val", 29)):
        few = [id_ for id_, *_ in VOCSegmentation(archive, split, 2007).files[:images]]
        (tmp_path / f"{split}.txt").write_text("\n".join(few))
    write_recipe(tmp_path / "voc.yaml", archive, tmp_path / "train.txt", tmp_path / "val.txt", 2007)
    counts = []
    for world in (1, 2, 3):
        keep = partial(keep_counts, tmp_path / f"counts-{world}.npy", True)
        command = start(*still(model), recipe=tmp_path / "voc.yaml", world=world, run=f"run-{world}", before=keep)
        assert command.wait(timeout=200) == [0] * world, command.err()
        (kept,) = np.load(tmp_path / f"counts-{world}.npy")
        counts.append(kept)
    assert np.count_nonzero(counts[0].sum(0)) > 3
    np.testing.assert_array_equal(counts[1], counts[0])
    np.testing.assert_array_equal(counts[2], counts[0])
    samples = VOCSegmentation(archive, str(tmp_path / "val.txt"), 2007)
    labelled = sum(int((samples.read_label(index) != IGNORE_INDEX).sum()) for index in range(29))
    assert counts[0].sum() == labelled


# The same weights.


def mean_of_means(rank: int) -> None:
    """Take the mean over devices, or over the pieces of a batch, of their means, as is usual, and wrong."""
    forward = SegmentationLoss.forward
    SegmentationLoss.forward = lambda self, logits, target, normalizer=None, parts=1: (
        forward(self, logits, target, None, 1) / parts
    )


def difference(run: Path, other: Path) -> float:
    weights, others = (load_file(place / "model/model.safetensors") for place in (run, other))
    return max((weights[name] - others[name]).abs().max().item() for name in others)


def test_a_step_is_the_same_on_any_number_of_processes_and_in_any_number_of_pieces(start, tmp_path):
    finish(start(run="one"))
    (expected,) = table(tmp_path / "one")
    for world, accumulate in ((2, 1), (3, 1), (1, 2), (1, 3)):
        run = f"run-{world}-{accumulate}"
        finish(start(f"trainer.accumulate={accumulate}", run=run, world=world))
        assert difference(tmp_path / run, tmp_path / "one") < 1e-6
        (row,) = table(tmp_path / run)
        assert float(row["train_loss"]) == pytest.approx(float(expected["train_loss"]), abs=1.1e-5)
    finish(start(run="wrong", world=2, before=mean_of_means))
    assert difference(tmp_path / "wrong", tmp_path / "one") > 1e-3


# One speaks for all.


def test_only_the_first_process_writes_and_speaks(start, tmp_path):
    command = start(world=2, before=at_change(tmp_path / "run", None, die, tmp_path / "changes", ranks=(1,)))
    finish(command)
    assert (command.out(1), (tmp_path / "changes").read_text()) == ("", "")
    lines = command.out().splitlines()
    assert sorted(set(lines)) == sorted(lines)
    assert sum("mIoU" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.val=tset", ("tset",)),
        ("trainer.batch_size=3", ("trainer.batch_size is 3", "multiple of 2", "2 devices")),
        ("trainer.batch_size=12", ("trainer.batch_size is 12", "6 images")),
        ("trainer.accumulate=2", ("trainer.batch_size is 6", "multiple of 4", "trainer.accumulate")),
        ("trainer.sync_batchnorm=true", ("trainer.sync_batchnorm", "GPU")),
    ],
)
def test_a_mistake_is_told_once_and_ends_all(start, tmp_path, override, parts):
    command = start(override, world=2)
    assert command.wait() == [2, 2]
    assert (command.err().count("\n"), command.err(1)) == (1, "")
    for part in parts:
        assert part in command.err()
    assert not (tmp_path / "run").exists()


def test_synchronised_batch_norm_on_a_cpu_is_refused(place, tmp_path):
    code, _, error = run_command("train", place / "tiny.yaml", "trainer.sync_batchnorm=true", "-o", tmp_path / "run")
    assert (code, error.count("\n"), "trainer.sync_batchnorm" in error) == (2, 1, True)
    assert not (tmp_path / "run").exists()


def complain() -> None:
    raise UserError("This machine has another clock.")


def test_what_goes_wrong_on_one_machine_is_told_by_the_first(start, tmp_path):
    command = start(world=3, before=at_call(SegmentationDataset, "fingerprint", 0, complain, ranks=(2,)))
    assert command.wait() == [2, 2, 2]
    assert [command.err(rank) for rank in range(3)] == ["fcn-smp: This machine has another clock.\n", "", ""]
    assert not (tmp_path / "run").exists()


def damaged(place: Path, tmp_path: Path, name: str) -> Path:
    """Return the recipe for a copy of the data set of which one image is damaged."""
    shutil.copytree(place / "data", tmp_path / "data")
    image = tmp_path / f"data/VOCdevkit/VOC2012/JPEGImages/{name}.jpg"
    image.write_bytes(image.read_bytes()[:200])
    lists = tmp_path / "data/VOCdevkit/VOC2012/ImageSets/Segmentation"
    write_recipe(tmp_path / "damaged.yaml", tmp_path / "data", lists / "train.txt", lists / "val.txt")
    return tmp_path / "damaged.yaml"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_only_the_second_process_reads_ends_both(start, place, tmp_path, split, workers):
    (share,) = StepSampler(6, 6, seed=0, steps=range(1), rank=1, world=2)
    name = f"t{share[0][1]}" if split == "train" else "v3"
    recipe = damaged(place, tmp_path, name)
    command = start(f"trainer.workers={workers}", recipe=recipe, world=2)
    assert command.wait(timeout=15) == [2, 2]
    assert (command.err(1).count("\n"), f"{name}.jpg cannot be read as an image" in command.err(1)) == (1, True)
    assert command.err(0).startswith(LEFT)
    assert command.left() == []
    assert not (tmp_path / "run/model").exists()


MOMENTS = {
    "beginning": lambda run: at_change(run, r"mkdir \.$", die),
    "step": lambda run: at_call(SegmentationLoss, "forward", 0, die, ranks=(1,)),
    "validation": lambda run: at_call(ConfusionMatrix, "update", 1, die, ranks=(1,)),
    "end": lambda run: at_call(ConfusionMatrix, "update", 4, die, ranks=(1,)),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_who_is_left_of_a_run_says_so(start, tmp_path, moment):
    command = start(world=2, before=MOMENTS[moment](tmp_path / "run"))
    codes = command.wait(timeout=15)
    left = codes.index(-9) ^ 1
    assert codes[left] == 2
    assert command.err(left).startswith(LEFT)
    assert (command.err(left).count("\n"), command.left()) == (1, [])


def fail() -> None:
    raise RuntimeError("out of memory")


def test_an_unforeseen_error_ends_a_run_with_workers(start):
    command = start("trainer.workers=2", before=at_call(SegmentationLoss, "forward", 0, fail))
    assert command.wait(timeout=15) == [1]
    assert "out of memory" in command.err()
    assert command.left() == []


def launch(rank: int) -> None:
    """Let the command be run by two processes that torchrun's agent starts: forked ones, which import nothing."""
    main = cli.main
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, start_method="fork",
    )  # fmt: skip
    cli.main = lambda: elastic_launch(config, entrypoint=main)()


def test_torchrun_and_devices_are_the_same(start, place, tmp_path):
    """The latter as it is called, in processes that Python starts anew."""
    own = ["trainer.devices=2", "trainer.strategy=ddp", "-o", tmp_path / "devices"]
    devices = subprocess.Popen(
        [sys.executable, "-m", "fcn_smp", "train", place / "tiny.yaml", *own],
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    torchrun = start(run="torchrun", before=launch)
    assert torchrun.wait() == [0], torchrun.err()
    finish(start(world=2))
    out, err = devices.communicate(timeout=200)
    assert devices.returncode == 0, err
    for printed, name in ((torchrun.out(), "torchrun"), (out, "devices")):
        assert sum("mIoU" in line for line in printed.splitlines()) == 1
        assert_same_run(tmp_path / name, tmp_path / "run")


def test_tasks_of_slurm_are_the_processes_of_a_run(start, tmp_path):
    finish(start("trainer.devices=2", world=2, run="slurm", told=slurm))
    finish(start(world=2))
    assert_same_run(tmp_path / "slurm", tmp_path / "run")


def test_other_devices_than_slurm_has_tasks_are_refused_once(start, tmp_path):
    command = start("trainer.devices=4", world=2, told=slurm)
    assert command.wait() == [2, 2]
    assert command.err().startswith("fcn-smp: trainer: You set `devices=4`")
    assert (command.err().count("\n"), command.err(1)) == (1, "")
    assert not (tmp_path / "run").exists()
