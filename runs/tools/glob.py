"""Find files by name."""

from __future__ import annotations

import json
import posixpath
import re

from pydantic import Field

from agents.patterns import split
from runs.tools import files, patterns
from runs.tools.base import Arguments, Hands, Result, Tool, shorten

MOST = 1000  # paths shown

# `$2` is the folder the pattern begins with. NUL between names, because names may hold newlines.
LIST = f"""
[ -d "$f" ] || {{ echo "there is no folder $1"; exit 1; }}
cd "$f" || exit
[ -d "./$2" ] || exit 0
cd "./$2" || exit
shift 2
LC_ALL=C find . "$@" -exec printf '%s\\0' {{}} + 2>/dev/null | head -c {files.MOST_READ}
"""


class GlobArguments(Arguments):
    pattern: str = Field(
        description="Such as `**/*.py` or `src/*.{ts,tsx}`; `**` crosses folders, `*.py` matches in every folder.",
        min_length=1,
    )
    path: str = Field(default=".", description="Folder to search, default /workspace.", min_length=1)


def run(arguments: GlobArguments, hands: Hands) -> Result:
    path = arguments.path
    begin, rest = split(arguments.pattern)
    rest = rest or "**"
    pattern = patterns.compiled(f"./{rest}" if begin else rest)
    if begin.startswith(("/", "~/")):
        root, _, begin = begin.partition("/")
        path = root or "/"
    inside_git = [] if ".git" in rest.split("/") else ["-name", ".git", "-prune", "-o"]
    argv = files.script(LIST, path, begin, *inside_git, "-type", "f", *pattern.find_test())
    raw = files.finished(hands, argv).raw
    cut = len(raw) >= files.MOST_READ
    listed = [name.decode("utf-8", "replace").removeprefix("./") for name in raw.split(b"\0")[:-1]]
    found = sorted(path for path in listed if pattern.matches(path))
    notes = ["[… the search was cut short: begin the pattern with a folder …]"] if cut else []
    if len(found) > MOST:
        notes.insert(0, f"[… {len(found) - MOST} more …]")
    prefix = re.sub(r"\A(\./+)+", "", posixpath.join(path, begin, ""))
    shown = [on_one_line(prefix + path) for path in found[:MOST]]
    return Result(shorten("\n".join([*shown, *notes])) or "no file matches")


def on_one_line(path: str) -> str:
    return path if path.isprintable() else json.dumps(path, ensure_ascii=False)


TOOL = Tool(
    name="glob",
    description="List files whose path matches a pattern, hidden ones too, sorted by name. .git is left out.",
    arguments=GlobArguments,
    run=run,
)
