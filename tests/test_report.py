"""The page about a run, as a browser shows it: what it says, that all of it works, and what it keeps to itself."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import one_sentence, run_command
from PIL import Image

from fcn_smp.curves import compared_panels, curve_panels
from fcn_smp.recipe import load_recipe
from fcn_smp.reporting import report

HOSTILE = "</script><b>&\"'{{ 7 * 7 }}"
CLASSES = ("sky", HOSTILE, "car")
COLORS = ((20, 40, 200), (250, 200, 10), (0, 160, 80))
WRONG = (213, 94, 0)
SIZE = (24, 32)


def truth():
    """Sky above the hostile class, void between them, nothing of the car."""
    label = np.zeros(SIZE, np.uint8)
    label[12:] = 1
    label[11:13] = 255
    return label


def prediction(wrong):
    """What is right but for the ``wrong`` left columns, which are car."""
    label = np.where(truth() == 255, 0, truth()).astype(np.uint8)
    label[:, :wrong] = 2
    return label


def confusion(predictions):
    known = truth() != 255
    counts = np.zeros((3, 3), int)
    for label in predictions:
        np.add.at(counts, (truth()[known], label[known]), 1)
    return counts


def share(numerator, denominator):
    return round(float(numerator / denominator), 6) if denominator else None


def scores_of(counts):
    hits, rows, columns = counts.diagonal(), counts.sum(1), counts.sum(0)
    iu = [share(h, r + c - h) for h, r, c in zip(hits, rows, columns, strict=True)]
    accuracy = [share(h, r) for h, r in zip(hits, rows, strict=True)]
    return iu, accuracy, [share(h, c) for h, c in zip(hits, columns, strict=True)]


def mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def write_run(run, wrong=(20, 4, 12, 8, 0), overrides=(), sampled=(0, 1, 2, 4)):
    """Write a run directory with scores on images of which so many left columns are wrong, four of them with pictures.

    Of the third image no score is defined.
    """
    write_recipe(run, overrides)
    write_rows(run, epochs=6)
    folder = run / "eval/val"
    predictions = [prediction(columns) for columns in wrong]
    write_scores(folder, confusion(predictions), len(wrong))
    matrices = [confusion([label]) for label in predictions]
    counts = [[counts.diagonal(), counts.sum(1), counts.sum(0)] for counts in matrices]
    np.savez_compressed(folder / "counts.npz", counts=np.array(counts))
    with (folder / "images.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "mean_iu", "pixel_accuracy"))
        for number, label in enumerate(predictions):
            counts = confusion([label])
            ious = scores_of(counts)[0]
            defined = number != 2
            accuracy = share(counts.trace(), counts.sum())
            writer.writerow((f"image <{number}>", mean(ious) if defined else "", accuracy if defined else ""))
    (folder / "samples").mkdir()
    for number in sampled:
        write_sample(folder / "samples", number, predictions[number])
    return run


def write_recipe(run, overrides=()):
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(load_recipe("demo", ["name=streets", *overrides]).dump())
    start = {
        "started": "2026-03-05T10:00:00+00:00", "command": "fcn-smp train demo trainer.epochs=6", "processes": 1,
        "git": {"package": {"commit": "12ab", "dirty": True}}, "python": "3.11.7", "packages": {"torch": "2.15.0"},
        "cpu": {"name": "Some CPU"}, "gpu": [{"name": "Some GPU"}], "precision": "bf16-mixed",
        "fingerprints": {"train": "aa11", "val": "bb22"},
    }  # fmt: skip
    again = {**start, "started": "2026-03-06T10:00:00+00:00"}
    (run / "environment.json").write_text(json.dumps({"starts": [start, again]}))


def write_rows(run, epochs):
    with (run / "metrics.csv").open("w") as file:
        columns = ("epoch", "lr", "train_loss", "mean_iu", "pixel_accuracy", "seconds", "forward_seconds")
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for epoch in range(1, epochs + 1):
            scored = epoch % 2 == 0
            values = (epoch, 1e-3 / epoch, 2 / epoch, 0.1 * epoch if scored else "", 0.12 * epoch if scored else "")
            writer.writerow(dict(zip(columns, (*values, 30, 20), strict=True)))


def write_scores(folder, counts, images):
    folder.mkdir(parents=True)
    iu, accuracy, precision = scores_of(counts)
    per_class = [
        {"class": name, "color": "#{:02x}{:02x}{:02x}".format(*color), "iu": iu[k], "accuracy": accuracy[k],
         "precision": precision[k], "pixels": int(counts[k].sum()), "boundary_f1": 0.25}
        for k, (name, color) in enumerate(zip(CLASSES, COLORS, strict=True))
    ]  # fmt: skip
    scores = {
        "model": str(folder), "split": "val", "images": images, "pixel_accuracy": share(counts.trace(), counts.sum()),
        "mean_accuracy": mean(accuracy), "mean_iu": mean(iu), "frequency_weighted_iu": 0.5,
        "mean_iu_interval": [0.111, 0.888],
        "boundary": {"trimap_iu": {"1": 0.31, "16": 0.47, "4": 0.4}, "f1": 0.52, "tolerance": "0.75 % of the diagonal"},
        "inference": {"flip": True, "scales": [0.5, 1.0], "window": "auto"},
        "per_class": per_class, "confusion": counts.tolist(),
        "protocols": {"others": {"mean_iu": 0.345, "pixel_accuracy": None, "about": "void is <i>background</i>"}},
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(scores))


def write_sample(folder, number, label):
    picture = np.full((*SIZE, 3), 40 + 50 * number, np.uint8)
    Image.fromarray(picture).save(folder / f"{number:05}_image.jpg", quality=95)
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = COLORS
    for name, numbers in (("truth", truth()), ("prediction", label)):
        image = Image.fromarray(numbers).convert("P")
        image.putpalette(palette.tobytes())
        image.save(folder / f"{number:05}_{name}.png")


def write_staged(run):
    write_recipe(run)
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    content["stages"] = {"coarse": {"model": {"arch": "fcn32s"}}, "fine": {}, "finest": {}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    write_run(run / "coarse", (24, 20, 16, 12, 8), ["model.arch=fcn32s"])
    write_run(run / "fine")
    return run


@pytest.fixture(autouse=True, scope="module")
def _each_chart_once():
    """Draw the charts of the same rows once, since most of the pages are of the same runs."""
    drawn = {}

    def remembering(draw):
        def panels(rows, *key):
            place = json.dumps([draw.__name__, rows, key])
            drawn[place] = drawn[place] if place in drawn else draw(rows, *key)
            return drawn[place]

        return panels

    with pytest.MonkeyPatch.context() as patch:
        for draw in (curve_panels, compared_panels):
            patch.setattr(f"fcn_smp.reporting.page.{draw.__name__}", remembering(draw))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that have everything, nothing but a recipe, two that can be compared, and one of two stages."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "full")
    write_run(folder / "other", (24, 20, 16, 12, 8), ["optimizer.lr=0.5"], sampled=(0, 1, 3, 4))
    write_recipe(folder / "bare")
    (folder / "bare/environment.json").unlink()
    write_staged(folder / "staged")
    return folder


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name in ("full", "bare", "staged"):
        report(runs / name, folder / f"{name}.html")
    report([runs / "full", runs / "other"], folder / "several.html")
    return folder


class _Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.hidden = [], "", False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.hidden = False

    def handle_data(self, data):
        self.text += "" if self.hidden else f" {data}"


def parsed(path):
    page = _Text()
    page.feed(path.read_text())
    return page


def text(path):
    return " ".join(parsed(path).text.split())


# What it says.


def test_the_page_of_a_run_says_what_is_known_of_it(pages, runs):
    shown = text(pages / "full.html")
    scores = json.loads((runs / "full/eval/val/scores.json").read_text())
    for expected in (
        "streets", "fcn8s · resnet18", "val, 5 images", "averaged with the mirrored image",
        "averaged over the scales 0.5, 1", "2026-03-05", f"Mean IU {100 * scores['mean_iu']:.1f} %",
        "95 % interval 11.1 to 88.8", "Boundary F1 52.0 %", "epoch 6, which had the best mean IU",
        "1 px 31.0 4 px 40.0 16 px 47.0", "0.75 % of the diagonal apart",
        "others void is <i>background</i> 34.5 -", "$ fcn-smp train demo trainer.epochs=6",
        "Resumed 1 time, last on 2026-03-06",
        "1 process on Some GPU, bf16-mixed", "12ab of fcn_smp with changes", "Fingerprint of train aa11",
        "3.0 minutes for 6 epochs", "a little optimistic", "encoder_name: resnet18",
    ):  # fmt: skip
        assert expected in shown, expected


def test_what_is_confused_most_often_is_told_in_words_most_pixels_first(runs, tmp_path):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    path = run / "eval/val/scores.json"
    counts = [[80, 15, 5], [3000, 7000, 0], [0, 100, 0]]
    path.write_text(json.dumps({**json.loads(path.read_text()), "confusion": counts}))
    told = text(report(run)).split("Most often confused")[1].split("Worst images")[0]
    assert told.split(" pixels, ") == [
        f" {HOSTILE} called sky : 3,000",
        f"30.0 % of {HOSTILE} car called {HOSTILE} : 100",
        f"100.0 % of car sky called {HOSTILE} : 15",
        "15.0 % of sky sky called car : 5",
        "5.0 % of sky ",
    ]


def test_the_worst_images_come_first_and_those_without_a_score_nowhere(pages):
    table = text(pages / "full.html").split("Worst images")[1].split("As others count")[0]
    assert re.findall(r"image <(\d)>", table) == ["0", "3", "1", "4"]


def test_what_a_run_lacks_is_left_out_with_the_command_that_adds_it(pages, runs, tmp_path):
    bare = text(pages / "bare.html")
    assert bare.count("fcn-smp eval RUN , where RUN is the run directory.") == 4
    assert "not scored" in bare
    old = shutil.copytree(runs / "full", tmp_path / "old")
    for path in ("images.csv", "samples"):
        shutil.rmtree(old / "eval/val" / path, ignore_errors=True)
        (old / "eval/val" / path).unlink(missing_ok=True)
    scores = json.loads((old / "eval/val/scores.json").read_text())
    for key in ("mean_iu_interval", "boundary", "confusion", "protocols", "inference"):
        del scores[key]
    for row in scores["per_class"]:
        for key in ("color", "precision", "boundary_f1"):
            del row[key]
    (old / "eval/val/scores.json").write_text(json.dumps(scores))
    (old / "environment.json").write_text('{"started": "2025-01-01", "command": ["fcn-smp"]}')
    shown = text(report(old))
    assert shown.count("fcn-smp eval RUN , where") == 4
    assert "As others count" not in shown
    assert "of an early release" in shown
    table = (old / "report.html").read_text().split('<table class="sortable">')[1].split("</table>")[0]
    assert 'class="chip"' not in table  # nothing tells the colours


def test_scores_that_nothing_defines_are_dashes(runs, tmp_path):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    path = run / "eval/val/scores.json"
    scores = json.loads(path.read_text())
    undefined = {key: None if isinstance(value, float) else value for key, value in scores.items()}
    undefined["mean_iu_interval"] = [None, None]
    undefined["confusion"] = [[0] * 3] * 3
    undefined["per_class"] = [{**row, "iu": None, "accuracy": None, "pixels": 0} for row in scores["per_class"]]
    path.write_text(json.dumps(undefined))
    shown = text(report(run))
    assert "Mean IU - %" in shown
    assert "Most often confused" not in shown


def test_a_binary_run_shows_the_scores_of_its_class_and_the_threshold(runs, tmp_path):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    path = run / "eval/val/scores.json"
    binary = {"class": "road", "iu": 0.5, "precision": 0.61, "recall": 0.62, "f1": 0.63}
    path.write_text(json.dumps({**json.loads(path.read_text()), "binary": binary, "threshold": 0.4321}))
    assert "Precision of road 61.0 % Recall of road 62.0 % F1 of road 63.0 % Boundary F1" in text(report(run))
    assert "Threshold 0.432" in text(report(run))


def test_several_runs_are_set_side_by_side(pages, runs):
    shown = text(pages / "several.html")
    means = [json.loads((runs / name / "eval/val/scores.json").read_text())["mean_iu"] for name in ("full", "other")]
    assert means[0] > means[1]
    assert "full, other" in shown
    assert re.search(rf"Mean IU {100 * means[0]:.1f} 11.1.88.8 {100 * means[1]:.1f} 11.1.88.8", shown)
    assert f"<b>{100 * means[0]:.1f}</b>" in (pages / "several.html").read_text()
    assert f"<b>{100 * means[1]:.1f}</b>" not in (pages / "several.html").read_text()
    assert "Key full other optimizer.lr 0.002 0.5 full in detail" in shown
    assert "other in detail" in shown


def test_the_best_of_each_class_is_bold_and_of_two_runs_there_is_the_difference(runs, pages, tmp_path):
    def rows(page):
        table = page.read_text().split('<table class="sortable">')[1].split("</table>")[0]
        table = re.sub(r'<span class="best">(.*?)</span>', r"*\1*", table)
        cells = [row.split("</t")[1:5] for row in table.split("<tr>")[2:]]
        return [[re.sub(r"<.*?>", "", cell).rpartition(">")[2] for cell in row] for row in cells]

    ious = [scores_of(confusion(map(prediction, wrong)))[0] for wrong in ((20, 4, 12, 8, 0), (24, 20, 16, 12, 8))]
    better, worse = (f"{100 * iu[0]:.1f}" for iu in ious)
    less = f"{100 * (ious[1][0] - ious[0][0]):.1f}".replace("-", "\u2212")
    assert rows(pages / "several.html")[0] == [f"*{better}*", worse, less, "50.0"]
    assert "*" not in "".join(rows(pages / "several.html")[2])  # nobody is right about a single car
    assert "the difference is other less full" in text(pages / "several.html")
    three = report([runs / "full", runs / "other", runs / "staged"], tmp_path / "page.html")
    assert "Difference" not in text(three).split("IU of each class")[1].split("Near boundaries")[0]


def test_paired_tests_say_whether_a_difference_is_chance(tmp_path):
    # Where each image differs alike, drawing them anew changes nothing, and 2 of the 2**20 swaps are as extreme.
    wrongs = {"worse": (8,) * 20, "best": (4,) * 20, "same": (4,) * 20}
    for name, wrong in wrongs.items():
        write_run(tmp_path / name, wrong)
    means = {name: mean(scores_of(confusion(map(prediction, wrong)))[0]) for name, wrong in wrongs.items()}
    less = f"{100 * (means['worse'] - means['best']):.1f}".replace("-", "\u2212")
    shown = text(report([tmp_path / name for name in wrongs], tmp_path / "page.html"))
    table = shown.split("p-value ")[1]
    assert "Against best Points 95 % interval p-value" in shown
    assert table.startswith(f"worse {less} {less} to {less} ≤ 0.001 same +0.0 +0.0 to +0.0 1.000 Difference of the")
    assert "the same 20 images" in shown


def test_without_counts_of_the_same_images_there_are_no_paired_tests(runs, tmp_path):
    old = shutil.copytree(runs / "other", tmp_path / "old")
    (old / "eval/val/counts.npz").unlink()
    shown = text(report([runs / "full", old], tmp_path / "old.html"))
    assert "this adds them to old: fcn-smp eval RUN , where" in shown
    assert "p-value" not in shown
    write_run(tmp_path / "more", (20, 4, 12, 8, 0, 0))
    shown = text(report([runs / "full", tmp_path / "more"], tmp_path / "more.html"))
    assert "not scored on the same images" in shown
    assert "p-value" not in shown


def test_values_beside_curves_are_called_the_last_ones(pages):
    shown = text(pages / "full.html")
    assert "last: 0.333" in shown
    assert re.search(r"last: pixel accuracy 72.0 mean IU 60.0", shown)
    assert "last: other" not in shown  # of the time they are shares
    assert re.search(r"Mean IU of the validations, % .*last: full 60.0 other 60.0", text(pages / "several.html"))


def test_a_staged_run_compares_its_stages_and_ends_with_the_last(pages):
    shown = text(pages / "staged.html")
    assert "model.arch fcn32s fcn8s" in shown
    assert "fine in detail" in shown
    assert "coarse in detail" not in shown  # and finest has not begun


def test_runs_of_other_classes_or_splits_share_only_what_can_be_compared(runs, tmp_path):
    other = shutil.copytree(runs / "other", tmp_path / "other")
    path = other / "eval/val/scores.json"
    path.write_text(path.read_text().replace('"car"', '"bus"'))
    shown = text(report([runs / "full", other], tmp_path / "page.html"))
    assert "no samples in common" in shown
    assert "not scored on the same split and classes" in shown


def test_pictures_of_other_images_are_not_compared(runs, tmp_path):
    other = shutil.copytree(runs / "other", tmp_path / "other")
    path = other / "eval/val/images.csv"
    path.write_text(path.read_text().replace("image <1>", "another image"))
    content = report([runs / "full", other], tmp_path / "page.html").read_text()
    samples = json.loads(re.search(r'json">(\{"classes": .*?"samples".*?)</script>', content, re.DOTALL)[1])["samples"]
    assert [sample["row"] for sample in samples] == [0, 4]


def test_runs_that_have_only_begun_keep_their_place_and_colour(runs, tmp_path):
    page = report([runs / "bare", runs / "full"], tmp_path / "page.html")
    assert "bare fcn8s · resnet18 · scenes that fcn_smp draws itself · not scored" in text(page)
    curves = page.read_text().split("Curves</h2>")[1].split("</section>")[0]
    assert "var(--c-d55e00)" in curves.split("<figcaption>")[1].split("</svg>")[0]
    assert '--chip: var(--c-d55e00)"></span>full 60.0' in curves


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    shown = text(report([runs / "full", shutil.copytree(runs / "other", tmp_path / "full")], tmp_path / "page.html"))
    assert "full, full (2)" in shown


def test_a_staged_run_among_others_is_its_last_stage(runs, tmp_path):
    shown = text(report([runs / "staged", runs / "full"], tmp_path / "page.html"))
    assert "What differs in the recipes Nothing: the recipes are the same." in shown


# What it keeps to itself, and how it is made.


def test_no_path_of_the_machine_is_published(runs, tmp_path):
    private = tmp_path / "John Doe/customer"
    run = private / "runs/mine"
    write_run(
        run, overrides=[f"data.root={private}/scenes", f"data.val={private}/val.txt", f"model.init_from={private}/old"]
    )
    path = run / "eval/val/scores.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "split": f"{private}/val.txt"}))
    starts = json.loads((run / "environment.json").read_text())["starts"]
    command = [f"{private}/bin/fcn-smp", "train", "demo", f"data.root={private}/scenes", "-o", f"{private}/out"]
    starts[0]["command"] = shlex.join(command)
    (run / "environment.json").write_text(json.dumps({"starts": starts}))
    page = report(run).read_text() + report([run, runs / "full"], tmp_path / "page.html").read_text()
    assert "$ fcn-smp train demo data.root=scenes -o out" in page
    assert [word for word in ("John", "Doe", "customer", str(tmp_path)) if word in page] == []


def test_names_are_text_wherever_they_stand(pages):
    for name in ("full", "several", "staged"):
        content = (pages / f"{name}.html").read_text()
        assert "</script><b>" not in content
        assert content.count("</script>") == content.count("<script")
        assert "49" not in re.findall(r"&lt;/script&gt;.{0,60}", content)[0]
        assert "i" not in parsed(pages / f"{name}.html").tags


def test_a_colour_that_is_none_is_not_written_into_the_style(runs, tmp_path):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    path = run / "eval/val/scores.json"
    path.write_text(path.read_text().replace("#1428c8", "red; background: url(//evil)"))
    content = report(run).read_text()
    assert "evil" not in content
    assert "#1428c8" in content  # that of the pictures


def test_the_same_runs_give_the_same_bytes(runs, pages, tmp_path, monkeypatch):
    for draw in (curve_panels, compared_panels):
        monkeypatch.setattr(f"fcn_smp.reporting.page.{draw.__name__}", draw)
    again = report([runs / "full", runs / "other"], tmp_path / "again.html")
    assert again.read_bytes() == (pages / "several.html").read_bytes()


def test_no_name_within_the_page_is_there_twice(pages):
    for name in ("full", "several", "staged"):
        content = re.sub(r"<script.*?</script>", "", (pages / f"{name}.html").read_text(), flags=re.DOTALL)
        ids = re.findall(r'\sid="([^"]*)"', content)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="#|url\(#|for="|labelledby=")([\w-]+)', content)) <= set(ids)


def test_neither_torch_nor_the_data_is_needed(runs, tmp_path):
    check = "import sys; from fcn_smp.reporting import report; report(*sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check, runs / "full", tmp_path / "page.html"], check=True)


def test_the_page_lies_in_the_run_and_is_replaced(runs, tmp_path):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    for _ in range(2):
        code, out, err = run_command("report", run)
        assert (code, err) == (0, "")
        assert str(run / "report.html") in out.replace("\n", "")
    assert (run / "report.html").stat().st_size > 10_000
    assert not list(run.glob(".*"))


def test_the_page_goes_where_output_says(runs, tmp_path):
    code, _, _ = run_command("report", runs / "full", runs / "other", "-o", tmp_path / "new/page.html")
    assert code == 0
    assert (tmp_path / "new/page.html").is_file()


def test_another_split_is_shown_when_it_was_scored(runs, tmp_path):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    shutil.copytree(run / "eval/val", run / "eval/test")
    path = run / "eval/test/scores.json"
    scores = {key: value for key, value in json.loads(path.read_text()).items() if key != "confusion"}
    path.write_text(json.dumps({**scores, "split": "test"}))
    assert run_command("report", run, "--split", "test")[0] == 0
    shown = text(run / "report.html")
    assert "test, 5 images" in shown
    assert "Classes All numbers in %" in shown  # it may hold images of the others, so nothing is said of it
    assert "fcn-smp eval RUN --split test" in shown


def test_mistakes_of_the_user_are_told_in_a_sentence(runs, tmp_path):
    cases = {
        "no run directory": [tmp_path / "nothing"],
        "--output": [runs / "full", runs / "other"],
        "there already": [runs / "full", "-o", runs / "full/recipe.yaml"],
        "fcn-smp eval": [runs / "full", "--split", "test"],
    }
    for expected, arguments in cases.items():
        code, _, err = run_command("report", *arguments)
        assert code == 2
        assert expected in err
        assert "Traceback" not in err


def test_damaged_files_are_named(runs, tmp_path):
    damaged = {"scores.json": "{", "images.csv": "image\nx\n", "counts.npz": "x", "samples/00000_truth.png": "x"}
    for name, content in damaged.items():
        run = shutil.copytree(runs / "full", tmp_path / name.replace("/", "-"))
        (run / "eval/val" / name).write_text(content)
        with one_sentence(run / "eval/val" / name, "damaged"):
            report(run)


def test_a_staged_run_that_has_not_begun_says_so(runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(runs / "staged/recipe.yaml", run)
    with one_sentence("No stage of", run, "coarse, fine"):
        report(run)


# What it does in a browser.


@pytest.fixture
def visit(browser, pages):
    """Open a page of a width and a colour scheme; whatever it complains of or asks the network for fails the test."""
    contexts, complaints = [], []

    def run(name, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.on("request", lambda request: request.url.startswith("data:") or asked.append(request.url))
        asked = []
        url = (name if isinstance(name, Path) else pages / f"{name}.html").as_uri()
        page.goto(url)
        if page.locator("canvas").count():
            page.wait_for_selector("canvas[data-shown]")
        assert asked == [url]
        return page

    yield run
    for context in contexts:
        context.close()
    assert complaints == []


def pixels(page):
    """Return what the canvas shows, uint8 (H, W, 3)."""
    width, height, values = page.evaluate(
        """() => {
          const canvas = document.querySelector("canvas");
          const { width, height } = canvas;
          const copy = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
          copy.drawImage(canvas, 0, 0);
          return [width, height, [...copy.getImageData(0, 0, width, height).data]];
        }"""
    )
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def show(page, layer, opacity=100):
    page.locator(".choice").get_by_text(layer, exact=True).click()
    page.locator("#opacity").fill(str(opacity))


def name_of_sample(page):
    return page.locator("[data-at=name]").inner_text()


def reach(page, number):
    """Move the slider to a sample, counted from 0, and wait until it is drawn."""
    page.locator("#which").fill(str(number))
    page.wait_for_selector(f"canvas[data-shown^='{number} ']")


VISIBLE = """() => [...document.querySelectorAll("body *")].filter((element) =>
  element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))"""


@pytest.mark.parametrize("name", ["full", "bare", "several", "staged"])
def test_a_phone_shows_all_of_it_legibly_and_never_scrolls_sideways(visit, name):
    page = visit(name, width=400)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    sizes = page.evaluate(
        f"""() => ({VISIBLE})().map((element) => {{
          const svg = element.closest("svg");
          const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
          return [scale * parseFloat(getComputedStyle(element).fontSize), element.textContent.slice(0, 40)];
        }})"""
    )
    assert len(sizes) > 10
    assert [size for size in sizes if size[0] < 12] == []
    assert page.evaluate("[...document.images].filter((image) => !image.naturalWidth).length") == 0
    assert page.locator("canvas").count() == (name != "bare")
    if name != "bare":
        assert np.ptp(pixels(page)) > 50


CONTRASTS = f"""() => {{
  const context = document.createElement("canvas").getContext("2d", {{ willReadFrequently: true }});
  const rgb = (color) => {{
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  }};
  const light = (color) => color.slice(0, 3).reduce((sum, value, channel) => {{
    const part = value / 255;
    return sum + [0.2126, 0.7152, 0.0722][channel] * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  }}, 0);
  const ground = (element) => {{
    for (let at = element; at; at = at.parentElement) {{
      const style = getComputedStyle(at);
      const tone = style.backgroundImage.match(/rgba?\\([^)]*\\)/);
      const color = rgb(style.backgroundColor);
      if (color[3] && tone) {{
        const over = style.getPropertyValue("--tone").trim().split(" ").map(Number);
        const share = Number(style.getPropertyValue("--a"));
        return over.map((value, channel) => share * value + (1 - share) * color[channel]);
      }}
      if (color[3]) return color;
    }}
    return [255, 255, 255];
  }};
  return ({VISIBLE})().map((element) => {{
    const style = getComputedStyle(element);
    const inks = [light(rgb(element.closest("svg") ? style.fill : style.color)), light(ground(element))];
    return [(Math.max(...inks) + 0.05) / (Math.min(...inks) + 0.05), element.textContent.trim().slice(0, 40)];
  }});
}}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit, scheme):
    page = visit("several", scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    # WCAG asks 4.5 of text; the numbers in the cells of the confusion matrix are read out below it too.
    assert [found for found in contrasts if found[0] < (4 if found[1].isdigit() else 4.5)] == []


def test_a_dark_scheme_makes_a_dark_page(visit):
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (visit("full", scheme=scheme).evaluate(background) for scheme in ("light", "dark"))
    assert light == "rgb(255, 255, 255)"
    assert max(map(int, re.findall(r"\d+", dark))) < 60


def test_the_slider_goes_from_the_worst_sample_to_the_best(visit):
    page = visit("full")
    names, pictures = [], []
    page.locator("#which").focus()
    for number in range(4):
        page.wait_for_selector(f"canvas[data-shown^='{number} ']")
        names.append(name_of_sample(page))
        pictures.append(pixels(page))
        page.keyboard.press("ArrowRight")
    order = [re.search(r"image <(\d)>", name)[1] for name in names]
    assert order == ["0", "1", "4", "2"]  # the last one has no score
    assert "no score" in names[-1]
    counts = confusion([prediction(20)])
    assert f"mean IU {100 * mean(scores_of(counts)[0]):.1f} %" in names[0]
    assert not any(np.array_equal(one, other) for one, other in pairwise(pictures))
    page.locator("canvas").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("canvas[data-shown^='2 ']")


def test_every_layer_shows_what_it_is_called(visit):
    page = visit("full")
    reach(page, 1)  # the image 1, whose first 4 columns are wrong
    colors = np.array(COLORS)
    known = truth() != 255
    show(page, "Truth")
    assert (pixels(page)[known] == colors[truth()[known]]).all()
    show(page, "Prediction")
    assert (pixels(page) == colors[prediction(4)]).all()
    show(page, "Errors")
    shown, wrong = pixels(page), (prediction(4) != truth()) & known
    assert (shown[wrong] == WRONG).all()
    assert (shown[known & ~wrong] < 60).all()  # dimmed
    assert {tuple(color) for color in shown[~known]} == {(255, 255, 255), (85, 85, 85)}  # hatched
    show(page, "Image")
    assert np.abs(pixels(page).astype(int) - 90).max() <= 3


def test_the_opacity_lets_the_image_through(visit):
    page = visit("full")
    show(page, "Prediction", opacity=0)
    assert np.abs(pixels(page).astype(int) - 40).max() <= 3
    show(page, "Prediction", opacity=50)
    half = (40 + np.array(COLORS)[prediction(20)]) / 2
    assert np.abs(pixels(page) - half).max() <= 3


def point(page, row, column):
    box = page.locator("canvas").bounding_box()
    scale = min(box["width"] / SIZE[1], box["height"] / SIZE[0])
    page.mouse.move(box["x"] + (column + 0.5) * scale, box["y"] + (row + 0.5) * scale)
    return page.locator("[data-at=reading]").inner_text()


@pytest.mark.parametrize("width", [400, 1280])
def test_pointing_at_the_picture_names_truth_and_prediction(visit, width):
    page = visit("full", width)
    page.locator("canvas").scroll_into_view_if_needed()
    assert point(page, 2, 3) == "truth sky, prediction car"
    assert point(page, 20, 30) == f"truth {HOSTILE}, prediction {HOSTILE}"
    assert point(page, 11, 30) == "truth void, prediction sky"


def test_the_legend_has_what_occurs_and_shows_a_class_alone(visit):
    page = visit("full")
    legend = page.locator(".legend button")
    assert legend.all_inner_texts() == ["sky", HOSTILE, "car", "void"]
    show(page, "Prediction")
    car = prediction(20) == 2
    legend.nth(2).hover()
    shown = pixels(page)
    assert (shown[car] == COLORS[2]).all()
    assert (shown[~car] < 60).all()
    page.mouse.move(0, 0)
    assert (pixels(page) == np.array(COLORS)[prediction(20)]).all()
    legend.nth(0).click()
    page.mouse.move(0, 0)
    assert legend.nth(0).get_attribute("aria-pressed") == "true"
    assert (pixels(page)[prediction(20) != 0] < 60).all()
    reach(page, 2)  # nothing of which is car
    assert legend.all_inner_texts() == ["sky", HOSTILE, "void"]
    assert legend.nth(0).get_attribute("aria-pressed") == "true"
    legend.nth(0).click()
    page.mouse.move(0, 0)
    page.locator("#which").focus()
    assert (pixels(page) == np.array(COLORS)[prediction(0)]).all()
    reach(page, 0)
    legend.nth(2).click()
    page.mouse.move(0, 0)
    reach(page, 2)
    assert (pixels(page) == np.array(COLORS)[prediction(0)]).all()


def test_tables_are_sorted_by_a_click_on_a_heading(visit):
    page = visit("full")
    table = page.locator("table.sortable")
    names = table.locator("tbody th")
    before = names.all_inner_texts()
    table.get_by_role("button", name="Share of pixels").click()
    first = names.all_inner_texts()
    assert sorted(first) == sorted(before)
    assert first[-1] == "car"  # has none
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="Share of pixels").press("Enter")
    assert names.all_inner_texts()[0] == "car"
    table.get_by_role("button", name="Class").click()
    assert names.all_inner_texts()[1] == "car"


def test_an_image_among_the_worst_is_a_link_to_its_sample(visit):
    page = visit("full")
    assert page.get_by_text("Linked where there is a picture.").count() == 1
    page.get_by_role("link", name="image <4>").click()
    page.wait_for_selector("canvas[data-shown^='2 ']")
    assert page.locator("#which").input_value() == "2"
    assert page.get_by_role("link", name="image <3>").count() == 0  # has no pictures


def test_a_cell_of_the_confusion_matrix_is_read_out(visit):
    page = visit("full")
    counts = confusion([prediction(columns) for columns in (20, 4, 12, 8, 0)])
    reading = page.locator("[data-confusion] .reading")
    cells = page.locator("[data-confusion] tbody td")
    cells.nth(5).hover()
    part = f"{100 * counts[1, 2] / counts[1].sum():.1f} %, {counts[1, 2]:,} of {counts[1].sum():,} pixels"
    assert reading.inner_text() == f"{HOSTILE} called car: {part}"
    cells.nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert reading.inner_text().startswith(f"{HOSTILE} rightly called {HOSTILE}: ")
    cells.nth(8).hover()
    assert reading.inner_text() == "car rightly called car: 0 of 0 pixels"


def test_runs_are_compared_on_the_samples_that_both_have(visit):
    page = visit("several")
    assert page.locator("#which").get_attribute("max") == "2"
    assert "images of which every run has pictures" in page.locator("#samples").inner_text()
    assert "full: " in name_of_sample(page)
    show(page, "Prediction")
    page.locator(".choice").get_by_text("full", exact=True).click()
    assert (pixels(page) == np.array(COLORS)[prediction(20)]).all()
    page.locator(".choice").get_by_text("other", exact=True).click()
    assert (pixels(page) == np.array(COLORS)[prediction(24)]).all()
    assert point(page, 2, 21) == "truth sky, full sky, other car"


@pytest.mark.parametrize("name", ["full", "several"])
def test_what_goes_on_to_the_right_fades_until_the_end_is_reached(visit, name):
    page = visit(name, width=400)
    box = page.locator(".scroll:has(.sortable)").first
    hidden = """(box) => box.querySelector("table").getBoundingClientRect().right
      - (box.getBoundingClientRect().right - parseFloat(getComputedStyle(box, "::after").width))"""
    where_the_second_heading_goes_under_the_first = """(box) => {
      const [first, second] = [...box.querySelectorAll("th button")].map((button) => button.getBoundingClientRect());
      box.scrollLeft += second.left - first.left;
      return document.elementFromPoint(first.left + 4, first.top + 8).textContent;
    }"""
    box.scroll_into_view_if_needed()
    assert box.evaluate(hidden) > 0
    assert box.evaluate(where_the_second_heading_goes_under_the_first) == "Class"
    box.evaluate("(box) => { box.scrollLeft = box.scrollWidth; }")
    assert box.evaluate(hidden) <= 0.5


def test_hundreds_of_classes_stay_in_their_boxes(runs, visit, tmp_path):
    run = shutil.copytree(runs / "full", tmp_path / "run")
    path = run / "eval/val/scores.json"
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (150, 150)) * (rng.random((150, 150)) < 0.1)
    row = {"color": "#00ff00", "iu": 0.5, "accuracy": 0.5, "precision": 0.5, "pixels": 9}
    per_class = [{"class": f"class number {k} with a long name", **row} for k in range(150)]
    path.write_text(json.dumps({**json.loads(path.read_text()), "confusion": counts.tolist(), "per_class": per_class}))
    page = visit(report(run), width=400)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.locator("[data-confusion] tbody td").count() == 150 * 150
    assert (run / "report.html").stat().st_size < 3e6
