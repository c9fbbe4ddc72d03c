"""Who asks: the attempt whose secret was shown, as long as it is at work."""

from __future__ import annotations

from django.db.models import QuerySet

from runs import lock_table
from runs.models import Attempt


def living() -> QuerySet[Attempt]:
    """With what its agent is and may."""
    return lock_table.living().select_related("run__agent", "run__version")


def caller(digest: str) -> Attempt | None:
    """None: nobody's secret, or of one that has ended."""
    return living().filter(gateway_digest=digest).first()
