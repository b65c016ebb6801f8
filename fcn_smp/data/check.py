"""Is a data set whole, are its labels what they should be, and is nothing validated on that was trained on?"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from fcn_smp.data.class_weights import ClassCounts, Method, add_up, class_weights
from fcn_smp.data.dataset import SegmentationDataset, SizeError, is_picture
from fcn_smp.data.labels import IGNORE_INDEX, Array, LabelError
from fcn_smp.data.splitting import shared_samples
from fcn_smp.data.storage import Storage
from fcn_smp.errors import UserError

Split = Literal["train", "val"]
Kind = Literal["count", "missing", "unreadable", "size", "label", "orphan", "class", "overlap", "duplicate"]
WEIGHTS: tuple[Method, ...] = ("median_frequency", "inverse_frequency")


class Finding(NamedTuple):
    """One thing that is wrong, or worth a remark.

    Attributes:
        kind: What kind of thing it is.
        split: Where it was found; None where it concerns both splits.
        message: It in one sentence.
    """

    kind: Kind
    split: Split | None
    message: str


@dataclass(frozen=True)
class SplitReport:
    """What was counted in one split.

    Attributes:
        images: Number of samples.
        official: What their number should be, where that is known.
        counts: How often each class occurs in the labels that could be read.
        void: Pixels of no class in them.
    """

    images: int
    official: int | None
    counts: ClassCounts
    void: int

    @property
    def pixels(self) -> int:
        """Number of all pixels, void included."""
        return int(self.counts.pixels.sum()) + self.void

    def share(self, pixels: int) -> float | None:
        """Return ``pixels`` as a share of all; None where there are none."""
        return round(pixels / self.pixels, 6) if self.pixels else None


@dataclass(frozen=True)
class Report:
    """What was found in a data set.

    Attributes:
        classes: Name of each class.
        train: The numbers of what is trained on.
        val: The numbers of what is validated on.
        problems: What is wrong.
        remarks: What may be as it should.
    """

    classes: Sequence[str]
    train: SplitReport
    val: SplitReport
    problems: list[Finding]
    remarks: list[Finding]

    def weights(self, method: Method) -> list[float]:
        """Return one weight for each class from the labels of the training split; all 0 where there are no labels."""
        if not self.train.counts.pixels.any():
            return [0.0] * len(self.classes)
        return [round(weight, 4) for weight in class_weights(self.train.counts, method)]

    def summary(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        splits = {"train": self.train, "val": self.val}
        weights = {method: self.weights(method) for method in WEIGHTS}
        classes = []
        for number, name in enumerate(self.classes):
            entry: dict[str, Any] = {"class": name}
            for split, report in splits.items():
                pixels = int(report.counts.pixels[number])
                images = int(report.counts.images[number])
                entry[split] = {"pixels": pixels, "share": report.share(pixels), "images": images}
            classes.append(entry | {method: weights[method][number] for method in WEIGHTS})
        return {
            "clean": not self.problems,
            "splits": {
                split: {
                    "images": report.images,
                    "official": report.official,
                    "pixels": report.pixels,
                    "void": {"pixels": report.void, "share": report.share(report.void)},
                }
                for split, report in splits.items()
            },
            "classes": classes,
            "problems": [finding._asdict() for finding in self.problems],
            "remarks": [finding._asdict() for finding in self.remarks],
        }


def by_kind(findings: Iterable[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Group the messages of a summary's findings by their kind."""
    findings = list(findings)
    for kind in get_args(Kind):
        messages = [finding["message"] for finding in findings if finding["kind"] == kind]
        if messages:
            yield kind, messages


def check(
    train: SegmentationDataset,
    val: SegmentationDataset,
    *,
    allow_overlap: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Report:
    """Read every image and every label of both splits once, and say what is wrong with them.

    Args:
        train: What is trained on; files may be missing.
        val: What is validated on, of the same data set.
        allow_overlap: Samples that are in both splits are only worth a remark.
        advance: Called after each sample.

    Returns:
        The problems, the remarks and the counts; what is damaged or missing is among the problems, not raised.
    """
    datasets: dict[Split, SegmentationDataset] = {"train": train, "val": val}
    readings = {split: _read_all(dataset, split, advance) for split, dataset in datasets.items()}
    reports = {split: _report(dataset, readings[split]) for split, dataset in datasets.items()}
    labels_alone, images_alone = _orphans(train.storage, [*train.files, *val.files])
    overlap = [
        Finding("overlap", None, f"{id_} is in both splits, train and val.") for id_ in shared_samples(train, val)
    ]
    problems = [
        *(finding for split, report in reports.items() for finding in _miscounted(report, split)),
        *(finding for split in readings for reading in readings[split] for finding in reading.findings),
        *labels_alone,
        *_absent(train.classes, reports["train"], "train"),
        *_duplicates(datasets, readings),
    ]
    remarks = [*images_alone, *_absent(val.classes, reports["val"], "val")]
    (remarks if allow_overlap else problems).extend(overlap)
    return Report(train.classes, reports["train"], reports["val"], problems, remarks)


class _Reading(NamedTuple):
    """What reading one sample told; None is what could not be read.

    The digest is of the pixels, not of the file: the same picture saved anew without loss, in another format or with
    other metadata, is still the same picture to the network.
    """

    pixels: npt.NDArray[np.int64] | None
    digest: bytes | None
    findings: list[Finding]


def _read_all(dataset: SegmentationDataset, split: Split, advance: Callable[[], None]) -> list[_Reading]:
    readings = []
    # Decoding and hashing release the interpreter's lock, so that threads do.
    with ThreadPoolExecutor() as pool:
        for reading in pool.map(lambda index: _read(dataset, split, index), range(len(dataset))):
            readings.append(reading)
            advance()
    return readings


def _read(dataset: SegmentationDataset, split: Split, index: int) -> _Reading:
    findings: list[Finding] = []

    def attempt(read: Callable[[int], Array], path: str) -> Array | None:
        try:
            return read(index)
        except LabelError as error:
            findings.append(Finding("label", split, str(error)))
        except UserError as error:
            if dataset.storage.exists(path):
                findings.append(Finding("unreadable", split, str(error)))
            else:
                findings.append(Finding("missing", split, f"{dataset.storage.locate(path)} is missing."))
        return None

    _, image_path, label_path = dataset.files[index]
    image, label = attempt(dataset.read_image, image_path), attempt(dataset.read_label, label_path)
    if image is not None and label is not None:
        try:
            dataset.check_size(index, image, label)
        except SizeError as error:
            findings.append(Finding("size", split, str(error)))
    pixels = None if label is None else np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)
    return _Reading(pixels, None if image is None else _digest(image), findings)


def _digest(image: Array) -> bytes:
    return hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest()


def _report(dataset: SegmentationDataset, readings: Sequence[_Reading]) -> SplitReport:
    rows = [reading.pixels for reading in readings if reading.pixels is not None]
    table = np.array(rows, dtype=np.int64).reshape(-1, IGNORE_INDEX + 1)
    counts = add_up(table[:, : len(dataset.classes)])
    return SplitReport(len(dataset), dataset.official, counts, int(table[:, IGNORE_INDEX].sum()))


def _miscounted(report: SplitReport, split: Split) -> Iterator[Finding]:
    if report.official not in (None, report.images):
        message = f"The split {split} has {report.images} images; officially it has {report.official}."
        yield Finding("count", split, message)


def _absent(classes: Sequence[str], report: SplitReport, split: Split) -> Iterator[Finding]:
    consequence = {"train": "it cannot be learnt", "val": "it will not be scored"}[split]
    for name, images in zip(classes, report.counts.images, strict=True):
        if not images:
            yield Finding("class", split, f"No label of {split} shows the class {name}; {consequence}.")


def _duplicates(
    datasets: Mapping[Split, SegmentationDataset], readings: Mapping[Split, Sequence[_Reading]]
) -> Iterator[Finding]:
    """Find images that are listed twice, or lie in several files."""
    copies: dict[bytes, dict[str, tuple[Split, str]]] = defaultdict(dict)
    for split, dataset in datasets.items():
        listed = Counter((id_, image) for id_, image, _ in dataset.files)
        for (id_, _), times in listed.items():
            if times > 1:
                yield Finding("duplicate", split, f"{id_} is listed {times} times in {split}.")
        for (id_, image, _), reading in zip(dataset.files, readings[split], strict=True):
            if reading.digest:
                copies[reading.digest].setdefault(image, (split, id_))
    for group in copies.values():
        if len(group) > 1:
            splits = {split for split, _ in group.values()}
            names = " and ".join(f"{id_} ({split})" for split, id_ in group.values())
            yield Finding(
                "duplicate", splits.pop() if len(splits) == 1 else None, f"{names} are the same image, pixel for pixel."
            )


def _orphans(storage: Storage, files: Sequence[tuple[str, str, str]]) -> tuple[list[Finding], list[Finding]]:
    """Find labels without image, and images without label, among the files beside those that the splits name.

    How a label is called follows from the pairs: most often like its image, or with something more at the end, such as
    ``_mask``. Where no such rule fits all pairs, or images and labels share a folder, nothing can be said.
    """
    named = {path for _, *paths in files for path in paths}
    pairs = [(_folder_and_stem(image), _folder_and_stem(label)) for _, image, label in files]
    suffixes = {label.removeprefix(image) if label.startswith(image) else None for (_, image), (_, label) in pairs}
    images_of, labels_of = defaultdict(set), defaultdict(set)
    for (image_folder, _), (label_folder, _) in pairs:
        images_of[label_folder].add(image_folder)
        labels_of[image_folder].add(label_folder)
    suffix = suffixes.pop() if len(suffixes) == 1 else None
    if suffix is None or images_of.keys() & labels_of.keys():
        return [], []
    listings = {folder: _pictures(storage, folder) for folder in {*images_of, *labels_of}}
    labels_alone, images_alone = [], []
    for folder, others in images_of.items():
        images = {stem for other in others for stem in listings[other]}
        for stem, path in listings[folder].items():
            if path not in named and stem.endswith(suffix) and stem.removesuffix(suffix) not in images:
                labels_alone.append(Finding("orphan", None, f"{storage.locate(path)} is a label without an image."))
    for folder, others in labels_of.items():
        labels = {stem for other in others for stem in listings[other]}
        for stem, path in listings[folder].items():
            if path not in named and stem + suffix not in labels:
                images_alone.append(Finding("orphan", None, f"{storage.locate(path)} is an image without a label."))
    return labels_alone, images_alone


def _pictures(storage: Storage, folder: str) -> dict[str, str]:
    """Return the pictures that lie right in a folder, by their names without ending."""
    paths = [path for path in storage.files(folder) if path.rpartition("/")[0] == folder and is_picture(path)]
    return {_folder_and_stem(path)[1]: path for path in paths}


def _folder_and_stem(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name.rpartition(".")[0]
