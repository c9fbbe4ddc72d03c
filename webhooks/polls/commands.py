"""Polls by a command: in a sandbox of the agent's own making, which exists for one look and belongs to no run."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from agents import clock
from agents.models import Agent, AgentVersion
from agents.redaction import Redactor
from agents.spec import AgentSpec, PollSpec
from runs import images, secrets
from runs.sandbox.base import Command, Ending, Engine, Outcome, Sandbox, SandboxError, Spec
from webhooks.models import Poll
from webhooks.polls.items import LookFailed, Seen, read

TIMEOUT = 60  # seconds
LARGEST = 1024 * 1024  # bytes of output
TOO_MUCH = f"the command printed more than {LARGEST:,} bytes"
COMPLAINT = 300  # characters of what a command said when it failed
NAME = "agentfleet-poll-"

# Only what it prints on its standard output is the answer; the rest is told where it fails.
LAUNCH = """\
complaint=$(mktemp) || exit
sh -c "$1" 2>"$complaint"
code=$?
[ "$code" = 0 ] || tail -c 1000 "$complaint"
exit "$code"
"""


def look(poll: Poll, spec: PollSpec, engine: Engine, *, host_id: str, until: datetime) -> Seen:
    """Raises LookFailed."""
    version = poll.agent.version
    assert version is not None, "an agent gets its version when it is made"
    name = f"{NAME}{poll.pk}-{int(until.timestamp())}"
    try:
        given = secrets.resolve(version.read(), poll.agent.workspace.name)
        image = images.ready(engine, host_id, version)
        output = asked(engine, box_of(name, poll.agent, version, image, given), spec.command)
    except (SandboxError, secrets.Unusable, images.ImageBuilding) as error:
        raise LookFailed(str(error)) from error
    redactor = secrets.redactor(given.secrets)
    return Seen(items=read(spec, printed(*output, redactor), redactor=redactor))


def box_of(name: str, agent: Agent, version: AgentVersion, image: str, given: secrets.Given) -> Spec:
    """As a run's, but for the gateway, which speaks to runs alone."""
    spec: AgentSpec = version.read()
    return Spec(
        name=name,
        image=image,
        network=spec.network,
        env={"AGENTFLEET_AGENT": agent.name},
        labels={"agentfleet.poll": name.removeprefix(NAME)},
        secret_files=given.files,
        secret_env=given.env,
        memory=spec.memory,
        cpus=spec.cpus,
    )


def asked(engine: Engine, spec: Spec, command: str) -> tuple[bytes, Outcome]:
    """What it printed, and how it ended. Raises LookFailed, SandboxError."""
    try:
        return followed(engine, engine.start(spec), command)
    finally:
        engine.remove(spec.name)
        engine.remove_workspace(spec.name)


def followed(engine: Engine, sandbox: Sandbox, command: str) -> tuple[bytes, Outcome]:
    argv = ["sh", "-c", LAUNCH, "poll", command]
    call = Command(call_id="poll", argv=argv, timeout=TIMEOUT, output_limit=LARGEST)
    following = engine.exec(sandbox, call)
    output, end = bytearray(), time.monotonic() + TIMEOUT + 10
    try:
        while (piece := following.read(1.0)) is not None:
            output += piece
            if len(output) > LARGEST:  # the sandbox looks now and then, and ends only what goes on printing
                raise LookFailed(TOO_MUCH)
            if time.monotonic() > end:
                raise SandboxError("the engine does not say how the command has ended")
        return bytes(output), following.outcome()
    finally:
        following.close()


def printed(output: bytes, outcome: Outcome, redactor: Redactor) -> bytes:
    """What a command that went well has printed. Raises LookFailed."""
    match outcome.ending:
        case Ending.EXITED if outcome.exit_code == 0:
            return output
        case Ending.TIMEOUT:
            raise LookFailed(f"the command was not done within {TIMEOUT} seconds")
        case Ending.OUTPUT_LIMIT:
            raise LookFailed(TOO_MUCH)
        case Ending.LOST:
            raise LookFailed("the sandbox of the command was lost")
    complaint = redactor.text(output.decode(errors="replace")).strip()[-COMPLAINT:]
    raise LookFailed(f"the command ended with exit code {outcome.exit_code}{f': {complaint}' if complaint else ''}")


def is_looked_from(sandbox: str) -> bool:
    """Whether a sandbox of that name may be a poll's that still looks: later it is what a lost process has left."""
    if not sandbox.startswith(NAME):
        return False
    until = sandbox.rpartition("-")[2]
    return until.isdecimal() and datetime.fromtimestamp(int(until), UTC) > clock.now()
