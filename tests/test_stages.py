"""Training in stages, from other weights, with parts frozen and on whole images, as a user meets it."""

import dataclasses
import json
import shutil
from unittest.mock import patch

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from helpers import rows, tree, write_voc
from helpers import run_command as command
from PIL import Image
from safetensors.torch import load_file

from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.errors import Interrupted
from fcn_smp.models.encoder import Preprocessing
from fcn_smp.segmenter import Segmenter
from fcn_smp.training.learner import Learner
from fcn_smp.training.loop import Loop
from fcn_smp.training.validation import Validation

PLAIN = """
data: {{kind: voc, year: 2012, root: {root}, train: {lists}/train.txt, val: {lists}/val.txt}}
model: {{encoder_name: test_resnet, encoder_weights: null, decoder_hidden_channels: 8}}
augmentation: {{crop: [32, 40]}}
optimizer: {{kind: adamw, lr: 0.01, encoder_lr: 0.001}}
trainer: {{epochs: 2, batch_size: 2, workers: 0, samples: 1, accelerator: cpu, precision: fp32}}
"""
STAGES = """
stages:
  one: {model: {arch: fcn32s}}
  two: {model: {arch: fcn16s}, optimizer: {lr: 0.001}}
"""
# Blue, green, red from 0 to 255, as Caffe's networks take them.
CAFFE = Preprocessing((104.0, 117.0, 123.0), (1.0, 2.0, 4.0), "BGR", (0, 255))
USUAL = Preprocessing((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
TOO_LITTLE_TO_MATTER = "optimizer={lr: 1e-12, encoder_lr: 1e-12}"
pytestmark = pytest.mark.usefixtures("undrawn")


def train(*arguments):
    code, out, err = command("train", *arguments)
    assert code == 0, err
    return out


def assert_one_sentence(result, *parts):
    code, _, err = result
    assert code == 2, err
    assert err.startswith("fcn-smp: "), err
    assert err.count("\n") == 1, err
    for part in parts:
        assert str(part) in err, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, two recipes, and a finished staged run, for the tests that only read."""
    root = tmp_path_factory.mktemp("stages")
    voc = write_voc(root / "data", 2012, [f"t{k}" for k in range(4)], [f"v{k}" for k in range(2)])
    plain = PLAIN.format(root=root / "data", lists=voc / "ImageSets/Segmentation")
    (root / "plain.yaml").write_text(plain)
    (root / "staged.yaml").write_text(plain + STAGES)
    train(root / "staged.yaml", "-o", root / "run")
    return root


@pytest.fixture
def data(tmp_path):
    """Data of one's own to damage, and a staged recipe for it."""
    voc = write_voc(tmp_path / "data", 2012, [f"t{k}" for k in range(4)], [f"v{k}" for k in range(2)])
    plain = PLAIN.format(root=tmp_path / "data", lists=voc / "ImageSets/Segmentation")
    (tmp_path / "staged.yaml").write_text(plain + STAGES)
    return voc


def save_random_model(directory, classes, preprocessing, encoder="test_resnet"):
    """Save an FCN-16s whose every number counts: none is zero or one."""
    torch.manual_seed(1)
    options = {"encoder_weights": None, "decoder_hidden_channels": 8, "classes": len(classes)}
    model = smp.create_model("fcn16s", encoder_name=encoder, **options)
    with torch.no_grad():
        for name, values in model.state_dict().items():
            if "score" in name:
                values.normal_(std=0.1)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 2)
            elif name.endswith(("bias", "running_mean")):
                values.normal_(std=0.1)
    Segmenter(model, preprocessing, classes, voc_palette()).save(directory)
    return directory


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A model of three classes that takes its images as Caffe does."""
    return save_random_model(tmp_path_factory.mktemp("foreign") / "model", ["sea", "sky", "sand"], CAFFE)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model of the data's classes."""
    return save_random_model(tmp_path_factory.mktemp("start") / "model", VOCSegmentation.classes, USUAL)


def weights(run):
    return load_file((run / "model" if (run / "model").is_dir() else run) / "model.safetensors")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_weights(ours, theirs, names=None):
    assert ours.keys() == theirs.keys()
    for name in names if names is not None else theirs:
        assert torch.equal(ours[name], theirs[name]), name


# --- Stages


def test_each_stage_leaves_a_whole_run_and_the_last_ones_model_is_the_runs(place):
    run = place / "run"
    assert {path.name for path in run.iterdir()} == {
        "recipe.yaml", "environment.json", "one", "two", "model", "report.html",
    }  # fmt: skip
    whole = {path.name for path in (run / "one").iterdir()}
    assert whole > {"recipe.yaml", "environment.json", "metrics.csv", "checkpoints", "samples", "model"}
    for stage in ("one", "two"):
        assert {path.name for path in (run / stage).iterdir()} == whole
        assert [row["epoch"] for row in rows(run / stage)] == ["1", "2"]
    assert contents(run / "model") == contents(run / "two/model")
    assert contents(run / "model") != contents(run / "one/model")
    assert [smp.from_pretrained(run / stage / "model").name for stage in ("one", "two")] == [
        "fcn32s-test_resnet",
        "fcn16s-test_resnet",
    ]


def test_the_recipe_of_a_stage_says_all_and_repeats_it(place, tmp_path):
    written = {stage: yaml.safe_load((place / f"run/{stage}/recipe.yaml").read_text()) for stage in ("one", "two")}
    assert [written[stage]["model"]["init_from"] for stage in written] == [None, str(place / "run/one/model")]
    assert [written[stage]["model"]["arch"] for stage in written] == ["fcn32s", "fcn16s"]
    assert [written[stage]["optimizer"]["lr"] for stage in written] == [0.01, 0.001]
    assert [written[stage]["stages"] for stage in written] == [{}, {}]
    train(place / "run/two/recipe.yaml", "-o", tmp_path / "two")
    assert rows(tmp_path / "two") == rows(place / "run/two")
    assert_same_weights(weights(tmp_path / "two"), weights(place / "run/two"))


def test_the_recipe_of_the_run_repeats_all_stages(place, tmp_path):
    train(place / "run/recipe.yaml", "-o", tmp_path / "again")
    for stage in ("one", "two"):
        assert rows(tmp_path / "again" / stage) == rows(place / "run" / stage)
    assert_same_weights(weights(tmp_path / "again"), weights(place / "run"))


def test_a_stage_starts_from_the_best_of_the_one_before(place, tmp_path, monkeypatch):
    validate = Loop._validate

    def ever_worse(self):
        return dataclasses.replace(validate(self), mean_iu=1 / (2 + self.state.epoch))

    monkeypatch.setattr(Loop, "_validate", ever_worse)
    tiny = ["stages.two.optimizer={lr: 1e-9, encoder_lr: 1e-9}", "stages.two.trainer.epochs=1"]
    train(place / "staged.yaml", *tiny, "-o", tmp_path / "run")
    first = tmp_path / "run/one/checkpoints"
    best, last = (torch.load(first / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert len(last["state"]["rows"]) == 2
    assert any(not torch.equal(best["model"][name], last["model"][name]) for name in best["model"])
    two = smp.from_pretrained(tmp_path / "run/two/model")
    fresh = 0
    for name, parameter in two.named_parameters():
        if "skip_scores" in name:  # from zero on, and on the way
            assert 0 < parameter.abs().max() < 1e-7, name
            fresh += 1
        else:
            torch.testing.assert_close(parameter, best["model"][name], rtol=0, atol=1e-7)
    assert fresh == 2
    score = two.decoder.score.weight
    assert (score - last["model"]["decoder.score.weight"]).abs().max() > 1e-3


def stop(stage, epoch, error):
    """Stop at the beginning of an epoch of a stage."""
    train_epoch = Loop._train_epoch

    def stopping(self, batches):
        if (self.run.name, self.state.epoch) == (stage, epoch):
            raise error
        train_epoch(self, batches)

    return patch.object(Loop, "_train_epoch", stopping)


@pytest.mark.parametrize(("stage", "epoch"), [("one", 1), ("two", 0)])
def test_a_resumed_run_goes_on_where_it_stopped_and_ends_as_if_it_had_not(place, tmp_path, stage, epoch):
    run = tmp_path / "run"
    with stop(stage, epoch, RuntimeError("the power fails")), pytest.raises(RuntimeError, match="power"):
        train(place / "staged.yaml", "-o", run)
    assert not (run / "model").exists()
    assert (run / "two").exists() == (run / "one/model").exists() == (stage == "two")
    code, _, err = command("eval", run)
    assert (code, "no model yet" in err) == (2, True)
    done = tree(run / "one") if stage == "two" else {}

    begun = []
    fit = Loop.fit

    def note(self, display):
        begun.append((self.run.name, self.state.epoch))
        fit(self, display)

    with patch.object(Loop, "fit", note):
        train(place / "staged.yaml", "-o", run, "--resume")
    assert begun == ([("one", epoch), ("two", 0)] if stage == "one" else [("two", epoch)])
    if done:
        assert tree(run / "one") == done
    for name in ("one", "two"):
        assert rows(run / name) == rows(place / "run" / name)
        assert_same_weights(weights(run / name), weights(place / "run" / name))
    assert contents(run / "model") == contents(run / "two/model")


def test_an_interrupted_stage_says_how_the_run_goes_on(place, tmp_path):
    run = tmp_path / "run"
    short = ["trainer.epochs=1"]
    with stop("two", 0, Interrupted("stopped after step 0 of 2")):
        code, _, err = command("train", place / "staged.yaml", *short, "-o", run)
    assert (code, "--resume" in err, err.count("\n")) == (130, True, 2)
    train(place / "staged.yaml", *short, "-o", run, "--resume")
    assert contents(run / "model") == contents(run / "two/model")


def test_a_complete_run_has_nothing_to_resume(place):
    before = tree(place / "run")
    assert "nothing to resume" in train(place / "staged.yaml", "-o", place / "run", "--resume")
    assert tree(place / "run") == before


def test_a_staged_run_is_not_overwritten(place):
    before = tree(place / "run")
    assert_one_sentence(command("train", place / "staged.yaml", "-o", place / "run"), "holds another run", "--output")
    assert tree(place / "run") == before


@pytest.fixture
def half(place, tmp_path):
    """A run that stopped in its second stage."""
    shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns("two", "model"))
    shutil.copytree(place / "run/one/model", tmp_path / "run/one/model")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stages.two.trainer.epochs=9", "stages.two"),
        ("stages.one.seed=9", "stages.one"),
        ("trainer.epochs=9", "trainer.epochs"),
        ("model.arch=fcn4s", "model.arch"),
        ("stages=null", "stages"),
    ],
)
def test_a_staged_run_is_resumed_only_with_its_own_recipe(place, half, override, named):
    before = tree(half)
    result = command("train", place / "staged.yaml", override, "-o", half, "--resume")
    assert_one_sentence(result, f"was begun with {named}")
    assert tree(half) == before


def test_a_run_with_augmentation_is_not_resumed_without(place, tmp_path):
    single = [place / "plain.yaml", "trainer.batch_size=1", "-o", tmp_path / "run"]
    with stop("run", 1, RuntimeError("the power fails")), pytest.raises(RuntimeError, match="power"):
        train(*single)
    assert_one_sentence(command("train", *single, "augmentation=null", "--resume"), "was begun with augmentation")


def test_a_staged_run_is_resumed_with_other_workers(place, half):
    train(place / "staged.yaml", "trainer.workers=1", "name=elsewhere", "-o", half, "--resume")


def test_a_staged_run_is_resumed_where_it_was_moved_to(place, tmp_path):
    with stop("two", 1, RuntimeError("the power fails")), pytest.raises(RuntimeError, match="power"):
        train(place / "staged.yaml", "-o", tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    train(place / "staged.yaml", "-o", tmp_path / "there", "--resume")


def test_eval_and_predict_take_a_staged_run(place, tmp_path):
    scores = {}
    for name in ("run", "run/two"):
        code, out, _ = command("eval", place / name, "--json", "-o", tmp_path / "scores")
        assert code == 0
        scores[name] = {key: value for key, value in json.loads(out).items() if key != "model"}
    assert scores["run"] == scores["run/two"]
    assert scores["run"]["images"] == 2
    assert len(scores["run"]["per_class"]) == 21

    images = place / "data/VOCdevkit/VOC2012/JPEGImages"
    for name in ("run", "run/one"):
        code, out, _ = command("predict", place / name, images, "-o", tmp_path / name)
        assert (code, "6 images" in out) == (0, True)
        assert len(list((tmp_path / name).iterdir())) >= 12  # a label and an overlay of each


def test_a_dry_run_tries_each_stage_and_leaves_nothing(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tree(place)
    out = train(place / "staged.yaml", "--dry-run")
    assert out.count("The recipe works") == 2
    assert out.index("Stage one") < out.index("fcn32s-") < out.index("Stage two") < out.index("fcn16s-")
    assert (tree(place), list(tmp_path.iterdir())) == (before, [])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.two.trainer.batch_size=64", ["trainer.batch_size", "4 images"]),
        ("stages.two.model.encoder_name=resnet18", ["stages.two", "encoders", "encoder_name should be"]),
    ],
)
def test_a_dry_run_finds_what_is_wrong_with_a_later_stage(place, override, expected):
    assert_one_sentence(command("train", place / "staged.yaml", override, "--dry-run"), *expected)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stages.two.trainer.epoch=3"], ["stages.two", "unknown key trainer.epoch", "did you mean epochs?"]),
        (["stages.two.model.arch=fcn9s"], ["stages.two", "model.arch", "fcn9s"]),
        (["stages.three.seed=3"], ["no stage three", "one, two"]),
        (["data.root=nowhere"], ["nowhere"]),
        (["data.train=trian"], ["trian", "train, val"]),
        (["trainer.batch_size=64"], ["trainer.batch_size", "4 images"]),
        (["model.encoder_name=resnet81"], ["resnet81", "Did you mean"]),
        (["stages.one.model.frozen=[encodr]"], ["encodr", "encoder"]),
        (["model.init_from=no/where"], ["no/where"]),
        (["stages.two.model.frozen=[encodr]"], ["encodr", "encoder"]),
        (["stages.two.model.encoder_name=resnet81"], ["resnet81", "Did you mean"]),
        (["stages.two.data.train=trian"], ["trian", "train, val"]),
    ],
)
def test_what_is_wrong_in_any_stage_is_said_before_the_first_begins(place, tmp_path, overrides, expected):
    result = command("train", place / "staged.yaml", *overrides, "-o", tmp_path / "run")
    assert_one_sentence(result, *expected)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("image", ["t1", "v1"])
def test_damaged_data_of_the_first_stage_is_named_and_leaves_no_run(data, tmp_path, image):
    path = data / f"JPEGImages/{image}.jpg"
    path.write_bytes(path.read_bytes()[:200])
    assert_one_sentence(command("train", tmp_path / "staged.yaml", "-o", tmp_path / "run"), path)
    assert not (tmp_path / "run").exists()


def test_what_was_reached_stays_where_a_later_stage_fails(data, tmp_path):
    for kind, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        shutil.copy(data / f"{kind}/t0.{suffix}", data / f"{kind}/more.{suffix}")
    list_ = data / "ImageSets/Segmentation/more.txt"
    list_.write_text("t0\nt1\nt2\nmore\n")
    (data / "JPEGImages/more.jpg").write_bytes(b"no image")
    run = tmp_path / "run"
    arguments = [tmp_path / "staged.yaml", "trainer.epochs=1", f"stages.two.data.train={list_}", "-o", run]
    assert_one_sentence(command("train", *arguments), "more.jpg")
    assert {path.name for path in run.iterdir()} == {"recipe.yaml", "environment.json", "one"}
    assert (run / "one/model").is_dir()
    done = tree(run / "one")
    shutil.copy(data / "JPEGImages/t0.jpg", data / "JPEGImages/more.jpg")
    train(*arguments, "--resume")
    assert (tree(run / "one"), (run / "model").is_dir()) == (done, True)


def test_three_stages_hand_their_weights_on(place, tmp_path):
    """With everything that a stage shares with the next one frozen, the first stage's weights reach the last."""
    recipe = tmp_path / "three.yaml"
    content = yaml.safe_load((place / "staged.yaml").read_text())
    shared = ["encoder", "decoder.hidden", "decoder.score"]
    content["stages"] = {
        "a": {"model": {"arch": "fcn32s"}},
        "b": {"model": {"arch": "fcn16s", "frozen": shared}},
        "c": {"model": {"arch": "fcn8s", "frozen": [*shared, "decoder.skip_scores.0"]}},
    }
    recipe.write_text(yaml.safe_dump(content))
    train(recipe, "trainer.epochs=1", "-o", tmp_path / "run")
    a, b, c = (weights(tmp_path / "run" / stage) for stage in "abc")
    for before, after in ((a, b), (b, c)):
        assert {name: tensor for name, tensor in before.items() if not torch.equal(tensor, after[name])} == {}
        new = after.keys() - before.keys()
        assert {name.rpartition(".")[0] for name in new if "score" in name} == {
            f"decoder.skip_scores.{0 if after is b else 1}"
        }
        assert all(after[name].abs().max() > 1e-3 for name in new if "score" in name)


# --- Starting from other weights


@pytest.mark.parametrize("source", ["run", "run/one", "run/one/model"])
def test_a_network_starts_from_a_run_or_a_model(place, tmp_path, source):
    start = weights(place / source)
    out = train(
        place / "plain.yaml", f"model.init_from={place / source}", "model.arch=fcn16s", "model.frozen=[encoder]",
        TOO_LITTLE_TO_MATTER, "trainer.epochs=1", "-o", tmp_path / "run",
    )  # fmt: skip
    ours = weights(tmp_path / "run")
    for name, tensor in ours.items():
        if name in start and "running" not in name and "batches" not in name:
            torch.testing.assert_close(tensor, start[name], rtol=0, atol=1e-9)
    assert ("decoder.skip_scores.0.weight" in out) == (source != "run")
    written = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert written["model"]["init_from"] == str(place / source)


def test_other_classes_keep_their_fresh_scores_and_the_rest_is_taken(place, foreign, tmp_path):
    out = train(
        place / "plain.yaml", f"model.init_from={foreign}", "model.arch=fcn16s", TOO_LITTLE_TO_MATTER,
        "trainer.epochs=1", "-o", tmp_path / "run",
    )  # fmt: skip
    for part in ("decoder.score.weight", "decoder.skip_scores.0.bias"):
        assert part in out
    start, model = smp.from_pretrained(foreign), smp.from_pretrained(tmp_path / "run/model")
    for name, parameter in model.named_parameters():
        if "score" in name:
            assert len(parameter) == 21, name
            assert parameter.abs().max() < 1e-9, name
        else:
            torch.testing.assert_close(parameter, start.get_parameter(name), rtol=0, atol=1e-9)


@pytest.mark.parametrize("other", [False, True])
def test_scores_for_other_classes_of_the_same_number_are_mentioned(place, tmp_path, other):
    classes = [f"thing {k}" for k in range(21)] if other else VOCSegmentation.classes
    source = save_random_model(tmp_path / "source", classes, Preprocessing((0.5,) * 3, (0.5,) * 3))
    out = train(place / "plain.yaml", f"model.init_from={source}", "model.arch=fcn16s", "--dry-run")
    assert ("other classes" in out) == other
    assert "Starts untrained" not in out


@pytest.fixture
def seen():
    """What the network gets in training and in validation, and the labels beside it."""
    batches = {"training": [], "validation": []}
    train, validate = Loop._batches, Validation.batches.fget

    def noting(noted, loader, normalize):
        for batch in loader:
            noted.append((normalize(batch.images.permute(0, 3, 1, 2)), batch.labels.clone()))
            yield batch

    def training(loop):
        return noting(batches["training"], train(loop), loop.normalize)

    def validation(own):
        return noting(batches["validation"], validate(own), own.normalize)

    with patch.object(Loop, "_batches", training), patch.object(Validation, "batches", property(validation)):
        yield batches


def as_it_is(voc, id_, mean, std, space, value):
    """Read an image and its label, and prepare the image: nothing but numpy."""
    image = np.array(Image.open(voc / f"JPEGImages/{id_}.jpg"), np.float64) * (value / 255)
    image = (image[..., ::-1] if space == "BGR" else image) - mean
    return (image / std).transpose(2, 0, 1), np.array(Image.open(voc / f"SegmentationClass/{id_}.png"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], CAFFE),
        (["preprocessing.mean=[1, 2, 3]"], CAFFE._replace(mean=(1, 2, 3))),
        (
            ["preprocessing.std=[8, 8, 9]", "preprocessing.input_space=RGB"],
            CAFFE._replace(std=(8, 8, 9), input_space="RGB"),
        ),
        (
            ["preprocessing={mean: [0.5, 0.4, 0.3], std: [1, 1, 2], input_range: [0, 1]}"],
            Preprocessing((0.5, 0.4, 0.3), (1, 1, 2), "BGR", (0, 1)),
        ),
    ],
    ids=["as the source", "other mean", "other order", "other range"],
)
def test_preprocessing_travels_with_the_weights_unless_the_recipe_says_otherwise(
    place, foreign, tmp_path, seen, overrides, expected
):
    train(
        place / "plain.yaml", f"model.init_from={foreign}", "augmentation=null", "trainer.batch_size=1", *overrides,
        "trainer.epochs=1", "-o", tmp_path / "run",
    )  # fmt: skip
    mean, std, space, range_, _ = Segmenter.load(tmp_path / "run").preprocessing
    assert (tuple(mean), tuple(std), space, tuple(range_)) == expected[:4]
    voc = place / "data/VOCdevkit/VOC2012"
    for step, split in (("training", "t"), ("validation", "v")):
        assert seen[step]
        wanted = [as_it_is(voc, f"{split}{k}", mean, std, space, range_[1])[0] for k in range(len(seen[step]))]
        for images, _ in seen[step]:
            distances = [np.abs(images[0].numpy() - each).max() for each in wanted if each.shape == images[0].shape]
            assert min(distances) < 1e-4


def test_preprocessing_travels_through_stages(place, foreign, tmp_path):
    overrides = [f"stages.one.model.init_from={foreign}", "trainer.epochs=1"]
    train(place / "staged.yaml", *overrides, "-o", tmp_path / "run")
    for stage in ("one", "two"):
        mean, std, space, range_, _ = Segmenter.load(tmp_path / "run" / stage).preprocessing
        assert (tuple(mean), tuple(std), space, tuple(range_)) == CAFFE[:4]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("encoder", ["test_resnet", "mobilenet_v2"])
def test_weights_that_would_be_replaced_at_once_are_not_fetched(place, tmp_path, empty_cache, encoder):
    source = save_random_model(tmp_path / "start", VOCSegmentation.classes, USUAL, encoder)
    arguments = [
        place / "plain.yaml", f"model.encoder_name={encoder}", "model.encoder_weights=imagenet", "--dry-run",
    ]  # fmt: skip
    assert_one_sentence(command("train", *arguments), "cannot be fetched")
    train(*arguments, f"model.init_from={source}")


def without_config(directory):
    (directory / "config.json").unlink()


def without_weights(directory):
    (directory / "model.safetensors").unlink()


def cut_off(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def not_ours(directory):
    config = json.loads((directory / "config.json").read_text())
    del config["_preprocessing"]
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("damage", [shutil.rmtree, without_config, without_weights, cut_off, not_ours])
def test_a_start_that_is_missing_or_damaged_is_named(place, foreign, tmp_path, damage):
    source = shutil.copytree(foreign, tmp_path / "source")
    damage(source)
    result = command("train", place / "plain.yaml", f"model.init_from={source}", "-o", tmp_path / "run")
    assert_one_sentence(result, "model", source)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "encoder"),
    [
        ("test_resnet", "test_efficientnet"),
        ("resnet18", "test_resnet"),
        ("resnet18", "resnet34"),
        ("resnet18", "tu-resnet18"),
        ("resnet34", "resnet18"),
    ],
)
def test_weights_of_another_encoder_are_refused(place, tmp_path, source, encoder):
    start = save_random_model(tmp_path / "start", VOCSegmentation.classes, USUAL, source)
    overrides = [f"model.init_from={start}", f"model.encoder_name={encoder}", "trainer.epochs=1"]
    result = command("train", place / "plain.yaml", *overrides, "-o", tmp_path / "run")
    assert_one_sentence(result, source, encoder)
    assert not (tmp_path / "run").exists()


# --- Frozen parts


@pytest.mark.parametrize(
    "parts", [["encoder"], ["encoder.model.bn1", "encoder.model.layer2", "decoder.hidden"], ["decoder"]], ids=str
)
def test_what_is_frozen_stays_bit_for_bit_and_everything_else_is_trained(place, start, tmp_path, parts):
    # Two validations, after each of which the modules are put back into training mode.
    train(
        place / "plain.yaml", f"model.init_from={start}", "model.arch=fcn16s", "model.frozen=" + json.dumps(parts),
        "schedule.kind=constant", "-o", tmp_path / "run",
    )  # fmt: skip
    before = weights(start)
    after = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["model"]
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        inside = any(name.startswith(f"{part}.") for part in parts)
        assert torch.equal(tensor, after[name]) == (inside or "upsample" in name), name
    statistics = [name for name in before if name.endswith(("running_mean", "num_batches_tracked"))]
    assert {torch.equal(before[name], after[name]) for name in statistics} == {True, False}


def test_stages_thaw_what_the_one_before_froze(place, tmp_path):
    overrides = ["stages.one.model.frozen=[encoder]", "trainer.epochs=1"]
    train(place / "staged.yaml", f"model.init_from={place / 'run/one'}", *overrides, "-o", tmp_path / "run")
    start, one, two = (weights(path) for path in (place / "run/one", tmp_path / "run/one", tmp_path / "run/two"))
    for name in start:
        if name.startswith("encoder."):
            assert torch.equal(one[name], start[name]), name
            assert not torch.equal(two[name], start[name]), name


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        ("[encodr]", ["'encodr'", "encoder"]),
        ("[encoder, decoder.hiden]", ["'decoder.hiden'", "decoder.hidden"]),
        ("[encoder, decoder]", ["at least one"]),
    ],
)
def test_what_cannot_be_frozen_is_told_in_one_sentence(place, tmp_path, frozen, expected):
    result = command("train", place / "plain.yaml", f"model.frozen={frozen}", "-o", tmp_path / "run")
    assert_one_sentence(result, "model", *expected)
    assert not (tmp_path / "run").exists()


# --- Whole images


@pytest.mark.parametrize("workers", [0, 1])
def test_without_augmentation_the_network_sees_every_image_whole_and_as_it_is(place, tmp_path, seen, workers):
    preprocessing = "preprocessing={mean: [0.1, 0.2, 0.3], std: [0.5, 0.25, 2]}"
    train(
        place / "plain.yaml", "augmentation=null", "trainer.batch_size=1", f"trainer.workers={workers}",
        preprocessing, "-o", tmp_path / "run",
    )  # fmt: skip
    voc = place / "data/VOCdevkit/VOC2012"
    originals = {f"t{k}": as_it_is(voc, f"t{k}", [0.1, 0.2, 0.3], [0.5, 0.25, 2], "RGB", 1) for k in range(4)}
    assert {label.shape for _, label in originals.values()} == {(40, 56), (48, 36)}
    order = []
    for images, labels in seen["training"]:
        assert (len(images), len(labels)) == (1, 1)
        order += [
            id_
            for id_, (image, label) in originals.items()
            if image.shape == images[0].shape
            and np.allclose(image, images[0].numpy(), atol=1e-5)
            and np.array_equal(label, labels[0].numpy())
        ]
    assert len(order) == len(seen["training"]) == 8
    assert sorted(order[:4]) == sorted(order[4:]) == sorted(originals)
    assert order[:4] != order[4:]  # shuffled anew
    assert [row["step"] for row in rows(tmp_path / "run")] == ["4", "8"]


@pytest.mark.parametrize("recipe", ["plain", "staged"])
def test_whole_images_come_one_at_a_time(place, tmp_path, recipe):
    result = command("train", place / f"{recipe}.yaml", "augmentation=null", "-o", tmp_path / "run")
    assert_one_sentence(result, "trainer.batch_size must be 1", "augmentation is null")
    assert not (tmp_path / "run").exists()


# --- Loss and optimizer


@pytest.fixture
def steps():
    """The optimizer of each epoch, the rates of its groups by part, and what learns."""
    noted = []
    begin = Learner.begin_epoch

    def note(self, epoch):
        begin(self, epoch)
        rates = {(group["name"], rate) for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True)}
        noted.append((type(self.optimizer.optimizer), rates, self))

    with patch.object(Learner, "begin_epoch", note):
        yield noted


@pytest.mark.parametrize(
    ("optimizer", "kind", "rates"),
    [
        ("{kind: adam}", torch.optim.Adam, {("encoder", 3e-4), ("decoder", 1e-3)}),
        (
            "{kind: adam, lr: 0.5, encoder_lr: 0.25, bias_lr_factor: 2}",
            torch.optim.Adam,
            {("encoder", 0.25), ("encoder", 0.5), ("decoder", 0.5), ("decoder", 1.0)},
        ),
        ("{kind: sgd, lr: 0.5, encoder_lr: 0.5}", torch.optim.SGD, {("encoder", 0.5), ("decoder", 0.5)}),
        (
            "{bias_lr_factor: 8}",
            torch.optim.AdamW,
            {("encoder", 1e-3), ("encoder", 8e-3), ("decoder", 1e-2), ("decoder", 8e-2)},
        ),
    ],
)
def test_the_optimizer_is_the_one_asked_for(place, steps, optimizer, kind, rates):
    train(place / "plain.yaml", f"optimizer={optimizer}", "--dry-run")
    assert [noted[:2] for noted in steps] == [(kind, rates)]


def test_the_loss_is_summed_where_that_is_asked_for(place, tmp_path, seen, steps):
    train(place / "plain.yaml", "loss.reduction=sum", "trainer.epochs=1", TOO_LITTLE_TO_MATTER, "-o", tmp_path / "run")
    # Fresh scores are zero, so that each labelled pixel costs the logarithm of the number of classes.
    pixels = [int((labels != 255).sum()) for _, labels in seen["training"]]
    assert len(pixels) == 2
    assert float(rows(tmp_path / "run")[0]["train_loss"]) == pytest.approx(np.mean(pixels) * np.log(21), rel=1e-4)


def test_the_table_shows_the_rate_of_the_recipe_and_not_that_of_the_biases(place, tmp_path):
    rate = ["optimizer={lr: 0.0625, encoder_lr: 0.001, bias_lr_factor: 2}", "schedule.kind=constant"]
    train(place / "plain.yaml", *rate, "trainer.epochs=1", "-o", tmp_path / "run")
    assert float(rows(tmp_path / "run")[0]["lr"]) == 0.0625
