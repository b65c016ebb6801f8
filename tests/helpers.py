"""What several tests need: tiny data sets on disk or in memory, and the form of every message to the user."""

import contextlib
import csv
import io
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image, ImageOps

from fcn_smp import cli
from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.labels import IGNORE_INDEX, Array
from fcn_smp.data.voc import voc_palette
from fcn_smp.errors import UserError
from fcn_smp.files import write_text

LISTS = {
    "voc2007_trainval": "xy",
    "voc2007_train": "x",
    "voc2007_test": "z",
    "voc2012_train": "ab",
    "voc2012_val": "cd",
    "voc2012_trainval": "abcd",
    "voc2012_train_aug": "abef",
    "voc2012_keras_fcn_train": "aecbd",
    "voc2012_keras_fcn_val": "f",
    "sbd_train_noval": "e",
}
"""Lists that are in the package, cut down to images of one letter each."""
SBD_TRAIN, SBD_VAL = "ae", "cf"  # so that VOC alone has b and d


def random_label(rng: np.random.Generator, size: tuple[int, int], classes: int = 21) -> Array:
    """Draw a label of height and width ``size``: boxes of classes on background, each within a void border."""
    height, width = size
    label = np.zeros(size, np.uint8)
    for _ in range(3):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        bottom, right = top + int(rng.integers(4, 4 + height // 2)), left + int(rng.integers(4, 4 + width // 2))
        label[top:bottom, left:right] = IGNORE_INDEX
        label[top + 1 : bottom - 1, left + 1 : right - 1] = rng.integers(1, classes)
    return label


def write_voc(
    root: Path,
    year: int,
    train: Iterable[str],
    val: Iterable[str],
    sizes: Sequence[tuple[int, int]] = ((40, 56), (48, 36)),
    labels: str = "SegmentationClass",
) -> Path:
    """Write ``VOCdevkit/VOC<year>`` below ``root`` with images of the ids ``train`` and ``val``, and return it.

    Heights and widths are those of ``sizes`` in turn. The packaged splits name other images: give the files
    ``ImageSets/Segmentation/train.txt`` and ``val.txt`` of the result as splits.
    """
    folder = root / f"VOCdevkit/VOC{year}"
    lists = {"train": list(train), "val": list(val)}
    for name in ("JPEGImages", labels, "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, ids in lists.items():
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{id_}\n" for id_ in ids))
    rng = np.random.default_rng(year)
    for number, id_ in enumerate(lists["train"] + lists["val"]):
        height, width = sizes[number % len(sizes)]
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height)).save(folder / f"JPEGImages/{id_}.jpg", quality=95)
        label = Image.fromarray(random_label(rng, (height, width)))
        label.putpalette(voc_palette().tobytes())
        label.save(folder / f"{labels}/{id_}.png")
    return folder


def write_sbd(root: Path, train: Iterable[str], val: Iterable[str], size: tuple[int, int] = (40, 56)) -> Path:
    """Write ``benchmark_RELEASE/dataset`` below ``root`` as SBD's archive has it, and return it."""
    from scipy.io import savemat
    from scipy.sparse import csc_matrix

    folder = root / "benchmark_RELEASE/dataset"
    lists = {"train": list(train), "val": list(val)}
    for name in ("img", "cls"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    for split, ids in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{id_}\n" for id_ in ids))
        for id_ in ids:
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"img/{id_}.jpg")
            label = random_label(rng, size)
            label[label == IGNORE_INDEX] = 0
            boundaries = np.empty((20, 1), dtype=object)
            for number in range(20):
                boundaries[number, 0] = csc_matrix(label == number + 1, dtype=float)
            present = np.setdiff1d(label, [0]).reshape(-1, 1)
            truth = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present}
            savemat(folder / f"cls/{id_}.mat", {"GTcls": truth}, do_compression=True)
    return folder


def pack(folder: Path, archive: Path, name: str) -> Path:
    """Put ``folder`` into an uncompressed tar archive as ``name``, and return the archive's path."""
    with tarfile.open(archive, "w") as file:
        file.add(folder, name)
    return archive


def zipped(folder: Path, archive: Path) -> Path:
    """Put what is in ``folder`` into a zip archive, and return the archive's path."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive


def write_lists(folder: Path, lists: Mapping[str, Iterable[str]] = LISTS) -> Path:
    """Write lists of ids as the package has its own, and return the folder."""
    folder.mkdir(parents=True)
    for name, ids in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(ids))
    return folder


def voc2012_tar(folder: Path) -> Path:
    """Make the archive of VOC 2012 with the images of :data:`LISTS` in ``folder``, and return its path."""
    voc = write_voc(folder / "source", 2012, "ab", "cd", sizes=[(40, 56)])
    (voc / "ImageSets/Segmentation/trainval.txt").write_text("a\nb\nc\nd\n")
    for id_, other in zip("ef", "ab", strict=True):
        ImageOps.mirror(Image.open(voc / f"JPEGImages/{other}.jpg")).save(voc / f"JPEGImages/{id_}.jpg")
    return pack(voc.parent, folder / "VOCtrainval_11-May-2012.tar", "VOCdevkit")


def sbd_tgz(folder: Path, mode: Literal["w", "w:gz"] = "w:gz") -> Path:
    """Make the archive of SBD with the images of :data:`SBD_TRAIN` and ``SBD_VAL``, and return its path."""
    release = write_sbd(folder / "source", SBD_TRAIN, SBD_VAL).parent
    (release / "README").write_text("about")
    with tarfile.open(folder / "benchmark.tgz", mode) as file:
        file.add(release, "benchmark_RELEASE")
    return folder / "benchmark.tgz"


class Memory:
    """Files of a data set that lie in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def exists(self, path: str) -> bool:
        return path in self.files

    def read(self, path: str) -> bytes:
        return self.files[path]

    def size(self, path: str) -> int:
        return len(self.files[path])

    def locate(self, path: str) -> str:
        return f"memory:{path}"


class LabelsInMemory(SegmentationDataset):
    """A data set of the labels given, for classes 0 to ``classes`` - 1; its images are black."""

    palette = voc_palette()

    def __init__(self, labels: Sequence[Array], classes: int) -> None:
        self.classes = [f"class {k}" for k in range(classes)]
        files = {}
        for number, label in enumerate(labels):
            files[f"{number}.jpg"] = encode(Image.new("RGB", label.shape[::-1]), "JPEG")
            files[f"{number}.png"] = encode(Image.fromarray(label), "PNG")
        super().__init__(Memory(files), [(f"{n}", f"{n}.jpg", f"{n}.png") for n in range(len(labels))])


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    """Return the content of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@contextmanager
def one_sentence(*parts: object) -> Iterator[None]:
    """Expect a UserError whose message is one sentence that contains all ``parts``."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message, message
    assert message.endswith((".", "?")), message
    for part in parts:
        assert str(part) in message, message


def run_command(*arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["fcn-smp", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exited,
    ):
        cli.main()
    return exited.value.code, out.getvalue(), err.getvalue()


def leave_out_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs and evaluations write files of a line in the place of curves, and of matrices drawn.

    Matplotlib takes longer than all the rest of a tiny run. What it draws has tests of its own.
    """
    for module in ("loop", "run"):
        monkeypatch.setattr(
            f"fcn_smp.training.{module}.draw_curves", lambda rows, path: write_text(path, f"{len(rows)} rows")
        )
    monkeypatch.setattr(
        "fcn_smp.score_files.draw_confusion", lambda counts, classes, path: write_text(path, f"{len(classes)} classes")
    )
    for panels in ("curve_panels", "compared_panels"):
        monkeypatch.setattr(f"fcn_smp.reporting.page.{panels}", lambda *_: [])


def rows(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's table, but for the time that things took."""
    with (run / "metrics.csv").open() as file:
        return [
            {key: value for key, value in row.items() if not key.endswith(("seconds", "per_second"))}
            for row in csv.DictReader(file)
        ]


def tree(folder: Path) -> dict[Path, int]:
    """Return all that lies in a folder, with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
