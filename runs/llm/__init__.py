"""The only place that talks to model providers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from agents.credentials import CredentialError
from agents.spec import ModelSpec
from runs import loop
from runs.llm import keys, scripted
from runs.llm.base import ModelError, ModelUnavailable, Request, ToolSchema

if TYPE_CHECKING:
    from runs.transcript import Body

__all__ = ["ModelError", "ModelUnavailable", "Request", "ToolSchema", "choose", "submit", "warm"]


def choose(models: Sequence[ModelSpec]) -> ModelSpec:
    """The first model whose provider has a key; `scripted` needs none. Raises ModelError if there is none."""
    if not models:
        raise ModelError("the agent names no model: set one in its config or its project's", code="NO_MODEL")
    for model in models:
        try:
            if model.provider == scripted.PROVIDER or keys.access(model.provider):
                return model
        except CredentialError as error:
            raise ModelError(str(error), code="CREDENTIAL_REFUSED") from error
    names = list(dict.fromkeys(model.provider for model in models))
    mend = f"add one with `agentfleet creds add {names[0]}_key`"
    raise ModelError(f"there is no key for {', '.join(names)}: {mend}", code="CREDENTIAL_MISSING")


def submit(request: Request) -> Future[Body]:
    """Ask the model. The future gives its message, or raises ModelError or ModelUnavailable; cancel it to hang up."""
    if request.model.provider == scripted.PROVIDER:
        return loop.submit(scripted.said(*scripted.answer(request)))
    return loop.submit(_ask_remote(request))


async def _ask_remote(request: Request) -> Body:
    """Loads the libraries first, on a thread, so that nobody who waits for the answer is deaf meanwhile."""
    if not _loaded.is_set():
        await asyncio.to_thread(_load)
    body: Body = await _load().answer(request)
    return body


def _load() -> Any:
    from runs.llm import remote  # noqa: PLC0415 - 100 MB and over a second: only processes that ask pay for it

    _loaded.set()
    return remote


_loaded = threading.Event()


def warm() -> None:
    """Load what the first request would otherwise wait for."""
    _load().warm()
