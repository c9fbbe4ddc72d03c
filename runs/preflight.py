"""The preflight steps of an agent as scripts for a shell in its sandbox. Pure. Source: spec/action-llama.md 7.7.

`${NAME}` in a parameter is a variable of the sandbox. Its shell fills it in, inside a quoted word: no value is ever
read as shell, and none stands in the arguments of a command that the engine is asked for.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

LARGEST_OUTPUT = 50 * 1024 * 1024  # bytes of a shell step's `output`

_variable = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

SHELL_INTO_FILE = """\
mkdir -p -- "$(dirname -- "$output")" || exit
code=$({{ {{ /bin/sh -c {command} 3>&-; echo $? >&3; }} | head -c {one_more} >"$output"; }} 3>&1)
if [ "$(wc -c <"$output")" -gt {most} ]; then
  rm -f -- "$output"
  echo "it printed more than {most} bytes" >&2
  exit 1
fi
exit "${{code:-1}}"
"""

GIT_CLONE = """\
case $repo in
*://* | git@* | /*) ;;
*/*) repo=git@github.com:${repo%.git}.git ;;
esac
export GIT_TERMINAL_PROMPT=0
exec git clone"""

# What is asked for stays out of argument lists, which every process of the host may read, wherever the client allows
# it: curl and Python do, wget does not.
HTTP = r"""
case $url in
http://* | https://*) ;;
*) echo "$url is no http or https address" >&2; exit 1 ;;
esac
part=$output.part
mkdir -p -- "$(dirname -- "$output")" || exit
trap 'rm -rf -- "$given" "$part"' EXIT
with_curl() {
  set -- --request "$method"
  [ "$method" = HEAD ] && set -- --head
  [ -s "$given/body" ] && set -- "$@" --data-binary "@$given/body"
  : >"$part"
  status=$(printf 'url = "%s"\n' "$(printf %s "$url" | tr -d '\r\n' | sed 's/[\\"]/\\&/g')" |
    curl -q -sS -L --globoff --proto '=http,https' --config - --header "@$given/headers" "$@" \
      --output "$part" --write-out '%{http_code}') || return
  case $status in 2??) ;; *) echo "HTTP $status" >&2; return 1 ;; esac
}
with_python() {
  GIVEN=$given URL=$url METHOD=$method PART=$part python3 -c '
import os, sys, urllib.error, urllib.request
given = os.environ["GIVEN"]
lines = open(given + "/headers", encoding="utf-8").read().splitlines()
headers = dict(line.split(": ", 1) for line in lines if ": " in line)
body = open(given + "/body", "rb").read() or None
request = urllib.request.Request(os.environ["URL"], body, headers, method=os.environ["METHOD"])
try:
    with urllib.request.urlopen(request) as answer, open(os.environ["PART"], "wb") as part:
        while data := answer.read(65536):
            part.write(data)
except urllib.error.HTTPError as error:
    sys.exit(f"HTTP {error.code}")
except OSError as error:
    sys.exit(str(error))
'
}
with_wget() {
  case $method in
  GET) set -- ;;
  POST) set -- "--post-file=$given/body" ;;
  *) set -- "--method=$method" "--body-file=$given/body" ;;
  esac
  while IFS= read -r line; do set -- "$@" "--header=$line"; done <"$given/headers"
  wget -q -O "$part" "$@" -- "$url" || { echo "wget failed with $?: no answer, or not 2xx" >&2; return 1; }
}
if command -v curl >/dev/null; then
  with_curl
elif command -v python3 >/dev/null; then
  with_python
elif command -v wget >/dev/null; then
  with_wget
else
  echo "the image has none of curl, python3 and wget" >&2
  exit 127
fi && mv -f -- "$part" "$output"
"""


class Unfit(Exception):
    """There is no such step; the message says why."""


def script(provider: str, params: Mapping[str, Any]) -> str:
    """What a step does, for `sh -c`. Raises Unfit."""
    make = _scripts.get(provider)
    if make is None:
        raise Unfit(f"there is no preflight provider {provider}: there are {', '.join(_scripts)}")
    try:
        return make(params)
    except (KeyError, TypeError, AttributeError) as error:
        raise Unfit(f"the params of {provider} are not as they should be ({error})") from error


def word(text: str) -> str:
    """`text` as one word for a shell that fills in its variables; one that is not set is empty."""
    pieces = _variable.split(text)
    written = [f'"${{{piece}-}}"' if number % 2 else shlex.quote(piece) for number, piece in enumerate(pieces) if piece]
    return "".join(written) or "''"


def _shell(params: Mapping[str, Any]) -> str:
    command = shlex.quote(params["command"])
    if not params.get("output"):
        return f"exec /bin/sh -c {command}\n"
    into_file = SHELL_INTO_FILE.format(command=command, most=LARGEST_OUTPUT, one_more=LARGEST_OUTPUT + 1)
    return f"output={word(params['output'])}\n{into_file}"


def _git_clone(params: Mapping[str, Any]) -> str:
    options = [f"--{name}={word(str(params[name]))}" for name in ("branch", "depth") if params.get(name)]
    words = " ".join([*options, "--", '"$repo"', word(params["dest"])])
    return f"repo={word(params['repo'])}\n{GIT_CLONE} {words}\n"


def _http(params: Mapping[str, Any]) -> str:
    headers, body = dict(params.get("headers") or {}), str(params.get("body") or "")
    if body and not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = "text/plain;charset=UTF-8"
    lines = [
        'given=$(mktemp -d "$HOME/http.XXXXXX") || exit',
        f"method={word(str(params.get('method') or 'get').upper())} url={word(params['url'])}",
        f"output={word(params['output'])}",
        f'printf %s {word(body)} >"$given/body"',
        ': >"$given/headers"',
    ]
    for name, value in headers.items():  # a line end in a value would begin another header
        line = f"printf %s {word(f'{name}: {value}')} | tr -d '\\r\\n'"
        lines.append(f'{{ {line}; echo; }} >>"$given/headers"')
    return "\n".join(lines) + HTTP


_scripts = {"shell": _shell, "http": _http, "git-clone": _git_clone}
