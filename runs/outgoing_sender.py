"""The thread of a worker that sends what is due to others.

A message is taken by an UPDATE that demands it unchanged, so one of many workers sends it; whoever dies between taking
and hearing the answer leaves it due again, under the same id. Requests wait on the process's loop and hold no thread,
and no receiver has more than a few places, so one that hangs keeps nobody waiting.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue

from django.db.models import Exists, F, OuterRef, QuerySet

from agents import addresses, clock, credentials
from agents.credential_types import OUTGOING
from agents.credentials import CredentialError, Reference
from runs import alerts, outbound, outgoing
from runs.models import Outgoing, OutgoingMessage, OutgoingState
from runs.outbound import Answer
from runs.outgoing_bodies import HOPS

log = logging.getLogger(__name__)

WITHIN = 10.0  # seconds for all of a request
TAKEN = timedelta(seconds=30)  # longer than a request: nobody else sends it meanwhile
AT_ONCE = 32  # requests under way
PER_RECEIVER = 4
EVERY = 2.0  # seconds between two looks, without a bell
PAUSES = (5, 30, 120, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600)  # seconds, between tries: 23 hours in all
GONE = 410


class Unsendable(Exception):
    """Nothing can be sent now; the message says what is missing, and holds no secret."""


@dataclass(frozen=True)
class Target:
    """An address and the keys that sign what goes there."""

    url: str = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False)


class Sender:
    """Start it once per process. `look` is one round, and what a test calls."""

    def __init__(self, *, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._bell = threading.Event()
        self._messages: dict[str, int] = {}  # under way → its outgoing webhook
        self._answered: SimpleQueue[tuple[OutgoingMessage, Answer]] = SimpleQueue()

    def start(self, edge: Callable[[Callable[[], None]], None]) -> None:
        """`edge` calls what it is given and survives whatever that raises."""
        threading.Thread(target=self._keep_on, args=(edge,), name="outgoing", daemon=True).start()

    def wake(self) -> None:
        """There may be something to send."""
        self._bell.set()

    def look(self) -> None:
        """Store the answers that have come, and send what is due and finds a place."""
        self._store_answers()
        for message in self._due():
            if take(message):
                self._send(message)

    @property
    def under_way(self) -> list[int]:
        """The outgoing webhook of each request whose answer is not stored yet."""
        return list(self._messages.values())

    @property
    def answers_wait(self) -> bool:
        """To be stored by the next look."""
        return not self._answered.empty()

    def _keep_on(self, edge: Callable[[Callable[[], None]], None]) -> None:
        while not self._stopping.is_set():
            edge(self.look)
            self._bell.wait(EVERY * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            self._bell.clear()

    def _due(self) -> Iterator[OutgoingMessage]:
        """In turn of receivers, so that none takes the places of all."""
        now = clock.now()
        taken = Counter(self._messages.values())
        owed = Exists(due(now).filter(outgoing=OuterRef("pk")))
        receivers = list(Outgoing.objects.filter(owed, active=True).values_list("pk", flat=True))
        random.shuffle(receivers)  # or the same would always stand last
        for receiver in receivers:
            room = min(PER_RECEIVER - taken[receiver], AT_ONCE - len(self._messages))
            mine = due(now).filter(outgoing=receiver).exclude(pk__in=list(self._messages))
            yield from mine.select_related("outgoing__workspace").order_by("next_try_at", "pk")[: max(0, room)]

    def _send(self, message: OutgoingMessage) -> None:
        try:
            request = request_of(message)
        except Unsendable as fault:
            store(message, Answer(failure=str(fault)))
            return
        self._messages[message.pk] = message.outgoing_id
        request.add_done_callback(lambda done: self._answer(message, done))

    def _answer(self, message: OutgoingMessage, done: Future[Answer]) -> None:
        """On the loop's thread, which touches no database."""
        failure = done.exception()
        self._answered.put((message, done.result() if failure is None else Answer(failure=type(failure).__name__)))
        self.wake()

    def _store_answers(self) -> None:
        while True:
            try:
                message, answer = self._answered.get_nowait()
            except Empty:
                return
            del self._messages[message.pk]
            store(message, answer)


def due(now: datetime) -> QuerySet[OutgoingMessage]:
    return OutgoingMessage.objects.filter(state=OutgoingState.DUE, next_try_at__lte=now)


def take(message: OutgoingMessage) -> bool:
    """Whether this process may send it now; then `message` is as the row is."""
    now = clock.now()
    unchanged = OutgoingMessage.objects.filter(
        pk=message.pk, state=OutgoingState.DUE, tries=message.tries, next_try_at=message.next_try_at
    )
    if not unchanged.update(tries=F("tries") + 1, next_try_at=now + TAKEN):
        return False
    message.tries += 1
    return True


def request_of(message: OutgoingMessage) -> Future[Answer]:
    """Ask. Raises Unsendable."""
    target = target_of(message.outgoing)
    body = json.dumps(message.body, ensure_ascii=False, separators=(",", ":")).encode()
    headers = {"content-type": "application/json", "user-agent": "agentfleet"}
    headers |= signature(message.pk, clock.now(), body, target.keys)
    if HOPS in message.body:
        headers[HOPS] = str(message.body[HOPS])
    return outbound.submit("POST", target.url, content=body, headers=headers, within=WITHIN)


def signature(name: str, at: datetime, body: bytes, keys: tuple[bytes, ...]) -> Mapping[str, str]:
    """The three headers of standardwebhooks.com, with a signature of each key; without a key, no signature."""
    sent_at = str(int(at.timestamp()))
    said = {"webhook-id": name, "webhook-timestamp": sent_at}
    if keys:
        signed = f"{name}.{sent_at}.".encode() + body
        macs = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
        said["webhook-signature"] = " ".join(f"v1,{mac}" for mac in macs)
    return said


def target_of(receiver: Outgoing) -> Target:
    """Where to and with which keys, as the stores have them now. Raises Unsendable."""
    values = _values(receiver) if receiver.credential else {}
    url = receiver.url or values.get("url", "")
    if fault := addresses.fault(url):
        raise Unsendable(f"the address {fault}" if url else "there is no address")
    return Target(url, tuple(map(_key, values.get("secret", "").split())))


def _values(receiver: Outgoing) -> Mapping[str, str]:
    reference = Reference(OUTGOING, receiver.credential)
    try:
        found = credentials.find(reference, workspace=receiver.workspace.name)
    except CredentialError as error:
        raise Unsendable(f"{reference} cannot be used") from error
    if found is None:
        raise Unsendable(f"no store has {reference}")
    return found.values


def _key(secret: str) -> bytes:
    """Raises Unsendable."""
    written = secret.removeprefix("whsec_")
    try:
        key = base64.b64decode(written + "=" * (-len(written) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise Unsendable("a secret is no base64: write whsec_ and the base64 of the key") from error
    if not key:
        raise Unsendable("a secret is empty")
    return key


def store(message: OutgoingMessage, answer: Answer) -> None:
    """What came of a try, unless another try is newer."""
    if answer.ok:
        _delivered(message, answer)
    elif answer.status == GONE:
        _gone(message)
    elif message.tries > len(PAUSES):
        _failed(message, answer)
    else:
        pause = timedelta(seconds=PAUSES[message.tries - 1])
        _this_try(message).update(next_try_at=clock.now() + pause, last_answer=_short(answer))


def _delivered(message: OutgoingMessage, answer: Answer) -> None:
    """A late answer counts too: the receiver has it."""
    undone = OutgoingMessage.objects.filter(pk=message.pk).exclude(state=OutgoingState.DELIVERED)
    now = clock.now()
    undone.update(state=OutgoingState.DELIVERED, next_try_at=None, last_answer=_short(answer), delivered_at=now)
    outgoing.settle(message.outgoing)


def _gone(message: OutgoingMessage) -> None:
    receiver = message.outgoing
    outgoing.switch_off(receiver, f"HTTP {GONE}: switched off")
    remedy = "it is switched off; take it out of its project, or apply that to switch it on again"
    alerts.begin(outgoing.FAILED, str(receiver.pk), f"the outgoing webhook {receiver} wants no more: {remedy}")


def _failed(message: OutgoingMessage, answer: Answer) -> None:
    ended = _this_try(message).update(state=OutgoingState.FAILED, next_try_at=None, last_answer=_short(answer))
    if not ended:
        return
    receiver = message.outgoing
    log.warning("%s could not be delivered to %s (%s)", message, receiver, addresses.host_of(receiver.url) or "secret")
    said = f"the outgoing webhook {receiver} has not taken {message} in {message.tries} tries: {_short(answer)}"
    alerts.begin(outgoing.FAILED, str(receiver.pk), f"{said}; replay it when that is mended")


def _this_try(message: OutgoingMessage) -> QuerySet[OutgoingMessage]:
    return OutgoingMessage.objects.filter(pk=message.pk, state=OutgoingState.DUE, tries=message.tries)


def _short(answer: Answer) -> str:
    return str(answer)[:200]
