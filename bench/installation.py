"""A whole `agentfleet up` in a folder that goes away, whatever happens, with every container it started."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agentfleet import up
from agents import private_files
from bench import containers
from bench.model import Model
from tests.box import Box

SECRET = "a secret of the bench alone"  # noqa: S105 - signs webhooks that never leave this machine
OURS = ("AGENTFLEET_", "ANTHROPIC_", "DATABASE_URL", "REDIS_URL")
STARTS_WITHIN = 5.0  # seconds from the command to the supervisor's first file


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
    box = Box(folder)
    box.env.update(env)
    if model is not None:
        box.env.update(ANTHROPIC_API_KEY="sk-mock-0123456789", ANTHROPIC_BASE_URL=model.url)
    _keep_secret(box.home)
    try:
        with box:
            yield box
    finally:
        _take_down(box.home)
        containers.remove_all()
        shutil.rmtree(folder, ignore_errors=True)


def _keep_secret(home: Path) -> None:
    place = home / "credentials" / "github_webhook_secret" / "default"
    for folder in (home, home / "credentials", place.parent, place):
        folder.mkdir(mode=0o700)
    private_files.write(place / "secret", SECRET)


def _take_down(home: Path) -> None:
    """Also a supervisor that was just being started when the bench was interrupted."""
    end = time.monotonic() + STARTS_WITHIN
    while (home / "up.log").exists() and not (home / "up.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    up.down(home)
