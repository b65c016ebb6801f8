"""The page of a report: what of the runs it shows, laid out by ``page.html.j2``."""

import base64
import hashlib
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from fcn_smp.curves import RUN_COLORS, Panel, compared_panels, css_color, curve_panels
from fcn_smp.public import METRICS, data_name, honesty, public, public_command
from fcn_smp.reporting.pictures import class_colors, common_rows, samples
from fcn_smp.reporting.runs import ImageScore, Run
from fcn_smp.resampling import Counts, compare

_FOLDER = Path(__file__).parent
_BINARY = ("precision", "recall", "f1")


class Column(NamedTuple):
    """Numbers in [0, 1] or None, one for each row; with a colour they are drawn as bars, differences have a sign."""

    title: str
    values: Sequence[float | None]
    color: str | None = None
    signed: bool = False


class Metric(NamedTuple):
    """A score of every run, and which is the best if they differ."""

    title: str
    values: Sequence[float | None]
    best: float | None


class Against(NamedTuple):
    """A run against the best one: the difference of the mean IU and its 95 % interval in [-1, 1], and the p-value."""

    name: str
    difference: float
    interval: tuple[float, float]
    p_value: str


class Confused(NamedTuple):
    """Pixels of one class that were called another, and which share of its pixels they are."""

    truth: str
    prediction: str
    pixels: int
    share: float


def render(runs: Sequence[Run], title: str, detailed: Sequence[Run]) -> str:
    """Return a page about runs.

    Args:
        runs: One, or several that are compared, with names of their own.
        title: What the page is called.
        detailed: Those of the runs whose details follow.

    Raises:
        UserError: A picture is damaged.
    """
    script, style = ((_FOLDER / f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    several, same = len(runs) > 1, _comparable(runs)
    rows = common_rows(runs) if same else []
    colors = dict(zip((run.name for run in runs), map(css_color, cycle(RUN_COLORS)), strict=False))
    return _template().render(
        title=title,
        runs=runs,
        colors=colors,
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        subtitles=[_subtitle(run) for run in runs],
        metrics=list(_metrics(runs)),
        intervals=[run.scores.get("mean_iu_interval") for run in runs],
        paired=_paired(runs) if several and same else None,
        compared=_compared(runs, colors) if several and same else None,
        differences=_differences(runs) if several else [],
        panels=_compared_curves(runs) if several else [],
        viewer=_viewer(runs, rows) if rows else None,
        details=[_details(run, f"run{number}", rows) for number, run in enumerate(detailed)],
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "signed": _signed, "css_color": css_color, "count": _count}
    return environment.get_template("page.html.j2")


def _comparable(runs: Sequence[Run]) -> bool:
    """Tell whether all runs were scored, and on the same split and classes."""
    return all(run.scores for run in runs) and len({(run.split, *_classes(run)) for run in runs}) == 1


def _classes(run: Run) -> list[str]:
    return [str(row["class"]) for row in run.scores["per_class"]]


def _subtitle(run: Run) -> list[str]:
    model = run.recipe.model
    parts = [model.arch, public(model.encoder_name, "encoder_name"), data_name(run.recipe), *_scored(run)]
    return [*parts, _day(run.starts[0].get("started"))] if run.starts else parts


def _scored(run: Run) -> Iterator[str]:
    """Yield what the scores are of, and how the images were run through the network where that is out of the usual."""
    if not run.scores:
        yield "not scored"
        return
    yield f"{public(run.split, 'val')}, {_count(run.scores['images'], 'image')}"
    inference = run.scores.get("inference", {})
    if inference.get("flip"):
        yield "averaged with the mirrored image"
    if (scales := inference.get("scales", [1])) not in ([1], []):
        yield f"averaged over the scales {', '.join(f'{scale:g}' for scale in scales)}"


def _metrics(runs: Sequence[Run]) -> Iterator[Metric]:
    def metric(title: str, values: Sequence[float | None]) -> Metric:
        return Metric(title, values, _best(values))

    for key, title in METRICS.items():
        yield metric(title, [run.scores.get(key) for run in runs])
    for key in _BINARY:
        binaries = [run.scores.get("binary", {}) for run in runs]
        if any(binaries):
            name = next(binary["class"] for binary in binaries if binary)
            yield metric(f"{key.capitalize()} of {name}", [binary.get(key) for binary in binaries])
    boundaries = [run.scores.get("boundary", {}).get("f1") for run in runs]
    if any(value is not None for value in boundaries):
        yield metric("Boundary F1", boundaries)


def _best(values: Sequence[float | None]) -> float | None:
    """Return the largest value, but None where all are the same."""
    known = [value for value in values if value is not None]
    return max(known) if len(set(values)) > 1 else None


def _paired(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the paired tests of each run against the best one, or which runs lack the counts that these need."""
    if lacking := [run for run in runs if run.counts is None]:
        return {"lacking": [run.name for run in lacking], "command": _eval_command(lacking[0])}
    best = max(runs, key=lambda run: run.scores.get("mean_iu") or 0).name
    counts = {run.name: run.counts for run in runs if run.counts is not None}
    same = all(np.array_equal(other[:, 1], counts[best][:, 1]) for other in counts.values())
    others = [_against(name, counts[best], other) for name, other in counts.items() if same and name != best]
    return {"lacking": [], "best": best, "images": len(counts[best]), "others": others}


def _against(name: str, best: Counts, counts: Counts) -> Against:
    found = compare(best, counts)
    p_value = "≤ 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"
    return Against(name, found.difference, found.interval, p_value)


def _compared(runs: Sequence[Run], colors: Mapping[str, str]) -> dict[str, Any]:
    def of_each_class(run: Run) -> list[float | None]:
        return [row["iu"] for row in run.scores["per_class"]]

    ious = [of_each_class(run) for run in runs]
    columns = [Column(run.name, iu, colors[run.name]) for run, iu in zip(runs, ious, strict=True)]
    difference = [Column("Difference", list(map(_minus, ious[1], ious[0])), signed=True)] if len(runs) == 2 else []
    return {
        "classes": list(zip(_classes(runs[0]), class_colors(runs[0]), strict=True)),
        "columns": [*columns, *difference, _pixel_shares(runs[0])],
        "best": list(map(_best, zip(*ious, strict=True))),
        "boundary": _boundary(runs, colors),
    }


def _minus(second: float | None, first: float | None) -> float | None:
    return None if second is None or first is None else second - first


def _boundary(runs: Sequence[Run], colors: Mapping[str, str]) -> dict[str, Any] | None:
    found = [run.scores.get("boundary", {}).get("trimap_iu", {}) for run in runs]
    widths = sorted({width for trimap in found for width in trimap}, key=int)
    columns = [
        Column(run.name, [trimap.get(width) for width in widths], colors[run.name])
        for run, trimap in zip(runs, found, strict=True)
        if trimap
    ]
    tolerance = runs[0].scores.get("boundary", {}).get("tolerance")
    return {"widths": widths, "columns": columns, "tolerance": tolerance} if columns else None


def _pixel_shares(run: Run) -> Column:
    pixels = [row["pixels"] for row in run.scores["per_class"]]
    return Column("Share of pixels", [count / (sum(pixels) or 1) for count in pixels])


def _compared_curves(runs: Sequence[Run]) -> list[Panel]:
    return compared_panels({run.name: run.rows for run in runs}) if any(run.rows for run in runs) else []


def _differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the keys of the recipes that differ, with the value of each run."""
    flat = [dict(_flat(public(run.recipe.model_dump(mode="json", exclude={"name", "stages"}), ""))) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, [values.get(key, "-") for values in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).split("\n")[0]


def _viewer(runs: Sequence[Run], rows: Sequence[int]) -> dict[str, Any]:
    classes, colors = _classes(runs[0]), class_colors(runs[0])
    return {
        "classes": classes,
        "colors": colors,
        "clear": [k for k, name in enumerate(classes) if name == "background" or colors[k] == "#000000"],
        "runs": [run.name for run in runs],
        "samples": samples(runs, rows),
    }


def _details(run: Run, key: str, shown: Sequence[int]) -> dict[str, Any]:
    scores = run.scores
    return {
        "key": key,
        "run": run,
        "panels": curve_panels(run.rows, key) if run.rows else [],
        "best": _best_epoch(run),
        "classes": list(zip(_classes(run), class_colors(run), strict=True)) if scores else [],
        "columns": list(_class_columns(run)) if scores else [],
        "boundary": _boundary([run], {run.name: css_color(RUN_COLORS[0])}),
        "shares": _shares(scores.get("confusion", [])),
        "confused": _most_confused(run),
        "worst": _worst(run.images),
        "shown": shown,
        "honesty": honesty(run.recipe, run.split),
        "recipe": yaml.safe_dump(
            public(run.recipe.model_dump(mode="json"), ""), sort_keys=False, allow_unicode=True, width=80
        ),
        "environment": list(_environment(run)),
        "command": public_command(str(run.starts[0].get("command", ""))) if run.starts else "",
        "eval": _eval_command(run),
    }


def _eval_command(run: Run) -> str:
    split = ["--split", public(run.split, "val")] if run.split != run.recipe.data.val else []
    return shlex.join(["fcn-smp", "eval", "RUN", *split])  # no path of the machine is published


def _best_epoch(run: Run) -> str | None:
    scored = [row for row in run.rows if math.isfinite(float(row.get("mean_iu") or math.nan))]
    return max(scored, key=lambda row: float(row["mean_iu"]))["epoch"] if scored else None


def _class_columns(run: Run) -> Iterator[Column]:
    rows = run.scores["per_class"]
    yield Column("IU", [row["iu"] for row in rows], css_color(RUN_COLORS[0]))
    for key, title in (("accuracy", "Accuracy"), ("precision", "Precision"), ("boundary_f1", "Boundary F1")):
        if any(key in row for row in rows):
            yield Column(title, [row.get(key) for row in rows])
    yield _pixel_shares(run)


def _shares(counts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return a confusion matrix as shares of each row; a class without pixels has none."""
    return [[count / (sum(row) or 1) for count in row] for row in counts]


def _most_confused(run: Run, most: int = 10) -> list[Confused]:
    counts = run.scores.get("confusion", [])
    pairs = [
        Confused(truth, prediction, counts[i][j], counts[i][j] / sum(counts[i]))
        for i, truth in enumerate(_classes(run) if counts else ())
        for j, prediction in enumerate(_classes(run))
        if i != j and counts[i][j]
    ]
    return sorted(pairs, key=lambda pair: -pair.pixels)[:most]


def _worst(images: Sequence[ImageScore], most: int = 10) -> list[ImageScore]:
    return sorted((image for image in images if not math.isnan(image.mean_iu)), key=lambda image: image.mean_iu)[:most]


def _environment(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what is known of where and with what a run was made; of what differs between starts, the last."""
    first, last = (run.starts[0], run.starts[-1]) if run.starts else ({}, {})
    again = len(run.starts) - 1
    if run.starts:
        yield "Begun", _day(first.get("started"))
        yield "Resumed", f"{_count(again, 'time')}, last on {_day(last.get('started'))}" if again else "never"
    devices = [str(gpu["name"]) for gpu in last.get("gpu") or []] or [(last.get("cpu") or {}).get("name") or "CPU"]
    if last:
        precision = f", {last['precision']}" if "precision" in last else ""
        yield "Device", f"{_count(last.get('processes', 1), 'process')} on {', '.join(devices)}{precision}"
    if seconds := sum(float(row.get("seconds") or 0) for row in run.rows):
        yield "Time", f"{_duration(seconds)} for {_count(len(run.rows), 'epoch')}"
    if "python" in last:
        packages = [f"{name} {version}" for name, version in last.get("packages", {}).items() if version]
        yield "Software", ", ".join([f"Python {last['python']}", *packages])
    if package := (last.get("git") or {}).get("package"):
        yield "Commit", f"{package['commit']} of fcn_smp{' with changes' * bool(package.get('dirty'))}"
    for role, fingerprint in last.get("fingerprints", {}).items():
        yield f"Fingerprint of {role}", str(fingerprint)


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds > 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _signed(difference: float | None) -> str:
    """Return a difference of scores in points."""
    if difference is None or math.isnan(difference):
        return "-"
    return f"{100 * difference:+z.1f}".replace("-", "\u2212")


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun if count == 1 else f'{noun}es' if noun.endswith('s') else f'{noun}s'}"


def _day(time: Any) -> str:
    """Return the date of a time as ISO 8601 writes both; ``unknown`` of anything else."""
    try:
        return datetime.fromisoformat(str(time)).date().isoformat()
    except ValueError:
        return "unknown"
