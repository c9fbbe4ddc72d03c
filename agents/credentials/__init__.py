"""Secrets by reference: `<type>[:<instance>]`, resolved at use from the stores, in their order.

Values are returned to the caller, who hands them to the redactor in the same breath; nothing here stores them in clear.
A credential is taken whole from the first store that has any of it. Source: spec/action-llama.md 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from django.conf import settings
from django.utils.module_loading import import_string

from agents.credential_types import BUILT_IN, CredentialType, Field
from agents.credentials import custom
from agents.credentials.base import CannotWrite, CredentialError, Reference, Store, is_name

__all__ = [
    "CannotWrite",
    "CredentialError",
    "CredentialType",
    "Field",
    "Found",
    "Reference",
    "Store",
    "find",
    "is_host_only",
    "is_name",
    "known_types",
    "read",
    "stores",
    "type_of",
]

DEFAULT = "default"  # the workspace that files and the environment serve


@dataclass(frozen=True)
class Found:
    """A credential as one store has it. `values` are secret: they have no place in a log, a row or a repr."""

    reference: Reference
    store: str
    values: Mapping[str, str] = field(repr=False)  # by field, none of them empty


def read(kind: str, instance: str = "default", field: str = "token", *, workspace: str = DEFAULT) -> str | None:
    """The value in the first store that has it, without the white space around it; None if there is none.

    Raises CredentialError for one that is there and cannot be used, such as a file that others may read.
    """
    if not all(map(is_name, (kind, instance, field))):
        return None
    values = (store.get(kind, instance, field) for store in stores(workspace))
    return next((value for value in values if value), None)


def find(reference: Reference, *, workspace: str = DEFAULT) -> Found | None:
    """All of a credential, from the first store that has any of it. Raises CredentialError."""
    for store in stores(workspace):
        fields = store.fields(reference.type, reference.instance)
        read = {name: store.get(reference.type, reference.instance, name) for name in fields}
        if values := {name: value for name, value in read.items() if value}:
            return Found(reference, store.name, values)
    return None


def stores(workspace: str = DEFAULT) -> Iterator[Store]:
    """Those that serve this workspace, in the order in which they are asked."""
    for path in settings.CREDENTIAL_STORES:
        if (store := _store_class(path).of(workspace)) is not None:
            yield store


@lru_cache(maxsize=32)
def _store_class(path: str) -> type[Store]:
    loaded: type[Store] = import_string(path)
    return loaded


def known_types() -> Mapping[str, CredentialType]:
    """Built in and the operator's own. Raises CredentialError for a file of theirs that cannot be read."""
    return {**BUILT_IN, **custom.read(Path(settings.HOME) / "credential-types.toml")}


def type_of(name: str) -> CredentialType | None:
    """Raises CredentialError, as `known_types`."""
    return known_types().get(name)


def is_host_only(name: str) -> bool:
    """Whether agentfleet alone uses what is of this type: no sandbox gets it. Raises CredentialError."""
    known = type_of(name)
    return known.host_only if known else name.endswith("_webhook_secret")
