"""SBD, the Semantic Boundaries Dataset: the labels of VOC's classes for 11,355 images of VOC 2012.

Bharath Hariharan et al.: Semantic contours from inverse detectors. ICCV 2011.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from fcn_smp.data.dataset import IncompleteError, SegmentationDataset
from fcn_smp.data.download import Progress
from fcn_smp.data.labels import Array, Numbers
from fcn_smp.data.splitting import packaged_ids
from fcn_smp.data.storage import Folder, Storage, open_storage
from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.errors import UserError
from fcn_smp.files import named, whole

LABELS = "cls_png"
"""The folder beside ``cls`` with the labels as pictures, which ``fcn-smp data prepare`` makes."""

FILES_PER_PROCESS = 1000
"""As many labels are converted while a process starts, at 3 to 4 ms each. Threads are no faster than one alone."""

PNG_END = b"IEND\xaeB`\x82"


class SBD(SegmentationDataset):
    """SBD in VOC's 21 classes. Its labels have no void, so that scores on it are not comparable to those on VOC.

    Args:
        root: The folder that holds ``benchmark_RELEASE/dataset`` or ``dataset``, or that folder itself, prepared by
            ``fcn-smp data prepare sbd``.
        split: One of ``splits``.

    Raises:
        UserError: The data set is not there or not prepared, or the split is unknown.
    """

    classes = VOCSegmentation.classes
    palette = voc_palette()
    splits: ClassVar[dict[str, int]] = {"train": 8498, "val": 2857, "train_noval": 5623}
    """Splits, and how many images each has. ``train_noval`` has none of VOC 2012 val."""

    def __init__(self, root: Path, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"SBD has no split {split!r}; it has {', '.join(self.splits)}.")
        storage = open_storage(Path(root))
        base = find_sbd(storage, Path(root))
        ids = packaged_ids("sbd_train_noval") if split == "train_noval" else listed_ids(storage, base, split)
        files = [(id_, f"{base}img/{id_}.jpg", f"{base}{LABELS}/{id_}.png") for id_ in ids]
        try:
            super().__init__(
                storage, files, Numbers(range(len(self.classes)), ()), split=split, official=self.splits[split]
            )
        except IncompleteError as error:
            message = f"{str(error).rstrip('.')}; run fcn-smp data prepare sbd --root {root}."
            raise IncompleteError(message, self) from error


def find_sbd(storage: Storage, root: Path) -> str:
    """Return the path of SBD's ``dataset``, with a slash at its end, below a folder that holds it or is it.

    Raises:
        UserError: It is not there.
    """
    for base in ("benchmark_RELEASE/dataset/", "dataset/", ""):
        if storage.exists(f"{base}img") and (storage.exists(f"{base}cls") or storage.exists(base + LABELS)):
            return base
    raise UserError(f"{root} holds no SBD: neither benchmark_RELEASE/dataset/img nor cls beside it is there.")


def listed_ids(storage: Storage, base: str, split: str) -> list[str]:
    """Return the ids of ``train`` or ``val``, from the list that came with the archive."""
    return storage.read(f"{base}{split}.txt").decode(errors="replace").split()


def check_unpacked(root: Path) -> None:
    """Raise UserError unless all images and labels that SBD's lists name are there, converted or not."""
    storage = Folder(root)
    base = find_sbd(storage, root)
    for split in ("train", "val"):
        for id_ in listed_ids(storage, base, split):
            for path in (f"{base}img/{id_}.jpg", f"{base}cls/{id_}.mat"):
                if not storage.exists(path):
                    raise UserError(f"{storage.locate(path)} is missing, which the split {split!r} names.")


def convert(root: Path, progress: Progress) -> int:
    """Write the labels ``cls/*.mat`` as indexed PNG files.

    What an interrupted call has left is kept. Many are done by several processes, so that a script that calls this
    needs its ``if __name__ == "__main__"``.

    Args:
        root: As for ``SBD``.
        progress: Told of the labels that are done.

    Returns:
        Number of labels that were not there before.

    Raises:
        UserError: A label is damaged.
        OSError: A file cannot be written.
    """
    folder = root / find_sbd(Folder(root), root)
    jobs = [(mat, folder / LABELS / f"{mat.stem}.png") for mat in sorted((folder / "cls").glob("*.mat"))]
    jobs = [(mat, png) for mat, png in jobs if not _is_whole(png)]
    for done, _ in enumerate(_convert_all(jobs), 1):
        progress("converting labels", done, len(jobs), "files")
    return len(jobs)


def read_mat(path: Path) -> Array:
    """Read one label of ``cls``, uint8 (H, W).

    Raises:
        UserError: The file is damaged or holds something else.
    """
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            label = loadmat(file, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # a damaged file leads scipy to errors of any kind
        detail = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{path} cannot be read as a label of SBD ({detail}); unpack it again.") from error
    if not isinstance(label, np.ndarray) or label.dtype != np.uint8 or label.ndim != 2 or not label.size:
        raise UserError(f"{path} is no label of SBD: GTcls.Segmentation must be a matrix of bytes.")
    if label.max() >= len(SBD.classes):
        raise UserError(f"{path} holds the label {label.max()}; SBD's are 0 to {len(SBD.classes) - 1}.")
    return label


def _convert_all(jobs: list[tuple[Path, Path]]) -> Iterator[None]:
    workers = min(os.cpu_count() or 1, len(jobs) // FILES_PER_PROCESS)
    if workers < 2:
        yield from map(_convert_one, jobs)
        return
    # Forking is not safe beside the thread that draws the progress; an interruption is the parent's to handle.
    ignore_interrupts = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, ignore_interrupts) as pool:
        try:
            yield from pool.map(_convert_one, jobs, chunksize=20)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _convert_one(job: tuple[Path, Path]) -> None:
    mat, png = job
    picture = Image.fromarray(read_mat(mat))
    picture.putpalette(SBD.palette.tobytes())
    with whole(png) as temporary, named(png):
        picture.save(temporary)


def _is_whole(png: Path) -> bool:
    """Tell whether a picture is there with its end, which it lacks if the machine lost power."""
    try:
        with png.open("rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:
        return False
