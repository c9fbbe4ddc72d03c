"""A whole `agentfleet up` in a folder that goes away, whatever happens, with every container it started."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench import containers
from bench.model import Model
from tests.box import Box, keep_webhook_secret, take_down

SECRET = "a secret of the bench alone"  # noqa: S105 - signs webhooks that never leave this machine
OURS = ("AGENTFLEET_", "ANTHROPIC_", "DATABASE_URL", "REDIS_URL")


@contextmanager
def settings_of_its_own() -> Iterator[None]:
    """Nobody's settings but the defaults, and a fleet that no other installation on this engine has."""
    for name in [name for name in os.environ if name.startswith(OURS)]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="agentfleet-bench-") as home:
        os.environ["AGENTFLEET_HOME"] = home
        os.environ["AGENTFLEET_FLEET"] = f"bench-{secrets.token_hex(6)}"
        os.environ["DJANGO_SETTINGS_MODULE"] = "agentfleet.settings"
        yield


@contextmanager
def installation(env: Mapping[str, str], model: Model | None = None) -> Iterator[Box]:
    """A box on the defaults and `env`, whose GitHub webhooks are signed with SECRET and whose model is `model`."""
    folder = Path(tempfile.mkdtemp(prefix="agentfleet-bench-"))
    box = Box(folder, from_nothing=True)
    box.env.update(env)
    if model is not None:
        box.env.update(ANTHROPIC_API_KEY="sk-mock-0123456789", ANTHROPIC_BASE_URL=model.url)
    keep_webhook_secret(box.home, SECRET)
    try:
        with box:
            yield box
    finally:
        take_down(box.home)
        containers.remove_all()
        shutil.rmtree(folder, ignore_errors=True)
