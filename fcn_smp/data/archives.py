"""Archives of data sets, unpacked so that nothing lands outside the folder, half, or over something else."""

import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol

from fcn_smp.data.download import Progress
from fcn_smp.errors import UserError
from fcn_smp.files import named

Layouts = Mapping[str, str | None]
"""What an archive may look like: a path by which it is known, at any depth, and the folder into which goes all that
lies beside that path and below; None for everything as it is in the archive."""


class _Member(NamedTuple):
    """Something in an archive that is no folder; ``plain`` if it is a file, not a link or a device."""

    name: str
    size: int
    plain: bool
    info: tarfile.TarInfo | zipfile.ZipInfo


class _Archive(Protocol):
    def members(self) -> Iterator[_Member]: ...

    def extract(self, member: _Member, target: Path) -> None: ...

    def close(self) -> None: ...


class _Tar:
    def __init__(self, file: Path, *, compressed: bool) -> None:
        self.file = tarfile.open(file, "r:gz" if compressed else "r:")  # noqa: SIM115  (closed by close)

    def members(self) -> Iterator[_Member]:
        for info in self.file:
            if not info.isdir():
                yield _Member(info.name, info.size, info.isreg(), info)
        while self.file.fileobj and self.file.fileobj.read(1 << 20):
            pass  # up to gzip's checksum, which lies behind what tarfile reads

    def extract(self, member: _Member, target: Path) -> None:
        assert isinstance(member.info, tarfile.TarInfo)
        info = member.info.replace(name=target.name, deep=False)
        self.file.extract(info, target.parent, set_attrs=False, filter="data")

    def close(self) -> None:
        self.file.close()


class _Zip:
    def __init__(self, file: Path) -> None:
        self.file = zipfile.ZipFile(file)

    def members(self) -> Iterator[_Member]:
        for info in self.file.infolist():
            if not info.is_dir():
                kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was packed on Windows
                yield _Member(info.filename, info.file_size, kind in (0, stat.S_IFREG), info)

    def extract(self, member: _Member, target: Path) -> None:
        assert isinstance(member.info, zipfile.ZipInfo)
        try:
            opened = self.file.open(member.info)
        except OSError as error:
            raise zipfile.BadZipFile(f"no place for {member.name}") from error
        with opened as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)

    def close(self) -> None:
        self.file.close()


def unpack(file: Path, root: Path, layouts: Layouts, progress: Progress) -> int:
    """Unpack an archive, tar, tar.gz or zip whatever its name, into a folder.

    Files that are there already, of the same size, are left as they are. The others appear when all are unpacked.

    Args:
        file: The archive.
        root: The folder.
        layouts: What the archive may look like, and where that belongs below ``root``.
        progress: Told of the bytes that are unpacked.

    Returns:
        Number of files that are new.

    Raises:
        UserError: The archive is broken, is another one than expected, would write outside ``root`` or make anything
            but files, or a file is there already with other content.
        OSError: ``root`` cannot be written.
    """
    with _open(file) as archive:
        members = _select(file, archive.members(), layouts)
        missing = {path: member for path, member in members.items() if not _is_there(root / path, member, file)}
        if not missing:
            return 0
        done, total = 0, sum(member.size for member in missing.values())
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".unpacking-", dir=root) as workspace:
            for path, member in missing.items():
                target = Path(workspace, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                with named(root):
                    archive.extract(member, target)
                done += member.size
                progress(f"unpacking {file.name}", done, total, "bytes")
            for top in Path(workspace).iterdir():
                _move(top, root / top.name)
    return len(missing)


def holds(file: Path, layouts: Layouts) -> bool:
    """Tell whether an archive looks like one of ``layouts``; raise UserError if it is broken."""
    with _open(file) as archive:
        names = [_safe_name(member.name, file) for member in archive.members()]
    return any(_prefix(names, marker) is not None for marker in layouts)


@contextmanager
def _open(file: Path) -> Iterator[_Archive]:
    if file.is_dir():
        raise UserError(f"{file} is a folder, not an archive; if it holds the unpacked data set, name it with --root.")
    with file.open("rb") as start:
        magic = start.read(4)
    try:
        archive = _Zip(file) if magic[:2] == b"PK" else _Tar(file, compressed=magic[:2] == b"\x1f\x8b")
        try:
            yield archive
        finally:
            archive.close()
    except UserError:
        raise
    # The last two are what zipfile says to encryption or unknown compression, and to damaged directories.
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError,
        RuntimeError, ValueError,
    ) as error:  # fmt: skip
        detail = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{file} is no whole tar, tar.gz or zip archive ({detail}); get it again.") from error


def _select(file: Path, members: Iterable[_Member], layouts: Layouts) -> dict[str, _Member]:
    """Return what is to be unpacked, by the path where it belongs."""
    found = {_safe_name(member.name, file): member for member in members}
    # A Mac adds a file of its own beside each file.
    found = {name: m for name, m in found.items() if not f"/{name}".rpartition("/")[2].startswith("._")}
    for marker, folder in layouts.items():
        prefix = _prefix(found, marker)
        if prefix is not None:
            if folder is not None:
                found = {f"{folder}/{n.removeprefix(prefix)}": m for n, m in found.items() if n.startswith(prefix)}
            for member in found.values():
                if not member.plain:
                    raise UserError(
                        f"{file} is not unpacked: {member.name} in it is a link or a device; only files are allowed."
                    )
            return found
    raise UserError(f"{file} holds no {' or '.join(layouts)}; it must be another archive.")


def _safe_name(name: str, file: Path) -> str:
    path = PureWindowsPath(name)  # knows drives and both slashes, wherever this runs
    if path.drive or path.root or ".." in path.parts:
        raise UserError(
            f"{file} is not unpacked: the path {name!r} in it leads out of the folder; all must stay inside."
        )
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _prefix(names: Iterable[str], marker: str) -> str | None:
    """Return what stands before ``marker`` in the shortest of the paths that hold it."""
    places = ((f"/{name}/".find(f"/{marker}/"), name) for name in names)
    return min((name[:place] for place, name in places if place >= 0), key=len, default=None)


def _is_there(path: Path, member: _Member, file: Path) -> bool:
    if not path.exists():
        return False
    if not path.is_file() or path.stat().st_size != member.size:
        raise UserError(f"{path} is there already, but is not what {file} holds; move it away or name another --root.")
    return True


def _move(source: Path, target: Path) -> None:
    """Move a file or a folder; a folder that is there already gets what it lacks."""
    if not os.path.lexists(target):
        source.rename(target)
    elif target.is_dir():
        for path in source.iterdir():
            _move(path, target / path.name)
    else:
        raise UserError(f"{target} is there already and is no folder; move it away or name another --root.")
