"""Replace text in a file."""

from __future__ import annotations

import re

from pydantic import Field

from runs.tools import files
from runs.tools.base import Arguments, Hands, Result, Tool, ToolFailed
from runs.tools.write import save


class EditArguments(Arguments):
    file_path: str = Field(description="Path of the file; relative ones start in /workspace.", min_length=1)
    old_string: str = Field(description="The text to replace, exactly as it stands in the file.", min_length=1)
    new_string: str = Field(description="What to put in its place.")
    replace_all: bool = Field(default=False, description="Replace every occurrence; else there must be just one.")


def run(arguments: EditArguments, hands: Hands) -> Result:
    path, old, new = arguments.file_path, arguments.old_string, arguments.new_string
    if old == new:
        raise ToolFailed("old_string and new_string are the same: nothing would change")
    text = files.content(hands, path)
    if "\r\n" in text and "\r\n" not in old and (old not in text or not re.search(r"(?<!\r)\n", text)):
        old, new = crlf(old), crlf(new)  # `read` shows no carriage returns, and the file keeps its own
    count = text.count(old)
    if count == 0:
        raise ToolFailed(f"old_string does not occur in {path}: read it and copy the text exactly")
    if count > 1 and not arguments.replace_all:
        raise ToolFailed(
            f"old_string occurs {count} times in {path}: give more of the text around it, or set replace_all"
        )
    save(hands, path, text.replace(old, new).encode())
    return Result(f"replaced {count} occurrence{'s' if count > 1 else ''} in {path}")


def crlf(text: str) -> str:
    return re.sub("\r?\n", "\r\n", text)


TOOL = Tool(
    name="edit",
    description="Replace one piece of text in a file by another. old_string must match exactly and be unique.",
    arguments=EditArguments,
    run=run,
    risky=True,
)
