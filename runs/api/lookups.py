"""What a request names: an agent, a run, a page, a number. Nothing is found outside the caller's workspace."""

from __future__ import annotations

import re
from typing import TypeVar

from django.db.models import Model, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import QueryDict
from rest_framework.request import Request

from agents.models import Agent
from runs.api.auth import workspace_of
from runs.api.errors import ApiError
from runs.models import Attempt, Run

Row = TypeVar("Row", bound=Model)
LONGEST_WAIT = 300  # seconds a request may wait for a run
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def visible(request: Request) -> QuerySet[Run]:
    """The caller's runs: of its workspace, and not deleted."""
    runs = Run.objects.filter(workspace=workspace_of(request), delete_requested_at=None)
    newest = Attempt.objects.filter(run=OuterRef("pk")).order_by("-number").values("number")[:1]
    return runs.select_related("agent").annotate(attempt_count=Coalesce(Subquery(newest), 0))


def agent_or_404(request: Request, name: str) -> Agent:
    agent = Agent.objects.filter(workspace=workspace_of(request), name=name).first()
    if agent is None:
        raise ApiError(404, "AGENT_NOT_FOUND", f"there is no agent {name!r}")
    return agent


def run_or_404(request: Request, run_id: str) -> Run:
    run = visible(request).filter(pk=run_id).first()
    if run is None:
        raise ApiError(404, "TASK_NOT_FOUND", f"there is no task {run_id!r}")
    return run


def page_of(request: Request, rows: QuerySet[Row]) -> tuple[list[Row], str | None]:
    """The rows from `cursor` on, newest first, `limit` at most, and the next page's cursor. Raises ApiError."""
    limit = number(request, "limit", 20, low=1, high=200)
    if cursor := request.query_params.get("cursor"):
        rows = rows.filter(pk__lt=cursor)
    found = list(rows.order_by("-pk")[: limit + 1])
    page = found[:limit]
    return page, page[-1].pk if len(found) > limit else None


def number(request: Request, name: str, default: int, *, low: int, high: int) -> int:
    """A whole number from the query string. Raises ApiError."""
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ApiError(400, "VALIDATION_ERROR", f"{name} is a whole number from {low} to {high}")
    return int(text)


def seconds(asked: QueryDict, name: str, default: str) -> float:
    """How long the caller would wait, from the query string. Raises ApiError."""
    text = asked.get(name, default)
    if not SECONDS.fullmatch(text) or float(text) > LONGEST_WAIT:
        raise ApiError(400, "VALIDATION_ERROR", f"{name} is a number of seconds from 0 to {LONGEST_WAIT}")
    return float(text)
