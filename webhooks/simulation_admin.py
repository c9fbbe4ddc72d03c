"""The page on which somebody tries a payload: what it would start, and what agents would be told."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import Http404, HttpResponse
from django.views.generic import FormView
from unfold.widgets import UnfoldAdminFileFieldWidget, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from agents.pages import PageOfRow, change_url, plain_lines, pretty
from webhooks import simulation
from webhooks.models import Source
from webhooks.received import PATH

LARGEST = 10 * 1024 * 1024  # bytes of a body, as at the door


class PayloadForm(forms.Form):
    event = forms.CharField(
        required=False, max_length=100, widget=UnfoldAdminTextInputWidget, help_text="Empty: as the headers say."
    )
    payload = forms.CharField(
        required=False, max_length=LARGEST, strip=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 14})
    )
    file = forms.FileField(required=False, label="Or a file", widget=UnfoldAdminFileFieldWidget)
    headers = forms.CharField(
        required=False,
        max_length=100_000,
        label="Further headers (optional)",
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}),
        help_text="One a line, as in X-GitHub-Event: issues",
    )

    def __init__(self, *args: Any, event_header: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["event"].label = f"Event ({event_header})"
        if not event_header:
            del self.fields["event"]

    def clean_headers(self) -> dict[str, str]:
        lines = [line for line in plain_lines(self.cleaned_data["headers"]).split("\n") if line.strip()]
        pairs = [line.partition(":") for line in lines]
        if any(not (name.strip() and colon) for name, colon, _ in pairs):
            raise forms.ValidationError("Write one header a line: Name: value")
        return {name.strip(): value.strip() for name, _, value in pairs}

    def clean(self) -> dict[str, Any]:
        said: dict[str, Any] = super().clean() or {}
        typed, file = said.get("payload", ""), said.get("file")
        if bool(typed.strip()) == bool(file):
            raise forms.ValidationError("Paste a payload, or choose a file.")
        if file and file.size > LARGEST:
            raise forms.ValidationError("The file is larger than a webhook may be.")
        said["body"] = file.read() if file else plain_lines(typed).encode(errors="replace")
        return said


class Simulate(PageOfRow, FormView):  # type: ignore[type-arg]
    """On a source."""

    permission = "operate"
    template_name = "webhooks/simulate.html"
    form_class = PayloadForm

    @property
    def title(self) -> str:
        return f"Simulate a webhook of {self.source.name}"

    @property
    def source(self) -> Source:
        source: Source = self.row
        return source

    def get_form_kwargs(self) -> dict[str, Any]:
        return {**super().get_form_kwargs(), "event_header": simulation.event_header(self.source)}

    def form_valid(self, form: forms.Form) -> HttpResponse:
        said = form.cleaned_data
        try:
            found = simulation.simulate(self.source, said["body"], event=said.get("event", ""), headers=said["headers"])
        except simulation.Unfit as error:
            form.add_error(None, str(error))
            return self.form_invalid(form)
        event = found.explanation.event
        context = pretty(event.context) if event else ""
        return self.render_to_response(self.get_context_data(form=form, found=found, context=context))

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(source=self.source, back=change_url(self.row), **kwargs)


class SimulateAgain(Simulate):
    """On a delivery: the form begins with what came."""

    @property
    def source(self) -> Source:
        source: Source | None = self.row.source
        if source is None:
            raise Http404("its source is gone")
        return source

    def get_initial(self) -> dict[str, Any]:
        says_event = simulation.event_header(self.source)
        kept = {name: value for name, value in self.row.headers.items() if name not in {PATH, says_event}}
        return {
            "event": self.row.headers.get(says_event, ""),
            "payload": bytes(self.row.body).decode(errors="replace"),
            "headers": "\n".join(f"{name}: {value}" for name, value in kept.items()),
        }
