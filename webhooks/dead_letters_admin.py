"""Dead letters in the admin: read, filtered, replayed; and on the front page, as long as somebody should."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin, messages
from django.db.models import Count, Max, QuerySet
from django.forms import Form
from django.http import HttpRequest, HttpResponseBase
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from agents.ids import first_id
from agents.models import Agent
from agents.pages import Deed, Refused, change_url, moment, page_url, preformatted, pretty
from agents.tables import BigTable, Operated, ReadOnly
from runs import dashboard, queue
from runs.facts import CAUSES
from runs.models import DeadLetter, Run, TriggerKind

A_DAY = timedelta(days=1)
INPUT_SHOWN = 20_000  # characters


def replay(letter: DeadLetter) -> Run:
    """Raises Refused."""
    try:
        return queue.replay(letter)
    except queue.AlreadyReplayed as done:
        raise Refused(f"it was replayed before, as {done}") from done
    except (queue.AgentRefuses, queue.Coalesced, queue.QueueFull) as refusal:
        raise Refused(str(refusal)) from refusal


class ReplayLetter(Deed):
    verb = "Replay"
    sentence = "Starts, once, what the event would have started then, with the definition its agent has now."
    started: Run | None = None

    @property
    def title(self) -> str:
        return f"Replay {self.row}"

    def do(self, form: Form) -> str:
        self.started = replay(self.row)
        return f"Replayed {self.row}: {self.started.agent.name} has {self.started} in its line"

    def get_success_url(self) -> str:
        return change_url(self.started or self.row)


class Replayed(admin.SimpleListFilter):
    title = "replayed"
    parameter_name = "replayed"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("no", "Not yet"), ("yes", "Replayed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
        value = self.value()
        return queryset.filter(replayed_at__isnull=value == "no") if value else queryset


@admin.register(DeadLetter)
class DeadLetterAdmin(BigTable, Operated, ReadOnly, ModelAdmin):
    """What should have started a run and could not."""

    id_prefix = "ded_"
    list_display = ("whose", "state", "why", "started_by", "created")
    list_select_related = ("agent",)
    list_fullwidth = True
    list_filter = (Replayed, "code", "agent")
    fields = (
        "id", "state", "agent", "code", "reason", "started_by", "cause", "created", "replayed", "became",
        "input_shown", "context_shown",
    )  # fmt: skip
    readonly_fields = ("state", "started_by", "cause", "created", "replayed", "became", "input_shown", "context_shown")
    actions = ("replay_selected",)
    actions_row = ("replay",)
    actions_detail = ("replay",)

    @display(description="Dead letter", header=True)
    def whose(self, letter: DeadLetter) -> tuple[str, str]:
        return letter.agent.name, letter.pk

    @display(description="State", label={"replayed": "success", "not replayed": "danger"})
    def state(self, letter: DeadLetter) -> str:
        return "replayed" if letter.replayed_at else "not replayed"

    @display(description="Why", header=True)
    def why(self, letter: DeadLetter) -> tuple[str, str]:
        return letter.code, letter.reason

    @display(description="Started by")
    def started_by(self, letter: DeadLetter) -> str:
        return TriggerKind(letter.trigger).label.lower()

    @display(description="Cause")
    def cause(self, letter: DeadLetter) -> SafeString | str:
        app, model, word = CAUSES.get(letter.caused_by.partition("_")[0], ("", "", ""))
        if not app:
            return letter.caused_by or "-"
        return link(page_url(app, model, letter.caused_by), f"{word} {letter.caused_by}")

    @display(description="Kept since")
    def created(self, letter: DeadLetter) -> str:
        return moment(letter.created_at)

    @display(description="Replayed at", empty_value="not yet")
    def replayed(self, letter: DeadLetter) -> str | None:
        return moment(letter.replayed_at) or None

    @display(description="The run it became")
    def became(self, letter: DeadLetter) -> SafeString | str:
        if letter.run is None:
            return "deleted since" if letter.replayed_at else "-"
        return link(change_url(letter.run), letter.run.pk)

    @display(description="Input")
    def input_shown(self, letter: DeadLetter) -> SafeString | str:
        return preformatted(letter.input[:INPUT_SHOWN]) if letter.input else "-"

    @display(description="What the agent would be told")
    def context_shown(self, letter: DeadLetter) -> SafeString:
        return pretty(letter.trigger_context)

    @admin.action(description="Replay", permissions=["operate"])
    def replay_selected(self, request: HttpRequest, rows: QuerySet[DeadLetter]) -> None:
        """In the order in which they came."""
        refusals: Counter[str] = Counter()
        for letter in rows.order_by("pk"):
            try:
                run = replay(letter)
            except Refused as refused:
                refusals[str(refused)] += 1
            else:
                self.log_change(request, letter, f"Replayed {letter} as {run}")
        done = len(rows) - refusals.total()
        said = "; ".join([f"Replayed {done}", *(f"{count} not: {why}" for why, count in refusals.items())])
        self.message_user(request, said, messages.WARNING if refusals else messages.SUCCESS)

    @action(description="Replay", url_path="replay", permissions=["operate"], icon="replay")
    def replay(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return ReplayLetter.as_view(model_admin=self)(request, object_id=object_id)

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeadLetter]:
        rows: QuerySet[DeadLetter] = super().get_queryset(request)
        return rows.defer("input", "trigger_context")


def link(url: str, text: str) -> SafeString:
    return format_html('<a class="af-link" href="{}">{}</a>', url, text)


def unreplayed(agent: Agent) -> int:
    """How many of an agent's dead letters nobody has replayed."""
    return DeadLetter.objects.filter(agent=agent, replayed_at=None).count()


def list_url(agent_id: int) -> str:
    """The list of an agent's dead letters that nobody has replayed."""
    return f"{reverse('admin:runs_deadletter_changelist')}?replayed=no&agent__id__exact={agent_id}"


@dashboard.also
def dead_letters(now: datetime) -> dashboard.Panel | None:
    """Agents with dead letters of the last day that nobody has replayed; None if there are none."""
    fresh = DeadLetter.objects.filter(pk__gte=first_id("ded", now - A_DAY), replayed_at=None).order_by()
    counted = fresh.values("agent", "agent__name").annotate(count=Count("pk"), last=Max("created_at"))
    rows = [
        dashboard.Row(
            found["agent__name"], list_url(found["agent"]), f"{found['count']:,} kept", found["last"], "ago", alarm=True
        )
        for found in counted.order_by("-last")[: dashboard.SHOWN]
    ]
    return dashboard.Panel("Dead letters of the last day, not replayed", rows, alarm=True) if rows else None
