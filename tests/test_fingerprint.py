"""A data set's fingerprint: the same wherever it lies, another when what is trained on changes."""

import copy
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import LabelsInMemory, Memory, encode, one_sentence, pack, random_label, write_voc
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_smp.data.carla import CARLA
from fcn_smp.data.dataset import SegmentationDataset
from fcn_smp.data.folder import ImageFolder
from fcn_smp.data.labels import Array, Colors, Numbers, decode_numbers
from fcn_smp.data.storage import Folder, Tar
from fcn_smp.data.voc import VOCSegmentation, voc_palette

CLASSES = 4


class InMemory(SegmentationDataset):
    """A data set of the files given, by id."""

    palette = voc_palette()

    def __init__(
        self,
        files: dict[str, tuple[bytes, bytes]],
        classes: int = CLASSES,
        decode: Callable[[bytes, str], Array] | None = None,
    ) -> None:
        self.classes = [f"class {k}" for k in range(classes)]
        paths = {f"{id_} image": image for id_, (image, _) in files.items()}
        paths |= {f"{id_} label": label for id_, (_, label) in files.items()}
        super().__init__(Memory(paths), [(id_, f"{id_} image", f"{id_} label") for id_ in files], decode)


def labels(count: int = 5) -> list[Array]:
    rng = np.random.default_rng(0)
    return [random_label(rng, (20, 30), CLASSES) for _ in range(count)]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A tiny VOC 2007 with the images a, b and c to train on and d to validate."""
    return write_voc(tmp_path, 2007, "abc", "d")


def of_voc(place: Path, voc: Path) -> str:
    return VOCSegmentation(place, str(voc / "ImageSets/Segmentation/train.txt"), 2007).fingerprint()


# --- What does not matter


def test_it_is_the_same_everywhere_and_in_every_process() -> None:
    # Whatever hash seed Python has drawn. Another number means that everything kept so far is lost.
    recorded = InMemory({"a": (b"image", b"label"), "b\u00e9\n": (b"", b"\0" * 9999)}).fingerprint()
    assert recorded == "85c1b195ac0bb9a040bc8842d16ac92a88b41caf316ba52f26b3476aef19fd61"


def test_it_does_not_tell_where_or_in_what_the_data_set_lies(voc: Path) -> None:
    places = [
        voc,
        voc.parent,
        voc.parents[1],
        pack(voc.parent, voc.parents[1] / "a.tar", "VOCdevkit"),
        pack(voc, voc.parents[1] / "b.tar", "VOC2007"),
        pack(voc.parents[1] / "VOCdevkit", voc.parents[1] / "c.tar", "./VOCdevkit"),
    ]
    before = {of_voc(place, voc) for place in places}
    moved = voc.parents[1] / "moved"
    voc.rename(moved)
    assert before == {of_voc(moved, moved)}
    assert len(before) == 1


def test_it_does_not_depend_on_which_file_is_read_first() -> None:
    expected = LabelsInMemory(labels(20), CLASSES).fingerprint()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        dataset = LabelsInMemory(labels(20), CLASSES)
        read = dataset.storage.read

        def slow(path: str, rng: np.random.Generator = rng, read: Callable[[str], bytes] = read) -> bytes:
            time.sleep(rng.uniform(0, 0.01))
            return read(path)

        dataset.storage.read = slow
        assert dataset.fingerprint() == expected


def test_reading_or_drawing_a_data_set_does_not_change_it() -> None:
    dataset = LabelsInMemory(labels(), CLASSES)
    before = dataset.fingerprint()
    assert dataset.in_memory().fingerprint() == before
    dataset.palette = 255 - dataset.palette
    assert dataset.fingerprint() == before


def test_labels_are_read_once_and_images_not_at_all(voc: Path, reads: Counter[str]) -> None:
    samples = VOCSegmentation(voc, str(voc / "ImageSets/Segmentation/train.txt"), 2007)
    reads.clear()
    samples.fingerprint()
    assert reads == {f"SegmentationClass/{id_}.png": 1 for id_ in "abc"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Numbers(range(3), (3, 255)), Numbers([0, 1, 2], [255, 3])),
        (
            Colors([(1, 2, 3), (0, 0, 9)], [(5, 5, 5), (4, 4, 4)]),
            Colors([(1, 2, 3), (0, 0, 9)], [(4, 4, 4), (5, 5, 5)]),
        ),
        (Numbers(range(CLASSES)), None),
    ],
)
def test_decoders_that_decode_the_same_are_the_same(one: Any, other: Any) -> None:
    files = {"a": (b"image", b"label")}
    assert InMemory(files, decode=one).fingerprint() == InMemory(files, decode=other).fingerprint()


# --- What does


FILES = st.dictionaries(st.text(max_size=3), st.tuples(st.binary(max_size=3), st.binary(max_size=3)), min_size=1)


@settings(deadline=None, max_examples=300)
@given(FILES, FILES)
def test_it_differs_where_ids_labels_or_image_sizes_do(
    one: dict[str, tuple[bytes, bytes]], other: dict[str, tuple[bytes, bytes]]
) -> None:
    def content(files: dict[str, tuple[bytes, bytes]]) -> list[tuple[str, int, bytes]]:
        return [(id_, len(image), label) for id_, (image, label) in files.items()]

    assert (InMemory(one).fingerprint() == InMemory(other).fingerprint()) == (content(one) == content(other))


@settings(deadline=None)
@given(FILES, st.data())
def test_any_change_shows(files: dict[str, tuple[bytes, bytes]], data: st.DataObject) -> None:
    before = InMemory(files)
    id_ = data.draw(st.sampled_from(sorted(files)))
    image, label = files[id_]
    others = [
        InMemory(files | {id_: (image + b"x", label)}),
        InMemory(files | {id_: (image, label + b"x")}),
        InMemory({name if name != id_ else "long name": pair for name, pair in files.items()}),
        InMemory(files | {"long name": (b"", b"")}),
        InMemory(files, CLASSES + 1),
        InMemory(files, decode=Numbers(range(CLASSES), (255, 9))),
        before.select({"one": [1]}),
        before.select({"one": [2]}),
        before.select({f"class {k}": [(k + 1) % CLASSES] for k in range(CLASSES)}),
    ]
    if label:
        others.append(InMemory(files | {id_: (image, bytes([label[0] ^ 1]) + label[1:])}))
    if len(files) > 1:
        others.append(InMemory(dict(reversed(files.items()))))
    renamed = copy.copy(before)
    renamed.classes = ["class 1", "class 0", "class 2", "class 3"]
    prints = [one.fingerprint() for one in (before, renamed, *others)]
    assert len({*prints}) == len(prints)


def test_every_setting_of_a_decoder_shows() -> None:
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    decoders = [
        Numbers(range(3)),
        Numbers(range(3), ()),
        Numbers(range(3), (255, 7)),
        Numbers(range(3), (7,)),
        Numbers((0, 2, 1)),
        Numbers(range(4)),
        Numbers(range(3), channel=0),
        Numbers(range(3), channel=1),
        Colors([red, green]),
        Colors([green, red]),
        Colors([red, blue]),
        Colors([red, green], [blue]),
        Colors([red, green, blue]),
    ]
    prints = {InMemory({"a": (b"image", b"label")}, decode=decode).fingerprint() for decode in decoders}
    assert len(prints) == len(decoders)


def test_a_decoder_of_ones_own_is_told_by_what_it_decodes() -> None:
    def plus(step: int) -> Callable[[bytes, str], Array]:
        return lambda content, name: (decode_numbers(content, name) + np.uint8(step)) % np.uint8(CLASSES)

    class Same(Numbers):
        def __call__(self, content: bytes, name: str) -> Array:
            return super().__call__(content, name).T.copy()

    label = encode(Image.fromarray(np.arange(4, dtype=np.uint8).reshape(1, 4)), "PNG")
    files = {"a": (b"image", label)}
    decoders = [None, Same(range(CLASSES)), plus(0), plus(1), plus(2)]
    assert len({InMemory(files, decode=decode).fingerprint() for decode in decoders}) == len(decoders)
    assert InMemory(files, decode=plus(1)).fingerprint() == InMemory(files, decode=plus(5)).fingerprint()


def test_options_of_a_data_set_show(tmp_path: Path) -> None:
    for folder in ("images", "labels", "CameraRGB", "CameraSeg"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            picture = Image.new("L" if folder == "labels" else "RGB", (4, 3))
            picture.save(tmp_path / folder / f"{name}.png")
    options: list[dict[str, Any]] = [
        {"names": {"x": 0, "y": 1}},
        {"names": {"x": 0, "y": 2}},
        {"names": {"y": 0, "x": 1}},
        {"names": {"x": 0, "y": 1}, "void": [7]},
        {"names": {"x": (0, 0, 0), "y": (1, 1, 1)}},
        {"names": {"x": (0, 0, 0), "y": (1, 1, 1)}, "void": [(7, 7, 7)]},
    ]
    prints = [ImageFolder(tmp_path, "all", **chosen).fingerprint() for chosen in options]
    prints.append(CARLA(tmp_path, "all").fingerprint())
    assert len({*prints}) == len(prints)


# --- What goes wrong


@pytest.mark.parametrize("lost", ["JPEGImages/b.jpg", "SegmentationClass/b.png"])
def test_file_that_is_lost_is_named(voc: Path, lost: str) -> None:
    samples = VOCSegmentation(voc, str(voc / "ImageSets/Segmentation/train.txt"), 2007)
    (voc / lost).unlink()
    with one_sentence(voc / lost, "No such file"):
        samples.fingerprint()


def test_size_is_that_of_the_file_in_a_folder_and_in_a_tar(voc: Path) -> None:
    folder, tar = Folder(voc), Tar(pack(voc, voc.parents[1] / "voc.tar", "."))
    assert folder.files() == tar.files()
    for path in folder.files():
        assert folder.size(path) == tar.size(path) == len(folder.read(path))
    for storage in (folder, tar):
        with one_sentence("none.png"):
            storage.size("none.png")


def test_fingerprint_of_voc_needs_no_decoding(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = data / "voc2007-segmentation-trainval.tar"
    train, val = (VOCSegmentation(place, split, 2007) for split in ("train", "val"))
    assert train.fingerprint() != val.fingerprint()
    monkeypatch.setattr(Image, "open", None)
    assert train.fingerprint() == VOCSegmentation(place, "train", 2007).fingerprint()
