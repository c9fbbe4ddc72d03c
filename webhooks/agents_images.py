"""The images of an agent in the admin: how far they are, what their builders said, and Build again."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.views import View
from django.views.generic import TemplateView

from agents.pages import Deed, Refused
from runs import images, images_admin
from webhooks.agents_pages import OfAgent


class AgentImages(OfAgent, TemplateView):
    """The part of the agent's page that its script asks for again and again."""

    template_name = "agents/images.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        may_operate = self.model_admin.has_operate_permission(self.request)
        return super().get_context_data(
            agent=self.row, images=images_admin.of(self.row), may_operate=may_operate, **kwargs
        )


class BuildLog(OfAgent, View):
    """All that is kept of it, as plain text."""

    def get(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        build = get_object_or_404(images.rows_of(self.row), pk=kwargs["build"])
        return HttpResponse(build.log, content_type="text/plain; charset=utf-8")


class BuildAgain(Deed, OfAgent):
    verb = "Build again"
    sentence = "Images that could not be built are tried again, on every host."

    @property
    def title(self) -> str:
        return f"Build the images of {self.row} again"

    def do(self, form: forms.Form) -> str:
        if not images.build_again(self.row):
            raise Refused("no image of it has failed")
        return f"Asked for the images of {self.row} again"
