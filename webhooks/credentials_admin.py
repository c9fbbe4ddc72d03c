"""Credentials in the admin: what is named, where its value is, what is missing. Values go in and never come out.

In the topmost application, because sources name credentials too. What is typed in here is kept in the database store.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.views.generic import FormView
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.views import ChangeList
from unfold.widgets import (
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from agents import credentials
from agents.credentials import CredentialError, CredentialType, Field, Reference
from agents.credentials.base import is_name
from agents.credentials.references import Standing, refer, standing
from agents.credentials.rows import RowStore
from agents.credentials.validation import shape_fault
from agents.models import Credential, Workspace
from agents.pages import Deed, Page, Refused, moment, plain_lines
from agents.tables import Operated, ReadOnly
from webhooks.credentials import users

STATES = {"there": "success", "missing": "danger", "faulty": "danger"}


class ChooseType(forms.Form):
    """Which one to add; its fields are asked for on the next page."""

    workspace = forms.ModelChoiceField(Workspace.objects.all(), widget=UnfoldAdminSelectWidget())
    type = forms.ChoiceField(widget=UnfoldAdminSelectWidget())
    instance = forms.CharField(
        max_length=100,
        initial="default",
        widget=UnfoldAdminTextInputWidget(),
        help_text="Agents name it as type:instance, and `default` as the type alone.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["type"].choices = [(name, name) for name in sorted(credentials.known_types())]  # type: ignore[attr-defined]

    def clean_instance(self) -> str:
        value: str = self.cleaned_data["instance"].strip()
        if not is_name(value):
            raise forms.ValidationError("Use letters, digits, dots, dashes and underscores.")
        return value


class Blind(UnfoldAdminTextareaWidget):
    """A text of several lines that is never sent back, as a password is not."""

    def format_value(self, value: Any) -> str:
        return ""


def widget_for(field: Field | None) -> forms.Widget:
    unseen = {"autocomplete": "new-password", "spellcheck": "false"}
    widget: forms.Widget = UnfoldAdminPasswordWidget(attrs=unseen)
    if field is not None and field.lines:
        widget = Blind(attrs=unseen)
    elif field is not None and not field.secret:
        widget = UnfoldAdminTextInputWidget()
    return widget


class ValuesForm(forms.Form):
    """A field each, of which nothing that was typed is ever shown again."""

    def __init__(self, *args: Any, kind: CredentialType | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = kind
        for name, field in (kind.fields if kind else {"token": None}).items():
            self.fields[name] = forms.CharField(required=False, label=name, widget=widget_for(field))

    @property
    def values(self) -> dict[str, str]:
        return {name: plain_lines(value) for name, value in self.cleaned_data.items() if value}

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        values = {name: value for name, value in cleaned.items() if value}
        if not values:
            raise forms.ValidationError("Type at least one value.")
        if self.kind is not None and (fault := shape_fault(self.kind, values)):
            raise forms.ValidationError(f"This is no {self.kind.name}: {fault}.")
        return cleaned


class AddCredential(Page, FormView):  # type: ignore[type-arg]
    permission = "add"
    template_name = "pages/deed.html"
    form_class = ChooseType
    title = "Add a credential"

    def get_initial(self) -> dict[str, Any]:
        return {"workspace": Workspace.objects.filter(name="default").first(), "instance": "default"}

    def form_valid(self, form: forms.Form) -> HttpResponse:
        chosen = form.cleaned_data
        reference = Reference(chosen["type"], chosen["instance"])
        refer(chosen["workspace"], [reference])
        row = Credential.objects.get(workspace=chosen["workspace"], type=reference.type, instance=reference.instance)
        return redirect(reverse("admin:agents_credential_put_values", args=[row.pk]))

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        back = reverse("admin:agents_credential_changelist")
        return super().get_context_data(verb="Next", back=back, **kwargs)


class PutValues(Deed):
    verb = "Keep"
    sentence = (
        "What is typed here is encrypted and kept in the database, in place of older values; empty fields stay as "
        "they are. Runs get it from their next sandbox on. The same credential in a file of the home comes first."
    )
    form_class: type[forms.Form] = ValuesForm

    @property
    def title(self) -> str:
        return f"Values of {self.row}"

    @cached_property
    def kind(self) -> CredentialType | None:
        return credentials.type_of(self.row.type)

    def get_form_kwargs(self) -> dict[str, Any]:
        return {**super().get_form_kwargs(), "kind": self.kind}

    def do(self, form: forms.Form) -> str:
        assert isinstance(form, ValuesForm)
        values = form.values
        try:
            RowStore(self.row.workspace.name).put(Reference(self.row.type, self.row.instance), values)
        except CredentialError as error:
            raise Refused(str(error)) from error
        return f"{self.row} is kept: {', '.join(sorted(values))}"


class ForgetValues(Deed):
    verb = "Remove"
    dangerous = True

    @property
    def sentence(self) -> str:
        named = ", ".join(used_by(self.row)) or "nobody"
        return f"Its values in the database are deleted for good. It is used by {named}."

    @property
    def title(self) -> str:
        return f"Remove {self.row}"

    def do(self, form: forms.Form) -> str:
        RowStore(self.row.workspace.name).remove(Reference(self.row.type, self.row.instance))
        if not used_by(self.row):
            Credential.objects.filter(pk=self.row.pk).delete()
        return f"{self.row} is removed from the database"

    def get_success_url(self) -> str:
        return reverse("admin:agents_credential_changelist")


class CredentialList(ChangeList):
    """Looks up what is known of the credentials of the page, workspace by workspace."""

    result_list: Iterable[Any]

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows: list[Any] = list(self.result_list)
        named = {row.workspace_id: users(row.workspace) for row in {row.workspace_id: row for row in rows}.values()}
        for row in rows:
            row.standing = known_of(row)
            row.used_by = named[row.workspace_id].get(row.standing.reference, [])
        self.result_list = rows


@admin.register(Credential)
class CredentialAdmin(Operated, ReadOnly, ModelAdmin):
    list_display = ("name", "state", "store", "users_shown", "used")
    list_select_related = ("workspace",)
    list_filter = ("workspace", "type")
    list_per_page = 25
    search_fields = ("type", "instance")
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    fields = ("workspace", "type", "instance", "state", "store", "fields_shown", "fault", "users_shown", "used")
    readonly_fields = ("state", "store", "fields_shown", "fault", "users_shown", "used")
    actions_row = ("put_values", "forget")
    actions_detail = ("put_values", "forget")

    @display(description="Credential")
    def name(self, row: Credential) -> str:
        return str(row)

    @display(description="State", label=STATES)
    def state(self, row: Any) -> str:
        return known_of(row).word

    @display(description="Kept in")
    def store(self, row: Any) -> str:
        return known_of(row).store or "-"

    @display(description="Fields")
    def fields_shown(self, row: Any) -> str:
        return ", ".join(known_of(row).fields)

    @display(description="What is wrong")
    def fault(self, row: Any) -> str:
        return known_of(row).fault

    @display(description="Used by")
    def users_shown(self, row: Any) -> str:
        return ", ".join(used_by(row)) or "nobody"

    @display(description="Last given to a run", empty_value="never")
    def used(self, row: Credential) -> str | None:
        return moment(row.used_at) or None

    @action(description="Set values", url_path="put", permissions=["operate"], icon="key")
    def put_values(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return PutValues.as_view(model_admin=self)(request, object_id=object_id)

    @action(description="Remove", url_path="forget", permissions=["operate"], icon="delete")
    def forget(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return ForgetValues.as_view(model_admin=self)(request, object_id=object_id)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponseBase:
        try:
            return AddCredential.as_view(model_admin=self)(request)
        except CredentialError as error:
            messages.error(request, str(error))
            return redirect(reverse("admin:agents_credential_changelist"))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("agents.add_credential"))

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Credential]:
        rows: QuerySet[Credential] = super().get_queryset(request)
        return rows.select_related("workspace")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return CredentialList


def known_of(row: Any) -> Standing:
    known = getattr(row, "standing", None)
    if known is None:
        known = row.standing = standing(Reference(row.type, row.instance), row.workspace.name)
    assert isinstance(known, Standing)
    return known


def used_by(row: Any) -> list[str]:
    """Looked up for all rows of a list at once, else here."""
    known: list[str] | None = getattr(row, "used_by", None)
    if known is None:
        known = users(row.workspace).get(Reference(row.type, row.instance), [])
    return known
