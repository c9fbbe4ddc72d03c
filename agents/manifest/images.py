"""What the images of a project's agents are made from, and what an engine will not take of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agents import dockerfiles
from agents.manifest.written import Fault, agent_folders


def with_project(own: Mapping[str, bytes], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """An agent's files, and in a place of its own what its project's image is made from, if there is one to make."""
    mine = {path: content for path, content in own.items() if not path.startswith(dockerfiles.OF_PROJECT)}
    return mine | {f"{dockerfiles.OF_PROJECT}{path}": content for path, content in _of_project(files).items()}


def _of_project(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The Dockerfile alone, where it takes no file; so that a change of others is none of the agents."""
    text = _text(files.get(dockerfiles.NAME, b""))
    if not dockerfiles.does_something(text):
        return {}
    if not dockerfiles.takes_files(text):
        return {dockerfiles.NAME: files[dockerfiles.NAME]}
    folders = tuple(f"{folder}/" for folder in agent_folders(files))
    inside = {path: content for path, content in files.items() if not path.startswith(("agents/", *folders))}
    inside.pop("config.toml", None)  # a setting of the project makes no other image
    return inside


def warnings(files: Mapping[str, bytes]) -> Iterator[Fault]:
    """What keeps an image from being built; the agents of the others run all the same."""
    places = [dockerfiles.NAME, *(f"{folder}/{dockerfiles.NAME}" for folder in agent_folders(files))]
    for place in places:
        for line, problem in dockerfiles.problems(_text(files[place])) if place in files else ():
            yield Fault(place, line, problem)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
