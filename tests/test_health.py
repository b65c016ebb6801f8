"""What goes wrong in training is said at once, once, and with what helps; a healthy run says nothing of it."""

import itertools
import re
import shutil
import time

import numpy as np
import pytest
import torch
from helpers import run_command, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fcn_smp.data.sampling import StepSampler
from fcn_smp.data.storage import Folder
from fcn_smp.losses import SegmentationLoss
from fcn_smp.models.base import Network
from fcn_smp.models.coarse import CoarseScores
from fcn_smp.models.encoder import build_encoder
from fcn_smp.recipe import load_recipe
from fcn_smp.training import checkpoint, health
from fcn_smp.training.health import symptoms
from fcn_smp.training.loaders import training_samples
from fcn_smp.training.parts import build

RECIPE = """
data: {{kind: folder, root: {root}, names: [ground, box, ball], train: {root}/train.txt, val: {root}/val.txt}}
model: {{encoder_name: test_resnet, encoder_weights: null, decoder_hidden_channels: 8}}
augmentation: {{crop: [40, 48], scale: [1, 1], flip: 0, color_jitter: 0}}
optimizer: {{kind: adamw, lr: 0.01, encoder_lr: 0.01}}
schedule: {{kind: constant}}
trainer: {{epochs: 2, batch_size: 2, workers: 0, samples: 0, accelerator: cpu, precision: fp32}}
"""
pytestmark = pytest.mark.usefixtures("undrawn")

WAITING = health.WAITING
STEPS = 4
"""Of an epoch."""
STUCK = "optimizer={kind: sgd, lr: 1e-12, encoder_lr: 1e-12}"
"""Fresh scores are zero, so that everything is called by the first class; and so it stays."""


def scene(box=True, ball=True):
    """Draw a label of a box and a ball on the ground."""
    label = np.zeros((40, 48), np.uint8)
    label[4:24, 6:30] = 1 if box else 0
    label[28:38, 32:46] = 2 if ball else 0
    return label


def write(folder, labels, names=None):
    """Write training images with these labels, two scenes to validate on, and a recipe; return its path."""
    root = folder / "pictures"
    names = names or [f"t{k}" for k in range(len(labels))]
    rng = np.random.default_rng(0)
    for name, label in zip([*names, "v0", "v1"], [*labels, scene(), scene()], strict=True):
        image = 80 * np.where(label == 255, 0, label)[..., None] + rng.integers(0, 60, (*label.shape, 3))
        for kind, pixels in (("images", image), ("labels", label)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / kind / f"{name}.png")
    (root / "train.txt").write_text("\n".join(names))
    (root / "val.txt").write_text("v0\nv1")
    (folder / "mine.yaml").write_text(RECIPE.format(root=root))
    return folder / "mine.yaml"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """How long such small runs wait for data depends on what else the machine does."""
    monkeypatch.setattr(health, "WAITING", 2)


@pytest.fixture
def scenes(tmp_path):
    """A recipe for eight good scenes."""
    return write(tmp_path, [scene()] * 8)


def complaints(recipe, *overrides):
    """Run a recipe, and return what it has to say but for what it trains, its progress and an early end."""
    code, out, err = run_command("train", recipe, *overrides, "-o", recipe.parent / "run")
    assert (code, err) == (0, "")
    *said, _ = out.splitlines()
    return [
        line
        for line in said
        if not line.startswith(("epoch ", "Ended after ", "The best weights ")) and "million weights on" not in line
    ]


def warned(recipe, *overrides):
    """Run a recipe, and return its warnings, each of which should tell what can be done."""
    warnings = complaints(recipe, *overrides)
    for warning in warnings:
        assert warning.startswith("Warning: "), warning
        assert warning.endswith("."), warning
        assert keys_in(warning), warning
    return warnings


def keys_in(sentence):
    """Return the keys of a recipe that a sentence names, all of which should exist."""
    recipe = load_recipe("demo", ["optimizer.kind=sgd"])
    keys = re.findall(r"\b([a-z]+)\.([a-z_]+)\b", sentence.partition(" The batch is in ")[0])
    for section, key in keys:
        assert hasattr(getattr(recipe, section), key), key
    return {f"{section}.{key}" for section, key in keys}


def failure(recipe, *overrides, run="run"):
    """Run a recipe that fails, and return the one sentence that says why."""
    code, _, err = run_command("train", recipe, *overrides, "-o", recipe.parent / run)
    assert code == 2, err
    assert err.startswith("fcn-smp: "), err
    assert err.endswith(".\n"), err
    assert err.count("\n") == 1, err
    return err.strip()


def test_a_healthy_run_has_nothing_to_say(scenes):
    overrides = ["trainer.epochs=6", "trainer.collapse_steps=20", "schedule.warmup_steps=24"]
    assert complaints(scenes, *overrides) == []


# --- Everything is called background


@pytest.mark.parametrize(("patience", "warns"), [(3, True), (2 * STEPS, True), (2 * STEPS + 1, False)])
def test_steps_with_nothing_but_background_are_warned_of_once(scenes, patience, warns):
    warnings = warned(scenes, STUCK, f"trainer.collapse_steps={patience}")
    assert len(warnings) == warns
    if warns:
        assert f"For {patience} steps all pixels have been called ground" in warnings[0]
        assert "optimizer.lr" in keys_in(warnings[0])


@pytest.fixture
def predictions(monkeypatch):
    """Let the network predict in training what a function of the step, from 1, and the images makes of them.

    It maps the images to the numbers of their classes, one for each image.
    """

    def install(predict):
        forward, calls = Network.forward, itertools.count(1)

        def predicting(self, x, upsample=True):
            logits = forward(self, x, upsample)
            if not self.training:
                return logits
            wanted = torch.as_tensor(predict(next(calls), x)).expand(len(x))
            return 0 * logits + torch.nn.functional.one_hot(wanted, logits.shape[1])[:, :, None, None]

        monkeypatch.setattr(Network, "forward", predicting)

    return install


@pytest.mark.parametrize(
    ("others", "warns"),
    [((), True), ((5,), True), ((4, 8), False), ((2, 4, 6, 8), False), (range(1, 9), False)],
    ids=str,
)
def test_the_steps_are_counted_in_a_row(scenes, predictions, others, warns):
    predictions(lambda step, _: 2 if step in others else 0)
    assert len(warned(scenes, "trainer.collapse_steps=4")) == warns


def test_where_there_is_nothing_but_background_it_is_right(tmp_path):
    recipe = write(tmp_path, [scene(box=False, ball=False)] * 8)
    said = complaints(recipe, STUCK, "trainer.collapse_steps=1")
    assert [line for line in said if line.startswith("Warning")] == []


def test_batches_without_objects_do_not_end_the_count(tmp_path):
    recipe = write(tmp_path, [scene()] + [scene(box=False, ball=False)] * 7)
    assert len(warned(recipe, STUCK, "trainer.collapse_steps=10", "trainer.batch_size=1")) == 1


@pytest.mark.parametrize("pieces", [1, 8])
def test_all_parts_of_a_batch_count(tmp_path, predictions, pieces):
    """Half of the images of each batch are black and called background, the other half are not."""
    recipe = write(tmp_path, [scene()] * 8)
    for k in range(4):
        Image.new("RGB", (48, 40)).save(tmp_path / f"pictures/images/t{k}.png")
    predictions(lambda _, images: (images.std((2, 3)).sum(1) > 0).long())
    whole = ["trainer.batch_size=8", "trainer.epochs=3", "trainer.collapse_steps=2"]
    assert warned(recipe, *whole, f"trainer.accumulate={pieces}") == []


# --- The loss is no number


def spoil(monkeypatch, call, spoiled):
    """Change the loss of one call, counted from 1, to what ``spoiled`` makes of loss and logits."""
    forward, calls = SegmentationLoss.forward, itertools.count(1)

    def spoiling(self, logits, *others, **options):
        loss = forward(self, logits, *others, **options)
        return spoiled(loss, logits) if next(calls) == call else loss

    monkeypatch.setattr(SegmentationLoss, "forward", spoiling)


def assert_is_the_batch_of_the_step(file, recipe, step):
    """Compare a file with what the network was given in a step, counted from 1."""
    content = torch.load(file, weights_only=True)
    loaded = load_recipe(recipe)
    parts = build(loaded)
    size = loaded.trainer.batch_size
    [keys] = StepSampler(len(parts.train), size, loaded.seed, range(step - 1, step))
    samples = training_samples(loaded, parts.train, parts.preprocessing)
    assert content["indices"].tolist() == [index for _, index in keys]
    assert content["ids"] == [parts.train.files[index][0] for _, index in keys]
    for image, label, key in zip(content["images"], content["labels"], keys, strict=True):
        assert torch.equal(image, samples[key].images)
        assert torch.equal(label, samples[key].labels)
    return content["ids"]


def assert_finite(file):
    content = checkpoint.load(file)
    assert all(bool(tensor.isfinite().all()) for tensor in content["model"].values()), file
    return content


@pytest.mark.parametrize(("step", "value"), [(1, "nan"), (STEPS, "inf"), (STEPS + 1, "-inf"), (2 * STEPS, "nan")])
def test_a_loss_that_is_no_number_ends_the_run_with_its_step_and_images(scenes, monkeypatch, step, value):
    spoil(monkeypatch, step, lambda loss, _: loss * 0 + float(value))
    message = failure(scenes, "trainer.checkpoint_steps=1", "augmentation.flip=0.5")
    run = scenes.parent / "run"
    file = run / f"not-finite-{step}.pt"
    (run / "recipe.yaml").rename(scenes.parent / "as-it-was-run.yaml")
    images = assert_is_the_batch_of_the_step(file, scenes.parent / "as-it-was-run.yaml", step)
    assert f"The loss became {value} in epoch {1 + (step - 1) // STEPS}, step {step}" in message
    assert f"with the images {', '.join(images)};" in message
    assert str(file) in message
    assert {"optimizer.lr", "trainer.gradient_clip"} <= keys_in(message)
    last = run / "checkpoints/last.ckpt"
    assert last.exists() == (step > 1)
    for path in last.parent.glob("*.ckpt"):
        assert_finite(path)
    if step > 1:
        assert checkpoint.load(last)["state"].step == step - 1
    assert [path.name for path in run.rglob(".*")] == []


def test_a_part_of_a_batch_is_enough(scenes, monkeypatch):
    spoil(monkeypatch, 6, lambda loss, _: loss * float("nan"))
    message = failure(scenes, "trainer.accumulate=2")
    run = scenes.parent / "run"
    assert len(assert_is_the_batch_of_the_step(run / "not-finite-3.pt", run / "recipe.yaml", 3)) == 2
    assert "in epoch 1, step 3" in message


def test_a_rate_that_is_far_too_large_is_found_out(scenes):
    message = failure(scenes, "optimizer={kind: sgd, lr: 1e30, encoder_lr: 1e30}")
    run = scenes.parent / "run"
    [file] = run.glob("not-finite-*.pt")
    step = int(file.stem.rpartition("-")[2])
    assert f"step {step}, with the images {', '.join(assert_is_the_batch_of_the_step(file, scenes, step))};" in message


def test_a_dry_run_whose_loss_is_no_number_leaves_nothing(scenes, monkeypatch):
    spoil(monkeypatch, 2, lambda loss, _: loss * float("nan"))
    monkeypatch.chdir(scenes.parent)
    before = tree(scenes.parent)
    code, _, err = run_command("train", scenes, "--dry-run")
    assert (code, err.count("\n")) == (2, 1), err
    assert "The loss became nan in epoch 1, step 2, with the images t" in err
    assert ".pt" not in err
    assert tree(scenes.parent) == before


def test_names_with_commas_are_kept_apart(tmp_path, monkeypatch):
    recipe = write(tmp_path, [scene()] * 2, names=["left, right", "up, down"])
    spoil(monkeypatch, 1, lambda loss, _: loss * float("nan"))
    failure(recipe)
    assert_is_the_batch_of_the_step(tmp_path / "run/not-finite-1.pt", recipe, 1)


def without_gradient(loss, logits):
    """Return the loss, finite as it is, with a gradient that is NaN."""
    return loss + (0 * logits.scores).sum().sqrt()


def test_weights_that_are_no_numbers_are_not_kept(scenes, monkeypatch):
    spoil(monkeypatch, 2, without_gradient)
    failure(scenes, "trainer.checkpoint_steps=1")
    assert_finite(scenes.parent / "run/checkpoints/last.ckpt")


def test_a_run_does_not_end_well_with_weights_that_are_no_numbers(scenes, monkeypatch):
    spoil(monkeypatch, STEPS, without_gradient)
    failure(scenes, "trainer.epochs=1")


# --- What does not fit


@pytest.mark.parametrize(("box", "ball"), [(True, True), (True, False), (False, False)])
def test_classes_without_a_pixel_are_named(tmp_path, box, ball):
    recipe = write(tmp_path, [scene(box, ball)] * 8)
    missing = [name for name, there in (("box", box), ("ball", ball)) if not there]
    said = complaints(recipe)
    assert len(said) == bool(missing)
    for line in said:
        assert str(tmp_path / "pictures/train.txt") in line
        assert line.endswith(f" not a pixel of {', '.join(missing)}.")


def test_a_class_in_a_single_image_is_not_missed(tmp_path):
    assert complaints(write(tmp_path, [scene(ball=k == 3) for k in range(8)])) == []


def encoder(name="test_resnet"):
    return build_encoder(name, in_channels=3, depth=5, weights=None).state_dict()


def halved(state):
    return dict(list(state.items())[::2])


def wider(state):
    return {name: torch.cat([tensor, tensor]) if tensor.ndim == 4 else tensor for name, tensor in state.items()}


def inside(state):
    return {f"encoder.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "state",
    [
        lambda: encoder("test_efficientnet"),
        lambda: halved(encoder()),
        lambda: wider(encoder()),
        lambda: inside(encoder()),
        dict,
    ],
    ids=["of another network", "half of them", "wider", "a whole network", "none"],
)
def test_weights_that_do_not_fit_the_encoder_are_refused(scenes, state):
    file = scenes.parent / "weights.pth"
    torch.save(state(), file)
    message = failure(scenes, f"model.encoder_weights={file}")
    assert str(file) in message
    assert not (scenes.parent / "run").exists()


def test_weights_that_fit_are_taken_without_a_word(scenes):
    file = scenes.parent / "weights.pth"
    torch.save({**encoder(), "classifier.weight": torch.zeros(10, 96)}, file)
    assert complaints(scenes, f"model.encoder_weights={file}") == []


# --- The schedule


@pytest.mark.parametrize(("warmup", "reached"), [(0, None), (2 * STEPS, None), (2 * STEPS + 1, "89%"), (80, "10%")])
def test_a_warmup_that_is_longer_than_the_run_is_warned_of(scenes, warmup, reached):
    warnings = warned(scenes, f"schedule.warmup_steps={warmup}")
    assert len(warnings) == (reached is not None)
    if reached:
        assert f"no further than {reached} " in warnings[0]
        assert f"the {2 * STEPS} steps" in warnings[0]
        assert keys_in(warnings[0]) == {"schedule.warmup_steps"}


def test_a_dry_run_measures_the_warmup_by_the_run(scenes):
    code, out, err = run_command("train", scenes, f"schedule.warmup_steps={2 * STEPS}", "--dry-run")
    assert (code, err) == (0, "")
    assert "Warning" not in out


# --- Void


def hidden(rows=None):
    """Draw a label that is void, but for its first rows."""
    label = np.full((40, 48), 255, np.uint8)
    label[: rows or 0] = scene()[: rows or 0]
    return label


@pytest.mark.parametrize(("void", "warns"), [(1, False), (2, True), (9, True)])
def test_many_crops_without_a_label_are_warned_of_once(tmp_path, void, warns):
    recipe = write(tmp_path, [hidden()] * void + [scene()] * (10 - void))
    said = complaints(recipe, "trainer.batch_size=10")
    share = [line for line in said if "crops had no" in line]
    assert len(share) == warns
    if warns:
        assert share[0].startswith(f"Warning: In epoch 1 {void} of 10 crops had no labelled pixel")
        assert keys_in(share[0]) == {"augmentation.crop", "augmentation.class_balance"}
    assert len([line for line in said if line.startswith("Warning")]) == warns


def test_crops_that_miss_the_labels_are_counted(tmp_path):
    recipe = write(tmp_path, [hidden(rows=3)] * 8)
    crop = "augmentation.crop=16"
    loaded = load_recipe(recipe, [crop])
    parts = build(loaded)
    samples = training_samples(loaded, parts.train, parts.preprocessing)
    void = sum(bool((samples[0, index].labels == 255).all()) for index in range(8))
    assert 1 < void < 8
    said = complaints(recipe, crop)
    assert len([line for line in said if f"In epoch 1 {void} of 8 crops had no labelled pixel" in line]) == 1


def test_each_epoch_counts_its_own(tmp_path):
    recipe = write(tmp_path, [hidden(rows=20)] * 10)
    crop = ["augmentation.crop=16", "trainer.batch_size=10"]
    loaded = load_recipe(recipe, crop)
    parts = build(loaded)

    def void(seed, epoch):
        samples = training_samples(loaded.model_copy(update={"seed": seed}), parts.train, parts.preprocessing)
        return sum(bool((samples[epoch, index].labels == 255).all()) for index in range(10))

    later = next(seed for seed in range(1000) if (void(seed, 0), void(seed, 1)) == (0, 2))
    said = complaints(recipe, *crop, f"seed={later}")
    assert len([line for line in said if "In epoch 2 2 of 10 crops had no labelled pixel" in line]) == 1


def test_a_step_without_labels_is_told_with_what_helps(tmp_path):
    said = complaints(write(tmp_path, [scene(), hidden(), hidden()]), "trainer.batch_size=1")
    order = np.random.default_rng((0, 0)).permutation(3).tolist()
    first = min(order.index(1), order.index(2))
    [warning] = [line for line in said if "No crop of step" in line]
    assert warning.startswith(f"Warning: No crop of step {first + 1} has a labelled pixel (t{order[first]})")
    assert keys_in(warning)


# --- Waiting for data


@pytest.fixture
def slow(monkeypatch):
    """Let things take so many seconds: to read a file of an image of a split, by its first letter; a training step."""

    def install(step=0.0, **files):
        read, forward = Folder.read, Network.forward

        def reading(self, path):
            time.sleep(files.get(path.rpartition("/")[2][0], 0))
            return read(self, path)

        def passing(self, x, upsample=True):
            time.sleep(step * self.training)
            return forward(self, x, upsample)

        monkeypatch.setattr(health, "WAITING", WAITING)
        monkeypatch.setattr(Folder, "read", reading)
        monkeypatch.setattr(Network, "forward", passing)

    return install


@pytest.mark.parametrize(
    ("seconds", "overrides", "warns"),
    [
        ({"t": 0.05}, ["trainer.epochs=2"], True),
        ({"t": 0.03, "v": 0.3}, [], True),
        ({"t": 0.05, "step": 0.3}, ["data.cache=ram"], False),
        ({"v": 0.05, "step": 0.3}, [], False),
        ({"step": 0.3}, [], False),
    ],
    ids=["slow data", "slow validation too", "data in memory", "slow validation", "slow network"],
)
def test_waiting_for_data_is_warned_of_once(tmp_path, slow, seconds, overrides, warns):
    recipe = write(tmp_path, [scene()] * 4)
    slow(**seconds)
    warnings = warned(recipe, "trainer.epochs=1", *overrides)
    assert len(warnings) == warns
    if warns:
        assert int(re.search(r"In epoch 1 (\d+)% of the time", warnings[0])[1]) > 20
        assert keys_in(warnings[0]) == {"trainer.workers", "data.cache"}


# --- What a step is judged by


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_symptoms_are_those_of_the_pixels_looked_at(data):
    count, classes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    size = data.draw(st.tuples(st.integers(1, 18), st.integers(1, 18)))
    # Few values, so that many are equal; of equal ones the first class is the prediction.
    values = st.sampled_from(data.draw(st.sampled_from([[0], [0, 1], [-1, 0, 1]])))
    logits = data.draw(hnp.arrays(np.float32, (count, classes, *size), elements=values, fill=values))
    numbers = st.sampled_from(data.draw(st.sampled_from([[255], [0], [0, 255], [0, 255, classes - 1]])))
    labels = data.draw(hnp.arrays(np.int64, (count, *size), elements=numbers, fill=numbers))

    void = sum(bool((label == 255).all()) for label in labels)
    looked_at = [(n, y, x) for n in range(count) for y in range(0, size[0], 8) for x in range(0, size[1], 8)]
    something = any(labels[place] not in (0, 255) for place in looked_at)
    if classes == 1:  # a single score is held against 0
        background = all(logits[n, 0, y, x] <= 0 for n, y, x in looked_at)
    else:
        background = all(logits[n, :, y, x].argmax() == 0 for n, y, x in looked_at)
    result = symptoms(CoarseScores(torch.from_numpy(logits)), torch.from_numpy(labels))
    assert result.tolist() == [void, not background, something]


def test_symptoms_of_pixels_between_those_looked_at_go_unnoticed():
    logits, labels = torch.zeros(1, 2, 16, 16), torch.zeros(1, 16, 16, dtype=torch.int64)
    labels[0, 1:8, 1:8] = 1
    assert symptoms(CoarseScores(logits), labels).tolist() == [0, 0, 0]
    labels[0, 8, 8] = 1
    assert symptoms(CoarseScores(logits), labels).tolist() == [0, 0, 1]
    logits[0, 1, 1, 1] = 1
    assert symptoms(CoarseScores(logits), labels).tolist() == [0, 0, 1]
    logits[0, 1, 0, 8] = 1
    assert symptoms(CoarseScores(logits), labels).tolist() == [0, 1, 1]


# --- What cannot be right


def refused(recipe, run, part, *options):
    code, _, err = run_command("train", recipe, *options, "-o", run)
    assert (code, err.count("\n"), part in err) == (2, 1, True), err


@pytest.mark.parametrize("weights", ["[0, 0, 0]", "{ground: 0, box: 0, ball: 0}"])
def test_class_weights_that_leave_nothing_to_learn_are_refused(tmp_path, weights):
    recipe = write(tmp_path, [scene()] * 4)
    refused(recipe, tmp_path / "run", "loss.class_weights are all 0", f"loss.class_weights={weights}")


def test_labels_without_a_pixel_are_refused(tmp_path):
    recipe = write(tmp_path, [np.full_like(scene(), 255)] * 4)
    refused(recipe, tmp_path / "run", "no labelled pixel; fcn-smp data check")
    assert not (tmp_path / "run").exists()


def test_other_data_are_not_taken_for_those_a_run_was_begun_with(tmp_path):
    recipe, run = write(tmp_path, [scene()] * 4), tmp_path / "run"
    run_command("train", recipe, "trainer.epochs=1", "-o", run)
    shutil.rmtree(run / "model")
    label = next((tmp_path / "pictures").rglob("t0.png"))
    Image.fromarray(np.array(Image.open(label))[::-1].copy()).save(label)
    refused(recipe, run, "labels of data.train have changed", "trainer.epochs=1", "--resume")
