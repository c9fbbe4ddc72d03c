"""The contract of a place where values of credentials are kept. One test suite holds every store to it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

_word = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class CredentialError(Exception):
    """A credential is there and cannot be used as it is; the message names it and the mend, never the value."""


class CannotWrite(CredentialError):
    """This store is only read; the message says where its values come from."""


def is_name(word: str) -> bool:
    """Whether it can name a type, an instance or a field: it cannot lead out of a folder."""
    return bool(_word.fullmatch(word))


@dataclass(frozen=True, order=True)
class Reference:
    """What agents and sources name: `type` or `type:instance`."""

    type: str
    instance: str = "default"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split at the first colon, both sides trimmed. Raises CredentialError for what can name no credential."""
        kind, _, instance = (part.strip() for part in text.partition(":"))
        reference = cls(kind, instance or "default")
        if not (is_name(reference.type) and is_name(reference.instance)):
            raise CredentialError(f"{text!r} is no credential: write type or type:instance, as in github_token:bot")
        return reference

    def __str__(self) -> str:
        return self.type if self.instance == "default" else f"{self.type}:{self.instance}"


class Store(ABC):
    """Values by type, instance and field, as one workspace sees them. All names passed in satisfy `is_name`."""

    name = ""  # in lists and messages

    @classmethod
    @abstractmethod
    def of(cls, workspace: str) -> Store | None:
        """The store as that workspace sees it; None: it serves others only."""

    @abstractmethod
    def get(self, kind: str, instance: str, field: str) -> str | None:
        """The value, without the white space around it; None if there is none, or nothing in it.

        Raises CredentialError for one that is there and cannot be used.
        """

    @abstractmethod
    def fields(self, kind: str, instance: str) -> Sequence[str]:
        """The names of the fields it has of one credential, in order, perhaps with some that are empty."""

    @abstractmethod
    def list(self) -> Sequence[Reference]:
        """Every credential it has anything of, in order."""

    def put(self, reference: Reference, values: Mapping[str, str]) -> None:
        """Keep these fields of a credential, in place of older values; other fields stay. Raises CredentialError."""
        raise CannotWrite(f"{reference} cannot be kept in {self.name}, which is only read")

    def remove(self, reference: Reference) -> bool:
        """Forget every field of it; whether there was any. Raises CredentialError."""
        raise CannotWrite(f"{reference} cannot be removed from {self.name}, which is only read")
