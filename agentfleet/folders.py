"""Writes project folders. What stands in one is replaced only by those who say so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class InTheWay(Exception):
    """Something is there already, or a path leads elsewhere; the message names it and the next step."""


def write_project(directory: Path, files: Mapping[str, bytes], *, force: bool) -> None:
    """All of a project into a folder that is empty or not there. With `force` beside and over what it has.

    Raises InTheWay.
    """
    if directory.exists() and not force and any(directory.iterdir()):
        raise InTheWay(f"{directory} is not empty: choose another folder, or write over it with --force")
    write(directory, files)


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Raises InTheWay before anything is written, if a path would leave the folder."""
    from agents.manifest import checks  # noqa: PLC0415 - most commands write no folders

    for fault in checks.path_faults(files):
        raise InTheWay(str(fault))
    for path in files:
        if any(place.is_symlink() for place in _way(directory, path)):
            raise InTheWay(f"{directory / path} leads through a link: remove it first")
    for path, content in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _way(directory: Path, path: str) -> list[Path]:
    target = directory / path
    return [place for place in (target, *target.parents) if place.is_relative_to(directory) and place != directory]
