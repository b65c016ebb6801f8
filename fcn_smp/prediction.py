"""Labels for images that nobody has labelled: as files, and in Python."""

import glob
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fcn_smp import overlap
from fcn_smp.data.dataset import is_picture, read_image, upright_rgb
from fcn_smp.data.labels import Array
from fcn_smp.drawing import overlay_with_legend, palette_image
from fcn_smp.errors import UserError
from fcn_smp.files import named, whole
from fcn_smp.inference import Inference
from fcn_smp.segmenter import Segmenter, most_likely

Kind = Literal["label", "overlay", "confidence", "probabilities"]
"""What is written of an image."""
ENDINGS: dict[Kind, str] = {
    "label": ".png",
    "overlay": "_overlay.jpg",
    "confidence": "_confidence.png",
    "probabilities": ".npz",
}
"""What the names of the files have in place of the image's ending."""
ImageLike = str | Path | Image.Image | Array | Tensor
"""What ``predict`` takes as an image."""

_LONGEST = 60_000
"""Side in pixels of the largest overlay; a JPEG ends at 65,500, and there is the legend."""
_AUTO = Inference()

T = TypeVar("T")
Maps = dict[Kind, npt.NDArray[Any]]


class Job(NamedTuple):
    """An image and the files that are to be written of it.

    Attributes:
        image: The file.
        targets: The file of each kind.
    """

    image: Path
    targets: dict[Kind, Path]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of an image.

    Attributes:
        label: Most likely class of each pixel, uint8 (H, W).
        confidence: The probability of that class, 0 to 1, times 255; uint8 (H, W).
        probabilities: Those of all classes, float16 (C, H, W) in [0, 1], where they were asked for.
        classes: Name of each class.
        palette: Colour of each label, uint8 (256, 3).
        path: The image, where it was a file.
    """

    label: Array
    confidence: Array
    probabilities: npt.NDArray[np.float16] | None
    classes: tuple[str, ...]
    palette: Array
    path: Path | None

    def __repr__(self) -> str:
        """Name the image, its size and its most frequent classes."""
        shares = sorted(self.share().items(), key=lambda item: -item[1])[:3]
        named = ", ".join(f"{name} {share:.0%}" for name, share in shares if share)
        of = f" of {self.path}" if self.path else ""
        return f"Prediction({self.label.shape[1]}x{self.label.shape[0]}{of}: {named})"

    def picture(self) -> Image.Image:
        """Return the label as an image of mode P: pixels are class numbers, viewers show the classes' colours."""
        return palette_image(self.label, self.palette)

    def overlay(self, image: ImageLike) -> Image.Image:
        """Lay the classes' colours over the image, with a legend below it.

        Args:
            image: The one that was labelled, as ``predict`` takes it.

        Raises:
            ValueError: The image has another size than the label.
            UserError: A file cannot be read.
            TypeError: It is no image.
        """
        pixels = _pixels(image)
        if pixels.shape[:2] != self.label.shape:
            raise ValueError(f"The image is {pixels.shape[:2]} pixels high and wide, the label {self.label.shape}.")
        return overlay_with_legend(pixels, self.label, self.palette, self.classes)

    def share(self) -> dict[str, float]:
        """Return each class's share of the pixels, 0 to 1."""
        counts = np.bincount(self.label.ravel(), minlength=len(self.classes))
        return dict(zip(self.classes, (counts / self.label.size).tolist(), strict=True))


def predict(
    model: Segmenter | str | Path,
    images: ImageLike | Iterable[ImageLike],
    *,
    inference: Inference = _AUTO,
    probabilities: bool = False,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
) -> list[Prediction]:
    """Label images.

    Args:
        model: What ``Segmenter.load`` takes, or a segmenter.
        images: One or more of these: what ``find_images`` takes (file, folder, pattern, list); a PIL image; an
            array uint8 (H, W, 3) or (N, H, W, 3) RGB, or (H, W) grey; a tensor (3, H, W) or (N, 3, H, W) RGB, uint8 or
            float in [0, 1].
        inference: How the images are run through the network.
        probabilities: Keep the probabilities of all classes; they take 2 bytes for each class and pixel.
        batch_size: How many images of one size are run at once; None: 1 on the CPU, 8 elsewhere.
        device: Where a model that is loaded runs; a segmenter stays where it is.

    Returns:
        One for each image, in their order.

    Raises:
        UserError: An image cannot be read, a source names none, or there is no such model or device.
        TypeError: An image is of another kind.
        ValueError: A tensor of floats is not in [0, 1].

    Examples:
        ```python
        [prediction] = fcn_smp.predict("runs/voc2007", "dog.jpg")
        prediction.picture().save("dog.png")
        ```
    """
    segmenter = model if isinstance(model, Segmenter) else Segmenter.load(model, device)
    kinds: set[Kind] = {"confidence", "probabilities"} if probabilities else {"confidence"}
    results: dict[int, Prediction] = {}

    def read(item: tuple[int, ImageLike]) -> Array:
        return _pixels(item[1])

    with overlap.threads() as pool:
        pictures = overlap.read_ahead(pool, enumerate(_flat(images)), read)
        for (number, picture), _, maps in _labelled(segmenter, pictures, inference, batch_size, kinds):
            arrays = maps["label"], maps["confidence"], maps.get("probabilities")
            path = picture if isinstance(picture, Path) else None
            results[number] = Prediction(*arrays, segmenter.classes, segmenter.palette, path)
    return [results[number] for number in sorted(results)]


# --- Which images, and which files


def find_images(sources: Sequence[str], output: Path | None = None) -> list[tuple[Path, Path]]:
    """Return the images that sources name, each once, and where what is made of them belongs below an output folder.

    Args:
        sources: Files; folders, which are searched with all in them, but for what is hidden; glob patterns; lists,
            which end in ``.txt`` and have one path a line. An image keeps its place below its folder, below the part of
            the pattern that has no wildcards, or below the folder that all images of its list have in common.
        output: Folder that is left out where it lies in one that is searched.

    Returns:
        The path of each image, and its path below an output folder, still with its own ending.

    Raises:
        UserError: A source names nothing, or is the output folder itself.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for source in sources:
        root, paths = _search(source, output)
        if not paths:
            raise UserError(
                f"{source} names no image; give a file, a folder with images, a pattern such as 'a/*.jpg', or a list of"
                " paths that ends in .txt."
            )
        for path in paths:
            found.setdefault(path.absolute(), (path, Path(os.path.relpath(path, root))))
    return list(found.values())


def _search(source: str, output: Path | None) -> tuple[Path, list[Path]]:
    """Return the images of one source, and the folder below which they have their places."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
        listed = [Path(line.strip()) for line in lines if line.strip()]
        return Path(os.path.commonpath([image.parent.absolute() for image in listed] or [path])), listed
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        if output and output.resolve() == path.resolve():
            raise UserError(f"--output {output} is the folder of the images; name another, or their results join them.")
        root, names = path, list(path.rglob("*"))
    else:
        root = Path(*takewhile(lambda part: not set("*?[") & set(part), path.parts))
        names = [Path(name) for name in glob.iglob(source, recursive=True)]
    pictures = (name for name in names if is_picture(name.relative_to(root).as_posix()) and name.is_file())
    if output and root.absolute() in output.absolute().parents:
        pictures = (name for name in pictures if output.absolute() not in name.absolute().parents)
    return root, sorted(pictures)


def plan(
    images: Sequence[tuple[Path, Path]], directory: Path, kinds: Collection[Kind], *, skip_existing: bool = False
) -> list[Job]:
    """Say which files are to be written of images.

    Args:
        images: As ``find_images`` gives them.
        directory: The output folder.
        kinds: What is wanted of each image.
        skip_existing: Leave out files that are there, and images of which all are there; else they are an error.

    Raises:
        UserError: Two images would share a file, or one is there already.
    """
    sources = {image.absolute() for image, _ in images}
    owners: dict[Path, Path] = {}
    jobs = []
    for image, place in images:
        stem = (directory / place).with_suffix("")
        targets = {kind: stem.with_name(stem.name + ENDINGS[kind]) for kind in kinds}
        for target in targets.values():
            if target in owners:
                raise UserError(
                    f"{image} and {owners[target]} would both be written to {target}; predict each with an --output of"
                    " its own."
                )
            if target.absolute() in sources:
                raise UserError(f"{image} would be written to {target}, itself an image; name another --output.")
            if target.exists() and not skip_existing:
                raise UserError(f"{target} is there already; use --skip-existing, or name another --output.")
            owners[target] = image
        jobs.append(Job(image, {kind: target for kind, target in targets.items() if not target.exists()}))
    return [job for job in jobs if job.targets]


# --- The way through the network


def predict_files(
    segmenter: Segmenter,
    jobs: Sequence[Job],
    done: Callable[[Job, UserError | None], None],
    *,
    inference: Inference = _AUTO,
    batch_size: int | None = None,
) -> None:
    """Write the files of the jobs, each at once.

    Threads decode the next images and write the last ones while the network runs, neither far from it, so that memory
    does not grow with the number of images.

    Args:
        segmenter: Labels the images.
        jobs: As ``plan`` gives them.
        done: Called with each job when its files are there, or with what is wrong with its image.
        inference: How the images are run through the network.
        batch_size: How many images of one size are run at once; None: 1 on the CPU, 8 elsewhere.

    Raises:
        OSError: A file cannot be written.
    """
    kinds = {kind for job in jobs for kind in job.targets}

    def write(labelled: tuple[Job, Array, Maps]) -> None:
        _write(segmenter, *labelled)

    with overlap.threads() as pool:
        images = overlap.read_ahead(pool, jobs, lambda job: read_image(job.image), done)
        labelled = _labelled(segmenter, images, inference, batch_size, kinds)
        sized = ((found, _nbytes(*found[1:])) for found in labelled)
        for (job, *_), written in overlap.work_behind(pool, sized, write):
            try:
                written.result()
            except UserError as error:
                done(job, error)
            else:
                done(job, None)


def _nbytes(image: Array, maps: Maps) -> int:
    return image.nbytes + sum(values.nbytes for values in maps.values())


def _labelled(
    segmenter: Segmenter,
    images: Iterable[tuple[T, Array]],
    inference: Inference,
    batch_size: int | None,
    kinds: Collection[Kind],
) -> Iterator[tuple[T, Array, Maps]]:
    """Yield the items with their images and maps, in the order of the batches."""
    segmenter.check_labels()
    for batch in _batches(images, batch_size or (1 if segmenter.device.type == "cpu" else 8)):
        maps = _maps(segmenter, [image for _, image in batch], inference, kinds)
        for (item, image), own in zip(batch, maps, strict=True):
            yield item, image, own


def _batches(images: Iterable[tuple[T, Array]], size: int) -> Iterator[list[tuple[T, Array]]]:
    """Group images of one size; where too many wait for others of theirs, the largest group goes as it is."""
    groups: defaultdict[tuple[int, ...], list[tuple[T, Array]]] = defaultdict(list)
    for item, image in images:
        groups[image.shape].append((item, image))
        waiting = [image.nbytes for group in groups.values() for _, image in group]
        if len(groups[image.shape]) == size or len(waiting) > max(size, overlap.COUNT) or sum(waiting) > overlap.MEMORY:
            yield groups.pop(max(groups, key=lambda shape: len(groups[shape])))
    yield from groups.values()


def _maps(segmenter: Segmenter, images: Sequence[Array], inference: Inference, kinds: Collection[Kind]) -> list[Maps]:
    """Run images of one size through the network; the logits of a large one never exist all at a time."""
    maps: Maps = {}
    top = 0
    for logits in segmenter.bands(images, inference):
        rows = slice(top, top := top + logits.shape[2])
        for kind, tensor in _band(logits, segmenter.threshold, kinds).items():
            band = tensor.cpu().numpy()
            if kind not in maps:
                maps[kind] = np.empty((*band.shape[:-2], *images[0].shape[:2]), band.dtype)
            maps[kind][..., rows, :] = band
    return [{kind: values[number] for kind, values in maps.items()} for number in range(len(images))]


def _band(logits: Tensor, threshold: float, kinds: Collection[Kind]) -> dict[Kind, Tensor]:
    label = most_likely(logits, threshold)
    band: dict[Kind, Tensor] = {"label": label.to(torch.uint8)}
    if "confidence" in kinds or "probabilities" in kinds:
        second = logits.sigmoid()
        shares = torch.cat([1 - second, second], 1) if logits.shape[1] == 1 else logits.softmax(1)
        band["confidence"] = (255 * shares.gather(1, label[:, None])[:, 0]).round().to(torch.uint8)
        if "probabilities" in kinds:
            band["probabilities"] = shares.half()
    return band


def _write(segmenter: Segmenter, job: Job, image: Array, maps: Maps) -> None:
    for kind, target in job.targets.items():
        if kind == "overlay" and max(image.shape) > _LONGEST:
            raise UserError(f"{job.image} is too large for an overlay, a JPEG; leave it away with --no-overlay.")
        with named(target), whole(target) as path:
            _save(segmenter, kind, path, image, maps)


def _save(segmenter: Segmenter, kind: Kind, path: Path, image: Array, maps: Maps) -> None:
    match kind:
        case "label":
            palette_image(maps["label"], segmenter.palette).save(path)
        case "overlay":
            picture = overlay_with_legend(image, maps["label"], segmenter.palette, segmenter.classes)
            picture.save(path, quality=90, subsampling="4:4:4")
        case "confidence":
            Image.fromarray(maps["confidence"]).save(path)
        case "probabilities":
            np.savez(path, probabilities=maps["probabilities"], classes=np.array(segmenter.classes))


# --- Images of all kinds


def _flat(images: Any) -> Iterator[Any]:
    """Yield one by one what is given as a source, a batch or a sequence."""
    if isinstance(images, str | Path):
        yield from (path for path, _ in find_images([str(images)]))
    elif isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        yield from images
    elif isinstance(images, Iterable) and not isinstance(images, np.ndarray | Tensor):
        for image in images:
            yield from _flat(image)
    else:
        yield images


def _pixels(image: Any) -> Array:
    """Return an image of any kind as RGB, uint8 (H, W, 3)."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if isinstance(image, Tensor) and image.ndim == 3:
        image = _array(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size:
        if image.ndim == 2:
            return np.repeat(image[..., None], 3, 2)
        if image.ndim == 3 and image.shape[2] == 3:
            return np.ascontiguousarray(image)
    given = type(image).__name__
    if isinstance(image, np.ndarray | Tensor):
        given += f" of {image.dtype} {tuple(image.shape)}"
    raise TypeError(
        "An image must be a path, a PIL image, an array uint8 (H, W, 3) or (H, W), or a tensor (3, H, W), uint8 or of"
        f" floats; got {given}."
    )


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """Turn a tensor (3, H, W) into an array (H, W, 3), and floats in [0, 1] into uint8."""
    if tensor.is_floating_point():
        if not (tensor.min() >= 0 and tensor.max() <= 1):
            raise ValueError("A tensor of floats must be in [0, 1], before any normalisation by mean and deviation.")
        tensor = (255 * tensor.float()).round().to(torch.uint8)
    array: npt.NDArray[Any] = tensor.detach().movedim(0, -1).cpu().numpy()
    return array
