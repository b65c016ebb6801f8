"""Files and folders that appear under their name only when they are whole."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` for a file or folder, and rename it to ``path`` if all goes well.

    A file that is there already is replaced, a folder is not (OSError).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield workspace / path.name
        (workspace / path.name).replace(path)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def write_text(path: Path, content: str) -> None:
    """Write a text file at once."""
    with whole(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
