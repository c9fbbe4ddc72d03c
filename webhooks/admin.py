"""Sources in the admin, and what they refused on the front page."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.contrib import admin
from django.http import HttpRequest, HttpResponseBase
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from agents.pages import change_url, moment
from agents.tables import Operated, ReadOnly
from runs import dashboard
from webhooks import agents_admin, credentials_admin, dead_letters_admin  # noqa: F401 - they register agents and the like
from webhooks.deliveries_admin import links
from webhooks.models import Source
from webhooks.simulation_admin import Simulate

A_DAY = timedelta(days=1)


@admin.register(Source)
class SourceAdmin(Operated, ReadOnly, ModelAdmin):
    """Where webhooks may come from, as the project folders say."""

    list_display = ("name", "provider", "project", "signatures", "state", "refused")
    list_filter = ("provider", "active")
    search_fields = ("name",)
    fields = (
        "name", "provider", "project", "credential", "signatures", "state", "refused", "handshakes", "triggers_shown",
    )  # fmt: skip
    readonly_fields = ("signatures", "state", "refused", "handshakes", "triggers_shown")
    actions_detail = ("simulate",)

    @display(description="Signatures", label={"unsigned allowed": "danger", "required": "success"})
    def signatures(self, source: Source) -> str:
        return "unsigned allowed" if source.allow_unsigned else "required"

    @display(description="State", label={"active": "success", "off": "default"})
    def state(self, source: Source) -> str:
        return "active" if source.active else "off"

    @display(description="Refused")
    def refused(self, source: Source) -> str:
        last = f", last {moment(source.refused_at)}" if source.refused_at else ""
        return f"{source.refused_count:,}{last}"

    @display(description="Handshakes")
    def handshakes(self, source: Source) -> str:
        last = f", last {moment(source.handshake_at)}" if source.handshake_at else ""
        return f"{source.handshake_count:,}{last}"

    @display(description="Agents that listen")
    def triggers_shown(self, source: Source) -> SafeString:
        triggers = source.triggers.select_related("agent").order_by("agent__name", "index")
        return links((trigger.agent.name, change_url(trigger.agent), trigger.filters) for trigger in triggers)

    @action(description="Simulate", url_path="simulate", permissions=["operate"], icon="science")
    def simulate(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return Simulate.as_view(model_admin=self)(request, object_id=object_id)


@dashboard.also
def refused_deliveries(now: datetime) -> dashboard.Panel | None:
    """Sources that turned somebody away in the last day; None if none did."""
    rows = [
        dashboard.Row(
            source.name,
            change_url(source),
            f"{source.refused_count:,} refused in all: unsigned, or signed with another secret",
            source.refused_at,
            "ago",
            alarm=True,
        )
        for source in Source.objects.filter(refused_at__gt=now - A_DAY).order_by("-refused_at")
    ]
    return dashboard.Panel("Deliveries refused in the last day", rows, alarm=True) if rows else None
