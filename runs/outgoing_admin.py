"""Outgoing webhooks and their messages in the admin: read, tested, replayed; and on the front page what nobody took."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.forms import Form
from django.http import HttpRequest, HttpResponseBase
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from agents.ids import first_id
from agents.pages import Deed, Refused, change_url, moment, pretty
from agents.tables import BigTable, Operated, ReadOnly
from runs import dashboard, outgoing
from runs.models import Outgoing, OutgoingMessage, OutgoingState

A_DAY = timedelta(days=1)
STATE_COLORS: dict[str, str] = {
    OutgoingState.DUE: "warning",
    OutgoingState.DELIVERED: "success",
    OutgoingState.FAILED: "danger",
}


class SendTest(Deed):
    verb = "Send a test"
    sentence = "Sends a message that says no more than that it is a test. What came of it stands with the message."
    made: OutgoingMessage | None = None

    @property
    def title(self) -> str:
        return f"Send a test to {self.row}"

    def do(self, form: Form) -> str:
        try:
            self.made = outgoing.test(self.row)
        except outgoing.SwitchedOff as off:
            raise Refused(str(off)) from off
        return f"Made {self.made}, a test for {self.row}"

    def get_success_url(self) -> str:
        return change_url(self.made or self.row)


class ReplayMessage(Deed):
    verb = "Replay"
    sentence = "Sends what was said then once more, as a message of its own with an id of its own."
    made: OutgoingMessage | None = None

    @property
    def title(self) -> str:
        return f"Replay {self.row}"

    def do(self, form: Form) -> str:
        self.made = replay(self.row)
        return f"Replayed {self.row} as {self.made}"

    def get_success_url(self) -> str:
        return change_url(self.made or self.row)


def replay(message: OutgoingMessage) -> OutgoingMessage:
    """Raises Refused."""
    try:
        return outgoing.replay(message)
    except outgoing.SwitchedOff as off:
        raise Refused(str(off)) from off


@admin.register(Outgoing)
class OutgoingAdmin(Operated, ReadOnly, ModelAdmin):
    """Whom the projects tell of runs. Where to and how stands in their folders."""

    list_display = ("name", "state", "where", "told", "last", "counts")
    list_fullwidth = True
    fields = ("name", "project", "state", "where", "credential", "format", "told", "last", "counts", "its_messages")
    readonly_fields = ("state", "where", "told", "last", "counts", "its_messages")
    actions_row = ("test",)
    actions_detail = ("test",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Outgoing]:
        rows: QuerySet[Outgoing] = super().get_queryset(request)
        return outgoing.counted(rows)

    @display(description="State", label={"on": "success", "off": "default"})
    def state(self, row: Outgoing) -> str:
        return "on" if row.active else "off"

    @display(description="Address")
    def where(self, row: Outgoing) -> str:
        return row.url or "in the credential"

    @display(description="Told of")
    def told(self, row: Outgoing) -> str:
        states, agents = ", ".join(row.states) or "every state", ", ".join(row.agents) or "all agents"
        return f"{states}; {agents}"

    @display(description="Last answer", empty_value="-")
    def last(self, row: Outgoing) -> str | None:
        tried = row.messages.exclude(last_answer="").values_list("last_answer", flat=True)
        return tried.order_by("-pk").first()

    @display(description="Due, failed")
    def counts(self, row: Any) -> str:
        return f"{row.due:,} due, {row.failed:,} failed"

    @display(description="Messages")
    def its_messages(self, row: Outgoing) -> SafeString:
        return format_html('<a class="af-link" href="{}">all of its messages</a>', list_url(row.pk))

    @action(description="Send a test", url_path="test", permissions=["operate"], icon="send")
    def test(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return SendTest.as_view(model_admin=self)(request, object_id=object_id)


@admin.register(OutgoingMessage)
class OutgoingMessageAdmin(BigTable, Operated, ReadOnly, ModelAdmin):
    """What was said to whom, and what they answered."""

    id_prefix = "out_"
    list_display = ("whose", "badge", "type", "about", "tries", "last_answer", "created")
    list_display_links = ("whose",)
    list_select_related = ("outgoing",)
    list_fullwidth = True
    list_filter = ("state", "type", "outgoing")
    fields = (
        "id", "outgoing", "badge", "type", "about", "tries", "last_answer", "created", "delivered", "next_try",
        "replay_of", "shown",
    )  # fmt: skip
    readonly_fields = ("badge", "about", "created", "delivered", "next_try", "shown")
    actions = ("replay_selected",)
    actions_row = ("replay",)
    actions_detail = ("replay",)

    @display(description="Message", header=True)
    def whose(self, message: OutgoingMessage) -> tuple[str, str]:
        return message.outgoing.name, message.pk

    @display(description="State", label=STATE_COLORS)
    def badge(self, message: OutgoingMessage) -> str:
        return message.state

    @display(description="About")
    def about(self, message: OutgoingMessage) -> SafeString | str:
        if not message.run_id:
            return "-"
        url = reverse("admin:runs_run_change", args=[message.run_id])
        return format_html('<a class="af-link" href="{}">{}</a>', url, message.run_id)

    @display(description="Made")
    def created(self, message: OutgoingMessage) -> str:
        return moment(message.created_at)

    @display(description="Delivered", empty_value="not yet")
    def delivered(self, message: OutgoingMessage) -> str | None:
        return moment(message.delivered_at) or None

    @display(description="Next try", empty_value="-")
    def next_try(self, message: OutgoingMessage) -> str | None:
        return moment(message.next_try_at) or None

    @display(description="Body")
    def shown(self, message: OutgoingMessage) -> SafeString:
        return pretty(message.body)

    @admin.action(description="Replay", permissions=["operate"])
    def replay_selected(self, request: HttpRequest, rows: QuerySet[OutgoingMessage]) -> None:
        """In the order in which they were made."""
        refusals: Counter[str] = Counter()
        for message in rows.order_by("pk"):
            try:
                self.log_change(request, message, f"Replayed {message} as {replay(message)}")
            except Refused as refused:
                refusals[str(refused)] += 1
        done = len(rows) - refusals.total()
        said = "; ".join([f"Replayed {done}", *(f"{count} not: {why}" for why, count in refusals.items())])
        self.message_user(request, said, messages.WARNING if refusals else messages.SUCCESS)

    @action(description="Replay", url_path="replay", permissions=["operate"], icon="replay")
    def replay(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return ReplayMessage.as_view(model_admin=self)(request, object_id=object_id)


def list_url(outgoing_id: int, state: str = "") -> str:
    of_state = f"&state__exact={state}" if state else ""
    return f"{reverse('admin:runs_outgoingmessage_changelist')}?outgoing__id__exact={outgoing_id}{of_state}"


@dashboard.also
def failed_messages(now: datetime) -> dashboard.Panel | None:
    """Addresses that did not take messages of the last day; None if there are none."""
    found = outgoing.counted(Outgoing.objects.order_by("name"), failed_from=first_id("out", now - A_DAY))
    rows = [
        dashboard.Row(row.name, list_url(row.pk, OutgoingState.FAILED), f"{row.failed:,} failed", alarm=True)
        for row in found.filter(failed__gt=0)[: dashboard.SHOWN]
    ]
    return dashboard.Panel("Outgoing messages of the last day, not delivered", rows, alarm=True) if rows else None
