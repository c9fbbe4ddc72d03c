"""`agentfleet doctor --project`: everything that is wrong with a folder, and what its agents would lack here.

Reads and never mends. What the folder says is looked at without a server; credentials, model keys and images are those
of this home and this host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from agentfleet import bootstrap
from agentfleet.doctor import networks
from agentfleet.doctor.database import has_key
from agentfleet.doctor.engine import the_engine
from agentfleet.doctor.findings import Check, Wrong
from agents.manifest import Fault, Faulty, left_behind, parse, read_folder
from agents.spec import AgentSpec, ProjectSpec

ROWS = "agents.credentials.rows.RowStore"


def examine(folder: Path, home: Path) -> list[Check]:
    """The folder's faults, one by one; without any, its warnings and what is missing here."""
    name = folder.absolute().name
    try:
        reading = parse(read_folder(folder), project=name)
    except Faulty as error:
        return [Check("folder", False, str(fault)) for fault in error.faults]
    agents = ", ".join(spec.name for spec in reading.project.agents)
    return [
        Check("folder", True, f"{folder}: {agents}"),
        *(warning(told) for told in (*left_behind(folder), *reading.warnings)),
        *missing(reading.project, home),
    ]


def warning(told: Fault) -> Check:
    return Check("warning", True, str(told))


def missing(project: ProjectSpec, home: Path) -> Iterator[Check]:
    """A line for each thing that an agent needs and this machine does not have."""
    bootstrap.set_up_django()
    forget_rows_of_no_database(home)
    looks = (
        ("credentials", credentials_of),
        ("model keys", keys_of),
        ("images", images_of),
        ("networks", networks_of),
        ("polls", polls_of),
    )
    for name, look in looks:
        found = faults_of(name, look(project))
        yield from found or [Check(name, True, "all there")]


def faults_of(name: str, sentences: Iterator[str]) -> list[Check]:
    """A fault of ours is a sentence as well."""
    try:
        return [Check(name, False, sentence) for sentence in sentences]
    except Wrong as wrong:
        return [Check(name, False, str(wrong))]
    except Exception as error:  # noqa: BLE001 - as doctor.one
        return [Check(name, False, f"could not be looked at: {type(error).__name__}: {error}")]


def forget_rows_of_no_database(home: Path) -> None:
    """To ask a database that is not there would make one."""
    from django.conf import settings  # noqa: PLC0415 - here and below: only with a folder that can be read

    if not os.environ.get("DATABASE_URL") and not (home / "agentfleet.sqlite3").exists():
        settings.CREDENTIAL_STORES = [path for path in settings.CREDENTIAL_STORES if path != ROWS]


def credentials_of(project: ProjectSpec) -> Iterator[str]:
    from agents.models import Workspace  # noqa: PLC0415
    from webhooks import credentials  # noqa: PLC0415

    for fault in credentials.warnings(Workspace(name="default"), project):
        yield fault.message


def keys_of(project: ProjectSpec) -> Iterator[str]:
    for spec in working(project.agents):
        providers = list(dict.fromkeys(model.provider for model in spec.models))
        if providers and not any(map(has_key, providers)):
            mend = f"add one with `agentfleet creds add {providers[0]}_key`"
            yield f"{spec.name} cannot run without a key for {' or '.join(providers)}: {mend}"


def images_of(project: ProjectSpec) -> Iterator[str]:
    """Those that are named; what a Dockerfile makes is made when it is applied."""
    wanted = {spec.image for spec in working(project.agents) if spec.image}
    if not wanted:
        return
    with the_engine() as engine:
        for image in sorted(wanted):
            if engine.has_image(image) is None and not is_seeds(image):
                users = ", ".join(spec.name for spec in project.agents if spec.image == image)
                yield f"{users}: there is no image {image} on this host: build it or pull it"


def networks_of(project: ProjectSpec) -> Iterator[str]:
    return networks.faults_of(networks.wanted_by(working(project.agents)))


def polls_of(project: ProjectSpec) -> Iterator[str]:
    from webhooks.polls import rows  # noqa: PLC0415

    return rows.refused_here(project)


def is_seeds(image: str) -> bool:
    """The seed's name for its own base stands for ours."""
    from agents import dockerfiles  # noqa: PLC0415

    return bool(dockerfiles.SEEDS.fullmatch(image))


def working(agents: Iterable[AgentSpec]) -> Iterator[AgentSpec]:
    return (spec for spec in agents if spec.scale > 0)
