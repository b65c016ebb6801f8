"""Images and labels of one's own, in folders."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from fcn_smp.data.dataset import SegmentationDataset, is_picture
from fcn_smp.data.labels import IGNORE_INDEX, Color, Colors, Numbers
from fcn_smp.data.splitting import random_split
from fcn_smp.data.storage import Storage, open_storage
from fcn_smp.data.voc import voc_palette
from fcn_smp.errors import UserError

Code = int | Color
"""What a class is in a label: a number, 0 to 255, or a colour."""


class ImageFolder(SegmentationDataset):
    """A folder of images and one of labels, whose files have the same names but for their endings.

    Where ``images`` or ``labels`` holds ``{split}``, each split has folders of its own. Else ``split`` is the path of a
    text file with one name a line, or ``train`` or ``val``, which are then drawn at random.

    Args:
        root: What holds both folders: a folder, or a tar archive.
        split: Name of the split, or the path of a list.
        names: Each class with its number or its colour in the labels.
        images: Folder of the images, below ``root``; they may lie deeper in it.
        labels: Folder of the labels, likewise.
        label_suffix: What the names of labels have more than those of images, such as ``_mask``.
        void: Numbers or colours that belong to no class. 255 does, unless it is a class.
        val_share: Share of ``val`` where splits are drawn, in (0, 1).
        seed: Seed of the drawing.

    Raises:
        UserError: A folder, an image or a label is missing, or the codes of the classes do not fit together.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        names: Mapping[str, Code],
        *,
        images: str = "images",
        labels: str = "labels",
        label_suffix: str = "",
        void: Sequence[Code] = (),
        val_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.classes = tuple(names)
        self.palette = voc_palette()
        if not 1 <= len(names) < IGNORE_INDEX:
            raise UserError(f"{len(names)} classes are named; there must be 1 to {IGNORE_INDEX - 1}.")
        decode = _decoder(list(names.values()), void)
        if isinstance(decode, Colors):
            self.palette[: len(names)] = list(names.values())
        storage = open_storage(Path(root))
        by_folder = "{split}" in images + labels
        images, labels = (str(PurePosixPath(folder.replace("{split}", split))) for folder in (images, labels))
        image_paths, label_paths = _pictures(storage, images), _pictures(storage, labels)
        ids = list(image_paths)
        if not by_folder:
            if split.endswith(".txt") and not Path(split).is_file():
                raise UserError(f"There is no list {split}; its path is one from the folder in which the command runs.")
            shares = {"train": 1 - val_share, "val": val_share}
            ids = _listed(Path(split), image_paths) if Path(split).is_file() else random_split(ids, shares, split, seed)
        files = []
        for id_ in ids:
            name = id_ + label_suffix
            files.append((id_, image_paths[id_], label_paths.get(name, f"{labels}/{name}.png")))
        super().__init__(storage, files, decode, split=split)


def _decoder(codes: Sequence[Code], void: Sequence[Code]) -> Numbers | Colors:
    numbers, void_numbers = ([code for code in group if isinstance(code, int)] for group in (codes, void))
    colors, void_colors = ([code for code in group if not isinstance(code, int)] for group in (codes, void))
    if (numbers or void_numbers) and (colors or void_colors):
        raise UserError("The classes and void must be given by numbers or by colours, not some by each.")
    for code in {*codes, *void}:
        if [*codes, *void].count(code) > 1:
            raise UserError(f"The label {code} stands for two classes, or for a class and void.")
    if colors:
        return Colors(colors, void_colors)
    return Numbers(numbers, {*void_numbers, IGNORE_INDEX} - set(numbers))


def _pictures(storage: Storage, folder: str) -> dict[str, str]:
    """Return the paths of the pictures in a folder, by their path in it without the ending."""
    found: dict[str, str] = {}
    for path in storage.files(folder):
        inside = path.removeprefix(f"{folder}/")
        if not is_picture(inside):
            continue
        stem = inside.rpartition(".")[0]
        if stem in found:
            first, second = storage.locate(found[stem]), storage.locate(path)
            raise UserError(f"{first} and {second} have one name; each image needs one of its own.")
        found[stem] = path
    if not found:
        raise UserError(f"There are no pictures in {storage.locate(folder)}.")
    return found


def _listed(path: Path, images: Mapping[str, str]) -> list[str]:
    """Read the ids of a list, which may have the endings of the files."""
    ids = []
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        name = line.strip()
        if name and name not in images:
            name = name.rpartition(".")[0]
            if name not in images:
                raise UserError(f"{path} names {line.strip()}, which is no image of the folder.")
        if name:
            ids.append(name)
    if not ids:
        raise UserError(f"{path} is empty; it must name at least one image.")
    return ids


def read_names(path: Path) -> dict[str, Code]:
    """Read classes from a text file with one a line.

    A line is the name, whose number is the line's; or a colour and the name, ``128 64 128 Road``, as of CamVid; or
    ``road:128,64,128::``, as CVAT writes it. Empty lines and those that begin with ``#`` are passed over.

    Raises:
        UserError: The file cannot be read, or its lines are of several kinds.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of classes: {error}.") from error
    names: dict[str, Code] = {}
    for line in lines:
        if not line or line.startswith("#"):
            continue
        code: Code = len(names)
        name = line
        camvid = re.fullmatch(r"(\d+)[ ,\t]+(\d+)[ ,\t]+(\d+)[ ,\t]+(.+)", line)
        cvat = re.fullmatch(r"([^:]+):(\d+),(\d+),(\d+):.*", line)
        if camvid:
            name, code = camvid[4], (int(camvid[1]), int(camvid[2]), int(camvid[3]))
        elif cvat:
            name, code = cvat[1], (int(cvat[2]), int(cvat[3]), int(cvat[4]))
        if name in names:
            raise UserError(f"{path} names the class {name} twice.")
        if not isinstance(code, int) and max(code) > 255:
            raise UserError(f"{path} gives {name} the colour {code}; its parts must be 0 to 255.")
        names[name] = code
    if not names:
        raise UserError(f"{path} names no class.")
    if len(names) >= IGNORE_INDEX:
        raise UserError(f"{path} names {len(names)} classes; there may be {IGNORE_INDEX - 1}.")
    if len({type(code) for code in names.values()}) > 1:
        raise UserError(f"{path} gives some classes a colour and others none; give all of them one, or none.")
    return names
