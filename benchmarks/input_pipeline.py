"""How many training samples one core makes in a second, beside albumentations, torchvision and bare decoding.

    OMP_NUM_THREADS=1 python benchmarks/input_pipeline.py [--images 420] [--crop 512]

All make the same of the same files, in one process on one thread, and take turns after every 20 images, so that what
else the machine does falls on all: decode image and label, scale by 0.5 to 2, crop and pad, flip, and of four images in
five shift the colours. Speed is that of CPU time: images per second of a core. The second column is the median over the
turns of the ratio to bare decoding. Ours ends in uint8, as the loader's workers hand it on; the device normalises,
which is also shown with the core doing it. The others end in normalised floats, as they have no other way.

The archive of SBD was not at hand: for `SBDataset`, photos and labels of VOC2007 are written as SBD has them.
"""

import argparse
import os
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix
from torchvision import tv_tensors
from torchvision.datasets import SBDataset, VOCSegmentation, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.data.sbd import convert
from fcn_smp.data.transforms import Preprocess
from fcn_smp.models.encoder import Preprocessing
from fcn_smp.recipe import load_recipe
from fcn_smp.training.loaders import training_samples

DATA = Path(os.environ.get("FCN_SMP_DATA", "")) / "voc2007-segmentation-trainval.tar"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = 0.3
GRAY = tuple(round(255 * value) for value in MEAN)
CHUNK = 20
Make = Callable[[int], Any]


def as_sbd(voc: Path, folder: Path) -> None:
    """Write VOC's photos and labels into ``folder`` as SBD has them, void as background."""
    base = folder / "benchmark_RELEASE/dataset"
    (base / "cls").mkdir(parents=True)
    (base / "img").symlink_to(voc / "JPEGImages")
    ids = (voc / "ImageSets/Segmentation/trainval.txt").read_text()
    for split in ("train", "val"):
        (base / f"{split}.txt").write_text(ids)
    for id_ in ids.split():
        label = np.array(Image.open(voc / f"SegmentationClass/{id_}.png"))
        label[label == IGNORE_INDEX] = 0
        boundaries = np.empty((20, 1), dtype=object)
        for number in range(20):
            inside = (label == number + 1).astype(np.uint8)
            boundaries[number, 0] = csc_matrix(inside - cv2.erode(inside, np.ones((3, 3))), dtype=float)
        present = np.setdiff1d(label, [0])[:, None]
        truth = {"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present}
        savemat(base / f"cls/{id_}.mat", {"GTcls": truth}, do_compression=True)
    convert(folder, lambda *_: None)


def decoded(voc: Path) -> Make:
    ids = (voc / "ImageSets/Segmentation/trainval.txt").read_text().split()

    def make(index: int) -> tuple[np.ndarray, np.ndarray]:
        with Image.open(voc / f"JPEGImages/{ids[index]}.jpg") as image:
            pixels = np.array(image.convert("RGB"))
        with Image.open(voc / f"SegmentationClass/{ids[index]}.png") as label:
            return pixels, np.array(label)

    return make


def ours(data: list[str], crop: int) -> Make:
    recipe = load_recipe("voc2007", [*data, f"augmentation={{crop: {crop}, color_jitter: {JITTER}}}"])
    samples = training_samples(recipe, recipe.data.load(recipe.data.train), Preprocessing(MEAN, STD))
    return lambda index: samples[0, index]


def normalised(make: Make) -> Make:
    normalize = Preprocess(MEAN, STD).normalize
    return lambda index: normalize(make(index).images[None].permute(0, 3, 1, 2))


def albumentations(decode: Make, crop: int) -> Make:
    chain = A.Compose(
        [
            A.RandomScale((-0.5, 1), p=1),
            A.PadIfNeeded(crop, crop, border_mode=cv2.BORDER_CONSTANT, fill=GRAY, fill_mask=IGNORE_INDEX),
            A.RandomCrop(crop, crop),
            A.HorizontalFlip(),
            A.ColorJitter(*[(1 - JITTER, 1 + JITTER)] * 3, hue=JITTER / 6, p=0.8),
            A.Normalize(MEAN, STD),
            A.ToTensorV2(),
        ]
    )

    def make(index: int) -> dict[str, Any]:
        image, label = decode(index)
        return chain(image=image, mask=label)

    return make


def torchvision_chain(crop: int, *, tensors: bool) -> v2.Compose:
    fill = {tv_tensors.Image: GRAY, Image.Image: GRAY, tv_tensors.Mask: IGNORE_INDEX}
    return v2.Compose(
        [
            *([v2.ToImage()] if tensors else []),
            v2.ScaleJitter((500, 500), (0.5, 2)),  # nearly all photos' longer side is of 500 pixels
            v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(JITTER, JITTER, JITTER, JITTER / 6)], 0.8),
            v2.ToImage(),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def wrapped(dataset: Any) -> Make:
    return wrap_dataset_for_transforms_v2(dataset).__getitem__


def contestants(folder: Path, crop: int) -> dict[str, Make]:
    voc, sbd = folder / "VOCdevkit/VOC2007", folder / "benchmark_RELEASE/dataset"
    decode = decoded(voc)
    on_voc = ours([f"data.root={folder}", "data.train=trainval"], crop)
    on_sbd = ours([f"data={{kind: sbd, root: {folder}, train: train, val: val}}"], crop)
    tensors, pictures = (torchvision_chain(crop, tensors=value) for value in (True, False))

    def torchvision(transforms: v2.Compose) -> Make:
        return wrapped(VOCSegmentation(folder, "2007", "trainval", transforms=transforms))

    return {
        "bare decode (Pillow)": decode,
        "ours, uint8": on_voc,
        "ours, normalised": normalised(on_voc),
        "albumentations": albumentations(decode, crop),
        "torchvision v2, tensors": torchvision(tensors),
        "torchvision v2, pictures": torchvision(pictures),
        "SBD: ours, uint8": on_sbd,
        "SBD: ours, normalised": normalised(on_sbd),
        "SBD: SBDataset + v2, tensors": wrapped(SBDataset(sbd, "train", "segmentation", transforms=tensors)),
        "SBD: SBDataset + v2, pictures": wrapped(SBDataset(sbd, "train", "segmentation", transforms=pictures)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="VOC2007's archive")
    parser.add_argument("--images", type=int, default=420)
    parser.add_argument("--crop", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    warnings.simplefilter("ignore")
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(options.data) as archive:
            archive.extractall(folder, filter="data")
        voc = folder / "VOCdevkit/VOC2007"
        as_sbd(voc, folder)
        photos = len((voc / "ImageSets/Segmentation/trainval.txt").read_text().split())
        makers = contestants(folder, options.crop)
        for make in makers.values():
            make(0)  # warms up
        for start in range(0, options.images, CHUNK):
            for maker, make in makers.items():
                started = time.process_time()
                for index in range(start, start + CHUNK):
                    make(index % photos)
                seconds.setdefault(maker, []).append(time.process_time() - started)
    print(f"{options.images} samples of {options.crop}x{options.crop}, of {photos} photos of VOC2007")
    print("SBD is VOC2007 written as SBD has it.")
    bare = seconds["bare decode (Pillow)"]
    for maker, values in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(bare, values, strict=True))
        print(f"{maker:30} {CHUNK / statistics.median(values):7.1f} images/s of a core  {ratio:5.2f}")


if __name__ == "__main__":
    main()
