"""The container engine, and the image that runs get unless their agent names one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agentfleet import bootstrap
from agentfleet.doctor.findings import PATIENCE, Place, Wrong

if TYPE_CHECKING:
    from runs.sandbox.base import Engine


def look_at_engine(place: Place) -> str:
    from runs.sandbox.base import SandboxError  # noqa: PLC0415 - here and below: each check loads what it needs

    try:
        with the_engine() as engine:
            return engine.ping()
    except SandboxError as error:
        raise Wrong(f"{error}: start the engine, or set DOCKER_HOST") from error


def look_at_image(place: Place) -> str:
    from runs.sandbox.base import SandboxError  # noqa: PLC0415

    try:
        with the_engine() as engine:
            image = default_image()
            engine.prepare_image(image)
    except SandboxError as error:
        raise Wrong(str(error)) from error
    return f"{image}{how_it_was_made(image)}"


@contextmanager
def the_engine() -> Iterator[Engine]:
    """The one that workers of this home use. Reads the settings; needs no database."""
    bootstrap.use_settings()
    from django.conf import settings  # noqa: PLC0415
    from django.utils.module_loading import import_string  # noqa: PLC0415

    engine = import_string(settings.SANDBOX_ENGINE)("doctor")
    try:
        yield engine
    finally:
        if hasattr(engine, "close"):
            engine.close()


def default_image() -> str:
    bootstrap.use_settings()
    from django.conf import settings  # noqa: PLC0415

    return str(settings.SANDBOX_IMAGE)


def how_it_was_made(image: str) -> str:
    """When, and from which recipe: for people. Only the engine's own command tells, so it may stay untold."""
    form = '{{.Created}} {{index .Config.Labels "agentfleet.recipe"}}'
    argv = ["docker", "image", "inspect", "-f", form, image]
    try:
        asked = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return ""
    created, _, recipe = asked.stdout.strip().partition(" ")
    return f", made {created[:16].replace('T', ' ')} UTC, recipe {recipe or 'unknown'}"
