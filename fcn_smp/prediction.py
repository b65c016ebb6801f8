"""Label pictures of images that nobody has labelled."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from fcn_smp.data.dataset import read_image
from fcn_smp.drawing import clear_classes, overlay, palette_image, save_image
from fcn_smp.errors import UserError
from fcn_smp.segmenter import Segmenter


def find_images(sources: Sequence[str]) -> list[Path]:
    """Return the images that files, folders (searched one level deep) and glob patterns name, each once.

    Raises:
        UserError: A source names nothing.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            paths = sorted(child for child in path.iterdir() if child.suffix.lower() in Image.registered_extensions())
        elif path.is_file():
            paths = [path]
        else:
            paths = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()]
        if not paths:
            raise UserError(
                f"{source} names no image; give a file, a folder with images or a pattern such as 'a/*.jpg'."
            )
        found |= dict.fromkeys(paths)
    return list(found)


def predict(segmenter: Segmenter, images: Sequence[Path], directory: Path) -> Iterator[tuple[Path, Path]]:
    """Write, for each image, ``<name>.png`` (classes, with their colours as palette) and ``<name>_overlay.png``.

    Yields:
        The paths of the two pictures, which have the image's size, as soon as they are written.

    Raises:
        UserError: An image is damaged, two images would share a name, or a picture is there already.
    """
    targets: dict[Path, Path] = {}
    for image in images:
        for name in (f"{image.stem}.png", f"{image.stem}_overlay.png"):
            target = directory / name
            if target in targets:
                raise UserError(f"{image} and {targets[target]} would both be written to {target}; predict them apart.")
            if target.exists():
                raise UserError(f"{target} is there already; name another folder with --output.")
            targets[target] = image
    clear = clear_classes(segmenter.palette, segmenter.classes)
    for path in images:
        pixels = read_image(path)
        label = segmenter.predict(pixels)
        mask, over = directory / f"{path.stem}.png", directory / f"{path.stem}_overlay.png"
        save_image(palette_image(label, segmenter.palette), mask)
        save_image(overlay(pixels, label, segmenter.palette, clear=clear), over)
        yield mask, over
