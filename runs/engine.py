"""The loop a stranger can recite: ask the model, run the tools it asks for, tell it what came of them, ask again.

    advance(step):  no messages          → the prompt
                    the model's turn     → ask it            → its message, and a row for every tool call
                    tool calls pending   → run them in order → their results
                    an answer, no calls  → finished, unless somebody has said something more

Each call of `advance` does one of these, stores it, and lets go; the doorbell brings the next. What is stored is
the whole state, so any process may be killed between any two lines here and another goes on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from django.db import transaction
from django.db.models import F

from agents import storable
from agents.spec import ModelSpec
from runs import command_agent, inbox, limits, llm, opening, prompt, setup_steps, slots, tools, transcript
from runs.calls import outcome, turn
from runs.db import release_connection
from runs.events import New
from runs.llm import prices
from runs.models import Run, RunInput, SandboxState, ToolCall
from runs.sandbox.base import EngineDown, Sandbox
from runs.step import Step
from runs.tools.base import Tool
from runs.transcript import Body, Part

GO_ON = "Your answer was cut off at the output limit. Go on from where it ends."


def advance(step: Step) -> None:
    """Do one thing. Raises what ends a step early: Halted, LeaseLost, limits.Over, ModelError, SandboxError…"""
    if slots.goes_on_without(step.run, step.attempt):
        step.stand_in_line()
        return
    if step.spec.kind == "command":
        command_agent.advance(step)
        return
    step.halt.check()
    messages = transcript.load(step.attempt)
    waiting = inbox.pending(step.run.pk)
    step.halt.heard = inbox.newest_interrupt(waiting)
    if not messages:
        begin(step, waiting)
    elif messages[-1]["role"] == "assistant":
        act_on(step, messages, interrupted=step.halt.heard > 0)
    else:
        take_turn(step, messages, waiting, stored=len(messages))


def begin(step: Step, waiting: Sequence[RunInput]) -> None:
    """What the agent wants done in the sandbox first, and then its first turn."""
    step.check_credentials()
    earlier = earlier_messages(step.run.resumed_from)
    if setup_steps.wanted_before(step.spec):
        llm.choose(step.spec.models)  # nothing is prepared for a run without a model
    if setup_steps.before(step, inject=not earlier):
        take_turn(step, beginning(step, earlier), waiting, stored=0)


def beginning(step: Step, earlier: Sequence[Body]) -> list[Body]:
    """What the attempt begins with: the prompt, or all of the run that this one goes on from, and the new input."""
    messages = [*earlier, prompt.resumed(step.run.input)] if earlier else opening.messages(step)
    retold = inbox.retold(step.run.pk) if step.attempt.number > 1 else []
    return [*messages, inbox.as_message(retold)] if retold else messages


def earlier_messages(run: Run | None) -> list[Body]:
    """The transcript of the run's last attempt; of the one before it, if it never spoke to a model. Raises Corrupt."""
    while run is not None:
        attempt = run.attempts.order_by("-number").first()
        messages = transcript.load(attempt) if attempt else []
        if attempt and messages:
            return outcome.answered(attempt, messages)
        run = run.resumed_from
    return []


def act_on(step: Step, messages: Sequence[Body], *, interrupted: bool) -> None:
    """The model has spoken and nobody has acted on it yet."""
    answer = messages[-1]
    if wanted := transcript.tool_calls(answer):
        turn.run_tools(step, len(wanted), position=len(messages) - 1, interrupted=interrupted)
    elif was_cut(answer):
        with step.write(release=True):
            body: Body = {"role": "user", "parts": [{"type": "text", "text": GO_ON}]}
            transcript.append(step.attempt, len(messages), body, redactor=step.redactor)
    elif heard_or_hooked(step, position=len(messages) - 1):
        with step.write(progress=False):
            finish_or_hear(step, answer, position=len(messages))


def heard_or_hooked(step: Step, *, position: int) -> bool:
    """Whether the answer at `position` may end the run: hooks.post come first, behind the last answer of all."""
    return bool(inbox.after_answer(inbox.pending(step.run.pk))) or setup_steps.after(step, position)


def finish_or_hear(step: Step, answer: Body, *, position: int, release: bool = True) -> None:
    """The run ends with this answer, unless an input waits: that is entry `position` then.

    Inside a transaction that has written to the run's row: an input that is not here now comes after the end.
    """
    given = inbox.after_answer(inbox.pending(step.run.pk))
    if not given:
        step.conclude(transcript.text(answer))
        return
    with step.write(*inbox.delivered(given), release=release):
        hear(step, given, position=position)


def hear(step: Step, given: Sequence[RunInput], *, position: int) -> None:
    transcript.append(step.attempt, position, inbox.as_message(given), redactor=step.redactor)
    inbox.deliver(given)


# --- the model's turn -------------------------------------------------------------------------------------------


def take_turn(step: Step, messages: Sequence[Body], waiting: Sequence[RunInput], *, stored: int) -> None:
    """Ask the model, and on the first turn start the sandbox beside it. `messages[stored:]` are new.

    Of the inputs that wait, those that are for now are said to it first.
    """
    given = inbox.before_request(waiting)
    model = llm.choose(step.spec.models)
    limits.check_model_request(step.run, step.spec, priced=prices.of_input(model, 0) is not None)
    offered = tools.of(step.spec)
    image = step.prepare_sandbox() if wants_sandbox_now(step, offered) else None
    if stored == 0 and wants_sandbox_later(step, offered):
        check_image(step)
    new, messages = messages[stored:], [*messages, *([inbox.as_message(given)] if given else [])]
    step.estimate = transcript.estimated_tokens(messages)
    started = [New("sandbox.start", {"image": image})] if image else []
    with step.write(
        *lost_request(step),
        *started,
        *inbox.delivered(given),
        New("model.start", {"model": f"{model.provider}:{model.model}", "turn": step.run.turns + 1}),
        progress=False,
        open_request_tokens=step.estimate,
        open_request_cost=prices.of_input(model, step.estimate),
        **count_lost_request(step),
    ):
        for position, body in enumerate(new, stored):
            transcript.append(step.attempt, position, body, redactor=step.redactor)
        if given:
            hear(step, given, position=len(messages) - 1)
        if image:
            step.sandbox_is_starting(image)
    asked = llm.submit(
        llm.Request(
            model=model,
            messages=messages,
            tools=[tool.schema for tool in offered],
            read_file=step.read_file,
            progressed=step.progressed,
        )
    )
    box = step.start_sandbox(image) if image else None
    try:
        answer = await_answer(step, asked, box)
        starting = step.attempt.sandbox_state == SandboxState.STARTING
        store_answer(step, answer, model, position=len(messages), last=not starting)
        if not step.released and box is not None:
            step.note_sandbox(box, release=True)
    finally:
        asked.cancel()


def wants_sandbox_now(step: Step, offered: Sequence[Tool]) -> bool:
    """Start it side by side with the request, unless it runs, is not used, or is wanted lazily."""
    needed = step.spec.sandbox == "eager" and any(tool.in_sandbox for tool in offered)
    return needed and step.attempt.sandbox_state in {SandboxState.NONE, SandboxState.STARTING}


def wants_sandbox_later(step: Step, offered: Sequence[Tool]) -> bool:
    return step.spec.sandbox == "lazy" and any(tool.in_sandbox for tool in offered)


def check_image(step: Step) -> None:
    """Nothing is spent on a run whose image cannot be had, or is yet to be built."""
    with contextlib.suppress(EngineDown):  # it may answer by the time that a sandbox is wanted
        step.prepare_sandbox()


def await_answer(step: Step, asked: Future[Body], box: Future[Sandbox] | None) -> Body:
    """The model's message, with the sandbox noted in the meantime if it was quicker."""
    release_connection()
    waiting_for = [asked] if box is None else [asked, box]
    while not asked.done():
        step.halt.wait_first(*waiting_for)
        if box is not None and box.done() and not asked.done():
            step.note_sandbox(box)
            release_connection()
            waiting_for, box = [asked], None
    return asked.result()


def store_answer(step: Step, answer: Body, model: ModelSpec, *, position: int, last: bool) -> None:
    """The message, the planned calls and what they cost, in one transaction; the end of the run if it is one."""
    usage = answer.get("usage") or {"input": 0, "output": 0, "cache_read": 0, "cache_write": 0}
    wanted = transcript.tool_calls(answer)
    cost = prices.cost(model, usage)
    turn = New(
        "model.turn",
        {
            "position": position,
            "model": answer.get("model", ""),
            "text": transcript.text(answer),
            "toolCalls": [{"name": call["name"], "callId": f"{position}-{n}"} for n, call in enumerate(wanted)],
            "usage": usage,
            "costUsd": None if cost is None else str(cost),
        },
    )
    lost = answer.get("lost_requests", 0)
    spent = limits.unanswered(lost)
    spent |= {
        "turns": F("turns") + 1,
        "input_tokens": spent["input_tokens"] + usage["input"],
        "output_tokens": F("output_tokens") + usage["output"],
        "cache_read_tokens": F("cache_read_tokens") + usage["cache_read"],
        "cache_write_tokens": F("cache_write_tokens") + usage["cache_write"],
        "cost": spent["cost"] + (cost or 0),
    }
    over = not wanted and not was_cut(answer) and not step.spec.hooks_post
    with transaction.atomic():
        with step.write(*step.lost_requests(lost), turn, release=last and not over, **spent):
            transcript.append(step.attempt, position, answer, redactor=step.redactor)
            ToolCall.objects.bulk_create(
                planned(step, call, position=position, index=index) for index, call in enumerate(wanted)
            )
        if over:
            finish_or_hear(step, answer, position=position + 1, release=last)


def planned(step: Step, call: Part, *, position: int, index: int) -> ToolCall:
    return ToolCall(
        attempt=step.attempt,
        call_id=f"{position}-{index}",
        model_call_id=storable.text(call["id"]),
        position=position,
        index=index,
        name=storable.text(call["name"])[:200],
        arguments=step.redactor.json(written_out(call["arguments"])),
    )


def written_out(arguments: Any) -> Any:
    """Arguments that no database holds become the text of their JSON: no tool takes that, so the model is told."""
    return arguments if storable.json(arguments) == arguments else json.dumps(arguments)


def was_cut(answer: Body) -> bool:
    """The provider stopped it at its output limit: it is a part of an answer, not an answer."""
    return answer.get("stop") in {"length", "max_tokens"} and not transcript.tool_calls(answer)


def lost_request(step: Step) -> list[New]:
    """A request was sent and its answer never stored: counted as spent, estimated, and said so."""
    lost = step.run.open_request_tokens
    return [New("model.lost", {"estimatedTokens": lost})] if lost else []


def count_lost_request(step: Step) -> dict[str, Any]:
    lost = step.run.open_request_tokens
    if not lost:
        return {}
    return {
        "input_tokens": F("input_tokens") + lost,
        "estimated_tokens": F("estimated_tokens") + lost,
        "cost": F("cost") + (step.run.open_request_cost or 0),
    }
