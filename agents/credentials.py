"""Secrets by reference: `<type>[:<instance>]`, resolved at use from files laid out as Action Llama lays them out.

    HOME/credentials/<type>/<instance>/<field>     folders 0700, files 0600, refused when looser

Values are returned to the caller, who hands them to the redactor in the same breath; nothing here stores them.
Source: spec/action-llama.md 5.1.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from django.conf import settings

_word = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class CredentialError(Exception):
    """A credential is there and cannot be used as it is; the message names it and the mend, never the value."""


def read(kind: str, instance: str = "default", field: str = "token") -> str | None:
    """The value, without the white space around it; None if there is no such file, or nothing in it.

    Raises CredentialError if others than the owner could read it, or we cannot.
    """
    if not all(_word.match(word) for word in (kind, instance, field)):
        return None
    root = Path(settings.HOME) / "credentials"
    folder = root / kind / instance
    try:
        value = (folder / field).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise CredentialError(f"{folder / field} is not text in UTF-8: write it anew") from error
    except OSError as error:
        raise CredentialError(f"{folder / field} cannot be read: {error.strerror}") from error
    for place in (root, folder.parent, folder, folder / field):
        _refuse_if_open(place)
    return value.strip() or None  # an empty key signs nothing and opens nothing: it must not pass for one


def _refuse_if_open(place: Path) -> None:
    mode = stat.S_IMODE(place.stat().st_mode)
    if mode & 0o077:
        wanted = "700" if place.is_dir() else "600"
        raise CredentialError(f"{place} may be read by others (mode {mode:o}): chmod {wanted} it")
