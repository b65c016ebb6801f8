"""Where the metrics of a run go besides ``metrics.csv``."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from fcn_smp.errors import UserError
from fcn_smp.files import write_text
from fcn_smp.recipe import Recipe


class Logger(Protocol):
    """Takes the metrics of a run as it goes on."""

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Keep the values ``row`` after ``step`` steps of the optimiser."""

    def close(self) -> None:
        """Write what is not written yet."""


def open_loggers(
    names: Sequence[Literal["tensorboard", "wandb"]], run: Path, recipe: Recipe, step: int = 0
) -> list[Logger]:
    """Open the loggers of a recipe.

    Args:
        names: Which ones, as in ``trainer.loggers``.
        run: The run directory, in which they write.
        recipe: What is run.
        step: Steps that the run has behind it; what was logged of later ones, before a resumed run stopped, is
            replaced.

    Raises:
        UserError: A package is missing, or the service refuses the run.
    """
    kinds: dict[str, Callable[[Path, Recipe, int], Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return [kinds[name](run, recipe, step) for name in dict.fromkeys(names)]


class TensorBoard:
    """Writes event files to ``run/tensorboard``.

    Args:
        run: The run directory.
        recipe: What is run; event files do not hold it.
        step: Steps that the run has behind it.
    """

    def __init__(self, run: Path, recipe: Recipe, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        # Readers drop what an earlier process logged from the step `purge_step` on.
        self.writer = SummaryWriter(run / "tensorboard", purge_step=step + 1)

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Keep the values ``row`` after ``step`` steps of the optimiser."""
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Write what is not written yet."""
        self.writer.close()


class WeightsAndBiases:
    """Sends to Weights & Biases, as its environment variables and ``wandb login`` say, and keeps it in ``run/wandb``.

    A service that has the later steps of a resumed run already keeps those.

    Args:
        run: The run directory.
        recipe: What is run.
        step: Steps that the run has behind it; the service knows by itself.
    """

    def __init__(self, run: Path, recipe: Recipe, step: int) -> None:
        try:
            # By name, since a folder wandb in the working directory can be imported too.
            from wandb import Error, init
        except ImportError as error:
            raise _missing("wandb") from error
        try:
            self.run = init(
                project="fcn_smp",
                name=recipe.name,
                id=_identity(run),
                dir=run,
                config=recipe.model_dump(mode="json"),
                resume="allow",
            )
        except Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"trainer.loggers: wandb cannot start: {reason}; WANDB_MODE=offline keeps the metrics on this machine."
            ) from error

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Keep the values ``row`` after ``step`` steps of the optimiser."""
        self.run.log(dict(row), step=step)

    def close(self) -> None:
        """Write what is not written yet."""
        self.run.finish()


def _identity(run: Path) -> str:
    """Return what the run directory is called on the service; drawn at the first call, for two may have one path."""
    path = run / "wandb" / "id"
    if not path.is_file():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


def _missing(package: str) -> UserError:
    return UserError(
        f'trainer.loggers: {package} needs the package {package}; install it with pip install "fcn_smp[{package}]".'
    )
