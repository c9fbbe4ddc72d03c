"""What agents remember, in the admin: read and deleted by people, written by agents alone."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin

from agents.pages import moment, preformatted
from agents.tables import BigTable, ReadOnly
from runs.models import Memory


@admin.register(Memory)
class MemoryAdmin(BigTable, ReadOnly, ModelAdmin):
    list_display = ("name", "whose", "written", "run")
    list_filter = ("agent",)
    list_fullwidth = True
    list_select_related = ("agent", "workspace")
    search_fields = ("name",)
    search_help_text = "How a name begins."
    fields = ("name", "whose", "text", "run", "created", "written")
    readonly_fields = ("whose", "text", "created", "written")

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return bool(super(ReadOnly, self).has_delete_permission(request, obj))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Memory]:
        rows: QuerySet[Memory] = super().get_queryset(request)
        return rows if self.shows_one(request) else rows.defer("content")

    @staticmethod
    def shows_one(request: HttpRequest) -> bool:
        return request.resolver_match is not None and "object_id" in request.resolver_match.kwargs

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Memory], search_term: str
    ) -> tuple[QuerySet[Memory], bool]:
        term = search_term.strip()
        return (queryset.filter(name__startswith=term) if term else queryset), False

    @admin.display(description="Of")
    def whose(self, memory: Memory) -> str:
        return f"agent {memory.agent}" if memory.agent else f"all agents of {memory.workspace}"

    @admin.display(description="Content")
    def text(self, memory: Memory) -> SafeString:
        return preformatted(memory.content)

    @admin.display(description="Since")
    def created(self, memory: Memory) -> str:
        return f"{moment(memory.created_at)} UTC"

    @admin.display(description="Written")
    def written(self, memory: Memory) -> str:
        return f"{moment(memory.updated_at)} UTC"
