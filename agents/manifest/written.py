"""A project folder as it is written: its settings files, and its agents in one shape for all three generations.

Nothing is judged here but what keeps a file from being read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar

from agents.manifest import keys, misfits
from agents.manifest.filters import FILTERS
from agents.manifest.lines import Lines, Place, Unreadable, below, nearest, read_toml, read_yaml
from agents.spec import Network

TEST_SCRIPT = "test-script.sh"
# Begins where the agent's files are, and the script where preflight and hooks do: HOME is /tmp.
RUN_SCRIPT = f'cd "$HOME" && exec sh "$OLDPWD/{TEST_SCRIPT}"'

_fence = re.compile(r"^---.*\n?", re.MULTILINE)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Fault:
    """Something wrong, or, among the warnings, worth a look. `str()` is "agents/dev/config.toml:12: sentence"."""

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.message}"


class Faulty(Exception):
    """The folder cannot be used as it is; `faults` are all that was found, in the order of file and line."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = in_order(faults)
        super().__init__("\n".join(map(str, self.faults)))


def in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(dict.fromkeys(faults), key=lambda fault: (fault.file, fault.line or 0, fault.message)))


def stays_home(name: str) -> bool:
    """Files and folders of this name are no part of a project. What images are made without is."""
    return (name.startswith(".") and name != ".dockerignore") or name in {"node_modules", "__pycache__"}


@dataclass(frozen=True)
class Document:
    file: str
    data: dict[str, Any]
    lines: Lines
    body: str = ""  # what follows the front matter

    def fault(self, place: Place, message: str) -> Fault:
        return Fault(self.file, nearest(self.lines, place), message)


def read_document(file: str, content: bytes) -> Document:
    """A settings file by its ending. Raises Faulty."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Faulty([Fault(file, line, "is not UTF-8 text")]) from error
    try:
        if file.endswith(".toml"):
            return Document(file, *read_toml(text))
        if file.endswith("SKILL.md"):
            return _front_matter(file, text)
    except Unreadable as error:
        kind = "TOML" if file.endswith(".toml") else "YAML"
        raise Faulty([Fault(file, error.line, f"cannot be read as {kind}: {error}")]) from error
    return Document(file, {}, {}, text)


def _front_matter(file: str, text: str) -> Document:
    """YAML between two lines that begin with ---, and the rest. Raises Unreadable."""
    trimmed = text.lstrip()
    if not trimmed.startswith("---"):
        return Document(file, {}, {}, text)
    first = text[: len(text) - len(trimmed)].count("\n") + 1
    _, _, rest = trimmed.partition("\n")
    end = _fence.search(rest)
    if end is None:
        raise Unreadable("the front matter opened with --- is never closed by another", first)
    data, lines = read_yaml(rest[: end.start()], first=first + 1)
    body = rest[end.end() :]
    return Document(file, data, lines, body) if isinstance(data, dict) else Document(file, {}, {}, body)


def attempt(read: Callable[[], Value], faults: list[Fault]) -> Value | None:
    try:
        return read()
    except Faulty as error:
        faults += error.faults
        return None


def _table(kind: type[misfits.AnyTable], document: Document) -> tuple[misfits.AnyTable, list[Fault]]:
    table, found = misfits.read(kind, document.data)
    found += misfits.misplaced(kind, document.data)
    return table, [document.fault(place, message) for place, message in found]


@dataclass(frozen=True)
class Project:
    document: Document
    table: keys.ProjectTable
    misfits: list[Fault]

    def names(self, key: str) -> list[str]:
        """What [key.<name>] tables there are, whether or not they are sound."""
        value = self.document.data.get(key)
        tables = value if isinstance(value, dict) else {}
        return sorted(name for name, table in tables.items() if isinstance(table, dict))

    def provider(self, source: str) -> str | None:
        """The type of a source; None if it has none that is known."""
        named = self.document.data["webhooks"][source].get("type")
        return named if isinstance(named, str) and named in FILTERS else None


@dataclass(frozen=True)
class Agent:
    """An agent's folder, in one shape for all three generations. Where something did not fit, `table` has a default."""

    folder: str
    files: Mapping[str, bytes]
    settings: Document
    table: keys.AgentTable
    about: keys.FrontMatter
    instructions: str
    misfits: list[Fault]

    @property
    def name(self) -> str:
        return PurePosixPath(self.folder).name

    def says(self, key: str) -> bool:
        return bool(self.settings.data.get(key))

    @property
    def has_schedule(self) -> bool:
        return self.says("schedule") or self.says("schedules")

    @property
    def is_ours(self) -> bool:
        """It uses a key the seed does not have, so its author knows our defaults."""
        return not keys.OUR_KEYS.isdisjoint(self.settings.data)

    @property
    def runs_script(self) -> bool:
        """A test-script.sh stands in the model's place, unless the settings say what kind of agent it is."""
        return TEST_SCRIPT in self.files and "kind" not in self.settings.data

    @property
    def kind(self) -> Literal["model", "command"]:
        return "command" if self.runs_script else self.table.kind

    @property
    def command(self) -> str | tuple[str, ...]:
        if self.runs_script:
            return RUN_SCRIPT
        return self.table.command if isinstance(self.table.command, str) else tuple(self.table.command)

    def scale(self, project: Project) -> int:
        return project.table.default_scale if self.table.scale is None else self.table.scale

    def network(self, project: Project) -> Network | None:
        """What the folder says, or our default for definitions of ours; None: an imported one that says nothing."""
        return self.table.network or project.table.network or ("gateway" if self.is_ours else None)


def read_project(files: Mapping[str, bytes]) -> Project:
    document = read_document("config.toml", files.get("config.toml", b""))
    return Project(document, *_table(keys.ProjectTable, document))


def agent_folders(files: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Direct children of agents/, and those of the top that older projects have there; with their files."""
    folders: dict[str, dict[str, bytes]] = {}
    for path, content in sorted(files.items()):
        depth = 2 if path.startswith("agents/") else 1
        parts = path.split("/")
        folder, inner = "/".join(parts[:depth]), "/".join(parts[depth:])
        if inner and not any(map(stays_home, parts[:depth])):
            folders.setdefault(folder, {})[inner] = content
    return {f: inner for f, inner in folders.items() if f.startswith("agents/") or "agent-config.toml" in inner}


def defining(files: Mapping[str, bytes]) -> list[str]:
    """The files that say what the agent is; none: it is no agent."""
    if "agent-config.toml" in files:
        texts = [name for name in ("ACTIONS.md", "PLAYBOOK.md") if name in files]
        return ["agent-config.toml", *texts[:1]]
    return [name for name in ("SKILL.md", "config.toml") if name in files]


def read_agent(folder: str, files: Mapping[str, bytes]) -> Agent | None:
    """None if nothing makes it an agent. Raises Faulty if a file that counts cannot be read."""
    faults: list[Fault] = []
    documents: dict[str, Document] = {}
    for name in defining(files):
        document = attempt(partial(read_document, f"{folder}/{name}", files[name]), faults)
        if document is not None:
            documents[name] = document
    if faults:
        raise Faulty(faults)
    return _agent(folder, files, documents=documents) if documents else None


def _agent(folder: str, files: Mapping[str, bytes], *, documents: Mapping[str, Document]) -> Agent:
    skill = documents.get("SKILL.md", Document(f"{folder}/SKILL.md", {}, {}))
    about, misfits = _table(keys.FrontMatter, skill)
    if "agent-config.toml" in documents:
        settings, *texts = documents.values()
        instructions = texts[0].body if texts else ""
    else:
        settings, instructions = _settings(skill, documents.get("config.toml")), skill.body
    table, more = _table(keys.AgentTable, settings)
    if "metadata" in skill.data and "config.toml" in documents:
        both = "the agent has settings here and in config.toml: move these there, or remove that file"
        misfits.append(skill.fault(("metadata",), both))
    return Agent(folder, files, settings, table, about, instructions, misfits + more)


def _settings(skill: Document, config: Document | None) -> Document:
    """Where the later generations keep the keys: under `metadata:` until 0.18.0, then in config.toml."""
    if "metadata" not in skill.data:
        return config or Document(skill.file, {}, {})
    metadata = skill.data["metadata"]
    given = metadata if isinstance(metadata, dict) else {}
    # In YAML `params:` with nothing after it is a null: as good as not written.
    written = {key: value for key, value in given.items() if value is not None}
    return Document(skill.file, written, below(skill.lines, "metadata"))
