"""Loaded before Django reads its settings: every test run has a home of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

for name in list(os.environ):
    if name.startswith(("AGENTFLEET_", "ANTHROPIC_")):
        del os.environ[name]
home = tempfile.mkdtemp(prefix="agentfleet-test-")
atexit.register(shutil.rmtree, home, ignore_errors=True)
os.environ["AGENTFLEET_HOME"] = home
os.environ["REDIS_URL"] = "redis://127.0.0.1:1/0"  # nobody there: a test that needs Redis starts its own
