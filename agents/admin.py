"""The admin of who may come in: API tokens and users. Agents are shown where their runs are known: `webhooks.admin`."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as PlainGroupAdmin
from django.contrib.auth.admin import UserAdmin as PlainUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import QuerySet
from django.forms import Form
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.template.response import TemplateResponse
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from agents import clock
from agents.models import ApiToken, Workspace
from agents.pages import Deed, Refused, moment, page_url
from agents.tables import Operated

admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(PlainUserAdmin, ModelAdmin):  # type: ignore[type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class GroupAdmin(PlainGroupAdmin, ModelAdmin):
    pass


class RevokeToken(Deed):
    verb = "Revoke"
    sentence = "Whoever holds it is refused from the next request on. A revoked token does not come back."
    dangerous = True

    @property
    def title(self) -> str:
        return f"Revoke {self.row}"

    def do(self, form: Form) -> str:
        if not ApiToken.objects.filter(pk=self.row.pk, revoked_at=None).update(revoked_at=clock.now()):
            raise Refused(f"{self.row} was revoked before")
        return f"Revoked {self.row}"

    def get_success_url(self) -> str:
        return page_url("agents", "apitoken", self.row.pk)


@admin.register(ApiToken)
class ApiTokenAdmin(Operated, ModelAdmin):
    """Made and revoked, never changed: the value is shown once and its hash never."""

    list_display = ("name", "state", "prefix", "workspace", "created", "last_used")
    list_select_related = ("workspace",)
    fields = ("workspace", "name")
    readonly_fields = ("prefix", "state", "created", "last_used")
    ordering = ("-id",)
    actions_row = ("revoke",)
    actions_detail = ("revoke",)

    @display(description="State", label={"active": "success", "revoked": "danger"})
    def state(self, token: ApiToken) -> str:
        return "revoked" if token.revoked_at else "active"

    @display(description="Created")
    def created(self, token: ApiToken) -> str:
        return moment(token.created_at)

    @display(description="Last used", empty_value="never")
    def last_used(self, token: ApiToken) -> str | None:
        return moment(token.last_used_at) or None

    @action(description="Revoke", url_path="revoke", permissions=["operate"], icon="key_off")
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        return RevokeToken.as_view(model_admin=self)(request, object_id=object_id)

    def get_fields(self, request: HttpRequest, obj: ApiToken | None = None) -> Any:
        return ("workspace", "name", *(self.readonly_fields if obj else ()))

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"workspace": Workspace.objects.filter(name="default").first()}

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: ApiToken, form: Form, change: bool) -> None:
        issued, value = ApiToken.issue(obj.workspace, obj.name)
        obj.pk, obj.prefix = issued.pk, issued.prefix
        request.issued_token = value  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: ApiToken, post_url_continue: str | None = None) -> HttpResponse:
        """The value goes into this one answer, not into a message: those wait in a cookie or a row."""
        context = {
            **self.admin_site.each_context(request),
            "title": f"Token {obj.name}",
            "value": request.issued_token,  # type: ignore[attr-defined]
            "back": page_url("agents", "apitoken", obj.pk),
        }
        return TemplateResponse(request, "agents/token_issued.html", context)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiToken]:
        rows: QuerySet[ApiToken] = super().get_queryset(request)
        return rows.defer("digest")
