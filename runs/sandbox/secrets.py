"""How secrets get into a running sandbox: one script, read from standard input, that the sandbox's own shell runs.

So no secret stands in the engine's records or in anybody's arguments, and the image needs no more than mkdir and mv.
Places are those of a container unless the environment names others.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from runs.sandbox.base import Refused, SandboxError, Spec

CREDENTIALS = "/credentials"
PIECE = 2000  # bytes in one word of the script
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SAFE = frozenset(b'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 /=+,.:;_{}[]"\n')

# What is there already stays: `given` is made last, and only a start that was cut short is begun again. One that is
# not the reader's own is not ours: any command may put something there where there was nothing to give.
# The shell has no rights but those of the files' owner, so directories stay writable to it, and files are replaced.
HEAD = """\
set -e
R=${AGENTFLEET_RECORDS:-/run/agentfleet} C=${AL_CREDENTIALS_PATH:-/credentials}
[ ! -O "$R/given" ] || exit 0
folder() { umask 022; mkdir -p "$1"; umask 222; }
put() { mv -f "$1/.new$$" "$2"; }
umask 222
"""
READ = 'given=${AGENTFLEET_RECORDS:-/run/agentfleet}/given; [ ! -O "$given" ] || exec tail -c +1 "$given"'


def script(spec: Spec) -> bytes:
    """Writes the spec's secrets; empty if it has none. Raises Refused for a name that cannot be had."""
    if not (spec.secret_files or spec.secret_env):
        return b""
    return (HEAD + "".join(_steps(spec))).encode()


def given(record: bytes) -> dict[str, bytes]:
    """What `READ` printed: as `Engine.read_secrets` gives it. Raises SandboxError if it is no such record."""
    try:
        pairs: dict[str, str] = json.loads(record or b"{}")
        return {name: base64.b64decode(value) for name, value in pairs.items()}
    except (ValueError, binascii.Error) as error:
        raise SandboxError("the sandbox's record of its secrets cannot be read") from error


def _steps(spec: Spec) -> Iterator[str]:
    for path, content in spec.secret_files.items():
        target = _checked(path)
        yield f'folder "$C"/{shlex.quote(str(target.parent))}\n'
        yield _written("$C", str(target), content)
    if spec.secret_env:
        yield _written("$R", "env", _exports(spec.secret_env))
    yield "umask 377\n" + _written("$R", "given", _record(spec))


def _written(place: str, path: str, content: bytes) -> str:
    """In pieces, first under a name of its own: a reader sees a whole file or none."""
    pieces = [content[at : at + PIECE] for at in range(0, len(content), PIECE)] or [b""]
    printing = "".join(f"printf '{_escaped(piece)}'\n" for piece in pieces)
    return f'{{\n{printing}}} >"{place}/.new$$"\nput "{place}" "{place}"/{shlex.quote(path)}\n'


def _escaped(piece: bytes) -> str:
    return "".join(chr(byte) if byte in SAFE else f"\\{byte:03o}" for byte in piece)


def _exports(env: Mapping[str, str]) -> bytes:
    for name, value in env.items():
        if not NAME.fullmatch(name) or "\0" in value:
            raise Refused(f"{name!r} cannot be an environment variable with that value")
    lines = (f"export {name}={_quoted(value)}\n" for name, value in env.items())
    return "".join(lines).encode("utf-8", "surrogateescape")


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def _record(spec: Spec) -> bytes:
    pairs = dict(spec.secret_files) | {
        f"${name}": value.encode("utf-8", "surrogateescape") for name, value in spec.secret_env.items()
    }
    return json.dumps({name: base64.b64encode(value).decode() for name, value in pairs.items()}).encode()


def _checked(path: str) -> PurePosixPath:
    target = PurePosixPath(path)
    if target.is_absolute() or not target.parts or ".." in target.parts or "\0" in path or path.startswith("$"):
        raise Refused(f"{path!r} is not a path below {CREDENTIALS}")
    return target
