"""What the command line prints of scores, of checked data sets and of benchmarks."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fcn_smp.data.check import WEIGHTS, by_kind
from fcn_smp.protocols import Protocol
from fcn_smp.score_files import caution, means, percent


def print_scores(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the scores of each class and over all."""
    table = Table()
    table.add_column("class", no_wrap=True)
    columns = {"iu": "IU %", "accuracy": "accuracy %", "precision": "precision %", "boundary_f1": "boundary\nF1 %"}
    for header in (*columns.values(), "pixels"):
        table.add_column(header, justify="right")
    for row in summary["per_class"]:
        table.add_row(row["class"], *(percent(row[key]) for key in columns), f"{row['pixels']:,}")
    console.print(table)
    _say(console, f"{summary['images']:,} image{'s' * (summary['images'] != 1)} of {Path(summary['split']).name}:")
    lines = dict(means(summary))
    width = max(map(len, lines))
    for name, value in lines.items():
        number, *rest = value.split(" ", 1)
        _say(console, f"{name:<{width}} {number:>6} %{''.join(f' {part}' for part in rest)}")
    if said := caution(summary):
        _say(console, said)
    if "threshold" in summary:
        name = summary["binary"]["class"]
        _say(console, f"A pixel is {name} above a probability of {summary['threshold']:.3g}.")
    if windowed := summary.get("inference", {}).get("windowed"):
        _say(console, f"{windowed} of {summary['images']} images were run in windows.")


def print_comparison(console: Console, summary: Mapping[str, Any]) -> None:
    """Print how a model stands against another one on the same images."""
    other = summary["against"]
    table = Table()
    table.add_column("class", no_wrap=True)
    for header in ("IU %", "other IU %", "difference"):
        table.add_column(header, justify="right")
    for row, theirs in zip(summary["per_class"], other["per_class"], strict=True):
        table.add_row(row["class"], percent(row["iu"]), percent(theirs["iu"]), _signed(theirs["difference"]))
    console.print(table)
    low, high = (_signed(end) for end in other["interval"])
    _say(console, f"{summary['model']}: mean IU {percent(summary['mean_iu'])} %")
    _say(console, f"{other['model']}: mean IU {percent(other['mean_iu'])} %")
    _say(
        console,
        f"Difference on the same {summary['images']} images: {_signed(other['difference'])} points"
        f" (95 %: {low} to {high}), p {_p_value(other['p_value'])} by a paired permutation test.",
    )


def print_protocols(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the scores as other projects count."""
    table = Table()
    table.add_column("protocol", no_wrap=True)
    for header in ("mean\nIU %", "pixel\nacc. %"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("how it counts")
    for name, row in {"ours": {**summary, "about": Protocol().about}, **summary["protocols"]}.items():
        table.add_row(name, percent(row["mean_iu"]), percent(row["pixel_accuracy"]), row["about"])
    console.print(table)


def print_check(console: Console, summary: Mapping[str, Any]) -> None:
    """Print what a data set holds and what is wrong with it."""
    splits = summary["splits"]
    table = Table()
    table.add_column("class", no_wrap=True)
    for header in (*(header for split in splits for header in (f"{split} %", "images")), *WEIGHTS):
        table.add_column(header.replace("_", " "), justify="right")
    for row in summary["classes"]:
        counts = [cell for split in splits for cell in (percent(row[split]["share"]), f"{row[split]['images']:,}")]
        table.add_row(row["class"], *counts, *(f"{row[method]:.2f}" for method in WEIGHTS))
    table.add_row("void", *(cell for split in splits.values() for cell in (percent(split["void"]["share"]), "")))
    console.print(table)
    for split, report in splits.items():
        official = ", the official number" * (report["images"] == report["official"])
        _say(console, f"{split:<5} {report['images']:,} images{official}")
    for what in ("problems", "remarks"):
        for kind, messages in by_kind(summary[what]):
            _say(console, f"{what[:-1]}, {kind}: {len(messages):,}")
            for message in messages[:10]:
                _say(console, f"  {message}")
            if len(messages) > 10:
                _say(console, f"  and {len(messages) - 10:,} more; --json lists all")
    problems = len(summary["problems"])
    _say(console, f"{problems:,} problem{'s' * (problems > 1)}." if problems else "Clean: nothing is wrong.")


def print_benchmark(console: Console, summary: Mapping[str, Any]) -> None:
    """Print what networks cost beside their encoder, where that was measured and the command that repeats it."""
    environment, setting, encoder = summary["environment"], summary["setting"], summary["networks"][0]
    threads, torch_ = environment["cpu"]["threads"], environment["packages"]["torch"]
    date = environment["started"][:10]
    _say(console, f"{summary['hardware']}, {threads} thread{'s' * (threads > 1)}, torch {torch_}, {date}")
    _say(console, f"$ {shlex.join(['fcn-smp', *environment['argv'][1:]])}")
    table = Table()
    table.add_column("network", no_wrap=True)
    for header in ("params\nM", "GFLOP", "forward", "step", "memory", "train\nimg/s", "% of\npeak"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in summary["networks"]:
        table.add_row(row["name"], *(["-"] * 7 if "reason" in row else _benchmark_cells(row, setting["batch_size"])))
    console.print(table)
    height, width = setting["size"]
    images = (
        f"{setting['batch_size']} image{'s' * (setting['batch_size'] > 1)} of {height}x{width}, {setting['precision']}"
    )
    taken = f"{encoder['forward_seconds']:.3g} s and {encoder['step_seconds']:.3g} s"
    if encoder["step_bytes"] is not None:
        taken += f", {encoder['step_bytes'] / 2**20:,.0f} MiB"
    _say(console, f"Ratios to the encoder alone: {taken} for {images}.")
    end = ", backward and AdamW" if setting["optimizer"] else " and backward"
    _say(console, f"A step is forward, loss{end}; memory is its peak.")
    peak = f"{summary['peak_flops'] / 1e12:.3g} TFLOP/s"
    _say(console, f"GFLOP are of one image; the peak is {peak}, of a matrix product.")
    if setting["compiled"]:
        _say(console, "* compiled by torch.")
    for row in summary["networks"]:
        if "reason" in row:
            _say(console, f"{row['name']}: {row['reason']}")


def _benchmark_cells(row: Mapping[str, Any], batch_size: int) -> list[str]:
    return [
        f"{row['parameters'] / 1e6:.1f}",
        f"{row['forward_flops'] / batch_size / 1e9:.3g}",
        f"{row['forward_ratio']:.2f}",
        f"{row['step_ratio']:.2f}",
        "-" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}",
        f"{row['images_per_second']:.3g}",
        f"{100 * row['peak_share']:.1f}",
    ]


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def _p_value(value: float) -> str:
    return "≤ 0.001" if value <= 0.001 else f"= {value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f}"
