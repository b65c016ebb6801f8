"""The drawn scenes: the same everywhere, well labelled, and written once."""

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_smp.data import demo
from fcn_smp.data.dataset import Sample
from fcn_smp.data.demo import DemoScenes
from fcn_smp.data.labels import IGNORE_INDEX
from fcn_smp.errors import UserError


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DemoScenes, "splits", {"train": 12, "val": 3, "test": 2})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "scenes"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def read(root: Path, split: str) -> list[Sample]:
    scenes = DemoScenes(root, split)
    return [scenes[index] for index in range(len(scenes))]


def test_layout_is_that_of_voc(root: Path) -> None:
    DemoScenes(root, "train")
    for split, count in DemoScenes.splits.items():
        ids = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        assert [sample.id for sample in read(root, split)] == ids
        assert len(ids) == count
    assert len(list((root / "JPEGImages").glob("*.jpg"))) == len(list((root / "SegmentationClass").glob("*.png"))) == 17
    assert [path.name for path in root.parent.iterdir()] == ["scenes"]


def test_labels_are_palette_images(root: Path) -> None:
    DemoScenes(root, "train")
    with Image.open(root / "SegmentationClass/train_000.png") as label:
        assert label.mode == "P"
        colours = np.array(label.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(colours, DemoScenes.palette[: len(colours)])
    assert len(np.unique(DemoScenes.palette[[*range(7), IGNORE_INDEX]], axis=0)) == 8


def test_samples_are_valid_and_show_every_class(root: Path) -> None:
    samples = read(root, "train")
    assert all(sample.image.shape == (96, 128, 3) and sample.label.shape == (96, 128) for sample in samples)
    seen = np.unique([sample.label for sample in samples])
    assert seen.tolist() == [*range(len(DemoScenes.classes)), IGNORE_INDEX]


def test_void_lies_between_any_two_classes(root: Path) -> None:
    for _, label, _ in read(root, "train"):
        for one, other in [(label[1:], label[:-1]), (label[:, 1:], label[:, :-1])]:
            void = (one == IGNORE_INDEX) | (other == IGNORE_INDEX)
            assert (void | (one == other)).all()
        assert 0.02 < np.mean(label == IGNORE_INDEX) < 0.3


def test_scenes_are_the_same_in_every_folder(root: Path, tmp_path: Path) -> None:
    DemoScenes(root, "train")
    DemoScenes(tmp_path, "test")  # an empty folder is filled
    assert contents(root) == contents(tmp_path)


def test_scenes_are_not_alike(root: Path) -> None:
    images = [sample.image.tobytes() for split in DemoScenes.splits for sample in read(root, split)]
    assert len(set(images)) == len(images)


def test_scenes_are_written_once(root: Path) -> None:
    DemoScenes(root, "train")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    DemoScenes(root, "val")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_default_root_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(DemoScenes(None, "val")) == 3
    assert (tmp_path / "fcn_smp/demo-scenes-v1/JPEGImages/val_000.jpg").is_file()


def test_unknown_split_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'trainval'; they have train, val, test"):
        DemoScenes(tmp_path / "scenes", "trainval")
    assert not (tmp_path / "scenes").exists()


@pytest.mark.parametrize("foreign", ["notes.txt", "ImageSets/Segmentation/train.txt"])
def test_foreign_folder_is_left_alone(tmp_path: Path, foreign: str) -> None:
    (tmp_path / foreign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / foreign).write_text("2007_000032\n")
    with pytest.raises(UserError, match="holds other files than the demo scenes; name a new or an empty folder"):
        DemoScenes(tmp_path, "train")
    assert contents(tmp_path) == {foreign: b"2007_000032\n"}


def test_root_that_is_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scenes").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        DemoScenes(tmp_path / "scenes", "train")
    with pytest.raises(UserError, match="cannot be written to"):
        DemoScenes(tmp_path / "scenes/below", "train")
    assert contents(tmp_path) == {"scenes": b"mine"}


def test_nothing_is_left_of_scenes_half_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "draw_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        DemoScenes(tmp_path / "scenes", "train")
    assert list(tmp_path.iterdir()) == []


def construct_at_once(root: Path, barrier: Barrier) -> None:
    """Construct the scenes such that no process renames its folder before all have written theirs."""
    write_scenes = demo.write_scenes

    def write_and_wait(folder: Path) -> Path:
        written = write_scenes(folder)
        barrier.wait(60)
        return written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DemoScenes, "splits", {"train": 2, "val": 1, "test": 1})
        patch.setattr(demo, "write_scenes", write_and_wait)
        assert len(read(root, "train")) == 2


def test_processes_may_start_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=construct_at_once, args=(tmp_path / "scenes", barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]
