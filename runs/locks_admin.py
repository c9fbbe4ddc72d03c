"""Locks in the admin: who has what, since when and until when, and a word that takes one away."""

from __future__ import annotations

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseBase
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from agents.pages import Deed, Refused, change_url, moment
from agents.tables import BigTable, Operated, ReadOnly
from runs import locks
from runs.models import Lock

SHOWN = 200  # characters of a key in the list


class ReleaseLock(Deed):
    verb = "Release the lock"
    sentence = "Others may have it at once. Whoever has it now is not told, and may still be at work."
    dangerous = True

    @property
    def title(self) -> str:
        return f"Release {self.row.key[:SHOWN]}"

    def do(self, form: forms.Form) -> str:
        if not locks.take_away(self.row):
            raise Refused(f"{self.row.holder} does not have it any more")
        return f"Took {self.row.key[:SHOWN]} away from {self.row.holder}"

    def get_success_url(self) -> str:
        return reverse("admin:runs_lock_changelist")


@admin.register(Lock)
class LockAdmin(BigTable, Operated, ReadOnly, ModelAdmin):
    list_display = ("what", "who", "since", "until")
    list_display_links = ("what",)
    list_select_related = ("attempt__run__agent",)
    list_fullwidth = True
    search_fields = ("holder",)
    search_help_text = "A key, or a holder such as dev-1a2b3c4d."
    fields = ("key", "who", "since", "until")
    readonly_fields = ("who", "since", "until")
    actions_row = ("release",)
    actions_detail = ("release",)

    @display(description="Key")
    def what(self, lock: Lock) -> str:
        return lock.key[:SHOWN]

    @display(description="Held by")
    def who(self, lock: Lock) -> SafeString:
        return format_html('<a class="af-link" href="{}">{}</a>', change_url(lock.attempt.run), lock.holder)

    @display(description="Since")
    def since(self, lock: Lock) -> str:
        return moment(lock.held_since)

    @display(description="Until")
    def until(self, lock: Lock) -> str:
        return moment(lock.expires_at)

    @action(description="Release", url_path="release", permissions=["operate"], icon="lock_open")
    def release(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return ReleaseLock.as_view(model_admin=self)(request, object_id=object_id)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Lock], search_term: str
    ) -> tuple[QuerySet[Lock], bool]:
        term = search_term.strip()
        return (locks.found(queryset, term) if term else queryset), False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Lock]:
        rows: QuerySet[Lock] = super().get_queryset(request)
        return rows.exclude(pk__in=locks.dead())
