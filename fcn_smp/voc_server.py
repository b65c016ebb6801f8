"""The archive of predictions that PASCAL VOC's evaluation server takes."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from fcn_smp.data.dataset import decode_image
from fcn_smp.data.storage import Storage, open_storage
from fcn_smp.data.voc import VOCSegmentation
from fcn_smp.drawing import palette_image
from fcn_smp.errors import UserError
from fcn_smp.files import named, whole
from fcn_smp.inference import Inference
from fcn_smp.segmenter import Segmenter

FOLDER = "results/VOC{year}/Segmentation/comp6_test_cls"
"""Where the server looks; competition 6 allows training on any data but VOC's test sets."""


def server_images(root: Path, year: int, split: str) -> tuple[Storage, dict[str, str]]:
    """Return the images of a split, which need no labels.

    Args:
        root: The folder or tar archive that holds ``VOCdevkit/VOC<year>``, or that folder itself.
        year: 2012, or another one.
        split: Name of a list in ``ImageSets/Segmentation``, most often ``test``, or the path of a file like it.

    Returns:
        Where the files lie, and the path of each image by its id.

    Raises:
        UserError: The data set, the list or an image is missing.
    """
    storage = open_storage(root)
    for base in (f"VOCdevkit/VOC{year}/", f"VOC{year}/", ""):
        if storage.exists(f"{base}JPEGImages"):
            break
    else:
        raise UserError(f"{root} holds no VOC{year}: there is no VOCdevkit/VOC{year}/JPEGImages.")
    name = f"{base}ImageSets/Segmentation/{split}.txt"
    if Path(split).is_file():
        ids = Path(split).read_text(encoding="utf-8", errors="replace").split()
    elif storage.exists(name):
        ids = storage.read(name).decode(errors="replace").split()
    else:
        raise UserError(f"{storage.locate(name)} is missing; it lists the images of {split}.")
    images = {id_: f"{base}JPEGImages/{id_}.jpg" for id_ in ids}
    for path in images.values():
        if not storage.exists(path):
            raise UserError(f"{storage.locate(path)} is missing, which {split} names.")
    if not images:
        raise UserError(f"The list of {split} is empty; it must name at least one image.")
    return storage, images


def write_server_archive(
    segmenter: Segmenter,
    storage: Storage,
    images: Mapping[str, str],
    year: int,
    path: Path,
    inference: Inference,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Predict images into the archive that the server takes.

    Args:
        segmenter: A model of VOC's 21 classes.
        storage: Where the images lie, as of ``server_images``.
        images: The path of each by its id.
        year: As for ``server_images``.
        path: The archive to write, ``.tgz`` or ``.tar.gz``; it must not exist.
        inference: How images are run through the network.
        advance: Called after each image.

    Raises:
        UserError: The classes are others, an image is damaged, or the archive is there already.
    """
    if segmenter.classes != VOCSegmentation.classes:
        raise UserError(f"The server wants VOC's 21 classes; the model has {', '.join(segmenter.classes)}.")
    if path.exists():
        raise UserError(f"{path} is there already; name another file with --voc-server.")
    if not path.name.endswith((".tgz", ".tar.gz")):
        raise UserError(f"--voc-server {path} should end in .tgz, as the server wants it.")
    with named(path), whole(path) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for id_, image in images.items():
            label = segmenter.predict(decode_image(storage.read(image), storage.locate(image)), inference)
            picture = io.BytesIO()
            palette_image(label, segmenter.palette).save(picture, format="PNG")
            member = tarfile.TarInfo(f"{FOLDER.format(year=year)}/{id_}.png")
            member.size = picture.tell()
            member.mode = 0o644
            picture.seek(0)
            archive.addfile(member, picture)
            advance()
