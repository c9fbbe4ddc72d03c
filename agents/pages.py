"""What our pages in the admin share: who may see them, forms that ask before they act, how values are written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.generic import FormView
from unfold.admin import ModelAdmin
from unfold.views import UnfoldModelAdminViewMixin
from unfold.widgets import UnfoldAdminTextareaWidget

# unfold's Alpine evaluates attributes, hence 'unsafe-eval'; inline scripts and handlers, as injected markup has them,
# stay dead.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
LARGEST = 1024 * 1024  # characters of a text typed into a form


# --- words ------------------------------------------------------------------------------------------------------


def moment(at: datetime | None) -> str:
    """2026-11-20 10:00:00, in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if at else ""


def length(seconds: float) -> str:
    """3.2 s, 4 min 05 s, 15 min, 2 h 04 min, 3 d 4 h."""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, second = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {second:02d} s" if second else f"{minutes} min"
    hours, minute = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minute:02d} min"
    days, hour = divmod(hours, 24)
    return f"{days} d {hour} h"


def preformatted(text: str) -> SafeString:
    return format_html('<pre class="af-pre">{}</pre>', text)


def pretty(value: Any) -> SafeString:
    """A JSON value, indented."""
    return preformatted(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def change_url(row: Model) -> str:
    """The admin's page of a row. Ids of ours need no quoting: admin's own escapes of `_` are read all the same."""
    opts = row._meta  # noqa: SLF001 - public in all but name
    return page_url(opts.app_label, str(opts.model_name), row.pk)


def page_url(app: str, model: str, pk: Any, page: str = "change") -> str:
    return reverse(f"admin:{app}_{model}_{page}", args=[pk])


# --- pages ------------------------------------------------------------------------------------------------------


class Page(UnfoldModelAdminViewMixin):
    """A view inside the admin. Who may see it is for its model admin to say."""

    permission = "view"

    @property
    def title(self) -> str:
        return ""

    def has_permission(self) -> bool:
        return bool(getattr(self.model_admin, f"has_{self.permission}_permission")(self.request))

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response: HttpResponseBase = super().dispatch(request, *args, **kwargs)
        response.headers["Content-Security-Policy"] = POLICY
        return response


def page(model_admin: ModelAdmin, route: str, view: type[Page]) -> URLPattern:
    """The URL of a page of a model admin, named by the route's last word: `runs_run_facts`."""
    opts = model_admin.opts
    word = [part for part in route.split("/") if part and "<" not in part][-1]
    protected = model_admin.admin_site.admin_view(view.as_view(model_admin=model_admin))
    url: URLPattern = path(route, protected, name=f"{opts.app_label}_{opts.model_name}_{word}")
    return url


class PageOfRow(Page):
    """A page about one row that the model admin lists."""

    @cached_property
    def row(self) -> Any:
        try:
            return get_object_or_404(self.get_rows(), pk=unquote(self.kwargs["object_id"]))
        except ValueError as error:  # no number where the key is one
            raise Http404 from error

    def get_rows(self) -> QuerySet[Any]:
        rows: QuerySet[Any] = self.model_admin.get_queryset(self.request)
        return rows

    @property
    def title(self) -> str:
        return str(self.row)


class Refused(Exception):
    """What was asked cannot be done now; the message is for the person who asked."""


class Deed(PageOfRow, FormView):  # type: ignore[type-arg]
    """GET asks, POST does: nothing happens by following a link."""

    permission = "operate"
    template_name = "pages/deed.html"
    form_class = forms.Form
    verb = ""  # on the button
    dangerous = False

    @property
    def sentence(self) -> str:
        """What the button will do."""
        return ""

    def do(self, form: forms.Form) -> str:
        """Do it and say so in a sentence. Raises Refused."""
        raise NotImplementedError

    def form_valid(self, form: forms.Form) -> HttpResponse:
        try:
            said = self.do(form)
        except Refused as refused:
            messages.error(self.request, str(refused))
        else:
            self.model_admin.log_change(self.request, self.row, said)
            messages.success(self.request, said)
        return redirect(self.get_success_url())

    def get_success_url(self) -> str:
        return change_url(self.row)

    def back(self) -> str:
        """Where to go without doing it."""
        return change_url(self.row)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(
            verb=self.verb, sentence=self.sentence, dangerous=self.dangerous, back=self.back(), **kwargs
        )


class Words(forms.Form):
    """A form with one text."""

    text = forms.CharField(max_length=LARGEST, label="", widget=UnfoldAdminTextareaWidget(attrs={"rows": 6}))

    def clean_text(self) -> str:
        return plain_lines(self.cleaned_data["text"])


def plain_lines(text: str) -> str:
    """Browsers send every line end as two characters."""
    return text.replace("\r\n", "\n")
