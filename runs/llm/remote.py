"""Providers over HTTP, through pydantic-ai's models and the vendors' SDKs. Heavy: import it late."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import httpx2
from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from pydantic_ai import messages as pai
from pydantic_ai.direct import model_request_stream
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelQuotaExceededError,
    UnexpectedModelBehavior,
    UserError,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from agents import storable
from agents.spec import ModelSpec
from runs import loop
from runs.llm import keys
from runs.llm.base import ModelError, ModelUnavailable, Request, ToolSchema
from runs.transcript import Body, Part

IN_PLACE = 10.0  # seconds of waiting for a provider before the run is parked instead
FIRST_PAUSE = 1.0  # seconds; each next is twice as long, or as long as the provider says
FIRST_BYTE = 120.0  # seconds until the answer begins
BETWEEN_CHUNKS = 120.0  # seconds within it
LATER = {408, 409, 429, 500, 502, 503, 504, 529}  # a status that may pass by itself
LONGEST_SENTENCE = 2000  # characters of a provider's error; a proxy's may be a whole page


async def answer(request: Request) -> Body:
    """One streamed request, asked again in place while the pauses fit into IN_PLACE seconds.

    What broke off on the way is counted, in the message as in the errors.
    """
    waited, pause, lost = 0.0, FIRST_PAUSE, 0
    while True:
        try:
            body = await _ask(request, _model(request))
        except ModelUnavailable as error:
            lost += error.lost_requests
            error.lost_requests = lost
            pause = max(pause, error.retry_after or 0.0)
            if waited + pause > IN_PLACE:
                raise
        except ModelError as error:
            error.lost_requests = lost
            raise
        else:
            if lost:
                body["lost_requests"] = lost
            return body
        await asyncio.sleep(pause)
        waited, pause = waited + pause, pause * 2


def warm() -> None:
    """Have one request answered out of the air: what the libraries load and build at first use is there then."""
    _http()
    spec = ModelSpec(provider="anthropic", model="claude-sonnet-5")
    messages: list[Body] = [{"role": "user", "parts": [{"type": "system", "text": "-"}, {"type": "text", "text": "-"}]}]
    request = Request(model=spec, messages=messages, tools=[ToolSchema("look", "Look.", {"type": "object"})])
    air = httpx2.AsyncClient(transport=httpx2.MockTransport(_recite))
    model = _anthropic_over(air, spec.model, "none", "http://localhost")  # on this thread: it reads all prices

    async def rehearse() -> None:
        async with air:
            await _ask(request, model)

    loop.submit(rehearse()).result()


def _recite(request: httpx2.Request) -> httpx2.Response:
    """A streamed answer with every kind of part, sent by nobody."""
    message: dict[str, Any] = {"id": "-", "type": "message", "role": "assistant", "model": "-", "content": []}
    parts: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": "-"}),
        ({"type": "text", "text": ""}, {"type": "text_delta", "text": "-"}),
        (
            {"type": "tool_use", "id": "-", "name": "look", "input": {}},
            {"type": "input_json_delta", "partial_json": "{}"},
        ),
    ]
    usage = {"input_tokens": 1, "output_tokens": 1}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {**message, "usage": usage}}]
    for index, (begin, delta) in enumerate(parts):
        events.append({"type": "content_block_start", "index": index, "content_block": begin})
        events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    events.append({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": usage})
    events.append({"type": "message_stop"})
    stream = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=stream)


async def close() -> None:
    """Let all connections go, on the loop they were made on."""
    client = _http()
    _anthropic.cache_clear()
    _http.cache_clear()
    await client.aclose()


async def _ask(request: Request, model: Model) -> Body:
    parameters = ModelRequestParameters(
        function_tools=[
            ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=tool.parameters)
            for tool in request.tools
        ]
    )
    settings: ModelSettings = {"max_retries": 0}
    if request.model.thinking not in {None, "off"}:
        settings["thinking"] = request.model.thinking  # type: ignore[typeddict-item]
    try:
        async with model_request_stream(
            model,
            _sent(request.messages),
            model_settings=settings,
            model_request_parameters=parameters,
        ) as stream:
            async for _ in stream:
                request.progressed()
            response = stream.get()
    except ModelAPIError as error:
        raise _translated(error, request) from error
    except (httpx2.HTTPError, UnexpectedModelBehavior) as error:  # an answer that makes no sense is spent all the same
        words = f"{request.model.provider}: {str(error) or type(error).__name__}"
        raise ModelUnavailable(words, lost_requests=1) from error
    except UserError as error:
        raise ModelError(str(error)) from error
    if response.finish_reason == "content_filter":
        raise ModelError(f"{request.model.provider} refused to answer{_explained(response)}", code="MODEL_REFUSED")
    if not _stop(response):  # half an answer must never pass for a whole one
        raise ModelUnavailable(f"{request.model.provider}: the answer ended in its middle", lost_requests=1)
    return _received(response, request)


def _model(request: Request) -> Model:
    provider = request.model.provider
    if provider != "anthropic":
        raise ModelError(f"provider {provider} is not supported yet", code="PROVIDER_UNKNOWN")
    if request.model.auth_type != "api_key":
        raise ModelError(f"{provider} with {request.model.auth_type} is not supported yet", code="PROVIDER_UNKNOWN")
    access = keys.access(provider)
    if access is None:
        raise ModelError(f"there is no key for {provider}", code="CREDENTIAL_MISSING")
    base_url = request.model.base_url or access.base_url
    return _anthropic(request.model.model, access.key, base_url)


@functools.lru_cache(maxsize=64)
def _anthropic(model: str, key: str, base_url: str | None) -> Model:
    """A changed key is another entry."""
    return _anthropic_over(_http(), model, key, base_url)


def _anthropic_over(http: httpx2.AsyncClient, model: str, key: str, base_url: str | None) -> Model:
    client = AsyncAnthropic(
        api_key=key,
        base_url=base_url,
        max_retries=0,  # waiting is ours: it must end when the step does
        timeout=httpx2.Timeout(BETWEEN_CHUNKS, connect=10, read=FIRST_BYTE),
        http_client=http,
    )
    return AnthropicModel(model, provider=AnthropicProvider(anthropic_client=client))


@functools.lru_cache(maxsize=1)
def _http() -> httpx2.AsyncClient:
    """All models' connections: a TLS context takes 20 ms of the loop to make."""
    return DefaultAsyncHttpxClient()


def _translated(error: ModelAPIError, request: Request) -> ModelError | ModelUnavailable:
    status = error.status_code if isinstance(error, ModelHTTPError) else None
    words = f"{request.model.provider if status is None else status}: {_provider_words(error)}"
    if isinstance(error, ModelQuotaExceededError):
        return ModelError(words, code="MODEL_QUOTA")
    if isinstance(error, ModelContextWindowExceededError):
        return ModelError(words, code="MODEL_CONTEXT_LENGTH")
    if status is None or status in LATER:  # no status: the connection failed, or broke off
        lost = int(error.in_stream or (isinstance(error, ModelConnectionError) and error.phase == "read"))
        return ModelUnavailable(words, retry_after=error.retry_after, lost_requests=lost)
    codes = {
        401: "MODEL_AUTHENTICATION",
        403: "MODEL_PERMISSION",
        404: "MODEL_NOT_FOUND",
        413: "MODEL_CONTEXT_LENGTH",
    }
    return ModelError(words, code=codes.get(status, "MODEL_ERROR"))


def _provider_words(error: ModelAPIError) -> str:
    """The provider's own sentence, out of the envelopes they put it in."""
    body: Any = error.body
    while isinstance(body, dict):
        body = body.get("error") or body.get("message") or str(body)
    return str(body or error)[:LONGEST_SENTENCE]


def _sent(messages: Sequence[Body]) -> list[pai.ModelMessage]:
    return [_response(body) if body["role"] == "assistant" else _request(body) for body in messages]


def _request(body: Body) -> pai.ModelRequest:
    parts: list[pai.ModelRequestPart] = []
    for part in body["parts"]:
        if part["type"] == "system":
            parts.append(pai.SystemPromptPart(part["text"]))
        elif part["type"] == "tool_result":
            parts.append(
                pai.ToolReturnPart(
                    tool_name=part["name"],
                    content=part["text"],
                    tool_call_id=part["id"],
                    outcome="failed" if part.get("is_error") else "success",
                )
            )
        else:
            parts.append(pai.UserPromptPart(part["text"]))
    return pai.ModelRequest(parts=parts)


def _response(body: Body) -> pai.ModelResponse:
    parts: list[pai.ModelResponsePart] = []
    for part in body["parts"]:
        extra: dict[str, Any] = part.get("extra", {})
        if part["type"] == "tool_call":
            parts.append(pai.ToolCallPart(part["name"], part["arguments"], part["id"], **extra))
        elif part["type"] == "thinking":
            parts.append(pai.ThinkingPart(part["text"], **extra))
        else:
            parts.append(pai.TextPart(part["text"], **extra))
    return pai.ModelResponse(parts=parts, model_name=body.get("model"))


def _received(response: pai.ModelResponse, request: Request) -> Body:
    parts: list[Part] = []
    for part in response.parts:
        if isinstance(part, pai.ToolCallPart):
            call: Part = {
                "type": "tool_call",
                "id": part.tool_call_id,
                "name": part.tool_name,
                "arguments": _args(part),
            }
            parts.append(_with_extra(call, part))
        elif isinstance(part, pai.ThinkingPart):
            parts.append(_with_extra({"type": "thinking", "text": part.content}, part))
        elif isinstance(part, pai.TextPart):
            parts.append(_with_extra({"type": "text", "text": part.content}, part))
    usage = response.usage
    return {
        "role": "assistant",
        "parts": storable.json(parts),
        "model": f"{request.model.provider}:{response.model_name or request.model.model}",
        "usage": {
            "input": usage.input_tokens,
            "output": usage.output_tokens,
            "cache_read": usage.cache_read_tokens,
            "cache_write": usage.cache_write_tokens,
        },
        "stop": _stop(response),
    }


def _stop(response: pai.ModelResponse) -> str:
    """Why the answer ended, in the library's words or else the provider's; "" for one that only broke off."""
    return response.finish_reason or str((response.provider_details or {}).get("finish_reason") or "")


def _explained(response: pai.ModelResponse) -> str:
    words = (response.provider_details or {}).get("refusal") or response.text
    return f": {words[:LONGEST_SENTENCE]}" if words else ""


def _args(part: pai.ToolCallPart) -> Any:
    """An object; the model's own text where that is no JSON object."""
    try:
        return part.args_as_dict(raise_if_invalid=True)
    except (ValueError, AssertionError):
        return part.args


def _with_extra(part: Part, native: pai.TextPart | pai.ThinkingPart | pai.ToolCallPart) -> Part:
    kept = ("id", "signature", "provider_name", "provider_details")
    extra = {key: value for key, value in asdict(native).items() if key in kept and value is not None}
    if extra:
        part["extra"] = extra
    return part
