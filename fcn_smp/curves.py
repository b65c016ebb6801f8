"""The curves of a run as one picture."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fcn_smp.files import whole

Rows = Sequence[Mapping[str, str]]

# Colours of Okabe and Ito, which people of every kind of colour vision tell apart.
_BLUE, _GREEN, _ORANGE, _SKY, _RED, _PURPLE = "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#D55E00", "#CC79A7"
_TEXT, _GREY, _PALE = "#222222", "#999999", "#e0e0e0"
_SCORES = {
    "pixel_accuracy": ("pixel accuracy", _GREEN),
    "mean_accuracy": ("mean accuracy", _RED),
    "frequency_weighted_iu": ("frequency-weighted IU", _PURPLE),
    "mean_iu": ("mean IU", _BLUE),  # last, above the others
}
_PARTS = {"wait": _RED, "forward": _BLUE, "backward": _SKY, "step": _PURPLE, "validate": _ORANGE, "other": _GREY}


class _Label(NamedTuple):
    """What is written beside the right end of something: at ``y`` of the data, with a stroke of its colour."""

    text: str
    y: float
    color: str


def draw_curves(rows: Rows, path: Path) -> None:
    """Draw loss, scores, learning rate and time by epoch, a PNG of 1200x800 pixels.

    Args:
        rows: Those of ``metrics.csv``, one for each epoch, at least one. A score that is empty or NaN is left out.
        path: The file to write, at once.
    """
    figure = Figure(figsize=(12, 8), dpi=100, facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.15))
    FigureCanvasAgg(figure)  # by hand, since pyplot would keep the figure and might ask for a screen
    panels = figure.subplots(2, 2, gridspec_kw={"height_ratios": (3, 2)}).ravel().tolist()
    for axes, draw in zip(panels, (_draw_loss, _draw_scores, _draw_rate, _draw_time), strict=True):
        _prepare(axes, rows)
        draw(axes, rows)
    with whole(path) as temporary:
        figure.savefig(temporary, format="png")


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


def _draw_loss(axes: Axes, rows: Rows) -> None:
    _title(axes, "Training loss")
    losses = _column(rows, "train_loss")
    _line(axes, _column(rows, "epoch"), losses, _BLUE)
    known = [loss for loss in losses if math.isfinite(loss)]
    if known and min(known) > 0 and max(known) > 20 * min(known):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif known and min(known) >= 0:
        axes.set_ylim(0, 1.05 * max(known) or 1)
    _write_labels(axes, [_Label(f"{losses[-1]:.3g}", losses[-1], _BLUE)])


def _draw_scores(axes: Axes, rows: Rows) -> None:
    _title(axes, "Scores of the validations, %")
    rows = [row for row in rows if math.isfinite(_number(row, "mean_iu"))]
    if not rows:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no scores", transform=axes.transAxes, ha="center", color=_TEXT)
        return
    epochs, labels = _column(rows, "epoch"), []
    for key, (name, color) in _SCORES.items():
        values = [100 * value for value in _column(rows, key)]
        _line(axes, epochs, values, color, width=2.5 if key == "mean_iu" else 1.5)
        labels.append(_Label(f"{name} {values[-1]:.1f}", values[-1], color))
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, low - 0.12 * (high - low)), min(high, 101))  # room for what is written at the bottom
    _mark_best(axes, epochs, _column(rows, "mean_iu"))
    _write_labels(axes, labels)


def _mark_best(axes: Axes, epochs: Sequence[float], scores: Sequence[float]) -> None:
    """Mark the best mean IU, and write what it is at the bottom, where there is most often no curve."""
    best = max(range(len(scores)), key=scores.__getitem__)
    epoch, score = epochs[best], 100 * scores[best]
    bottom = axes.get_ylim()[0]
    axes.plot([epoch, epoch], [bottom, score], color=_BLUE, linewidth=1, linestyle=":")
    axes.plot(epoch, score, "*", markersize=16, color=_BLUE, markeredgecolor="white", zorder=4, clip_on=False)
    left, right = axes.get_xlim()
    on_the_right = epoch > (left + right) / 2
    axes.annotate(
        f"best mean IU {score:.1f}\nin epoch {epoch:.0f}",
        (epoch, bottom),
        (-6 if on_the_right else 6, 6),
        textcoords="offset points",
        ha="right" if on_the_right else "left",
        va="bottom",
        color=_TEXT,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        zorder=5,
    )


def _draw_rate(axes: Axes, rows: Rows) -> None:
    _title(axes, "Learning rate")
    rates = _column(rows, "lr")
    _line(axes, _column(rows, "epoch"), rates, _BLUE)
    axes.set_ylim(0, 1.05 * max((rate for rate in rates if math.isfinite(rate)), default=0) or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_time(axes: Axes, rows: Rows) -> None:
    layers = {part: _means([_positive(_number(row, f"{part}_seconds")) for row in rows]) for part in _PARTS}
    sums = [sum(parts) for parts in zip(*layers.values(), strict=True)]
    whole_epochs = _means([_positive(_number(row, "seconds")) for row in rows])
    layers["other"] = [max(0.0, seconds - known) for seconds, known in zip(whole_epochs, sums, strict=True)]
    totals = [sum(parts) for parts in zip(*layers.values(), strict=True)]
    unit, divisor = next((u for u in (("hours", 3600), ("minutes", 60)) if max(totals) > 2 * u[1]), ("seconds", 1))
    _title(axes, f"Time of an epoch, {unit}")
    epochs = _column(rows, "epoch")
    edges = [epochs[0] - 0.5 + k * len(rows) / len(sums) for k in range(len(sums) + 1)]
    base, labels = [0.0] * len(sums), []
    for part, seconds in layers.items():
        top = [below + value / divisor for below, value in zip(base, seconds, strict=True)]
        share = sum(seconds) / (sum(totals) or 1)
        if share >= 0.005:  # less cannot be seen, nor does it matter
            axes.stairs(top, edges, baseline=base, fill=True, color=_PARTS[part])
            labels.append(_Label(f"{part} {100 * share:.0f} %", (base[-1] + top[-1]) / 2, _PARTS[part]))
        base = top
    axes.set_ylim(0, 1.05 * max(base) or 1)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    _write_labels(axes, labels)


def _means(values: Sequence[float], most: int = 60) -> list[float]:
    """Return the means of neighbours, at most ``most``, since thinner bars would flicker."""
    count = min(most, len(values))
    borders = [round(k * len(values) / count) for k in range(count + 1)]
    return [sum(values[low:high]) / (high - low) for low, high in pairwise(borders)]


def _line(axes: Axes, epochs: Sequence[float], values: Sequence[float], color: str, width: float = 2) -> None:
    # Dots tell when there are few, and show a value between two that are missing.
    axes.plot(epochs, values, color=color, linewidth=width, marker="o", markersize=4 if len(epochs) <= 30 else 0)


def _write_labels(axes: Axes, labels: Sequence[_Label]) -> None:
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


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_TEXT)


def _column(rows: Rows, key: str) -> list[float]:
    return [_number(row, key) for row in rows]


def _number(row: Mapping[str, str], key: str) -> float:
    return float(row.get(key) or math.nan)


def _positive(number: float) -> float:
    return number if number > 0 else 0.0
