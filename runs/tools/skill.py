"""Open one of the agent's skills: its instructions come only when they are wanted."""

from __future__ import annotations

from pydantic import Field

from runs import skills
from runs.tools.base import Arguments, Desk, Result, Tool, ToolFailed


class SkillArguments(Arguments):
    name: str = Field(description="As <skills> has it.", min_length=1)


def act(arguments: SkillArguments, desk: Desk) -> Result:
    names = [skill.name for skill in desk.spec.skills]
    if arguments.name not in names:
        raise ToolFailed(f"there is no skill {arguments.name}: there are {', '.join(names) or 'none'}")
    return Result(skills.body(desk.run, arguments.name))


TOOL = Tool(
    name="skill",
    description="Read the instructions of one of your skills, before you do what it is for.",
    arguments=SkillArguments,
    act=act,
    in_sandbox=False,
)
