"""Data sets checked whole: the numbers against counting by hand, every kind of damage, and what is said of it."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import one_sentence, pack, run_command, write_voc
from PIL import Image

from fcn_smp.data.camvid import CamVid
from fcn_smp.data.check import check
from fcn_smp.data.class_weights import class_weights, count_classes
from fcn_smp.data.demo import DemoScenes
from fcn_smp.data.folder import ImageFolder
from fcn_smp.data.kitti_road import KITTIRoad
from fcn_smp.recipe import load_recipe
from fcn_smp.training.parts import build, check_stages

NAMES = ["ground", "tree", "car"]
COUNTS = {"train": 4, "val": 3}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Noise labelled with noise, in a folder for each split; the names are the same in both."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for k in range(count):
            size = (9 + k, 12 - k)
            save(tmp_path / f"scenes/images/{split}/s{k}.png", rng.integers(0, 256, (*size, 3)))
            save(tmp_path / f"scenes/labels/{split}/s{k}.png", rng.choice([0, 1, 2, 255], size, p=[0.5, 0.2, 0.1, 0.2]))
    return tmp_path / "scenes"


def recipe(scenes: Path, **changes: Any) -> Path:
    data = {"kind": "folder", "images": "images/{split}", "labels": "labels/{split}", "names": NAMES}
    return write_recipe(scenes.parent, data | {"root": str(scenes)} | changes)


def write_recipe(folder: Path, data: dict[str, Any], **more: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"extends": "demo", "data": data, **more}))
    return path


def summary(recipe: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    code, out, err = run_command("data", "check", recipe, *overrides, "--json")
    assert err == "", err
    return code, json.loads(out)


def counted(scenes: Path, split: str) -> tuple[Counter[int], Counter[int]]:
    """Count by hand the pixels of each number, and the pictures that show it."""
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for path in (scenes / f"labels/{split}").iterdir():
        with Image.open(path) as label:
            numbers = list(np.array(label).ravel().tolist())
        pixels.update(numbers)
        images.update(set(numbers))
    return pixels, images


# --- A clean data set


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_a_clean_data_set_is_counted_and_found_clean(scenes: Path, packed: bool) -> None:
    root = pack(scenes, scenes.parent / "scenes.tar", ".") if packed else scenes
    code, result = summary(recipe(root))
    assert (code, result["clean"], result["problems"], result["remarks"]) == (0, True, [], [])
    for split, count in COUNTS.items():
        pixels, images = counted(scenes, split)
        total = sum(pixels.values())
        assert result["splits"][split] == {
            "images": count,
            "official": None,
            "pixels": total,
            "void": {"pixels": pixels[255], "share": round(pixels[255] / total, 6)},
        }
        assert [entry["class"] for entry in result["classes"]] == NAMES
        for number, entry in enumerate(result["classes"]):
            assert entry[split] == {
                "pixels": pixels[number],
                "share": round(pixels[number] / total, 6),
                "images": images[number],
            }


def test_suggested_weights_are_those_that_training_would_take(scenes: Path) -> None:
    counts = count_classes(load_recipe(recipe(scenes)).data.open("train"))
    _, result = summary(recipe(scenes))
    for method in ("median_frequency", "inverse_frequency"):
        assert [entry[method] for entry in result["classes"]] == pytest.approx(class_weights(counts, method), abs=1e-4)


def test_the_summary_has_the_documented_structure(scenes: Path) -> None:
    (scenes / "labels/train/s0.png").write_bytes(b"noise")
    _, result = summary(recipe(scenes))
    assert list(result) == ["clean", "splits", "classes", "problems", "remarks"]
    assert list(result["classes"][0]) == ["class", "train", "val", "median_frequency", "inverse_frequency"]
    [problem] = result["problems"]
    assert list(problem) == ["kind", "split", "message"]


def test_every_file_is_read_once(scenes: Path, reads: Counter[str]) -> None:
    assert summary(recipe(scenes))[0] == 0
    files = [path.relative_to(scenes).as_posix() for path in scenes.rglob("*.png")]
    assert reads == Counter(files)


def test_progress_is_told_sample_by_sample(scenes: Path) -> None:
    data = load_recipe(recipe(scenes)).data
    steps: list[None] = []
    check(data.open("train"), data.open("val"), advance=lambda: steps.append(None))
    assert len(steps) == 7


def test_classes_of_the_recipe_are_the_ones_that_are_counted(scenes: Path) -> None:
    code, result = summary(recipe(scenes, classes={"thing": ["tree", "car"]}))
    pixels, _ = counted(scenes, "train")
    assert code == 0
    counts = {entry["class"]: entry["train"]["pixels"] for entry in result["classes"]}
    assert counts == {"background": pixels[0], "thing": pixels[1] + pixels[2]}


def test_the_table_shows_shares_weights_and_the_verdict(scenes: Path) -> None:
    code, out, _ = run_command("data", "check", recipe(scenes))
    _, result = summary(recipe(scenes))
    assert code == 0
    lines = {line.split()[1]: line.split() for line in out.splitlines() if line.startswith("│")}
    assert set(lines) == {*NAMES, "void"}
    tree = result["classes"][1]
    assert lines["tree"][3::2] == [
        f"{100 * tree['train']['share']:.2f}", str(tree["train"]["images"]),
        f"{100 * tree['val']['share']:.2f}", str(tree["val"]["images"]),
        f"{tree['median_frequency']:.2f}", f"{tree['inverse_frequency']:.2f}",
    ]  # fmt: skip
    assert out.splitlines()[-3:] == ["train 4 images", "val   3 images", "Clean: nothing is wrong."]


# --- Damage


def truncate(scenes: Path) -> None:
    path = scenes / "images/val/s1.png"
    path.write_bytes(path.read_bytes()[:80])


def make_noise(scenes: Path) -> None:
    (scenes / "labels/train/s2.png").write_bytes(b"\x07noise" * 50)


def empty(scenes: Path) -> None:
    (scenes / "images/train/s0.png").write_bytes(b"")


def lose_label(scenes: Path) -> None:
    (scenes / "labels/val/s0.png").unlink()


def lose_image(scenes: Path) -> None:
    (scenes / "images/train/s3.png").unlink()


def resize_label(scenes: Path) -> None:
    path = scenes / "labels/train/s1.png"
    with Image.open(path) as label:
        label.resize((5, 7), Image.Resampling.NEAREST).save(path)


def mislabel(scenes: Path) -> None:
    path = scenes / "labels/val/s2.png"
    with Image.open(path) as label:
        label.putpixel((0, 0), 7)
        label.save(path)


def colour_label(scenes: Path) -> None:
    path = scenes / "labels/train/s0.png"
    with Image.open(path) as label:
        label.convert("RGB").save(path)


def copy_within(scenes: Path) -> None:
    save_as(scenes, "train/s1.png", "train/copy.bmp")


def copy_across(scenes: Path) -> None:
    save_as(scenes, "train/s1.png", "val/copy.bmp")


def save_as(scenes: Path, old: str, new: str) -> None:
    with Image.open(scenes / "images" / old) as image:
        image.save(scenes / "images" / new)
    shutil.copy(scenes / "labels" / old, (scenes / "labels" / new).with_suffix(".png"))


DAMAGE: list[tuple[Callable[[Path], None], str, str | None, list[str]]] = [
    (truncate, "unreadable", "val", ["images/val/s1.png", "cannot be read as an image"]),
    (make_noise, "unreadable", "train", ["labels/train/s2.png", "cannot be read as a label"]),
    (empty, "unreadable", "train", ["images/train/s0.png", "no known image format"]),
    (lose_label, "missing", "val", ["labels/val/s0.png", "is missing"]),
    (lose_image, "orphan", None, ["labels/train/s3.png", "a label without an image"]),
    (resize_label, "size", "train", ["labels/train/s1.png", "images/train/s1.png", "5x7", "11x10"]),
    (mislabel, "label", "val", ["labels/val/s2.png", "label 7", "0 to 2"]),
    (colour_label, "label", "train", ["labels/train/s0.png", "mode RGB"]),
    (copy_within, "duplicate", "train", ["copy (train) and s1 (train)", "the same image"]),
    (copy_across, "duplicate", None, ["s1 (train) and copy (val)", "the same image"]),
]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize(("damage", "kind", "split", "parts"), DAMAGE, ids=[row[0].__name__ for row in DAMAGE])
def test_damage_is_one_problem_that_names_the_file(
    scenes: Path, damage: Callable[[Path], None], kind: str, split: str | None, parts: list[str], packed: bool
) -> None:
    damage(scenes)
    code, result = summary(recipe(pack(scenes, scenes.parent / "scenes.tar", ".") if packed else scenes))
    assert (code, result["clean"], result["remarks"]) == (1, False, [])
    [problem] = result["problems"]
    assert (problem["kind"], problem["split"]) == (kind, split)
    message = problem["message"]
    assert "\n" not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message, message


def test_everything_that_is_wrong_is_listed_and_the_rest_is_counted(scenes: Path) -> None:
    expected, _ = counted(scenes, "train")
    for damage, _, _, _ in DAMAGE:
        if damage not in (copy_within, copy_across, make_noise, colour_label, lose_image):
            damage(scenes)
    with Image.open(scenes / "labels/train/s1.png") as label:  # of another size, but counted
        labels = [np.array(label)]
    for k in (0, 2, 3):
        with Image.open(scenes / f"labels/train/s{k}.png") as label:
            labels.append(np.array(label))
    code, result = summary(recipe(scenes))
    assert code == 1
    found = {(problem["kind"], problem["split"]) for problem in result["problems"]}
    assert found == {
        ("unreadable", "val"),
        ("unreadable", "train"),
        ("missing", "val"),
        ("size", "train"),
        ("label", "val"),
    }
    pixels = Counter(np.concatenate([label.ravel() for label in labels]).tolist())
    assert pixels != expected
    assert [entry["train"]["pixels"] for entry in result["classes"]] == [pixels[k] for k in range(3)]
    assert result["splits"]["train"]["images"] == 4


def test_image_and_label_can_both_be_wrong(scenes: Path) -> None:
    (scenes / "images/val/s2.png").write_bytes(b"")
    mislabel(scenes)
    _, result = summary(recipe(scenes))
    assert [problem["kind"] for problem in result["problems"]] == ["unreadable", "label"]


def test_a_label_of_an_unknown_colour_is_named(scenes: Path) -> None:
    colors = {"ground": [10, 20, 30], "tree": [0, 255, 0], "car": [1, 2, 3]}
    for path in scenes.rglob("labels/*/*.png"):
        with Image.open(path) as label:
            numbers = np.array(label)
        save(path, np.array([*colors.values()])[np.where(numbers == 255, 0, numbers)])
    assert summary(recipe(scenes, names=colors))[0] == 0
    with Image.open(scenes / "labels/val/s0.png") as label:
        label.putpixel((3, 2), (9, 9, 9))
        label.save(scenes / "labels/val/s0.png")
    code, result = summary(recipe(scenes, names=colors))
    [problem] = result["problems"]
    assert (code, problem["kind"], problem["split"]) == (1, "label", "val")
    assert "labels/val/s0.png has the colour (9, 9, 9) at row 2, column 3" in problem["message"]


def test_the_table_shows_ten_of_a_kind_and_the_number_of_all(scenes: Path) -> None:
    for k in range(12):
        (scenes / f"images/val/more{k:02}.png").write_bytes(b"noise")
        save(scenes / f"labels/val/more{k:02}.png", np.zeros((3, 3)))
    code, out, _ = run_command("data", "check", recipe(scenes))
    lines = out.splitlines()
    start = lines.index("problem, unreadable: 12")
    assert code == 1
    assert all(f"more{k:02}.png cannot be read as an image" in lines[start + 1 + k] for k in range(10))
    assert lines[start + 11 :] == ["  and 2 more; --json lists all", "12 problems."]
    assert len(summary(recipe(scenes))[1]["problems"]) == 12


def test_nothing_readable_is_no_reason_to_stumble(scenes: Path) -> None:
    for path in scenes.rglob("*.png"):
        path.write_bytes(b"noise")
    code, result = summary(recipe(scenes))
    assert code == 1
    assert sum(problem["kind"] == "unreadable" for problem in result["problems"]) == 14
    assert {entry["train"]["share"] for entry in result["classes"]} == {None}
    assert {entry["median_frequency"] for entry in result["classes"]} == {0}
    assert run_command("data", "check", recipe(scenes))[0] == 1


# --- Classes and numbers


def replace_label(scenes: Path, split: str) -> None:
    for path in (scenes / f"labels/{split}").iterdir():
        with Image.open(path) as label:
            numbers = np.array(label)
        save(path, np.where(numbers == 2, 1, numbers))


def test_a_class_that_is_never_trained_on_is_a_problem(scenes: Path) -> None:
    replace_label(scenes, "train")
    code, result = summary(recipe(scenes))
    [problem] = result["problems"]
    assert (code, problem["kind"], problem["split"]) == (1, "class", "train")
    assert "the class car" in problem["message"]
    assert result["classes"][2]["median_frequency"] == 0


def test_a_class_that_is_never_validated_on_is_a_remark(scenes: Path) -> None:
    replace_label(scenes, "val")
    code, result = summary(recipe(scenes))
    [remark] = result["remarks"]
    assert (code, result["clean"], remark["kind"], remark["split"]) == (0, True, "class", "val")
    code, out, _ = run_command("data", "check", recipe(scenes))
    assert code == 0
    assert "remark, class: 1\n  No label of val shows the class car" in out


@pytest.mark.parametrize(
    ("kind", "images", "labels", "train", "val"),
    [
        ("camvid", "CamVid/{split}/x{k}.png", "CamVid/{split}annot/x{k}.png", (3, 367), (2, 101)),
        ("kitti_road", "data_road/training/image_2/um_{k:06}.png",
         "data_road/training/gt_image_2/um_road_{k:06}.png", (4, 231), (1, 58)),
    ],
)  # fmt: skip
def test_too_few_images_are_told_from_the_official_number(
    tmp_path: Path, kind: str, images: str, labels: str, train: tuple[int, int], val: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    for k in range(5):
        split = "train" if k < 3 else "val"
        save(tmp_path / images.format(split=split, k=k), rng.integers(0, 256, (6, 8, 3)))
        colours = np.array([[255, 0, 0], [255, 0, 255]])[rng.integers(0, 2, (6, 8))]
        save(tmp_path / labels.format(split=split, k=k), rng.integers(0, 11, (6, 8)) if kind == "camvid" else colours)
    code, result = summary(write_recipe(tmp_path, {"kind": kind, "root": str(tmp_path)}))
    assert code == 1
    for split, (count, official) in (("train", train), ("val", val)):
        assert (result["splits"][split]["images"], result["splits"][split]["official"]) == (count, official)
        [message] = [
            problem["message"]
            for problem in result["problems"]
            if (problem["kind"], problem["split"]) == ("count", split)
        ]
        assert f"{count} images" in message
        assert str(official) in message


def test_data_sets_without_official_numbers_name_none(scenes: Path) -> None:
    samples = ImageFolder(
        scenes, "train", dict(zip(NAMES, range(3), strict=True)), images="images/{split}", labels="labels/{split}"
    )
    assert samples.official is None


def test_official_numbers_are_those_of_the_splits() -> None:
    assert CamVid.sizes == {"train": 367, "val": 101, "test": 233}
    assert KITTIRoad.sizes == {"train": 231, "val": 58, "all": 289}
    assert [round(289 * share) for share in KITTIRoad.shares.values()] == [231, 58]
    assert DemoScenes.splits == {"train": 300, "val": 60, "test": 20}


# --- Orphans


@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_orphans_of_both_kinds_are_told_apart(scenes: Path, suffix: str) -> None:
    for path in list(scenes.rglob("labels/*/*.png")):
        path.rename(path.with_name(f"{path.stem}{suffix}.png"))
    changes = {"label_suffix": suffix, "images": "images/train", "labels": "labels/train", "train": "", "val": ""}
    for split, ids in (("train", "s0 s1"), ("val", "s2")):
        changes[split] = str(scenes.parent / f"{split}.txt")
        Path(changes[split]).write_text("\n".join(ids.split()))
    (scenes / "images/train/notes.txt").write_text("no picture")
    (scenes / f"labels/train/.hidden{suffix}.png").write_text("no picture either")
    save(scenes / "images/train/deeper/x.png", np.zeros((3, 3)))
    code, result = summary(recipe(scenes, **changes))
    orphans = [problem for problem in result["problems"] + result["remarks"] if problem["kind"] == "orphan"]
    assert orphans == []  # s3 is a pair, though no split names it

    (scenes / "images/train/s3.png").unlink()
    save(scenes / "images/train/s9.png", np.zeros((3, 3)))
    code, result = summary(recipe(scenes, **changes))
    [problem] = [problem for problem in result["problems"] if problem["kind"] == "orphan"]
    [remark] = [remark for remark in result["remarks"] if remark["kind"] == "orphan"]
    assert code == 1
    assert f"labels/train/s3{suffix}.png is a label without an image" in problem["message"]
    assert "images/train/s9.png is an image without a label" in remark["message"]


def test_pictures_that_are_called_otherwise_are_no_orphans(scenes: Path) -> None:
    for path in list(scenes.rglob("labels/*/*.png")):
        shutil.copy(path, path.with_name(f"{path.stem}_color.png"))
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    code, result = summary(recipe(scenes, label_suffix="_mask"))
    assert (code, result["problems"], result["remarks"]) == (0, [], [])


# --- Leaks


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A tiny VOC 2012, of whose images c is in both lists."""
    return write_voc(tmp_path, 2012, "abc", "cd")


def voc_recipe(voc: Path, **changes: Any) -> Path:
    lists = voc / "ImageSets/Segmentation"
    data = {"kind": "voc", "year": 2012, "root": str(voc), "train": f"{lists}/train.txt", "val": f"{lists}/val.txt"}
    model = {"encoder_name": "test_resnet", "encoder_weights": None, "decoder_hidden_channels": 8}
    trainer = {"batch_size": 2, "workers": 0, "accelerator": "cpu", "precision": "fp32"}
    return write_recipe(voc.parent, data | changes, model=model, trainer=trainer)


def of_kind(findings: list[dict[str, Any]], *kinds: str) -> list[str]:
    return [finding["message"] for finding in findings if finding["kind"] in kinds]


def test_overlap_is_a_problem_unless_it_is_allowed(voc: Path) -> None:
    code, result = summary(voc_recipe(voc))
    [message] = of_kind(result["problems"], "overlap")
    assert code == 1
    assert message.startswith("c is in both splits")
    _, allowed = summary(voc_recipe(voc, allow_overlap=True))
    assert of_kind(allowed["problems"], "overlap", "duplicate") == []
    assert of_kind(allowed["remarks"], "overlap") == [message]


def test_overlap_is_no_duplicate(voc: Path) -> None:
    assert of_kind(summary(voc_recipe(voc))[1]["problems"], "duplicate") == []


def test_an_image_that_is_listed_twice_is_told(voc: Path) -> None:
    path = voc / "ImageSets/Segmentation/train.txt"
    path.write_text(path.read_text() + "a\n")
    [message] = of_kind(summary(voc_recipe(voc))[1]["problems"], "duplicate")
    assert message == "a is listed 2 times in train."


def test_an_image_of_voc_that_is_lost_is_missing_and_its_label_no_orphan(voc: Path) -> None:
    for id_ in "ad":
        (voc / f"JPEGImages/{id_}.jpg").unlink()
    code, result = summary(voc_recipe(voc))
    messages = of_kind(result["problems"], "missing", "orphan", "unreadable")
    assert code == 1
    assert messages == [f"{voc / 'JPEGImages'}/{id_}.jpg is missing." for id_ in "ad"]


def test_one_changed_pixel_makes_another_image(scenes: Path) -> None:
    copy_across(scenes)
    with Image.open(scenes / "images/val/copy.bmp") as image:
        image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))
        image.save(scenes / "images/val/copy.bmp")
    assert summary(recipe(scenes))[0] == 0


def test_the_same_bytes_in_another_shape_are_another_image(scenes: Path) -> None:
    for split, size in (("train", (4, 9)), ("val", (9, 4))):
        save(scenes / f"images/{split}/flat.png", np.full((*size, 3), 7))
        save(scenes / f"labels/{split}/flat.png", np.zeros(size))
    assert summary(recipe(scenes))[0] == 0


def test_training_on_what_is_validated_is_refused_before_anything_else(voc: Path) -> None:
    recipe = load_recipe(voc_recipe(voc))
    with one_sentence("1 image is in both splits", "such as c", "data.allow_overlap"):
        build(recipe)
    lists = voc / "ImageSets/Segmentation"
    (lists / "val.txt").write_text("b\nc\n")
    with one_sentence("2 images are in both splits", "such as b"):
        build(recipe)
    code, _, err = run_command("train", voc.parent / "mine.yaml", "-o", voc / "run")
    assert (code, err.count("\n"), (voc / "run").exists()) == (2, 1, False)
    assert len(build(load_recipe(voc.parent / "mine.yaml", ["data.allow_overlap=true"])).train) == 3


def test_overlap_in_a_later_stage_is_refused_at_once(voc: Path) -> None:
    lists = voc / "ImageSets/Segmentation"
    (lists / "apart.txt").write_text("d\n")
    path = voc_recipe(voc, val=str(lists / "apart.txt"))
    stages = {"one": {"model": {"arch": "fcn32s"}}, "two": {"data": {"val": str(lists / "val.txt")}}}
    path.write_text(path.read_text() + yaml.safe_dump({"stages": stages}))
    with one_sentence("1 image is in both splits", "such as c"):
        check_stages(load_recipe(path))


def test_folders_that_number_their_images_alike_do_not_overlap(scenes: Path) -> None:
    data = load_recipe(recipe(scenes)).data
    train, val = data.open("train"), data.open("val")
    assert {id_ for id_, _, _ in train.files} & {id_ for id_, _, _ in val.files}
    report = check(train, val)
    assert report.problems == []


# --- Mistakes


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nothing"], "There is no recipe nothing"),
        (["voc2007", "data.root={tmp}/nowhere"], "nowhere"),
        (["voc2007", "data.root={tmp}"], "holds no VOC2007"),
        (["demo", "data.train=trian", "data.root={tmp}/demo"], "trian"),
        (["demo", "data.rot=x"], "data.rot"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(tmp_path: Path, arguments: list[str], part: str) -> None:
    code, out, err = run_command("data", "check", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fcn-smp: ")
    assert part in err


# --- Real data


def test_the_real_voc_is_clean(data: Path) -> None:
    code, result = summary(Path("voc2007"), f"data.root={data / 'voc2007-segmentation-trainval.tar'}")
    assert (code, result["problems"], result["remarks"]) == (0, [], [])
    assert [split["images"] for split in result["splits"].values()] == [209, 213]
    assert [split["official"] for split in result["splits"].values()] == [209, 213]


def test_the_real_camvid_is_clean_and_has_the_known_shares(data: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {"kind": "camvid", "root": str(data / "camvid-trainval.tar")})
    code, result = summary(path)
    assert (code, result["problems"], result["remarks"]) == (0, [], [])
    shares = {entry["class"]: round(100 * entry["train"]["share"], 2) for entry in result["classes"]}
    assert shares == {
        "sky": 16.85, "building": 23.26, "pole": 0.98, "road": 31.66, "pavement": 4.49, "tree": 9.72, "sign": 1.17,
        "fence": 1.13, "car": 5.87, "pedestrian": 0.64, "bicyclist": 0.29,
    }  # fmt: skip
    assert round(100 * result["splits"]["train"]["void"]["share"], 2) == 3.95
