"""The command line as a user meets it: what a run leaves behind, and what a mistake is answered with."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from helpers import rows, tree, write_voc
from PIL import Image

from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.segmenter import Segmenter
from fcn_smp.training.learner import Learner

pytestmark = pytest.mark.usefixtures("undrawn")

TINY = """
data: {{kind: voc, year: 2012, root: {root}, train: {lists}/train.txt, val: {lists}/val.txt}}
model: {{encoder_name: test_resnet, encoder_weights: null, decoder_hidden_channels: 8}}
augmentation: {{crop: [32, 40]}}
optimizer: {{kind: adamw, lr: 0.01, encoder_lr: 0.001}}
trainer: {{epochs: 4, batch_size: 2, validate_every: 2, workers: 0, accelerator: cpu, precision: fp32}}
"""


@pytest.fixture
def voc(tmp_path):
    # As many images as fill their batches, so that every epoch reads every one.
    return write_voc(tmp_path / "data", 2012, [f"t{k}" for k in range(4)], [f"v{k}" for k in range(3)])


@pytest.fixture
def recipe(tmp_path, voc):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=tmp_path / "data", lists=voc / "ImageSets/Segmentation"))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run and its data, for the tests that only read."""
    root = tmp_path_factory.mktemp("trained")
    lists = write_voc(root / "data", 2012, [f"t{k}" for k in range(5)], [f"v{k}" for k in range(3)])
    path = root / "tiny.yaml"
    path.write_text(TINY.format(root=root / "data", lists=lists / "ImageSets/Segmentation"))
    script = [sys.executable, "-m", "fcn_smp", "train", path, "--output", root / "run"]  # which draws all
    # One thread, as in the tests' own process: sums of floats depend on how they are split.
    subprocess.run(script, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return root


def test_a_run_directory_holds_everything(trained):
    run = trained / "run"
    assert {path.name for path in run.iterdir()} == {
        "recipe.yaml", "environment.json", "metrics.csv", "curves.png", "checkpoints", "samples", "eval", "model",
        "report.html",
    }  # fmt: skip
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert {path.name for path in (run / "samples").iterdir()} == {"epoch-002.png", "epoch-004.png"}
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3", "4"]
    assert [bool(row["mean_iu"]) for row in rows(run)] == [False, True, False, True]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["starts"][0]["packages"]["torch"] == torch.__version__.split("+")[0]


def test_the_model_of_a_run_is_the_best_checkpoint_and_loads_with_smp(trained):
    model = smp.from_pretrained(trained / "run/model")
    best = torch.load(trained / "run/checkpoints/best.ckpt", weights_only=True)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, best[name]), name


def test_the_resolved_recipe_repeats_the_run(trained, command, tmp_path):
    code, _, _ = command("train", trained / "run/recipe.yaml", "-o", tmp_path / "again")
    assert code == 0
    assert rows(tmp_path / "again") == rows(trained / "run")


def test_the_number_of_workers_changes_nothing(trained, command, tmp_path):
    code, _, _ = command("train", trained / "tiny.yaml", "trainer.workers=2", "-o", tmp_path / "workers")
    assert code == 0
    assert rows(tmp_path / "workers") == rows(trained / "run")


def test_a_resumed_run_ends_as_if_it_had_not_stopped(trained, command, tmp_path, monkeypatch):
    begin = Learner.begin_epoch

    def stop_in_third_epoch(self, epoch):
        if epoch == 2:
            raise RuntimeError("the power fails")
        begin(self, epoch)

    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "begin_epoch", stop_in_third_epoch)
        with pytest.raises(RuntimeError, match="power"):
            command("train", trained / "tiny.yaml", "-o", run)
    code, _, error = command("eval", run)
    assert (code, "no model yet" in error) == (2, True)
    assert command("train", trained / "tiny.yaml", "-o", run, "--resume")[0] == 0
    assert rows(run) == rows(trained / "run")
    resumed, straight = (smp.from_pretrained(place / "model").state_dict() for place in (run, trained / "run"))
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)

    before = tree(run)
    code, output, _ = command("train", trained / "tiny.yaml", "-o", run, "--resume")
    assert (code, "nothing to resume" in output) == (0, True)
    assert tree(run) == before


def test_an_interrupted_run_says_how_it_goes_on(recipe, command, tmp_path, monkeypatch):
    def interrupt(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_seed", interrupt)
        code, _, error = command("train", recipe, "-o", tmp_path / "run")
    first, second = error.splitlines()
    assert (code, "stopped after step" in first) == (130, True)
    assert second == shlex.join(["fcn-smp", "train", str(recipe), "-o", str(tmp_path / "run"), "--resume"])
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    assert command("train", recipe, "-o", tmp_path / "run", "--resume")[0] == 0
    assert len(rows(tmp_path / "run")) == 4


def test_a_run_is_resumed_only_with_its_own_recipe(trained, command):
    code, _, error = command("train", trained / "tiny.yaml", "optimizer.lr=0.5", "-o", trained / "run", "--resume")
    assert code == 2
    assert "optimizer.lr=0.01" in error


def test_a_dry_run_leaves_nothing(recipe, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    code, output, _ = command("train", recipe, "--dry-run")
    assert (code, "The recipe works" in output) == (0, True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.class_weights=inverse_frequency", "optimizer={kind: sgd, momentum: 0.9}", "schedule.kind=poly"],
        ["loss.class_weights={person: 2}", "schedule={kind: cosine, warmup_steps: 2}", "trainer.gradient_clip=1"],
        ["loss.class_weights=median_frequency", "loss.label_smoothing=0.1", "trainer.precision=bf16"],
        ["model.arch=fcn2s", "model.decoder_learn_upsampling=true", "loss.class_weights=effective_number"],
        ["preprocessing={mean: [0, 0, 0], std: [1, 1, 1]}", "model.arch=fcn32s", "schedule.kind=constant"],
    ],
)
def test_recipes_of_every_kind_train(recipe, command, overrides):
    assert command("train", recipe, "--dry-run", *overrides)[0] == 0


def test_eval_scores_what_predict_draws(trained, command, tmp_path):
    code, output, _ = command("eval", trained / "run", "--json", "-o", tmp_path / "scores")
    assert code == 0
    scores = json.loads(output)
    assert scores == json.loads((tmp_path / "scores/scores.json").read_text())

    images = sorted((trained / "data/VOCdevkit/VOC2012/JPEGImages").glob("v*.jpg"))
    assert command("predict", trained / "run", *images, "-o", tmp_path / "masks")[0] == 0
    counts = np.zeros((21, 21), int)
    for image in images:
        truth = np.array(Image.open(str(image).replace("JPEGImages", "SegmentationClass").replace(".jpg", ".png")))
        mask = np.array(Image.open(tmp_path / f"masks/{image.stem}.png"))
        for true, predicted in zip(truth.ravel(), mask.ravel(), strict=True):
            if true != 255:
                counts[true, predicted] += 1
    iu = [counts[k, k] / union for k in range(21) if (union := counts[k].sum() + counts[:, k].sum() - counts[k, k]) > 0]
    assert scores["mean_iu"] == pytest.approx(np.mean(iu), abs=1e-6)
    assert scores["pixel_accuracy"] == pytest.approx(np.trace(counts) / counts.sum(), abs=1e-6)
    absent = [row["class"] for row in scores["per_class"] if row["iu"] is None]
    assert len(iu) + len(absent) == 21


def test_eval_prints_a_table_and_keeps_the_scores_in_the_run(trained, command):
    code, output, _ = command("eval", trained / "run")
    assert code == 0
    assert "mean IU" in output
    assert "tvmonitor" in output
    with (trained / "run/eval/val/per_class.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == list(VOCSegmentation.classes)


def test_predictions_have_the_size_and_colours_that_one_expects(trained, command, tmp_path):
    folder = tmp_path / "bilder äöü"
    folder.mkdir()
    Image.new("L", (37, 51), 90).save(folder / "grey.png")
    Image.new("RGB", (1, 1)).save(folder / "dot.jpg")
    (folder / "notes.txt").write_text("no image")
    code, output, _ = command("predict", trained / "run/model", folder, "-o", tmp_path / "out")
    assert (code, "2 images" in output) == (0, True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "grey.png", "grey_overlay.jpg", "dot.png", "dot_overlay.jpg",
    }  # fmt: skip
    mask = Image.open(tmp_path / "out/grey.png")
    assert (mask.mode, mask.size) == ("P", (37, 51))
    assert np.array_equal(np.reshape(mask.getpalette(), (-1, 3))[:21], voc_palette()[:21])
    assert Image.open(tmp_path / "out/dot.png").size == (1, 1)


def test_predict_takes_patterns_and_never_overwrites(trained, command, tmp_path):
    pattern = trained / "data/VOCdevkit/*/JPEGImages/t*.jpg"
    assert command("predict", trained / "run", pattern, "-o", tmp_path)[0] == 0
    before = tree(tmp_path)
    assert len([path for path in before if path.parent == tmp_path / "VOC2012/JPEGImages"]) == 10
    code, _, error = command("predict", trained / "run", pattern, "-o", tmp_path)
    assert (code, "is there already" in error) == (2, True)
    assert tree(tmp_path) == before


def damage_image(voc):
    path = voc / "JPEGImages/t1.jpg"
    path.write_bytes(path.read_bytes()[:200])


def shrink_label(voc):
    path = voc / "SegmentationClass/t1.png"
    label = Image.open(path)
    label.resize((5, 7)).save(path)


def mislabel(voc):
    path = voc / "SegmentationClass/t1.png"
    label = Image.open(path)
    label.putpixel((0, 0), 99)
    label.save(path)


def lose_image(voc):
    (voc / "JPEGImages/t1.jpg").unlink()


def empty_split(voc):
    (voc / "ImageSets/Segmentation/train.txt").write_text("\n")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damage_image, ["t1.jpg", "cannot be read as an image"]),
        (shrink_label, ["t1.png", "t1.jpg", "5x7"]),
        (mislabel, ["t1.png", "99", "0 to 20"]),
        (lose_image, ["t1.jpg", "missing"]),
        (empty_split, ["train.txt", "empty"]),
    ],
)
def test_damaged_data_is_named_and_leaves_no_run(recipe, voc, command, tmp_path, damage, expected, workers):
    damage(voc)
    code, _, error = command("train", recipe, f"trainer.workers={workers}", "-o", tmp_path / "run")
    assert_one_sentence(code, error, expected)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.epoch=3"], ["unknown key trainer.epoch", "did you mean epochs?"]),
        (["model.encoder_name=resnet81"], ["resnet81", "Did you mean", "resnet18"]),
        (["model.encoder_weights=no/such.safetensors"], ["no/such.safetensors"]),
        (["model.encoder_options={output_stride: 3}"], ["model", "output_stride"]),
        (["loss.class_weights={persn: 2}"], ["persn", "person"]),
        (["loss.class_weights=[1, 2]"], ["2 numbers", "21"]),
        (["data.root=nowhere"], ["nowhere"]),
        (["data.train=trian"], ["trian", "train, val"]),
        (["trainer.batch_size=64"], ["trainer.batch_size", "4 images"]),
        (["trainer.accelerator=warp"], ["trainer"]),
        (["model.decoder_skip_scales=[1]"], ["decoder_skip_scales", "2 skips"]),
        (["epochs:3"], ["key=value"]),
    ],
)
def test_a_wrong_recipe_is_answered_in_one_sentence(recipe, command, tmp_path, overrides, expected):
    code, _, error = command("train", recipe, *overrides, "-o", tmp_path / "run")
    assert_one_sentence(code, error, expected)
    assert not (tmp_path / "run").exists()


def test_one_value_for_a_batch_norm_is_told_with_what_helps(recipe, command, tmp_path):
    code, _, error = command("train", recipe, "augmentation.crop=7", "trainer.batch_size=1", "-o", tmp_path / "run")
    assert_one_sentence(code, error, ["augmentation.crop", "trainer.batch_size"])


@pytest.mark.parametrize("arguments", [["train", "{recipe}"], ["eval", "{run}"], ["predict", "{run}", "{image}"]])
def test_a_file_where_a_folder_should_be_is_named(trained, command, tmp_path, arguments):
    (tmp_path / "file").write_text("here already")
    image = tmp_path / "image.png"
    Image.new("RGB", (9, 9)).save(image)
    places = {"recipe": trained / "tiny.yaml", "run": trained / "run", "image": image}
    arguments = [argument.format(**places) for argument in arguments]
    code, _, error = command(*arguments, "-o", tmp_path / "file/below")
    assert_one_sentence(code, error, [str(tmp_path / "file")])
    assert (tmp_path / "file").read_text() == "here already"


def test_a_segmenter_takes_nothing_but_images(trained):
    segmenter = Segmenter.load(trained / "run")
    image = np.zeros((9, 7, 3), np.uint8)
    assert segmenter.predict(image).shape == (9, 7)
    for wrong in (image / 255, image[..., 0], image[None], Image.fromarray(image)):
        with pytest.raises(TypeError, match="uint8"):
            segmenter.predict(wrong)


def test_a_loss_that_explodes_is_told_with_what_helps(recipe, command, tmp_path):
    code, _, error = command("train", recipe, "optimizer={lr: 1e30, encoder_lr: 1e30}", "-o", tmp_path / "run")
    assert_one_sentence(code, error, ["became", "optimizer.lr", "warmup_steps"])


def test_a_run_is_not_overwritten(trained, command):
    before = tree(trained / "run")
    code, _, error = command("train", trained / "tiny.yaml", "-o", trained / "run")
    assert_one_sentence(code, error, ["holds another run", "--output"])
    assert tree(trained / "run") == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "voc2021"], ["voc2021", "did you mean"]),
        (["train", "demo", "--resume", "-o", "{tmp}"], ["cannot be resumed"]),
        (["eval", "{tmp}"], ["recipe.yaml"]),
        (["eval", "{run}", "--split", "tset"], ["tset"]),
        (["eval", "{run}", "--recipe", "demo"], ["classes"]),
        (["predict", "{run}", "{tmp}/none.jpg", "-o", "{tmp}/out"], ["none.jpg"]),
        (["predict", "{run}", "{tmp}/bad.jpg", "-o", "{tmp}/out", "--tta", "flop"], ["flop"]),
        (["predict", "{tmp}", "{tmp}/bad.jpg", "-o", "{tmp}/out"], ["config.json"]),
        (["predict", "{run}", "{tmp}/bad.jpg", "-o", "{tmp}/out", "--device", "cuda:77"], ["cuda:77"]),
    ],
)
def test_every_command_answers_a_mistake_in_one_sentence(trained, command, tmp_path, arguments, expected):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 not a picture")
    places = {"run": trained / "run", "tmp": tmp_path}
    code, _, error = command(*(argument.format(**places) for argument in arguments))
    assert_one_sentence(code, error, expected)


def assert_one_sentence(code, error, expected):
    assert code == 2, error
    assert error.startswith("fcn-smp: "), error
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    for part in expected:
        assert part in error, error


def test_a_damaged_model_is_refused(trained, command, tmp_path):
    broken = shutil.copytree(trained / "run/model", tmp_path / "model")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, error = command("predict", broken, trained / "tiny.yaml", "-o", tmp_path / "out")
    assert_one_sentence(code, error, [str(broken)])


def test_help_is_answered_without_importing_torch():
    script = """
import sys, fcn_smp.cli
sys.argv = ["fcn-smp", "--help"]
try:
    fcn_smp.cli.main()
finally:
    print(sorted({"torch", "segmentation_models_pytorch", "numpy", "pydantic"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "train" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command():
    result = subprocess.run([sys.executable, "-m", "fcn_smp", "train", "nothing"], capture_output=True, text=True)
    assert_one_sentence(result.returncode, result.stderr, ["There is no recipe nothing"])


def test_the_schema_accepts_every_shipped_recipe(command):
    import jsonschema
    import yaml

    from fcn_smp.recipe import shipped_recipes

    schema = json.loads(command("recipes", "schema")[1])
    for path in shipped_recipes().values():
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"trainer": {"epoch": 3}}, schema)


def test_recipes_are_listed_and_shown_whole(command):
    assert {line.split()[0] for line in command("recipes", "list")[1].splitlines()} >= {"demo", "voc2007", "voc2012"}
    shown = command("recipes", "show", "voc2007", "trainer.epochs=7")[1]
    assert "epochs: 7" in shown
    assert "label_smoothing: 0.0" in shown
