"""Loaded before Django reads its settings: every test run has a home of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from fnmatch import fnmatch

import pytest

for name in list(os.environ):
    if name.startswith(("AGENTFLEET_", "ANTHROPIC_")):
        del os.environ[name]
home = tempfile.mkdtemp(prefix="agentfleet-test-")
atexit.register(shutil.rmtree, home, ignore_errors=True)
os.environ["AGENTFLEET_HOME"] = home
os.environ["REDIS_URL"] = "redis://127.0.0.1:1/0"  # nobody there: a test that needs Redis starts its own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--modules", default="", help="tests of modules that fit these patterns, with commas; after a !: all others"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Two lanes may share what one mark selects."""
    asked: str = config.getoption("--modules")
    if not asked:
        return
    patterns = asked.removeprefix("!").split(",")
    named = {stem for stem in {item.path.stem for item in items} for one in patterns if fnmatch(stem, one)}
    chosen = [item for item in items if (item.path.stem in named) != asked.startswith("!")]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
