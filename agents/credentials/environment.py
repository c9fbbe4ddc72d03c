"""Credentials in the environment of the process: AL_SECRET_<type>__<instance>__<field>.

A character outside [A-Za-z0-9_] stands as _xHH, each byte of it in lower-case hex. Source: spec/action-llama.md 5.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from agents.credentials.base import Reference, Store, is_name

PREFIX = "AL_SECRET_"


class EnvironmentStore(Store):
    """Only read, and of the workspace `default` alone: the variables are its operator's."""

    name = "environment"

    @classmethod
    def of(cls, workspace: str) -> EnvironmentStore | None:
        return cls() if workspace == "default" else None

    def get(self, kind: str, instance: str, field: str) -> str | None:
        return os.environ.get(variable(kind, instance, field), "").strip() or None

    def fields(self, kind: str, instance: str) -> Sequence[str]:
        beginning = variable(kind, instance, "")
        rest = (name.removeprefix(beginning) for name in os.environ if name.startswith(beginning))
        return sorted(field for field in map(_decoded, rest) if is_name(field))

    def list(self) -> Sequence[Reference]:
        """Those whose names have no two underscores together: of others nobody can tell where the type ends."""
        split = (name.removeprefix(PREFIX).split("__") for name in os.environ if name.startswith(PREFIX))
        found = {tuple(map(_decoded, words)) for words in split if len(words) == 3}
        return sorted({Reference(words[0], words[1]) for words in found if all(map(is_name, words))})


def variable(kind: str, instance: str, field: str) -> str:
    """The variable's name."""
    return PREFIX + "__".join(map(_encoded, (kind, instance, field)))


def _encoded(word: str) -> str:
    return re.sub(rb"[^A-Za-z0-9_]", lambda match: b"_x%02x" % match[0][0], word.encode()).decode()


def _decoded(word: str) -> str:
    """What is written so; a name that only looks as if something were encoded in it stays."""
    raw = re.sub(rb"_x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), word.encode("utf-8", "replace"))
    plain = raw.decode("utf-8", "replace")
    return plain if _encoded(plain) == word else word
