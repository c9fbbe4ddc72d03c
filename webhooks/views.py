"""The door for webhooks. Nothing of a request is stored before its signature held, but a count.

Paths, answers and order: spec/action-llama.md 2.1; unsigned requests are refused unless a source allows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from django.db.models import F
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse, UnreadablePostError
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from agents import clock
from agents.spec import SignatureScheme
from webhooks import dispatch, listeners, refusals, signing_secrets
from webhooks.models import Source
from webhooks.providers import PROVIDERS
from webhooks.providers.base import BadBody, Event, Handshake, Ignored, Provider, Request
from webhooks.received import PATH, Outcome, Received

LARGEST = 10 * 1024 * 1024  # bytes of a body


@csrf_exempt
@require_http_methods(["POST", "GET"])
def receive(request: HttpRequest, provider: str, source: str | None = None) -> HttpResponse:
    """POST /webhooks/{provider}[/{source}], and GET where the provider asks first whether anybody is there."""
    return listeners.currently(lambda: answer_to(request, provider, source))


def answer_to(request: HttpRequest, provider: str, source: str | None) -> HttpResponse:
    """Raises Stale."""
    speaks, known = PROVIDERS.get(provider), listeners.table()
    candidates = known.of(provider, source) if speaks else []
    if speaks is None or not candidates:
        known.check()
        return JsonResponse({"error": f"unknown webhook source: {source or provider}"}, status=404)
    if request.method == "GET":
        shaken = speaks.greet(request.GET.dict(), signing_secrets.stored(speaks, instances_of(candidates)))
        return shake(shaken, candidates) if shaken else HttpResponseNotAllowed(["POST"])
    if int(request.headers.get("Content-Length") or 0) > LARGEST:
        return JsonResponse({"error": "payload too large"}, status=413)
    try:
        body = request.body
    except UnreadablePostError:
        return JsonResponse({"error": "failed to read request body"}, status=400)
    headers = {PATH: request.path, **{name.lower(): value for name, value in request.headers.items()}}
    asked = Request(headers=headers, body=body, received_at=clock.now())
    accepting, signed = accepted_by(speaks, candidates, asked)
    if not accepting:
        known.check()
        refusals.count([source.pk for source in candidates])
        return JsonResponse({"error": "signature validation failed"}, status=401)
    received = Received(provider=provider, headers=headers, body=body, sources=accepting, signed=signed, known=known)
    return take(received, speaks, replace(asked, scheme=accepting[0].scheme))


def take(received: Received, speaks: Provider, asked: Request) -> JsonResponse:
    """A request whose sender is settled."""
    try:
        said = speaks.parse(asked)
    except BadBody as error:
        dispatch.not_understood(received, str(error))
        return JsonResponse({"error": str(error)}, status=400)
    if isinstance(said, Handshake):
        return shake(said, received.sources)
    return answer(act_on(received, said), said)


def shake(shaken: Handshake, sources: Sequence[Source]) -> JsonResponse:
    """Answered and counted; there is nothing in it to keep."""
    ids = [source.pk for source in sources]
    Source.objects.filter(pk__in=ids).update(handshake_count=F("handshake_count") + 1, handshake_at=clock.now())
    return JsonResponse(shaken.answer, status=shaken.status)


def act_on(received: Received, said: Event | Ignored) -> Outcome:
    return dispatch.dispatch(received, said) if isinstance(said, Event) else dispatch.keep_only(received, said)


def answer(outcome: Outcome, said: Event | Ignored) -> JsonResponse:
    body = {"ok": True, "matched": outcome.matched, "skipped": outcome.skipped, "runs": list(outcome.runs)}
    reply = said.reply if isinstance(said, Event) else {}
    return JsonResponse({**body, **({"duplicate": True} if outcome.duplicate else {}), **reply})


def accepted_by(speaks: Provider, candidates: Sequence[Source], asked: Request) -> tuple[list[Source], bool]:
    """The sources that take this request, and whether a signature of theirs is why."""
    instances = instances_of(candidates)
    secrets = signing_secrets.remembered(speaks, instances)
    signed = signed_by(speaks, candidates, asked, secrets) if secrets else []
    if not signed:
        signed = signed_by(speaks, candidates, asked, signing_secrets.stored(speaks, instances))
    return signed or [source for source in candidates if source.allow_unsigned], bool(signed)


def signed_by(
    speaks: Provider, candidates: Sequence[Source], asked: Request, secrets: Mapping[str, str]
) -> list[Source]:
    """The sources one of whose secrets signed it; none if none did."""
    for scheme, alike in by_scheme(candidates):
        theirs = {source.credential: secrets.get(source.credential, "") for source in alike}
        if signer := speaks.signed_by(replace(asked, scheme=scheme), theirs):
            return [source for source in alike if source.credential == signer]
    return []


def instances_of(candidates: Sequence[Source]) -> set[str]:
    return {source.credential for source in candidates}


def by_scheme(candidates: Sequence[Source]) -> Iterator[tuple[SignatureScheme | None, list[Source]]]:
    """Sources that sign in the same way, together: one group, unless the provider leaves that to each source."""
    groups: dict[SignatureScheme | None, list[Source]] = {}
    for source in candidates:
        groups.setdefault(source.scheme, []).append(source)
    yield from groups.items()
