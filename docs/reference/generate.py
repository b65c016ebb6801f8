"""Write the pages of the reference that follow from the code: command line, recipe keys, shipped recipes.

    python docs/reference/generate.py

The pages are committed; tests/test_reference.py fails where they are not what this would write.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from textwrap import fill
from typing import Any, get_args

import typer
import yaml

from fcn_smp import cli
from fcn_smp.recipe import Recipe, Section, json_schema, shipped_recipes

FOLDER = Path(__file__).parent
NOTICE = "<!-- Written by docs/reference/generate.py from {source}: what is wrong here is put right there. -->"


def main() -> None:
    """Write all pages."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return the text of each page by its file's name."""
    return {"command-line.md": command_line(), "recipe-keys.md": recipe_keys(), "recipes.md": recipes()}


# --- Words


_TOKENS = re.compile(
    r"""
    (?P<url>https?://[^\s)]*[^\s).,;])
    | (?P<page>docs/[\w/-]+\.md)
    | (?P<code>
        `+[^`]*`+
        | \(fcn-smp\ [^)]*\)
        | fcn-smp\ (?:data\ prepare\ \w+ | weights\ import | train | predict | eval)
        | (?<![\w-])--[a-z][\w-]*
        | [A-Za-z][\w-]*\{[^}\s]*\} | \{[^}]*\} | \[[^\]]*\]
        | flip,scales=[\d.]+
        | (?<![\w.])[A-Za-z][\w-]*(?:[._/=][\w{}'-]+)+
        | (?<![\w.])[._][a-z]\w*
        | \bnull\b
    )
    """,
    re.X,
)


def marked(text: str, values: Iterable[Any] = ()) -> str:
    """Mark in a plain sentence what is code or a link; ``values`` are words that are code before a colon."""

    def mark(match: re.Match[str]) -> str:
        found = match[0]
        if match["url"]:
            return f"<{found}>"
        if match["page"]:
            return f"[{found}]({_relative(found)})"
        if found.startswith("("):
            return f"(`{found[1:-1]}`)"
        return _python(found.strip("`"))

    text = _TOKENS.sub(mark, text)
    for value in values:
        text = re.sub(rf"(^|[;.] ){re.escape(str(value))}(?=:)", rf"\1`{value}`", text)
    return text


_PYTHON = {"models": "networks", "data": "data", "losses": "losses"}
"""Page of the Python reference for each room of the package that sentences name."""


def _python(code: str) -> str:
    """Mark code, and link a name of the package to its place in the Python reference."""
    room = re.match(r"fcn_smp\.(\w+)\.", code)
    return f"[`{code.rpartition('.')[2]}`](python/{_PYTHON[room[1]]}.md#{code})" if room else f"`{code}`"


def _relative(page: str) -> str:
    folder, name = page.split("/")[1:]
    return name if folder == "reference" else f"../{folder}/{name}"


def _headed(text: str, source: str) -> str:
    """Say in the beginning of a page, where readers do not see it, what it is made of."""
    return text.replace("{notice}", NOTICE.format(source=source))


def _filled(text: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _joined(words: list[str]) -> str:
    """Join alternatives, some of which may be of several words, or alternatives themselves."""
    comma, last = ", ", " or "
    if any(sign in word for word in words for sign in (" or ", ": ")):
        # Values in a row stay together.
        code = [word for word in words if word.startswith("`") and word != "`null`"]
        words = [*([", ".join(code)] if code else []), *(word for word in words if word not in code)]
        comma, last = "; ", "; or "
    return last.join([comma.join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *([*row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _anchor(text: str) -> str:
    return f'<a id="{text}"></a>'


# --- The command line


_GUIDES = {
    "train": "[Training](../guides/training.md), [Stages](../guides/stages.md), [Devices](../guides/devices.md) and"
    " [Resuming](../guides/resuming.md)",
    "eval": "[Scores](../guides/evaluating.md) and [how they are counted](../explained/metrics.md)",
    "predict": "[Prediction](../guides/predicting.md)",
    "report": "[A run as one page](../guides/reports.md)",
    "benchmark": "[Benchmarks](../results/benchmarks.md)",
    "export": "[One file for other programs](../guides/export.md)",
    "data prepare": "[Getting data sets](data-sets.md#getting-them)",
    "data check": "[Checking data sets](data-sets.md#checking-them)",
    "data show": "[Looking at data sets](data-sets.md#looking-at-them)",
    "weights import": "[Other people's weights](../guides/weights.md)",
    "recipes list": "[The shipped recipes](recipes.md)",
    "recipes show": "[The shipped recipes](recipes.md)",
    "recipes schema": "[Recipe keys](recipe-keys.md)",
}
"""What to read about each command."""

_COMMAND_LINE = """\
# Command line

{notice}

`fcn-smp COMMAND --help` prints what stands here. `python -m fcn_smp` is the same program, for `torchrun` and for
schedulers. `fcn-smp --version` prints the version.

{table}
Options may stand anywhere after the command. What is a change to a recipe, `KEY=VALUE`, has a key of
[those there are](recipe-keys.md) and a value in YAML; put it in quotes where the shell would read brackets or blanks:
`'model.frozen=[encoder]'`. `RUN` is a run directory, a model directory that `save_pretrained` or `fcn-smp weights
import` wrote, or the name of such a model on the Hugging Face Hub.

| exit code | what happened |
|---:|---|
| 0 | all went well |
| 1 | an image could not be read, a data set has problems, or an exported file does not do what the network does |
| 2 | a mistake in the command, the recipe or a file, which is named in one sentence |
| 130 | it was interrupted; the command that goes on is printed |
"""


def command_line() -> str:
    """Return the page of all commands, arguments and options."""
    commands = dict(_commands(typer.main.get_command(cli.app), ""))
    rows = (
        [f"[`fcn-smp {name}`](#{_command_id(name)})", marked(_first_line(command))]
        for name, command in commands.items()
    )
    text = _headed(_COMMAND_LINE, "fcn_smp/cli.py").replace("{table}", _table(["command", "what it does"], rows))
    return text + "".join(_command(name, command) for name, command in commands.items())


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield all commands that do something, by their names."""
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _commands(child, f"{path}{name} ")
        else:
            yield path + name, child


def _command(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    required = [f"{option.opts[0]} {_metavar(option)}" for option in options if option.required]
    usage = ["fcn-smp", name, *map(_usage, arguments), *required, *(["[OPTIONS]"] if options else [])]
    rows = [*(_argument(name, each) for each in arguments), *(_option(name, each) for each in options)]
    parts = [
        f"## fcn-smp {name}",
        *(_filled(marked(" ".join(paragraph.split()))) for paragraph in command.help.split("\n\n")),
        f"```text\n{' '.join(usage)}\n```",
        *([_table(["name", "value", "default", "what it is"], rows).strip()] if rows else []),
        _filled(f"More: {_GUIDES[name]}."),
    ]
    return "\n" + "\n\n".join(parts) + "\n"


def _command_id(name: str) -> str:
    return f"fcn-smp-{name.replace(' ', '-')}"


def _first_line(command: Any) -> str:
    return str(command.help).split("\n\n", maxsplit=1)[0]


def _usage(argument: Any) -> str:
    name = _metavar(argument) + "..." * (argument.nargs != 1)
    return name if argument.required else f"[{name}]"


def _metavar(parameter: Any) -> str:
    kind = parameter.type_descriptor
    name = "PATH" if kind.is_path else parameter.name.upper().replace("_", "-")
    return str(parameter.metavar or (parameter.name.upper() if parameter.param_type_name == "argument" else name))


def _argument(command: str, argument: Any) -> list[str]:
    name = f"{_anchor(f'{_command_id(command)}-{argument.name}')}`{_metavar(argument)}`"
    more = ", one or more" if argument.nargs != 1 and argument.required else ", any number" * (argument.nargs != 1)
    return [name, _value(argument) + more, _default(argument), marked(argument.help)]


def _option(command: str, option: Any) -> list[str]:
    name = f"{_anchor(f'{_command_id(command)}{option.opts[0]}')}" + ", ".join(f"`{each}`" for each in option.opts)
    value = "" if option.is_flag else _value(option)
    return [name, value, _default(option), marked(option.help)]


def _value(parameter: Any) -> str:
    """Say in words what a parameter takes."""
    kind = parameter.type_descriptor
    if parameter.metavar and parameter.param_type_name == "option":
        # A bar within a table: Markdown's ways to write it differ, HTML's does not.
        return f"<code>{parameter.metavar.replace('|', '&#124;')}</code>"
    if kind.choices:
        return _joined([f"`{choice}`" for choice in kind.choices])
    names = {int: "whole number", float: "number", str: "text", Path: "path"}
    inner = (*get_args(kind.annotation), kind.annotation)[0]
    least = "" if parameter.min is None else f" from {parameter.min}"
    return names[inner] + least


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return marked(parameter.show_default)
    default = parameter.default
    return "" if default is None or default is False else f"`{default}`"


# --- The keys of recipes


_RECIPE_KEYS = """\
# Recipe keys

{notice}

A recipe is a YAML file. Its parts are `model`, `data` and so on, and what stands here as `trainer.epochs` is the key
`epochs` in the part `trainer`; on the command line it is `trainer.epochs=30`. Every part but `data` may be left out. A
key that there is not, or a value that it cannot have, ends the command with a sentence that names it.

```yaml
data: {kind: demo}
model: {arch: fcn8s, encoder_name: resnet18, encoder_weights: null}
trainer: {epochs: 30}
```

[The shipped recipes](recipes.md) are examples, `fcn-smp recipes show NAME` prints one with all its defaults, and
`fcn-smp recipes schema` prints the JSON Schema by which editors complete and check keys.

"""

_PARTS = {
    "model": "The network and what it starts from. The keys are arguments of its class, such as"
    " [`FCN`](python/networks.md#fcn_smp.models.fcn.FCN); one that the network does not take is an error: the keys"
    " `decoder_*` are for the FCNs, but for `decoder_dropout`, which `dilatedfcn` takes too. More: [which"
    " network](../start/which-network.md), [encoders](encoders.md), [any encoder](../guides/any-encoder.md), [other"
    " people's weights](../guides/weights.md), [the hidden layers](../explained/hidden-layer.md),"
    " [alignment](../explained/alignment.md).",
    "data": "What is trained and validated on. `kind` says which data set it is; the keys of each kind follow those"
    " that all have. More: [Data](data-sets.md), [your own images](../guides/own-images.md).",
    "augmentation": "What happens to an image before the network is trained on it. `augmentation: null` takes whole"
    " images as they are, one at a time. More: [how a sample is made](data-sets.md#reading),"
    " [`Augment`](python/data.md#fcn_smp.data.transforms.Augment).",
    "preprocessing": "What the network gets. All but `resize` is what its weights expect, those of the encoder or of"
    " `model.init_from`, unless it is set.",
    "loss": "A weighted sum of losses over the labelled pixels. More:"
    " [`SegmentationLoss`](python/losses.md#fcn_smp.losses.SegmentationLoss), [imbalance](../explained/imbalance.md).",
    "optimizer": "What changes the weights. More: [what can be set](../guides/training.md#what-can-be-set).",
    "schedule": "How the learning rate changes, step by step, after a linear warm-up.",
    "trainer": "How long, how much at once, and on what. More: [training](../guides/training.md),"
    " [devices](../guides/devices.md), [resuming](../guides/resuming.md).",
}
"""What stands above the keys of each part."""
_NOUNS = {"data": "data set", "optimizer": "optimiser", "schedule": "schedule"}
"""What the kinds of a part are."""


def recipe_keys() -> str:
    """Return the page of all keys of recipes."""
    schema = json_schema()
    own = {"extends": schema["properties"]["extends"]}
    own |= {key: value for key, value in schema["properties"].items() if key not in _PARTS}
    about = {key: own["stages"][key] for key in ("default", "description")}
    own["stages"] = {"type": "object", "additionalProperties": {"type": "object"}} | about
    text = _headed(_RECIPE_KEYS, "fcn_smp/recipe.py")
    text += _table(
        ["part", "what it is"],
        ([f"[`{part}`](#{part})", about.split(". ")[0].removesuffix(".") + "."] for part, about in _PARTS.items()),
    )
    text += "\n## Beside the parts\n\n" + _keys("", own, set())
    for part, about in _PARTS.items():
        text += f"\n## {part}\n\n{_filled(about)}\n\n" + "".join(_part(part))
    return text


def _part(part: str) -> Iterator[str]:
    annotation = Recipe.model_fields[part].annotation
    kinds: list[type[Section]] = [each for each in get_args(annotation) or (annotation,) if each is not type(None)]
    if len(kinds) == 1:
        yield _section(part, kinds[0])
        return
    base = kinds[0].__mro__[1]
    common = base.model_json_schema()["properties"]
    names = [get_args(kind.model_fields["kind"].annotation)[0] for kind in kinds]
    default = getattr(Recipe.model_fields[part].default, "kind", None)
    about = f"Which {_NOUNS[part]} it is; that decides which other keys there are."
    kind = {"enum": names, "description": about} | ({"default": default} if default else {})
    yield _keys(f"{part}.", {"kind": kind, **{key: value for key, value in common.items() if key != "kind"}}, {"kind"})
    for name, section in zip(names, kinds, strict=True):
        yield f"\n### {part}.kind: {name} {{ #{part}-{name} }}\n\n{_filled(marked(_about(section)))}\n"
        whole = section.model_json_schema()
        keys = {key: value for key, value in whole["properties"].items() if key != "kind" and common.get(key) != value}
        if keys:
            yield "\n" + _keys(f"{part}.", keys, set(whole["required"]), f"{part}-{name}-")


def _section(part: str, section: type[Section]) -> str:
    schema = section.model_json_schema()
    return _keys(f"{part}.", schema["properties"], set(schema.get("required", ())))


def _about(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split())


def _keys(prefix: str, keys: Mapping[str, Any], required: set[str], anchor: str | None = None) -> str:
    rows = []
    for key, schema in keys.items():
        default = "" if "default" not in schema else f"`{_yaml(schema['default'])}`"
        name = f"{_anchor((prefix.replace('.', '-') if anchor is None else anchor) + key)}`{prefix}{key}`"
        about = marked(schema["description"], [*_choices(schema), 0])
        takes = f"<small>{_takes(schema)}</small>"
        rows.append([name, "required" if not default and key in required else default, f"{about}<br>{takes}"])
    return _table(["key", "default", "what it does, and what it may be"], rows)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("...\n").strip()


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    """Return the single values that a key may have, as far as they can be listed."""
    if "anyOf" in schema:
        return [choice for option in schema["anyOf"] for choice in _choices(option)]
    if schema.get("type") == "boolean":
        return [True, False]
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def _takes(schema: Mapping[str, Any]) -> str:
    """Say in words what values a JSON Schema allows."""
    if "anyOf" in schema:
        return _joined([word for option in schema["anyOf"] for word in _alternatives(option)])
    return _joined(_alternatives(schema))


def _alternatives(schema: Mapping[str, Any]) -> list[str]:
    if "anyOf" in schema:
        return [_takes(schema)]
    if choices := _choices(schema):
        return [f"`{_yaml(choice)}`" for choice in choices]
    match schema.get("type"):
        case "null":
            return ["`null`"]
        case "string":
            return ["path" if schema.get("format") == "path" else "text"]
        case "integer" | "number" as kind:
            return [f"{'whole ' * (kind == 'integer')}number{_range(schema)}"]
        case "array" if "prefixItems" in schema:
            return _tuples(schema["prefixItems"])
        case "array":
            return [f"list of {_plural(_takes(schema['items']))}"]
        case "object":
            return [_mapping(schema)]
    raise ValueError(f"What is {schema}?")


def _range(schema: Mapping[str, Any]) -> str:
    bounds = {
        "minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "to below {}",
    }  # fmt: skip
    return "".join(f" {text.format(schema[key])}" for key, text in bounds.items() if key in schema)


def _tuples(items: list[dict[str, Any]]) -> list[str]:
    choices = [_choices(item) for item in items]
    if all(choices):
        return [f"`{_yaml(list(each))}`" for each in product(*choices)]
    return [f"list of {len(items)} {_plural(_takes(items[0]))}"]


def _plural(words: str) -> str:
    return re.sub(r"\b(number|text|list)\b", r"\1s", words)


def _mapping(schema: Mapping[str, Any]) -> str:
    inner = schema.get("additionalProperties", True)
    if inner is True:
        return "keys and values"
    names = schema.get("propertyNames", {}).get("enum", ())
    by = f"any of {', '.join(f'`{name}`' for name in names)}" if names else "by name"
    return f"{by}: {_takes(inner)}"


# --- The recipes of the package


_RECIPES = """\
# Shipped recipes

{notice}

```console
$ fcn-smp recipes list                             # these
$ fcn-smp recipes show voc2007                     # one whole, with all defaults
$ fcn-smp train demo                               # needs no data
$ fcn-smp train voc2007 data.root=DIR trainer.epochs=10
```

Each is a file of the folder `recipes`; a recipe of your own begins with `extends: NAME` and
[the keys](recipe-keys.md) in which it differs. `DIR` is the folder of the data, in which
[`fcn-smp data prepare`](command-line.md#fcn-smp-data-prepare) puts it.

"""

_GROUPS = {
    "": "",
    "origins": "Experiments of the five public projects in which this one began, as near as they can be had. What"
    " differs is said in each; [what they say, and what they did](../results/origins.md).",
}
"""What stands above the recipes of a folder."""


def recipes() -> str:
    """Return the page of the shipped recipes."""
    paths = shipped_recipes()
    comments = {name: _comment(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    text = _headed(_RECIPES, "recipes/")
    text += _table(
        ["recipe", "what it is for"],
        ([f"[`{name}`](#{_recipe_id(name)})", marked(lines[0])] for name, lines in comments.items()),
    )
    for group, about in _GROUPS.items():
        text += f"\n## {group}\n\n{_filled(about)}\n" if group else ""
        names = [name for name in paths if name.rpartition("/")[0] == group]
        level = "###" if group else "##"
        text += "".join(_recipe(name, paths[name], comments[name], level) for name in names)
    return text


def _recipe_id(name: str) -> str:
    return name.replace("/", "-")


def _comment(text: str) -> list[str]:
    """Return the lines of the comment with which a recipe begins."""
    lines = text.splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:end]]


def _recipe(name: str, path: Path, comment: list[str], level: str) -> str:
    text = path.read_text(encoding="utf-8")
    commands = [line.strip() for line in comment if line.startswith("  fcn-smp ")]
    about = [line for line in comment[1:] if not line.startswith("  fcn-smp ")]
    body = "\n".join(text.splitlines()[len(comment) :])
    parent = yaml.safe_load(text).get("extends")
    console = "".join(f"$ {command}\n" for command in commands)
    parts = [f"{level} {name} {{ #{_recipe_id(name)} }}", marked(comment[0]), f"```console\n{console}```"]
    parts += [marked(paragraph) for paragraph in _paragraphs(about)]
    if parent:
        base = f"{name.rpartition('/')[0]}/{parent.removesuffix('.yaml')}" if parent.endswith(".yaml") else parent
        parts.append(f"Extends [`{base}`](#{_recipe_id(base)}).")
    parts.append(f"```yaml\n{body}\n```")
    return "\n" + "\n\n".join(parts) + "\n"


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Join the lines of a comment into paragraphs and lists."""
    paragraph: list[str] = []
    for number, line in enumerate(lines):
        item, indented = line.startswith(" * "), line.startswith("   ")
        before = lines[number - 1] if number else ""
        if paragraph and item != before.startswith((" * ", "   ")) and not indented:
            yield "\n".join(paragraph)
            paragraph = []
        paragraph.append(line.removeprefix(" ") if item or indented else line)
    if paragraph:
        yield "\n".join(paragraph)


if __name__ == "__main__":
    main()
