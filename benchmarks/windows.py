"""How much windows change: labels of large images in windows against those of the whole images.

    python benchmarks/windows.py RUN --data voc2007-segmentation-trainval.tar

Large images are mosaics of twelve images of VOC 2007 val, each of 375x500 pixels, so that there is something
everywhere. Printed is the share of pixels whose label differs, and how much more work the overlap makes.
"""

import argparse
from pathlib import Path

import numpy as np

from fcn_smp.data.voc import VOCSegmentation
from fcn_smp.inference import Inference, places
from fcn_smp.segmenter import Segmenter

ROWS, COLUMNS, HEIGHT, WIDTH = 4, 3, 375, 500


def mosaics(data: Path, count: int):
    """Yield images of ROWS x COLUMNS photos."""
    dataset = VOCSegmentation(data, "val", 2007)
    photos = (dataset.read_image(index) for index in range(len(dataset)))
    photos = (photo for photo in photos if photo.shape[:2] == (HEIGHT, WIDTH))
    for _ in range(count):
        yield np.concatenate([np.concatenate([next(photos) for _ in range(COLUMNS)], 1) for _ in range(ROWS)], 0)


def work(window: int, overlap: int) -> float:
    """Return how many pixels are run in windows for each pixel of a mosaic."""
    axes = [places(length, window, overlap, 32) for length in (ROWS * HEIGHT, COLUMNS * WIDTH)]
    pixels = [sum(end - start for start, end in axis) for axis in axes]
    return pixels[0] * pixels[1] / (ROWS * HEIGHT * COLUMNS * WIDTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run or model directory with VOC's classes")
    parser.add_argument("--data", type=Path, required=True, help="VOC 2007, unpacked or a tar archive")
    parser.add_argument("--images", type=int, default=5, help="number of mosaics")
    options = parser.parse_args()
    segmenter = Segmenter.load(options.run)
    images = list(mosaics(options.data, options.images))
    whole = [segmenter.predict(image) for image in images]
    print(f"| window | overlap | labels that differ, % of {sum(label.size for label in whole):,} | work |")
    print("|---:|---:|---:|---:|")
    for window, overlap in ((256, 64), (256, 128), (512, 128), (512, 256), (1024, 256), (1024, 512)):
        pieces = [segmenter.predict(image, Inference(window=window, overlap=overlap)) for image in images]
        differing = np.mean([(one != other).mean() for one, other in zip(whole, pieces, strict=True)])
        print(f"| {window} | {overlap} | {100 * differing:.2f} | {work(window, overlap):.2f}x |", flush=True)


if __name__ == "__main__":
    main()
