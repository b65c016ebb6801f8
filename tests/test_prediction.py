"""Predictions: which images are meant, what is written of them, and what Python gets."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encode, one_sentence, run_command, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import build, scores_of, with_random_scores
from PIL import Image, ImageOps

from fcn_smp import overlap, prediction
from fcn_smp.data.voc import voc_palette
from fcn_smp.inference import Inference
from fcn_smp.models.encoder import Preprocessing
from fcn_smp.prediction import find_images, plan, predict, predict_files
from fcn_smp.segmenter import Segmenter

CLASSES = ("background", "road", "sky", "tree", "car")
NORMAL = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def photo(height=40, width=56, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def segmenter_of(classes, scores=None, threshold=0.5):
    """Return a small network that sees something of every class in a photo."""
    model = with_random_scores(build("fcn8s", "test_resnet", classes=scores or len(classes), decoder_hidden_channels=8))
    segmenter = Segmenter(model, NORMAL, classes, voc_palette(), threshold)
    logits = segmenter.logits(photo())
    deep, *skips = scores_of(model)
    with torch.no_grad():
        deep.bias -= logits.mean((0, 2, 3))
        for score in (deep, *skips):
            score.weight /= logits.std()
            score.bias /= logits.std()
    return segmenter


@pytest.fixture
def ctrl_c():
    """Let an interrupt be one, also where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def segmenter():
    return segmenter_of(CLASSES)


@pytest.fixture(scope="module")
def run(segmenter, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    segmenter.save(path)
    return path


def write_photos(folder, *names, size=(40, 56)):
    """Write photos without loss, each of its own content."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(*size, seed)).save(folder / name, **{"lossless": True} if name.endswith("webp") else {})
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def label_in(path):
    with Image.open(path) as mask:
        assert mask.mode == "P"
        return np.array(mask)


def decided(segmenter, image):
    """Where the two largest logits are so far apart that no order of sums changes the label."""
    first, second = segmenter.logits(image)[0].topk(2, 0).values
    return (first - second > 1e-3).cpu().numpy()


# --- What is written


def test_each_image_gets_a_label_and_an_overlay_with_a_legend(run, segmenter, tmp_path):
    write_photos(tmp_path / "in", "a.png", "b.v2.png", size=(90, 210))
    code, output, error = run_command("predict", run, tmp_path / "in", "-o", tmp_path / "out")
    assert (code, error, "2 images labelled" in output) == (0, "", True)
    assert files(tmp_path / "out") == {"a.png", "a_overlay.jpg", "b.v2.png", "b.v2_overlay.jpg"}

    label = label_in(tmp_path / "out/a.png")
    assert len(np.unique(label)) > 2
    assert np.array_equal(label, segmenter.predict(photo(90, 210)))
    with Image.open(tmp_path / "out/a.png") as mask:
        assert np.array_equal(np.reshape(mask.getpalette(), (-1, 3))[:5], voc_palette()[:5])

    with Image.open(tmp_path / "out/a_overlay.jpg") as overlay:
        assert overlay.format == "JPEG"
        assert (overlay.width, overlay.height > 90) == (210, True)
        drawn, legend = np.split(np.array(overlay).astype(int), [90])
    mixed = 0.4 * photo(90, 210) + 0.6 * voc_palette()[label]
    expected = np.where((label == 0)[..., None], photo(90, 210), mixed)
    assert abs(drawn - expected).mean() < 4  # a JPEG has no sharp edges
    for number in range(1, 5):
        shown = (abs(legend - voc_palette()[number]).max(2) < 40).sum()
        assert (shown > 100) == (number in label), number


def test_further_files_are_written_on_request(run, segmenter, tmp_path):
    write_photos(tmp_path, "a.png")
    more = "--no-overlay", "--confidence", "--probabilities"
    assert run_command("predict", run, tmp_path / "a.png", "-o", tmp_path / "out", *more)[0] == 0
    assert files(tmp_path / "out") == {"a.png", "a_confidence.png", "a.npz"}

    logits = segmenter.logits(photo())[0].double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(0)
    with np.load(tmp_path / "out/a.npz") as file:
        assert tuple(file["classes"]) == CLASSES
        assert (file["probabilities"].dtype, file["probabilities"].shape) == (np.float16, (5, 40, 56))
        np.testing.assert_allclose(file["probabilities"], expected, rtol=1e-3, atol=1e-6)
    with Image.open(tmp_path / "out/a_confidence.png") as confidence:
        assert confidence.mode == "L"
        np.testing.assert_allclose(np.array(confidence), 255 * expected.max(0), atol=0.51)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_a_single_logit_gives_the_probabilities_of_two_classes(threshold):
    segmenter = segmenter_of(("background", "road"), scores=1, threshold=threshold)
    [found] = predict(segmenter, photo(), probabilities=True)
    second = 1 / (1 + np.exp(-segmenter.logits(photo())[0, 0].double().numpy()))
    np.testing.assert_array_equal(found.label, second > threshold)
    assert found.label.min() < found.label.max()
    np.testing.assert_allclose(found.probabilities, np.stack([1 - second, second]), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(found.confidence, 255 * np.where(found.label, second, 1 - second), atol=0.51)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_is_turned_by_its_exif_gives_an_upright_label(run, segmenter, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo()).save(tmp_path / "a.png", exif=exif)
    assert run_command("predict", run, tmp_path / "a.png", "-o", tmp_path / "out")[0] == 0
    with Image.open(tmp_path / "a.png") as image:
        upright = np.array(ImageOps.exif_transpose(image))
    assert upright.shape == ((56, 40, 3) if orientation > 4 else (40, 56, 3))
    [found] = predict(segmenter, Image.open(tmp_path / "a.png"))
    for label in (label_in(tmp_path / "out/a.png"), found.label):
        assert np.array_equal(label, segmenter.predict(upright))


def grey(image):
    return np.repeat(np.array(Image.fromarray(image).convert("L"))[..., None], 3, 2)


def in_mode(mode):
    """Return a photo in a mode of PIL, and as RGB."""
    if mode == "I;16":
        levels = grey(photo())[..., 0].astype(np.uint16)
        return Image.fromarray(levels * 256 + 77), grey(photo())
    if mode == "RGBA":
        return Image.fromarray(np.dstack([photo(), photo(seed=1)[..., 0]])), photo()
    image = Image.fromarray(photo()).convert(mode)
    return image, np.array(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_images_of_any_mode_are_labelled(run, segmenter, tmp_path, mode):
    image, rgb = in_mode(mode)
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    image.save(path)
    assert run_command("predict", run, path, "-o", tmp_path / "out")[0] == 0
    assert np.array_equal(label_in(tmp_path / "out/a.png"), segmenter.predict(rgb))
    [found] = predict(segmenter, image)
    assert np.array_equal(found.label, segmenter.predict(rgb))


def test_windows_are_those_of_the_segmenter(run, segmenter, tmp_path):
    write_photos(tmp_path, "a.png", size=(200, 130))
    more = "--window", 96, "--tta", "flip", "--confidence"
    assert run_command("predict", run, tmp_path / "a.png", "-o", tmp_path / "out", *more)[0] == 0
    inference = Inference(flip=True, window=96)
    image = photo(200, 130)
    assert len(list(segmenter.bands([image], inference))) > 1
    assert np.array_equal(label_in(tmp_path / "out/a.png"), segmenter.predict(image, inference))
    with Image.open(tmp_path / "out/a_confidence.png") as confidence:
        expected = 255 * segmenter.logits(image, inference)[0].softmax(0).amax(0).numpy()
        np.testing.assert_allclose(np.array(confidence), expected, atol=0.51)


SIZES = [(40, 56), (33, 47), (56, 40)]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_label_does_not_depend_on_what_else_is_labelled(run, segmenter, tmp_path, batch_size):
    images = [photo(*SIZES[number % 3], number) for number in range(11)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    run_command("predict", run, tmp_path, "-o", tmp_path / "out", "--batch-size", batch_size)
    for number, image in enumerate(images):
        label = label_in(tmp_path / f"out/{number}.png")
        sure = np.True_ if batch_size == 1 else decided(segmenter, image)
        assert np.mean(sure) > 0.9
        assert np.array_equal(label * sure, segmenter.predict(image) * sure)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(SIZES), max_size=8), st.integers(1, 4))
def test_predictions_come_in_the_order_of_the_images(segmenter, sizes, batch_size):
    images = [photo(*size, number) for number, size in enumerate(sizes)]
    found = predict(segmenter, images, batch_size=batch_size)
    assert [one.label.shape for one in found] == sizes
    for one, image in zip(found, images, strict=True):
        sure = decided(segmenter, image)
        assert np.array_equal(one.label * sure, segmenter.predict(image) * sure)


# --- Which images


def test_folders_are_searched_and_mirrored_but_not_what_is_hidden(run, tmp_path):
    names = "a.png", "x/a.jpg", "x/y/b.PNG", ".hidden.png", ".git/c.png", "x/.thumbs/d.png"
    (write_photos(tmp_path / "in", *names) / "x/notes.md").write_text("no image")
    code, output, _ = run_command("predict", run, tmp_path / "in", "-o", tmp_path / "out", "--no-overlay")
    assert (code, "3 images" in output) == (0, True)
    assert files(tmp_path / "out") == {"a.png", "x/a.png", "x/y/b.png"}


def test_a_hidden_folder_is_searched_where_it_is_named(tmp_path):
    folder = write_photos(tmp_path / ".photos", "x/a.png")
    assert find_images([str(folder)]) == [(folder / "x/a.png", Path("x/a.png"))]


def test_what_a_pattern_finds_is_mirrored_below_its_fixed_part(tmp_path):
    write_photos(tmp_path, "v/1/jpg/a.png", "v/2/jpg/a.png", "v/2/b.png", "v/2/[c].png")
    places = [str(place) for _, place in find_images([f"{tmp_path}/v/*/jpg/*"])]
    assert places == ["1/jpg/a.png", "2/jpg/a.png"]
    assert [str(place) for _, place in find_images([f"{tmp_path}/v/2/*.png"])] == ["[c].png", "b.png"]
    assert len(find_images([f"{tmp_path}/v/**"])) == 4
    assert [str(place) for _, place in find_images([f"{tmp_path}/v/2/[c].png"])] == ["[c].png"]


def test_a_list_names_images_from_the_working_directory(run, tmp_path, monkeypatch):
    write_photos(tmp_path, "v/1/a.png", "v/2/a.png", "w.png")
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text(f"v/1/a.png\r\n\n{tmp_path}/v/2/a.png  \n", encoding="utf-8-sig")
    assert run_command("predict", run, "list.txt", "-o", "out", "--no-overlay")[0] == 0
    assert files(tmp_path / "out") == {"1/a.png", "2/a.png"}
    Path("list.txt").write_text("v/1/a.png", encoding="utf-8")
    assert find_images(["list.txt"]) == [(Path("v/1/a.png"), Path("a.png"))]


def test_an_image_is_labelled_once_however_often_it_is_named(tmp_path, monkeypatch):
    write_photos(tmp_path, "v/a.png", "v/b.png")
    monkeypatch.chdir(tmp_path)
    found = find_images(["v/a.png", "v", "v/*.png", str(tmp_path / "v/b.png")])
    assert found == [(Path("v/a.png"), Path("a.png")), (Path("v/b.png"), Path("b.png"))]


NAMES = st.text("ab.", min_size=1, max_size=3).filter(lambda name: not name.startswith("."))


@settings(deadline=None)
@given(st.sets(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=6))
def test_every_image_of_a_folder_has_a_place_of_its_own(tmp_path_factory, stems):
    folder = tmp_path_factory.mktemp("tree")
    for stem in stems:
        (folder / stem).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.jpg").touch()
    if not stems:
        with one_sentence(folder):
            find_images([str(folder)])
        return
    jobs = plan(find_images([str(folder)]), Path("out"), ["label", "overlay"])
    assert {job.image for job in jobs} == {folder / f"{stem}.jpg" for stem in stems}
    for job in jobs:
        stem = job.image.relative_to(folder).as_posix().removesuffix(".jpg")
        assert job.targets == {"label": Path(f"out/{stem}.png"), "overlay": Path(f"out/{stem}_overlay.jpg")}


@pytest.mark.parametrize("source", ["none.png", "no/*.png", "empty", "empty.txt"])
def test_a_source_that_names_nothing_is_named(run, tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n\n")
    code, _, error = run_command("predict", run, source, "-o", "out")
    assert (code, error.startswith(f"fcn-smp: {source} names no image")) == (2, True)


def test_images_that_would_share_a_file_are_refused_before_anything_is_written(run, tmp_path):
    write_photos(tmp_path / "in", "0.png", "a.jpg", "a.png")
    code, _, error = run_command("predict", run, tmp_path / "in", "-o", tmp_path / "out")
    assert (code, "a.jpg" in error, "a.png" in error, (tmp_path / "out").exists()) == (2, True, True, False)
    write_photos(tmp_path / "two", "a.png", "a_confidence.png")
    with one_sentence("a.png", "a_confidence.png"):
        plan(find_images([str(tmp_path / "two")]), tmp_path / "out", ["label", "confidence"])


def test_an_image_is_never_taken_for_its_own_result(run, tmp_path):
    write_photos(tmp_path, "a.png")
    before = tree(tmp_path)
    for source in (tmp_path / "a.png", tmp_path / "*.png"):
        code, _, error = run_command("predict", run, source, "-o", tmp_path, "--skip-existing")
        assert (code, "a.png, itself an image" in error) == (2, True)
    code, _, error = run_command("predict", run, tmp_path, "-o", tmp_path)
    assert (code, "is the folder of the images" in error) == (2, True)
    assert tree(tmp_path) == before


def test_results_in_a_folder_below_the_images_are_not_labelled_in_turn(run, tmp_path):
    write_photos(tmp_path, "a.png", "x/b.png")
    for expected in ("2 images labelled", "0 images labelled"):
        output = run_command("predict", run, tmp_path, "-o", tmp_path / "x/out", "--skip-existing")[1]
        assert expected in output
    assert "2 had been before" in output
    assert files(tmp_path / "x/out") == {"a.png", "a_overlay.jpg", "x/b.png", "x/b_overlay.jpg"}


# --- Interruptions and mistakes


def test_only_what_is_missing_is_written_with_skip_existing(run, tmp_path):
    write_photos(tmp_path / "in", "a.png", "b.png", "c.png")
    command = "predict", run, tmp_path / "in", "-o", tmp_path / "out"
    run_command(*command)
    first = {path: path.read_bytes() for path in tree(tmp_path / "out")}
    for lost in ("b.png", "b_overlay.jpg", "c_overlay.jpg"):
        (tmp_path / "out" / lost).unlink()
    kept = tree(tmp_path / "out")

    code, _, error = run_command(*command)
    assert (code, "is there already" in error, "--skip-existing" in error) == (2, True, True)
    assert tree(tmp_path / "out") == kept

    code, output, _ = run_command(*command, "--skip-existing")
    assert (code, "2 images labelled" in output, "1 had been before" in output) == (0, True, True)
    assert {path: path.read_bytes() for path in tree(tmp_path / "out")} == first
    assert {path: when for path, when in tree(tmp_path / "out").items() if path in kept} == kept


def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(run, tmp_path, monkeypatch, ctrl_c):
    write_photos(tmp_path / "in", *(f"{number}.png" for number in range(6)))
    command = "predict", run, tmp_path / "in", "-o", tmp_path / "out", "--skip-existing"
    save = prediction._save

    def save_slowly_and_interrupt(segmenter, kind, path, image, maps):
        if path.name == "2.png":
            ctrl_c()
            time.sleep(0.2)
        save(segmenter, kind, path, image, maps)

    with monkeypatch.context() as patch:
        patch.setattr(prediction, "_save", save_slowly_and_interrupt)
        code, _, error = run_command(*command)
    assert (code, "--skip-existing" in error, error.count("\n")) == (130, True, 1)
    kept = tree(tmp_path / "out")
    assert 0 < len(kept) < 12
    for path in kept:
        Image.open(path).load()
    assert run_command(*command)[0] == 0
    assert len(files(tmp_path / "out")) == 12
    assert {path: when for path, when in tree(tmp_path / "out").items() if path in kept} == kept


def test_ctrl_c_does_not_wait_for_what_is_queued(segmenter, tmp_path, monkeypatch, ctrl_c):
    write_photos(tmp_path, *(f"{number}.png" for number in range(30)), size=(8, 8))
    jobs = plan(find_images([str(tmp_path)]), tmp_path / "out", ["label"])
    interrupted, started = threading.Event(), []

    def write(segmenter, job, image, maps):
        started.append(job)
        if len(started) == 1:
            time.sleep(0.5)  # all others are queued by then
            ctrl_c()
            interrupted.set()
        interrupted.wait()
        time.sleep(0.1)

    monkeypatch.setattr(prediction, "_write", write)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        predict_files(segmenter, jobs, lambda job, error: None)
    assert len(started) < 20


def test_a_damaged_image_is_named_and_the_others_are_labelled(run, tmp_path):
    write_photos(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    damaged = tmp_path / "in/b.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    (tmp_path / "list.txt").write_text("\n".join(str(tmp_path / f"in/{name}.png") for name in "abcde"))
    code, output, error = run_command("predict", run, tmp_path / "list.txt", "-o", tmp_path / "out", "--no-overlay")
    assert code == 1
    assert files(tmp_path / "out") == {"a.png", "c.png", "d.png"}
    lines = error.splitlines()
    assert [line.startswith("fcn-smp: ") for line in lines] == [True, True]
    assert [re.search(r"in/(\w)\.png cannot be read", line)[1] for line in lines] == ["b", "e"]
    assert "3 images labelled" in output
    assert "2 of 5 failed" in output


def test_a_full_disk_ends_the_run_with_the_name_of_the_file(run, tmp_path, monkeypatch):
    write_photos(tmp_path / "in", *(f"{number}.png" for number in range(5)))
    save = Image.Image.save

    def save_until_full(self, path, *arguments, **options):
        save(self, path, *arguments, **options)
        if Path(path).name == "2.png":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save_until_full)
    code, _, error = run_command("predict", run, tmp_path / "in", "-o", tmp_path / "out")
    assert (code, error) == (2, f"fcn-smp: {tmp_path}/out/2.png cannot be read or written: No space left on device.\n")
    assert not any(path.name.startswith((".", "2.png")) for path in tree(tmp_path / "out"))


def test_an_error_in_a_thread_is_not_lost(segmenter, tmp_path, monkeypatch):
    write_photos(tmp_path, "a.png", "b.png")

    def fail(*_):
        raise RuntimeError("in a thread")

    jobs = plan(find_images([str(tmp_path)]), tmp_path / "out", ["label"])
    for name in ("_write", "read_image"):
        with monkeypatch.context() as patch:
            patch.setattr(prediction, name, fail)
            with pytest.raises(RuntimeError, match="in a thread"):
                predict_files(segmenter, jobs, lambda job, error: None)
    assert not (tmp_path / "out").exists()


def test_an_image_too_long_for_a_jpeg_has_its_label_all_the_same(run, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "_LONGEST", 50)
    write_photos(tmp_path, "a.png")
    code, _, error = run_command("predict", run, tmp_path / "a.png", "-o", tmp_path / "out")
    assert (code, "a.png" in error, "--no-overlay" in error) == (1, True, True)
    assert files(tmp_path / "out") == {"a.png"}


def test_a_label_picture_has_no_room_for_more_classes_than_numbers():
    segmenter = segmenter_of([f"class {number}" for number in range(256)])
    with one_sentence("256 classes"):
        predict(segmenter, photo())


@pytest.mark.parametrize("slow", ["reading", "writing", "neither"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_images_in_memory_do_not_grow_with_those_that_are_labelled(segmenter, tmp_path, monkeypatch, slow, batch_size):
    write_photos(tmp_path, "a.png", size=(8, 8))
    read = prediction.read_image
    lock = threading.Lock()
    held = most = 0

    def count(change):
        nonlocal held, most
        with lock:
            held += change
            most = max(most, held)

    def counting_read(path):
        time.sleep(0.002 * (slow == "reading"))
        image = read(path)
        count(1)
        return image

    def counting_write(*arguments):
        time.sleep(0.05 * (slow == "writing"))
        count(-1)

    monkeypatch.setattr(prediction, "read_image", counting_read)
    monkeypatch.setattr(prediction, "_write", counting_write)
    monkeypatch.setattr(overlap, "COUNT", 6)
    monkeypatch.setattr(segmenter, "bands", lambda images, _: iter([torch.zeros(len(images), 5, 8, 8)]))
    jobs = [prediction.Job(tmp_path / "a.png", {"label": tmp_path / f"{number}.png"}) for number in range(100)]
    finished = []
    predict_files(segmenter, jobs, lambda job, error: finished.append((job, error)), batch_size=batch_size)
    assert len(finished) == len({job.targets["label"] for job, error in finished if error is None}) == len(jobs)
    assert (held, most <= 3 * 6 + batch_size + 2) == (0, True)


def test_the_next_image_waits_while_a_large_one_is_written(segmenter, tmp_path, monkeypatch):
    write_photos(tmp_path, *(f"{number}.png" for number in range(5)))
    monkeypatch.setattr(overlap, "MEMORY", photo().nbytes)
    write, running, most = prediction._write, [], []

    def slow_write(*arguments):
        running.append(0)
        most.append(len(running))
        time.sleep(0.1)
        write(*arguments)
        running.pop()

    monkeypatch.setattr(prediction, "_write", slow_write)
    predict_files(segmenter, plan(find_images([str(tmp_path)]), tmp_path / "out", ["label"]), lambda job, error: None)
    assert most == [1] * 5


def test_images_of_many_sizes_do_not_pile_up_until_there_is_a_batch(segmenter, monkeypatch):
    monkeypatch.setattr(overlap, "COUNT", 6)
    given, run = [], []

    def frames():
        for number in range(40):
            given.append(number)
            yield photo(8, 8 + number)

    bands = segmenter.bands

    def counting_bands(images, *rest):
        run.extend(images)
        assert len(given) - len(run) <= 6 + 8
        return bands(images, *rest)

    monkeypatch.setattr(segmenter, "bands", counting_bands)
    assert [one.label.shape for one in predict(segmenter, frames(), batch_size=8)] == [(8, 8 + n) for n in range(40)]


def test_few_large_images_wait_at_a_time(segmenter, tmp_path, monkeypatch):
    write_photos(tmp_path, *(f"{number}.png" for number in range(12)))
    monkeypatch.setattr(overlap, "MEMORY", 3 * photo().nbytes)
    batches = []
    bands = segmenter.bands
    monkeypatch.setattr(segmenter, "bands", lambda images, *rest: batches.append(len(images)) or bands(images, *rest))
    assert len(predict(segmenter, tmp_path, batch_size=8)) == 12
    assert batches == [4, 4, 4]


# --- In Python


def test_all_kinds_of_images_give_the_same(segmenter, run, tmp_path, monkeypatch):
    write_photos(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("a.png")
    array = photo()
    tensor = torch.from_numpy(array).movedim(-1, 0)
    kinds = [
        "a.png", Path("a.png"), ".", "*.png", "list.txt", Image.open("a.png"), array, array[::-1][::-1],
        tensor, tensor / 255, tensor[None], (tensor.double()[None] / 255 - 0.001).clamp(0, 1), [array], iter([array]),
    ]  # fmt: skip
    expected = segmenter.predict(array)
    for kind in kinds:
        [found] = predict(segmenter, kind)
        assert np.array_equal(found.label, expected)
        assert found.path == (Path("a.png") if isinstance(kind, str | Path) else None)
    grey_array = np.array(Image.fromarray(array).convert("L"))
    assert np.array_equal(predict(segmenter, grey_array)[0].label, segmenter.predict(grey(array)))
    assert len(predict(segmenter, ["a.png", array, torch.stack([tensor, tensor]), "a.png"])) == 5
    assert np.array_equal(predict(run, array, device="cpu")[0].label, expected)


def test_a_prediction_is_also_a_picture_an_overlay_and_shares(segmenter):
    [found] = predict(segmenter, photo())
    assert (found.classes, found.probabilities) == (CLASSES, None)
    assert np.array_equal(np.array(found.picture()), found.label)
    assert np.array_equal(np.array(found.picture().convert("RGB")), voc_palette()[found.label])
    overlay = np.array(found.overlay(photo()))[:40, :56]
    mixed = 0.4 * photo() + 0.6 * voc_palette()[found.label]
    np.testing.assert_allclose(overlay, np.where((found.label == 0)[..., None], photo(), mixed), atol=0.51)
    assert found.share() == {name: (found.label == number).mean() for number, name in enumerate(CLASSES)}
    with pytest.raises(ValueError, match=r"40.*56"):
        found.overlay(photo(56, 40))


@pytest.mark.parametrize(
    "wrong",
    [7, [photo(), None], b"a.png", photo() / 255, photo()[..., :2], np.zeros((0, 3), np.uint8),
     torch.zeros(3, 3), torch.zeros(4, 9, 9), torch.zeros(3, 9, 9, dtype=torch.int64)],
)  # fmt: skip
def test_what_is_no_image_is_refused(segmenter, wrong):
    with pytest.raises(TypeError, match="An image must be"):
        predict(segmenter, wrong)


def test_a_normalised_tensor_is_refused(segmenter):
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            predict(segmenter, torch.full((3, 9, 9), value))


def test_a_damaged_image_is_an_error_in_python(segmenter, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(photo()), "PNG")[:99])
    with one_sentence("a.png", "cannot be read"):
        predict(segmenter, [photo(), tmp_path / "a.png"])
    with one_sentence("b.png", "names no image"):
        predict(segmenter, tmp_path / "b.png")
