"""The wheel holds what the package needs at run time."""

import subprocess
import sys
import zipfile
from pathlib import Path


def test_the_wheel_holds_recipes_splits_and_types(tmp_path):
    root = Path(__file__).parent.parent
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"fcn_smp/recipes/{path.name}" for path in (root / "recipes").glob("*.yaml")} <= names
    assert {f"fcn_smp/data/splits/{path.name}" for path in (root / "fcn_smp/data/splits").iterdir()} <= names
    page = {"page.html.j2", "parts.html.j2", "page.css", "page.js"}
    assert {"fcn_smp/py.typed", *(f"fcn_smp/reporting/{name}" for name in page)} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "recipes"))]
