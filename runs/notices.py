"""Telling somebody of alerts: one message when one begins and one when it is over, and that the fleet is well at all.

What has been told stands in the alert's row: a restart repeats nothing, a receiver that was away is told later, and
of several watchers one tells. The address may be a secret (a chat's webhook is), so no line of the log has it.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import F, Q, QuerySet

from agents import clock
from runs import dashboard, outbound, readiness
from runs.events import isoformat
from runs.models import Alert

log = logging.getLogger(__name__)

WITHIN = 5.0  # seconds for all of a request
FIRST_PAUSE = timedelta(seconds=10)  # longer than a request: also what keeps two from telling the same
LONGEST_PAUSE = timedelta(hours=1)
AT_ONCE = 20  # messages in one round
HEARTBEAT_EVERY = 60.0  # seconds


class Teller:
    """Remembers when it last said that the fleet is well."""

    def __init__(self) -> None:
        self._well_at = float("-inf")

    def tell(self) -> None:
        """One round: what has not been told yet, and now and then that all is well."""
        tell_alerts()
        if settings.HEARTBEAT_URL and time.monotonic() - self._well_at >= HEARTBEAT_EVERY:
            self._well_at = time.monotonic()
            say_well()


def say_well() -> None:
    """To whoever misses it if it does not come; nothing is said while something is wrong."""
    if readiness.now().ok and (failure := send("GET", settings.HEARTBEAT_URL)):
        log.warning("the heartbeat did not get through: %s", failure)


def tell_alerts() -> None:
    """What is to be told now, in order; the first that does not get through ends the round."""
    for alert in untold(clock.now())[:AT_ONCE]:
        if take(alert) and not told(alert):
            return


def untold(now: datetime) -> QuerySet[Alert]:
    began, over = Q(notified_at=None), Q(cleared_at__isnull=False, clear_notified_at=None)
    due = Q(next_try_at=None) | Q(next_try_at__lte=now)
    return Alert.objects.filter(began | over, due).order_by("pk")


def take(alert: Alert) -> bool:
    """Whether this watcher may tell now. It is due again later, unless it was told: whatever happens in between."""
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(alert.tries, 10))
    unchanged = Alert.objects.filter(
        pk=alert.pk,
        tries=alert.tries,
        next_try_at=alert.next_try_at,
        notified_at=alert.notified_at,
        clear_notified_at=None,
    )
    return bool(unchanged.update(tries=F("tries") + 1, next_try_at=clock.now() + pause))


def told(alert: Alert) -> bool:
    """Tell that it began; or, if that was told, that it is over."""
    raised = alert.notified_at is None
    if failure := deliver(message_of(alert, raised=raised)):
        log.warning("alert %s could not be told: %s", alert, failure)
        return False
    column = "notified_at" if raised else "clear_notified_at"
    Alert.objects.filter(pk=alert.pk).update(**{column: clock.now()}, tries=0, next_try_at=None)
    return True


def message_of(alert: Alert, *, raised: bool) -> dict[str, Any]:
    """As chats take it (`text`), with what a program wants beside it."""
    return {
        "text": f"agentfleet: {'' if raised else 'over: '}{alert.message}",
        "kind": alert.kind,
        "subject": alert.subject,
        "state": "raised" if raised else "over",
        "message": alert.message,
        "url": f"{settings.PUBLIC_URL.rstrip('/')}{dashboard.page_of(alert)}",
        "raised_at": isoformat(alert.raised_at),
        "over_at": None if raised or alert.cleared_at is None else isoformat(alert.cleared_at),
    }


def deliver(message: dict[str, Any]) -> str:
    """Post it, or where there is no address write it into the log. What went wrong; empty if nothing did."""
    if settings.NOTIFY_URL:
        return send("POST", settings.NOTIFY_URL, message)
    log.warning("alert %s: %s", message["state"], message["message"])
    return ""


def send(method: str, url: str, body: dict[str, Any] | None = None) -> str:
    """What went wrong, without the address; empty if nothing did."""
    content = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"content-type": "application/json"}
    answer = outbound.submit(method, url, content=content, headers=headers, within=WITHIN).result()
    return "" if answer.ok else str(answer)
