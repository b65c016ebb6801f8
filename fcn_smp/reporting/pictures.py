"""The pictures of a report as its script wants them: within the page, labels as numbers."""

import base64
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn_smp.errors import UserError
from fcn_smp.reporting.runs import ImageScore, Run

_COLOR = re.compile("#[0-9a-f]{6}")  # what else the scores hold must not get into the style


def common_rows(runs: Sequence[Run]) -> list[int]:
    """Return the rows of the images of which every run has pictures, from the worst mean IU to the best.

    Of several runs that is their mean. Images without a score come last.
    """
    names = [{image.row: image.name for image in run.images} for run in runs]
    rows = [row for row in runs[0].samples if all(row in run.samples for run in runs)]
    rows = [row for row in rows if len({name.get(row) for name in names}) == 1]

    def badness(row: int) -> float:
        mean = sum(_score(run, row).mean_iu for run in runs) / len(runs)
        return math.inf if math.isnan(mean) else mean

    return sorted(rows, key=badness)


def samples(runs: Sequence[Run], rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return what the script shows of each of these rows, as JSON can hold it.

    Raises:
        UserError: A picture is damaged.
    """
    shown = []
    for row in rows:
        first = runs[0].samples[row]
        shown.append(
            {
                "row": row,
                "name": _score(runs[0], row).name,
                "image": _uri(first.image.read_bytes(), "jpeg"),
                "truth": _numbers(first.truth),
                "predictions": [_numbers(run.samples[row].prediction) for run in runs],
                "scores": [[_known(score) for score in _score(run, row)[2:]] for run in runs],
            }
        )
    return shown


def class_colors(run: Run) -> Sequence[str | None]:
    """Return the colour of each class, ``#rrggbb``: from the scores, else from the pictures; without both None."""
    given = [str(row.get("color")) for row in run.scores["per_class"]]
    if all(map(_COLOR.fullmatch, given)):
        return given
    if not run.samples:
        return [None] * len(given)
    palette = _read(next(iter(run.samples.values())).truth).getpalette() or []
    palette += [128] * (3 * len(given) - len(palette))
    found = ["#{:02x}{:02x}{:02x}".format(*palette[3 * k : 3 * k + 3]) for k in range(len(given))]
    return [color if _COLOR.fullmatch(color) else other for color, other in zip(given, found, strict=True)]


def _score(run: Run, row: int) -> ImageScore:
    return run.images[row] if row < len(run.images) else ImageScore(row, f"image {row}", math.nan, math.nan)


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _numbers(path: Path) -> str:
    """Return a picture of classes as one in grey, whose pixels a script reads as they are."""
    image = _read(path)
    numbers = np.asarray(image if image.mode == "P" else image.convert("L"))
    file = io.BytesIO()
    Image.fromarray(numbers).save(file, "PNG", optimize=True)
    return _uri(file.getvalue(), "png")


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} is damaged; fcn-smp eval writes it anew.") from error


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
