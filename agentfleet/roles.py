"""The roles of a fleet, one process each. Loads nothing of the command line: a process that died is to be back soon."""

from __future__ import annotations

from agentfleet import home


def web() -> None:
    """The web process alone. Raises HomeError."""
    home.ensure(home.path())
    from agentfleet.web import serve  # noqa: PLC0415 - each role loads its own

    serve()


def worker() -> None:
    """One worker process alone. Raises HomeError."""
    home.ensure(home.path())
    from agentfleet.celery import work  # noqa: PLC0415

    work()


def beat() -> None:
    """The schedules' clock alone, one per fleet. Raises HomeError."""
    home.ensure(home.path())
    from agentfleet.celery import keep_time  # noqa: PLC0415

    keep_time()


ROLES = {"web": web, "worker": worker, "beat": beat}
