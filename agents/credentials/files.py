"""Credentials in files laid out as Action Llama lays them out.

    HOME/credentials/<type>/<instance>/<field>     folders 0700, files 0600, refused when looser

Source: spec/action-llama.md 5.1.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from django.conf import settings

from agents import private_files
from agents.credentials.base import CredentialError, Reference, Store, is_name


class FileStore(Store):
    """Of the workspace `default` alone: whoever keeps a home is its operator."""

    name = "files"

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of(cls, workspace: str) -> FileStore | None:
        return cls(Path(settings.HOME) / "credentials") if workspace == "default" else None

    def get(self, kind: str, instance: str, field: str) -> str | None:
        folder = self.root / kind / instance
        file = folder / field
        try:
            value = file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError as error:
            raise CredentialError(f"{file} is not text in UTF-8: write it anew") from error
        except OSError as error:
            raise CredentialError(f"{file} cannot be read: {error.strerror}") from error
        for place in (self.root, folder.parent, folder, file):
            _refuse_if_open(place)
        return value.strip() or None  # an empty key signs nothing and opens nothing: it must not pass for one

    def fields(self, kind: str, instance: str) -> Sequence[str]:
        return _names(self.root / kind / instance)

    def list(self) -> Sequence[Reference]:
        return [
            Reference(kind, instance)
            for kind in _names(self.root)
            for instance in _names(self.root / kind)
            if _names(self.root / kind / instance)
        ]

    def put(self, reference: Reference, values: Mapping[str, str]) -> None:
        folder = self.root / reference.type / reference.instance
        try:
            for place in (self.root, folder.parent, folder):
                place.mkdir(mode=0o700, exist_ok=True)
                _refuse_if_open(place)
            for field, value in values.items():
                private_files.write(folder / field, f"{value.strip()}\n")
        except OSError as error:
            raise CredentialError(f"{folder} cannot be written: {error.strerror}") from error

    def remove(self, reference: Reference) -> bool:
        folder = self.root / reference.type / reference.instance
        known = _names(folder)
        try:
            for field in known:
                (folder / field).unlink(missing_ok=True)
        except OSError as error:
            raise CredentialError(f"{folder} cannot be removed: {error.strerror}") from error
        for place in (folder, folder.parent):
            with contextlib.suppress(OSError):  # not there, or something else lies in it
                place.rmdir()
        return bool(known)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(place.name for place in folder.iterdir() if is_name(place.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CredentialError(f"{folder} cannot be read: {error.strerror}") from error


def _refuse_if_open(place: Path) -> None:
    mode = stat.S_IMODE(place.stat().st_mode)
    if mode & 0o077:
        wanted = "700" if place.is_dir() else "600"
        raise CredentialError(f"{place} may be read by others (mode {mode:o}): chmod {wanted} {place}")
