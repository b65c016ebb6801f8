"""SBD: reading its MATLAB files once, and its labels from then on."""

import os

import numpy as np
import pytest
from helpers import one_sentence, tree, write_sbd
from PIL import Image
from scipy.io import loadmat, savemat

from fcn_smp.data import sbd
from fcn_smp.data.sbd import SBD, convert, read_mat
from fcn_smp.data.splitting import packaged_ids
from fcn_smp.data.voc import voc_palette
from fcn_smp.errors import UserError

SILENT = lambda step, done, total, unit: None  # noqa: E731


@pytest.fixture
def folder(tmp_path):
    """A tiny SBD, not yet converted."""
    return write_sbd(tmp_path, ["2008_000008", "2008_000015"], ["2008_000003"])


def segmentation(mat):
    return loadmat(mat)["GTcls"][0]["Segmentation"][0]


# --- Conversion


def test_labels_become_indexed_pictures_of_the_same_numbers(folder, tmp_path):
    steps = []
    assert convert(tmp_path, lambda *step: steps.append(step)) == 3
    assert steps == [("converting labels", done, 3, "files") for done in (1, 2, 3)]
    for mat in (folder / "cls").iterdir():
        with Image.open(folder / f"cls_png/{mat.stem}.png") as picture:
            assert picture.mode == "P"
            assert picture.getpalette() == voc_palette().ravel().tolist()
            np.testing.assert_array_equal(np.array(picture), segmentation(mat))
    assert len(list((folder / "cls_png").iterdir())) == 3


def test_second_conversion_does_nothing(folder, tmp_path):
    convert(tmp_path, SILENT)
    before = tree(tmp_path)
    assert convert(tmp_path, SILENT) == 0
    assert tree(tmp_path) == before


@pytest.mark.parametrize("length", [0, 50, -3], ids=["empty", "cut", "without its end"])
def test_label_that_is_not_whole_is_made_anew(folder, tmp_path, length):
    convert(tmp_path, SILENT)
    spoilt = folder / "cls_png/2008_000015.png"
    good = spoilt.read_bytes()
    kept = (folder / "cls_png/2008_000008.png").stat().st_mtime_ns
    spoilt.write_bytes(good[:length])
    assert convert(tmp_path, SILENT) == 1
    assert spoilt.read_bytes() == good
    assert (folder / "cls_png/2008_000008.png").stat().st_mtime_ns == kept


def test_several_processes_do_the_same_and_name_a_damaged_label(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(sbd, "FILES_PER_PROCESS", 1)
    last = folder / "cls/2008_000015.mat"
    last.write_bytes(b"noise")
    with one_sentence(last):
        convert(tmp_path, SILENT)
    for png in (folder / "cls_png").iterdir():
        with Image.open(png) as picture:
            np.testing.assert_array_equal(np.array(picture), segmentation(folder / f"cls/{png.stem}.mat"))


def struct(**fields):
    return lambda path: savemat(path, {"GTcls": fields})


DAMAGED = {
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "noise": (lambda path: path.write_bytes(b"noise" * 100), "cannot be read"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:300]), "cannot be read"),
    "cut at its end": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "cannot be read"),
    "without labels": (lambda path: savemat(path, {"GTinst": {"Segmentation": np.zeros((2, 2), np.uint8)}}), "GTcls"),
    "without segmentation": (struct(Boundaries=1), "Segmentation"),
    "no struct": (lambda path: savemat(path, {"GTcls": np.zeros((2, 2))}), "cannot be read"),
    "fractions": (struct(Segmentation=np.zeros((2, 2))), "matrix of bytes"),
    "text": (struct(Segmentation="abc"), "matrix of bytes"),
    "nothing in it": (struct(Segmentation=np.zeros((0, 5), np.uint8)), "matrix of bytes"),
    "label beyond the classes": (struct(Segmentation=np.full((2, 2), 21, np.uint8)), "21; SBD's are 0 to 20"),
    "void": (struct(Segmentation=np.full((2, 2), 255, np.uint8)), "255"),
}


@pytest.mark.parametrize(("damage", "part"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_label_is_named_and_those_before_it_are_kept(folder, tmp_path, damage, part):
    bad = folder / "cls/2008_000008.mat"  # the second of three
    good = bad.read_bytes()
    damage(bad)
    with one_sentence(bad, part):
        convert(tmp_path, SILENT)
    assert [path.name for path in (folder / "cls_png").iterdir()] == ["2008_000003.png"]
    bad.write_bytes(good)
    assert convert(tmp_path, SILENT) == 2


def test_no_damage_ends_in_another_error(folder):
    path = folder / "cls/2008_000008.mat"
    content = path.read_bytes()
    rng, messages = np.random.default_rng(3), []
    for _ in range(100):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_mat(path).max() <= 20
        except UserError as error:
            messages.append(str(error))
    assert messages
    assert all(str(path) in message for message in messages)


# --- Reading


@pytest.mark.parametrize("root", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_samples_are_the_same_wherever_the_data_set_lies(folder, tmp_path, root):
    convert(tmp_path, SILENT)
    train, val = SBD(tmp_path / root, "train"), SBD(tmp_path / root, "val")
    assert [sample.id for sample in train] == ["2008_000008", "2008_000015"]
    assert [sample.id for sample in val] == ["2008_000003"]
    for sample in (*train, *val):
        np.testing.assert_array_equal(sample.label, segmentation(folder / f"cls/{sample.id}.mat"))
        with Image.open(folder / f"img/{sample.id}.jpg") as image:
            np.testing.assert_array_equal(sample.image, np.array(image))
    assert (train.official, val.official) == (8498, 2857)
    assert len(train.classes) == 21


def test_train_noval_is_the_list_of_the_package(tmp_path):
    ids = packaged_ids("sbd_train_noval")
    for name, ending in (("img", "jpg"), ("cls_png", "png")):
        (tmp_path / name).mkdir()
        for id_ in ids:
            (tmp_path / f"{name}/{id_}.{ending}").touch()
    assert [id_ for id_, _, _ in SBD(tmp_path, "train_noval").files] == ids
    assert len(ids) == SBD.splits["train_noval"] == 5623


def test_without_conversion_the_command_that_does_it_is_named(folder, tmp_path):
    with one_sentence(folder / "cls_png/2008_000008.png", f"run fcn-smp data prepare sbd --root {tmp_path}"):
        SBD(tmp_path, "train")


def test_void_is_no_label_of_sbd(folder, tmp_path):
    convert(tmp_path, SILENT)
    Image.fromarray(np.full((40, 56), 255, np.uint8)).save(folder / "cls_png/2008_000003.png")
    with one_sentence(folder / "cls_png/2008_000003.png", "255"):
        SBD(tmp_path, "val")[0]


def test_other_folder_and_unknown_split_are_named(folder, tmp_path):
    with one_sentence("'trian'", "train, val, train_noval"):
        SBD(tmp_path, "trian")
    with one_sentence(tmp_path / "benchmark_RELEASE/dataset/img", "benchmark_RELEASE/dataset/img nor cls"):
        SBD(folder / "img", "train")
