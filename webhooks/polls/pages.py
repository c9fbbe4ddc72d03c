"""Look now, in the admin."""

from __future__ import annotations

from django import forms
from django.http import Http404

from agents.pages import Deed
from webhooks.agents_pages import OfAgent
from webhooks.models import Poll
from webhooks.polls import rows


class LookNow(Deed, OfAgent):
    verb = "Look now"
    sentence = "It is looked at within seconds. What is new there starts runs, unless it is the first look."

    @property
    def poll(self) -> Poll:
        found = rows.of(self.row).filter(pk=self.kwargs["poll"]).first()
        if found is None:
            raise Http404
        return found

    @property
    def title(self) -> str:
        return f"Look at {self.poll}"

    def do(self, form: forms.Form) -> str:
        poll = self.poll
        rows.look_now(poll)
        return f"Asked for a look at {poll}"
