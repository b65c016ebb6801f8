"""What lies in the reader's folder before a page of the documentation begins, by the name of the page."""

from collections.abc import Callable
from pathlib import Path

import pytest

INPUTS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {}
