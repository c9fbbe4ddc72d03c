"""What connects the sandboxes of agents: whether a network and its host filter can be had here, tried for real."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from agentfleet import bootstrap
from agentfleet.doctor.engine import the_engine
from agentfleet.doctor.findings import SHOWN, Place, Wrong

if TYPE_CHECKING:
    from agents.spec import AgentSpec


def look_at_networks(place: Place) -> str:
    if not os.environ.get("DATABASE_URL") and not (place.home / "agentfleet.sqlite3").exists():
        return "no agent needs one yet"
    bootstrap.set_up_django()
    from agents.models import Agent  # noqa: PLC0415 - as in the other checks

    rows = Agent.objects.filter(active=True, scale__gt=0, version__isnull=False).select_related("version")
    wanted = wanted_by(row.spec for row in rows)
    if faults := list(faults_of(wanted)):
        raise Wrong("; ".join(faults))
    return f"{', '.join(wanted)}: can be had" if wanted else "no agent needs one yet"


def wanted_by(specs: Iterable[AgentSpec]) -> dict[str, list[str]]:
    """Network policy to the names of the agents whose sandboxes stand on one."""
    from runs import tools  # noqa: PLC0415

    wanted: dict[str, list[str]] = defaultdict(list)
    for spec in specs:
        if spec.network != "none" and tools.may_use_sandbox(spec):
            wanted[spec.network].append(spec.name)
    return dict(sorted(wanted.items()))


def faults_of(wanted: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A sentence for each policy that cannot be carried out here; it says what to do."""
    if not wanted:
        return
    from runs.sandbox.base import EngineDown, SandboxError  # noqa: PLC0415

    with the_engine() as engine:
        for policy, names in wanted.items():
            users = ", ".join(names[:SHOWN])
            try:
                engine.try_network(policy)
            except EngineDown as error:
                raise Wrong(f"{error}: start the engine, or set DOCKER_HOST") from error
            except SandboxError as error:
                yield f'{users} cannot run with network = "{policy}": {error}'
