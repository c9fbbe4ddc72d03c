"""Dockerfiles, as text, and how they come along with a folder: on whose base, with which files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from agents import dockerfiles, manifest
from runs import images

GOOD = "FROM al-agent:latest\nUSER root\nRUN echo x >/etc/y\nUSER node\n"

# --- as text -----------------------------------------------------------------------------------------

REWRITTEN = {
    "the seed's base": ("FROM al-agent:latest\nRUN x\n", "FROM BASE\nLABEL l\nRUN x\n"),
    "any of its tags": ("FROM al-agent:0.13.7\n", "FROM BASE\nLABEL l\n"),
    "any first image": ("FROM node:20-alpine\nRUN x\n", "FROM BASE\nLABEL l\nRUN x\n"),
    "small letters": ("from al-agent as one\nrun x\n", "FROM BASE AS one\nLABEL l\nrun x\n"),
    "a platform": ("FROM --platform=linux/amd64 al-agent\n", "FROM BASE\nLABEL l\n"),
    "an ARG before it": ("ARG V=1\nFROM node:${V}\nARG V\n", "ARG V=1\nFROM BASE\nLABEL l\nARG V\n"),
    "several lines": (
        "FROM \\\n  # which\n\n  al-agent:latest \\\n  AS a\nRUN x\n",
        "FROM BASE AS a\nLABEL l\nRUN x\n",
    ),
    "another escape": ("# escape=`\nFROM `\nal-agent\nRUN a\\\n", "# escape=`\nFROM BASE\nLABEL l\nRUN a\\\n"),
    "a RUN that speaks of FROM": (
        "FROM al-agent\nRUN echo \\\nFROM al-agent\n",
        "FROM BASE\nLABEL l\nRUN echo \\\nFROM al-agent\n",
    ),
    "a later stage of another image": (
        "FROM al-agent AS one\nFROM golang:1.22\nCOPY --from=one /a /b\n",
        "FROM BASE AS one\nLABEL l\nFROM golang:1.22\nLABEL l\nCOPY --from=one /a /b\n",
    ),
    "the seed's base in a later stage": (
        "FROM golang:1.22 AS made\nFROM al-agent\nCOPY --from=made /a /b\n",
        "FROM golang:1.22 AS made\nLABEL l\nFROM BASE\nLABEL l\nCOPY --from=made /a /b\n",
    ),
    "files of the seed's base": (
        "FROM node:20\nCOPY --from=al-agent:latest /app /app\n",
        "FROM BASE\nLABEL l\nCOPY --from=BASE /app /app\n",
    ),
    "a stage of the base's name": (
        "FROM node:20 AS al-agent\nFROM al-agent\n",
        "FROM BASE AS al-agent\nLABEL l\nFROM al-agent\nLABEL l\n",
    ),
}


@pytest.mark.parametrize(("given", "expected"), REWRITTEN.values(), ids=REWRITTEN)
def test_a_dockerfile_begins_with_the_base_that_is_here(given: str, expected: str) -> None:
    assert dockerfiles.rewritten(given, "BASE", after_from=["LABEL l"]) == expected


@pytest.mark.parametrize(
    ("text", "does"),
    [("", False), ("FROM al-agent\n", False), ("ARG A\n# RUN x\nFROM al-agent", False), ("FROM al-agent\nRUN x", True)],
)
def test_a_bare_from_is_no_image_of_its_own(text: str, does: bool) -> None:
    assert dockerfiles.does_something(text) is does


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("FROM a\nRUN x\n", False),
        ("FROM a\nCOPY x /x\n", True),
        ("FROM a\nadd x /x\n", True),
        ("FROM a AS b\nFROM a\nCOPY --from=b /x /x\n", False),
    ],
)
def test_only_copying_takes_files_of_the_folder(text: str, takes: bool) -> None:
    assert dockerfiles.takes_files(text) is takes


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("RUN x\n", 1, "no FROM"),
        ("# a\nRUN x\nFROM al-agent\n", 2, "before FROM"),
        ("FROM al-agent\nRUN <<EOF\nx\nEOF\n", 2, "BuildKit"),
        ("FROM al-agent\nRUN --mount=type=cache,target=/c \\\n x\n", 2, "BuildKit"),
    ],
)
def test_what_the_builder_would_stumble_over_is_told_with_its_line(text: str, line: int, word: str) -> None:
    (found,) = dockerfiles.problems(text)
    assert (found[0], word in found[1]) == (line, True)


IGNORED = ["*.log", "docs", "!docs/keep.md", "build/**", "**/secret.*", "/top", "# a note", "Dockerfile"]


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("a.log", False), ("in/a.log", True), ("docs/a.md", False), ("docs/keep.md", True), ("build/a/b", False),
        ("build", True), ("x/y/secret.key", False), ("secret.key", False), ("top", False), ("in/top", True),
        ("Dockerfile", True), ("a.txt", True),
    ],
)  # fmt: skip
def test_a_dockerignore_keeps_files_out_of_the_build(path: str, kept: bool) -> None:
    files = {".dockerignore": "\n".join(IGNORED).encode(), path: b"x"}
    assert (path in dockerfiles.not_ignored(files)) is kept


# --- from the folder ----------------------------------------------------------------------------------------------


def parsed(files: Mapping[str, str]) -> manifest.Reading:
    base = {
        "config.toml": '[models.m]\nprovider = "scripted"\nmodel = "s.yaml"\n',
        "agents/dev/SKILL.md": "Do it.\n",
        "agents/dev/config.toml": 'models = ["m"]\nnetwork = "none"\n',
        **files,
    }
    return manifest.parse({path: text.encode() for path, text in base.items()}, project="shop")


def test_a_projects_dockerfile_travels_with_each_of_its_agents() -> None:
    copying = "FROM al-agent\nCOPY shared/tool /usr/bin/\n"
    given = parsed({"Dockerfile": copying, "shared/tool": "#!/bin/sh\n"}).project.files["dev"]
    assert given[".project/Dockerfile"] == copying.encode()
    assert given[".project/shared/tool"] == b"#!/bin/sh\n"
    assert not [path for path in given if path.startswith((".project/agents/", ".project/config"))]


def test_a_projects_dockerfile_that_takes_no_files_travels_alone() -> None:
    given = parsed({"Dockerfile": "FROM al-agent\nRUN x\n", "notes.txt": "x"}).project.files["dev"]
    assert [path for path in given if path.startswith(".project/")] == [".project/Dockerfile"]


def test_a_projects_bare_from_changes_no_agent() -> None:
    assert parsed({"Dockerfile": "FROM al-agent\n"}).project.files == parsed({}).project.files


def test_nobody_sends_files_into_the_projects_place() -> None:
    given = parsed({"agents/dev/.project/Dockerfile": GOOD}).project.files["dev"]
    assert not [path for path in given if path.startswith(".project/")]


def test_a_dockerfile_that_cannot_be_built_is_a_warning_with_its_place() -> None:
    (warning,) = parsed({"agents/dev/Dockerfile": "FROM al-agent\nRUN <<EOF\nx\nEOF\n"}).warnings
    assert (warning.file, warning.line) == ("agents/dev/Dockerfile", 2)


def test_a_dockerignore_belongs_to_the_project(tmp_path: Path) -> None:
    for name in (".dockerignore", ".env", "Dockerfile"):
        (tmp_path / name).write_text("x")
    assert set(manifest.read_folder(tmp_path)) == {".dockerignore", "Dockerfile"}


# --- written for Alpine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "installed"),
    [
        (["add", "--no-cache", "github-cli"], "gh"),
        (
            ["add", "-t", ".deps", "build-base", "jq=1.7-r0", "curl@edge", "git>2"],
            "build-essential jq curl git",
        ),
        (["--update", "add", "py3-pip", "gcompat"], "python3-pip"),
    ],
)
def test_apk_add_installs_by_debians_names(words: list[str], installed: str, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$*" >>{asked}\n')
    (tmp_path / "dpkg-query").write_text("#!/bin/sh\nexit 1\n")  # nothing is installed, whatever this machine has
    for program in ("apt-get", "dpkg-query"):
        (tmp_path / program).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", str(images.APK), *words], env={**os.environ, "PATH": path}, check=True)
    (line,) = [line for line in asked.read_text().splitlines() if " install " in line]
    assert line.endswith(f" install -y --no-install-recommends {installed}")
