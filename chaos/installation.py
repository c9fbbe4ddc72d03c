"""A whole `agentfleet up` on either database, in a folder that may stay for whoever wants to look into it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agents import private_files
from chaos import databases
from chaos.senders import Address, repository
from runs.sandbox import network
from tests.box import Box, keep_webhook_secret, labelled, take_down

OURS = ("AGENTFLEET_", "ANTHROPIC_", "DATABASE_URL", "REDIS_URL")
SECRET = "a secret of these runs alone"  # noqa: S105 - signs webhooks that never leave this machine
HELD = {
    "the lock {0} of {1}": "SELECT key, holder FROM runs_lock",
    "the wish for {0} of attempt {1}": "SELECT key, attempt_id FROM runs_lockwait",
    "the slot of {0}": "SELECT id FROM runs_run WHERE has_slot OR slot_lent_at IS NOT NULL",
}
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
    box = Box(folder, from_nothing=True)
    box.env.update(env, **({"DATABASE_URL": database} if database else {}))
    keep_webhook_secret(box.home, SECRET)
    for agent in agents:
        box.define(agent, scale=scale, extra=CONFIG.format(repository=repository(agent)), network="gateway")
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


def held(box: Box, database: str) -> list[str]:
    """Locks, wishes for locks, and slots that the database still counts as somebody's. `database`: a URL, or empty."""
    return [
        what.format(*row)
        for what, query in HELD.items()
        for row in databases.rows(database, box.home / "agentfleet.sqlite3", query)
    ]


def networks_left(box: Box) -> list[str]:
    """Of this installation's host, when its last worker has ended."""
    host_id = (box.home / "host_id").read_text().strip()
    listing = ["docker", "network", "ls", "--filter", f"label=agentfleet.host={host_id}", "--format", "{{.Name}}"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.splitlines()
    bridges = [network.bridge_of(policy, host_id) for policy in network.LETTERS]
    return [*names, *(rule for rule in rules if any(bridge in rule for bridge in bridges))]


def remove_all(fleet: str) -> None:
    containers, volumes = labelled(f"agentfleet.fleet={fleet}")
    for removal, names in ((["docker", "rm", "-f"], containers), (["docker", "volume", "rm", "-f"], volumes)):
        if names:
            subprocess.run([*removal, *names], capture_output=True, check=False)
