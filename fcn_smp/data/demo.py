"""The demonstration's data set: drawn landscapes, so that nothing need be downloaded."""

from pathlib import Path
from typing import ClassVar

from numpy.random import default_rng
from PIL import Image

from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.scenes import CLASSES, draw_scene
from fcn_smp.data.storage import Folder
from fcn_smp.data.voc import voc_palette
from fcn_smp.errors import UserError
from fcn_smp.files import cache_folder, whole


class DemoScenes(SegmentationDataset):
    """Drawn landscapes of 128x96 pixels with six kinds of things, each within a void border 2 pixels wide.

    They are the same everywhere, and are written in the layout of VOC when first asked for.

    Args:
        root: Where they lie or are to lie; ``None`` is ``fcn_smp/demo-scenes-v1`` in the user's cache folder.
        split: One of ``splits``.

    Raises:
        UserError: The split is unknown, or ``root`` holds something else or cannot be written.
    """

    classes = CLASSES
    palette = voc_palette()
    palette[:4] = (44, 52, 68), (222, 94, 72), (84, 164, 84), (238, 168, 196)
    palette[4:7] = (66, 128, 220), (142, 98, 206), (246, 196, 70)
    splits: ClassVar[dict[str, int]] = {"train": 300, "val": 60, "test": 20}
    """Number of scenes of each split."""

    def __init__(self, root: Path | None, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"The demo scenes have no split {split!r}; they have {', '.join(self.splits)}.")
        root = Path(root or cache_folder() / "demo-scenes-v1")
        provide_scenes(root)
        files = [(id_, f"JPEGImages/{id_}.jpg", f"SegmentationClass/{id_}.png") for id_ in split_ids(split)]
        super().__init__(Folder(root), files, split=split, official=self.splits[split])


def split_ids(split: str) -> list[str]:
    """Return the ids of the scenes of a split."""
    return [f"{split}_{index:03}" for index in range(DemoScenes.splits[split])]


def provide_scenes(root: Path) -> None:
    """Write the scenes to a folder unless they are there, whole or not at all.

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """
    try:
        if root.is_file() or (root.is_dir() and any(root.iterdir())):
            if not holds_scenes(root):
                raise UserError(f"{root} holds other files than the demo scenes; name a new or an empty folder.")
            return
        with whole(root) as temporary:
            write_scenes(temporary)
    except OSError as error:
        # Another process may have been first.
        if not holds_scenes(root):
            raise UserError(f"The demo scenes cannot be written to {root}: {error.strerror}.") from error


def holds_scenes(root: Path) -> bool:
    """Tell whether a folder lists just the ids of ours."""
    lists = {split: root / f"ImageSets/Segmentation/{split}.txt" for split in DemoScenes.splits}
    return all(
        path.is_file() and path.read_text(errors="replace").split() == split_ids(split) for split, path in lists.items()
    )


def write_scenes(root: Path) -> None:
    """Write all splits to a new folder."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split in DemoScenes.splits:
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(split_ids(split)) + "\n")
        for index, id_ in enumerate(split_ids(split)):
            picture, label = draw_scene(default_rng([*split.encode(), index]))
            picture.save(root / f"JPEGImages/{id_}.jpg", quality=92)
            labels = Image.fromarray(label)
            labels.putpalette(DemoScenes.palette.tobytes())
            labels.save(root / f"SegmentationClass/{id_}.png")
