"""A training run as one HTML page to hand on: ``fcn-smp report``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fcn_smp.errors import UserError
from fcn_smp.files import write_text
from fcn_smp.reporting.page import render
from fcn_smp.reporting.runs import Run, read_run, read_stages


def report(
    runs: Sequence[str | Path] | str | Path, output: str | Path | None = None, *, split: str | None = None
) -> Path:
    """Write a page about a run, or one that compares several; of a staged run, one that compares its stages.

    The page is one file that needs neither a network nor anything beside it. Only files of the run directories are
    read, so that it takes a second; what a run lacks is left out, and the page says which command adds it. No path of
    the machine is published.

    Args:
        runs: A run directory, or several.
        output: The file to write, which must not exist. None: ``report.html`` in the run directory, which is replaced;
            several runs need a name.
        split: The split whose scores are shown, which ``fcn-smp eval --split`` has scored; None: each recipe's
            ``data.val``.

    Returns:
        The path of the page.

    Raises:
        UserError: A directory is no run or has no scores on ``split``, a file in it is damaged, or ``output`` is
            missing or there already.
    """
    directories = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if len(directories) != 1 and output is None:
        raise UserError("A report on several runs needs a file to be written to; name one with --output.")
    if output is not None and Path(output).exists():
        raise UserError(f"{output} is there already; name another file with --output.")
    path = directories[0] / "report.html" if output is None else Path(output)
    write_text(path, _compare(directories, split) if len(directories) > 1 else _describe(directories[0], split))
    return path


def _describe(directory: Path, split: str | None) -> str:
    if stages := read_stages(directory, split):
        return render(stages, directory.resolve().name, detailed=stages[-1:])
    run = read_run(directory, split)
    return render([run], run.recipe.name, detailed=[run])


def _compare(directories: Sequence[Path], split: str | None) -> str:
    """Return the page of several runs, of which a staged one stands for its last stage."""
    runs: dict[str, Run] = {}
    for directory in directories:
        last = (read_stages(directory, split) or [read_run(directory, split)])[-1]
        name, count = directory.resolve().name, 1
        while name in runs:
            count += 1
            name = f"{directory.resolve().name} ({count})"
        runs[name] = replace(last, name=name)
    return render(list(runs.values()), ", ".join(runs), detailed=list(runs.values()))
