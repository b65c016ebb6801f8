"""What a run directory says of its run, and whether it may be written or resumed."""

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fcn_smp.errors import UserError
from fcn_smp.files import write_text
from fcn_smp.recipe import Recipe, load_recipe

# What may differ when a run is resumed: where it runs, not what it computes.
_PLACE = ("name", *(f"trainer.{key}" for key in ("workers", "accelerator", "devices", "num_nodes", "strategy")))


def write_record(recipe: Recipe, run: Path) -> None:
    """Write the resolved recipe, and where and with what it runs."""
    write_text(run / "recipe.yaml", recipe.dump())
    write_text(run / "environment.json", json.dumps(environment(), indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Return where and with what a run was made."""
    packages = ("fcn_smp", "torch", "segmentation-models-pytorch", "timm", "albumentations", "lightning", "numpy")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
    }


def check_directory(recipe: Recipe, run: Path, *, resume: bool) -> None:
    """Raise a UserError if ``run`` holds another run, or, to be resumed, was begun with another recipe."""
    if not resume:
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise UserError(f"{run} holds another run; name another directory with --output, or go on with --resume.")
        return
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} cannot be resumed: it has no recipe.yaml; leave out --resume to start anew.")
    try:
        before = _settings(load_recipe(run / "recipe.yaml"))
    except UserError as error:
        raise UserError(f"{run} cannot be resumed: its recipe.yaml is not one of this version.") from error
    now = _settings(recipe)
    for key in before | now:
        if now.get(key) != before.get(key):
            raise UserError(
                f"{run} was begun with {key}={before.get(key)}, now it is {now.get(key)}; a run is resumed with the"
                " recipe that it was begun with."
            )


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return what must not differ when a run is resumed: ``{"trainer.epochs": 60, "stages.one.model.arch": ...}``."""
    flat: dict[str, Any] = {}
    for key, value in recipe.model_dump(mode="json", exclude={"stages"}).items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    flat = {key: value for key, value in flat.items() if key not in _PLACE}
    for name, stage in recipe.staged().items():
        flat |= {f"stages.{name}.{key}": value for key, value in _settings(stage).items()}
    return flat
