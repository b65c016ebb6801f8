"""The picture of a run's curves: legible whatever happened, and true."""

import math
import subprocess
import sys
from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fcn_smp.curves import draw_curves

SCORES = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
PARTS = {"wait": 0.1, "forward": 4.0, "backward": 8.0, "step": 0.1, "validate": 3.0}


def table(scores, losses=None, seconds=1.0):
    """Return rows of metrics.csv with these mean IUs, one for each epoch; None where it was not validated."""
    rows = []
    for k, score in enumerate(scores):
        parts = {part: seconds * share * (part != "validate" or score is not None) for part, share in PARTS.items()}
        row = {
            "epoch": k + 1,
            "step": 10 * (k + 1),
            "seconds": 1.1 * sum(parts.values()),
            "lr": 1e-3 / (k + 1),
            "train_loss": losses[k] if losses else 1 / (k + 1),
            **{f"{part}_seconds": value for part, value in parts.items()},
            **{key: "" if score is None else min(1, score + 0.01 * n) for n, key in enumerate(sorted(SCORES))},
        }
        row["mean_iu"] = "" if score is None else score
        rows.append({key: str(value) for key, value in row.items()})
    return rows


def rising(epochs, every=1):
    return [0.9 - 0.8 / (k + 1) if (k + 1) % every == 0 else None for k in range(epochs)]


NAN = math.nan
CASES = {
    "many": table(rising(50)),
    "thousands": table(rising(2000, every=5), seconds=4000),
    "one": table([0.47]),
    "one without scores": table([None]),
    "nothing validated": table([None] * 4),
    "undefined scores": table([NAN, None, NAN]),
    "some undefined": table([NAN, 0.3, NAN, 0.5, NAN]),
    "the best first": table([0.5, 0.4, 0.3]),
    "no right pixel": table([0.0, 0.0]),
    "all right": table([1.0, 1.0, 1.0]),
    "a loss over decades": table(rising(9), losses=[300 / 4**k for k in range(9)]),
    "a loss of zero": table(rising(2), losses=[0.0, 0.0]),
    "a negative loss": table(rising(3), losses=[0.5, -0.5, -0.7]),
    "a loss that is not finite": table(rising(3), losses=[1.0, NAN, math.inf]),
    "no time": [{**row, **{f"{part}_seconds": "" for part in PARTS}, "seconds": "0"} for row in table(rising(3))],
    "an instant": table(rising(3), seconds=1e-4),
}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw rows, and return the figure and the picture's path."""
    figures = []
    save = Figure.savefig

    def keep(self, *arguments, **options):
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)

    def run(rows):
        draw_curves(rows, tmp_path / "curves.png")
        return figures[-1], tmp_path / "curves.png"

    return run


def texts(figure):
    return [text for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_every_run_gives_a_picture_in_which_no_text_covers_another(draw, rows):
    figure, path = draw(rows)
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (1200, 800))
    # An annotation's own extent would hold its stroke too.
    places = {text.get_text(): Text.get_window_extent(text) for text in texts(figure)}
    for name, box in places.items():
        assert 0 <= box.x0 < box.x1 <= 1200, name
        assert 0 <= box.y0 < box.y1 <= 800, name
    assert [pair for pair in combinations(places, 2) if places[pair[0]].overlaps(places[pair[1]])] == []


def test_the_best_validation_is_named_and_the_last_ones_are_read_off(draw):
    figure, _ = draw(table([0.1, 0.471, None, 0.471, 0.4]))
    written = {text.get_text() for text in texts(figure)}
    assert {"best mean IU 47.1\nin epoch 2", "mean IU 40.0", "0.2"} <= written
    assert {name.rpartition(" ")[0] for name in written} >= {"pixel accuracy", "mean accuracy", "frequency-weighted IU"}


def test_the_time_is_shared_out_among_its_parts(draw):
    figure, _ = draw(table([0.5] * 4))
    shares = {text.get_text() for text in texts(figure) if text.get_text().endswith(" %")}
    assert shares == {"wait 1 %", "forward 24 %", "backward 48 %", "step 1 %", "validate 18 %", "other 9 %"}


def test_time_that_the_table_does_not_have_is_not_made_up(draw):
    figure, _ = draw(CASES["no time"])
    assert [text.get_text() for text in texts(figure) if text.get_text().endswith(" %")] == []


@pytest.mark.parametrize(("seconds", "unit"), [(1, "seconds"), (30, "minutes"), (4000, "hours")])
def test_time_is_in_a_unit_that_one_can_read(draw, seconds, unit):
    figure, _ = draw(table([0.5] * 4, seconds=seconds))
    assert unit in [axes.get_title(loc="left") for axes in figure.axes][3]


def test_the_picture_is_replaced_at_once(draw, tmp_path, monkeypatch):
    _, path = draw(CASES["many"])
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("No space left")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space"):
        draw_curves(CASES["one"], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_matplotlib_s_own_state_is_left_alone():
    check = "import sys, fcn_smp.curves; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
