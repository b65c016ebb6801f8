"""What fcn-smp eval and fcn_smp.evaluate give: scores against straight counts, files, comparisons, the VOC server."""

import csv
import io
import json
import os
import shutil
import signal
import tarfile
import threading
import time

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from helpers import leave_out_drawings, pack, run_command, write_voc
from PIL import Image

import fcn_smp
from fcn_smp import overlap
from fcn_smp.data.voc import VOCSegmentation, voc_palette
from fcn_smp.errors import UserError
from fcn_smp.evaluation import Counts, Evaluation, count, evaluate
from fcn_smp.inference import Inference
from fcn_smp.models.encoder import encoder_preprocessing
from fcn_smp.recipe import load_recipe
from fcn_smp.score_files import markdown, means, write_scores
from fcn_smp.segmenter import Segmenter

TINY = """\
data: {{kind: voc, year: 2012, root: "{root}", train: {lists}/train.txt, val: {lists}/val.txt}}
model: {{encoder_name: tu-test_resnet.r160_in1k, encoder_weights: null, init_from: "{root}/start"}}
augmentation: {{crop: 32}}
trainer: {{epochs: 1, batch_size: 2, workers: 0, accelerator: cpu, precision: fp32}}
optimizer: {{lr: 1.0e-6, encoder_lr: 1.0e-6}}
"""
VAL = [f"v{k}" for k in range(15)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run and another model, both of which find classes at random."""
    root = tmp_path_factory.mktemp("place")
    voc = write_voc(root, 2012, [f"t{k}" for k in range(2)], VAL)
    for seed, name in enumerate(("start", "other")):
        torch.manual_seed(seed)
        options = {"encoder_name": "tu-test_resnet.r160_in1k", "encoder_weights": None, "classes": 21}
        model = smp.create_model("fcn8s", **options)
        for score in model.decoder.skip_scores:  # the finer taps, which vary within so small an image
            torch.nn.init.normal_(score.weight)
        preprocessing = encoder_preprocessing(options["encoder_name"])
        Segmenter(model, preprocessing, VOCSegmentation.classes, voc_palette()).save(root / name)
    (root / "tiny.yaml").write_text(TINY.format(root=root, lists=voc / "ImageSets/Segmentation"))
    code, _, error = run_command("train", root / "tiny.yaml", "--output", root / "run")
    assert code == 0, error
    shutil.copytree(root / "run/eval/val", root / "left")  # tests put others in their place
    return root


@pytest.fixture(autouse=True)
def _undrawn(place, monkeypatch):
    """Draw matrices of confusion for that run alone, and where a test takes this back."""
    leave_out_drawings(monkeypatch)


@pytest.fixture(scope="module")
def truth_and_prediction(place):
    """Label and prediction of each image, by straight means."""
    segmenter = Segmenter.load(place / "run")
    voc = place / "VOCdevkit/VOC2012"
    pairs = {}
    for id_ in VAL:
        image = np.array(Image.open(voc / f"JPEGImages/{id_}.jpg"))
        pairs[id_] = np.array(Image.open(voc / f"SegmentationClass/{id_}.png")), segmenter.predict(image)
    return pairs


def straight_iu(pairs):
    """Mean IU of pairs of truth and prediction, by sets of pixels."""
    ius = []
    for k in range(21):
        hits = sum(((t == k) & (p == k)).sum() for t, p in pairs)
        union = sum((((t == k) | (p == k)) & (t != 255)).sum() for t, p in pairs)
        if union:
            ius.append(hits / union)
    return np.mean(ius)


def test_the_api_and_the_command_give_the_same_scores(place, truth_and_prediction, tmp_path):
    found = fcn_smp.evaluate(place / "run")
    code, out, _ = run_command("eval", place / "run", "--json", "-o", tmp_path / "scores")
    assert code == 0
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "scores/scores.json").read_text())
    assert printed == json.loads(json.dumps(found.summary(model=str(place / "run"), split=printed["split"])))
    assert printed["images"] == 15
    expected = straight_iu(truth_and_prediction.values())
    assert found.mean_iu == pytest.approx(expected, abs=1e-12)
    low, high = found.interval
    assert low < found.mean_iu + 0.02
    assert low < high
    assert printed["mean_iu_interval"] == [round(low, 6), round(high, 6)]


def test_the_api_writes_what_the_command_writes(place, tmp_path):
    found = fcn_smp.evaluate(place / "run")
    write_scores(found, found.summary(), tmp_path)
    for name in ("scores.md", "per_class.csv", "images.csv", "confusion.csv"):
        assert (tmp_path / name).read_bytes() == (place / "run/eval/val" / name).read_bytes(), name


def test_the_end_of_a_run_leaves_what_eval_leaves(place, tmp_path, monkeypatch):
    monkeypatch.undo()
    assert run_command("eval", place / "run", "-o", tmp_path / "again")[0] == 0
    own = place / "left"
    names = {path.relative_to(own).as_posix() for path in own.rglob("*") if path.is_file()}
    assert {
        "scores.json", "scores.md", "per_class.csv", "images.csv", "confusion.csv", "confusion.png", "worst.png",
        "best.png",
    } <= names  # fmt: skip
    for name in names:
        before, after = (folder / name for folder in (own, tmp_path / "again"))
        assert before.read_bytes() == after.read_bytes(), name


def test_each_image_has_its_own_scores(place, truth_and_prediction):
    with (place / "run/eval/val/images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == VAL
    for row in rows:
        truth, prediction = truth_and_prediction[row["image"]]
        labelled = truth != 255
        assert float(row["mean_iu"]) == pytest.approx(straight_iu([(truth, prediction)]), abs=1e-6)
        accuracy = (truth == prediction)[labelled].mean()
        assert float(row["pixel_accuracy"]) == pytest.approx(accuracy, abs=1e-6)


def test_the_confusion_matrix_counts_pixels(place, truth_and_prediction):
    with (place / "run/eval/val/confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = np.array([[int(row[name]) for name in VOCSegmentation.classes] for row in rows])
    expected = np.zeros((21, 21), int)
    for truth, prediction in truth_and_prediction.values():
        np.add.at(expected, (truth[truth != 255], prediction[truth != 255]), 1)
    assert np.array_equal(found, expected)
    assert json.loads((place / "run/eval/val/scores.json").read_text())["confusion"] == expected.tolist()


def test_samples_hold_the_worst_and_the_best_images(place, truth_and_prediction):
    folder = place / "run/eval/val/samples"
    numbers = sorted({int(path.name[:5]) for path in folder.iterdir()})
    ranking = sorted(range(15), key=lambda k: straight_iu([truth_and_prediction[VAL[k]]]))
    assert {*ranking[:4], *ranking[-4:], 0, 14} <= set(numbers)
    assert len(list(folder.iterdir())) == 3 * len(numbers)
    for number in numbers:
        truth, prediction = truth_and_prediction[VAL[number]]
        for name, label in (("truth", truth), ("prediction", prediction)):
            picture = Image.open(folder / f"{number:05d}_{name}.png")
            assert picture.mode == "P"
            assert np.array_equal(np.array(picture), label)
        assert Image.open(folder / f"{number:05d}_image.jpg").size == truth.shape[::-1]


def test_tables_in_the_terminal_and_in_markdown_hold_every_score(place):
    code, out, _ = run_command("eval", place / "run")
    text = (place / "run/eval/val/scores.md").read_text()
    summary = json.loads((place / "run/eval/val/scores.json").read_text())
    assert code == 0
    for value in (summary["mean_iu"], summary["boundary"]["f1"], *summary["boundary"]["trimap_iu"].values()):
        assert f"{100 * value:.2f}" in out
        assert f"{100 * value:.2f}" in text
    assert text.count("\n| ") == 21 + 11 + 1  # classes, scores and the second header
    assert "worst.png" in out


def test_markdown_shows_names_of_classes_as_they_are_and_the_terminal_too(place):
    summary = json.loads((place / "run/eval/val/scores.json").read_text())
    summary["per_class"][1]["class"] = "a|b_c *d*"
    numbers = {"class": "a|b_c *d*", "precision": 0.5, "recall": 0.5, "f1": 0.5, "f0.5": 0.5, "f2": 0.5}
    text = markdown({**summary, "binary": numbers})
    assert "| a\\|b\\_c \\*d\\* | " in text
    assert "| Recall of a\\|b\\_c \\*d\\* | 50.00 |" in text
    assert dict(means({**summary, "binary": numbers}))["Recall of a|b_c *d*"] == "50.00"


@pytest.mark.parametrize(("images", "said"), [(1, "With 1 image, fewer"), (9, "With 9 images, fewer"), (10, None)])
def test_an_interval_of_few_images_is_not_to_be_trusted(place, tmp_path, images, said):
    (tmp_path / "few.txt").write_text("\n".join(VAL[:images]) + "\n")
    code, out, _ = run_command("eval", place / "run", "--split", tmp_path / "few.txt", "-o", tmp_path / "scores")
    assert code == 0
    for text in (out, (tmp_path / "scores/scores.md").read_text()):
        assert ("the interval is too narrow to be trusted" in text) == (said is not None)
        assert (said or "") in text


def test_views_and_windows_are_told_with_the_scores(place, tmp_path):
    options = ["--tta", "flip,scales=0.75,1", "--window", "none", "--json", "-o", tmp_path]
    code, out, _ = run_command("eval", place / "run", *options)
    assert code == 0
    assert json.loads(out)["inference"] == {"flip": True, "scales": [0.75, 1.0], "windowed": 0}
    inference = Inference(flip=True, scales=(0.75, 1.0))
    assert json.loads(out)["mean_iu"] == round(evaluate(place / "run", inference=inference).mean_iu, 6)
    plain = json.loads((place / "run/eval/val/scores.json").read_text())
    assert "inference" not in plain
    assert plain["confusion"] != json.loads(out)["confusion"]


def test_a_model_against_itself_differs_by_nothing(place, tmp_path):
    code, out, _ = run_command("eval", place / "run", "--against", place / "run/model", "--json", "-o", tmp_path)
    assert code == 0
    other = json.loads(out)["against"]
    assert (other["difference"], other["interval"], other["p_value"]) == (0, [0, 0], 1)
    assert all(row["difference"] in (0, None) for row in other["per_class"])


def test_the_sign_of_a_difference_says_which_is_better(place, tmp_path):
    scores = {}
    for first, second in (("run", "other"), ("other", "run")):
        options = ["--recipe", place / "tiny.yaml", "--against", place / second, "--json", "-o", tmp_path / first]
        scores[first] = json.loads(run_command("eval", place / first, *options)[1])
        difference = scores[first]["mean_iu"] - scores[first]["against"]["mean_iu"]
        assert scores[first]["against"]["difference"] == pytest.approx(difference, abs=2e-6)
    assert scores["run"]["against"]["difference"] == -scores["other"]["against"]["difference"] != 0
    assert scores["run"]["against"]["p_value"] == scores["other"]["against"]["p_value"]
    code, out, _ = run_command("eval", place / "run", "--against", place / "other", "-o", tmp_path / "printed")
    assert code == 0
    assert f"{100 * scores['run']['against']['difference']:+.2f} points" in out
    assert "p = " in out


def test_models_of_other_images_are_not_compared(place):
    whole = evaluate(place / "run")
    segmenter, data = Segmenter.load(place / "run"), load_recipe(place / "run/recipe.yaml").data
    train = data.load(data.train)
    other = Evaluation.of(count(segmenter, train), segmenter, train, Inference())
    with pytest.raises(UserError, match="same images"):
        whole.compare(other)


def test_processes_that_share_the_images_count_the_same(place):
    segmenter, data = Segmenter.load(place / "run"), load_recipe(place / "run/recipe.yaml").data
    val = data.load(data.val)
    whole, *parts = (count(segmenter, val, share) for share in (None, range(0, 15, 2), range(1, 15, 2)))
    for total, *shares in zip(whole.buffers(), *(part.buffers() for part in parts), strict=True):
        assert np.allclose(total, sum(shares), rtol=1e-12)


def test_the_archive_for_the_voc_server_has_its_layout(place, truth_and_prediction, tmp_path):
    voc = place / "VOCdevkit/VOC2012"
    (voc / "ImageSets/Segmentation/test.txt").write_text("\n".join(VAL[:3]) + "\n")
    for name in ("results.tgz", "again.tgz"):
        code, out, _ = run_command("eval", place / "run", "--voc-server", tmp_path / name)
        assert (code, "3 images of test" in out) == (0, True)
    with tarfile.open(tmp_path / "results.tgz") as archive:
        names = archive.getnames()
        assert names == [f"results/VOC2012/Segmentation/comp6_test_cls/{id_}.png" for id_ in VAL[:3]]
        for id_, name in zip(VAL, names, strict=False):
            picture = Image.open(io.BytesIO(archive.extractfile(name).read()))
            assert picture.mode == "P"
            assert np.array_equal(np.array(picture), truth_and_prediction[id_][1])
    code, _, error = run_command("eval", place / "run", "--voc-server", tmp_path / "results.tgz")
    assert (code, "already" in error) == (2, True)


def test_the_voc_server_needs_no_labels(place, tmp_path):
    """VOC's archive of test images has neither labels nor a folder for them."""
    images = tmp_path / "unpacked/VOCdevkit/VOC2012"
    (images / "JPEGImages").mkdir(parents=True)
    (images / "ImageSets/Segmentation").mkdir(parents=True)
    (images / "ImageSets/Segmentation/test.txt").write_text("a\n")
    Image.new("RGB", (20, 30), "green").save(images / "JPEGImages/a.jpg")
    archive = pack(tmp_path / "unpacked/VOCdevkit", tmp_path / "VOC2012test.tar", "VOCdevkit")
    for number, root in enumerate((tmp_path / "unpacked", archive)):
        options = [f"data.root={root}", "--voc-server", tmp_path / f"{number}.tgz"]
        assert run_command("eval", place / "run", *options)[0] == 0
        with tarfile.open(tmp_path / f"{number}.tgz") as written:
            assert [member.name.rpartition("/")[2] for member in written] == ["a.png"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--voc-server", "{tmp}/r.zip"], "r.zip"),
        (["--voc-server", "{tmp}/r.tgz", "--json"], "--json"),
        (["--split", "{tmp}/none.txt"], "none.txt is not there"),
        (["--split", "{voc}/paths.txt"], "should name ids"),
        (["--voc-server", "{tmp}/r.tgz", "--split", "tset"], "tset"),
        (["--voc-server", "{tmp}/r.tgz", "--recipe", "demo"], "demo"),
        (["--voc-server", "{tmp}/r.tgz", "data.root={tmp}"], "JPEGImages"),
        (["--against", "{tmp}/nothing"], "nothing"),
        (["--tta", "flop"], "flop"),
        (["--window", "12"], "12"),
        (["--device", "cuda:77"], "cuda:77"),
    ],
)
def test_mistakes_are_told_in_a_sentence(place, tmp_path, options, expected):
    (place / "paths.txt").write_text("images/v0.jpg\n")
    (place / "VOCdevkit/VOC2012/ImageSets/Segmentation/test.txt").write_text("\n".join(VAL[:3]) + "\n")
    code, _, error = run_command("eval", place / "run", *(option.format(tmp=tmp_path, voc=place) for option in options))
    assert (code, expected in error, len(error.strip().splitlines())) == (2, True, 1), error
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_there_is_no_model_of_the_hub(place):
    code, _, error = run_command("eval", place / "nothing")
    assert (code, "is not there" in error) == (2, True)
    with pytest.raises(UserError, match="is not there"):
        evaluate(place / "nothing", load_recipe("demo").data.load("val"))


def test_a_model_without_a_recipe_needs_a_data_set(place):
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        evaluate(place / "run/model")
    with pytest.raises(UserError, match="classes"):
        evaluate(place / "run/model", load_recipe("demo").data.load("val"))


def test_a_list_that_names_an_image_twice_is_told(place, tmp_path):
    (tmp_path / "twice.txt").write_text("v0\nv1\nv0\n")
    with pytest.warns(UserWarning, match="v0 more than once"):
        found = evaluate(place / "run", split=str(tmp_path / "twice.txt"))
    assert list(found.ids) == ["v0", "v1", "v0"]


def test_scores_of_other_views_or_data_leave_the_runs_own(place, tmp_path):
    own = (place / "run/eval/val/scores.json").read_bytes()
    (tmp_path / "mine.yaml").write_text(f"extends: {place / 'tiny.yaml'}\n")
    for options, folder in ((["--tta", "flip"], "val_tta"), (["--recipe", tmp_path / "mine.yaml"], "mine_val")):
        assert run_command("eval", place / "run", *options)[0] == 0
        assert (place / f"run/eval/{folder}/scores.json").is_file()
    assert (place / "run/eval/val/scores.json").read_bytes() == own


def test_an_earlier_evaluation_is_replaced_and_that_is_told(place, tmp_path):
    texts = [run_command("eval", place / "run", "-o", tmp_path / "scores")[1] for _ in range(2)]
    assert ["in place of an earlier evaluation" in text for text in texts] == [False, True]


def test_networks_of_smp_that_take_no_odd_sizes_are_scored_and_saved(place, tmp_path):
    model = smp.create_model("deeplabv3plus", encoder_name="resnet18", encoder_weights=None, classes=21)
    segmenter = Segmenter(model, encoder_preprocessing("resnet18"), VOCSegmentation.classes)
    data = load_recipe(place / "run/recipe.yaml").data
    found = evaluate(segmenter, data.load(data.val))
    assert found.counts[:, 1].sum() == found.confusion.sum() > 0
    segmenter.save(tmp_path / "model")
    again = evaluate(tmp_path / "model", data.load(data.val))
    assert np.array_equal(again.confusion, found.confusion)


def test_a_segmenter_checks_what_it_is_given(place):
    model = Segmenter.load(place / "run").model
    preprocessing = encoder_preprocessing("resnet18")
    with pytest.raises(ValueError, match="21 classes, but 2"):
        Segmenter(model, preprocessing, ["a", "b"])
    with pytest.raises(ValueError, match="palette"):
        Segmenter(model, preprocessing, VOCSegmentation.classes, [1, 2, 3])
    segmenter = Segmenter(model, preprocessing, VOCSegmentation.classes, [(1, 2, 3)])
    assert segmenter.palette.shape == (256, 3)
    assert segmenter.palette[0].tolist() == [1, 2, 3]


# --- Threads beside the network


class Slow:
    """A data set that is slow to read where it is told to be, has damaged images, and knows what was asked for."""

    def __init__(self, place, slow=(), damaged=()):
        data = load_recipe(place / "run/recipe.yaml").data
        self.inner = data.load(data.val)
        self.classes, self.files = self.inner.classes, self.inner.files
        self.slow, self.damaged, self.asked = slow, damaged, []

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        self.asked.append(index)
        time.sleep(0.2 * (index in self.slow))
        if index in self.damaged:
            raise UserError(f"{index} is damaged.")
        return self.inner[index]


def test_threads_count_to_the_last_bit_what_one_image_after_the_other_does(place):
    segmenter, slow = Segmenter.load(place / "run"), Slow(place, slow=(0, 4))
    expected = Counts(15, 21)
    for index in range(15):
        sample = slow.inner[index]
        expected.update(index, segmenter.predict(sample.image), sample.label)
    steps = []
    found = count(segmenter, slow, advance=lambda: steps.append(len(slow.asked)))
    assert len(steps) == 15
    for one, other in zip(found.buffers(), expected.buffers(), strict=True):
        assert torch.equal(one, other)


def test_the_first_damaged_image_is_told_though_another_is_read_before_it(place):
    with pytest.raises(UserError, match="3 is damaged"):
        count(Segmenter.load(place / "run"), Slow(place, slow=(3,), damaged=(3, 5)))


def test_few_images_wait_however_slowly_they_are_measured(place, monkeypatch):
    segmenter, slow = Segmenter.load(place / "run"), Slow(place)
    update, measured, most = Counts.update, [], []

    def slow_update(self, *arguments):
        time.sleep(0.05)
        most.append(len(slow.asked) - len(measured))
        update(self, *arguments)
        measured.append(self)

    monkeypatch.setattr(Counts, "update", slow_update)
    monkeypatch.setattr(overlap, "MEMORY", 1)
    count(segmenter, slow)
    assert (len(measured), max(most) <= 3) == (15, True)


def test_ctrl_c_does_not_wait_for_images_that_are_queued(place, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted, begun = threading.Event(), []

    def interrupting_update(self, *arguments):
        begun.append(self)
        if len(begun) == 1:
            time.sleep(0.3)  # others are queued by then
            os.kill(os.getpid(), signal.SIGINT)
            interrupted.set()
        interrupted.wait()
        time.sleep(0.2)

    monkeypatch.setattr(Counts, "update", interrupting_update)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            count(Segmenter.load(place / "run"), Slow(place))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(begun) < 15


def test_an_error_while_images_are_measured_is_not_lost(place, monkeypatch):
    def fail(*_):
        raise RuntimeError("in a thread")

    monkeypatch.setattr(Counts, "update", fail)
    with pytest.raises(RuntimeError, match="in a thread"):
        count(Segmenter.load(place / "run"), Slow(place))
