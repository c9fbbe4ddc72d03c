"""`agentfleet doctor`: what a run needs, looked at piece by piece, with the next step where something is wrong.

Reads and never mends; makes nothing where there is no home yet. No check raises, and none needs another to have
passed. Django is set up only by those that ask the database.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from agentfleet import background, up
from agentfleet.doctor import database, engine, files, networks, processes
from agentfleet.doctor.findings import Check, Place, Wrong
from agents import private_files
from runs.sandbox import certificates


def adopt_environment(home: Path) -> None:
    """See as the processes that are up see: theirs may name another database, Redis, engine or key than ours."""
    if background.supervisor(home) is None:
        return
    pids = private_files.read_json(home / "pids.json")
    for role in up.ROLES:
        if role in pids and background.started_at(pids[role]) is not None:
            items = os.fsdecode(Path(f"/proc/{pids[role]}/environ").read_bytes()).split("\0")
            os.environ.clear()
            os.environ.update({name: value for name, _, value in (item.partition("=") for item in items) if name})
            return


def examine(home: Path, port: int) -> list[Check]:
    """All that apply here, in the order a run meets them."""
    place = Place(home, port)
    return [one(name, look, place) for name, look in checks_for(place)]


def checks_for(place: Place) -> Iterator[tuple[str, Callable[[Place], str]]]:
    """Each gives the sentence of what is well, or raises Wrong."""
    yield "home", files.look_at_home
    yield "credentials", files.look_at_credentials
    yield "engine", engine.look_at_engine
    yield "image", engine.look_at_image
    if os.environ.get(certificates.VARIABLE):
        yield "extra CA", files.look_at_extra_ca
    yield "redis", processes.look_at_redis
    yield "database", database.look_at_database
    yield "port", processes.look_at_port
    yield "processes", processes.look_at_processes
    if place.is_up:
        yield "gateway", processes.look_at_gateway
        yield "worker", database.look_at_worker
        yield "schedules", database.look_at_schedules
    yield "networks", networks.look_at_networks
    yield "model keys", database.look_at_model_keys


def one(name: str, look: Callable[[Place], str], place: Place) -> Check:
    """The check's sentence; a fault of ours is a sentence as well."""
    try:
        return Check(name, True, look(place))
    except Wrong as wrong:
        return Check(name, False, str(wrong))
    except Exception as error:  # noqa: BLE001 - a doctor who falls ill tells nobody what is wrong
        return Check(name, False, f"could not be looked at: {type(error).__name__}: {error}")
