"""Lists in the admin that stay quick however many rows there are, and rows that are only read."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.views import ChangeList

COUNTED = 10_000  # rows a list counts and pages through; older ones are found by filter or id


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than COUNTED, so that neither the count nor the last page walks over a big table."""

    template_name = "pages/pagination.html"

    @cached_property
    def count(self) -> int:
        rows = self.object_list
        assert isinstance(rows, QuerySet)
        return rows.order_by()[:COUNTED].count()

    @property
    def capped(self) -> bool:
        return self.count >= COUNTED


class BigTable(ModelAdmin):
    """A list of many rows, newest first: found by id and filter, never sorted or counted in full."""

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 25
    sortable_by = ()
    ordering = ("-id",)
    search_fields = ("id",)
    search_help_text = "An id, or how it begins."
    id_prefix = ""

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return BigList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By the beginning of the id, as a range: the primary key's index serves it on every database."""
        term = search_term.strip()
        if not term:
            return queryset, False
        term = term if term.startswith(self.id_prefix) else f"{self.id_prefix}{term}"
        return queryset.filter(pk__gte=term, pk__lt=f"{term}g"), False  # g follows the last hex digit


class BigList(ChangeList):
    """Nothing is counted in full, so there is no other total to show beside the result's."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.full_result_count = self.result_count


class Operated(ModelAdmin):
    """`operate`: may act on rows (cancel, respond, run, pause) without editing their fields."""

    def has_operate_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}")


class ReadOnly(ModelAdmin):
    """Rows that the program writes and people read."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False
