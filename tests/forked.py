"""The command line in processes of its own that can be killed, stopped and made to share a run.

They are forked from one that has imported everything, since that takes seconds, and the tests start dozens. Several
that share a run are told so as ``torchrun`` or Slurm tells them.
"""

import contextlib
import csv
import gc
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from helpers import leave_out_drawings

import fcn_smp.training.run
from fcn_smp import cli

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
ENVIRONMENT = {
    # as in the tests' own process: sums of floats depend on how they are split
    "OMP_NUM_THREADS": "1",
    # for the module to be found by the process that all others are forked from
    "PYTHONPATH": str(Path(__file__).parent),
}
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
"""What Python tells its audit hooks of the file system; ``open`` where it writes."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TIMES = ("seconds", "images_per_second")
"""Columns of a run's table that no two runs share, besides those whose names end in ``_seconds``."""


class Command:
    """A command of ``fcn-smp`` that is under way; each of its processes leads a session of its own.

    Args:
        folder: Where its output goes.
        arguments: The command.
        world: Processes that share it.
        before: Called in each process, with its number, before the command starts; it must be picklable.
        told: What a process is told of the others by the environment, given its number, theirs and a port.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[object],
        *,
        world: int = 1,
        before: Callable[[int], None] | None = None,
        told: Callable[[int, int, int], dict[str, object]] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        port, told = _free_port(), told or torchrun
        for rank in range(world):
            self._joined(rank).unlink(missing_ok=True)
        self.processes = [
            CONTEXT.Process(
                target=_run,
                args=(told(rank, world, port), [*map(str, arguments)], folder, self._joined(rank), before, rank),
            )
            for rank in range(world)
        ]
        _import_everything()
        for process in self.processes:
            process.start()

    def _joined(self, rank: int) -> Path:
        return self.folder / f"joined-{rank}"

    @property
    def joined(self) -> bool:
        """Whether the processes have found one another."""
        return all(self._joined(rank).exists() for rank in range(len(self.processes)))

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def until(self, happened: Callable[[], bool], timeout: float = 60) -> bool:
        """Wait for something; return whether it happened before the command ended."""
        end = time.monotonic() + timeout
        while not happened():
            if not self.running:
                return happened()
            assert time.monotonic() < end, f"it takes more than {timeout} seconds; {self.err()}"
            time.sleep(0.001)
        return True

    def wait(self, timeout: float = 60) -> list[int | None]:
        """Return the exit codes; whoever is still there after so many seconds is killed, and has none."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill([rank for rank, code in enumerate(codes) if code is None])
        return codes

    def kill(self, ranks: Sequence[int]) -> None:
        """Kill processes with all that they have started."""
        for rank in ranks:
            process = self.processes[rank]
            if process.exitcode is None:
                process.kill()
            for pid in _members(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for rank in ranks:
            self.processes[rank].join()

    def signal(self, number: int) -> None:
        """Send a signal to the first process alone."""
        os.kill(self.processes[0].pid, number)

    def out(self, rank: int = 0) -> str:
        return (self.folder / f"out-{rank}").read_text()

    def err(self, rank: int = 0) -> str:
        return (self.folder / f"err-{rank}").read_text()

    def left(self, timeout: float = 5) -> list[int]:
        """Return the processes that the command has started and that are still there after so many seconds."""
        end = time.monotonic() + timeout
        while (left := [pid for each in self.processes for pid in _members(each.pid)]) and time.monotonic() < end:
            time.sleep(0.01)
        return left


def _members(session: int | None) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its, *_ = entry.read_text().rpartition(")")[2].split()
            if state != "Z" and int(its) == session:
                found.append(int(entry.parent.name))
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@cache
def _import_everything() -> None:
    """Start the process that all others are forked from, so that none of them has to wait for it."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        first = CONTEXT.Process(target=gc.collect)
        first.start()
        first.join()
    finally:
        os.environ.clear()
        os.environ.update(before)


def torchrun(rank: int, world: int, port: int) -> dict[str, object]:
    """Return what ``torchrun`` tells a process of its like."""
    if world == 1:
        return {}
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0}
    return {**shared, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}


def slurm(rank: int, world: int, port: int) -> dict[str, object]:
    """Return what Slurm's ``srun`` tells a task, of one node."""
    job = {"SLURM_JOB_ID": 4711, "SLURM_JOB_NAME": "test", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    tasks = {"SLURM_NTASKS": world, "SLURM_NTASKS_PER_NODE": world, "SLURM_NNODES": 1}
    return {**job, **tasks, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0}


def _run(told, arguments, folder, joined, before, rank):
    os.setsid()  # a group of its own, that can be killed at once
    # A shell has commands in the background ignore Ctrl-C, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    # Otherwise loaders would have their workers forked from yet another process.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(folder.parent / "cache")
    os.environ.update({key: str(value) for key, value in told.items()})
    launch = fcn_smp.training.run.launch

    def noted(settings):
        fabric = launch(settings)
        joined.touch()
        return fabric

    fcn_smp.training.run.launch = noted
    leave_out_drawings(pytest.MonkeyPatch())
    if before:
        before(rank)
    sys.argv = ["fcn-smp", *arguments]
    code = 0
    try:
        cli.main()
    except SystemExit as exited:
        code = exited.code
    sys.exit(code)  # as Python does it: with the exception gone, and what it held


# What can be done to a process from within, as `before`. Each is called with the number of the process last.


def at_change(
    folder: Path,
    where: int | str | None,
    act: Callable[[Path], None],
    log: Path | None = None,
    ranks: Sequence[int] = (0,),
):
    """Call ``act`` with the path before a change to a folder is made; what lies on the disk changes with nothing else.

    That is, but for the content of files that are open.

    Args:
        folder: The folder.
        where: Number of the change, or a pattern: of the operation and the path inside, as it is in ``log``.
        act: What to do then, once.
        log: Where to write down all changes, each before it is made.
        ranks: The processes to watch.
    """
    return partial(_at_change, folder, where, act, log, ranks)


def _at_change(folder, where, act, log, ranks, rank):
    if rank not in ranks:
        return
    me, count, done = os.getpid(), 0, False
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) if log else None

    def hook(event, arguments):
        nonlocal count, done
        if event not in CHANGES or done or not isinstance(arguments[0], str | os.PathLike) or os.getpid() != me:
            return
        path = Path(arguments[0])
        if not path.is_relative_to(folder) or (event == "open" and not arguments[2] & WRITING):
            return
        line = f"{event.rpartition('.')[2]} {path.relative_to(folder)}"
        if file is not None:
            os.write(file, f"{line}\n".encode())
        if count == where if isinstance(where, int) else where and re.search(where, line):
            done = True
            act(path)
        count += 1

    sys.addaudithook(hook)


def at_call(owner: type, method: str, number: int, act: Callable[[], None], ranks: Sequence[int] = (0,)):
    """Call ``act`` before the call of a method of a class with this number, counted from 0."""
    return partial(_at_call, owner, method, number, act, ranks)


def _at_call(owner, method, number, act, ranks, rank):
    original, count = getattr(owner, method), 0

    def wrapped(*arguments, **options):
        nonlocal count
        count += 1
        if count == number + 1 and rank in ranks:
            act()
        return original(*arguments, **options)

    setattr(owner, method, wrapped)


def die(*_):
    """Kill this process and all that it has started."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


# What two runs have in common.


def table(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's table, but for what is a matter of time."""
    with (run / "metrics.csv").open() as file:
        return [_timeless(row) for row in csv.DictReader(file)]


def _timeless(row):
    return {key: value for key, value in row.items() if key not in TIMES and not key.endswith("_seconds")}


def assert_same_run(run: Path, expected: Path) -> None:
    """Assert that two runs ended with the same weights, bit by bit, and the same of all else but time."""
    assert (run / "model/model.safetensors").read_bytes() == (expected / "model/model.safetensors").read_bytes()
    for name in ("last", "best"):
        _assert_same(*(_checkpoint(place / f"checkpoints/{name}.ckpt") for place in (run, expected)), name)
    assert table(run) == table(expected)
    for name in ("scores.json", "per_class.csv"):
        written, other = ((place / "eval/val" / name).read_text() for place in (run, expected))
        assert written.replace(str(run), "") == other.replace(str(expected), "")
    assert files(run) == files(expected)
    for path in (run / "samples").iterdir():
        assert path.read_bytes() == (expected / "samples" / path.name).read_bytes()
    curves, others = ((place / "curves.png").read_bytes() for place in (run, expected))
    assert curves == others or b"PNG" in curves[:4]  # real ones show what is a matter of time, too


def files(run: Path) -> set[Path]:
    return {path.relative_to(run) for path in run.rglob("*")}


def _checkpoint(path):
    content = torch.load(path, weights_only=True)
    if "state" in content:
        state = content["state"]
        del state["elapsed"], state["seconds"]
        state["rows"] = [_timeless(row) for row in state["rows"]]
    return content


def _assert_same(value, other, where):
    assert type(value) is type(other), where
    if isinstance(value, dict):
        assert list(value) == list(other), where
        for key in value:
            _assert_same(value[key], other[key], f"{where}.{key}")
    elif isinstance(value, list | tuple):
        assert len(value) == len(other), where
        for number, pair in enumerate(zip(value, other, strict=True)):
            _assert_same(*pair, f"{where}[{number}]")
    elif isinstance(value, torch.Tensor):
        assert value.dtype == other.dtype, where
        assert torch.equal(value, other), where
    else:
        assert value == other, where
