"""A confusion matrix as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fcn_smp.files import whole

_NUMBERS = 25
"""Classes up to which shares are written into the cells."""


def draw_confusion(confusion: npt.NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Draw what the pixels of each class are predicted as, a PNG.

    Args:
        confusion: Counts (C, C); rows are the truth, columns the prediction.
        classes: Name of each class.
        path: The file to write, at once.
    """
    pixels = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, pixels, out=np.full(confusion.shape, np.nan), where=pixels > 0)
    side = min(max(4.5, 1.6 + 0.42 * len(classes)), 40)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(side + 0.8, side), dpi=100, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)  # by hand, since pyplot would keep the figure and might ask for a screen
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))  # rare mistakes show too
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    figure.colorbar(image, ax=axes, label="% of the pixels of the true class", shrink=0.6)
    if len(classes) <= _NUMBERS:
        _write_shares(axes, shares)
    with whole(path) as temporary:
        figure.savefig(temporary, format="png")


def _write_shares(axes: Axes, shares: npt.NDArray[np.float64]) -> None:
    """Write each share in whole per cent, but none that rounds to 0."""
    for (row, column), share in np.ndenumerate(shares):
        if 100 * share >= 0.5:
            color = "white" if share > 0.4 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=8)
