"""Planted secrets: an agent that has them prints them in every way, fails, is retried, loses its worker in the middle;
and then they are searched for everywhere but where they belong."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agents.credentials import Reference
from agents.credentials.files import FileStore
from tests.box import Box, kill, labelled
from tests.making import bash

pytestmark = [pytest.mark.engine, pytest.mark.box]

TOKEN = "ghp_Canary/of+the~token&0123456789"
NEW_TOKEN = "ghp_Canary/after+the~change&987654"
CUSTOM = 'acme"canary\\of?the=custom type'
DATABASE = "sntrys-canary-of-the-database-store"
ENVIRONMENT = "lin_api_canary_of_the_environment"
KEY = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode().strip()

TYPES = """
[acme]
fields = ["token", "account"]
public = ["account"]
env = {token = "ACME_TOKEN", account = "ACME_ACCOUNT"}
context = "`ACME_TOKEN`: use `curl`"
"""
EXTRA = 'credentials = ["git_ssh", "github_token", "acme", "sentry_token", "linear_token", "anthropic_key"]'

# Everything an agent has, in every form that it is likely to come by.
SPILL = r"""
set +e
env; export -p; set | head -200
find /credentials -type f -exec cat {} \; -exec base64 -w0 {} \; -exec base64 {} \;
for value in "$GITHUB_TOKEN" "$ACME_TOKEN" "$SENTRY_AUTH_TOKEN" "$LINEAR_API_TOKEN"; do
  for lead in "" x xx; do printf '%s%s' "$lead" "$value" | base64 -w0; echo; done
  printf '%s' "$value" | jq -Rs '., @uri, @base64, @html'
  printf '%s' "$value" | od -c | head -1
done
cat /run/agentfleet/env /run/agentfleet/given; cat /proc/self/environ | tr '\0' '\n'
"""
PROVE = r"""
ssh-keygen -y -f /credentials/git_ssh/default/id_rsa >/dev/null && echo the-key-is-taken
echo "$GIT_SSH_COMMAND" | grep -q IdentitiesOnly=yes && echo the-key-is-named
printf 'protocol=https\nhost=github.com\n\n' | git credential fill | grep -q "^password=$GITHUB_TOKEN$" \
  && echo github-gets-it
printf 'protocol=https\nhost=example.org\n\n' | git credential fill 2>&1 | grep -q '^password=' \
  || echo nobody-else-gets-it
printf 'protocol=https\nhost=github.com.example.org\n\n' | git credential fill 2>&1 | grep -q '^password=' \
  || echo nor-who-sounds-alike
echo x 2>/dev/null >/credentials/github_token/default/token || echo nothing-is-written
[ "$ACME_ACCOUNT" = shown-account ] && echo "account $ACME_ACCOUNT"
git config --global user.name >/dev/null; echo "I am $GIT_AUTHOR_NAME"
"""
DRIP = r"""
for n in $(seq 50); do echo "line $n $GITHUB_TOKEN $ACME_TOKEN"; sleep 0.1; done
tail -3 /credentials/git_ssh/default/id_rsa
"""
RETRIED = """
retry = "always"
[attempts]
most = 2
delay_seconds = 0
after = ["work"]
"""


@dataclass
class Leaks:
    """What has been found where it must not be."""

    found: set[str]

    def look(self, place: str, text: bytes) -> None:
        for name, forms in FORMS.items():
            self.found |= {f"{name} as {form} in {place}" for form, value in forms.items() if value in text}


def forms(value: str) -> dict[str, bytes]:
    raw = value.encode()
    found = {"text": raw, "url": quote(value, safe="").encode(), "json": json.dumps(value)[1:-1].encode()}
    for lead in range(3):
        encoded = base64.b64encode(b"\0" * lead + raw)
        found[f"base64+{lead}"] = encoded[(lead * 8 + 5) // 6 : (lead + len(raw)) * 8 // 6]
    return found


VALUES = {"token": TOKEN, "new": NEW_TOKEN, "custom": CUSTOM, "database": DATABASE, "environment": ENVIRONMENT}
FORMS = {name: forms(value) for name, value in VALUES.items()}
FORMS |= {f"key line {n}": {"text": line.encode()} for n, line in enumerate(KEY.splitlines()) if len(line) >= 40}
KEY_FILE = base64.b64encode(f"{KEY}\n".encode())
FORMS["key"] = {f"base64 at {at}": KEY_FILE[at : at + 60] for at in range(0, len(KEY_FILE) - 60, 76)}


def test_planted_secrets_are_found_nowhere(tmp_path: Path) -> None:
    box = Box(tmp_path, AL_SECRET_linear_token__default__token=ENVIRONMENT)
    plant(box)
    leaks = Leaks(set())
    with box:
        box.define(
            "spill", turns=[{"tools": [bash(SPILL + PROVE)]}, {"tools": [bash(DRIP)]}, {"text": "done"}], extra=EXTRA
        )
        a_program_that_fails(box)
        commanded(box)
        apply_says_what_it_means(box)
        spilled, failed = box.start("spill"), box.start("fails")
        box.until(lambda: "line 5 " in box.output(spilled), story=lambda: box.story(spilled))
        look_at_the_engine(leaks, spilled)
        look_at_arguments(leaks)
        files_of(box).put(Reference("github_token"), {"token": NEW_TOKEN})
        kill(box.pids()["worker"])
        assert box.wait(spilled)["status"] == "finished", box.story(spilled)
        assert box.wait(failed)["error"]["code"] == "EXIT_1"
        assert attempts(box, failed) == 2
        said = box.output(spilled)
        look_at_answers(leaks, box, [spilled, failed])
        look_at_pages(leaks, box, [spilled, failed])
    look_at_the_home(leaks, box.home)
    assert not leaks.found
    proven = ["the-key-is-taken", "the-key-is-named", "github-gets-it", "nobody-else-gets-it", "nor-who-sounds-alike"]
    for proof in (*proven, "nothing-is-written", "account shown-account", "I am Ada", "line 50 [redacted] [redacted]"):
        assert proof in said, proof


def a_program_that_fails(box: Box) -> None:
    folder = box.project / "agents" / "fails"
    folder.mkdir(parents=True)
    config = f"kind = 'command'\nnetwork = 'none'\ncommand = '''{SPILL}\nexit 1'''\n{EXTRA}\n{RETRIED}"
    (folder / "config.toml").write_text(config)


def plant(box: Box) -> None:
    """In the files of the home, and one with the environment; see `Box`."""
    box.home.mkdir(mode=0o700)
    (box.home / "credential-types.toml").write_text(TYPES)
    store = files_of(box)
    store.put(Reference("git_ssh"), {"id_rsa": KEY, "username": "Ada", "email": "ada@example.org"})
    store.put(Reference("github_token"), {"token": TOKEN})
    store.put(Reference("acme"), {"token": CUSTOM, "account": "shown-account"})


def files_of(box: Box) -> FileStore:
    return FileStore(box.home / "credentials")


def commanded(box: Box) -> None:
    """One more, into the database, through the command line's standard input."""
    argv = [sys.executable, "-m", "agentfleet", "creds", "add", "sentry_token", "--store", "database"]
    done = subprocess.run(argv, env=box.env, input=DATABASE, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert DATABASE not in done.stdout + done.stderr


def apply_says_what_it_means(box: Box) -> None:
    box.apply()
    listed = {row["reference"]: row for row in json.loads(box.cli("creds", "ls", "--json").stdout)}
    assert {name: listed[name]["store"] for name in ("git_ssh", "sentry_token", "linear_token")} == {
        "git_ssh": "files",
        "sentry_token": "database",
        "linear_token": "environment",
    }
    assert listed["acme"]["used_by"] == ["agent fails", "agent spill"]


def attempts(box: Box, run_id: str) -> int:
    return int(box.rows("SELECT count(*) FROM runs_attempt WHERE run_id = ?", run_id)[0][0])


def look_at_the_engine(leaks: Leaks, run_id: str) -> None:
    """The container's record, its commands' and its image's."""
    [container], _ = labelled(f"agentfleet.run={run_id}")
    record = docker("inspect", container)
    leaks.look("docker inspect", record)
    facts = json.loads(record)[0]
    assert facts["ExecIDs"], "a command runs"
    with httpx.Client(transport=httpx.HTTPTransport(uds="/var/run/docker.sock")) as engine:
        for number in facts["ExecIDs"]:
            leaks.look("the engine's record of a command", engine.get(f"http://engine/exec/{number}/json").content)
    leaks.look("the image", docker("history", "--no-trunc", facts["Image"]) + docker("inspect", facts["Image"]))


def look_at_arguments(leaks: Leaks) -> None:
    """Of every process there is, those in sandboxes too, for a while."""
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                leaks.look(f"the arguments of process {file.parent.name}", file.read_bytes())


def look_at_answers(leaks: Leaks, box: Box, runs: list[str]) -> None:
    paths = ["tasks", "agents", "agents/spill", "credentials"]
    for run_id in runs:
        paths += [f"tasks/{run_id}", f"tasks/{run_id}/events", f"tasks/{run_id}/context"]
    for path in paths:
        leaks.look(f"GET {path}", json.dumps(box.client.call("GET", path), ensure_ascii=False).encode())


def look_at_pages(leaks: Leaks, box: Box, runs: list[str]) -> None:
    pages = ["", "agents/agent/", "agents/credential/", *(f"runs/run/{run_id}/change/" for run_id in runs)]
    rows = box.rows("SELECT id FROM agents_credential") + box.rows("SELECT id FROM agents_credential")
    pages += [f"agents/credential/{pk}/{page}/" for (pk,) in rows for page in ("change", "put", "forget")]
    pages += [f"agents/agent/{pk}/change/" for (pk,) in box.rows("SELECT id FROM agents_agent")]
    link = box.cli("login").stdout.strip()
    with httpx.Client(follow_redirects=True, timeout=30) as browser:
        assert browser.get(link).status_code == 200
        for page in pages:
            answer = browser.get(f"{box.client.url}/admin/{page}")
            assert answer.status_code == 200, f"{page}: {answer.status_code}"
            leaks.look(f"the page {page}", answer.content)


def look_at_the_home(leaks: Leaks, home: Path) -> None:
    """Every file of it, the database and the logs, but the credentials themselves."""
    files = [file for file in home.rglob("*") if file.is_file() and "credentials" not in file.relative_to(home).parts]
    assert any(file.suffix == ".log" for file in files)
    assert home / "agentfleet.sqlite3" in files
    for file in files:
        leaks.look(str(file.relative_to(home)), file.read_bytes())


def docker(*words: str) -> bytes:
    return subprocess.run(["docker", *words], capture_output=True, check=True).stdout
