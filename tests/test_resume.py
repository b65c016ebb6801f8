"""A run that is killed, stopped or runs out of disk at any moment is resumed, and ends as if nothing had happened.

``make kill-test`` kills far more often than the suite does.
"""

import errno
import io
import os
import re
import resource
import shlex
import shutil
import signal
import tempfile
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Command, assert_same_run, at_call, at_change, die, files, table
from helpers import run_command, tree, write_voc
from safetensors.torch import load_file
from test_loggers import events

from fcn_smp.losses import SegmentationLoss
from fcn_smp.metrics import ConfusionMatrix
from fcn_smp.reporting.runs import read_starts
from fcn_smp.training.reports import Display

KILLS = int(os.environ.get("FCN_SMP_KILLS", "4"))
"""How often to kill at random, for each number of processes."""
takes_long = pytest.mark.skipif("FCN_SMP_KILLS" not in os.environ, reason="make kill-test does this, too")
IN_A_ROW = 3
"""Kills of one run at most."""
TINY = """
data: {{kind: voc, year: 2012, root: {root}, train: {lists}/train.txt, val: {lists}/val.txt}}
model: {{encoder_name: test_resnet, encoder_weights: null, decoder_hidden_channels: 8, decoder_dropout: 0.3}}
augmentation: {{crop: [32, 40]}}
trainer:
  {{epochs: 4, batch_size: 4, validate_every: 2, checkpoint_steps: 2, ema: 0.9, samples: 1, workers: 0,
    accelerator: cpu, precision: fp32}}
"""
STEPS = 12
STAGES = """
extends: tiny.yaml
trainer: {epochs: 2}
stages:
  one: {model: {arch: fcn32s}}
  two: {model: {arch: fcn8s}}
"""


class Place:
    """A folder with a data set, recipes and finished runs that were never stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lists = write_voc(folder / "data", 2012, [f"t{k}" for k in range(12)], [f"v{k}" for k in range(5)])
        self.tiny = folder / "tiny.yaml"
        self.tiny.write_text(TINY.format(root=folder / "data", lists=lists / "ImageSets/Segmentation"))
        self.stages = folder / "stages.yaml"
        self.stages.write_text(STAGES)

    def finished(self, world: int = 1, recipe: str = "tiny.yaml", overrides: tuple[str, ...] = ()) -> Path:
        """Return a run that was not stopped; beside it lie what it changed on the disk, and how long it took."""
        return self._finished(world, recipe, overrides)

    @cache  # noqa: B019  (as long as the module)
    def _finished(self, world: int, recipe: str, overrides: tuple[str, ...]) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="finished-", dir=self.folder))
        run = folder / "run"
        arguments = ["train", self.folder / recipe, *overrides, "-o", run]
        command = Command(folder / "out", arguments, world=world, before=at_change(run, None, die, folder / "changes"))
        command.until(lambda: command.joined)
        begun = time.monotonic()
        ends_well(command)
        (folder / "seconds").write_text(f"{time.monotonic() - begun}")
        return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def start(tmp_path, place):
    """Start ``fcn-smp train`` on a run directory; whatever is left of it in the end is killed."""
    commands = []

    def begin(*options, recipe="tiny.yaml", world=1, before=None):
        command = ["train", place.folder / recipe, *options, "-o", tmp_path / "run"]
        commands.append(Command(tmp_path / f"command-{len(commands)}", command, world=world, before=before))
        return commands[-1]

    yield begin
    for command in commands:
        command.kill(range(len(command.processes)))


def ends_well(command: Command) -> None:
    world = len(command.processes)
    assert (command.wait(), [command.err(rank) for rank in range(world)]) == ([0] * world, [""] * world)
    assert command.left() == []


def killed(command: Command) -> bool:
    """Wait for a command of which a process is killed, kill the others, and tell whether that was before the end."""
    command.until(lambda: any(process.exitcode is not None for process in command.processes))
    codes = command.wait(timeout=1)  # torchrun, too, kills who is left, after a while
    assert command.left() == []
    return -signal.SIGKILL in codes


def told(command: Command, *parts: object) -> None:
    """Assert that a command ended with a sentence that has all parts."""
    assert command.wait() == [2], command.err()
    assert command.err().startswith("fcn-smp: "), command.err()
    assert (command.err().count("\n"), command.err()[-2:]) == (1, ".\n"), command.err()
    for part in parts:
        assert str(part) in command.err()


# Killed.


MOMENTS = [
    r"mkdir \.$",
    r"rename .*recipe\.yaml$",
    r"open .*last\.ckpt$",
    r"rename .*last\.ckpt$",
    r"open .*samples/.*png$",
    r"rename .*best\.ckpt$",
    r"rename .*metrics\.csv$",
    r"rename .*scores\.json$",
    r"open .*README\.md$",
    r"rename .*/model$",
]


@pytest.mark.parametrize(("world", "moments"), [(1, MOMENTS), (2, MOMENTS[::4])])
def test_a_run_may_be_killed_at_every_turn(start, place, tmp_path, world, moments):
    run = tmp_path / "run"
    for moment in moments:
        assert killed(start("--resume", world=world, before=at_change(run, moment, die))), moment
    assert any(path.name.endswith(".unfinished") for path in run.rglob(".*"))
    ends_well(start("--resume", world=world))
    assert_same_run(run, place.finished(world))


class Kill:
    """Draws when a run is killed, of all or of one of its processes."""

    def __init__(self, rng: np.random.Generator, run: Path, finished: Path, world: int) -> None:
        changes = len((finished.parent / "changes").read_text().splitlines())
        self.world = world
        self.delay = rng.uniform(0, float((finished.parent / "seconds").read_text()))
        self.ranks = None if world == 1 or rng.random() < 0.4 else [int(rng.integers(world))]
        # Only the first process changes anything on the disk.
        by_change = rng.random() < 0.5 and self.ranks != [1]
        self.before = at_change(run, int(rng.integers(changes)), die) if by_change else None

    def __call__(self, command: Command) -> bool:
        """Kill a command, and tell whether that was before its end."""
        if not self.before:
            if self.ranks:  # until they have found one another, each waits for those that are to come
                command.until(lambda: command.joined)
            end = time.monotonic() + self.delay
            if command.until(lambda: time.monotonic() > end):
                command.kill(range(self.world) if self.ranks is None else self.ranks)
        return killed(command)


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_may_be_killed_at_random_moments(start, place, tmp_path, world):
    rng = np.random.default_rng(world)
    run, finished = tmp_path / "run", place.finished(world)
    kills = 0
    while kills < KILLS:
        for _ in range(min(IN_A_ROW, KILLS - kills)):
            kill = Kill(rng, run, finished, world)
            if not kill(start("--resume", f"trainer.workers={rng.choice([0, 2])}", world=world, before=kill.before)):
                break
            kills += 1
        ends_well(start("--resume", world=world))
        assert_same_run(run, finished)
        shutil.rmtree(run)


def test_what_follows_the_last_checkpoint_is_made_up_for(start, tmp_path):
    run = tmp_path / "run"
    options = ("--resume", "trainer.epochs=2", "trainer.loggers=[tensorboard]")
    assert killed(start(*options, before=at_change(run, r"open .*curves\.png$", die)))
    ends_well(start(*options))
    assert (run / "curves.png").read_text() == "2 rows"
    assert [step for step, _ in events(run)["train_loss"]] == [3, 6]


@takes_long
def test_a_killed_run_of_three_processes_goes_on_to_the_bit(start, place, tmp_path):
    overrides = ("trainer.batch_size=6",)
    assert killed(start("--resume", *overrides, world=3, before=at_call(SegmentationLoss, "forward", 5, die)))
    ends_well(start("--resume", *overrides, world=3))
    assert_same_run(tmp_path / "run", place.finished(3, overrides=overrides))


def cut_short(number: int, rank: int) -> None:
    """Be killed halfway through writing a checkpoint, the one with this number."""
    save, count = torch.save, 0

    def half(content, file):
        nonlocal count
        count += 1
        if count == number + 1:
            buffer = io.BytesIO()
            save(content, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
            die()
        save(content, file)

    torch.save = half


def test_a_checkpoint_that_was_cut_short_leaves_the_one_before(start, place, tmp_path):
    run = tmp_path / "run"
    assert killed(start(before=partial(cut_short, 1)))
    kept = run / "checkpoints/last.ckpt"
    (part,) = run.glob("checkpoints/.last.ckpt.*.unfinished/last.ckpt")
    assert torch.load(kept, weights_only=True)["state"]["step"] == 2
    assert 0.3 < part.stat().st_size / kept.stat().st_size < 0.7
    ends_well(start("--resume"))
    assert_same_run(run, place.finished())


def test_workers_of_a_killed_run_end_by_themselves(start, tmp_path):
    command = start("trainer.workers=2", before=at_call(SegmentationLoss, "forward", 3, kill_alone))
    assert command.wait() == [-signal.SIGKILL]
    assert command.left(timeout=20) == []


def kill_alone() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


OTHERS = {
    "frozen": (("model.frozen=[encoder]", "model.frozen_epochs=2", "optimizer={kind: sgd, nesterov: true}"), (4, 3, 2)),
    "pieces": (
        ("trainer.accumulate=2", "trainer.gradient_clip=0.1", "trainer.precision=bf16", "trainer.ema=null"),
        (6, 9, 5),
    ),
    "whole": (
        ("augmentation=null", "trainer.batch_size=1", "trainer.validate_every=1", "trainer.early_stop=1"),
        (3, 11, 1),
    ),
}
"""Changes to the recipe, and the pieces of batches in which such a run is killed again and again."""


@pytest.mark.parametrize("name", OTHERS)
def test_other_recipes_go_on_as_well(start, place, tmp_path, name):
    overrides, pieces = OTHERS[name]
    for piece in pieces:
        assert killed(start("--resume", *overrides, before=at_call(SegmentationLoss, "forward", piece, die)))
    ends_well(start("--resume", *overrides))
    assert_same_run(tmp_path / "run", place.finished(overrides=overrides))


def test_a_run_goes_on_with_other_processes_and_workers(start, place, tmp_path):
    """Without batch norm and dropout, on the same batches, the weights agree but for rounding."""
    run = tmp_path / "run"
    network = "model={encoder_name: test_convnext, decoder_hidden_channels: 0, decoder_dropout: 0}"
    overrides = (network, "optimizer={kind: sgd, lr: 0.05, encoder_lr: 0.05}", "trainer.batch_size=6")
    for world, workers in ((1, 2), (2, 1)):
        changes = (*overrides, f"trainer.workers={workers}", "trainer.checkpoint_steps=1")
        assert killed(start("--resume", *changes, world=world, before=at_call(SegmentationLoss, "forward", 2, die)))
    ends_well(start("--resume", *overrides))
    assert [begun["processes"] for begun in read_starts(run)] == [1, 2, 1]
    expected = place.finished(overrides=overrides)
    for row, other in zip(table(run), table(expected), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), abs=2e-5)
    weights, others = (load_file(place / "model/model.safetensors") for place in (run, expected))
    assert max((weights[name] - others[name]).abs().max() for name in others) < 1e-5


def test_a_run_killed_in_its_second_stage_goes_on(start, place, tmp_path):
    run, finished = tmp_path / "run", place.finished(recipe="stages.yaml")
    for moment in (r"open one/.*last\.ckpt$", r"rename .*one/.*/model$", r"mkdir two$", r"open two/.*last\.ckpt$",
                   r"rename two/.*scores\.json$", r"rename \.model.*"):  # fmt: skip
        assert killed(start("--resume", recipe="stages.yaml", before=at_change(run, moment, die))), moment
    done = tree(run / "one")
    ends_well(start("--resume", recipe="stages.yaml"))
    assert tree(run / "one") == done
    for name in ("one", "two"):
        assert_same_run(run / name, finished / name)
    assert files(run) == files(finished)
    assert (run / "model/model.safetensors").read_bytes() == (finished / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["empty", "unfinished"])
def test_a_run_of_which_there_is_nothing_yet_begins(start, place, tmp_path, kind):
    run = tmp_path / "run"
    run.mkdir()
    if kind == "unfinished":
        (run / ".recipe.yaml.abc.unfinished").mkdir()
    ends_well(start("--resume"))
    assert_same_run(run, place.finished())


# Stopped.


def ask(number: int) -> None:
    """Send a signal to this process and its workers, as Ctrl-C does."""
    os.killpg(os.getpgrp(), number)


def goes_on(command: Command, rank: int = 0) -> tuple[int, list[str]]:
    """Assert that a command says how it goes on; return the step after which it stopped, and what follows fcn-smp."""
    match = re.fullmatch(r"fcn-smp: stopped after step (\d+) of (\d+); this goes on:\n(.*)\n", command.err(rank))
    assert match, command.err(rank)
    program, *arguments = shlex.split(match[3])
    assert (program, arguments[0], arguments.count("--resume")) == ("fcn-smp", "train", 1)
    return int(match[1]), arguments


STOPS = [
    ("step", signal.SIGTERM, 2),
    ("last step", signal.SIGTERM, 0),
    ("validation", signal.SIGINT, 2),
]
CALLS = {
    "step": (SegmentationLoss, "forward", 4),
    "last step": (SegmentationLoss, "forward", STEPS - 1),
    "validation": (ConfusionMatrix, "update", 2),
}


@pytest.mark.parametrize(("moment", "number", "workers"), STOPS)
def test_a_run_that_is_stopped_says_how_it_goes_on(start, place, tmp_path, moment, number, workers):
    run = tmp_path / "run"
    command = start(f"trainer.workers={workers}", before=at_call(*CALLS[moment], partial(ask, number)))
    assert command.wait() == [130], command.err()
    step, arguments = goes_on(command)
    assert step in {"step": (5, 6), "last step": (STEPS,), "validation": (6,)}[moment]
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state"]["step"] == step
    assert command.left() == []
    again = Command(tmp_path / "again", arguments)
    ends_well(again)
    assert f"after step {step} of {STEPS}" in again.out()
    assert_same_run(run, place.finished())


def test_the_command_that_is_printed_goes_on(place, tmp_path):
    """As a user does it, with names that a shell would take apart, and here, in a process that was not forked."""
    run = tmp_path / "my run"
    command = ["train", place.tiny, "--output", run, "model.decoder_dropout=0.25"]
    stopped = Command(tmp_path / "stopped", command, before=at_call(*CALLS["step"], partial(ask, signal.SIGTERM)))
    assert stopped.wait() == [130]
    _, arguments = goes_on(stopped)
    code, _, error = run_command(*arguments)
    assert (code, error) == (0, "")
    assert_same_run(run, place.finished(overrides=("model.decoder_dropout=0.25",)))


@pytest.mark.parametrize(("moment", "rank"), [("step", 1), ("validation", 0)])
def test_one_process_that_is_told_to_stop_stops_all(start, place, tmp_path, moment, rank):
    before = at_call(*CALLS[moment][:2], 1, partial(ask, signal.SIGTERM), ranks=(rank,))
    command = start(world=2, before=before)
    assert command.wait() == [130, 130]
    assert command.err(1) == ""
    # They are not of their own making: what began them, torchrun, is what goes on.
    told = r"fcn-smp: stopped after step (\d+) of \d+; the same command with --resume goes on\.\n"
    match = re.fullmatch(told, command.err())
    assert match, command.err()
    assert int(match[1]) in {"step": (2, 3), "validation": (6,)}[moment]
    ends_well(start("--resume", world=2))
    assert_same_run(tmp_path / "run", place.finished(2))


def hang(mark: Path) -> None:
    mark.touch()
    time.sleep(600)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(start, place, tmp_path, number):
    command = start(before=at_call(*CALLS["step"], partial(hang, tmp_path / "mark")))
    assert command.until((tmp_path / "mark").exists)
    command.signal(number)
    time.sleep(0.3)
    assert command.running
    command.signal(number)
    assert command.wait(timeout=10) == [130]
    assert command.err().startswith("fcn-smp: interrupted; this goes on:\nfcn-smp train ")
    ends_well(start("--resume"))
    assert_same_run(tmp_path / "run", place.finished())


def test_a_run_that_is_stopped_at_once_says_so(start, tmp_path):
    command = start(before=at_call(Display, "__init__", 0, partial(ask, signal.SIGINT)))
    assert command.wait() == [130]
    assert "interrupted" in command.err()


# Out of room.


def refuse(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def limit(path: Path) -> None:
    """Let no file grow beyond 4 KiB from now on, as a full disk would not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


FULL = [
    ("open", "recipe.yaml", refuse),
    ("mkdir", "environment.json", refuse),
    ("open", "checkpoints/last.ckpt", refuse),
    ("open", "checkpoints/last.ckpt", limit),
    ("rename", "checkpoints/last.ckpt", refuse),
    ("open", "samples/epoch-002.png", refuse),
    ("open", "checkpoints/best.ckpt", limit),
    ("open", "metrics.csv", refuse),
    ("open", "eval/val/scores.json", refuse),
    ("mkdir", "model", refuse),
    ("open", "README.md", refuse),
]


def test_a_disk_may_be_full_at_every_turn(start, place, tmp_path):
    run = tmp_path / "run"
    for operation, file, act in FULL:
        kept = sorted(run.glob("checkpoints/*.ckpt"))
        command = start("--resume", before=at_change(run, rf"{operation} .*{re.escape(Path(file).name)}", act))
        told(command, Path(file).name, "No space left on device" if act is refuse else "File too large")
        for path in kept:
            torch.load(path, weights_only=True)
        if file.startswith("checkpoints"):
            assert f"{run / file} cannot be written" in command.err()
            assert ("the one before is whole" in command.err()) == (run / file in kept)
    ends_well(start("--resume"))
    assert_same_run(run, place.finished())


def test_a_disk_may_be_full_when_the_model_is_written(start, place, tmp_path):
    command = start(before=at_change(tmp_path / "run", r"mkdir \.model.*/model$", limit))
    told(command, "model", "File too large")
    ends_well(start("--resume"))
    assert_same_run(tmp_path / "run", place.finished())


def put_a_file(path: Path) -> None:
    path.write_text("in the place of the folder")


def lock(path: Path) -> None:
    path.parent.chmod(0o500)


def test_a_folder_that_cannot_be_written_is_named(start, place, tmp_path):
    run = tmp_path / "run"
    told(start(before=at_change(run, r"mkdir checkpoints$", put_a_file)), run / "checkpoints", "cannot be written")
    ends_well(start("--resume"))
    assert_same_run(run, place.finished())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(start, place, tmp_path):
    run = tmp_path / "run"
    told(start(before=at_change(run, r"mkdir checkpoints/\.best.*", lock)), run / "checkpoints", "Permission denied")
    (run / "checkpoints").chmod(0o700)
    ends_well(start("--resume"))
    assert_same_run(run, place.finished())


# Damaged.


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def scramble(path: Path) -> None:
    path.write_bytes(b"not a checkpoint")


def lose_weights(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["model"].popitem()
    torch.save(content, path)


def replace(path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, path)


@pytest.fixture
def unfinished(place, tmp_path):
    """A run that has been killed in the end, before there was a model."""
    run = tmp_path / "run"
    shutil.copytree(place.finished(), run, ignore=shutil.ignore_patterns("model", "eval"))
    return run


@pytest.mark.parametrize(
    ("name", "damage"),
    [("last", halve), ("last", empty), ("last", scramble), ("last", replace), ("last", lose_weights), ("best", halve)],
)
def test_a_damaged_checkpoint_is_named_with_what_helps(start, place, unfinished, name, damage):
    path = unfinished / f"checkpoints/{name}.ckpt"
    damage(path)
    before = tree(unfinished)
    told(start("--resume"), path, "cannot be read as a checkpoint", f"remove the folder {path.parent}")
    assert name == "best" or tree(unfinished) == before
    if damage is halve:
        shutil.rmtree(path.parent)
        ends_well(start("--resume"))
        assert_same_run(unfinished, place.finished())


def test_what_was_left_unfinished_is_removed_even_if_the_run_is_complete(start, place, tmp_path):
    run = tmp_path / "run"
    assert killed(start(before=at_change(run, r"rmtree \.model.*", die)))
    command = start("--resume")
    ends_well(command)
    assert "nothing to resume" in command.out()
    assert_same_run(run, place.finished())
