"""The floor of deliveries: the same server, and a view that does nothing but insert the same row.

An installation of the bench runs with these settings and addresses in place of the product's, which know neither.
"""

from __future__ import annotations

import hashlib

from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from agentfleet.urls import urlpatterns as the_products
from bench.bare_path import PATH
from webhooks.models import Delivery, Source


@csrf_exempt
def insert(request: HttpRequest) -> JsonResponse:
    """A delivery row of the body and its headers, as the product stores one, decided by nobody."""
    body = request.body
    Delivery.objects.create(
        workspace_id=_source().workspace_id,
        source=_source(),
        provider="github",
        external_id=request.headers.get("X-GitHub-Delivery", ""),
        event="push",
        context=CONTEXT,
        headers={name.lower(): value for name, value in request.headers.items()},
        body=body,
        digest=hashlib.sha256(body).hexdigest(),
        sender="Codertocat",
        fingerprint="0" * 32,
    )
    return JsonResponse({"ok": True, "matched": 0, "skipped": 0, "runs": []})


CONTEXT = {
    "source": "github",
    "event": "push",
    "repo": "Codertocat/Hello-World",
    "sender": "Codertocat",
    "timestamp": "2026-01-01T00:00:00.000Z",
    "branch": "tags/simple-tag",
    "url": "https://github.com/Codertocat/Hello-World/compare/6113728f27ae...000000000000",
    "author": "Codertocat",
}
_sources: list[Source] = []  # one, once it is read


def _source() -> Source:
    if not _sources:
        _sources.append(Source.objects.get(name="github"))
    return _sources[0]


urlpatterns = [path(PATH.lstrip("/"), insert), *the_products]
