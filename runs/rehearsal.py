"""What a run would be told that nobody starts: as `runs.opening`, and with neither a sandbox nor a worker."""

from __future__ import annotations

from pydantic import ValidationError

from agents.credentials import CredentialError
from agents.models import Agent
from runs import agent_calls, prompt, secrets
from runs.models import Run


class Unfit(Exception):
    """A run of this agent would be told nothing; the message says why."""


def told(agent: Agent, trigger: prompt.Trigger) -> str:
    """The prompt. Commands in the instructions stand there as they are written. Raises Unfit."""
    try:
        spec = agent.spec
        given = secrets.described(spec)
    except ValidationError as error:
        raise Unfit("its stored definition cannot be read: apply it again") from error
    except (CredentialError, secrets.Unusable) as error:
        raise Unfit(str(error)) from error
    nobody = Run(agent=agent, workspace_id=agent.workspace_id)
    bodies = prompt.build(spec, trigger, given=given, agents=agent_calls.described_to(nobody, spec))
    return "\n\n".join(part["text"] for body in bodies for part in body["parts"])
