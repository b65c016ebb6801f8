"""What a run directory says of its run, and whether it may be written or resumed."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fcn_smp.errors import UserError
from fcn_smp.files import write_text
from fcn_smp.recipe import Recipe, load_recipe
from fcn_smp.reporting.runs import read_starts

# What may differ when a run is resumed: where it runs and what it shows, not what it computes.
_PLACE = (
    "name",
    *(f"trainer.{key}" for key in ("workers", "accelerator", "devices", "num_nodes", "strategy")),
    *(f"trainer.{key}" for key in ("checkpoint_minutes", "checkpoint_steps", "samples", "loggers", "collapse_steps")),
)
_PACKAGES = ("fcn_smp", "torch", "segmentation-models-pytorch", "timm", "albumentations", "lightning-fabric", "numpy")


def write_record(recipe: Recipe, run: Path, **facts: Any) -> None:
    """Write the resolved recipe, and add to ``environment.json`` where and with what it was started this time.

    Args:
        recipe: What is run.
        run: The run directory.
        facts: What else is to be kept of this start, as JSON can hold it, such as fingerprints of the data.
    """
    starts = [*read_starts(run), {**environment(), **facts}]
    write_text(run / "recipe.yaml", recipe.dump())
    write_text(run / "environment.json", json.dumps({"starts": starts}, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Return where and with what this process runs, as JSON can hold it; what cannot be found out is None.

    Memory is in GiB. The name of the host is left out, since run directories are passed on.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(sys.argv),
        "argv": sys.argv,
        "processes": torch.distributed.get_world_size() if distributed else 1,
        "git": _commits(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": {
            "name": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": _memory(),
        },
        "gpu": [_gpu(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "cudnn": _cudnn(),
    }


def check_directory(recipe: Recipe, run: Path, *, resume: bool) -> None:
    """See that a run directory may be written.

    A run of which there is nothing yet can be resumed: it starts from the beginning.

    Args:
        recipe: What is to be run.
        run: The run directory.
        resume: Whether the run in it is to go on.

    Raises:
        UserError: ``run`` holds another run, or, to be resumed, was begun with another recipe.
    """
    if not resume:
        if (run / "recipe.yaml").is_file():
            raise UserError(f"{run} holds another run; name another directory with --output, or go on with --resume.")
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise UserError(f"{run} holds something else than a run; name another directory with --output.")
        return
    if _is_bare(run):
        return
    if not (run / "recipe.yaml").is_file():
        raise UserError(
            f"{run} cannot be resumed: it holds other files, but no recipe.yaml; name another with --output."
        )
    try:
        before = _settings(load_recipe(run / "recipe.yaml"))
    except UserError as error:
        raise UserError(f"{run} cannot be resumed: its recipe.yaml is not one of this version.") from error
    now = _settings(recipe)
    for key in before | now:
        if now.get(key) != before.get(key):
            raise UserError(
                f"{run} was begun with {key}={before.get(key)}, now it is {now.get(key)}; a run is resumed with what it"
                f" was begun with, which {run / 'recipe.yaml'} holds as well. To change it, begin another from its"
                " model: model.init_from=RUN."
            )


def _is_bare(run: Path) -> bool:
    """Tell whether ``run`` is absent, empty, or has only what a killed process leaves of unfinished files."""
    return not run.exists() or (run.is_dir() and all(path.name.startswith(".") for path in run.iterdir()))


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return what must not differ when a run is resumed: ``{"trainer.epochs": 60, "stages.one.model.arch": ...}``."""
    flat: dict[str, Any] = {}
    for key, value in recipe.model_dump(mode="json", exclude={"stages"}).items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    flat = {key: value for key, value in flat.items() if key not in _PLACE}
    for name, stage in recipe.staged().items():
        flat |= {f"stages.{name}.{key}": value for key, value in _settings(stage).items()}
    return flat


def _command(argv: list[str]) -> str:
    """Return the command line as one would type it."""
    program = Path(argv[0])
    if program.name == "__main__.py":  # python -m names the file, which cannot be run by itself
        return shlex.join(["python", "-m", program.parent.name, *argv[1:]])
    return shlex.join(argv)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commits() -> dict[str, Any]:
    """Return the commits of the package and of the working directory, of the latter where it is another repository."""
    source = Path(__file__).parent
    # A package that is installed inside somebody's checkout is not a part of it.
    package = _git(source, "ls-files", "--error-unmatch", Path(__file__).name) is not None
    root = _git(source, "rev-parse", "--show-toplevel") if package else None
    here = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    return {
        "package": _commit(source) if package else None,
        "working_directory": _commit(Path.cwd()) if here and here != root else None,
    }


def _commit(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a checkout, and whether tracked files differ from it."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints about ``folder``; None where it fails, is missing, or takes long."""
    # Ask only: write no index, and start no program that the repository names.
    git = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder)]
    try:
        done = subprocess.run([*git, *arguments], capture_output=True, text=True, timeout=2, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or None


def _memory() -> float | None:
    try:
        return _gib(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


def _gpu(index: int) -> Mapping[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {"name": properties.name, "memory_gib": _gib(properties.total_memory)}


def _cudnn() -> int | None:
    try:
        number: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    except RuntimeError:  # one that does not fit; training will say so if it matters
        return None
    return number


def _gib(count: int) -> float:
    return round(count / 2**30, 1)
