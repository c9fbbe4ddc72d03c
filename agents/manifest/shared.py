"""What a project gives to each of its agents: `shared/` and the skills in `skills/<name>/`. The agent's own wins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from agents import storable
from agents.manifest.misfits import a_kind_of
from agents.manifest.written import Document, Fault, agent_folders, attempt, read_document
from agents.spec import SkillSpec

SHARED, SKILLS = "shared", "skills"
LONGEST_NAME, LONGEST_DESCRIPTION = 64, 1024  # characters
NAME_RULE = f"use lower-case letters, digits and dashes, at most {LONGEST_NAME}, first and last no dash"

_name = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def files_for(own: Mapping[str, bytes], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """An agent's files, with the project's shared ones and skills below them. A skill is taken whole or not at all."""
    owned = {skill_of(path) for path in own}
    return {path: files[path] for path in _given(files) if skill_of(path) not in owned or not skill_of(path)} | {**own}


def skills(files: Mapping[str, bytes]) -> tuple[SkillSpec, ...]:
    """Those of an agent with these files, by name. Without faults, or what is at fault is left out."""
    found = (_skill(document, []) for document in _documents(files, "", []))
    return tuple(sorted((skill for skill in found if skill), key=lambda skill: skill.name))


def faults(files: Mapping[str, bytes]) -> list[Fault]:
    """Of the project's skills and of those of its agents, each told once, where it stands."""
    found: list[Fault] = []
    owners = {f"{folder}/": inner for folder, inner in agent_folders(files).items()}
    project = {path: files[path] for path in _given(files)}
    for place, inner in ({"": project} | owners).items():
        for document in _documents(inner, place, found):
            _skill(document, found)
        found += _unskilled(inner, place)
    return found


def _unskilled(files: Mapping[str, bytes], place: str) -> Iterator[Fault]:
    for name in sorted({skill_of(path) for path in files} - {""}):
        if f"{SKILLS}/{name}/SKILL.md" not in files:
            yield Fault(f"{place}{SKILLS}/{name}", None, "holds no SKILL.md, so it is no skill")


def skill_of(path: str) -> str:
    """The skill that a file belongs to; empty if to none."""
    parts = path.split("/")
    return parts[1] if parts[0] == SKILLS and len(parts) > 2 else ""


def body_of(skill: bytes) -> str:
    """What a SKILL.md says below its front matter. Raises Faulty."""
    return read_document(f"{SKILLS}/SKILL.md", skill).body


def _given(files: Iterable[str]) -> Iterator[str]:
    """An old project may have an agent of that name at its top."""
    taken = set(agent_folders(dict.fromkeys(files, b"")))
    for path in files:
        top = path.split("/")[0]
        if ((top == SHARED and "/" in path) or skill_of(path)) and top not in taken:
            yield path


def _documents(files: Mapping[str, bytes], place: str, found: list[Fault]) -> Iterator[Document]:
    for name in sorted({skill_of(path) for path in files} - {""}):
        path = f"{SKILLS}/{name}/SKILL.md"
        if path in files:
            document = attempt(partial(read_document, place + path, files[path]), found)
            if document is not None:
                yield document


def _skill(document: Document, found: list[Fault]) -> SkillSpec | None:
    """None if it cannot be used, and then `found` has more than before."""
    folder = document.file.split("/")[-2]
    problems = list(_problems(document, folder))
    found += problems
    if problems:
        return None
    return SkillSpec(name=folder, description=storable.text(" ".join(document.data["description"].split())))


def _problems(document: Document, folder: str) -> Iterator[Fault]:
    name, description = document.data.get("name"), document.data.get("description")
    if not document.data:
        yield Fault(document.file, 1, "needs front matter with name and description: agents choose the skill by them")
        return
    if not _name.fullmatch(folder) or len(folder) > LONGEST_NAME:
        yield Fault(document.file, None, f"{folder} cannot name a skill: {NAME_RULE}")
    elif name != folder:
        yield document.fault(("name",), f"name must be {folder}, as its folder is called{_not(name)}")
    if not isinstance(description, str) or not description.strip():
        yield document.fault(("description",), "description must say in a sentence what the skill is for")
    elif len(description) > LONGEST_DESCRIPTION:
        yield document.fault(("description",), f"description must have at most {LONGEST_DESCRIPTION} characters")


def _not(name: object) -> str:
    return "" if name is None else f", not {name if isinstance(name, str) else a_kind_of(name)}"
