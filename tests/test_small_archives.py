"""KITTI road, CARLA and SBD from small archives in the original layout to labelled images, through the command line."""

import json

import numpy as np
import pytest
from helpers import run_command, sbd_tgz, voc2012_tar, write_lists, zipped
from PIL import Image
from scipy.io import loadmat

from fcn_smp.data import splitting
from fcn_smp.data.carla import CARLA
from fcn_smp.data.kitti_road import KITTIRoad

pytestmark = pytest.mark.usefixtures("undrawn")

SIZE = (24, 40)
TINY = [
    "model={arch: fcn2s, encoder_name: test_resnet, encoder_weights: null, decoder_hidden_channels: 8}",
    "augmentation={crop: [24, 40], scale: [1, 1], color_jitter: 0}", "loss.class_weights=null",
    "optimizer={kind: adamw, lr: 1e-2, encoder_lr: 1e-2}", "schedule.warmup_steps=0",
    "trainer={epochs: 1, batch_size: 2, workers: 0, samples: 1, validate_every: 1, accelerator: cpu, precision: fp32}",
]  # fmt: skip


def done(*arguments):
    """Run a command that must succeed, and return what it prints."""
    code, out, err = run_command(*arguments)
    assert code == 0, err
    return out


def draw_street(seed):
    """Draw a street: an image, and a label with 0 beside the road, 1 on it and 2 on the lines in its middle."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(2, 12), rng.integers(28, 38)
    label = np.zeros(SIZE, np.uint8)
    label[8:, left:right] = 1
    label[8:, 18:22] = 2
    colours = np.array([[40, 150, 60], [110, 110, 120], [230, 230, 230]])
    return (colours[label] + rng.integers(-20, 20, (*SIZE, 3))).astype(np.uint8), label


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def check(*arguments):
    code, out, err = run_command("data", "check", *arguments, "--json")
    assert code in (0, 1), err
    return json.loads(out)


def train_and_score(recipe, overrides, run, *options):
    """Train on what is prepared, and return the scores of ``fcn-smp eval``."""
    done("train", recipe, *TINY, *overrides, "-o", run)
    return json.loads(done("eval", run, "--device", "cpu", "--json", *options))


def predictions(run, images):
    """Predict a folder, and return the label pictures by name."""
    done("predict", run, images, "--output", run / "labelled", "--device", "cpu")
    paths = [path for path in (run / "labelled").iterdir() if not path.stem.endswith("_overlay")]
    return {path.stem: np.array(Image.open(path)) for path in paths}


def assert_scored(scores, labels):
    """Compare the pixels that were scored with those drawn, and expect that the road was learned."""
    pixels = {entry["class"]: entry["pixels"] for entry in scores["per_class"]}
    assert scores["images"] == len(labels)
    assert pixels == {"background": sum((x == 0).sum() for x in labels), "road": sum((x == 1).sum() for x in labels)}
    assert scores["per_class"][1]["iu"] > 0.8  # road everywhere would have less than 0.5


# --- KITTI road


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    """``data_road.zip`` with as many scenes as the real one, each small, and the labels of the scenes and the tests."""
    folder = tmp_path_factory.mktemp("kitti")
    labels, tests = {}, {}
    colours = np.array([[255, 0, 0], [255, 0, 255], [0, 0, 0]])
    numbers = [(kind, number) for kind, count in (("um", 95), ("umm", 96), ("uu", 98)) for number in range(count)]
    for seed, (kind, number) in enumerate(numbers):
        image, label = draw_street(seed)  # the lines in the middle are void here
        labels[f"{kind}_{number:06}"] = label
        save(folder / f"x/data_road/training/image_2/{kind}_{number:06}.png", image)
        save(folder / f"x/data_road/training/gt_image_2/{kind}_road_{number:06}.png", colours[label])
        if kind == "um":
            save(folder / f"x/data_road/training/gt_image_2/um_lane_{number:06}.png", colours[label[:, ::-1]])
    for number in range(3):
        image, tests[f"uu_{number:06}"] = draw_street(1000 + number)
        save(folder / f"x/data_road/testing/image_2/uu_{number:06}.png", image)
    return zipped(folder / "x", folder / "data_road.zip"), labels, tests


def test_kitti_road_goes_from_its_archive_to_labelled_tests(kitti, tmp_path):
    archive, labels, tests = kitti
    root = tmp_path / "data"
    out = done("data", "prepare", "kitti_road", "--root", root, "--archive", archive)
    assert f"fcn-smp train kitti-road data.root={root}" in out

    report = check("kitti-road", f"data.root={root}")
    assert report["clean"], report["problems"]
    assert {split: part["images"] for split, part in report["splits"].items()} == {"train": 231, "val": 58}

    for scored, binary in ((2, False), (1, True)):  # softmax and sigmoid
        run = tmp_path / f"run-{scored}"
        overrides = [f"data.root={root}", f"model.binary={binary}", "trainer.batch_size=6"]
        scores = train_and_score("kitti-road", overrides, run)
        assert_scored(scores, [labels[id_] for id_, *_ in KITTIRoad(root, "val").files])
        assert json.loads((run / "model/config.json").read_text())["classes"] == scored

        predicted = predictions(run, root / "data_road/testing/image_2")
        assert predicted.keys() == tests.keys()
        for name, label in tests.items():
            assert np.isin(predicted[name], (0, 1)).all()
            assert (predicted[name] == label)[label != 2].mean() > 0.8


# --- CARLA

ROAD_LINE, ROAD = 6, 7


@pytest.fixture(scope="module")
def carla(tmp_path_factory):
    """``lyft-udacity-challenge.zip`` with three of its five parts, and the labels by where they lie."""
    folder = tmp_path_factory.mktemp("carla")
    labels = {}
    for part, letter in enumerate("ABC"):
        for number in range(40):
            image, label = draw_street(100 * part + number)
            place, name = f"data{letter}/data{letter}", f"02_00_{number:03}"
            labels[f"{place}/{name}"] = label
            save(folder / f"x/{place}/CameraRGB/{name}.png", image)
            red = np.array([9, ROAD, ROAD_LINE])[label]  # the rest is vegetation
            save(folder / f"x/{place}/CameraSeg/{name}.png", np.stack([red, 0 * red, 0 * red], axis=-1))
    return zipped(folder / "x", folder / "lyft-udacity-challenge.zip"), labels


def test_carla_goes_from_its_archive_to_labelled_images(carla, tmp_path):
    archive, labels = carla
    root = tmp_path / "data"
    assert "240 files" in done("data", "prepare", "carla", "--root", root, "--archive", archive)

    for lines, binary in ((True, False), (False, True)):  # whether they are road; softmax and sigmoid
        classes = f"data.classes={{road: [road{', road line' * lines}]}}"
        overrides = [f"data.root={root}", classes, f"model.binary={binary}"]
        report = check("carla-road", *overrides[:2])
        assert report["clean"], report["problems"]
        assert {split: part["images"] for split, part in report["splits"].items()} == {"train": 92, "val": 16}

        run = tmp_path / f"run-{lines}"
        scores = train_and_score("carla-road", overrides, run, "--split", "test")
        road = [0, 1, int(lines)]
        assert_scored(scores, [np.take(road, labels[id_]) for id_, *_ in CARLA(root, "test").files])

        predicted = predictions(run, root / "dataB/dataB/CameraRGB")
        assert len(predicted) == 40
        for name, label in predicted.items():
            assert (label == np.take(road, labels[f"dataB/dataB/{name}"])).mean() > 0.7


def test_binary_is_refused_for_more_than_two_classes(carla, tmp_path):
    root = tmp_path / "data"
    done("data", "prepare", "carla", "--root", root, "--archive", carla[0])
    code, _, err = run_command(
        "train", "carla-road", *TINY, f"data.root={root}", "data.classes=null", "model.binary=true", "--dry-run"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "binary is for two classes" in err


# --- SBD, alone and with VOC 2012


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """The package's lists, of a few images each."""
    monkeypatch.setattr(splitting, "LISTS", write_lists(tmp_path / "lists"))


def sbd_pixels(tmp_path, ids, classes):
    """Count the pixels of each class in SBD's own files."""
    mats = [loadmat(tmp_path / f"source/benchmark_RELEASE/dataset/cls/{id_}.mat") for id_ in ids]
    return sum(np.bincount(mat["GTcls"]["Segmentation"][0, 0].ravel(), minlength=classes) for mat in mats).tolist()


def assert_labels_all(run, images, count):
    predicted = predictions(run, images)
    assert len(predicted) == count
    assert all(label.shape == (40, 56) and label.max() < 21 for label in predicted.values())


def test_sbd_goes_from_its_archive_to_labelled_images(lists, tmp_path):
    root, archive = tmp_path / "data", sbd_tgz(tmp_path).rename(tmp_path / "small.tgz")
    out = done("data", "prepare", "sbd", "--root", root, "--archive", archive)
    assert f"data.kind=sbd data.root={root}" in out

    overrides = ["data.kind=sbd", f"data.root={root}"]
    report = check("voc2012", *overrides)
    # A small archive lacks images and classes, and nothing else.
    assert {problem["kind"] for problem in report["problems"]} == {"count", "class"}
    assert report["splits"]["train"]["void"]["pixels"] == 0

    scores = train_and_score("voc2012", overrides, tmp_path / "run")
    assert [entry["pixels"] for entry in scores["per_class"]] == sbd_pixels(tmp_path, "cf", 21)
    assert_labels_all(tmp_path / "run", root / "benchmark_RELEASE/dataset/img", 4)


def test_voc2012_with_sbd_goes_from_both_archives_to_labelled_images(lists, tmp_path):
    root = tmp_path / "data"
    tar = voc2012_tar(tmp_path).rename(tmp_path / "small.tar")
    tgz = sbd_tgz(tmp_path).rename(tmp_path / "small.tgz")
    done("data", "prepare", "voc2012_sbd", "--root", root, "--archive", tar, "--archive", tgz)

    # The labels of VOC have void.
    shown = [np.array(Image.open(root / f"VOCdevkit/VOC2012/SegmentationClass/{id_}.png")) for id_ in "cd"]
    pixels_of_voc = np.bincount(np.concatenate(shown).ravel(), minlength=256)[:21].tolist()
    for train, val, pixels in (
        ("keras_fcn_train", "keras_fcn_val", sbd_pixels(tmp_path, "f", 21)),
        ("train_aug", "val", pixels_of_voc),
    ):
        overrides = [f"data.root={root}", f"data.train={train}", f"data.val={val}"]
        report = check("voc2012", *overrides)
        assert {problem["kind"] for problem in report["problems"]} == {"count", "class"}

        run = tmp_path / f"run-{val}"
        scores = train_and_score("voc2012", overrides, run)
        assert [entry["pixels"] for entry in scores["per_class"]] == pixels
        assert_labels_all(run, root / "VOCdevkit/VOC2012/JPEGImages", 6)


def test_an_archive_of_another_data_set_is_refused(kitti, tmp_path):
    code, _, err = run_command("data", "prepare", "carla", "--root", tmp_path / "data", "--archive", kitti[0])
    assert (code, err.count("\n")) == (2, 1)
    assert "CameraSeg" in err
    assert not (tmp_path / "data").exists()
