"""Read a text file."""

from __future__ import annotations

from pydantic import Field

from runs.tools import files
from runs.tools.base import RESULT_CHARACTERS, RESULT_LINES, Arguments, Hands, Result, Tool, ToolFailed

LONGEST_LINE = 2000  # characters of one line that are shown

# Far more than is shown, so that what MOST_READ cuts off is not missed.
LINES = f"""{files.MUST_BE_READABLE}
begin() {{ head -c 8192 "$f"; }}
if [ "$(begin | wc -c)" -gt "$(begin | tr -d '\\000' | wc -c)" ]; then
  echo "$1 is a binary file: use bash on it"
  exit 1
fi
sed -n "$2,$3p;$3q" "$f" | head -c {files.MOST_READ}
"""


class ReadArguments(Arguments):
    file_path: str = Field(description="Path of the file; relative ones start in /workspace.", min_length=1)
    offset: int = Field(default=1, ge=1, le=1_000_000_000, description="First line to read, counted from 1.")
    limit: int = Field(default=RESULT_LINES, ge=1, le=RESULT_LINES, description="How many lines to read.")


def run(arguments: ReadArguments, hands: Hands) -> Result:
    path, first = arguments.file_path, arguments.offset
    after = first + arguments.limit  # is fetched too, to know whether there is more
    text = files.finished(hands, files.script(LINES, path, str(first), str(after))).text
    if not text:
        return nothing(hands, arguments)
    rows = text.removesuffix("\n").split("\n")
    shown: list[str] = []
    room = RESULT_CHARACTERS
    for number, row in enumerate(rows[: arguments.limit], first):
        line = f"{number:6}\t{cut(row.removesuffix(chr(13)))}"
        room -= len(line) + 1
        if room < 0:
            break
        shown.append(line)
    if len(shown) < len(rows):
        shown.append(f"[… there is more: go on with offset={first + len(shown)} …]")
    return Result("\n".join(shown))


def cut(row: str) -> str:
    missing = len(row) - LONGEST_LINE
    return f"{row[:LONGEST_LINE]} [… {missing} characters left out …]" if missing > 0 else row


def nothing(hands: Hands, arguments: ReadArguments) -> Result:
    """Why there was nothing to read."""
    lines = files.finished(hands, files.script('sed -n "$=" "$f"', arguments.file_path)).text.strip()
    if not lines:
        return Result("[the file is empty]")
    raise ToolFailed(f"{arguments.file_path} has {lines} lines: there is no line {arguments.offset}")


TOOL = Tool(
    name="read",
    description="Read a text file. Lines come numbered, from `offset` on, at most `limit` of them.",
    arguments=ReadArguments,
    run=run,
)
