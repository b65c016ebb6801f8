"""What a model directory says of its model, for people and for the Hugging Face Hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from fcn_smp.public import METRICS, data_name, escape, honesty, last_component, names_a_place, public, public_command
from fcn_smp.recipe import Recipe

_PAPER = "[Fully Convolutional Networks for Semantic Segmentation](https://arxiv.org/abs/1411.4038)"

_USAGE = """\
In Python, with `fcn_smp` installed, in this folder or with the model's name on the Hub in place of `.`:

```python
import numpy as np
from PIL import Image
from fcn_smp.segmenter import Segmenter

segmenter = Segmenter.load(".")
label = segmenter.predict(np.array(Image.open("photo.jpg").convert("RGB")))  # uint8 (H, W), numbers of classes
```

The network alone, with [segmentation-models-pytorch](https://github.com/qubvel-org/segmentation_models.pytorch), takes
images that are normalised as `config.json` says:

```python
import fcn_smp  # registers the architecture
import segmentation_models_pytorch as smp

model = smp.from_pretrained(".")  # (N, 3, H, W) -> (N, classes, H, W), for any H and W
```
"""


class Split(NamedTuple):
    """A split that took part in a training: its role, train or val, its number of images, and its fingerprint."""

    role: str
    images: int
    fingerprint: str


def model_card(
    recipe: Recipe,
    summary: Mapping[str, Any],
    starts: Sequence[Mapping[str, Any]],
    splits: Sequence[Split],
    *,
    epochs: int,
    best_epoch: int,
) -> str:
    """Return the model card of a trained network, Markdown with the Hub's front matter.

    Of every path there is only the last component, since cards are published.

    Args:
        recipe: What was run; of a staged run that of the last stage.
        summary: What ``Evaluation.summary`` gave, with ``split`` and ``images``.
        starts: Where and with what the run was started, first to last, as ``environment.json`` has them; a record that
            was lost leaves its part of the card out.
        splits: What it was trained and validated on.
        epochs: Epochs that were reached.
        best_epoch: The epoch whose weights these are, counted from 1.
    """
    parts = [
        f"---\n{_yaml(_front_matter(recipe, summary))}---\n",
        f"# {escape(recipe.name)}\n",
        _description(recipe, len(summary["per_class"])),
        f"## Use\n\n{_USAGE}{_what_to_know(recipe, summary)}",
        f"## Scores\n\n{_scores(recipe, summary)}",
        f"## Training\n\n{_training(recipe, splits, epochs, best_epoch)}",
    ]
    if starts:
        parts.append(f"## Where it was made\n\n{_origin(starts)}")
    return "\n".join(parts)


def _front_matter(recipe: Recipe, summary: Mapping[str, Any]) -> dict[str, Any]:
    metrics = [
        {"type": key.replace("_iu", "_iou"), "name": name, "value": summary[key]}  # the type as the Hub calls it
        for key, name in METRICS.items()
        if summary[key] is not None
    ]
    dataset = {"type": recipe.data.kind, "name": data_name(recipe), "split": public(summary["split"], "val")}
    task = {"type": "image-segmentation", "name": "Semantic segmentation"}
    library = "segmentation-models-pytorch"
    front = {
        "library_name": library,
        "pipeline_tag": "image-segmentation",
        "tags": [library, "semantic-segmentation", "pytorch", "fcn_smp", "fcn", recipe.model.arch],
    }
    if not metrics:  # the Hub wants one at least
        return front
    results = [{"task": task, "dataset": dataset, "metrics": metrics}]
    return {**front, "model-index": [{"name": recipe.name, "results": results}]}


def _description(recipe: Recipe, classes: int) -> str:
    return (
        f"{_network(recipe.model.arch)}, with the encoder"
        f" {escape(public(recipe.model.encoder_name, 'encoder_name'))}, for semantic segmentation into {classes}"
        " classes.\n"
    )


def _network(arch: str) -> str:
    of_the_paper = re.fullmatch(r"fcn(\d+)s", arch)
    if not of_the_paper:
        return f"A network of fcn_smp's kind `{arch}`"
    stride = of_the_paper[1]
    beyond = "" if stride in ("32", "16", "8") else ", carried on to a finer stride than in the paper"
    return f"FCN-{stride}s of Long, Shelhamer and Darrell, {_PAPER} (CVPR 2015){beyond}"


def _what_to_know(recipe: Recipe, summary: Mapping[str, Any]) -> str:
    """Return what the network alone leaves to those who use it without a Segmenter, if anything."""
    text = ""
    if recipe.model.binary:
        name, threshold = escape(summary["binary"]["class"]), summary["threshold"]
        text += f"\nIt gives a single logit: {name} is where its sigmoid is above {threshold:.3g}.\n"
    if recipe.preprocessing.resize:
        height, width = recipe.preprocessing.resize
        text += f"\nIt was trained on images stretched to {height}x{width} pixels, and scored on such; a Segmenter\n"
        text += "stretches images for it, and its scores back.\n"
    return text


def _scores(recipe: Recipe, summary: Mapping[str, Any]) -> str:
    split = summary["split"]
    lines = [
        f"On {_counted(summary['images'])} of the split {escape(public(split, 'val'))}, whole and at native size,"
        f" without void. {honesty(recipe, split)}".rstrip(),
        "",
        "| metric | value |",
        "|---|---:|",
        *(f"| {name} | {_percent(summary[key])} |" for key, name in METRICS.items()),
        *_binary_scores(summary),
        "",
        "| | class | IU | accuracy | pixels |",
        "|---:|---|---:|---:|---:|",
    ]
    for number, row in enumerate(summary["per_class"]):
        scores = f"{_percent(row['iu'])} | {_percent(row['accuracy'])} | {row['pixels']:,}"
        lines.append(f"| {number} | {escape(row['class'])} | {scores} |")
    return "\n".join(lines) + "\n"


def _binary_scores(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the rows of the second of two classes."""
    for name, value in summary.get("binary", {}).items():
        if name in ("precision", "recall", "f1"):
            yield f"| {name.capitalize()} of {escape(summary['binary']['class'])} | {_percent(value)} |"
    if "threshold" in summary:
        yield f"| Threshold, chosen on this split | {summary['threshold']:.3g} |"


def _training(recipe: Recipe, splits: Sequence[Split], epochs: int, best_epoch: int) -> str:
    used = [f"{split.role} {_counted(split.images)}" for split in splits]
    trainer, optimizer, schedule = recipe.trainer, recipe.optimizer, recipe.schedule
    warmup = f" after {schedule.warmup_steps} steps of warm-up" if schedule.warmup_steps else ""
    lines = [
        f"* Data: {data_name(recipe)}; {', '.join(used)}",
        f"* Start: {_start(recipe)}",
        f"* {epochs} of {trainer.epochs} epochs in batches of {trainer.batch_size}; these are the weights of epoch"
        f" {best_epoch}",
        f"* Optimiser: {optimizer.kind}, learning rate {optimizer.lr:g}, that of the encoder {optimizer.encoder_lr:g},"
        f" weight decay {optimizer.weight_decay:g}; schedule: {schedule.kind}{warmup}",
        f"* Augmentation: {_augmentation(recipe)}",
        *(f"* Fingerprint of {split.role}: `{split.fingerprint}`" for split in splits),
    ]
    block = _yaml(public(recipe.model_dump(mode="json"), ""))
    return "\n".join(lines) + f"\n\n<details><summary>The recipe</summary>\n\n```yaml\n{block}```\n\n</details>\n"


def _start(recipe: Recipe) -> str:
    model = recipe.model
    if model.init_from:
        # A local one has an absolute path in a recipe that was read; the name of one on the Hub is public.
        local = names_a_place(model.init_from)
        source = last_component(model.init_from.removesuffix("/model")) if local else model.init_from
        return f"the model {escape(source)}"
    if model.encoder_weights:
        return f"encoder weights {escape(public(model.encoder_weights, 'encoder_weights'))}"
    return "random weights"


def _augmentation(recipe: Recipe) -> str:
    options = recipe.augmentation
    if options is None:
        return "none, whole images one at a time"
    crop = options.crop if isinstance(options.crop, tuple) else (options.crop, options.crop)
    return (
        f"random scale from {options.scale[0]:g} to {options.scale[1]:g}, crops of {crop[0]}x{crop[1]} pixels, flips"
        f" with probability {options.flip:g}, colour jitter of {options.color_jitter:g}"
    )


def _origin(starts: Sequence[Mapping[str, Any]]) -> str:
    first, last = starts[0], starts[-1]
    again = f", resumed {len(starts) - 1}x, last on {last['started'][:10]}, then:" if len(starts) > 1 else ""
    packages = ", ".join(f"{name} {version}" for name, version in last["packages"].items() if version)
    devices = [gpu["name"] for gpu in last["gpu"]] or [last["cpu"]["name"] or "CPU"]
    lines = [
        f"* Begun on {first['started'][:10]}{again}",
        f"* {last['processes']} process{'es' * (last['processes'] > 1)} on {escape(', '.join(devices))}",
        f"* Python {last['python']}, {packages}",
    ]
    commit = (last["git"]["package"] or {}).get("commit")
    if commit:
        changed = " with changes" if last["git"]["package"]["dirty"] else ""
        lines.append(f"* Commit {commit} of fcn_smp{changed}")
    return "\n".join(lines) + f"\n\n```console\n$ {public_command(first['command'])}\n```\n"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _counted(images: int) -> str:
    return f"{images:,} image{'s' * (images != 1)}"
