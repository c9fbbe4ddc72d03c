"""The form for agents that are made in the admin. Saving one is what `apply` does with a folder of one agent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django import forms
from django.contrib import messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.generic import FormView
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from agents import schedule
from agents.models import NAME_LENGTH, Agent, Workspace, valid_name
from agents.pages import LARGEST, Page, Refused, change_url, plain_lines
from agents.spec import AgentSpec, ModelSpec, ProjectSpec
from webhooks import projects, schedule_lines
from webhooks.agents_pages import OfAgent

PLAIN = ("description", "instructions", "timezone", "scale")
LIMITS = ("turns", "wall_seconds", "idle_seconds", "tokens", "usd")


class AgentForm(forms.Form):
    """What people may say of an agent here; everything else of its definition stays as it is."""

    name = forms.CharField(max_length=NAME_LENGTH, validators=[valid_name], widget=UnfoldAdminTextInputWidget())
    description = forms.CharField(max_length=500, required=False, widget=UnfoldAdminTextInputWidget())
    instructions = forms.CharField(max_length=LARGEST, widget=UnfoldAdminTextareaWidget(attrs={"rows": 16}))
    provider = forms.CharField(max_length=40, widget=UnfoldAdminTextInputWidget())
    model = forms.CharField(max_length=200, widget=UnfoldAdminTextInputWidget())
    schedule = forms.CharField(
        max_length=10_000,
        required=False,
        label="Schedules",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="One a line: 0 9 * * mon-fri, or @every 15m; what is to be said of it behind bars: "
        "0 9 * * * | zone Asia/Kolkata | jitter 5m | missed all | within 2h. Empty: none.",
    )
    timezone = forms.CharField(max_length=64, widget=UnfoldAdminTextInputWidget(), help_text="Such as Europe/Berlin.")
    scale = forms.IntegerField(
        min_value=0, max_value=10_000, widget=UnfoldAdminIntegerFieldWidget(), help_text="Runs at once; 0: off."
    )
    turns = forms.IntegerField(
        min_value=0, max_value=10_000, widget=UnfoldAdminIntegerFieldWidget(), help_text="Model turns; 0: no limit."
    )
    wall_seconds = forms.IntegerField(
        min_value=0, max_value=31_536_000, widget=UnfoldAdminIntegerFieldWidget(), help_text="0: no limit."
    )
    idle_seconds = forms.IntegerField(
        min_value=0,
        max_value=31_536_000,
        required=False,
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text="Without a word from the model or a byte from a command; 0: no limit.",
    )
    tokens = forms.IntegerField(
        min_value=0, max_value=2_000_000_000, widget=UnfoldAdminIntegerFieldWidget(), help_text="0: no limit."
    )
    usd = forms.DecimalField(
        min_value=0,
        max_value=100_000,
        decimal_places=6,
        required=False,
        label="US dollars",
        widget=UnfoldAdminDecimalFieldWidget(),
        help_text="0: no limit. A model whose price nobody knows is not asked.",
    )
    max_work_queue = forms.IntegerField(
        min_value=0,
        max_value=1_000_000,
        required=False,
        label="Longest line",
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text="Runs that may wait for a slot; what comes beyond them is kept as dead letters.",
    )

    def __init__(self, *args: Any, known: AgentSpec | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.known = known
        if known is not None:
            del self.fields["name"]

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if name == "default":
            raise forms.ValidationError("`default` is reserved.")
        return name

    def clean_instructions(self) -> str:
        return plain_lines(self.cleaned_data["instructions"])

    def clean(self) -> dict[str, Any]:
        asked: dict[str, Any] = super().clean() or {}
        field = "timezone"
        try:
            schedule.check("@daily", asked.get("timezone", "UTC"))
            field = "schedule"
            asked["schedules"] = schedule_lines.read(asked.get("schedule", ""), asked.get("timezone", "UTC"))
        except schedule.BadSchedule as error:
            self.add_error(field, str(error))
        return asked

    @staticmethod
    def initial_of(spec: AgentSpec) -> dict[str, Any]:
        first = spec.models[0] if spec.models else ModelSpec(provider="anthropic", model="")
        said = {name: getattr(spec, name) for name in PLAIN}
        limits = {name: getattr(spec.limits, name) for name in LIMITS}
        return {
            **said,
            **limits,
            "schedule": schedule_lines.written(spec.schedules),
            "max_work_queue": spec.max_work_queue,
            "provider": first.provider,
            "model": first.model,
        }

    def spec(self) -> AgentSpec:
        """The known definition with what the form says in its places."""
        asked = self.cleaned_data
        known = self.known or AgentSpec(name=asked["name"])
        first = known.models[0] if known.models else ModelSpec(provider="", model="")
        return replace(
            known,
            **{name: asked[name] for name in (*PLAIN, "schedules")},
            models=(replace(first, provider=asked["provider"], model=asked["model"]), *known.models[1:]),
            limits=replace(known.limits, **{name: asked[name] for name in LIMITS if asked[name] is not None}),
            max_work_queue=known.max_work_queue if asked["max_work_queue"] is None else asked["max_work_queue"],
        )


class WriteAgent(Page, FormView):  # type: ignore[type-arg]
    """Saving is what `apply` does with a folder of one agent and no name."""

    permission = "edit"
    template_name = "pages/deed.html"
    form_class = AgentForm
    known: Agent | None = None

    def get_form_kwargs(self) -> dict[str, Any]:
        return {**super().get_form_kwargs(), "known": self.known.shown_spec if self.known else None}

    def save(self, form: AgentForm) -> Agent:
        spec = form.spec()
        workspace = self.known.workspace if self.known else Workspace.default()
        files = projects.files_of(self.known) if self.known else {}
        with transaction.atomic():
            Workspace.objects.select_for_update(no_key=True).get(pk=workspace.pk)
            if self.known is None and Agent.objects.filter(workspace=workspace, name=spec.name).exists():
                raise Refused(f"there is an agent {spec.name} already")
            folder = ProjectSpec(name="", agents=(spec,), files={spec.name: files})
            return projects.apply_agent(workspace, folder, spec, projects.Changes())

    def form_valid(self, form: AgentForm) -> HttpResponse:
        try:
            agent = self.save(form)
        except Refused as refused:
            form.add_error(None, str(refused))
            return self.form_invalid(form)
        said = f"Saved {agent}: version {agent.version}"
        log = self.model_admin.log_change if self.known else self.model_admin.log_addition
        log(self.request, agent, said)
        messages.success(self.request, said)
        return redirect(change_url(agent))


class NewAgent(WriteAgent):
    title = "New agent"

    def get_initial(self) -> dict[str, Any]:
        return AgentForm.initial_of(AgentSpec(name="new"))

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(verb="Make it", back=reverse("admin:agents_agent_changelist"), **kwargs)


class EditAgent(OfAgent, WriteAgent):
    def get_rows(self) -> QuerySet[Agent]:
        return super().get_rows().filter(project="")

    @property
    def known(self) -> Agent:  # type: ignore[override]
        agent: Agent = self.row
        return agent

    @property
    def title(self) -> str:
        return f"Edit {self.row}"

    def get_initial(self) -> dict[str, Any]:
        return AgentForm.initial_of(self.known.shown_spec)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(verb="Save", back=change_url(self.row), **kwargs)
