"""The curves of a run, as one picture or as panels of a page."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fcn_smp.files import whole

Rows = Sequence[Mapping[str, str]]

# Colours of Okabe and Ito, which people of every kind of colour vision tell apart.
_BLUE, _GREEN, _ORANGE, _SKY, _RED, _PURPLE = "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#D55E00", "#CC79A7"
RUN_COLORS = (_BLUE, _RED, _GREEN, _PURPLE, _ORANGE, _SKY)
_TEXT, _GREY, _PALE, _PAPER = "#222222", "#999999", "#e0e0e0", "#ffffff"
_SCORES = {
    "pixel_accuracy": ("pixel accuracy", _GREEN),
    "mean_accuracy": ("mean accuracy", _RED),
    "frequency_weighted_iu": ("frequency-weighted IU", _PURPLE),
    "mean_iu": ("mean IU", _BLUE),  # last, above the others
}
_PARTS = {"wait": _RED, "forward": _BLUE, "backward": _SKY, "step": _PURPLE, "validate": _ORANGE, "other": _GREY}


class Label(NamedTuple):
    """What is to be written beside the right end of something: at ``y`` of the data, with a stroke of its colour."""

    text: str
    y: float
    color: str


class Panel(NamedTuple):
    """A chart of a page, without its title and labels, which are the page's to write.

    Attributes:
        title: What it shows.
        labels: What its colours mean, most often with a value, from the top to the bottom.
        svg: An ``<svg>`` element. Its colours are variables of CSS, as ``css_color`` names them.
        last: Whether the values of the labels are the last ones.
    """

    title: str
    labels: list[Label]
    svg: str
    last: bool


class _Drawn(NamedTuple):
    title: str
    labels: list[Label]
    last: bool = True


def draw_curves(rows: Rows, path: Path) -> None:
    """Draw loss, scores, learning rate and time by epoch, a PNG of 1200x800 pixels.

    Args:
        rows: Those of ``metrics.csv``, one for each epoch, at least one. A score that is empty or NaN is left out.
        path: The file to write, at once.
    """
    figure = Figure(figsize=(12, 8), dpi=100, facecolor=_PAPER, layout=ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.15))
    FigureCanvasAgg(figure)  # by hand, since pyplot would keep the figure and might ask for a screen
    panels = figure.subplots(2, 2, gridspec_kw={"height_ratios": (3, 2)}).ravel().tolist()
    for axes, draw in zip(panels, _PANELS.values(), strict=True):
        _prepare(axes, rows)
        title, labels, _ = draw(axes, rows)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_TEXT)
        _write_labels(axes, labels)
    with whole(path) as temporary:
        figure.savefig(temporary, format="png")


def curve_panels(rows: Rows, key: str) -> list[Panel]:
    """Draw what ``draw_curves`` draws, as panels of a page.

    Args:
        rows: Those of ``metrics.csv``, at least one.
        key: What tells the panels from others of the same page.
    """
    return [_panel(rows, partial(draw, rows=rows), f"{key}-{name}") for name, draw in _PANELS.items()]


def compared_panels(runs: Mapping[str, Rows]) -> list[Panel]:
    """Draw the mean IU and the loss of several runs by epoch, each run by name, in the order of ``RUN_COLORS``."""
    longest = max(runs.values(), key=len)
    titles = {"mean_iu": "Mean IU of the validations, %", "train_loss": "Training loss"}
    return [
        _panel(longest, partial(_draw_runs, runs=runs, key=key, title=title), f"runs-{key}")
        for key, title in titles.items()
    ]


def css_color(color: str) -> str:
    """Return the variable of CSS that stands for a colour of a chart, since a dark page needs others."""
    return f"var(--c{color.lower().replace('#', '-')})"


def _panel(rows: Rows, draw: Callable[[Axes], _Drawn], key: str) -> Panel:
    # The page shows text as text. The salt makes the marks that an SVG refers to its own, and the same every time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 13}):
        figure = Figure(figsize=(5.3, 3.2), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
        axes = figure.subplots()
        _prepare(axes, rows)
        title, labels, last = draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    labels = sorted((label for label in labels if math.isfinite(label.y)), key=lambda label: -label.y)
    return Panel(title, labels, _for_a_page(file.getvalue()), last)


_METADATA = ("Creator", "Date", "Format", "Type")


def _for_a_page(svg: str) -> str:
    """Cut an ``<svg>`` element for a page out of a file: no size, names or style of its own, colours as variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| xmlns(?::\w+)?="[^"]*"| version="[\d.]+"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z]+(?:[.\w]+)?_\d+"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    for color in (*RUN_COLORS, _TEXT, _GREY, _PALE, _PAPER):
        svg = svg.replace(color.lower(), css_color(color))
    return svg


def _prepare(axes: Axes, rows: Rows) -> None:
    epochs = _column(rows, "epoch")
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", color=_TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_GREY)
    axes.tick_params(color=_GREY, labelcolor=_TEXT)
    axes.grid(axis="y", color=_PALE, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_loss(axes: Axes, rows: Rows) -> _Drawn:
    losses = _column(rows, "train_loss")
    _line(axes, _column(rows, "epoch"), losses, _BLUE)
    _scale_losses(axes, losses)
    return _Drawn("Training loss", [Label(f"{losses[-1]:.3g}", losses[-1], _BLUE)])


def _scale_losses(axes: Axes, losses: Sequence[float]) -> None:
    known = [loss for loss in losses if math.isfinite(loss)]
    if known and min(known) > 0 and max(known) > 20 * min(known):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif known and min(known) >= 0:
        axes.set_ylim(0, 1.05 * max(known) or 1)


def _draw_scores(axes: Axes, rows: Rows) -> _Drawn:
    title = "Scores of the validations, %"
    rows = [row for row in rows if math.isfinite(_number(row, "mean_iu"))]
    if not rows:
        _say_no_scores(axes)
        return _Drawn(title, [])
    epochs, labels = _column(rows, "epoch"), []
    for key, (name, color) in _SCORES.items():
        values = [100 * value for value in _column(rows, key)]
        _line(axes, epochs, values, color, width=2.5 if key == "mean_iu" else 1.5)
        labels.append(Label(f"{name} {values[-1]:.1f}", values[-1], color))
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, low - 0.12 * (high - low)), min(high, 101))  # room for what is written at the bottom
    _mark_best(axes, epochs, _column(rows, "mean_iu"))
    return _Drawn(title, labels)


def _say_no_scores(axes: Axes) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no scores", transform=axes.transAxes, ha="center", color=_TEXT)


def _mark_best(axes: Axes, epochs: Sequence[float], scores: Sequence[float]) -> None:
    """Mark the best mean IU, and write what it is at the bottom, where there is most often no curve."""
    best = max(range(len(scores)), key=scores.__getitem__)
    epoch, score = epochs[best], 100 * scores[best]
    bottom = axes.get_ylim()[0]
    axes.plot([epoch, epoch], [bottom, score], color=_BLUE, linewidth=1, linestyle=":")
    axes.plot(epoch, score, "*", markersize=16, color=_BLUE, markeredgecolor=_PAPER, zorder=4, clip_on=False)
    left, right = axes.get_xlim()
    on_the_right = epoch > (left + right) / 2
    axes.annotate(
        f"best mean IU {score:.1f}\nin epoch {epoch:.0f}",
        (epoch, bottom),
        (-10 if on_the_right else 10, 6),  # beside the star if that is as low
        textcoords="offset points",
        ha="right" if on_the_right else "left",
        va="bottom",
        color=_TEXT,
        bbox={"facecolor": _PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        zorder=5,
    )


def _draw_rate(axes: Axes, rows: Rows) -> _Drawn:
    rates = _column(rows, "lr")
    _line(axes, _column(rows, "epoch"), rates, _BLUE)
    axes.set_ylim(0, 1.05 * max((rate for rate in rates if math.isfinite(rate)), default=0) or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return _Drawn("Learning rate", [])


def _draw_time(axes: Axes, rows: Rows) -> _Drawn:
    layers = {part: _means([_positive(_number(row, f"{part}_seconds")) for row in rows]) for part in _PARTS}
    sums = [sum(parts) for parts in zip(*layers.values(), strict=True)]
    whole_epochs = _means([_positive(_number(row, "seconds")) for row in rows])
    layers["other"] = [max(0.0, seconds - known) for seconds, known in zip(whole_epochs, sums, strict=True)]
    totals = [sum(parts) for parts in zip(*layers.values(), strict=True)]
    unit, divisor = next((u for u in (("hours", 3600), ("minutes", 60)) if max(totals) > 2 * u[1]), ("seconds", 1))
    epochs = _column(rows, "epoch")
    edges = [epochs[0] - 0.5 + k * len(rows) / len(sums) for k in range(len(sums) + 1)]
    base, labels = [0.0] * len(sums), []
    for part, seconds in layers.items():
        top = [below + value / divisor for below, value in zip(base, seconds, strict=True)]
        share = sum(seconds) / (sum(totals) or 1)
        if share >= 0.005:  # less cannot be seen, nor does it matter
            axes.stairs(top, edges, baseline=base, fill=True, color=_PARTS[part])
            labels.append(Label(f"{part} {100 * share:.0f} %", (base[-1] + top[-1]) / 2, _PARTS[part]))
        base = top
    axes.set_ylim(0, 1.05 * max(base) or 1)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return _Drawn(f"Time of an epoch, {unit}", labels, last=False)


_PANELS = {"loss": _draw_loss, "scores": _draw_scores, "rate": _draw_rate, "time": _draw_time}


def _draw_runs(axes: Axes, runs: Mapping[str, Rows], key: str, title: str) -> _Drawn:
    factor, digits = (100, ".1f") if key == "mean_iu" else (1, ".3g")
    labels: list[Label] = []
    every: list[float] = []
    for (name, rows), color in zip(runs.items(), cycle(RUN_COLORS), strict=False):
        known = [row for row in rows if math.isfinite(_number(row, key))]
        values = [factor * value for value in _column(known, key)]
        _line(axes, _column(known, "epoch"), values, color)
        labels.append(Label(f"{name} {values[-1]:{digits}}" if values else name, values[-1] if values else 0.0, color))
        every += values
    if key == "train_loss":
        _scale_losses(axes, every)
    elif not every:
        _say_no_scores(axes)
    return _Drawn(title, labels)


def _means(values: Sequence[float], most: int = 60) -> list[float]:
    """Return the means of neighbours, at most ``most``, since thinner bars would flicker."""
    count = min(most, len(values))
    borders = [round(k * len(values) / count) for k in range(count + 1)]
    return [sum(values[low:high]) / (high - low) for low, high in pairwise(borders)]


def _line(axes: Axes, epochs: Sequence[float], values: Sequence[float], color: str, width: float = 2) -> None:
    # Dots tell when there are few, and show a value between two that are missing.
    axes.plot(epochs, values, color=color, linewidth=width, marker="o", markersize=4 if len(epochs) <= 30 else 0)


def _write_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Write labels to the right of the axes, none over another, joined to where they belong."""
    labels = [label for label in labels if math.isfinite(label.y)]
    line = 1.35 * 10 / 72 / (axes.get_position().height * 8)  # of 10 points, as a share of the axes' height
    to_axes = axes.transScale + axes.transLimits
    right = axes.get_xlim()[1]
    heights = [float(to_axes.transform((right, label.y))[1]) for label in labels]
    for label, height in zip(labels, _spread(heights, line), strict=True):
        axes.annotate(
            label.text,
            (right, label.y),
            (1.035, height),
            textcoords="axes fraction",
            va="center",
            color=_TEXT,
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 2, "shrinkB": 0, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move what is nearer to each other than ``gap`` apart, upwards as far as 1, else downwards."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for low, high in pairwise(order):
        moved[high] = max(moved[high], moved[low] + gap)
    ceiling = 1.0
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def _column(rows: Rows, key: str) -> list[float]:
    return [_number(row, key) for row in rows]


def _number(row: Mapping[str, str], key: str) -> float:
    return float(row.get(key) or math.nan)


def _positive(number: float) -> float:
    return number if number > 0 else 0.0
