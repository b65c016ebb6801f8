"""What all tests share: no network, one thread for each worker, and real data where it is at hand."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import leave_out_drawings

from fcn_smp import cli
from fcn_smp.data.storage import Folder
from fcn_smp.files import cache_folder

torch.set_num_threads(1)


def _directory(variable, what):
    if variable not in os.environ:
        pytest.skip(f"{variable} does not name a directory with {what}")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def weights():
    return _directory("FCN_SMP_WEIGHTS", "pretrained encoder weights")


@pytest.fixture(scope="session")
def data():
    return _directory("FCN_SMP_DATA", "the archives of VOC2007 and CamVid")


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Let nothing of the user's cache be read or written, but for the drawn scenes, which take long."""
    scenes = cache_folder() / "demo-scenes-v1"
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        if scenes.is_dir():
            (folder / "fcn_smp").mkdir()
            (folder / "fcn_smp" / scenes.name).symlink_to(scenes)
        yield folder


@pytest.fixture(scope="module")
def undrawn():
    """Let runs and evaluations of a module draw no charts, for the tests that do not look at them."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_drawings(patch)
        yield


@pytest.fixture
def command(capsys, monkeypatch):
    """Run the command line in this process; return exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fcn-smp", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return run


@pytest.fixture
def reads(monkeypatch):
    """Count how often each file of a folder with a data set is read."""
    counter: Counter[str] = Counter()
    read = Folder.read

    def counting(self, path):
        counter[path] += 1
        return read(self, path)

    monkeypatch.setattr(Folder, "read", counting)
    return counter


@pytest.fixture(scope="session")
def browser():
    """Chromium, if the machine has it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    playwright = pytest.importorskip("playwright.sync_api")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()
