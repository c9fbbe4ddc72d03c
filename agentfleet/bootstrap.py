"""Django in a process that is not one of its own: only where something is asked of the database."""

from __future__ import annotations

import os


def use_settings() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")


def set_up_django() -> None:
    use_settings()
    import django  # noqa: PLC0415 - most commands do without

    django.setup()
