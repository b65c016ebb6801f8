"""Files of a data set, in a folder or in the tar archive in which it is handed out."""

import io
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import Protocol

from fcn_smp.errors import UserError


class Storage(Protocol):
    """Read-only files by their path inside the data set, with ``/`` between folders."""

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file or folder."""
        ...

    def files(self, folder: str = "") -> list[str]:
        """Return the paths of all files below a folder, sorted."""
        ...

    def read(self, path: str) -> bytes:
        """Return the content of a file; raise ``UserError`` if there is none."""
        ...

    def size(self, path: str) -> int:
        """Return the size of a file in bytes; raise ``UserError`` if there is none."""
        ...

    def locate(self, path: str) -> str:
        """Return the path as a user would look for it, for messages."""
        ...


class Folder:
    """The files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def exists(self, path: str) -> bool:
        return os.path.exists(self.root / path)  # noqa: PTH110  (False for a name that is too long)

    def files(self, folder: str = "") -> list[str]:
        paths = (self.root / folder).rglob("*")
        return sorted(path.relative_to(self.root).as_posix() for path in paths if path.is_file())

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise UserError(f"{self.locate(path)} cannot be read: {error.strerror}.") from error

    def size(self, path: str) -> int:
        try:
            return (self.root / path).stat().st_size
        except OSError as error:
            raise UserError(f"{self.locate(path)} cannot be read: {error.strerror}.") from error

    def locate(self, path: str) -> str:
        return str(self.root / path)


class Tar:
    """The members of an uncompressed tar archive, read in place.

    Members are read by offset, each with a file handle of its own, so that any number of processes and threads can
    share one instance.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        size = root.stat().st_size
        self.members: dict[str, tuple[int, int]] = {}
        self.folders: set[str] = set()
        try:
            with tarfile.open(root, "r:") as archive:
                for member in archive:
                    if not 0 <= member.size <= size - member.offset_data:
                        raise tarfile.ReadError(f"{member.name} ends outside")
                    name = member.name.removeprefix("./")
                    if member.isfile():
                        self.members[name] = (member.offset_data, member.size)
                        self.folders.add(str(PurePosixPath(name).parent))
                # A damaged header looks like the end to tarfile; the end is a block of zeros, or of the file.
                if any(self._block(archive.offset)):
                    raise tarfile.ReadError(f"damaged at byte {archive.offset}")
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise UserError(f"{root} is not a whole, uncompressed tar archive ({error}).") from error

    def _block(self, offset: int, size: int = tarfile.BLOCKSIZE) -> bytes:
        with io.FileIO(self.root) as file:
            file.seek(offset)
            return file.read(size)

    def exists(self, path: str) -> bool:
        return path in self.members or path in self.folders

    def files(self, folder: str = "") -> list[str]:
        return sorted(path for path in self.members if path.startswith(f"{folder}/" if folder else ""))

    def read(self, path: str) -> bytes:
        return self._block(*self._member(path))

    def size(self, path: str) -> int:
        return self._member(path)[1]

    def _member(self, path: str) -> tuple[int, int]:
        """Return offset and size of a file."""
        if path not in self.members:
            raise UserError(f"{self.root} holds no file {path}.")
        return self.members[path]

    def locate(self, path: str) -> str:
        return f"{self.root}:{path}"


def open_storage(root: Path) -> Storage:
    """Open a folder or a tar archive.

    Raises:
        UserError: There is neither at ``root``.
    """
    if root.is_dir():
        return Folder(root)
    if root.is_file():
        return Tar(root)
    raise UserError(f"There is no folder or tar archive {root}; set data.root to where the data set lies.")
