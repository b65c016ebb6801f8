"""What a run directory says of its run, and when a run may be written or resumed."""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch
from helpers import one_sentence

from fcn_smp.recipe import load_recipe
from fcn_smp.reporting.runs import read_starts
from fcn_smp.training import record
from fcn_smp.training.record import check_directory, environment, write_record


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *identity, "-C", folder, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A checkout with one tracked file."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "notes.txt").write_text("one")
    git(folder, "add", "notes.txt")
    git(folder, "commit", "--quiet", "-m", "one")
    return folder


def test_a_record_is_the_recipe_and_where_and_with_what_it_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/bin/fcn-smp", "train", "my recipe.yaml", "-o", "run"])
    recipe = load_recipe("demo", ["trainer.epochs=3"])
    write_record(recipe, tmp_path, fingerprints={"train": "12ab"})
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    (start,) = read_starts(tmp_path)
    assert start["fingerprints"] == {"train": "12ab"}
    assert start["argv"] == sys.argv
    assert start["command"] == "/opt/bin/fcn-smp train 'my recipe.yaml' -o run"
    assert shlex.split(start["command"]) == sys.argv
    assert start["packages"]["torch"] == torch.__version__.split("+")[0]
    assert start["processes"] == 1
    assert start["cpu"]["cores"] >= 1
    assert start["cpu"]["name"]
    assert 0.1 < start["cpu"]["memory_gib"] < 1e5
    assert len(start["gpu"]) == torch.cuda.device_count()


def test_the_name_of_the_host_is_not_recorded(monkeypatch):
    for module, function in ((socket, "gethostname"), (platform, "node")):
        monkeypatch.setattr(module, function, lambda: "name-of-the-host")
    assert "name-of-the-host" not in json.dumps(environment())


def test_a_module_is_recorded_as_it_is_called(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/fcn_smp/__main__.py", "train", "demo"])
    assert environment()["command"] == "python -m fcn_smp train demo"


def test_a_resumed_run_keeps_its_first_start(tmp_path):
    write_record(load_recipe("demo"), tmp_path, shares=[0.25, 0.75])
    first = read_starts(tmp_path)
    write_record(load_recipe("demo"), tmp_path)
    assert read_starts(tmp_path)[:1] == first
    assert len(read_starts(tmp_path)) == 2


@pytest.mark.parametrize(
    "content", [b"", b'{"starts": [{"star', b"\xff", b"[]", b"7", b'{"starts": 7}', b'{"starts": [7]}']
)
def test_a_damaged_record_is_begun_anew(tmp_path, content):
    (tmp_path / "environment.json").write_bytes(content)
    write_record(load_recipe("demo"), tmp_path)
    assert len(read_starts(tmp_path)) == 1


def test_a_missing_package_has_no_version(monkeypatch):
    def version(package):
        if package == "lightning-fabric":
            raise PackageNotFoundError
        return "1"

    monkeypatch.setattr(record, "version", version)
    packages = environment()["packages"]
    assert (packages["lightning-fabric"], packages["torch"]) == (None, "1")


def test_the_working_directory_s_commit_is_recorded_and_whether_files_differ(repository, monkeypatch):
    monkeypatch.chdir(repository)
    clean = {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}
    assert environment()["git"]["working_directory"] == clean
    (repository / "untracked.txt").write_text("two")
    assert environment()["git"]["working_directory"] == clean
    (repository / "notes.txt").write_text("two")
    assert environment()["git"]["working_directory"] == {**clean, "dirty": True}


def test_a_package_in_a_checkout_that_does_not_track_it_has_no_commit(repository, monkeypatch):
    monkeypatch.chdir(repository)
    installed = repository / "site-packages/record.py"
    installed.parent.mkdir()
    installed.write_text("")
    monkeypatch.setattr(record, "__file__", str(installed))
    git_ = environment()["git"]
    assert git_["package"] is None
    assert git_["working_directory"]["commit"] == git(repository, "rev-parse", "HEAD")
    git(repository, "add", "site-packages")
    assert environment()["git"] == {
        "package": {"commit": git(repository, "rev-parse", "HEAD"), "dirty": True},
        "working_directory": None,
    }


def test_no_git_no_checkout_and_no_commit_are_no_commit(tmp_path, monkeypatch):
    nothing = {"package": None, "working_directory": None}
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    monkeypatch.chdir(tmp_path)
    assert environment()["git"] == nothing
    git(tmp_path, "init", "--quiet")
    assert environment()["git"] == nothing
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["git"] == nothing


@pytest.mark.skipif(os.name != "posix", reason="writes a shell script")
def test_a_slow_git_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert record._git(tmp_path, "status") is None


def test_a_run_starts_where_nothing_is(tmp_path):
    recipe = load_recipe("demo")
    check_directory(recipe, tmp_path / "absent", resume=False)
    check_directory(recipe, tmp_path, resume=False)
    (tmp_path / "notes.txt").write_text("")
    with one_sentence(tmp_path, "something else than a run", "--output"):
        check_directory(recipe, tmp_path, resume=False)
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    with one_sentence(tmp_path, "holds another run", "--output", "--resume"):
        check_directory(recipe, tmp_path, resume=False)


def test_a_run_of_which_there_is_nothing_yet_is_resumed_from_the_beginning(tmp_path):
    recipe = load_recipe("demo")
    check_directory(recipe, tmp_path / "absent", resume=True)
    check_directory(recipe, tmp_path, resume=True)
    (tmp_path / ".recipe.yaml.a1b2c3").mkdir()
    (tmp_path / ".recipe.yaml.a1b2c3/recipe.yaml").write_text("name: de")
    check_directory(recipe, tmp_path, resume=True)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_run_is_not_resumed(tmp_path, kind):
    run = tmp_path / "run"
    if kind == "folder":
        run.mkdir()
    (run if kind == "file" else run / "notes.txt").write_text("")
    with one_sentence(run, "cannot be resumed", "no recipe.yaml"):
        check_directory(load_recipe("demo"), run, resume=True)


def test_a_run_is_resumed_elsewhere_but_not_with_another_recipe(tmp_path):
    write_record(load_recipe("demo"), tmp_path)
    place = ["workers=0", "devices=2", "checkpoint_minutes=3", "checkpoint_steps=7", "samples=1", "collapse_steps=9"]
    moved = ["name=moved", "trainer.loggers=[tensorboard]", *(f"trainer.{setting}" for setting in place)]
    check_directory(load_recipe("demo", moved), tmp_path, resume=True)
    with one_sentence("trainer.batch_size=12, now it is 3"):
        check_directory(load_recipe("demo", ["trainer.batch_size=3"]), tmp_path, resume=True)


def test_a_recipe_of_another_version_is_not_resumed(tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {kind: demo}\ncolour: blue\n")
    with one_sentence("cannot be resumed", "not one of this version"):
        check_directory(load_recipe("demo"), tmp_path, resume=True)


def test_gpus_are_recorded_with_their_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert environment()["gpu"] == [{"name": "NVIDIA H200", "memory_gib": 139.0}] * 2


def test_a_cudnn_that_does_not_fit_has_no_version(monkeypatch):
    def refuse():
        raise RuntimeError("cuDNN version incompatibility")

    monkeypatch.setattr(torch.backends.cudnn, "version", refuse)
    assert environment()["cudnn"] is None
