"""TensorBoard and Weights & Biases get the metrics, and a resumed run goes on where it was."""

import socket
import sys
import threading

import pytest
from helpers import one_sentence

from fcn_smp.recipe import load_recipe
from fcn_smp.training.loggers import open_loggers


def log(name, run, steps, *, after=0):
    (logger,) = open_loggers([name], run, load_recipe("demo"), step=after)
    for step in steps:
        logger.log({"train_loss": 1 / step, "mean_iu": step / 10}, step)
    logger.close()


def events(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(run / "tensorboard"))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_holds_what_was_logged(tmp_path):
    log("tensorboard", tmp_path, [1, 2, 4])
    assert events(tmp_path) == {
        "train_loss": [(1, 1.0), (2, 0.5), (4, 0.25)],
        "mean_iu": [(1, pytest.approx(0.1)), (2, pytest.approx(0.2)), (4, pytest.approx(0.4))],
    }


def test_what_tensorboard_got_of_repeated_steps_is_replaced(tmp_path):
    log("tensorboard", tmp_path, [1, 2, 3, 4])
    log("tensorboard", tmp_path, [3, 4, 5], after=2)
    assert [step for step, _ in events(tmp_path)["train_loss"]] == [1, 2, 3, 4, 5]
    log("tensorboard", tmp_path, [1, 2])  # resumed without a checkpoint
    assert [step for step, _ in events(tmp_path)["train_loss"]] == [1, 2]


@pytest.fixture
def visitors(monkeypatch):
    """Send all that goes to the network to this machine, and return what comes."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "WANDB_BASE_URL"):
            monkeypatch.setenv(name, address)

        def listen():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                seen.append(connection.recv(200))
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield seen


def test_wandb_offline_stays_in_the_run_directory_and_goes_on_under_one_id(tmp_path, monkeypatch, visitors):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log("wandb", tmp_path, [1, 2])
    identity = (tmp_path / "wandb/id").read_text()
    log("wandb", tmp_path, [3], after=2)
    log("wandb", tmp_path / "another", [1])
    assert (tmp_path / "wandb/id").read_text() == identity != (tmp_path / "another/wandb/id").read_text()
    written = [path for path in (tmp_path / "wandb").glob("offline-run-*") if identity in path.name]
    assert len(written) == 2
    assert all(list(path.glob("*.wandb")) for path in written)
    assert visitors == []


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with one_sentence(f"trainer.loggers: {name} needs", f'pip install "fcn_smp[{name}]"'):
        open_loggers([name], tmp_path, load_recipe("demo"))


def test_a_service_that_refuses_is_told_with_what_helps(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.Error("no API key.\nLog in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with one_sentence("wandb cannot start: no API key. Log in;", "WANDB_MODE=offline"):
        open_loggers(["wandb"], tmp_path, load_recipe("demo"))


def test_a_folder_that_is_called_wandb_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    for module in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with one_sentence("wandb needs the package wandb"):
        open_loggers(["wandb"], tmp_path, load_recipe("demo"))


def test_no_logger_is_opened_unless_asked_for(tmp_path):
    assert open_loggers([], tmp_path, load_recipe("demo")) == []
    assert list(tmp_path.iterdir()) == []
