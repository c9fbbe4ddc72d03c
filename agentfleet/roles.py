"""The roles of a fleet, one process each. Loads nothing of the command line: a process that died is to be back soon."""

from __future__ import annotations

import os

from agentfleet import home
from runs.sandbox import certificates

# What a role's tables need. Without the admin, REST and the rest it is there in half the time, with 13 to 20 MB less.
BEAT_APPS = ["django_celery_beat"]
GATEWAY_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "agents", "runs"]


def web() -> None:
    """The web process alone. Raises HomeError."""
    home.ensure(home.path())
    from agentfleet.web import serve  # noqa: PLC0415 - each role loads its own

    serve()


def worker() -> None:
    """One worker process alone. Raises HomeError, and Refused where none of its sandboxes could start."""
    home.ensure(home.path())
    if file := os.environ.get(certificates.VARIABLE):
        certificates.check(file)
    from agentfleet.celery import work  # noqa: PLC0415

    work()


def beat() -> None:
    """The schedules' clock alone, one per fleet. Raises HomeError."""
    home.ensure(home.path())
    _set_up_django(BEAT_APPS)
    from agentfleet.celery import keep_time  # noqa: PLC0415

    keep_time()


def gateway() -> None:
    """What this host's sandboxes may ask, alone. Raises HomeError."""
    folder = home.ensure(home.path())
    _set_up_django(GATEWAY_APPS)
    from runs.gateway.server import serve  # noqa: PLC0415

    serve(folder)


def _set_up_django(apps: list[str]) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")
    import django  # noqa: PLC0415
    from django.conf import settings  # noqa: PLC0415

    settings.INSTALLED_APPS = apps
    django.setup()


ROLES = {"web": web, "worker": worker, "beat": beat, "gateway": gateway}
