"""Credentials in the database, encrypted: what a dump of it shows is of no use without HOME/credential_keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from django.db import transaction
from django.db.models import QuerySet

from agents.credentials import cipher
from agents.credentials.base import CredentialError, Reference, Store
from agents.models import Credential, CredentialValue, Workspace

AT_ONCE = 100  # values encrypted anew in one transaction


class RowStore(Store):
    """Every workspace has its own, and sees no other's."""

    name = "database"

    def __init__(self, workspace: str) -> None:
        self.workspace = workspace

    @classmethod
    def of(cls, workspace: str) -> RowStore:
        return cls(workspace)

    def get(self, kind: str, instance: str, field: str) -> str | None:
        if not cipher.key_file().exists():  # nothing was ever put here, or it cannot be read here: no query for that
            return None
        found = self._values(kind, instance).filter(field=field).first()
        if found is None:
            return None
        try:
            return cipher.decrypt(found.ciphertext) or None
        except CredentialError as error:
            raise CredentialError(f"{field} of {Reference(kind, instance)} cannot be decrypted: {error}") from error

    def fields(self, kind: str, instance: str) -> Sequence[str]:
        return list(self._values(kind, instance).order_by("field").values_list("field", flat=True))

    def list(self) -> Sequence[Reference]:
        rows = Credential.objects.filter(workspace__name=self.workspace, values__isnull=False).distinct()
        return sorted(Reference(row.type, row.instance) for row in rows)

    def put(self, reference: Reference, values: Mapping[str, str]) -> None:
        secret = {field: cipher.encrypt(value.strip()) for field, value in values.items()}
        with transaction.atomic():
            workspace = Workspace.objects.get(name=self.workspace)
            row, _ = Credential.objects.get_or_create(
                workspace=workspace, type=reference.type, instance=reference.instance
            )
            for field, ciphertext in secret.items():
                CredentialValue.objects.update_or_create(
                    credential=row, field=field, defaults={"ciphertext": ciphertext}
                )

    def remove(self, reference: Reference) -> bool:
        removed, _ = self._values(reference.type, reference.instance).delete()
        return removed > 0

    def _values(self, kind: str, instance: str) -> QuerySet[CredentialValue]:
        return CredentialValue.objects.filter(
            credential__workspace__name=self.workspace, credential__type=kind, credential__instance=instance
        )


def rotate() -> int:
    """Make a new key, encrypt every value with it and drop the old keys; how many values. Raises CredentialError.

    One that broke off is taken up where it was: while there are two keys, the first is the new one.
    """
    if not CredentialValue.objects.exists():
        return 0
    if len(cipher.keys()) < 2:
        cipher.add_key()
    done, after = 0, 0
    while ids := list(
        CredentialValue.objects.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[:AT_ONCE]
    ):
        done += _encrypt_anew(ids)
        after = ids[-1]
    cipher.keep_first_key()
    return done


@transaction.atomic
def _encrypt_anew(ids: Sequence[int]) -> int:
    rows = list(CredentialValue.objects.select_for_update(no_key=True).filter(pk__in=ids).order_by("pk"))
    for row in rows:
        row.ciphertext = cipher.encrypt_anew(row.ciphertext)
    CredentialValue.objects.bulk_update(rows, ["ciphertext"])
    return len(rows)
