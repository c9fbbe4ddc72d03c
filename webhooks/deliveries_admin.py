"""Deliveries in the admin: what came, what became of it and why, and once more; the front page tells of the rest."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin, messages
from django.db.models import Count, Max, QuerySet
from django.forms import Form
from django.http import HttpRequest, HttpResponseBase
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from agents.ids import first_id
from agents.pages import Deed, Refused, change_url, moment, page_url, preformatted, pretty
from agents.tables import BigTable, Operated, ReadOnly
from runs import dashboard, trigger_waits
from runs.models import Run
from webhooks import explanations, replays
from webhooks.models import SHOULD_HAVE_STARTED, Delivery, DeliveryOutcome
from webhooks.simulation_admin import SimulateAgain

BODY_SHOWN = 256 * 1024  # bytes
RUNS_SHOWN = 100
A_DAY = timedelta(days=1)
COLORS = {
    DeliveryOutcome.STARTED: "success",
    DeliveryOutcome.DUPLICATE: "info",
    DeliveryOutcome.SKIPPED: "warning",
    DeliveryOutcome.HELD: "warning",
    DeliveryOutcome.LIMITED: "danger",
    DeliveryOutcome.LOOP: "danger",
    DeliveryOutcome.NOT_UNDERSTOOD: "danger",
}
OUTCOME_COLORS = {outcome.value: COLORS.get(outcome, "default") for outcome in DeliveryOutcome}


class ReplayDelivery(Deed):
    verb = "Replay"
    sentence = (
        "Decides it anew with the triggers as they are now, as a delivery of its own, and starts what it then starts, "
        "also where it has started runs before. One that is held is taken at once."
    )
    became: Delivery | None = None

    @property
    def title(self) -> str:
        return f"Replay {self.row}"

    def do(self, form: Form) -> str:
        done = replays.replay(self.row)
        if done.outcome is None:
            raise Refused(done.fault)
        self.became = done.outcome.delivery
        return f"Replayed {self.row} as {self.became}: {done.sentence}"

    def get_success_url(self) -> str:
        return change_url(self.became or self.row)


@admin.register(Delivery)
class DeliveryAdmin(BigTable, Operated, ReadOnly, ModelAdmin):
    """Every webhook that verified, whether or not it started anything. Bodies are read one at a time."""

    id_prefix = "dlv_"
    list_display = ("id", "said", "source", "sender", "became", "why", "started", "received")
    list_select_related = ("source",)
    list_filter = ("outcome", "source", "signed")
    list_fullwidth = True
    fields = (
        "id", "became", "why", "provider", "event", "source", "sender", "received", "held", "signatures",
        "external_id", "hops", "replay_of", "duplicate_of", "comes_again", "runs_started", "decisions_shown",
        "as_it_is_now", "context_shown", "headers_shown", "body_shown",
    )  # fmt: skip
    readonly_fields = (
        "id", "became", "why", "received", "held", "signatures", "comes_again", "runs_started", "decisions_shown",
        "as_it_is_now", "context_shown", "headers_shown", "body_shown",
    )  # fmt: skip
    actions = ("replay_selected",)
    actions_row = ("replay",)
    actions_detail = ("replay", "simulate")

    @display(description="Event", header=True)
    def said(self, delivery: Delivery) -> tuple[str, str]:
        return delivery.event or "-", delivery.provider

    @display(description="Outcome", label=OUTCOME_COLORS)
    def became(self, delivery: Delivery) -> tuple[str, str]:
        return delivery.outcome, delivery.outcome.replace("_", " ")

    @display(description="Reason")
    def why(self, delivery: Delivery) -> str:
        until = f" (until {moment(delivery.held_until)})" if delivery.held_until else ""
        return f"{delivery.reason}{until}" or "-"

    @display(description="Matched")
    def started(self, delivery: Delivery) -> str:
        skipped = f", skipped {delivery.skipped}" if delivery.skipped else ""
        return f"matched {delivery.matched}{skipped}" if delivery.matched or skipped else "-"

    @display(description="Received")
    def received(self, delivery: Delivery) -> str:
        return moment(delivery.received_at)

    @display(description="Held until", empty_value="-")
    def held(self, delivery: Delivery) -> str | None:
        return moment(delivery.held_until) or None

    @display(description="Signature", label={"signed": "success", "unsigned": "danger"})
    def signatures(self, delivery: Delivery) -> str:
        return "signed" if delivery.signed else "unsigned"

    @display(description="Replays and repeats")
    def comes_again(self, delivery: Delivery) -> SafeString:
        later = [("replay", delivery.replays), ("the same again", delivery.repeats)]
        return links(
            (row.pk, change_url(row), f"{word}, {row.outcome.replace('_', ' ')}")
            for word, rows in later
            for row in rows.defer("body", "headers", "context").order_by("pk")[:RUNS_SHOWN]
        )

    @display(description="Runs started")
    def runs_started(self, delivery: Delivery) -> SafeString:
        cause = delivery.duplicate_of_id or delivery.pk
        resumed = Run.objects.filter(pk__in=trigger_waits.resumed_by(cause))
        found = resumed | Run.objects.filter(caused_by=cause)
        rows = found.filter(delete_requested_at=None).select_related("agent").only("id", "status", "agent__name")
        shown = rows.order_by("-id")[:RUNS_SHOWN]
        return links((run.pk, change_url(run), f"{run.agent.name}: {run.status}") for run in shown)

    @display(description="Triggers that matched then")
    def decisions_shown(self, delivery: Delivery) -> SafeString:
        return links(map(decision_line, delivery.decisions))

    @display(description="Triggers as they are now")
    def as_it_is_now(self, delivery: Delivery) -> SafeString:
        explanation = explanations.of_delivery(delivery)
        return SafeString(render_to_string("webhooks/explanation.html", {"explanation": explanation}))

    @display(description="What agents are told")
    def context_shown(self, delivery: Delivery) -> SafeString:
        return pretty(delivery.context)

    @display(description="Headers")
    def headers_shown(self, delivery: Delivery) -> SafeString:
        return pretty(delivery.headers)

    @display(description="Body")
    def body_shown(self, delivery: Delivery) -> SafeString:
        body = bytes(delivery.body)
        text = body[:BODY_SHOWN].decode("utf-8", "replace")
        left_out = len(body) - BODY_SHOWN
        return preformatted(f"{text}\n[… {left_out:,} bytes left out …]" if left_out > 0 else text)

    @admin.action(description="Replay", permissions=["operate"])
    def replay_selected(self, request: HttpRequest, rows: QuerySet[Delivery]) -> None:
        """In the order in which they came."""
        chosen = list(rows.order_by("pk").values_list("pk", flat=True)[: replays.MOST + 1])
        done = replays.replay_all(chosen[: replays.MOST], rows)
        for one in done:
            if one.outcome is not None:
                self.log_change(request, one.outcome.delivery, f"Replayed {one.delivery_id}: {one.sentence}")
        said = [f"{count} times {sentence}" for sentence, count in Counter(one.sentence for one in done).items()]
        more = [f"the rest of them not: {replays.MOST} at a time"] if len(chosen) > replays.MOST else []
        good = not more and all(one.outcome is not None for one in done)
        told = f"Replayed {len(done)}: {'; '.join([*said, *more])}"
        self.message_user(request, told, messages.SUCCESS if good else messages.WARNING)

    @action(description="Replay", url_path="replay", permissions=["operate"], icon="replay")
    def replay(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return ReplayDelivery.as_view(model_admin=self)(request, object_id=object_id)

    @action(description="Simulate", url_path="simulate", permissions=["operate"], icon="science")
    def simulate(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return SimulateAgain.as_view(model_admin=self)(request, object_id=object_id)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        rows: QuerySet[Delivery] = super().get_queryset(request)
        return rows.defer("body", "headers", "context")


def decision_line(decision: dict[str, Any]) -> tuple[str, str, str]:
    """Of what was stored: the agent, where to look, and what became of its trigger."""
    agent = f"{decision.get('agent')}, entry {int(decision.get('index', 0)) + 1}"
    if run := decision.get("run"):
        return agent, page_url("runs", "run", run), f"{run} {'went on' if decision.get('resumed') else 'was started'}"
    if letter := decision.get("deadLetter"):
        return agent, page_url("runs", "deadletter", letter), f"{decision.get('reason')}: kept as {letter}"
    return agent, reverse("admin:agents_agent_changelist"), str(decision.get("reason"))


def links(rows: Any) -> SafeString:
    """A line for each (name, address, what about it)."""
    line = '<div><a class="af-link" href="{1}">{0}</a> <span class="af-dim">{2}</span></div>'
    return format_html_join("", line, rows) or SafeString("-")


@dashboard.also
def left_behind(now: datetime) -> dashboard.Panel | None:
    """Sources whose deliveries of the last day should have started something and did not; None if there are none."""
    fresh = Delivery.objects.filter(pk__gte=first_id("dlv", now - A_DAY), outcome__in=SHOULD_HAVE_STARTED).order_by()
    counted = fresh.values("source", "source__name", "outcome").annotate(count=Count("pk"), last=Max("received_at"))
    rows = [
        dashboard.Row(
            found["source__name"] or "a source that is gone",
            list_url(found["outcome"], found["source"]),
            f"{found['count']:,} {found['outcome'].replace('_', ' ')}",
            found["last"],
            "ago",
            alarm=True,
        )
        for found in counted.order_by("-last")[: dashboard.SHOWN]
    ]
    return dashboard.Panel("Deliveries of the last day that started nothing", rows, alarm=True) if rows else None


def list_url(outcome: str, source_id: int | None) -> str:
    of_source = f"&source__id__exact={source_id}" if source_id else ""
    return f"{reverse('admin:webhooks_delivery_changelist')}?outcome__exact={outcome}{of_source}"
