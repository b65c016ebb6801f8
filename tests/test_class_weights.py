"""Class weights, against counting by hand, and counts that are kept."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
from helpers import LabelsInMemory, random_label
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_smp.data.class_weights import ClassCounts, cached_counts, class_weights, count_classes
from fcn_smp.data.dataset import Array
from fcn_smp.data.voc import VOCSegmentation

CLASSES = 4


@st.composite
def labels(draw: st.DrawFn) -> list[Array]:
    """A few small labels, of void and some of the classes, with at least one labelled pixel in all."""
    values = draw(st.sampled_from([[0, 1, 2, 3, 255], [0, 2, 255], [1, 3], [3]]))
    pictures = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
        lambda size: st.lists(st.sampled_from(values), min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
            lambda numbers: np.array(numbers, np.uint8).reshape(size)
        )
    )
    first = np.full((2, 2), values[0], np.uint8)
    return [first, *draw(st.lists(pictures, max_size=5))]


def counted(pictures: list[Array]) -> list[dict[int, int]]:
    """Count the pixels of each class in each picture, one by one."""
    counts = []
    for picture in pictures:
        pixels: dict[int, int] = {}
        for value in picture.ravel().tolist():
            if value != 255:
                pixels[value] = pixels.get(value, 0) + 1
        counts.append(pixels)
    return counts


def weights_by_hand(pictures: list[Array], method: str) -> list[float]:
    counts = counted(pictures)
    pixels = [sum(count.get(k, 0) for count in counts) for k in range(CLASSES)]
    shown = [[count for count in counts if k in count] for k in range(CLASSES)]
    present = [k for k in range(CLASSES) if pixels[k]]
    weights = [0.0] * CLASSES
    if method == "inverse_frequency":
        for k in present:
            weights[k] = sum(pixels) / (len(present) * pixels[k])
    elif method == "median_frequency":
        frequency = {k: pixels[k] / sum(sum(count.values()) for count in shown[k]) for k in present}
        ranked = sorted(frequency.values())
        middle = (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2
        for k in present:
            weights[k] = middle / frequency[k]
    else:
        raw = {k: (1 - 0.999) / (1 - 0.999 ** len(shown[k])) for k in present}
        for k in present:
            weights[k] = raw[k] * len(present) / sum(raw.values())
    return weights


@settings(deadline=None)
@given(labels())
def test_counts_are_those_of_counting_one_by_one(pictures: list[Array]) -> None:
    counts = count_classes(LabelsInMemory(pictures, CLASSES))
    each = counted(pictures)
    for k in range(CLASSES):
        showing = [count for count in each if k in count]
        assert counts.pixels[k] == sum(count[k] for count in showing)
        assert counts.images[k] == len(showing)
        assert counts.image_pixels[k] == sum(sum(count.values()) for count in showing)


@pytest.mark.parametrize("method", ["inverse_frequency", "median_frequency", "effective_number"])
@settings(deadline=None)
@given(pictures=labels())
def test_weights_are_those_of_the_definition(method: str, pictures: list[Array]) -> None:
    weights = class_weights(count_classes(LabelsInMemory(pictures, CLASSES)), method)
    assert all(type(weight) is float for weight in weights)
    np.testing.assert_allclose(weights, weights_by_hand(pictures, method), rtol=1e-9)
    for k in range(CLASSES):
        assert (weights[k] == 0) == all((picture != k).all() for picture in pictures)


@settings(deadline=None)
@given(labels())
def test_inverse_frequency_gives_all_classes_the_same_mass_and_keeps_the_sum(pictures: list[Array]) -> None:
    counts = count_classes(LabelsInMemory(pictures, CLASSES))
    mass = counts.pixels * np.array(class_weights(counts, "inverse_frequency"))
    np.testing.assert_allclose(mass[mass > 0], mass.max())
    np.testing.assert_allclose(mass.sum(), counts.pixels.sum())


def test_median_frequency_is_that_of_segnet() -> None:
    # Badrinarayanan et al., section 4.1: a class's pixels over all pixels of the images that show it.
    pictures = [np.array([[0, 0, 0, 1]], np.uint8), np.array([[0, 255, 2, 2]], np.uint8)]
    weights = class_weights(count_classes(LabelsInMemory(pictures, CLASSES)), "median_frequency")
    frequencies = [4 / 7, 1 / 4, 2 / 3]
    np.testing.assert_allclose(weights, [(4 / 7) / f for f in frequencies] + [0])


def test_effective_number_counts_images_and_not_pixels() -> None:
    counts = ClassCounts(np.array([10**6, 10]), np.array([100, 100]), np.array([10**6, 10**6]))
    assert class_weights(counts, "effective_number") == [1.0, 1.0]
    rare = ClassCounts(counts.pixels, np.array([100, 1]), counts.image_pixels)
    common, seldom = class_weights(rare, "effective_number")
    np.testing.assert_allclose(seldom / common, sum(0.999**n for n in range(100)))


def test_counting_many_labels_at_once_loses_none() -> None:
    rng = np.random.default_rng(0)
    pictures = [random_label(rng, (30, 40), CLASSES) for _ in range(60)]
    counts = count_classes(LabelsInMemory(pictures, CLASSES))
    assert counts.pixels.sum() == sum((picture != 255).sum() for picture in pictures)
    assert counts.pixels.dtype == np.int64


# --- Counts that are kept


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which counts are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fcn_smp/class-counts"


class CountedReads(LabelsInMemory):
    """Counts how many labels are decoded."""

    decoded = 0

    def read_label(self, index: int) -> Array:
        self.decoded += 1
        return super().read_label(index)


def few_labels(seed: int = 0, classes: int = CLASSES) -> CountedReads:
    rng = np.random.default_rng(seed)
    return CountedReads([random_label(rng, (20, 30), CLASSES) for _ in range(5)], classes)


def check_counts(counts: ClassCounts, dataset: LabelsInMemory) -> None:
    for name, count in vars(count_classes(dataset)).items():
        kept = getattr(counts, name)
        assert kept.dtype == np.int64
        np.testing.assert_array_equal(kept, count)


def test_labels_are_counted_once(cache: Path) -> None:
    dataset = few_labels()
    fingerprint = dataset.fingerprint()
    assert dataset.decoded == 0
    first = cached_counts(dataset, fingerprint)
    assert dataset.decoded == 5
    assert [path.name for path in cache.iterdir()] == [f"{fingerprint}.json"]
    again = few_labels()
    second = cached_counts(again, again.fingerprint())
    assert again.decoded == 0
    for counts in (first, second):
        check_counts(counts, dataset)
        for method in ("inverse_frequency", "median_frequency", "effective_number"):
            assert class_weights(counts, method) == class_weights(count_classes(dataset), method)


def test_labels_are_counted_anew_when_one_changes(cache: Path) -> None:
    before, after = few_labels(), few_labels(seed=1)
    after.storage.files |= {name: content for name, content in before.storage.files.items() if name != "3.png"}
    for dataset in (before, after):
        check_counts(cached_counts(dataset, dataset.fingerprint()), dataset)
    assert after.decoded == 10  # 5 of them by the check
    assert len(list(cache.iterdir())) == 2


def test_classes_made_of_others_are_counted_on_their_own(cache: Path) -> None:
    dataset = few_labels()
    merged = dataset.select({"some": [1, 2], "others": "rest"})
    for one in (dataset, merged, dataset, merged):
        check_counts(cached_counts(one, one.fingerprint()), one)
    assert len(list(cache.iterdir())) == 2


GOOD = {"pixels": [1, 2, 3, 4], "images": [1, 1, 1, 1], "image_pixels": [9, 9, 9, 9]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 60,
        b"\xff\xfe",
        b"{",
        b"[" * 10**5,
        b"null",
        b"[1, 2, 3]",
        b"{}",
        json.dumps(GOOD).encode()[:-5],
        *(
            json.dumps(GOOD | change).encode()
            for change in (
                {"pixels": [1, 2, 3]},
                {"pixels": 7},
                {"pixels": [1, 2, 3, -4]},
                {"pixels": [1, 2, 3, 4.5]},
                {"pixels": [1, 2, 3, "4"]},
                {"pixels": [1, 2, 3, None]},
                {"pixels": [1, 2, 3, [4]]},
                {"pixels": [1, 2, 3, 2**63]},
                {"pixels": [1, 2, 3, 10**30]},
                {"pixels": [1, 2, 3, float("nan")]},
                {name: [*count, 1] for name, count in GOOD.items()},
            )
        ),
    ],
)
def test_damaged_counts_are_counted_anew_and_replaced(cache: Path, content: bytes) -> None:
    dataset = few_labels()
    path = cache / f"{dataset.fingerprint()}.json"
    cache.mkdir(parents=True)
    path.write_bytes(content)
    check_counts(cached_counts(dataset, path.stem), dataset)
    whole = path.read_bytes()
    again = few_labels()
    check_counts(cached_counts(again, path.stem), dataset)
    assert again.decoded == 0
    assert path.read_bytes() == whole


@settings(deadline=None, max_examples=50)
@given(labels(), st.integers(0, 400), st.floats(0, 1))
def test_counts_cut_short_or_with_a_wrong_byte_never_fail(pictures: list[Array], place: int, length: float) -> None:
    dataset = LabelsInMemory(pictures, CLASSES)
    fingerprint = dataset.fingerprint()
    with TemporaryDirectory() as folder, patch.dict("os.environ", XDG_CACHE_HOME=folder):
        check_counts(cached_counts(dataset, fingerprint), dataset)
        path = Path(folder) / f"fcn_smp/class-counts/{fingerprint}.json"
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * length)])
        check_counts(cached_counts(dataset, fingerprint), dataset)
        place %= len(content)
        path.write_bytes(content[:place] + b"x" + content[place + 1 :])
        check_counts(cached_counts(dataset, fingerprint), dataset)


def test_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    dataset = few_labels()
    fingerprint = dataset.fingerprint()
    (cache / f"{fingerprint}.json").mkdir(parents=True)  # where the counts should go
    check_counts(cached_counts(dataset, fingerprint), dataset)
    assert [path.name for path in cache.iterdir()] == [f"{fingerprint}.json"]
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", Path("/dev/full"), Path("/proc/nowhere")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        check_counts(cached_counts(dataset, fingerprint), dataset)


def test_user_without_a_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    dataset = few_labels()
    check_counts(cached_counts(dataset, dataset.fingerprint()), dataset)


def test_many_may_keep_counts_at_once(cache: Path) -> None:
    dataset = few_labels()
    fingerprint = dataset.fingerprint()

    def count(turn: int) -> ClassCounts:
        if turn % 3 == 0:
            (cache / f"{fingerprint}.json").unlink(missing_ok=True)
        return cached_counts(dataset, fingerprint)

    with ThreadPoolExecutor(8) as pool:
        for counts in pool.map(count, range(60)):
            check_counts(counts, dataset)
    cached_counts(dataset, fingerprint)
    assert [path.name for path in cache.iterdir()] == [f"{fingerprint}.json"]


@pytest.mark.usefixtures("cache")
def test_voc_is_counted_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = VOCSegmentation(data / "voc2007-segmentation-trainval.tar", "train", 2007)
    fingerprint = dataset.fingerprint()
    check_counts(cached_counts(dataset, fingerprint), dataset)
    monkeypatch.setattr(dataset, "storage", None)
    counts = cached_counts(dataset, fingerprint)
    assert (counts.images > 0).all()
