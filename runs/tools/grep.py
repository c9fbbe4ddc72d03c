"""Search in files."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from runs.tools import files, patterns
from runs.tools.base import Arguments, Hands, Result, Tool, shorten

MOST = 500  # lines shown
LONGEST_LINE = 500  # characters of one line that are shown

# ripgrep where the image has it, for models write its expressions; else POSIX grep on the files `find` finds.
# An expression is tried on an empty line first, for a search with faults looks like one that found nothing.
SEARCH = f"""
[ -e "$f" ] || {{ echo "there is no file or folder $1"; exit 1; }}
pattern=$2 extended=$3 case=$4 mode=$5 glob=$6
shift 6
if command -v rg >/dev/null; then with_rg=yes; else with_rg=; fi
ripgrep() {{ rg --no-config $case ${{glob:+-g "$glob"}} -e "$pattern" "$@"; }}
posix() {{ grep $case -E -e "$extended" "$@"; }}
said=$(echo | if [ $with_rg ]; then ripgrep -q -; else posix -q; fi 2>&1)
[ $? -le 1 ] && [ -z "$said" ] || {{ echo "$said"; exit 1; }}
if [ $with_rg ]; then
  ripgrep --no-messages --no-heading --with-filename --color never --sort path --hidden -g '!.git' \
    --max-columns {LONGEST_LINE} --max-columns-preview $mode -- "$f"
else
  LC_ALL=C find -H "$f" "$@" -exec grep $case $mode -E -e "$extended" /dev/null {{}} +
fi 2>/dev/null | if [ "$mode" = -c ]; then grep -v ':0$'; else cat; fi | head -n {MOST + 1} | head -c {files.MOST_READ}
"""


class GrepArguments(Arguments):
    pattern: str = Field(description="Regular expression.", min_length=1)
    path: str = Field(default=".", description="File or folder to search, default /workspace.", min_length=1)
    glob: str | None = Field(default=None, description="Only files whose path matches, such as `*.{ts,tsx}`.")
    ignore_case: bool = False
    output_mode: Literal["content", "files_with_matches", "count"] = Field(
        default="content", description="Matching lines with their numbers, only the files' names, or counts."
    )


def run(arguments: GrepArguments, hands: Hands) -> Result:
    case = "-i" if arguments.ignore_case else ""
    mode = {"content": "-n", "files_with_matches": "-l", "count": "-c"}[arguments.output_mode]
    glob = arguments.glob or ""
    pruned = [] if ".git" in arguments.path.split("/") else ["-name", ".git", "-prune", "-o"]
    tests = [*pruned, "-type", "f", *patterns.compiled(glob or "*").find_test()]
    words = (arguments.pattern, extended(arguments.pattern), case, mode, glob, *tests)
    argv = files.script(SEARCH, arguments.path, *words)
    found = files.finished(hands, argv).text
    lines = [cut(line.removesuffix("\r").removeprefix("./")) for line in found.removesuffix("\n").split("\n") if line]
    if not lines:
        return Result("nothing matches")
    more = [f"[… more than {MOST} lines: narrow the search …]"] if len(lines) > MOST else []
    return Result(shorten("\n".join([*lines[:MOST], *more])))


def cut(line: str) -> str:
    return f"{line[: 2 * LONGEST_LINE]} […]" if len(line) > 2 * LONGEST_LINE else line


CLASSES = {"d": "0-9", "w": "[:alnum:]_", "s": "[:space:]"}
ESCAPES = {
    **{name: f"[{chars}]" for name, chars in CLASSES.items()},
    **{name.upper(): f"[^{chars}]" for name, chars in CLASSES.items()},
    "t": "\t",
}
PIECE = re.compile(
    r"""\[ (?P<not>\^?) (?P<chosen> \]? (?: \\. | \[:\w+:\] | [^\]\\] )*) \]  # a choice of characters
    | \\(?P<escaped>.) | (?P<group>\(\?:) | (?P<lazy>[*+?}])\?""",
    re.VERBOSE | re.DOTALL,
)


def extended(pattern: str) -> str:
    """A pattern as models write it, in the words of POSIX: the same lines match, for all that is common."""
    return PIECE.sub(_posix, pattern)


def _posix(piece: re.Match[str]) -> str:
    if piece["chosen"] is not None:
        return _posix_choice(piece)
    if (escaped := piece["escaped"]) is not None:
        needed = escaped in r".[]{}()*+?^$|\<>" or escaped.isalnum()
        return ESCAPES.get(escaped, piece[0] if needed else escaped)
    return "(" if piece["group"] else piece["lazy"]


def _posix_choice(piece: re.Match[str]) -> str:
    """POSIX has no escapes in brackets: `]` goes first, `^` and `-` last."""
    chosen, first, last = "", "", ""
    for item in re.findall(r"\\.|\[:\w+:\]|.", piece["chosen"], re.DOTALL):
        if item[0] != "\\" or len(item) == 1:
            chosen += item
        elif item[1] == "]":
            first = "]"
        elif item[1] in "^-":
            last += item[1]
        else:
            chosen += CLASSES.get(item[1], "\t" if item[1] == "t" else item[1])
    return f"[{piece['not']}{first}{chosen}{''.join(sorted(last, reverse=True))}]"


TOOL = Tool(
    name="grep",
    description=(
        "Search file contents for a regular expression, in hidden files too and not in .git. It is ripgrep where "
        "the image has it, which leaves out what .gitignore names; else grep -E."
    ),
    arguments=GrepArguments,
    run=run,
)
