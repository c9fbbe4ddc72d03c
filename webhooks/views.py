"""The door for webhooks. Nothing of a request is stored before its signature held, but a count.

Paths, answers and order: spec/action-llama.md 2.1; unsigned requests are refused unless a source allows them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from django.db.models import F
from django.http import HttpRequest, JsonResponse, UnreadablePostError
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from agents import clock, credentials
from agents.credentials import CredentialError
from webhooks import dispatch
from webhooks.dispatch import Outcome, Received
from webhooks.models import Source
from webhooks.providers import PROVIDERS
from webhooks.providers.base import BadBody, Event, Ignored, Provider

log = logging.getLogger(__name__)

LARGEST = 10 * 1024 * 1024  # bytes of a body


@csrf_exempt
@require_POST
def receive(request: HttpRequest, provider: str, source: str | None = None) -> JsonResponse:
    """POST /webhooks/{provider}[/{source}]"""
    speaks = PROVIDERS.get(provider)
    candidates = sources_of(provider, source) if speaks else []
    if speaks is None or not candidates:
        return JsonResponse({"error": f"unknown webhook source: {source or provider}"}, status=404)
    if int(request.headers.get("Content-Length") or 0) > LARGEST:
        return JsonResponse({"error": "payload too large"}, status=413)
    try:
        body = request.body
    except UnreadablePostError:
        return JsonResponse({"error": "failed to read request body"}, status=400)
    headers = {name.lower(): value for name, value in request.headers.items()}
    accepting, signed = accepted_by(speaks, candidates, headers, body)
    if not accepting:
        count_refusal(candidates)
        return JsonResponse({"error": "signature validation failed"}, status=401)
    received = Received(provider=provider, headers=headers, body=body, sources=accepting, signed=signed)
    try:
        said = speaks.parse(headers, body, received_at=clock.now())
    except BadBody as error:
        dispatch.keep_only(received, Ignored(f"not understood: {error}"))
        return JsonResponse({"error": str(error)}, status=400)
    return answer(act_on(received, said))


def act_on(received: Received, said: Event | Ignored) -> Outcome:
    return dispatch.dispatch(received, said) if isinstance(said, Event) else dispatch.keep_only(received, said)


def answer(outcome: Outcome) -> JsonResponse:
    body = {"ok": True, "matched": outcome.matched, "skipped": outcome.skipped, "runs": list(outcome.runs)}
    return JsonResponse({**body, **({"duplicate": True} if outcome.duplicate else {})})


def sources_of(provider: str, name: str | None) -> list[Source]:
    """The sources a path names: all of a provider's, or one."""
    sources = Source.objects.filter(workspace__name="default", provider=provider, active=True)
    return list(sources.filter(name=name) if name else sources)


def accepted_by(
    speaks: Provider, candidates: Sequence[Source], headers: Mapping[str, str], body: bytes
) -> tuple[list[Source], bool]:
    """The sources that take this request, and whether a signature of theirs is why."""
    signer = speaks.signed_by(headers, body, secrets_of(speaks, candidates))
    if signer is not None:
        return [source for source in candidates if source.credential == signer], True
    return [source for source in candidates if source.allow_unsigned], False


def secrets_of(speaks: Provider, candidates: Sequence[Source]) -> dict[str, str]:
    """Instance of the credential → secret, read now: a rotated secret counts from its next request on."""
    secrets: dict[str, str] = {}
    for instance in {source.credential for source in candidates}:
        try:
            secret = credentials.read(speaks.secret_credential, instance, "secret")
        except CredentialError as error:
            log.error("webhooks of %s are refused: %s", instance, error)  # noqa: TRY400 - the sentence is enough
            continue
        if secret:
            secrets[instance] = secret
    return secrets


def count_refusal(candidates: Sequence[Source]) -> None:
    ids = [source.pk for source in candidates]
    Source.objects.filter(pk__in=ids).update(refused_count=F("refused_count") + 1, refused_at=clock.now())
