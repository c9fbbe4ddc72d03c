"""The routes, each as the contract has it: what must be there, in which order that is looked at, what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import DatabaseError, InterfaceError, connection

from agents.models import ApiToken
from runs import agent_calls, locks, signals
from runs.db import release_connection
from runs.gateway.callers import caller
from runs.gateway.commits import UNAVAILABLE, Commits, Wish
from runs.gateway.requests import Bad, Handler, Request
from runs.gateway.waits import LONGEST, Waits
from runs.lock_table import NOBODY, OK, Answer, Verb
from runs.models import Attempt

THREADS = 4
SHUTDOWN_REASON = "agent requested shutdown"
NOT_READY = Answer(503, {"ok": False, "reason": "call dispatcher not ready"})
UNAUTHORIZED = Answer(401, {"error": "Unauthorized"})
NO_SUCH_CALL = Answer(404, {"error": "call not found"})

T = TypeVar("T")


class Routes:
    """What answers, and the threads that ask the database for it."""

    def __init__(self) -> None:
        self._commits = Commits()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway")
        self._waits = Waits(self._ask)

    def table(self) -> Mapping[tuple[str, str], Handler]:
        return {
            ("GET", "/health"): self.health,
            ("POST", "/locks/acquire"): self.acquire,
            ("POST", "/locks/release"): self.release,
            ("POST", "/locks/heartbeat"): self.heartbeat,
            ("GET", "/locks/list"): self.list_locks,
            ("GET", "/locks/status"): self.lock_status,
            ("POST", "/calls"): self.call,
            ("GET", "/calls/"): self.call_status,
            ("POST", "/signals/status"): self.status,
            ("POST", "/signals/return"): self.return_value,
            ("POST", "/signals/rerun"): self.rerun,
            ("POST", "/signals/exit"): self.exit,
            ("POST", "/signals/trigger"): self.trigger,
            ("POST", "/shutdown"): self.shutdown,
        }

    def send_the_waiting_away(self) -> None:
        """Those who wait for calls: they ask again, and then somebody else is here."""
        self._waits.stop()

    def stop(self, within: float) -> None:
        """Let go of the database; locks that have been asked for are answered first."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._commits.stop(within)

    async def health(self, request: Request) -> Answer:
        return Answer(200, {"status": "ok"})

    # --- locks -------------------------------------------------------------------------------------------------

    async def acquire(self, request: Request) -> Answer:
        return await self._lock("acquire", request)

    async def release(self, request: Request) -> Answer:
        return await self._lock("release", request)

    async def heartbeat(self, request: Request) -> Answer:
        return await self._lock("heartbeat", request)

    async def list_locks(self, request: Request) -> Answer:
        return await self._commits.answer(Wish("list", request.digest()))

    async def lock_status(self, request: Request) -> Answer:
        """For operators: it takes an API token, and no attempt's secret."""
        try:
            return await self._ask(_status_for, request.bearer)
        except (DatabaseError, InterfaceError):
            return UNAVAILABLE

    async def _lock(self, verb: Verb, request: Request) -> Answer:
        digest, key = request.digest(), request.text("resourceKey")
        seconds = None if verb == "release" else request.seconds("ttl")
        return await self._commits.answer(Wish(verb, digest, key, seconds))

    # --- calls -------------------------------------------------------------------------------------------------

    async def call(self, request: Request) -> Answer:
        digest = request.digest()
        target, context = request.text("targetAgent"), request.text("context", may_be_empty=True)
        try:
            call_id = await self._as_caller(digest, agent_calls.call, target, context)
        except agent_calls.Refused as refused:
            return Answer(409, {"ok": False, "reason": str(refused)})
        except (DatabaseError, InterfaceError):
            return NOT_READY
        return Answer(200, {"ok": True, "callId": call_id})

    async def call_status(self, request: Request) -> Answer:
        digest, seconds = request.digest(), request.wait(LONGEST)
        try:
            if not seconds:
                return Answer(200, await self._as_caller(digest, agent_calls.status, request.word))
            who = await self._as_caller(digest, _itself)
            return Answer(200, await self._waits.wait(who, request.word, seconds))
        except agent_calls.NoSuchCall:
            return NO_SUCH_CALL
        except (DatabaseError, InterfaceError):
            return UNAVAILABLE

    # --- signals -----------------------------------------------------------------------------------------------

    async def status(self, request: Request) -> Answer:
        return await self._signal(request.digest(), signals.set_status, request.text("text"))

    async def return_value(self, request: Request) -> Answer:
        return await self._signal(request.digest(), signals.return_value, request.text("value", may_be_empty=True))

    async def rerun(self, request: Request) -> Answer:
        return await self._signal(request.digest(), signals.rerun)

    async def exit(self, request: Request) -> Answer:
        return await self._signal(request.digest(), signals.exit, request.exit_code("code"))

    async def trigger(self, request: Request) -> Answer:
        """Checked and without effect, as in the contract: a call is what starts another agent."""
        digest = request.digest()
        request.text("targetAgent")
        request.text("context")
        return await self._signal(digest, _itself)

    async def shutdown(self, request: Request) -> Answer:
        reason, details = request.body.get("reason"), request.body.get("details") or ""
        words = reason if isinstance(reason, str) and reason else SHUTDOWN_REASON
        told = details if isinstance(details, str) else json.dumps(details)
        return await self._signal(request.digest(), signals.shutdown, words, told)

    async def _signal(self, digest: str, say: Callable[..., Any], *words: Any) -> Answer:
        try:
            said = await self._as_caller(digest, say, *words)
        except signals.RunIsOver:
            return NOBODY
        except (DatabaseError, InterfaceError):
            return UNAVAILABLE
        return Answer(200, {"killed": True, "container": said}) if say is signals.shutdown else OK

    # --- the database ------------------------------------------------------------------------------------------

    async def _as_caller(self, digest: str, what: Callable[..., T], *args: Any) -> T:
        """What `what(attempt, *args)` gives, for the attempt with that secret. Raises Bad: there is none at work."""
        return await self._ask(_for_caller, digest, what, *args)

    async def _ask(self, what: Callable[..., T], /, *args: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _then_let_go, what, *args)


def _for_caller(digest: str, what: Callable[..., T], *args: Any) -> T:
    attempt = caller(digest)
    if attempt is None:
        raise Bad(NOBODY)
    return what(attempt, *args)


def _status_for(value: str) -> Answer:
    token = ApiToken.find(value) if value else None
    return locks.status(token.workspace_id) if token else UNAUTHORIZED


def _itself(attempt: Attempt) -> Attempt:
    return attempt


def _then_let_go(what: Callable[..., T], *args: Any) -> T:
    """A pooled connection is not kept by a thread, nor one that has failed."""
    try:
        return what(*args)
    except (DatabaseError, InterfaceError):
        connection.close()
        raise
    finally:
        release_connection()
