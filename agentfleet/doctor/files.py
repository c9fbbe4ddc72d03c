"""Files: the home, who may read what is in it, and the certificates that are added."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from agentfleet.doctor.findings import SHOWN, Place, Wrong
from runs.sandbox import certificates
from runs.sandbox.base import Refused

DISK_WANTED = 1024**3  # bytes free where the database and the logs are


def look_at_home(place: Place) -> str:
    home = place.home
    if not home.exists():
        return f"there is none at {home}: `agentfleet up` makes it"
    if not home.is_dir():
        raise Wrong(f"{home} is not a folder: choose another with --home or AGENTFLEET_HOME")
    if home.stat().st_uid != os.getuid():
        raise Wrong(f"{home} belongs to another user: choose another with --home or AGENTFLEET_HOME")
    if mode := open_to_others(home):
        raise Wrong(f"{home} is open to others (mode {mode:o}): chmod 700 {home}")
    free = shutil.disk_usage(home).free
    if free < DISK_WANTED:
        raise Wrong(f"only {free // 1024**2} MiB are free at {home}: make room, or move it to another disk")
    return f"{home}, {free / 1024**3:.1f} GiB free"


def look_at_credentials(place: Place) -> str:
    root = place.home / "credentials"
    found = [root, *sorted(root.rglob("*"))] if root.exists() else []
    lying_open = [item for item in found if open_to_others(item)]
    if lying_open:
        mends = [f"chmod {'700' if item.is_dir() else '600'} {item}" for item in lying_open[:SHOWN]]
        raise Wrong(f"{len(lying_open)} lie open to others, and such are refused: {'; '.join(mends)}")
    return f"{sum(item.is_file() for item in found)} files, none open to others"


def open_to_others(item: Path) -> int:
    """The mode, if others than the owner may do anything; else 0."""
    mode = stat.S_IMODE(item.stat().st_mode)
    return mode if mode & 0o077 else 0


def look_at_extra_ca(place: Place) -> str:
    file = os.environ[certificates.VARIABLE]
    try:
        return f"{file}, {certificates.check(file)} certificates"
    except Refused as error:
        raise Wrong(str(error)) from error
