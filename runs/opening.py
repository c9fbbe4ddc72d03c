"""What the agent of a run is told first, of whatever kind it is: the prompt, with what this run has."""

from __future__ import annotations

from runs import agent_calls, prompt, secrets, setup_steps
from runs.step import Step
from runs.transcript import Body


def messages(step: Step) -> list[Body]:
    return prompt.build(
        setup_steps.with_injections(step),
        prompt.Trigger.of(step.run),
        given=secrets.described(step.spec),
        agents=agent_calls.described_to(step.run, step.spec),
    )


def text(step: Step) -> str:
    """The same for a program that is no model."""
    return "\n\n".join(part["text"] for body in messages(step) for part in body["parts"])
