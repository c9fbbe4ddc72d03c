"""The roles of a fleet, one process each. Loads nothing of the command line: a process that died is to be back soon."""

from __future__ import annotations

import os

from agentfleet import home

# What the gateway's tables need. Without the admin, REST and beat it is there in half the time, with 13 MB less.
GATEWAY_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "agents", "runs"]


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


def gateway() -> None:
    """What this host's sandboxes may ask, alone. Raises HomeError."""
    folder = home.ensure(home.path())
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")
    import django  # noqa: PLC0415
    from django.conf import settings  # noqa: PLC0415

    settings.INSTALLED_APPS = GATEWAY_APPS
    django.setup()
    from runs.gateway.server import serve  # noqa: PLC0415

    serve(folder)


ROLES = {"web": web, "worker": worker, "beat": beat, "gateway": gateway}
