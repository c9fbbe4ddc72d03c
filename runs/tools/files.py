"""What the file tools share: commands every POSIX image has, and errors as the model should read them."""

from __future__ import annotations

from collections.abc import Sequence

from runs.sandbox.base import Ending
from runs.tools.base import Finished, Hands, ToolFailed

LARGEST = 1024 * 1024  # bytes of a file that edit takes
MOST_READ = 4_000_000  # bytes that one command may bring back
LONGEST_ARGUMENT = 100_000  # bytes; the kernel takes none above 128 KiB

# `$f` is the file `$1` names, in a form that no program takes for an option, for stdin or for another's home.
LOCATE = """
case $1 in
. | ./* | /*) f=$1 ;;
"~" | "~/"*) f=$HOME${1#?} ;;
*) f=./$1 ;;
esac
"""

MUST_BE_READABLE = """
[ -d "$f" ] && { echo "$1 is a directory: list it with bash or glob"; exit 1; }
[ -e "$f" ] || { echo "there is no file $1"; exit 1; }
[ -f "$f" ] || { echo "$1 is not a regular file: use bash on it"; exit 1; }
[ -r "$f" ] || { echo "$1 may not be read: permission denied"; exit 1; }
"""


def finished(hands: Hands, argv: Sequence[str], *, stdin: bytes = b"") -> Finished:
    """The command, ended well. Raises ToolFailed with its output if it failed."""
    done = hands.exec(argv, stdin=stdin)
    if done.ending is not Ending.EXITED:
        raise ToolFailed(f"the command did not end within its limits ({done.ending})")
    if done.exit_code != 0:
        raise ToolFailed(done.text.strip() or f"the command failed with exit code {done.exit_code}")
    return done


def script(text: str, path: str, *arguments: str) -> list[str]:
    """An argv that runs `text` with sh: `$f` is the file, `$1` what it was called, `$2`, `$3`… the arguments.

    Raises ToolFailed for one that no command can take.
    """
    for argument in (path, *arguments):
        if len(argument.encode()) > LONGEST_ARGUMENT:
            raise ToolFailed(f"an argument is longer than {LONGEST_ARGUMENT} bytes: {argument[:100]}…")
    return ["sh", "-c", LOCATE + text, "sh", path, *arguments]


def content(hands: Hands, path: str) -> str:
    """A whole text file. Raises ToolFailed for what is none, or too large."""
    size = '[ "$(wc -c <"$f")" -le "$2" ] || { echo "$1 is larger than $2 bytes: use bash on it"; exit 1; }\n'
    done = finished(hands, script(f'{MUST_BE_READABLE}{size}cat "$f"', path, str(LARGEST)))
    try:
        return done.raw.decode()
    except UnicodeDecodeError as error:
        raise ToolFailed(f"{path} is not text in UTF-8: use bash on it") from error
