"""Alerts in the admin: what stands, and what was. Raised and ended by the program alone."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin

from agents.pages import moment
from agents.tables import BigTable, ReadOnly
from runs.dashboard import page_of
from runs.models import Alert


class Standing(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [("standing", "Standing"), ("over", "Over")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Alert]) -> QuerySet[Alert]:
        if self.value() is None:
            return queryset
        return queryset.filter(cleared_at__isnull=self.value() == "standing")


@admin.register(Alert)
class AlertAdmin(BigTable, ReadOnly, ModelAdmin):
    list_display = ("kind", "about", "message", "raised", "over")
    list_display_links = ("kind",)
    list_filter = (Standing, "kind")
    list_fullwidth = True
    search_fields = ("subject",)
    search_help_text = "The id of an agent, a run or a host; a queue."
    fields = ("kind", "about", "message", "raised", "over", "notified_at", "clear_notified_at", "tries", "next_try_at")
    readonly_fields = ("about", "raised", "over")

    @admin.display(description="About")
    def about(self, alert: Alert) -> SafeString:
        return format_html('<a class="af-link" href="{}">{}</a>', page_of(alert), alert.subject)

    @admin.display(description="Raised")
    def raised(self, alert: Alert) -> str:
        return moment(alert.raised_at)

    @admin.display(description="Over", empty_value="stands")
    def over(self, alert: Alert) -> str | None:
        return moment(alert.cleared_at) or None

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Alert], search_term: str
    ) -> tuple[QuerySet[Alert], bool]:
        term = search_term.strip()
        return (queryset.filter(subject=term) if term else queryset), False
