"""What of a run may be published, of every path the last component alone, and how people call what is in it."""

import re
import shlex
from typing import Any

import yaml

from fcn_smp.recipe import Recipe, shipped_recipes

METRICS = {
    "mean_iu": "Mean IU",
    "pixel_accuracy": "Pixel accuracy",
    "mean_accuracy": "Mean accuracy",
    "frequency_weighted_iu": "Frequency-weighted IU",
}
"""The four metrics of the paper: their names in ``Scores``, and what people read."""

# Keys whose value may be a relative path; elsewhere, as in names of classes and encoders, a slash need not be of one.
_PATHS = ("root", "train", "val", "names", "encoder_weights", "decoder_hidden_weights", "init_from")
_ABSOLUTE = re.compile(r"(^|[\s:=])(/\S|~\S*/|\\\S|[A-Za-z]:[/\\])")
_BY_CLASS = ("classes", "names", "class_weights")
_DATA = {
    "sbd": "SBD",
    "camvid": "CamVid",
    "kitti_road": "KITTI road",
    "carla": "CARLA",
    "folder": "images and labels of the author's own",
    "demo": "scenes that fcn_smp draws itself",
}


def public(value: Any, key: str) -> Any:
    """Return a value of a recipe, which stands under ``key``, with the last component alone of every path."""
    if isinstance(value, dict):
        return {name: public(inner, "" if key in _BY_CLASS else name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner, "") for inner in value]
    if isinstance(value, str) and (key in _PATHS or names_a_place(value)):
        return last_component(value)
    return value


def public_command(command: str) -> str:
    """Return a command line likewise, as one would type it."""
    return shlex.join(map(_public_argument, shlex.split(command)))


def names_a_place(text: str) -> bool:
    """Tell whether a text holds an absolute path, of any system."""
    return _ABSOLUTE.search(text) is not None


def last_component(path: str) -> str:
    """Return the name of a file or folder, whatever the system its path is of."""
    parts = [part for part in re.split(r"[/\\]", path) if part]
    return parts[-1] if parts else path


def data_name(recipe: Recipe) -> str:
    """Return what people call the data set of a recipe."""
    data = recipe.data
    return f"PASCAL VOC {data.year}" if data.kind == "voc" else _DATA[data.kind]


def honesty(recipe: Recipe, split: str) -> str:
    """Return a sentence that says what the scores on a split are worth; an empty one where that is not known."""
    if split == recipe.data.val:
        return "The best of the validations on this split was kept, so the scores are a little optimistic."
    if split == recipe.data.train:
        return "The network was trained on these images: the scores say nothing of others."
    return ""  # another split may share images with these two


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, within a table too."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|~&$:@])", r"\\\1", " ".join(text.split()))


def _public_argument(argument: str) -> str:
    """Return an argument of the command line: a file, an option, or ``key=value`` of the recipe."""
    if argument in shipped_recipes():
        return argument
    key, equals, value = argument.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", key):
        return last_component(argument)
    if key.startswith("-"):
        return f"{key}={last_component(value)}"
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return f"{key}={last_component(value)}"
    shown = public(parsed, key.rpartition(".")[2])
    if shown == parsed:
        return argument
    return f"{key}={shown if isinstance(shown, str) else _flow(shown)}"


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6).strip()
