"""`agentfleet new agent`: a folder to begin with, that applies as it is.

Templates are the files in agent_templates/: SKILL.md and config.toml of each, webhooks.toml where something may start
it, and for those that talk to GitHub a Dockerfile.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from agentfleet import folders
from agents.manifest import Faulty, parse, read_folder

TEMPLATES = Path(__file__).parent / "agent_templates"


@dataclass(frozen=True)
class Made:
    """Paths of what was written, and what the person should know."""

    written: tuple[Path, ...]
    notes: tuple[str, ...]


def make(project: Path, name: str, kind: str) -> Made:
    """Write an agent's folder below agents/, and the project's config.toml if it has none. `kind` names a template.

    Raises InTheWay if there is such an agent, and Faulty if with it the project could not be applied.
    """
    folder = project / "agents" / name
    if folder.exists():
        raise folders.InTheWay(f"{folder} is there already: choose another name")
    own_settings = project / "config.toml"
    files = {} if own_settings.exists() else {"config.toml": (TEMPLATES / "project.toml").read_bytes()}
    settings = tomllib.loads((files.get("config.toml") or own_settings.read_bytes()).decode())
    files |= {f"agents/{name}/{path}": text.encode() for path, text in _files(kind, settings).items()}
    _refuse_faults(project, files, name)
    folders.write(project, files)
    return Made(tuple(project / path for path in files), tuple(_notes(kind, settings)))


def _files(kind: str, settings: Mapping[str, Any]) -> dict[str, str]:
    texts = {path.name: path.read_text() for path in sorted((TEMPLATES / kind).iterdir())}
    webhooks, source = texts.pop("webhooks.toml", ""), _source(settings)
    config = Template(texts["config.toml"]).substitute(model=_model(settings)).lstrip()
    texts["config.toml"] = config + (Template(webhooks).substitute(source=source) if source else "")
    if webhooks:
        texts["Dockerfile"] = (TEMPLATES / "Dockerfile").read_text()
    return texts


def _model(settings: Mapping[str, Any]) -> str:
    """The line that says which model; none where the project has one for all."""
    names = list(settings.get("models", {}))
    return f'models = ["{names[0]}"]' if names and "model" not in settings else ""


def _source(settings: Mapping[str, Any]) -> str:
    """The project's first source of GitHub's webhooks; empty if it has none."""
    sources = settings.get("webhooks", {}).items()
    return next((name for name, table in sources if table.get("type") == "github"), "")


def _notes(kind: str, settings: Mapping[str, Any]) -> list[str]:
    if not (TEMPLATES / kind / "webhooks.toml").exists():
        return []
    missing = (
        [] if _source(settings) else ["config.toml has no [webhooks.<name>] of type github: it runs by its schedule"]
    )
    return [*missing, "say in its config.toml which `repos` it looks after"]


def _refuse_faults(project: Path, files: Mapping[str, bytes], name: str) -> None:
    """Only of the new folder: what else is wrong with the project was so before."""
    there = read_folder(project) if project.exists() else {}
    try:
        parse({**there, **files}, project=name)
    except Faulty as error:
        new = [fault for fault in error.faults if fault.file.startswith(f"agents/{name}")]
        if new:
            raise Faulty(new) from error
