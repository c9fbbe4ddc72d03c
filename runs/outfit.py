"""What the sandbox of an attempt is given: its image and limits, its files, its environment and its secrets."""

from __future__ import annotations

from django.conf import settings

from agents.spec import AgentSpec
from runs import agent_files, attempt_keys, payloads
from runs.models import Attempt, Run
from runs.sandbox.base import Spec
from runs.secrets import NOTHING, Given


def spec_of(run: Run, attempt: Attempt, spec: AgentSpec, image: str, given: Given = NOTHING) -> Spec:
    return Spec(
        name=attempt.sandbox_name,
        image=image,
        network=spec.network,
        env=environment(run, spec),
        labels={"agentfleet.run": run.pk, "agentfleet.attempt": str(attempt.number)},
        files={**agent_files.files(run, spec), **payloads.files(run)},  # what happened wins
        secret_files=given.files,
        secret_env={**given.env, **gateway_access(attempt, spec)},
        memory=spec.memory,
        cpus=spec.cpus,
    )


def environment(run: Run, spec: AgentSpec) -> dict[str, str]:
    """Nothing secret: anybody who may ask the engine sees it."""
    gateway = {"GATEWAY_URL": f"http://gateway:{settings.GATEWAY_PORT}"} if spec.reaches_gateway else {}
    return {"AGENTFLEET_RUN": run.pk, "AGENTFLEET_AGENT": run.agent.name, **gateway}


def gateway_access(attempt: Attempt, spec: AgentSpec) -> dict[str, str]:
    if not spec.reaches_gateway:
        return {}
    return {"SHUTDOWN_SECRET": attempt_keys.secret(attempt.run_id, attempt.number)}
