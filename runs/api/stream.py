"""A task's events as they happen: server-sent events, with ids, so that a reader who comes back misses nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from channels.db import database_sync_to_async
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from rest_framework.exceptions import AuthenticationFailed

from runs import stream
from runs.api.auth import caller_of
from runs.api.errors import body
from runs.models import Run

KEEPALIVE = 15.0  # seconds


async def task_stream(request: HttpRequest, run_id: str) -> HttpResponse | StreamingHttpResponse:
    """GET tasks/{id}/stream. Stored and live events have one form; one `status` message follows the replay."""
    if request.method != "GET":
        return JsonResponse(body("METHOD_NOT_ALLOWED", "use GET"), status=405, headers={"Allow": "GET"})
    try:
        exists = await database_sync_to_async(may_read)(request, run_id)
    except AuthenticationFailed as error:
        headers = {"WWW-Authenticate": "Bearer"}
        return JsonResponse(body("UNAUTHORIZED", str(error.detail)), status=401, headers=headers)
    if not exists:
        return JsonResponse(body("TASK_NOT_FOUND", f"there is no task {run_id!r}"), status=404)
    return StreamingHttpResponse(
        sent(run_id, after=last_seen(request)),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def may_read(request: HttpRequest, run_id: str) -> bool:
    """Whether the caller has such a run. Raises AuthenticationFailed."""
    caller = caller_of(request.headers.get("Authorization", "").encode("latin-1", "replace"))
    if caller is None:
        raise AuthenticationFailed("send the header Authorization: Bearer <token>")
    return Run.objects.filter(pk=run_id, workspace=caller.workspace, delete_requested_at=None).exists()


def last_seen(request: HttpRequest) -> int:
    """The number the reader has: `Last-Event-ID`, or `since` for those who cannot set headers."""
    text = request.headers.get("Last-Event-ID") or request.GET.get("since", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


async def sent(run_id: str, *, after: int) -> AsyncIterator[str]:
    """The stream's text."""
    pages = aiter(stream.follow(run_id, after=after))
    replayed = False
    coming: asyncio.Task[Any] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(pages, StopAsyncIteration))
            done, _ = await asyncio.wait([coming], timeout=KEEPALIVE)
            if not done:
                yield ": keepalive\n\n"
                continue
            page, coming = coming.result(), None
            for event in page if isinstance(page, list) else []:
                yield f"id: {event['id']}\nevent: task\ndata: {json.dumps(event)}\n\n"
            if not replayed and (page is None or page is StopAsyncIteration):
                replayed = True
                yield f"event: status\ndata: {json.dumps(await database_sync_to_async(status_of)(run_id))}\n\n"
            if page is StopAsyncIteration:
                return
    finally:
        if coming is not None:
            coming.cancel()


def status_of(run_id: str) -> dict[str, Any]:
    run = Run.objects.filter(pk=run_id).only("status", "output", "error").first()
    if run is None:
        return {"taskId": run_id, "status": "deleted", "output": None, "error": None}
    return {"taskId": run.pk, "status": run.status, "output": run.output, "error": run.error}
