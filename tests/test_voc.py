"""PASCAL VOC: where it may lie, what its splits hold, and what is said when a file is wrong."""

import hashlib
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from helpers import encode, one_sentence, pack, random_label, write_voc
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from fcn_smp.data.dataset import Sample, decode_image, read_image
from fcn_smp.data.labels import decode_numbers
from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.errors import UserError

COUNTS = {
    (2007, "train"): 209,
    (2007, "val"): 213,
    (2007, "trainval"): 422,
    (2007, "test"): 210,
    (2012, "train"): 1464,
    (2012, "val"): 1449,
    (2012, "trainval"): 2913,
    (2012, "train_aug"): 10582,
    (2012, "seg11valid"): 736,
    (2012, "keras_fcn_train"): 10831,
    (2012, "keras_fcn_val"): 1200,
}

PUBLISHED_COLOURS = {
    0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 5: (128, 0, 128),
    6: (0, 128, 128), 7: (128, 128, 128), 8: (64, 0, 0), 9: (192, 0, 0), 10: (64, 128, 0), 11: (192, 128, 0),
    12: (64, 0, 128), 13: (192, 0, 128), 14: (64, 128, 128), 15: (192, 128, 128), 16: (0, 64, 0), 17: (128, 64, 0),
    18: (0, 192, 0), 19: (128, 192, 0), 20: (0, 64, 128), 255: (224, 224, 192),
}  # fmt: skip


def packaged(year: int, split: str) -> bytes:
    return resources.files("fcn_smp.data").joinpath(f"splits/voc{year}_{split}.txt").read_bytes()


def ids(year: int, split: str) -> list[str]:
    return packaged(year, split).decode().split()


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A tiny VOC 2007 with the images a, b and c to train on and d to validate."""
    return write_voc(tmp_path, 2007, "abc", "d")


def train_list(voc: Path) -> str:
    return str(voc / "ImageSets/Segmentation/train.txt")


def pack_with_dots(voc: Path) -> Path:
    """Pack as ``tar -c .`` does."""
    return pack(voc.parents[1] / "VOCdevkit", voc.parents[1] / "voc.tar", "./VOCdevkit")


# --- Places


@pytest.mark.parametrize(
    "place",
    [
        lambda voc: voc.parents[1],
        lambda voc: voc.parent,
        lambda voc: voc,
        lambda voc: pack(voc.parent, voc.parents[1] / "voc.tar", "VOCdevkit"),
        lambda voc: pack(voc, voc.parents[1] / "voc.tar", "VOC2007"),
        pack_with_dots,
    ],
    ids=["folder around VOCdevkit", "VOCdevkit", "VOC2007", "tar", "tar of VOC2007", "tar with leading dots"],
)
def test_samples_are_the_same_wherever_the_data_set_lies(voc: Path, place: Callable[[Path], Path]) -> None:
    samples = VOCSegmentation(place(voc), train_list(voc), 2007)
    assert len(samples) == 3
    for index, id_ in enumerate("abc"):
        sample = samples[index]
        assert sample.id == id_
        with (
            Image.open(voc / f"JPEGImages/{id_}.jpg") as image,
            Image.open(voc / f"SegmentationClass/{id_}.png") as label,
        ):
            np.testing.assert_array_equal(sample.image, np.array(image.convert("RGB")))
            np.testing.assert_array_equal(sample.label, np.array(label))
        assert sample.image.dtype == sample.label.dtype == np.uint8
        assert sample.image.shape == (*sample.label.shape, 3)
        np.testing.assert_array_equal(samples.read_label(index), sample.label)


def test_year_is_told_apart_from_the_other_one_beside_it(voc: Path) -> None:
    write_voc(voc.parents[1], 2012, "abc", "d")
    samples = [VOCSegmentation(voc.parents[1], train_list(voc), year)[0] for year in (2007, 2012)]
    assert not np.array_equal(samples[0].image, samples[1].image)


def test_workers_read_one_archive_side_by_side(voc: Path) -> None:
    samples = VOCSegmentation(pack(voc, voc.parents[1] / "voc.tar", "VOC2007"), train_list(voc), 2007)
    loaded: list[Sample] = list(DataLoader(samples, batch_size=None, num_workers=2, collate_fn=lambda sample: sample))
    assert [sample.id for sample in loaded] == ["a", "b", "c"]
    for sample, expected in zip(loaded, (samples[index] for index in range(3)), strict=True):
        np.testing.assert_array_equal(sample.image, expected.image)
        np.testing.assert_array_equal(sample.label, expected.label)


def test_threads_read_one_archive_side_by_side(voc: Path) -> None:
    samples = VOCSegmentation(pack(voc, voc.parents[1] / "voc.tar", "VOC2007"), train_list(voc), 2007)
    contents = [samples.storage.read(image) for _, image, _ in samples.files]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda number: samples.storage.read(samples.files[number % 3][1]), range(3000)))
    assert read == contents * 1000


def test_real_data_set_has_209_and_213_samples_of_21_classes_and_void(data: Path) -> None:
    for split, count in (("train", 209), ("val", 213), ("trainval", 422)):
        samples = VOCSegmentation(data / "voc2007-segmentation-trainval.tar", split, 2007)
        assert len(samples) == count
        for index in range(0, count, 40):
            image, label, id_ = samples[index]
            assert id_ == ids(2007, split)[index]
            assert image.shape == (*label.shape, 3)
            assert max(label.shape) <= 500
            assert set(np.unique(label)) <= {*range(21), 255}
            assert {0, 255} < set(np.unique(label))


# --- Splits


@pytest.fixture(scope="module")
def placeholders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both years with an empty file in place of each image and label."""
    root = tmp_path_factory.mktemp("placeholders")
    paths = set()
    for year, split in COUNTS:
        labels = "SegmentationClassAug" if split in VOCSegmentation.augmented else "SegmentationClass"
        for id_ in ids(year, split):
            base = root / f"VOCdevkit/VOC{year}"
            paths |= {base / f"JPEGImages/{id_}.jpg", base / f"{labels}/{id_}.png"}
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True)
    for path in paths:
        path.touch()
    return root


@pytest.mark.parametrize(("year", "split"), COUNTS)
def test_split_holds_the_published_number_of_different_images(placeholders: Path, year: int, split: str) -> None:
    samples = VOCSegmentation(placeholders, split, year)
    labels = "SegmentationClassAug" if split in VOCSegmentation.augmented else "SegmentationClass"
    base = f"VOCdevkit/VOC{year}"
    assert samples.files == [(i, f"{base}/JPEGImages/{i}.jpg", f"{base}/{labels}/{i}.png") for i in ids(year, split)]
    assert len(samples) == len({id_ for id_, _, _ in samples.files}) == COUNTS[year, split]


def test_every_split_has_a_published_number() -> None:
    named = {(year, split) for year, splits in VOCSegmentation.splits.items() for split in splits}
    assert named - {(2012, "auto"), (2012, "sbd_train")} == set(COUNTS)  # the latter comes with SBD


@pytest.mark.parametrize("year", [2007, 2012])
def test_trainval_is_train_and_val(year: int) -> None:
    train, val = set(ids(year, "train")), set(ids(year, "val"))
    assert not train & val
    assert train | val == set(ids(year, "trainval"))


def test_test_images_of_2007_are_never_trained_on() -> None:
    assert not set(ids(2007, "test")) & set(ids(2007, "trainval"))


def test_augmented_training_images_hold_train_and_no_validation_image() -> None:
    augmented = set(ids(2012, "train_aug"))
    assert augmented > set(ids(2012, "train"))
    assert not augmented & set(ids(2012, "val"))


def test_seg11valid_is_a_part_of_the_validation_images() -> None:
    assert set(ids(2012, "seg11valid")) < set(ids(2012, "val"))


@pytest.mark.parametrize(
    ("split", "digest"),
    [("train_aug", "215992f6fd958f89800449fdb4bbabe6"), ("seg11valid", "7984b6ce736bd3666d8b7ee70b5401da")],
)
def test_lists_that_others_published_are_theirs_to_the_byte(split: str, digest: str) -> None:
    assert hashlib.md5(packaged(2012, split)).hexdigest() == digest


def test_auto_takes_the_augmented_labels_where_they_lie(placeholders: Path, tmp_path: Path) -> None:
    assert len(VOCSegmentation(placeholders, "auto", 2012)) == COUNTS[2012, "train_aug"]
    folder = tmp_path / "VOC2012"
    folder.mkdir()
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).symlink_to(placeholders / "VOCdevkit/VOC2012" / name)
    plain = VOCSegmentation(tmp_path, "auto", 2012)
    assert len(plain) == COUNTS[2012, "train"]
    assert plain.files[0][2].startswith("VOC2012/SegmentationClass/")


def test_auto_takes_the_augmented_labels_of_an_archive(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, 2012, "a", "", labels="SegmentationClassAug")
    write_voc(tmp_path, 2012, "a", "")
    archive = pack(folder, tmp_path / "voc.tar", "VOC2012")
    with one_sentence(archive, "train_aug", "JPEGImages"):  # whose images are not in there
        VOCSegmentation(archive, "auto", 2012)


def test_list_file_is_a_split_in_its_order(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("d\n\n  b \r\na")
    samples = VOCSegmentation(tmp_path, str(tmp_path / "mine.txt"), 2007)
    assert [samples[index].id for index in range(len(samples))] == ["d", "b", "a"]


# --- Colours


def test_palette_is_the_published_one() -> None:
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    assert {label: tuple(palette[label].tolist()) for label in PUBLISHED_COLOURS} == PUBLISHED_COLOURS
    assert len(np.unique(palette, axis=0)) == 256
    np.testing.assert_array_equal(VOCSegmentation.palette, palette)
    assert len(VOCSegmentation.classes) == 21


# --- Errors


@pytest.mark.parametrize("year", [2007, 2012])
def test_unknown_split_is_answered_with_the_known_ones(placeholders: Path, year: int) -> None:
    with one_sentence("'tarin'", ", ".join(VOCSegmentation.splits[year])):
        VOCSegmentation(placeholders, "tarin", year)


@pytest.mark.parametrize("split", ["train_aug", "seg11valid", "auto"])
def test_splits_of_2012_are_unknown_in_2007(placeholders: Path, split: str) -> None:
    with one_sentence(repr(split), "VOC2007"):
        VOCSegmentation(placeholders, split, 2007)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_split_is_named(voc: Path, content: str) -> None:
    Path(train_list(voc)).write_text(content)
    with one_sentence(train_list(voc), "empty"):
        VOCSegmentation(voc, train_list(voc), 2007)


def test_split_that_is_no_text_is_named(voc: Path) -> None:
    Path(train_list(voc)).write_bytes(b"\xff\xfe\x00\x01")
    with one_sentence(train_list(voc)):
        VOCSegmentation(voc, train_list(voc), 2007)


def remake(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def label_file(label: np.ndarray, mode: str = "P") -> Callable[[bytes], bytes]:
    image = Image.fromarray(label.astype(np.uint8))
    return lambda _: encode(image if mode == "P" else image.convert(mode), "PNG")


IMAGE, LABEL = "JPEGImages/b.jpg", "SegmentationClass/b.png"
SPOILT = {
    "truncated image": (IMAGE, lambda content: content[: len(content) // 2], [IMAGE, "truncated"]),
    "image cut in its header": (IMAGE, lambda content: content[:15], [IMAGE]),
    "image of noise": (IMAGE, lambda _: b"\x07noise" * 50, [IMAGE, "no known image format"]),
    "empty image": (IMAGE, lambda _: b"", [IMAGE, "no known image format"]),
    "truncated label": (LABEL, lambda content: content[:-40], [LABEL]),
    "label of noise": (LABEL, lambda _: b"\x07noise" * 50, [LABEL, "no known image format"]),
    "label of another size": (LABEL, label_file(np.zeros((36, 48))), [IMAGE, LABEL, "48x36", "36x48"]),
    "label beyond the classes": (LABEL, label_file(np.full((48, 36), 21)), [LABEL, "label 21", "0 to 20", "255"]),
    "label just below void": (LABEL, label_file(np.full((48, 36), 254)), [LABEL, "label 254"]),
    "label in colours": (LABEL, label_file(np.zeros((48, 36)), "RGB"), [LABEL, "mode RGB", "P or L"]),
    "label with alpha": (LABEL, label_file(np.zeros((48, 36)), "LA"), [LABEL, "mode LA"]),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize(("file", "change", "parts"), SPOILT.values(), ids=SPOILT)
def test_spoilt_file_is_named_when_it_is_read(
    voc: Path, file: str, change: Callable[[bytes], bytes], parts: list[str], packed: bool
) -> None:
    remake(voc / file, change)
    root = pack(voc, voc.parents[1] / "voc.tar", "VOC2007") if packed else voc
    samples = VOCSegmentation(root, train_list(voc), 2007)
    assert samples[0].id == "a"
    with one_sentence(root, *parts):
        samples[1]


def test_error_of_a_worker_is_the_same_sentence(voc: Path) -> None:
    remake(voc / IMAGE, lambda _: b"noise")
    samples = VOCSegmentation(voc, train_list(voc), 2007)
    with pytest.raises(UserError) as direct:
        samples[1]
    with one_sentence(direct.value):
        list(DataLoader(samples, batch_size=None, num_workers=1, collate_fn=lambda sample: sample))


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("file", [IMAGE, LABEL])
def test_missing_file_is_named_before_anything_is_read(voc: Path, file: str, packed: bool) -> None:
    (voc / file).unlink()
    root = pack(voc, voc.parents[1] / "voc.tar", "VOC2007") if packed else voc
    with one_sentence(root, file, "missing", train_list(voc)):
        VOCSegmentation(root, train_list(voc), 2007)


@pytest.mark.parametrize("file", [IMAGE, LABEL])
def test_file_that_vanishes_later_is_named(voc: Path, file: str) -> None:
    samples = VOCSegmentation(voc, train_list(voc), 2007)
    (voc / file).unlink()
    with one_sentence(voc / file):
        samples[1]


def test_file_that_an_archive_does_not_hold_is_named(voc: Path) -> None:
    archive = pack(voc, voc.parents[1] / "voc.tar", "VOC2007")
    samples = VOCSegmentation(archive, train_list(voc), 2007)
    with one_sentence(archive, "VOC2007/JPEGImages/z.jpg"):
        samples.storage.read("VOC2007/JPEGImages/z.jpg")


@pytest.mark.parametrize("missing", ["JPEGImages", "SegmentationClass"])
def test_folder_that_is_no_voc_is_named(voc: Path, missing: str) -> None:
    (voc / missing).rename(voc / "elsewhere")
    with one_sentence(voc.parents[1], "holds no VOC2007"):
        VOCSegmentation(voc.parents[1], "train", 2007)


def test_root_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with one_sentence(tmp_path / "nowhere", "data.root"):
        VOCSegmentation(tmp_path / "nowhere", "train", 2007)


def cut(archive: Path) -> None:
    remake(archive, lambda content: content[: len(content) // 2 + 100])


def compress(archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as file:
        file.add(archive.parent / "VOCdevkit", "VOCdevkit")


@pytest.mark.parametrize(
    "spoil",
    [cut, compress, lambda archive: archive.write_bytes(b"noise" * 1000), lambda archive: archive.write_bytes(b"")],
    ids=["cut", "compressed", "noise", "empty"],
)
def test_broken_archive_is_named(voc: Path, spoil: Callable[[Path], None]) -> None:
    archive = pack(voc.parent, voc.parents[1] / "voc.tar", "VOCdevkit")
    spoil(archive)
    with one_sentence(archive, "tar archive"):
        VOCSegmentation(archive, train_list(voc), 2007)


# --- Decoding


def upright() -> np.ndarray:
    """Draw four flat quarters of different colours, higher than wide."""
    image = np.zeros((64, 32, 3), np.uint8)
    image[:32, :16], image[:32, 16:], image[32:, :16] = (220, 40, 40), (40, 200, 40), (40, 40, 220)
    return image


STORED = {  # how a camera stores the upright picture, by its EXIF orientation
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.transpose(1, 0, 2),
    6: lambda picture: picture.transpose(1, 0, 2)[::-1],
    7: lambda picture: picture[::-1, ::-1].transpose(1, 0, 2),
    8: lambda picture: picture.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
def test_image_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright())))
    decoded = decode_image(encode(stored, "JPEG", exif=exif, quality=95, subsampling=0), "x.jpg")
    np.testing.assert_allclose(decoded, upright(), atol=12)
    np.testing.assert_array_equal(decode_image(encode(stored, "PNG", exif=exif), "x.png"), upright())


@pytest.mark.parametrize(
    ("mode", "form", "colour", "expected"),
    [
        ("L", "JPEG", 77, (77, 77, 77)),
        ("L", "PNG", 77, (77, 77, 77)),
        ("1", "PNG", 1, (255, 255, 255)),
        ("LA", "PNG", (77, 10), (77, 77, 77)),
        ("RGB", "PNG", (10, 20, 30), (10, 20, 30)),
        ("RGBA", "PNG", (10, 20, 30, 0), (10, 20, 30)),
        ("CMYK", "JPEG", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", "JPEG", (0, 0, 0, 255), (0, 0, 0)),
        ("CMYK", "JPEG", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_image_of_any_mode_becomes_rgb(mode: str, form: str, colour: object, expected: tuple[int, ...]) -> None:
    decoded = decode_image(encode(Image.new(mode, (9, 7), colour), form), "x")
    assert decoded.dtype == np.uint8
    assert decoded.shape == (7, 9, 3)
    np.testing.assert_allclose(decoded, np.broadcast_to(expected, (7, 9, 3)), atol=2)


def test_image_with_a_palette_becomes_rgb() -> None:
    image = Image.fromarray(np.array([[0, 1, 15]], np.uint8))
    image.putpalette(voc_palette().tobytes())
    expected = [[PUBLISHED_COLOURS[label] for label in (0, 1, 15)]]
    np.testing.assert_array_equal(decode_image(encode(image, "PNG"), "x.png"), expected)


@pytest.mark.parametrize("palette", [True, False])
def test_label_keeps_its_numbers_with_and_without_a_palette(palette: bool) -> None:
    label = random_label(np.random.default_rng(1), (30, 20))
    image = Image.fromarray(label)
    if palette:
        image.putpalette(voc_palette().tobytes())
    np.testing.assert_array_equal(decode_numbers(encode(image, "PNG"), "x.png"), label)


def test_image_file_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(upright()).save(path)
    np.testing.assert_array_equal(read_image(path), upright())
    for wrong in (tmp_path / "y.png", tmp_path):
        with one_sentence(wrong, "cannot be read"):
            read_image(wrong)
    path.write_bytes(b"noise")
    with one_sentence(path, "no known image format"):
        read_image(path)


def damage(content: bytes, changes: dict[int, int], length: float) -> bytes:
    damaged = bytearray(content)
    for place, value in changes.items():
        damaged[place % len(damaged)] = value
    return bytes(damaged[: int(len(damaged) * length)])


DAMAGE = {
    "changes": st.dictionaries(st.integers(0, 400), st.integers(0, 255), max_size=4),
    "length": st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.02]),
}


@settings(deadline=None)
@given(**DAMAGE)
def test_damaged_image_is_read_or_named(changes: dict[int, int], length: float) -> None:
    content = damage(encode(Image.fromarray(upright()), "JPEG"), changes, length)
    try:
        decoded = decode_image(content, "x.jpg")
    except UserError as error:
        assert "x.jpg" in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert decoded.ndim == 3
        assert decoded.shape[2] == 3


def test_label_with_a_damaged_header_is_named() -> None:
    content = bytearray(encode(Image.new("L", (9, 7)), "PNG"))
    content[8:12] = (12).to_bytes(4, "big")  # length of the header chunk, 13 in a whole file
    with one_sentence("x.png"):
        decode_numbers(bytes(content), "x.png")


def test_image_with_damaged_exif_is_named() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    content = bytearray(encode(Image.fromarray(upright()), "JPEG", exif=exif))
    entry = content.index(b"\x01\x0f\x00\x02\x00\x00\x00\x06")  # the maker's name, a text of 6 characters
    content[entry + 3], content[entry + 7] = 11, 1  # is now one number
    with one_sentence("x.jpg"):
        decode_image(bytes(content), "x.jpg")
