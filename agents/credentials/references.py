"""References as rows: what agents and sources name, so that what is missing can be listed before a run fails of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agents import credentials
from agents.credentials.base import CredentialError, Reference
from agents.models import Credential, Workspace


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is known of one credential. `fault` is empty for one that can be used."""

    reference: Reference
    store: str  # empty: none has it
    fields: list[str]
    fault: str

    @property
    def word(self) -> str:
        return "there" if not self.fault else "missing" if not self.store else "faulty"


def refer(workspace: Workspace, references: Iterable[Reference]) -> None:
    """Make the rows that are not there yet."""
    Credential.objects.bulk_create(
        (Credential(workspace=workspace, type=one.type, instance=one.instance) for one in sorted(set(references))),
        ignore_conflicts=True,
    )


def parsed(texts: Iterable[str]) -> list[Reference]:
    """Those that can name a credential; the checks of a folder have told of the others."""
    found = []
    for text in texts:
        try:
            found.append(Reference.parse(text))
        except CredentialError:
            continue
    return found


def standing(reference: Reference, workspace: str) -> Standing:
    try:
        found = credentials.find(reference, workspace=workspace)
        kind = credentials.type_of(reference.type)
    except CredentialError as error:
        return Standing(reference=reference, store="unknown", fields=[], fault=str(error))
    if found is None:
        return Standing(reference=reference, store="", fields=[], fault="no store has it")
    lacking = kind.missing(found.values) if kind else []
    fault = f"it has no {', '.join(lacking)}" if lacking else ""
    return Standing(reference=reference, store=found.store, fields=sorted(found.values), fault=fault)


def kept(workspace: str) -> set[Reference]:
    """Everything that any store has, whether or not somebody names it; a store that cannot be read has nothing."""
    known: set[Reference] = set()
    for store in credentials.stores(workspace):
        try:
            known |= set(store.list())
        except CredentialError:
            continue
    return known
