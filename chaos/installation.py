"""A whole `agentfleet up` on either database, in a folder that may stay for whoever wants to look into it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agents import private_files
from chaos.senders import Address, repository
from tests.box import Box, keep_webhook_secret, labelled, take_down

OURS = ("AGENTFLEET_", "ANTHROPIC_", "DATABASE_URL", "REDIS_URL")
SECRET = "a secret of these runs alone"  # noqa: S105 - signs webhooks that never leave this machine
CONFIG = '[[webhooks]]\nsource = "github"\nevents = ["issues"]\nrepos = ["{repository}"]\n'


def forget_settings() -> None:
    """Nobody's settings but the defaults."""
    for name in [name for name in os.environ if name.startswith(OURS)]:
        del os.environ[name]


@contextmanager
def installation(
    folder: Path, *, fleet: str, model: str, database: str, agents: Sequence[str], scale: int
) -> Iterator[Box]:
    """A box whose containers and volumes are gone afterwards, whatever happens. `database`: a URL, or empty."""
    env = {"AGENTFLEET_FLEET": fleet, "ANTHROPIC_API_KEY": "sk-mock-0123456789", "ANTHROPIC_BASE_URL": model}
    box = Box(folder)
    box.env.update(env, **({"DATABASE_URL": database} if database else {}))
    keep_webhook_secret(box.home, SECRET)
    for agent in agents:
        box.define(agent, scale=scale, extra=CONFIG.format(repository=repository(agent)))
    try:
        with box:
            box.apply()
            yield box
    finally:
        take_down(box.home)
        remove_all(fleet)


def address(box: Box) -> Address:
    known = private_files.read_json(box.home / "client.json")
    return Address(known["url"], known["token"], SECRET)


def left(fleet: str) -> list[str]:
    """Containers and volumes of the fleet that the engine still has."""
    containers, volumes = labelled(f"agentfleet.fleet={fleet}")
    return [*containers, *volumes]


def remove_all(fleet: str) -> None:
    containers, volumes = labelled(f"agentfleet.fleet={fleet}")
    for removal, names in ((["docker", "rm", "-f"], containers), (["docker", "volume", "rm", "-f"], volumes)):
        if names:
            subprocess.run([*removal, *names], capture_output=True, check=False)
