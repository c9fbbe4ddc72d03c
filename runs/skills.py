"""One of an agent's skills, as the version has it that the run began with. What the prompt says is in the spec."""

from __future__ import annotations

from agents.manifest import shared
from agents.models import AgentFile
from runs.models import Run

PLACE = "/workspace/skills"


def body(run: Run, name: str) -> str:
    """What its SKILL.md says, and which files lie beside it."""
    folder = f"{shared.SKILLS}/{name}/"
    files = AgentFile.objects.filter(version_id=run.version_id, path__startswith=folder)
    text = shared.body_of(bytes(files.get(path=f"{folder}SKILL.md").content)).strip()
    others = sorted(files.exclude(path=f"{folder}SKILL.md").values_list("path", flat=True))
    if not others:
        return text
    beside = "\n".join(f"- {PLACE}/{path.removeprefix(f'{shared.SKILLS}/')}" for path in others)
    return f"{text}\n\nFiles of this skill:\n{beside}"
