"""Files and folders that appear under their name only when they are whole."""

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"


def cache_folder() -> Path:
    """Return the folder ``fcn_smp`` in the user's cache folder, which need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fcn_smp"


def remove_unfinished(folder: Path) -> None:
    """Remove what ``whole`` left in a folder, or in those inside, when the program was killed."""
    for workspace in folder.rglob(f".*{UNFINISHED}"):
        shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` for a file or folder, and rename it to ``path`` if all goes well.

    A file that is there already is replaced, a folder is not (OSError).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent))
    try:
        yield workspace / path.name
        (workspace / path.name).replace(path)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def write_text(path: Path, content: str) -> None:
    """Write a text file at once."""
    with named(path), whole(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with a line of column names at once."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Give an OSError that names no file, as that of a full disk, the name of the one that is written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
