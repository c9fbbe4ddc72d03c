"""Write a whole file."""

from __future__ import annotations

from pydantic import Field

from runs.tools import files
from runs.tools.base import Arguments, Hands, Result, Tool


class WriteArguments(Arguments):
    file_path: str = Field(description="Path of the file; relative ones start in /workspace.", min_length=1)
    content: str = Field(description="All of the file's new content.")


# Beside the target, then renamed: a reader sees the old file or the new. A file that is there keeps its mode,
# and a link its place: what it points to is written.
SAVE = """
if [ -L "$f" ]; then
  real=$(readlink -f "$f" && echo .) || { echo "$1 is a link that leads nowhere"; exit 1; }
  f=${real%??} # without the newline and the dot, which kept the newlines of the name
fi
[ -d "$f" ] && { echo "$1 is a directory"; exit 1; }
if [ -e "$f" ]; then
  [ -f "$f" ] || { echo "$1 is not a regular file: use bash on it"; exit 1; }
  [ -w "$f" ] || { echo "$1 may not be written: permission denied"; exit 1; }
fi
folder=${f%/*}/
mkdir -p "$folder" || exit
new=$folder.new.$$
{ [ ! -e "$f" ] || cp -p "$f" "$new"; } && cat >"$new" && mv -f "$new" "$f" && exit
rm -f "$new"
exit 1
"""


def run(arguments: WriteArguments, hands: Hands) -> Result:
    data = arguments.content.encode()
    save(hands, arguments.file_path, data)
    return Result(f"wrote {len(data)} bytes to {arguments.file_path}")


def save(hands: Hands, path: str, data: bytes) -> None:
    """Raises ToolFailed with the shell's words."""
    files.finished(hands, files.script(SAVE, path), stdin=data)


TOOL = Tool(
    name="write",
    description="Write a file, replacing what was there; missing folders are made.",
    arguments=WriteArguments,
    run=run,
    risky=True,
)
