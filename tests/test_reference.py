"""The reference says of everything public what it is, and what it says of parameters is true of the code."""

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from importlib import import_module

import foreign_weights as foreign
import numpy as np
import pytest
import torch
import typer
from guides import ROOT, blocks, check, run
from PIL import Image

import fcn_smp
from fcn_smp import cli
from fcn_smp.data.demo import DemoScenes
from fcn_smp.recipe import Model, json_schema
from fcn_smp.registry import ARCHITECTURES, FCNS

MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "fcn_smp").rglob("*.py"))
REFERENCE = ROOT / "docs/reference"
PYTHON = sorted((REFERENCE / "python").glob("*.md"))
SECTION = re.compile(r"^(\w+):\n((?: .*\n|\n)+)", re.M)
"""A section of a docstring, with its indented lines."""
ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|obj|exc):`")
"""What Sphinx understands and mkdocstrings does not."""


def generator():
    """Import the script that writes the pages of the reference."""
    spec = importlib.util.spec_from_file_location("generate", REFERENCE / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- What the tests look for


def public(tree: ast.Module) -> Iterator[tuple[str, ast.AST, ast.ClassDef | None]]:
    """Yield the public functions and classes of a module, and the methods of these, with their class."""

    def members(body, prefix, owner):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield prefix + node.name, node, owner
                if isinstance(node, ast.ClassDef):
                    yield from members(node.body, f"{prefix}{node.name}.", node)

    yield from members(tree.body, "", None)


def undescribed(source: str) -> list[str]:
    """Return what is public in a module and has no docstring; protocols describe the methods of what follows them."""
    tree = ast.parse(source)
    protocols = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases)
    ]
    described = {f"{method.name}{ast.unparse(method.args)}" for protocol in protocols for method in methods(protocol)}
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for name, node, owner in public(tree):
        by_protocol = owner is not None and isinstance(node, ast.FunctionDef)
        if not ast.get_docstring(node) and not (by_protocol and f"{node.name}{ast.unparse(node.args)}" in described):
            missing.append(name)
    return missing


def methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [each for each in node.body if isinstance(each, ast.FunctionDef)]


def mistaken(source: str) -> list[str]:
    """Return where a section Args of a docstring names other parameters than the function or the constructor has."""
    wrong = []
    for name, node, _ in public(ast.parse(source)):
        sections = dict(SECTION.findall((ast.get_docstring(node) or "") + "\n"))
        function = constructor(node) if isinstance(node, ast.ClassDef) else node
        if "Args" not in sections or function is None:
            continue
        told = re.findall(r"^ {4}(\w+):", sections["Args"], re.M)
        taken = parameters(function)
        if told != taken:
            wrong.append(f"{name} takes {', '.join(taken)}, and tells of {', '.join(told)}")
    return wrong


def constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((each for each in methods(node) if each.name == "__init__"), None)


def parameters(function: ast.FunctionDef) -> list[str]:
    """Return the names of a function's parameters in their order; ``**_`` takes what nobody is to give."""
    given = function.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [each.arg for each in every if each and each.arg not in ("self", "cls", "_")]


def helpless(command, name: str) -> Iterator[str]:
    """Yield what of a command, and of those below it, has no help."""
    if not command.help:
        yield name
    for parameter in command.params:
        if not getattr(parameter, "help", None):
            yield f"{name} {parameter.name}"
    for child in getattr(command, "commands", {}).values():
        yield from helpless(child, f"{name} {child.name}")


def bare_keys(schema: dict) -> list[str]:
    """Return the keys of a schema and of its parts without a description; a part has that of its definition."""
    found = []
    for part, content in {"": schema, **schema["$defs"]}.items():
        for key, value in content["properties"].items():
            refers = {**value, "anyOf": None} if "$ref" in value else value
            parts = [refers, *(value.get("anyOf") or ())]
            names = [each["$ref"].rpartition("/")[2] for each in parts if "$ref" in each]
            if not value.get("description") and not (
                names and all(schema["$defs"][name].get("description") for name in names)
            ):
                found.append(f"{part}.{key}".lstrip("."))
    return found


# --- The tests


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_described(module):
    assert undescribed((ROOT / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_tell_of_the_parameters_that_there_are(module):
    assert mistaken((ROOT / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_are_markdown(module):
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in texts if ROLE.search(text)] == []


def test_every_command_argument_and_option_has_help():
    assert list(helpless(typer.main.get_command(cli.app), "fcn-smp")) == []


def test_every_recipe_key_has_a_description():
    assert bare_keys(json_schema()) == []


@pytest.mark.parametrize("page", ["command-line.md", "recipe-keys.md", "recipes.md"])
def test_generated_pages_are_up_to_date(page):
    stale = "run: python docs/reference/generate.py"
    assert (REFERENCE / page).read_text(encoding="utf-8") == generator().pages()[page], stale


def test_the_keys_of_the_decoder_are_for_the_networks_that_the_page_names():
    keys = {key for key in Model.model_fields if key.startswith("decoder_")}
    takes = {name: keys & set(inspect.signature(cls).parameters) for name, cls in ARCHITECTURES.items()}
    expected = {name: keys if name in FCNS else set() for name in ARCHITECTURES} | {"dilatedfcn": {"decoder_dropout"}}
    assert takes == expected


def fields(folder, monkeypatch):
    for number in range(6):
        for kind, ending in (("images", "jpg"), ("labels", "png")):
            path = folder / f"fields/{kind}/{number}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.indices((48, 64)).sum(0).astype(np.uint8) // (8 + number) % 3
            (Image.fromarray(pixels) if kind == "labels" else Image.fromarray(80 * pixels).convert("RGB")).save(path)


def scenes_and_photos(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))
    monkeypatch.setattr(DemoScenes, "splits", {"train": 12, "val": 2, "test": 1})
    (folder / "photos").mkdir()
    Image.new("RGB", (96, 64), "green").save(folder / "photos/meadow.png")


def caffemodel(folder, monkeypatch):
    (folder / "fcn8s-heavy-pascal.caffemodel").write_bytes(foreign.caffemodel(foreign.random_network("fcn8s", 21)))


INPUTS = {"data": fields, "running": scenes_and_photos, "weights": caffemodel}


@pytest.mark.parametrize("page", [page.stem for page in PYTHON])
def test_the_examples_of_the_python_reference_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    INPUTS.get(page, lambda folder, monkeypatch: None)(tmp_path, monkeypatch)
    names: dict[str, object] = {}
    for block in blocks(REFERENCE / f"python/{page}.md"):
        run(block, tmp_path, names)


@pytest.mark.parametrize("page", sorted(REFERENCE.glob("*.md")), ids=lambda page: page.stem)
def test_commands_of_the_reference_are_those_that_there_are(page):
    for block in blocks(page):
        check(block)


def test_comments_of_shapes_in_the_example_of_networks_are_true():
    model = fcn_smp.FCN8s(encoder_name="resnet18", encoder_weights=None, classes=21)
    images = torch.rand(1, 3, 375, 500)
    text = (REFERENCE / "python/networks.md").read_text(encoding="utf-8")
    for shape in (model(images).shape, model.coarse(images).scores.shape):
        assert f"# (2, {', '.join(map(str, shape[1:]))})" in text


def named(path: str):
    """Return the object of a dotted name."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if is_module(parts[:end]):
            found = import_module(".".join(parts[:end]))
            for part in parts[end:]:
                found = getattr(found, part)
            return found
    raise AttributeError(path)


def is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def described() -> list[str]:
    """Return what the Python reference describes, by dotted names."""
    return [name for page in PYTHON for name in re.findall(r"^::: ([\w.]+)", page.read_text(encoding="utf-8"), re.M)]


def test_the_python_reference_describes_what_there_is_and_each_once():
    names = described()
    assert len(names) == len(set(names))
    for name in names:
        assert named(name).__doc__ or not callable(named(name)), name


def test_the_python_reference_has_all_public_names():
    found = [named(name) for name in described()]
    others = ("__version__", "from_pretrained")  # a text, and SMP's
    assert [name for name in fcn_smp.__all__ if name not in others and getattr(fcn_smp, name) not in found] == []
    index = (REFERENCE / "python/index.md").read_text(encoding="utf-8")
    assert [name for name in fcn_smp.__all__ if f"`{name}`" not in index] == []


# --- That the tests can fail


EXAMPLE = '''
"""A module."""

class Told(Protocol):
    """Described."""

    def read(self, path):
        """Described."""

class Follows:
    """Described."""

    def read(self, path):
        return path

    def write(self, path):
        return path

class Mistaken:
    """Described.

    Args:
        old: Nobody takes it any more.
    """

    def __init__(self, new):
        pass

def complete(first, *rest, last, **_):
    """Described.

    Args:
        first: One.
        rest: Some.
        last: One.

    Returns:
        old: Nothing that is a parameter.
    """

def incomplete(first, second):
    """Described.

    Args:
        first: One.
    """

def silent():
    pass
'''


def test_what_is_not_described_is_found():
    assert undescribed(EXAMPLE) == ["Follows.write", "silent"]
    assert undescribed("x = 1") == ["the module"]


def test_parameters_that_docstrings_do_not_tell_of_or_invent_are_found():
    assert mistaken(EXAMPLE) == [
        "Mistaken takes new, and tells of old",
        "incomplete takes first, second, and tells of first",
    ]


def test_options_without_help_are_found():
    app = typer.Typer()

    @app.command()
    def go(place: str, speed: int = typer.Option(1, help="How fast."), loud: bool = False) -> None:
        """Go."""

    @app.command()
    def stay() -> None:
        pass

    program = typer.main.get_command(app)
    program.params, program.help = [], "A program."
    assert list(helpless(program, "program")) == ["program go place", "program go loud", "program stay"]


def test_keys_without_a_description_are_found():
    part = {"properties": {"told": {"description": "Told."}, "bare": {}}}
    schema = {"properties": {"part": {"$ref": "#/$defs/Part"}}, "$defs": {"Part": {**part, "description": "A part."}}}
    assert bare_keys(schema) == ["Part.bare"]
    assert bare_keys({**schema, "$defs": {"Part": part}}) == ["part", "Part.bare"]


def test_a_page_that_is_out_of_date_is_not_what_the_script_writes(monkeypatch):
    generate = generator()
    before = generate.pages()
    monkeypatch.setattr(cli.train, "__doc__", "Something else.")
    after = generate.pages()
    assert before["command-line.md"] != after["command-line.md"]
    assert before["recipes.md"] == after["recipes.md"]
