"""Every block of the guides runs, from top to bottom, in a folder that holds what the page says is there."""

from pathlib import Path

import pytest
from guide_inputs import INPUTS
from guides import ROOT, blocks, check, run
from helpers import leave_out_drawings

PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for folder in ("start", "guides", "explained", "results", "contributing")
    for page in (ROOT / "docs" / folder).glob("*.md")
)


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", *PAGES])
def test_a_page_does_what_it_says(name, tmp_path, monkeypatch):
    page = ROOT / name
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if page.stem not in ("tour", "reports"):  # on the others nobody looks at charts
        leave_out_drawings(monkeypatch)
    if prepare := INPUTS.get(page.stem):
        prepare(tmp_path, monkeypatch)
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.reason is None:
            run(block, tmp_path, names)
        else:
            check(block)


def test_inputs_are_those_of_pages():
    assert set(INPUTS) <= {Path(page).stem for page in PAGES} | {"README"}


def test_a_wrong_option_of_a_command_that_is_not_run_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("guides.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: a test -->\n```console\n$ fcn-smp predict RUN photo.jpg --otuput DIR\n```\n")
    [block] = blocks(page)
    assert block.reason == "a test"
    with pytest.raises(AssertionError, match=r"page\.md:2: .*--otuput(.|\n)*No such option"):
        check(block)


def test_a_wrong_option_in_a_script_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("guides.ROOT", tmp_path)
    page = tmp_path / "page.md"
    script = "#!/bin/bash\n#SBATCH --nodes=2   # two\n\nsrun fcn-smp train my.yaml \\\n    --otuput DIR\n"
    page.write_text(f"<!-- not run: a test -->\n```bash\n{script}```\n")
    with pytest.raises(AssertionError, match=r"--otuput(.|\n)*No such option"):
        check(blocks(page)[0])


def test_a_file_of_python_is_written_and_run_as_if_imported(tmp_path, monkeypatch):
    monkeypatch.setattr("guides.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```python\n# some/tool.py\nname = __name__\n```\n```python\nprint(name, __name__)\n```\n")
    names = {}
    for block in blocks(page):
        run(block, tmp_path, names)
    assert (names["name"], names["__name__"]) == ("tool", "__main__")
    assert (tmp_path / "some/tool.py").read_text() == "# some/tool.py\nname = __name__\n"


def test_a_command_that_fails_is_told_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("guides.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```console\n$ fcn-smp recipes show nothing-like-that\nits output\n```\n")
    [block] = blocks(page)
    with pytest.raises(AssertionError, match=r"page\.md:3: .*nothing-like-that"):
        run(block, tmp_path, {})
