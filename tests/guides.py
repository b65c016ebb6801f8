"""Pages of the documentation as things that run: their blocks, how each is run, and what a page's commands become.

A block is run unless a comment, which readers do not see, stands above it: ``<!-- not run: REASON -->``. What is not
run is parsed, and its commands are checked against the command line. Blocks of a page share a folder and Python's
names.
"""

import contextlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from helpers import run_command

from fcn_smp import cli
from fcn_smp.recipe import json_schema, load_recipe, shipped_recipes

ROOT = Path(__file__).parent.parent
FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: (?P<reason>[^\n]+) -->\n+ *)?```(?P<kind>\w+)[^\n]*\n(?P<text>.*?)^ *```$",
    re.M | re.S,
)
SHELL = re.compile(r"[|<>;&`]|\$\(")
"""What only a shell understands."""
NAMED = re.compile(r"# ([\w./-]+\.\w+)")
"""The first line of a block that is a file."""
QUICK = ("trainer.epochs=1", "trainer.validate_every=1", "trainer.workers=0", "trainer.samples=1")
"""What is added to trainings on a page, for the tests to be over in the reader's lifetime."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``reason`` is why it is not run."""

    where: str
    kind: str
    text: str
    reason: str | None

    @property
    def commands(self) -> Iterator[str]:
        """The commands of a console, without what they print, or of a script, each as one line."""
        prompt = r"\$ " if self.kind == "console" else ""
        for match in re.finditer(rf"^{prompt}(.*?[^\\\n])$", self.text, re.M | re.S):
            yield re.sub(r" *\\\n\s*", " ", match[1])

    @property
    def name(self) -> str | None:
        """The file that it is, if it says so."""
        match = NAMED.match(self.text)
        return match[1] if match else None


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("kind")) + 1
        content = "\n".join(row.removeprefix(match["indent"]) for row in match["text"].split("\n"))
        found.append(Block(f"{page.relative_to(ROOT)}:{line}", match["kind"], content, match["reason"]))
    return found


def run(block: Block, folder: Path, names: dict[str, object]) -> None:
    """Run a block as its reader would, in the working directory ``folder``; ``names`` are Python's.

    A file of Python is written, and run as if it was imported.
    """
    if block.kind == "python":
        if block.name:
            _write(block, folder)
        names["__name__"] = Path(block.name).stem if block.name else "__main__"
        exec(compile(block.text, block.where, "exec"), names)
    elif block.kind in ("yaml", "toml", "json", "csv"):
        _write(block, folder)
    elif block.kind == "console":
        for command in block.commands:
            _run_command(block, command)
    elif block.kind == "bash":
        _run_in_shell(block, block.text)


def check(block: Block) -> None:
    """Parse a block that is not run, and check its commands against the command line."""
    if block.kind == "python":
        compile(block.text, block.where, "exec")
    elif block.kind == "console":
        for command in block.commands:
            _check_command(block, command)
    elif block.kind == "bash":
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        for command in block.commands:
            _check_command(block, command)


def _write(block: Block, folder: Path) -> None:
    """Write a file that names itself in its first line, and see that a recipe has no key that there is not."""
    if block.kind == "yaml":
        content = yaml.safe_load(block.text)
        if set(content) & set(json_schema()["properties"]):
            jsonschema.validate(content, json_schema())
    if block.name:
        path = folder / block.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")


def _run_command(block: Block, command: str) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "fcn-smp" and not SHELL.search(command):
        if words[1] == "train":
            words += QUICK
        code, out, err = run_command(*words[1:])
        assert code in (0, None), f"{block.where}: {command}\n{out}{err}"
        return
    _run_in_shell(block, command)


def _run_in_shell(block: Block, command: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{block.where}: {command}\n{done.stdout}{done.stderr}"


def _check_command(block: Block, command: str) -> None:
    words = shlex.split(command, comments=True)
    if "fcn-smp" in words:  # perhaps behind what starts it, such as srun
        words = words[words.index("fcn-smp") + 1 :]
    elif words[:1] == ["torchrun"] and "fcn_smp" in words:
        words = words[words.index("fcn_smp") + 1 :]
    else:
        return
    words = list(itertools.takewhile(lambda word: word not in ("|", ">", "&&", ";", "&"), words))
    errors = io.StringIO()
    seen: dict[str, object] = {}
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as exited:
        _recorder(seen)(words, prog_name="fcn-smp")
    assert exited.value.code in (0, None), f"{block.where}: {command}\n{errors.getvalue()}"
    if seen.get("recipe") in shipped_recipes():
        known = [each for each in seen.get("overrides") or [] if not each.startswith("$")]  # a variable of the shell
        load_recipe(seen["recipe"], known)


def _recorder(seen: dict[str, object]) -> Callable[..., None]:
    """Return the command line, whose commands do nothing but note their arguments."""
    program = typer.main.get_command(cli.app)
    commands = [program]
    while commands:
        each = commands.pop()
        commands += getattr(each, "commands", {}).values()
        if not getattr(each, "commands", {}):
            each.callback = lambda **values: seen.update(values)
    return program
