"""Images that are stretched to one size for the network, and scored and labelled at their own."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import one_sentence, run_command, write_voc
from PIL import Image

from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.data.transforms import Augment, Preprocess
from fcn_smp.export import export
from fcn_smp.recipe import load_recipe
from fcn_smp.segmenter import Segmenter
from fcn_smp.training.parts import build

SIZE = (64, 96)
RECIPE = """
data: {kind: voc, year: 2012, root: data, train: lists/train.txt, val: lists/val.txt}
model: {arch: fcn8s, encoder_name: test_resnet, encoder_weights: null}
preprocessing: {resize: [64, 96]}
augmentation: {crop: [64, 96], scale: [1, 1], flip: 0, color_jitter: 0}
trainer: {epochs: 2, batch_size: 2, workers: 0, precision: fp32}
"""
BATCHES_OF_WHOLE_IMAGES = ["augmentation=null", "trainer.batch_size=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images of two sizes, a recipe that stretches them, and its run."""
    folder = tmp_path_factory.mktemp("resize")
    voc = write_voc(folder / "data", 2012, [f"t{k}" for k in range(4)], [f"v{k}" for k in range(3)])
    (voc / "ImageSets/Segmentation").rename(folder / "lists")
    (folder / "stretched.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, _, err = run_command("train", "stretched.yaml", "-o", "run")
    assert code == 0, err
    return folder


@pytest.fixture(autouse=True)
def _inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def stretched(image: np.ndarray) -> np.ndarray:
    """Resize an image by OpenCV: by areas if a side becomes shorter, else bilinearly."""
    smaller = SIZE[0] < image.shape[0] or SIZE[1] < image.shape[1]
    return cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


@pytest.mark.parametrize("shape", [(200, 300), (40, 30), (64, 96), (100, 50)])
def test_the_network_sees_the_stretched_image(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    preprocess = Preprocess((0, 0, 0), (1, 1, 1), input_range=(0, 255), resize=SIZE)
    seen = preprocess(image)
    assert seen.shape == (3, *SIZE)
    np.testing.assert_allclose(seen.permute(1, 2, 0).numpy(), stretched(image), atol=1)
    np.testing.assert_allclose(preprocess.resized(image), stretched(image), atol=1)


@pytest.mark.parametrize("shape", [(200, 300), (33, 47), (64, 96)])
def test_in_training_labels_are_stretched_by_the_pixel_under_each_centre(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    label = rng.choice(np.array([0, 3, 20, IGNORE_INDEX], np.uint8), shape)
    preprocess = Preprocess((0, 0, 0), (1, 1, 1), input_range=(0, 255), resize=SIZE)
    augment = Augment(preprocess, crop=SIZE, scale=(1, 1), flip=0, color_jitter=0, class_balance=0)
    seen, target = augment(image, label, seed=[0])
    np.testing.assert_allclose(seen, stretched(image), atol=1)
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(SIZE, shape, strict=True))
    np.testing.assert_array_equal(target, label[np.ix_(rows, columns)])


def test_scores_are_stretched_back(place: Path) -> None:
    segmenter = Segmenter.load(place / "run")
    assert tuple(segmenter.preprocessing.resize) == SIZE
    sizes = set()
    for path in sorted((place / "data/VOCdevkit/VOC2012/JPEGImages").iterdir()):
        image = np.array(Image.open(path).convert("RGB"))
        normalized = (stretched(image) / 255 - np.array(segmenter.preprocessing.mean)) / segmenter.preprocessing.std
        with torch.inference_mode():
            small = segmenter.model(torch.from_numpy(normalized).float().permute(2, 0, 1)[None])
        assert small.shape[2:] == SIZE
        logits = F.interpolate(small, size=image.shape[:2], mode="bilinear", align_corners=False)
        torch.testing.assert_close(segmenter.logits(image), logits, atol=0.1, rtol=0.05)
        label = segmenter.predict(image)
        assert label.shape == image.shape[:2]
        assert (label == logits[0].argmax(0).numpy()).mean() > 0.95
        sizes.add(image.shape)
    assert len(sizes) == 2


def test_validation_in_training_scores_as_eval_does(command: Any, place: Path) -> None:
    code, out, _ = command("eval", "run", "--json")
    assert code == 0
    best = max(float(row.split(",")[7]) for row in (place / "run/metrics.csv").read_text().splitlines()[1:])
    assert json.loads(out)["mean_iu"] == pytest.approx(best, abs=1e-4)


def test_pictures_of_predictions_have_the_size_of_the_image(command: Any, place: Path) -> None:
    images = place / "data/VOCdevkit/VOC2012/JPEGImages"
    assert command("predict", "run", images, "-o", "labels")[0] == 0
    for path in images.iterdir():
        assert Image.open(f"labels/{path.stem}.png").size == Image.open(path).size


def test_the_contact_sheet_shows_what_the_network_sees(command: Any, place: Path) -> None:
    assert command("data", "show", "stretched.yaml", "--augmented", "-o", "sheet.png")[0] == 0
    assert (
        command("data", "show", "stretched.yaml", "preprocessing.resize=null", "--augmented", "-o", "plain.png")[0] == 0
    )
    assert Path("sheet.png").read_bytes() != Path("plain.png").read_bytes()


def test_it_needs_an_augmentation_which_may_do_nothing() -> None:
    with one_sentence("augmentation must not be null", "[64, 96]"):
        build(load_recipe("stretched.yaml", BATCHES_OF_WHOLE_IMAGES))


def test_another_run_from_its_weights_stretches_only_if_it_is_told_to() -> None:
    start = ["model.init_from=run"]
    assert build(load_recipe("stretched.yaml", start)).preprocessing.resize == SIZE
    plain = load_recipe("stretched.yaml", [*start, "preprocessing.resize=null"])
    assert build(plain).preprocessing.resize is None


def test_an_exported_file_takes_the_stretched_image_and_says_so(place: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.load(place / "run")
    with one_sentence("64x96", "--with-preprocessing"):
        export(segmenter, tmp_path / "model.pt2", format="torch_export", with_preprocessing=True)
    export(segmenter, tmp_path / "model.pt2", format="torch_export")
    files = {"preprocessing": ""}
    network = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    assert json.loads(files["preprocessing"])["resize"] == [*SIZE]
    assert network(torch.randn(1, 3, *SIZE)).shape == (1, 21, *SIZE)


@pytest.mark.parametrize("value", ["224", "[224]", "[0, 224]", "[1.5, 2]"])
def test_a_size_is_a_height_and_a_width(value: str) -> None:
    with one_sentence("preprocessing.resize"):
        load_recipe("stretched.yaml", [f"preprocessing.resize={value}"])
