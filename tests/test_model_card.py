"""The model card: what the Hub reads of it, what it says, and that its Python works."""

import re
import shlex

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from fcn_smp.data.voc import voc_palette
from fcn_smp.evaluation import Counts, Evaluation
from fcn_smp.model_card import Split, model_card
from fcn_smp.models.encoder import Preprocessing
from fcn_smp.recipe import load_recipe
from fcn_smp.segmenter import Segmenter
from fcn_smp.training.record import environment

CLASSES = ("sky", "road|street_*new*", "<b>car</b> `x` [y](z)")
SPLITS = (Split("train", 209, "12ab" * 16), Split("val", 1, "34cd" * 16))


@pytest.fixture
def summary():
    """Scores of three classes, of which the last one never occurs."""
    counts = Counts(1, 3)
    counts.update(0, np.array([[0, 0, 0, 1, 1]], np.uint8), np.array([[0, 0, 1, 1, 1]], np.uint8))
    evaluation = Evaluation(
        CLASSES, voc_palette(), ["x"], counts.confusion.scores(), counts.confusion.counts.numpy(),
        counts.images.numpy(), counts.boundary.scores(), protocols={}, about={},
    )  # fmt: skip
    return evaluation.summary(model="/home/me/run", split="val")


def card(summary, overrides=(), *, command=("fcn-smp", "train", "demo"), starts=None, source="demo"):
    start = {**environment(), "command": shlex.join(command)}
    recipe = load_recipe(source, overrides)
    return model_card(recipe, summary, starts or [start], SPLITS, epochs=11, best_epoch=9)


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_hub_finds_the_scores_in_the_front_matter(summary):
    front = front_matter(card(summary))
    assert front["library_name"] == "segmentation-models-pytorch"
    assert front["pipeline_tag"] == "image-segmentation"
    assert {"fcn_smp", "fcn8s"} <= set(front["tags"])
    assert "license" not in front  # the data decides about that of the weights
    results = ModelCard(card(summary)).data.eval_results
    assert {result.metric_type: result.metric_value for result in results} == {
        "mean_iou": summary["mean_iu"],
        "pixel_accuracy": summary["pixel_accuracy"],
        "mean_accuracy": summary["mean_accuracy"],
        "frequency_weighted_iou": summary["frequency_weighted_iu"],
    }
    assert {(result.task_type, result.dataset_type, result.dataset_split) for result in results} == {
        ("image-segmentation", "demo", "val")
    }


def test_scores_that_nothing_defines_are_left_to_the_reader(summary):
    undefined = {key: None if isinstance(value, float) else value for key, value in summary.items()}
    text = card(undefined)
    assert "model-index" not in front_matter(text)
    assert "| Mean IU | - |" in text
    assert ModelCard(text).data.eval_results is None


def test_the_tables_hold_the_numbers_of_the_summary(summary):
    text = card(summary)
    for key, name in (("mean_iu", "Mean IU"), ("frequency_weighted_iu", "Frequency-weighted IU")):
        assert f"| {name} | {100 * summary[key]:.2f} % |" in text
    first, second, third = re.findall(r"^\| \d+ \| .*", text, re.MULTILINE)
    assert first == f"| 0 | sky | {200 / 3:.2f} % | 100.00 % | 2 |"
    assert second == rf"| 1 | road\|street\_\*new\* | {200 / 3:.2f} % | {200 / 3:.2f} % | 3 |"
    assert third == r"| 2 | \<b\>car\</b\> \`x\` \[y\]\(z\) | - | - | 0 |"
    assert "On 1 image of the split val" in text


@pytest.mark.parametrize(
    ("split", "expected"),
    [("val", "a little optimistic"), ("train", "trained on these images"), ("trainval", "without void.\n")],
)
def test_the_card_says_what_the_scores_are_worth_where_the_recipe_tells(summary, split, expected):
    assert expected in card({**summary, "split": split})


def test_the_card_says_how_the_network_was_trained(summary):
    text = card(summary, ["schedule.warmup_steps=20", "model.arch=fcn4s"])
    for expected in (
        "FCN-4s", "finer stride than in the paper", "resnet18", "into 3 classes", "train 209 images, val 1 image",
        "11 of 12 epochs in batches of 12", "weights of epoch 9", "adamw, learning rate 0.002",
        "cosine after 20 steps of warm-up", "crops of 96x128 pixels", "random weights",
        *(split.fingerprint for split in SPLITS), f"torch {torch.__version__.split('+')[0]}", "$ fcn-smp train demo",
    ):  # fmt: skip
        assert expected in text, expected
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    assert yaml.safe_load(block)["trainer"]["epochs"] == 12
    assert "none, whole images" in card(summary, ["augmentation=null", "trainer.batch_size=1"])


def test_a_resumed_run_names_both_ends(summary):
    first, last = ({**environment(), "started": f"2026-01-0{day}T00:00:00+00:00"} for day in (1, 3))
    first["command"] = "fcn-smp train one"
    last["processes"] = 2
    text = card(summary, starts=[first, first, last])
    assert "Begun on 2026-01-01, resumed 2x, last on 2026-01-03" in text
    assert "2 processes on" in text
    assert "$ fcn-smp train one\n" in text


def test_a_lost_record_leaves_only_its_part_out(summary):
    text = model_card(load_recipe("demo"), summary, [], SPLITS, epochs=11, best_epoch=9)
    assert "Where it was made" not in text
    assert "## Training" in text


def test_no_path_of_the_machine_is_published(summary, tmp_path):
    private = tmp_path / "John Doe" / "customer"
    private.mkdir(parents=True)
    (private / "mine.yaml").write_text(
        f"""\
name: mine
data: {{kind: folder, root: "{private}/streets", names: [sky, road/street], train: "{private}/list.txt"}}
model: {{encoder_weights: customer/w.safetensors, encoder_options: {{checkpoint: "{private}/x.pt"}}}}
"""
    )
    command = [
        str(private / ".venv/bin/fcn-smp"), "train", str(private / "mine.yaml"), f"data.root={private}/streets",
        "data.train=customer/other.txt", "data.classes={a: [road/street]}", f"model={{init_from: {private}/old}}",
        "-o", "customer/new", f"--output={private}/out", f"data.names=[{private}", "trainer.epochs=3",
    ]  # fmt: skip
    overrides = [f"model.init_from={private}", f"data.val={private}/val.txt"]
    split = f"{private}/val.txt"
    text = card({**summary, "split": split}, overrides, command=command, source=private / "mine.yaml")
    assert [word for word in ("customer/", "John", "Doe", str(tmp_path)) if word in text] == []
    line = re.search(r"^\$ (.*)", text, re.MULTILINE)[1]
    assert shlex.split(line) == [
        "fcn-smp", "train", "mine.yaml", "data.root=streets", "data.train=other.txt", "data.classes={a: [road/street]}",
        "model={init_from: old}", "-o", "new", "--output=out", "data.names=customer", "trainer.epochs=3",
    ]  # fmt: skip
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert block["data"]["names"] == ["sky", "road/street"]
    assert (block["data"]["root"], block["data"]["train"]) == ("streets", "list.txt")
    assert block["model"]["encoder_weights"] == "w.safetensors"
    assert "a little optimistic" in text


def test_a_model_of_the_hub_that_it_starts_from_is_named(summary):
    assert "the model somebody/fcn8s" in card(summary, ["model.init_from=somebody/fcn8s"])


def test_the_card_replaces_that_of_smp_and_its_python_works(summary, tmp_path, monkeypatch):
    model = smp.create_model("fcn8s", encoder_name="resnet18", encoder_weights=None, classes=3)
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), input_space="RGB", input_range=(0, 1))
    Segmenter(model, preprocessing, CLASSES, voc_palette()).save(tmp_path / "model")
    readme = tmp_path / "model/README.md"
    assert "FCN8s Model Card" in readme.read_text()  # SMP's own
    readme.write_text(card(summary))
    monkeypatch.chdir(tmp_path / "model")
    Image.new("RGB", (40, 30)).save("photo.jpg")
    segments, network = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    scope = {}
    exec(segments, scope)
    assert (scope["label"].shape, scope["label"].dtype) == ((30, 40), np.uint8)
    exec(network, scope)
    assert scope["model"](torch.zeros(1, 3, 30, 40)).shape == (1, 3, 30, 40)
