"""CamVid, KITTI road, CARLA, folders of one's own and classes made of others, against pictures made here."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import LabelsInMemory, one_sentence, pack, rows, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_smp.data.camvid import CamVid
from fcn_smp.data.carla import CARLA
from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.folder import ImageFolder, read_names
from fcn_smp.data.kitti_road import KITTIRoad
from fcn_smp.data.storage import Folder
from fcn_smp.data.voc import voc_palette
from fcn_smp.recipe import load_recipe
from fcn_smp.training.parts import build

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]
"""Image and label of each sample by its id."""

PACKED = pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
SIZE = (5, 7)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def draw(seed: int, numbers: int | list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw a noise image and a label of the numbers given."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), rng.choice(numbers, SIZE).astype(np.uint8)


def assert_holds(dataset: SegmentationDataset, expected: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Compare all samples, in any order."""
    samples = [dataset[index] for index in range(len(dataset))]
    assert sorted(sample.id for sample in samples) == sorted(expected)
    for image, label, id_ in samples:
        np.testing.assert_array_equal(image, expected[id_][0])
        np.testing.assert_array_equal(label, expected[id_][1])
        assert (image.dtype, label.dtype) == (np.uint8, np.uint8)


def ids(dataset: SegmentationDataset) -> list[str]:
    return [id_ for id_, _, _ in dataset.files]


def packed_or_not(folder: Path, packed: bool) -> Path:
    return pack(folder, folder.parent / f"{folder.name}.tar", ".") if packed else folder


# --- CamVid


CAMVID = {
    "segnet": {split: (split, f"{split}annot") for split in ("train", "val", "test")},
    "keras": {
        "train": ("images_prepped_train", "annotations_prepped_train"),
        "val": ("images_prepped_test", "annotations_prepped_test"),
    },
}


def write_camvid(root: Path, layout: str) -> dict[str, Pairs]:
    """Write each split of CamVid with files that are no pictures beside them; return numbers as they are stored."""
    splits: dict[str, Pairs] = {}
    for place, (split, folders) in enumerate(CAMVID[layout].items()):
        splits[split] = {f"0001TP_{place}{k}": draw(10 * place + k, 12) for k in range(3)}
        for id_, pair in splits[split].items():
            for folder, pixels in zip(folders, pair, strict=True):
                save(root / folder / f"{id_}.png", pixels)
        for name in (".0001TP_1.png", "Thumbs.db", "notes.txt"):
            (root / folders[0] / name).write_bytes(b"noise")
    return splits


def with_void(pairs: Pairs, number: int) -> Pairs:
    return {id_: (image, np.where(label == number, 255, label)) for id_, (image, label) in pairs.items()}


@PACKED
@pytest.mark.parametrize("outer", ["", "CamVid", "dataset1"])
@pytest.mark.parametrize("layout", CAMVID)
def test_camvid_is_read_in_both_layouts(tmp_path: Path, layout: str, outer: str, packed: bool) -> None:
    splits = write_camvid(tmp_path / "root" / outer, layout)
    root = packed_or_not(tmp_path / "root", packed)
    for split, pairs in splits.items():
        assert any((label == 11).any() for _, label in pairs.values())
        dataset = CamVid(root, split)
        assert_holds(dataset, with_void(pairs, 11))
        assert len(dataset.classes) == 11
        twelve = CamVid(root, split, void_class=True)
        assert_holds(twelve, pairs)
        assert twelve.classes == (*dataset.classes, "unlabelled")
    assert len(CamVid.classes) == 11


def test_camvid_keeps_its_outer_folder_apart_from_others(tmp_path: Path) -> None:
    """Of a folder that holds a CamVid and is one, the nearer is taken."""
    write_camvid(tmp_path / "CamVid", "segnet")
    assert_holds(CamVid(tmp_path, "train"), with_void(write_camvid(tmp_path, "segnet")["train"], 11))


@pytest.mark.parametrize(("layout", "split"), [("segnet", "trainval"), ("segnet", ""), ("keras", "test")])
def test_split_that_camvid_lacks_is_named(tmp_path: Path, layout: str, split: str) -> None:
    write_camvid(tmp_path, layout)
    parts = [tmp_path, "test"] if layout == "keras" else [repr(split), "train, val, test"]
    with one_sentence(*parts):
        CamVid(tmp_path, split)


@PACKED
def test_label_that_camvid_lacks_is_named(tmp_path: Path, packed: bool) -> None:
    write_camvid(tmp_path / "x", "segnet")
    (tmp_path / "x/valannot/0001TP_11.png").unlink()
    root = packed_or_not(tmp_path / "x", packed)
    with one_sentence(root, "valannot/0001TP_11.png", "missing", "'val'"):
        CamVid(root, "val")
    assert len(CamVid(root, "train")) == 3


@pytest.mark.parametrize(("number", "void_class"), [(12, False), (12, True), (255, False), (255, True)])
def test_number_that_is_none_of_camvids_is_named(tmp_path: Path, number: int, void_class: bool) -> None:
    write_camvid(tmp_path, "segnet")
    save(tmp_path / "trainannot/0001TP_00.png", np.full(SIZE, number))
    with one_sentence("trainannot/0001TP_00.png", f"the label {number};"):
        CamVid(tmp_path, "train", void_class=void_class)[0]


def test_what_is_no_camvid_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with one_sentence(tmp_path, "trainannot"):
        CamVid(tmp_path, "train")


def test_the_real_camvid_has_367_and_101_images(data: Path) -> None:
    root = data / "camvid-trainval.tar"
    train, val = CamVid(root, "train"), CamVid(root, "val")
    assert (len(set(ids(train))), len(set(ids(val)))) == (len(train), len(val)) == (367, 101)
    assert not set(ids(train)) & set(ids(val))
    for dataset in (train, val):
        for index in range(0, len(dataset), 50):
            image, label, _ = dataset[index]
            assert (image.shape, label.shape) == ((360, 480, 3), (360, 480))
            assert set(np.unique(label)) <= {*range(11), 255}


# --- KITTI road


KITTI_COLOURS = np.array([[255, 0, 0], [255, 0, 255], [0, 0, 0]])


def write_kitti(root: Path, count: int = 10) -> Pairs:
    """Write images, labels, and labels of the lane, which are another thing."""
    pairs: Pairs = {}
    for k in range(count):
        kind = ("um", "umm", "uu")[k % 3]
        image, label = draw(k, 3)
        pairs[f"{kind}_{k:06}"] = image, np.where(label == 2, 255, label)
        save(root / f"image_2/{kind}_{k:06}.png", image)
        save(root / f"gt_image_2/{kind}_road_{k:06}.png", KITTI_COLOURS[label])
        if kind == "um":
            save(root / f"gt_image_2/um_lane_{k:06}.png", KITTI_COLOURS[2 - label])
    return pairs


@PACKED
@pytest.mark.parametrize("place", ["data_road/training", "training", ""])
def test_kitti_road_pairs_scenes_with_roads_and_passes_over_lanes(tmp_path: Path, place: str, packed: bool) -> None:
    pairs = write_kitti(tmp_path / "root" / place)
    root = packed_or_not(tmp_path / "root", packed)
    assert_holds(KITTIRoad(root, "all"), pairs)
    train, val = ids(KITTIRoad(root, "train")), ids(KITTIRoad(root, "val"))
    assert (len(train), len(val), sorted(train + val)) == (8, 2, sorted(pairs))
    assert_holds(KITTIRoad(root, "val"), {id_: pairs[id_] for id_ in val})
    assert KITTIRoad.classes == ("background", "road")
    assert KITTIRoad.palette[:2].tolist() == KITTI_COLOURS[:2].tolist()


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 289 scenes of KITTI road, 95, 96 and 98 of three kinds, as empty files."""
    root = tmp_path_factory.mktemp("kitti")
    for folder in ("image_2", "gt_image_2"):
        (root / folder).mkdir()
    for kind, count in (("um", 95), ("umm", 96), ("uu", 98)):
        for k in range(count):
            (root / f"image_2/{kind}_{k:06}.png").touch()
            (root / f"gt_image_2/{kind}_road_{k:06}.png").touch()
            if kind == "um":
                (root / f"gt_image_2/um_lane_{k:06}.png").touch()
    return root


def test_kitti_road_is_split_into_231_and_58(kitti: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {split: ids(KITTIRoad(kitti, split)) for split in ("train", "val", "all")}
    assert {split: len(names) for split, names in sets.items()} == {"train": 231, "val": 58, "all": 289}
    assert sorted(sets["train"] + sets["val"]) == sorted(sets["all"])
    assert len(set(sets["all"])) == 289
    listed = Folder.files
    # In whatever order a storage lists the files, and whatever was drawn before.
    monkeypatch.setattr(Folder, "files", lambda self, folder="": listed(self, folder)[::-1])
    np.random.seed(1)
    for split, names in sets.items():
        assert ids(KITTIRoad(kitti, split)) == names
    kinds = Counter(name.split("_")[0] for name in sets["val"])
    assert set(kinds) == {"um", "umm", "uu"}  # drawn, not cut off at the end


@pytest.mark.parametrize("folder", ["image_2/umm_000004.png", "gt_image_2/umm_road_000004.png"])
def test_kitti_road_without_a_file(tmp_path: Path, folder: str) -> None:
    pairs = write_kitti(tmp_path)
    (tmp_path / folder).unlink()
    if folder.startswith("gt"):  # as the pictures for testing, which have no labels
        assert sorted(ids(KITTIRoad(tmp_path, "all"))) == sorted(set(pairs) - {"umm_000004"})
    else:
        with one_sentence(tmp_path / folder, "missing"):
            KITTIRoad(tmp_path, "all")


def test_what_is_wrong_with_kitti_road_is_named(tmp_path: Path) -> None:
    write_kitti(tmp_path / "x")
    with one_sentence(tmp_path, "data_road/training/gt_image_2"):
        KITTIRoad(tmp_path, "all")
    with one_sentence("'test'", "train, val and all"):
        KITTIRoad(tmp_path / "x", "test")
    label = np.tile(KITTI_COLOURS[0], (*SIZE, 1))
    label[3, 1] = 255, 0, 254
    save(tmp_path / "x/gt_image_2/um_road_000000.png", label)
    dataset = KITTIRoad(tmp_path / "x", "all")
    with one_sentence("um_road_000000.png", "(255, 0, 254) at row 3, column 1,"):
        dataset[ids(dataset).index("um_000000")]


# --- CARLA


CLASSES = (
    "none", "building", "fence", "other", "pedestrian", "pole", "road line", "road", "sidewalk", "vegetation",
    "vehicle", "wall", "traffic sign",
)  # fmt: skip


def write_carla(root: Path, places: list[str], count: int = 2, mode: str = "RGB") -> Pairs:
    pairs: Pairs = {}
    for number, place in enumerate(places):
        for k in range(count):
            image, label = draw(100 * number + k, 13)
            pairs[f"{place}{k}"] = image, label
            save(root / f"{place}CameraRGB/{k}.png", image)
            others = [label[::-1] + 100, label[:, ::-1] + 50, label[::-1] * 9][: len(mode) - 1]
            save(root / f"{place}CameraSeg/{k}.png", np.stack([label, *others], axis=-1))
    return pairs


@PACKED
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_carla_is_found_at_any_depth(tmp_path: Path, mode: str, packed: bool) -> None:
    pairs = write_carla(tmp_path / "root", ["", "dataA/", "dataB/dataB/", "a b/c/d/"], mode=mode)
    (tmp_path / "root/dataA/other/CameraRGB").mkdir(parents=True)
    (tmp_path / "root/dataA/CameraSeg/7.png").write_bytes(b"a label without an image")
    (tmp_path / "root/dataA/CameraRGB/8.png").write_bytes(b"an image without a label")
    root = packed_or_not(tmp_path / "root", packed)
    assert_holds(CARLA(root, "all"), pairs)
    assert CARLA.classes == CLASSES


@pytest.fixture(scope="module")
def carla(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 1,000 pictures of dataA as empty files."""
    root = tmp_path_factory.mktemp("carla")
    for folder in ("CameraRGB", "CameraSeg"):
        (root / "dataA/dataA" / folder).mkdir(parents=True)
        for k in range(1000):
            (root / f"dataA/dataA/{folder}/02_00_{k:03}.png").touch()
    return root


def test_carla_is_split_into_765_and_135_and_100(carla: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {split: ids(CARLA(carla, split)) for split in ("train", "val", "test", "all")}
    assert [len(names) for names in sets.values()] == [765, 135, 100, 1000]
    assert sorted(sets["train"] + sets["val"] + sets["test"]) == sorted(sets["all"])
    assert len(set(sets["all"])) == 1000
    listed = Folder.files
    monkeypatch.setattr(Folder, "files", lambda self, folder="": listed(self, folder)[::-1])
    for split, names in sets.items():
        assert ids(CARLA(carla, split)) == names
    assert sets["test"] != sorted(sets["all"])[-100:]


@pytest.mark.parametrize("road", [[7], ["road"]])
def test_one_class_of_carla_stands_against_the_rest(tmp_path: Path, road: list[int | str]) -> None:
    pairs = write_carla(tmp_path / "x", ["dataA/"], count=3)
    path = recipe(tmp_path, kind="carla", root=str(tmp_path / "x"), classes={"road": road})
    dataset = load_recipe(path).data.open("all")
    assert tuple(dataset.classes) == ("background", "road")
    assert_holds(dataset, {id_: (image, label == 7) for id_, (image, label) in pairs.items()})


def test_road_and_its_lines_of_carla_merge(tmp_path: Path) -> None:
    pairs = write_carla(tmp_path / "x", ["dataA/"], count=3)
    path = recipe(tmp_path, kind="carla", root=str(tmp_path / "x"), classes={"road": ["road", "road line"]})
    dataset = load_recipe(path).data.open("all")
    assert_holds(dataset, {id_: (image, (label == 7) | (label == 6)) for id_, (image, label) in pairs.items()})


def test_what_is_wrong_with_carla_is_named(tmp_path: Path) -> None:
    write_carla(tmp_path / "x", [""], count=10)
    with one_sentence("'trian'", "train, val, test and all"):
        CARLA(tmp_path / "x", "trian")
    (tmp_path / "y/CameraRGB").mkdir(parents=True)
    with one_sentence(tmp_path / "y", "CameraRGB", "CameraSeg"):
        CARLA(tmp_path / "y", "all")
    save(tmp_path / "x/CameraSeg/0.png", np.full((*SIZE, 3), 13))
    with one_sentence("CameraSeg/0.png", "the label 13;"):
        CARLA(tmp_path / "x", "all")[0]
    (tmp_path / "x/CameraSeg/1.png").write_bytes(b"")
    with one_sentence("CameraSeg/1.png", "cannot be read as a label"):
        CARLA(tmp_path / "x", "all")[1]


def test_too_few_pictures_for_a_split_are_told(tmp_path: Path) -> None:
    write_carla(tmp_path, [""], count=2)
    with one_sentence("2 images", "'test'"):
        CARLA(tmp_path, "test")


# --- Classes made of others


@st.composite
def selections(draw: st.DrawFn) -> tuple[int, dict[str, list[int | str] | str], dict[int, int]]:
    """Draw a number of classes, new classes, and what each old one becomes."""
    count = draw(st.integers(2, 8))
    groups = draw(st.integers(1, 4))
    target = draw(st.lists(st.integers(-1, groups - 1), min_size=count, max_size=count))  # -1: no new class takes it
    members = {group: [old for old in range(count) if target[old] == group] for group in range(groups)}
    members = {group: draw(st.permutations(old)) for group, old in members.items() if old}
    if not members:
        members = {0: [draw(st.integers(0, count - 1))]}
    new: list[list[int] | str] = draw(st.permutations(list(members.values())))
    if draw(st.booleans()):
        new.insert(draw(st.integers(0, len(new))), "rest")
    classes: dict[str, list[int | str] | str] = {}
    for number, old in enumerate(new):
        by_name = "rest" if old == "rest" else [draw(st.sampled_from([one, f"class {one}"])) for one in old]
        classes[f"new {number}"] = by_name
    if len(new) == 1 and new != ["rest"]:
        new.insert(0, "rest")
    meaning = {old: new.index("rest") if "rest" in new else 255 for old in range(count)} | {255: 255}
    for number, olds in enumerate(new):
        meaning |= {} if olds == "rest" else dict.fromkeys(olds, number)
    return count, classes, meaning


@settings(deadline=None, max_examples=100)
@given(selections(), st.integers(0, 9))
def test_selected_classes_are_those_of_a_lookup(drawn: tuple[int, Any, dict[int, int]], seed: int) -> None:
    count, classes, meaning = drawn
    label = draw(seed, [*range(count), 255])[1]
    dataset = LabelsInMemory([label, label[::-1]], count)
    palette = dataset.palette.copy()
    selected = dataset.select(classes)
    expected = np.array([[meaning[number] for number in row] for row in label.tolist()])
    np.testing.assert_array_equal(selected[0].label, expected)
    np.testing.assert_array_equal(selected.read_label(1), expected[::-1])
    named = [*classes] if len(selected.classes) == len(classes) else ["background", *classes]
    assert [*selected.classes] == named
    assert len(selected.classes) == 1 + max(
        max((new for new in meaning.values() if new < 255), default=0), len(named) - 1
    )
    for number, name in enumerate(named):
        old = classes.get(name, "rest")
        color = (0, 0, 0) if old == "rest" else palette[int(str(old[0]).removeprefix("class "))]
        assert tuple(selected.palette[number]) == tuple(color)
    assert tuple(selected.palette[255]) == tuple(palette[255])
    # The data set itself is as it was.
    np.testing.assert_array_equal(dataset[0].label, label)
    assert [*dataset.classes] == [f"class {k}" for k in range(count)]
    np.testing.assert_array_equal(dataset.palette, palette)
    np.testing.assert_array_equal(LabelsInMemory.palette, voc_palette())


LABEL = np.array([[0, 1, 2, 3, 255]], np.uint8)


def of_four(names: tuple[str, ...] = ("a", "b", "c", "d")) -> LabelsInMemory:
    dataset = LabelsInMemory([LABEL], 4)
    dataset.classes = names
    return dataset


@pytest.mark.parametrize(
    ("classes", "names", "expected"),
    [
        ({"x": ["b", "d"], "y": ["a"]}, ["x", "y"], [1, 0, 255, 0, 255]),
        ({"x": [2]}, ["background", "x"], [0, 0, 1, 0, 255]),
        ({"x": [2, "d"]}, ["background", "x"], [0, 0, 1, 1, 255]),
        ({"x": [2], "y": "rest"}, ["x", "y"], [1, 1, 0, 1, 255]),
        ({"y": "rest", "x": [2]}, ["y", "x"], [0, 0, 1, 0, 255]),
        ({"u": [2], "y": "rest", "v": [0]}, ["u", "y", "v"], [2, 1, 0, 1, 255]),
        ({"y": "rest"}, ["y"], [0, 0, 0, 0, 255]),
        ({"d": [0], "a": ["d"]}, ["d", "a"], [0, 255, 255, 1, 255]),
    ],
)
def test_classes_are_merged_dropped_and_put_against_the_rest(
    classes: dict[str, Any], names: list[str], expected: list[int]
) -> None:
    selected = of_four().select(classes)
    assert [*selected.classes] == names
    assert selected[0].label.tolist() == [expected]


def test_classes_may_be_called_by_numbers() -> None:
    dataset = of_four(("3", "7", "0", "x"))
    assert dataset.select({"n": ["3"], "m": ["0"]})[0].label.tolist() == [[0, 255, 1, 255, 255]]
    assert dataset.select({"n": [3], "m": [0]})[0].label.tolist() == [[1, 255, 255, 0, 255]]
    with one_sentence("no class 7", "1 7"):
        dataset.select({"n": [7]})
    with one_sentence("no class '1'"):
        dataset.select({"n": ["1"]})


def test_names_that_look_like_numbers_survive_a_recipe(tmp_path: Path) -> None:
    image, label = draw(0, 3)
    write_pairs(tmp_path / "x", {"a": (image, label)})
    changes = {"names": ["2", "1e3", "null"], "classes": {"7": ["2"], "1": [2, "1e3"]}, "train": "all"}
    loaded = load_recipe(recipe(tmp_path, root=str(tmp_path / "x"), **changes))
    (tmp_path / "again.yaml").write_text(loaded.dump())
    for data in (loaded.data, load_recipe(tmp_path / "again.yaml").data):
        dataset = data.open("all")
        assert [*dataset.classes] == ["7", "1"]
        assert_holds(dataset, {"a": (image, np.where(label == 0, 0, 1))})


@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        ({"x": ["a", "a"]}, ["class a", "twice"]),
        ({"x": ["a", 0]}, ["class a", "twice"]),
        ({"x": ["b"], "y": [2, 1]}, ["class b", "twice"]),
        ({"x": ["z"]}, ["no class 'z'", "0 a, 1 b, 2 c, 3 d"]),
        ({"x": [4]}, ["no class 4"]),
        ({"x": [-1]}, ["no class -1"]),
        ({"x": [255]}, ["no class 255"]),
        ({"x": ["rest"], "y": ["a"]}, ["no class 'rest'"]),
    ],
)
def test_wrong_choice_is_named(classes: dict[str, Any], parts: list[str]) -> None:
    with one_sentence(*parts):
        of_four().select(classes)


@pytest.mark.parametrize("classes", [{"x": []}, {"x": ["a"], "y": []}, {"x": [], "y": "rest"}])
def test_class_of_nothing_is_named(classes: dict[str, Any]) -> None:
    with one_sentence("x" if not classes["x"] else "y"):
        of_four().select(classes)


# --- Folders


def write_pairs(root: Path, pairs: Pairs, images: str = "images", labels: str = "labels", suffix: str = "") -> Path:
    for id_, (image, label) in pairs.items():
        save(root / images / f"{id_}.png", image)
        save(root / labels / f"{id_}{suffix}.png", label)
    return root


def drawn(names: list[str], numbers: int | list[int] = 3) -> Pairs:
    return {name: draw(place, numbers) for place, name in enumerate(names)}


ABC = {"a": 0, "b": 1, "c": 2}


def recipe(folder: Path, /, **changes: Any) -> Path:
    """Write a recipe for a data set of the kind ``folder``, or another."""
    data = {"kind": "folder", "names": ["a", "b", "c"]} if "kind" not in changes else {}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"extends": "demo", "data": data | changes}, sort_keys=False))
    return path


@PACKED
@pytest.mark.parametrize(
    ("images", "labels"),
    [("images/{split}", "labels/{split}"), ("{split}/rgb", "{split}/seg"), ("{split}", "{split}_gt")],
)
def test_each_split_has_folders_of_its_own(tmp_path: Path, images: str, labels: str, packed: bool) -> None:
    splits = {"train": drawn(["x", "y"]), "night drive": drawn(["y", "z", "w"])}
    splits["night drive"]["y"] = draw(99, 3)
    for split, pairs in splits.items():
        write_pairs(tmp_path / "x", pairs, images.format(split=split), labels.format(split=split))
    root = packed_or_not(tmp_path / "x", packed)
    for split, pairs in splits.items():
        assert_holds(ImageFolder(root, split, ABC, images=images, labels=labels), pairs)
    with one_sentence("no pictures in", images.format(split="test")):
        ImageFolder(root, "test", ABC, images=images, labels=labels)


@pytest.mark.parametrize(
    "content", [b"c\na\nd.e\n", b"c.png\na.png\nd.e.png", b"c\r\n\r\na.png\r\nd.e\r\n", b"\n c \n\n\ta\n \nd.e\n\n"]
)
@PACKED
def test_a_list_names_the_images_of_a_split(tmp_path: Path, content: bytes, packed: bool) -> None:
    pairs = drawn(["a", "b", "c", "d", "d.e", "deep/a"])
    root = packed_or_not(write_pairs(tmp_path / "x", pairs), packed)
    (tmp_path / "mine.txt").write_bytes(content)
    dataset = ImageFolder(root, str(tmp_path / "mine.txt"), ABC)
    assert ids(dataset) == ["c", "a", "d.e"]
    assert_holds(dataset, {id_: pairs[id_] for id_ in ("c", "a", "d.e")})


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["empty"]),
        (b" \r\n\n", ["empty"]),
        (b"a\nz.png\n", ["z.png", "no image"]),
        (b"\xff\xfea\0\n", ["no image"]),
    ],
)
def test_wrong_list_is_named(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    write_pairs(tmp_path / "x", drawn(["a"]))
    (tmp_path / "mine.txt").write_bytes(content)
    with one_sentence(tmp_path / "mine.txt", *parts):
        ImageFolder(tmp_path / "x", str(tmp_path / "mine.txt"), ABC)


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_pairs(tmp_path / "x", drawn(["a", "b"]))
    (tmp_path / "mine.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert ids(ImageFolder(tmp_path / "x", str(tmp_path / "mine.txt"), ABC)) == ["a", "b"]


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_drawn_splits_are_disjoint_and_hold_everything(
    tmp_path_factory: pytest.TempPathFactory, count: int, share: float, seed: int
) -> None:
    if not 1 <= round((1 - share) * count) < count:
        return
    root = tmp_path_factory.mktemp("drawn")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
        for k in range(count):
            (root / folder / f"{k}.png").touch()
    options = {"val_share": share, "seed": seed}
    train, val, again = (ids(ImageFolder(root, split, ABC, **options)) for split in ("train", "val", "train"))
    assert len(train) == round((1 - share) * count)
    assert sorted(train + val) == sorted(map(str, range(count))) == ids(ImageFolder(root, "all", ABC))
    assert train == again


def test_another_seed_draws_another_split(tmp_path: Path) -> None:
    write_pairs(tmp_path, drawn([f"{k:02}" for k in range(20)]))
    vals = {seed: tuple(ids(ImageFolder(tmp_path, "val", ABC, seed=seed))) for seed in range(5)}
    assert {len(names) for names in vals.values()} == {4}
    assert len(set(vals.values())) == 5
    data = load_recipe(recipe(tmp_path, root=str(tmp_path), seed=3, val_share=0.2)).data
    assert tuple(ids(data.open("val"))) == vals[3]
    with one_sentence("'test'", "train, val and all"):
        data.open("test")


COLOURS = {"road": [128, 64, 128], "car": [0, 0, 142], "sky": [0, 0, 0]}
CLASS_FILES = {
    "names": ("# mine\nroad\n\ncar\r\n sky \n", {"road": 0, "car": 1, "sky": 2}),
    "camvid": ("128 64 128\tRoad way\n0 0 142 car\n#x\n0 0\t0  sky\n", None),
    "camvid with commas": ("128, 64, 128, Road way\n0,0,142,car\n0,0,0,sky\n", None),
    "cvat": ("# label:color_rgb:parts:actions\nRoad way:128,64,128::\ncar:0,0,142::\nsky:0,0,0:a,b:c\n", None),
}


@pytest.mark.parametrize(("text", "expected"), CLASS_FILES.values(), ids=CLASS_FILES)
def test_class_file_gives_names_with_numbers_or_colours(
    tmp_path: Path, text: str, expected: dict[str, int] | None
) -> None:
    (tmp_path / "classes.txt").write_bytes(text.encode())
    colours = dict(zip(("Road way", "car", "sky"), map(tuple, COLOURS.values()), strict=True))
    names = read_names(tmp_path / "classes.txt")
    assert list(names.items()) == list((expected or colours).items())


NAMES: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {
    "list": (["road", "car", "sky"], lambda label: label),
    "numbers": ({"road": 7, "car": 0, "sky": 254}, lambda label: np.array([7, 0, 254])[label]),
    "colours": (COLOURS, lambda label: np.array([*COLOURS.values()])[label]),
    "file of names": ("names.txt", lambda label: label),
    "file of colours": ("colours.txt", lambda label: np.array([*COLOURS.values()])[label]),
}


@pytest.mark.parametrize(("names", "stored"), NAMES.values(), ids=NAMES)
def test_classes_are_given_in_any_form(tmp_path: Path, names: Any, stored: Callable[[np.ndarray], np.ndarray]) -> None:
    pairs = drawn(["a", "b"])
    write_pairs(tmp_path / "x", {id_: (image, stored(label)) for id_, (image, label) in pairs.items()})
    (tmp_path / "names.txt").write_text("road\ncar\nsky\n")
    (tmp_path / "colours.txt").write_text("128 64 128 road\n0 0 142 car\n0 0 0 sky\n")
    if isinstance(names, str):
        names = str(tmp_path / names)
    dataset = load_recipe(recipe(tmp_path, kind="folder", root=str(tmp_path / "x"), names=names)).data.open("all")
    assert [*dataset.classes] == ["road", "car", "sky"]
    assert_holds(dataset, pairs)
    expected = [*COLOURS.values()] if stored(np.zeros(1, int)).ndim == 2 else voc_palette()[:3].tolist()
    assert dataset.palette[:3].tolist() == expected


def test_binary_masks_are_0_and_255(tmp_path: Path) -> None:
    pairs = drawn(["a", "b"], 2)
    write_pairs(tmp_path, {id_: (image, label * 255) for id_, (image, label) in pairs.items()})
    assert_holds(ImageFolder(tmp_path, "all", {"background": 0, "road": 255}), pairs)
    swapped = {id_: (image, 1 - label) for id_, (image, label) in pairs.items()}
    assert_holds(ImageFolder(tmp_path, "all", {"road": 255, "background": 0}), swapped)
    with one_sentence("labels/a.png", "the label 0;"):
        ImageFolder(tmp_path, "all", {"road": 255})[0]
    void = {id_: (image, np.where(label == 0, 255, 0)) for id_, (image, label) in pairs.items()}
    assert_holds(ImageFolder(tmp_path, "all", {"road": 255}, void=[0]), void)


def test_void_is_given_by_numbers(tmp_path: Path) -> None:
    pairs = drawn(["a", "b"], [0, 1, 2, 9, 200, 255])
    write_pairs(tmp_path, pairs)
    expected = {id_: (image, np.where(label > 2, 255, label)) for id_, (image, label) in pairs.items()}
    assert_holds(ImageFolder(tmp_path, "all", ABC, void=[9, 200]), expected)
    assert_holds(ImageFolder(tmp_path, "all", ABC, void=[200, 9, 255]), expected)
    with one_sentence("labels/a.png", "the label 200;", "9"):
        ImageFolder(tmp_path, "all", ABC, void=[9])[0]


def test_void_is_given_by_colours(tmp_path: Path) -> None:
    pairs = drawn(["a", "b"], 5)
    colours = [*COLOURS.values(), [1, 1, 1], [255, 255, 255]]
    write_pairs(tmp_path / "x", {id_: (image, np.array(colours)[label]) for id_, (image, label) in pairs.items()})
    path = recipe(tmp_path, kind="folder", root=str(tmp_path / "x"), names=COLOURS, void=colours[3:])
    expected = {id_: (image, np.where(label > 2, 255, label)) for id_, (image, label) in pairs.items()}
    assert_holds(load_recipe(path).data.open("all"), expected)
    with one_sentence("labels/a.png", "colour (255, 255, 255) at row "):
        load_recipe(path, ["data.void=[[1, 1, 1]]"]).data.open("all")[0]


@pytest.mark.parametrize(
    ("names", "void", "part"),
    [
        ({"a": 0, "b": [1, 2, 3]}, [], "by numbers or by colours"),
        ({"a": 0}, [[1, 2, 3]], "by numbers or by colours"),
        ({"a": [1, 2, 3]}, [0], "by numbers or by colours"),
        ({"a": 3, "b": 3}, [], "label 3"),
        ({"a": 3}, [3], "label 3"),
        ({"a": [1, 2, 3], "b": [1, 2, 3]}, [], "label (1, 2, 3)"),
        ({"a": [1, 2, 3]}, [[1, 2, 3]], "label (1, 2, 3)"),
        ({"a": 256}, [], "data.names"),
        ({"a": -1}, [], "data.names"),
        ({"a": [1, 2]}, [], "data.names"),
        ({"a": [1, 2, 256]}, [], "data.names"),
        ({"a": 0}, [256], "data.void"),
    ],
)
def test_codes_that_do_not_fit_together_are_named(tmp_path: Path, names: Any, void: list[Any], part: str) -> None:
    write_pairs(tmp_path / "x", drawn(["a"]))
    with one_sentence(part):
        load_recipe(recipe(tmp_path, kind="folder", root=str(tmp_path / "x"), names=names, void=void)).data.open("all")


@pytest.mark.parametrize(
    ("text", "parts"),
    [("", ["no class"]), ("# a\n\n", ["no class"]), ("a\nb\na\n", ["the class a twice"]), (None, ["cannot be read"])],
)
def test_wrong_class_file_is_named(tmp_path: Path, text: str | None, parts: list[str]) -> None:
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    with one_sentence(tmp_path / "classes.txt", *parts):
        read_names(tmp_path / "classes.txt")


@pytest.mark.parametrize(
    "text",
    [
        text
        for text, error, reason in (
            ("300 0 0 road\n", OverflowError, "A colour beyond 255 in a class file ends in an OverflowError"),
            ("\n".join(map(str, range(300))), IndexError, "More than 256 classes end in an IndexError"),
        )
    ]
    + ["1 2 3 road\ncar\n"],
    ids=["colour beyond 255", "300 classes", "a colour and a name"],
)
def test_class_file_that_cannot_be_is_named(tmp_path: Path, text: str) -> None:
    write_pairs(tmp_path / "x", drawn(["a"]))
    (tmp_path / "classes.txt").write_text(text)
    data = load_recipe(
        recipe(tmp_path, kind="folder", root=str(tmp_path / "x"), names=str(tmp_path / "classes.txt"))
    ).data
    with one_sentence("classes.txt"):
        data.open("all")


def test_more_classes_than_labels_can_hold_are_named(tmp_path: Path) -> None:
    write_pairs(tmp_path / "x", drawn(["a"]))
    names = [f"c{k}" for k in range(257)]
    with one_sentence("257"):
        load_recipe(recipe(tmp_path, kind="folder", root=str(tmp_path / "x"), names=names)).data.open("all")


@PACKED
def test_labels_may_have_a_suffix_and_lie_deeper(tmp_path: Path, packed: bool) -> None:
    pairs = drawn(["a", "a/b", "c d/e.f/g", "h_mask"])
    write_pairs(tmp_path / "x", pairs, suffix="_mask")
    root = packed_or_not(tmp_path / "x", packed)
    assert_holds(ImageFolder(root, "all", ABC, label_suffix="_mask"), pairs)


@pytest.mark.parametrize("ending", ["bmp", "PNG", "tiff", "webp"])
def test_images_and_labels_may_end_otherwise(tmp_path: Path, ending: str) -> None:
    pairs = drawn(["a", "b.c"])
    for id_, (image, label) in pairs.items():
        path = tmp_path / f"images/{id_}.{ending}"
        path.parent.mkdir(exist_ok=True)
        options = {"lossless": True} if ending == "webp" else {}
        Image.fromarray(image).save(path, **options)
        save(tmp_path / f"labels/{id_}.gif", label) if ending == "PNG" else save(tmp_path / f"labels/{id_}.PNG", label)
    assert_holds(ImageFolder(tmp_path, "all", ABC), pairs)


def test_hidden_files_and_what_is_no_picture_are_passed_over(tmp_path: Path) -> None:
    pairs = drawn(["a", "b"])
    write_pairs(tmp_path, pairs)
    for name in (".a.png", "._b.png", "Thumbs.db", "notes.txt", "png", "x.png.part", "deep/._c.png"):
        for folder in ("images", "labels"):
            (tmp_path / folder / name).parent.mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"noise")
    (tmp_path / "images/folder.png").mkdir()
    assert_holds(ImageFolder(tmp_path, "all", ABC), pairs)


def test_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    pairs = drawn(["a", "b"])
    write_pairs(tmp_path, pairs)
    save(tmp_path / "images/.ipynb_checkpoints/a-checkpoint.png", pairs["a"][0])
    assert_holds(ImageFolder(tmp_path, "all", ABC), pairs)


@pytest.mark.parametrize(("images", "labels"), [("images/", "labels"), ("images/", "labels/"), ("./images", "labels")])
@PACKED
def test_folders_may_be_written_with_a_slash(tmp_path: Path, images: str, labels: str, packed: bool) -> None:
    pairs = drawn(["a", "b"])
    root = packed_or_not(write_pairs(tmp_path / "x", pairs), packed)
    assert_holds(ImageFolder(root, "all", ABC, images=images, labels=labels), pairs)


@PACKED
def test_what_a_folder_lacks_is_named(tmp_path: Path, packed: bool) -> None:
    root = write_pairs(tmp_path / "x", drawn(["a", "b", "c"]))
    (root / "labels/b.png").unlink()
    place = packed_or_not(root, packed)
    with one_sentence(place, "labels/b.png", "missing", "'all'"):
        ImageFolder(place, "all", ABC)
    (tmp_path / "mine.txt").write_text("a\nc\n")  # which needs no label for b
    assert len(ImageFolder(place, str(tmp_path / "mine.txt"), ABC)) == 2
    with one_sentence(place, "labels/a_mask.png", "missing"):
        ImageFolder(place, "all", ABC, label_suffix="_mask")
    for folder in ("images", "labels"):
        with one_sentence("no pictures in", place, "nothing"):
            ImageFolder(place, "all", ABC, **{folder: "nothing"})


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_two_pictures_of_one_name_are_named(tmp_path: Path, folder: str) -> None:
    write_pairs(tmp_path, drawn(["a", "b"]))
    save(tmp_path / folder / "b.bmp", np.zeros(SIZE))
    with one_sentence(f"{folder}/b.png", f"{folder}/b.bmp", "one name"):
        ImageFolder(tmp_path, "all", ABC)


def test_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with one_sentence("no pictures in", tmp_path / "images"):
        ImageFolder(tmp_path, "all", ABC)
    with one_sentence(tmp_path / "nowhere"):
        ImageFolder(tmp_path / "nowhere", "all", ABC)


# --- Through the command line


TINY = {
    "model": {"encoder_name": "test_resnet", "encoder_weights": None, "decoder_hidden_channels": 8},
    "augmentation": {"crop": [32, 40]},
    "trainer": {
        "epochs": 1,
        "batch_size": 2,
        "validate_every": 1,
        "workers": 0,
        "samples": 1,
        "accelerator": "cpu",
        "precision": "fp32",
    },
}


def write_road(root: Path, count: int = 5) -> Path:
    """Write streets with a road below, a verge at its side and some void."""
    for k in range(count):
        image = np.random.default_rng(k).integers(0, 256, (40, 48, 3))
        label = np.zeros((40, 48))
        label[20:, 8:40], label[20:, :8], label[:3] = 1, 2, 255
        save(root / f"images/{k}.png", image // 2 + label[..., None] // 2)
        save(root / f"labels/{k}.png", label)
    return root


def test_a_binary_road_set_is_trained_and_scored(tmp_path: Path) -> None:
    """One class of three against the rest."""
    root = write_road(tmp_path / "meine Straßen")
    path = tmp_path / "road.yaml"
    data = {"kind": "folder", "root": str(root), "names": ["ground", "road", "verge"], "classes": {"road": ["road"]}}
    path.write_text(
        yaml.safe_dump({"extends": "demo", "data": data | {"val_share": 0.4, "cache": "ram"}, **TINY}, sort_keys=False)
    )
    code, out, err = run_command("train", path, "-o", tmp_path / "run")
    assert code == 0, err
    assert len(rows(tmp_path / "run")) >= 1
    code, out, err = run_command("eval", tmp_path / "run", "--json", "--device", "cpu")
    assert code == 0, err
    summary = yaml.safe_load(out)
    assert summary["images"] == 2
    pixels = {entry["class"]: entry["pixels"] for entry in summary["per_class"]}
    assert pixels == {"background": 2 * (40 * 48 - 3 * 48 - 20 * 32), "road": 2 * 20 * 32}
    assert (tmp_path / "run/model/config.json").is_file()


# --- Damaged samples and samples in memory


@pytest.fixture
def ten(tmp_path: Path) -> tuple[Path, Pairs]:
    """Ten samples, of which four cannot be read, each for another reason."""
    pairs = drawn([f"{k}" for k in range(10)])
    root = write_pairs(tmp_path / "x", pairs)
    (root / "images/1.png").write_bytes(b"noise")
    (root / "labels/4.png").write_bytes((root / "labels/4.png").read_bytes()[:50])
    save(root / "labels/6.png", np.zeros((3, 3)))
    save(root / "labels/9.png", np.full(SIZE, 77))
    return root, {id_: pair for id_, pair in pairs.items() if id_ not in ("1", "4", "6", "9")}


@pytest.mark.parametrize("cache", [None, "ram"])
def test_what_cannot_be_read_is_left_out_and_counted(
    ten: tuple[Path, Pairs], tmp_path: Path, cache: str | None
) -> None:
    root, readable = ten
    data = load_recipe(recipe(tmp_path, root=str(root), on_error="skip", cache=cache)).data
    with pytest.warns(UserWarning, match=r"all, left out: .*images/1\.png cannot be read.* and 3 more\.$") as caught:
        dataset = data.load("all").in_memory()
    assert len([one for one in caught if "left out" in str(one.message)]) == 1
    assert_holds(dataset, readable)


def test_nothing_is_said_where_everything_can_be_read(tmp_path: Path) -> None:
    pairs = drawn(["a", "b"])
    write_pairs(tmp_path / "x", pairs)
    data = load_recipe(recipe(tmp_path, root=str(tmp_path / "x"), on_error="skip")).data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_holds(data.load("all"), pairs)


def test_one_that_is_left_out_is_no_more(tmp_path: Path) -> None:
    pairs = drawn(["a", "b"])
    write_pairs(tmp_path / "x", pairs)
    (tmp_path / "x/images/b.png").write_bytes(b"")
    data = load_recipe(recipe(tmp_path, root=str(tmp_path / "x"), on_error="skip")).data
    with pytest.warns(UserWarning, match=r"images/b\.png cannot be read as an image: [^.]*\.$"):
        assert_holds(data.load("all"), {"a": pairs["a"]})


def test_left_out_by_the_classes_that_are_selected(ten: tuple[Path, Pairs], tmp_path: Path) -> None:
    root, readable = ten
    data = load_recipe(recipe(tmp_path, root=str(root), on_error="skip", classes={"x": ["c"]})).data
    with pytest.warns(UserWarning, match="left out"):
        dataset = data.load("all").in_memory()
    assert_holds(dataset, {id_: (image, label == 2) for id_, (image, label) in readable.items()})


def test_what_is_missing_is_left_out_too(tmp_path: Path) -> None:
    pairs = drawn(["a", "b", "c"])
    write_pairs(tmp_path / "x", pairs)
    (tmp_path / "x/labels/b.png").unlink()
    data = load_recipe(recipe(tmp_path, root=str(tmp_path / "x"), on_error="skip")).data
    with pytest.warns(UserWarning, match=r"all, left out: .*labels/b\.png cannot be read: [^.]*\.$"):
        assert_holds(data.load("all"), {id_: pairs[id_] for id_ in "ac"})


def test_where_there_is_nothing_to_leave_out_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    data = load_recipe(recipe(tmp_path, kind="camvid", root=str(tmp_path), on_error="skip")).data
    with one_sentence("train"):
        data.load("train")


def test_where_nothing_can_be_read_it_is_said(tmp_path: Path) -> None:
    write_pairs(tmp_path / "x", drawn(["a", "b"]))
    for path in (tmp_path / "x/images").iterdir():
        path.write_bytes(b"")
    data = load_recipe(recipe(tmp_path, root=str(tmp_path / "x"), on_error="skip")).data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with one_sentence("all", "images/a.png"):
            data.load("all")


@pytest.mark.parametrize("cache", [None, "ram"])
def test_without_skipping_the_first_damage_stops(ten: tuple[Path, Pairs], tmp_path: Path, cache: str | None) -> None:
    data = load_recipe(recipe(tmp_path, root=str(ten[0]), cache=cache)).data
    with one_sentence("images/1.png"):
        dataset = data.load("all").in_memory()
        dataset[1]


def test_training_goes_on_without_what_cannot_be_read(tmp_path: Path) -> None:
    root = write_road(tmp_path / "x", 6)
    (root / "labels/0.png").write_bytes(b"noise")
    path = tmp_path / "road.yaml"
    lists = {"train": "0 1 2 3", "val": "4 5"}
    for split, names in lists.items():
        (tmp_path / f"{split}.txt").write_text("\n".join(names.split()))
    data = {"kind": "folder", "root": str(root), "names": ["ground", "road", "verge"], "on_error": "skip"}
    data |= {split: str(tmp_path / f"{split}.txt") for split in lists}
    path.write_text(yaml.safe_dump({"extends": "demo", "data": data, **TINY}, sort_keys=False))
    with pytest.warns(UserWarning, match=r"train\.txt, left out: .*labels/0\.png cannot be read") as caught:
        code, _, err = run_command("train", path, "-o", tmp_path / "run")
    assert code == 0, err
    assert len([one for one in caught if "left out" in str(one.message)]) == 1
    (root / "labels/5.png").write_bytes(b"noise")
    (root / "images/4.png").write_bytes(b"noise")
    with pytest.warns(UserWarning, match="left out"):
        code, _, err = run_command("train", path, "-o", tmp_path / "other")
    assert (code, err.count("\n")) == (2, 1)
    assert f"Nothing of the split {tmp_path}/val.txt can be read" in err


def test_training_keeps_the_same_samples_in_memory_each_read_once(tmp_path: Path, reads: Counter[str]) -> None:
    pairs = drawn([f"{k}" for k in range(7)])
    root = write_pairs(tmp_path / "x", pairs)
    asked = load_recipe(recipe(tmp_path, root=str(root), cache="ram"), ["trainer.batch_size=1"])
    assert not reads
    kept = build(asked)
    # Labels once more, for the fingerprint.
    assert reads == Counter([f"{folder}/{id_}.png" for folder in ("images", "labels", "labels") for id_ in pairs])
    before = reads.copy()
    for path in root.rglob("*.png"):
        path.unlink()
    for dataset in (kept.train, kept.val):
        for _ in range(3):
            assert_holds(dataset, {id_: pairs[id_] for id_ in ids(dataset)})
        assert ids(dataset) == [dataset[k].id for k in range(len(dataset))]
    assert sorted([*ids(kept.train), *ids(kept.val)]) == sorted(pairs)
    assert reads == before


def test_selected_classes_are_those_in_memory(tmp_path: Path) -> None:
    pairs = drawn(["a", "b"])
    write_pairs(tmp_path / "x", pairs)
    data = load_recipe(recipe(tmp_path, root=str(tmp_path / "x"), classes={"x": [1]})).data
    assert_holds(data.load("all").in_memory(), {id_: (image, label == 1) for id_, (image, label) in pairs.items()})


# --- Recipes


KINDS: dict[str, dict[str, Any]] = {
    "voc": {"year": 2012, "root": "~/a b/é", "train": "auto", "on_error": "skip"},
    "sbd": {"root": "x", "train": "train_noval", "cache": "ram"},
    "camvid": {"root": "x", "void_class": True, "classes": {"unlabelled": ["unlabelled"], "all": "rest"}},
    "kitti_road": {"root": "x", "train": "all", "allow_overlap": True},
    "carla": {"root": "x", "classes": {"road": [7, "road line"], "1": [1], "null": ["none"]}},
    "folder": {
        "root": "x", "images": "{split}/a", "labels": "b/{split}", "label_suffix": "_mask",
        "names": {"no": 0, "1e3": 255}, "void": [9, 254], "val_share": 0.125, "seed": 7, "val": "list.txt",
    },
    "demo": {"root": None, "train": "test", "val": "val"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_survives_being_written_out(tmp_path: Path, kind: str) -> None:
    loaded = load_recipe(recipe(tmp_path, kind=kind, **KINDS[kind]))
    copy = tmp_path / "elsewhere/copy.yaml"
    copy.parent.mkdir()
    copy.write_text(loaded.dump())
    again = load_recipe(copy)
    assert again.data == loaded.data
    assert again.dump().replace("name: copy", "name: mine") == loaded.dump()
    dumped = yaml.safe_load(loaded.dump())["data"]
    for key, value in KINDS[kind].items():
        if key != "root":
            assert dumped[key] == value


@pytest.mark.parametrize("names", [["b", "a"], {"b": 3, "a": 1}, {"b": [1, 2, 3], "a": [0, 0, 255]}, "classes.txt"])
def test_names_of_every_form_survive_being_written_out(tmp_path: Path, names: Any) -> None:
    loaded = load_recipe(recipe(tmp_path, kind="folder", root="x", names=names))
    (tmp_path / "copy.yaml").write_text(loaded.dump())
    again = load_recipe(tmp_path / "copy.yaml").data
    assert again.names == loaded.data.names
    assert type(again.names) is type(loaded.data.names)
    if isinstance(names, str):
        assert loaded.data.names == Path.cwd() / names
    else:
        assert [*again.names] == [*names]


@pytest.mark.parametrize(
    ("key", "before", "after"), [("classes", {"road": [7]}, {"car": [10]}), ("names", {"a": 0}, {"b": 0})]
)
def test_classes_of_an_extended_recipe_are_replaced_not_joined(
    tmp_path: Path, key: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    path = recipe(tmp_path, kind="folder", root="x", **{"names": ["x"]} | {key: before})
    extending = tmp_path / "extending.yaml"
    extending.write_text(yaml.safe_dump({"extends": path.name, "data": {key: after}}))
    assert getattr(load_recipe(extending).data, key) == after
    extending.write_text(yaml.safe_dump({"extends": path.name, "data": {"cache": "ram"}}))
    assert getattr(load_recipe(extending).data, key) == before
