"""Files and folders that are there whole or not at all."""

import os
from pathlib import Path

import pytest

from fcn_smp.files import whole, write_text


class DiskFullError(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a/b/x.txt"
    with whole(path) as temporary:
        assert temporary.name == "x.txt"
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["x.txt"]


def test_folder_appears_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with whole(path) as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("content")
        assert not path.exists()
    assert names(path) == ["file"]
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [DiskFullError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("kind", ["nothing", "file", "folder"])
def test_nothing_changes_when_something_goes_wrong(
    tmp_path: Path, error: type[BaseException], before: str | None, kind: str
) -> None:
    path = tmp_path / "x"
    if before is not None:
        path.write_text(before)

    def write() -> None:
        with whole(path) as temporary:
            if kind == "file":
                temporary.write_text("half")
            elif kind == "folder":
                temporary.mkdir()
                (temporary / "file").write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ([] if before is None else ["x"])
    assert before is None or path.read_text() == before


def test_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old, and longer than the new one")
    before = path.stat().st_ino
    with path.open() as reader:
        with whole(path) as temporary:
            temporary.write_text("new")
        # Who reads the old file goes on reading it.
        assert os.fstat(reader.fileno()).st_ino == before
        assert reader.read() == "old, and longer than the new one"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_folder_that_is_there_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.mkdir()
    (path / "mine").write_text("content")

    def write() -> None:
        with whole(path) as temporary:
            if kind == "folder":
                temporary.mkdir()
            else:
                temporary.write_text("new")

    with pytest.raises(OSError, match="x"):
        write()
    assert names(tmp_path) == ["x"]
    assert (path / "mine").read_text() == "content"


def test_two_may_write_one_file_at_once_and_the_last_wins(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with whole(path) as first, whole(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert names(tmp_path) == ["x"]


def test_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "whole", "x")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("content", ["", "é ↦ 漢字\n", "a\nb"])
def test_text_is_written_as_utf_8(tmp_path: Path, content: str) -> None:
    write_text(tmp_path / "below/x.txt", content)
    assert (tmp_path / "below/x.txt").read_bytes() == content.encode()
    assert names(tmp_path / "below") == ["x.txt"]
