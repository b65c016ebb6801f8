"""Checkpoints: all that it takes to go on with a run."""

import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fcn_smp.errors import UserError
from fcn_smp.files import whole


@dataclass
class State:
    """How far a run is.

    Attributes:
        step: Steps done.
        rows: The rows of ``metrics.csv``, one for each epoch done.
        best: Best mean IU so far.
        best_epoch: Epochs done when it was found.
        worse: Validations since then.
        loss: Sum of the losses of the steps done in the epoch under way.
        elapsed: Seconds spent on it.
        seconds: Seconds of it by part.
    """

    step: int = 0
    rows: list[dict[str, str]] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int = 0
    worse: int = 0
    loss: float = 0.0
    elapsed: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Epochs done, which is the number of the one under way, from 0."""
        return len(self.rows)

    def begin_epoch(self) -> None:
        """Set back what is counted for each epoch."""
        self.loss, self.elapsed, self.seconds = 0.0, 0.0, {}


def save(path: Path, **content: Any) -> None:
    """Write a checkpoint; the one that was there stays until the new one is whole.

    Raises:
        UserError: It cannot be written.
    """
    content = {key: asdict(value) if isinstance(value, State) else value for key, value in content.items()}
    try:
        with whole(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch's
        reason = getattr(error, "strerror", None) or getattr(error.__context__, "strerror", None) or error
        kept = "the one before is whole" if path.exists() else "there is none before"
        raise UserError(
            f"{path} cannot be written ({' '.join(str(reason).split())}); {kept}, and with room on the disk the same"
            " command with --resume goes on."
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; its ``state``, if it has one, as a ``State``.

    Raises:
        UserError: It cannot be read.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content | {"state": State(**content["state"])} if "state" in content else content
    except Exception as error:  # a damaged file leads torch to errors of any kind
        raise unreadable(path) from error


def unreadable(path: Path) -> UserError:
    """Return what to say of a checkpoint that cannot be used."""
    return UserError(
        f"{path} cannot be read as a checkpoint of this run; remove the folder {path.parent}, and the same command with"
        " --resume begins the run anew."
    )
