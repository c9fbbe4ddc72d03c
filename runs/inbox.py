"""What was said to a run and has not been heard: its inputs, as its steps find, deliver and drop them.

Whoever adds a row holds the lock of the run's row, and so does the step that ends the run and looks here first:
an input is either heard by the run or knows that it has come after the end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from django.db.models import Max

from agents import clock
from agents.redaction import NOTHING_SECRET
from runs import events
from runs.events import New
from runs.models import InputMode, InputState, RunInput
from runs.transcript import Body

EARLY = frozenset({InputMode.STEER, InputMode.INTERRUPT})  # these do not wait for the model's answer


def pending(run_id: str) -> list[RunInput]:
    """Oldest first."""
    return list(RunInput.objects.filter(run_id=run_id, state=InputState.PENDING).order_by("pk"))


def retold(run_id: str) -> list[RunInput]:
    """What an earlier attempt was told: the next one begins anew, and must not be without it."""
    delivered = RunInput.objects.filter(
        run_id=run_id, state=InputState.DELIVERED, outcome__in=["queued", "interrupted"]
    )
    return list(delivered.order_by("pk"))


def before_request(waiting: Sequence[RunInput]) -> list[RunInput]:
    return [one for one in waiting if one.mode in EARLY]


def after_answer(waiting: Sequence[RunInput]) -> list[RunInput]:
    """What the model hears next, now that it has answered: all that need not queue together, else the queue's first."""
    together = [one for one in waiting if one.mode != InputMode.QUEUE]
    return together or list(waiting[:1])


def newest_interrupt(waiting: Sequence[RunInput]) -> int:
    """The number to tell `Halt.heard`; 0: there is none."""
    return max((one.pk for one in waiting if one.mode == InputMode.INTERRUPT), default=0)


def interrupts(run_ids: Collection[str]) -> dict[str, int]:
    """{run: its newest pending interrupt} of those that have one."""
    rows = RunInput.objects.filter(run_id__in=list(run_ids), state=InputState.PENDING, mode=InputMode.INTERRUPT)
    return dict(rows.order_by().values_list("run_id").annotate(Max("pk")))


def as_message(given: Sequence[RunInput]) -> Body:
    return {"role": "user", "parts": [{"type": "text", "text": one.message} for one in given]}


def delivered(given: Sequence[RunInput]) -> list[New]:
    return [New("input.delivered", {"inputId": one.pk, "mode": one.mode}) for one in given]


def dropped(left: Sequence[RunInput]) -> list[New]:
    return [New("input.dropped", {"inputId": one.pk, "mode": one.mode}) for one in left]


def deliver(given: Sequence[RunInput]) -> None:
    """Inside the transaction that puts them into the transcript."""
    rows = RunInput.objects.filter(pk__in=[one.pk for one in given])
    rows.update(state=InputState.DELIVERED, delivered_at=clock.now())


def drop(run_id: str) -> None:
    """The run ends, in this transaction: nobody will hear what still waits."""
    left = pending(run_id)
    if left:
        events.append(run_id, dropped(left), redactor=NOTHING_SECRET)
        RunInput.objects.filter(pk__in=[one.pk for one in left]).update(state=InputState.DROPPED)
