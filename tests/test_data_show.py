"""Contact sheets: what is drawn where, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import run_command
from PIL import Image

from fcn_smp.data.labels import IGNORE_INDEX, Array
from fcn_smp.data.voc import voc_palette
from fcn_smp.drawing import Tile, contact_sheet

PALETTE = voc_palette()
NAMES = ["background", "tree", "car"]
GAP, CAPTION = 6, 23
COLUMN = 240 + 2 * GAP
WHITE = (255, 255, 255)


def flat(size: tuple[int, int], colour: tuple[int, int, int], label: int, caption: str = "x") -> Tile:
    return Tile(np.full((*size, 3), colour, np.uint8), np.full(size, label, np.uint8), caption)


def mixed(colour: tuple[int, int, int], label: int) -> tuple[int, ...]:
    return tuple(round(0.4 * one + 0.6 * two) for one, two in zip(colour, PALETTE[label].tolist(), strict=True))


def colours(pixels: Array) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}


# --- The sheet


def test_each_image_is_above_the_same_with_its_label() -> None:
    tiles = [flat((90, 120), (200, 10 * k, 30), k % 3) for k in range(6)]
    sheet = contact_sheet(tiles, PALETTE, NAMES)
    assert sheet.mode == "RGB"
    assert sheet.width == 4 * COLUMN
    row = 2 * 180 + CAPTION + 2 * GAP
    for k, tile in enumerate(tiles):
        x, y = (k % 4) * COLUMN + COLUMN // 2, (k // 4) * row + GAP + 90
        colour = tuple(tile.image[0, 0].tolist())
        assert sheet.getpixel((x, y)) == colour
        assert sheet.getpixel((x, y + 183)) == (mixed(colour, k % 3) if k % 3 else colour)
    assert sheet.getpixel((2 * COLUMN + COLUMN // 2, row + GAP + 90)) == WHITE  # there are but two in the second row


@pytest.mark.parametrize(("size", "drawn"), [((1, 1), (180, 180)), ((50, 1000), (12, 240)), ((1000, 1), (180, 1))])
def test_images_of_any_shape_are_fitted_into_their_box(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    sheet = contact_sheet([flat(size, (0, 0, 200), 0)], PALETTE, NAMES)
    pixels = np.array(sheet)[GAP : GAP + drawn[0], :]
    inside = np.argwhere((pixels != 255).any(-1))
    assert (inside.max(0) - inside.min(0) + 1).tolist() == list(drawn)


@pytest.mark.parametrize("size", [(90, 120), (500, 375), (3, 4)])
def test_void_is_hatched_and_nothing_else_is(size: tuple[int, int]) -> None:
    tile = flat(size, (200, 100, 50), 0)
    tile.label[:, : size[1] // 2] = IGNORE_INDEX
    sheet = np.array(contact_sheet([tile], PALETTE, NAMES))
    width = min(240, round(180 * size[1] / size[0]))
    left = GAP + (240 - width) // 2
    labelled = sheet[GAP + 183 + 2 : GAP + 183 + 178]
    half = size[1] // 2 / size[1] * width
    assert colours(labelled[:, left + 2 : left + int(half) - 2]) == {WHITE, (66, 33, 16)}
    assert colours(labelled[:, left + int(half) + 2 : left + width - 2]) == {(200, 100, 50)}


def test_only_a_background_and_black_classes_stay_clear() -> None:
    palette = PALETTE.copy()
    palette[2] = 0
    palette[3] = (255, 0, 0)
    sheet = contact_sheet([flat((90, 120), (9, 99, 199), k) for k in range(4)], palette, ["sky", "tree", "none", "car"])
    shown = [sheet.getpixel((k * COLUMN + COLUMN // 2, GAP + 183 + 90)) for k in range(4)]
    assert [colour == (9, 99, 199) for colour in shown] == [True, False, True, False]  # sky is black in this palette
    palette[0] = (255, 0, 255)
    for name, clear in (("background", True), ("sky", False)):
        sheet = contact_sheet([flat((90, 120), (9, 99, 199), 0)], palette, [name])
        assert (sheet.getpixel((COLUMN // 2, GAP + 183 + 90)) == (9, 99, 199)) == clear


def test_the_legend_has_all_classes_and_void() -> None:
    sheet = np.array(contact_sheet([flat((90, 120), (9, 99, 199), 0)], PALETTE, [*NAMES, *map(str, range(18))]))
    legend = colours(sheet[2 * 180 + CAPTION + 2 * GAP :])
    for k in range(1, 21):
        assert tuple(PALETTE[k].tolist()) in legend
    assert (42, 42, 42) in legend  # the dark stripes of void's hatching


def test_a_long_caption_keeps_its_end_and_its_place() -> None:
    sheets = [
        np.array(
            contact_sheet([flat((9, 12), (0, 0, 200), 0, caption), flat((9, 12), (0, 0, 200), 0, "")], PALETTE, [])
        )
        for caption in ("a" * 200 + "_000123", "b" * 300 + "_000123", "a" * 200 + "_000124")
    ]
    captions = [sheet[GAP + 363 : GAP + 363 + 18] for sheet in sheets]
    assert (captions[0][:, COLUMN:] == 255).all()
    last = slice(COLUMN - 60, COLUMN)
    assert (captions[0][:, last] != captions[2][:, last]).any()
    assert (captions[0] != 255).any()


# --- The command


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Sixteen flat pictures of one grey each, labelled 1 within 0, in the splits train and val."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for k in range(16):
            image = np.full((30, 40, 3), 10 * k + (5 if split == "val" else 0), np.uint8)
            label = np.zeros((30, 40), np.uint8)
            label[10:20, 10:30] = 1
            Image.fromarray(image).save(tmp_path / f"images/{split}/p{k:02}.png")
            Image.fromarray(label).save(tmp_path / f"labels/{split}/p{k:02}.png")
    data = {"kind": "folder", "root": str(tmp_path), "names": NAMES}
    data |= {kind: f"{kind}/{{split}}" for kind in ("images", "labels")}
    path = tmp_path / "mine.yaml"
    augmentation = {"crop": [30, 40], "scale": [0.5, 2.0], "color_jitter": 0}
    path.write_text(yaml.safe_dump({"extends": "demo", "data": data, "augmentation": augmentation}))
    return path


def shown(path: Path, columns: int = 4) -> list[int]:
    """Return the grey of each picture of a sheet, row by row."""
    pixels = np.array(Image.open(path))
    row = 2 * 180 + CAPTION + 2 * GAP
    greys = []
    for top in range(0, pixels.shape[0] - row, row):
        for left in range(0, pixels.shape[1], COLUMN):
            corner = pixels[top + GAP + 5, left + GAP + 5]
            if corner.tolist() != [255, 255, 255]:
                greys.append(int(corner[0]))
    return greys


def test_samples_are_drawn_by_the_seed(recipe: Path, tmp_path: Path) -> None:
    for name, options in {
        "a": [],
        "b": [],
        "c": ["seed=1"],
        "all": ["--samples", 99],
        "val": ["--split", "val"],
    }.items():
        code, out, _ = run_command("data", "show", recipe, *options, "--output", tmp_path / f"out/{name}.png")
        assert code == 0
        assert f"out/{name}.png" in out
    sheets = {path.stem: shown(path) for path in (tmp_path / "out").iterdir()}
    assert sheets["a"] == sheets["b"] == sorted(sheets["a"])
    assert len(set(sheets["a"])) == len(sheets["a"]) == 12
    assert sheets["c"] != sheets["a"]
    assert sheets["all"] == [10 * k for k in range(16)]
    assert {grey % 10 for grey in sheets["val"]} == {5}


def test_augmented_samples_are_those_of_the_first_epochs(recipe: Path, tmp_path: Path) -> None:
    from fcn_smp.recipe import load_recipe
    from fcn_smp.training.loaders import training_samples
    from fcn_smp.training.parts import build

    code, _, err = run_command("data", "show", recipe, "--samples", 2, "--augmented", "-o", tmp_path / "a.png")
    assert code == 0, err
    loaded = load_recipe(recipe)
    parts = build(loaded)
    samples = training_samples(loaded, parts.train, parts.preprocessing)
    chosen = sorted(np.random.default_rng(0).permutation(16)[:2].tolist())
    sheet = Image.open(tmp_path / "a.png")
    assert sheet.width == 4 * COLUMN
    row = 2 * 180 + CAPTION + 2 * GAP
    tested = set()
    for number, index in enumerate(chosen):
        assert sheet.getpixel((GAP + 5, number * row + GAP + 5)) == (10 * index,) * 3
        for epoch in range(3):
            _, label, _ = samples[epoch, index]
            for y in range(3, 30, 6):
                for x in range(3, 40, 6):
                    around = {int(value) for value in label[y - 1 : y + 2, x - 1 : x + 2].ravel()}
                    place = ((epoch + 1) * COLUMN + GAP + 6 * x + 3, number * row + GAP + 183 + 6 * y + 3)
                    if around == {0}:
                        assert sheet.getpixel(place) == (10 * index,) * 3
                    elif around == {1}:
                        assert sheet.getpixel(place) == mixed((10 * index,) * 3, 1)
                    elif around == {255}:
                        assert sheet.getpixel(place)[0] in (255, *range(100 // 3, 140 // 3))
                    tested |= around if len(around) == 1 else set()
    assert tested == {0, 1, 255}


def test_one_sample_makes_a_small_sheet(recipe: Path, tmp_path: Path) -> None:
    assert run_command("data", "show", recipe, "--samples", 1, "-o", tmp_path / "one.png")[0] == 0
    assert Image.open(tmp_path / "one.png").width == COLUMN


def test_a_file_is_never_overwritten(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    path.write_text("mine")
    code, out, err = run_command("data", "show", recipe, "--output", path)
    assert (code, out, err) == (2, "", f"fcn-smp: {path} is there already; name another file with --output.\n")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nothing"], "There is no recipe nothing"),
        (["{recipe}", "data.root={tmp}/nowhere"], "nowhere"),
        (["{recipe}", "--split", "tset"], "tset"),
        (["{recipe}", "--augmented", "augmentation=null", "trainer.batch_size=1"], "augmentation is null"),
        (["{recipe}", "--output", "{tmp}/x.jpg"], "should end in .png"),
        (["{recipe}", "--output", "{tmp}/mine.yaml/x.png"], "mine.yaml"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(recipe: Path, tmp_path: Path, arguments: list[str], part: str) -> None:
    arguments = [argument.format(recipe=recipe, tmp=tmp_path) for argument in arguments]
    if "--output" not in arguments:
        arguments += ["--output", str(tmp_path / "x.png")]
    code, out, err = run_command("data", "show", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("fcn-smp: ")
    assert part in err
    assert not (tmp_path / "x.png").exists()


def test_a_damaged_sample_is_named(recipe: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "labels/train").iterdir():
        path.write_bytes(b"noise")
    code, _, err = run_command("data", "show", recipe, "-o", tmp_path / "x.png")
    assert (code, err.count("\n"), "labels/train/p" in err) == (2, 1, True)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("augmented", [[], ["--augmented"]])
def test_real_images_are_shown(data: Path, tmp_path: Path, augmented: list[str]) -> None:
    changes = [f"data.root={data / 'voc2007-segmentation-trainval.tar'}", "model.encoder_weights=null"]
    path = tmp_path / "voc.png"
    assert run_command("data", "show", "voc2007", *changes, *augmented, "--samples", 5, "-o", path)[0] == 0
    with Image.open(path) as sheet:
        assert sheet.width == 4 * COLUMN
        assert len(sheet.getcolors(1 << 24)) > 10_000
