"""The credentials a run's sandbox is given, and what must not be stored of them.

Resolved from the stores when the sandbox starts, written into memory of the running sandbox, and kept out of
everything that is stored by a redactor that knows what the sandbox really got. Sources: spec/action-llama.md 3.3, 5.3.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, reduce
from operator import or_

from django.db.models import Q

from agents import clock, credentials
from agents.credentials import CredentialError, CredentialType, Found, Reference, references
from agents.models import Credential
from agents.redaction import Redactor
from agents.spec import AgentSpec
from runs import attempt_keys
from runs.llm import keys
from runs.models import Attempt, Run
from runs.sandbox.base import Engine, Sandbox, Spec

REMEMBERED = 2000  # attempts whose values this process keeps in mind

# Asked by git for github.com alone: another host gets nothing, whatever a repository or an agent makes of its address.
GITHUB_HELPER = '!f() { test "$1" = get || exit 0; echo username=x-access-token; echo "password=$GITHUB_TOKEN"; }; f'
# The key is not the user's own file but root's, so ssh takes it although anybody in the sandbox may read it.
SSH = (
    'ssh -i "/credentials/{path}" -o IdentitiesOnly=yes -o StrictHostKeyChecking=accept-new '
    "-o UserKnownHostsFile=/tmp/known_hosts"
)


class Unusable(Exception):
    """The run cannot have what its agent names; trying again changes nothing. Never holds a value."""

    code = "CREDENTIAL_ERROR"


class Missing(Unusable):
    """No store has it, or not all of it."""

    code = "CREDENTIAL_MISSING"


@dataclass(frozen=True)
class Given:
    """What one sandbox gets. No part of it belongs into a log, a row or a repr."""

    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # path below /credentials -> content
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: frozenset[str] = field(default=frozenset(), repr=False)
    references: Sequence[Reference] = ()


NOTHING = Given()


def resolve(spec: AgentSpec, workspace: str) -> Given:
    """What the agent's credentials are now. Raises Unusable."""
    wanted = list(for_sandbox(spec))
    if not wanted:
        return NOTHING
    try:
        found = [_complete(reference, workspace) for reference in wanted]
    except CredentialError as error:
        raise Unusable(str(error)) from error
    return Given(
        files=dict(_files(found)),
        env=_environment(found),
        secrets=frozenset(value for one in found for name, value in one.values.items() if _is_secret(one, name)),
        references=wanted,
    )


def for_sandbox(spec: AgentSpec) -> Iterator[Reference]:
    """The agent's references, in order, without those that only agentfleet itself uses. Raises Unusable."""
    for text in spec.credentials:
        try:
            reference = Reference.parse(text)
            if not credentials.is_host_only(reference.type):
                yield reference
        except CredentialError as error:
            raise Unusable(str(error)) from error


def are_given(spec: AgentSpec) -> bool:
    """Whether there is anything that a sandbox of this agent gets."""
    return bool(spec.credentials) and any(True for _ in for_sandbox(spec))


def described(spec: AgentSpec) -> list[str] | None:
    """What the agent is told it has, one text for each credential that has one; None: it has none at all."""
    wanted = list(for_sandbox(spec))
    kinds = [credentials.type_of(reference.type) for reference in wanted]
    return [kind.context for kind in kinds if kind and kind.context] if wanted else None


def _complete(reference: Reference, workspace: str) -> Found:
    """Raises Missing, CredentialError."""
    found = credentials.find(reference, workspace=workspace)
    kind = credentials.type_of(reference.type)
    lacking = kind.missing(found.values if found else {}) if kind else []
    if found is None or lacking:
        what = f"{reference} is missing" if found is None else f"{reference} has no {', '.join(lacking)}"
        raise Missing(f"credential {what}: add it with `agentfleet creds add {reference}`")
    for name, value in found.values.items():
        if "\0" in value:
            raise Unusable(f"{name} of credential {reference} holds a NUL: write it anew")
    return found


def _files(found: Iterable[Found]) -> Iterator[tuple[str, bytes]]:
    for one in found:
        for name, value in one.values.items():
            yield _path(one.reference, name), f"{value}\n".encode()


def _path(reference: Reference, name: str) -> str:
    return f"{reference.type}/{reference.instance}/{name}"


def _environment(found: Sequence[Found]) -> dict[str, str]:
    env: dict[str, str] = {}
    for one in found:
        kind = credentials.type_of(one.reference.type)
        env.update(_variables(kind, one.values) if kind else {})
    ssh = next((one for one in found if one.reference.type == "git_ssh"), None)
    return {**env, **_github(env), **(_git_ssh(ssh) if ssh else {})}


def _variables(kind: CredentialType, values: Mapping[str, str]) -> dict[str, str]:
    named = {name: known.env for name, known in kind.fields.items() if known.env}
    return {named[name]: value for name, value in values.items() if name in named}


def _github(env: Mapping[str, str]) -> dict[str, str]:
    if "GITHUB_TOKEN" not in env:
        return {}
    return {
        "GH_TOKEN": env["GITHUB_TOKEN"],
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "credential.https://github.com.helper",
        "GIT_CONFIG_VALUE_0": GITHUB_HELPER,
    }


def _git_ssh(found: Found) -> dict[str, str]:
    env = {}
    if "id_rsa" in found.values:
        env["GIT_SSH_COMMAND"] = SSH.format(path=_path(found.reference, "id_rsa"))
    if name := found.values.get("username"):
        env |= {"GIT_AUTHOR_NAME": name, "GIT_COMMITTER_NAME": name}
    if address := found.values.get("email"):
        env |= {"GIT_AUTHOR_EMAIL": address, "GIT_COMMITTER_EMAIL": address}
    return env


def _is_secret(found: Found, name: str) -> bool:
    kind = credentials.type_of(found.reference.type)
    return kind is None or kind.is_secret(name)


def note_use(given: Given, run: Run) -> None:
    """That a run got them, to the minute: not one write a run."""
    names = [Q(type=reference.type, instance=reference.instance) for reference in given.references]
    if not names:
        return
    now = clock.now()
    stale = Q(used_at=None) | Q(used_at__lt=now - timedelta(minutes=1))
    rows = Credential.objects.filter(stale, reduce(or_, names), workspace_id=run.workspace_id)
    for pk in rows.values_list("pk", flat=True):
        Credential.objects.filter(pk=pk).update(used_at=now)


# --- what must not be stored ------------------------------------------------------------------------------------


class _Memory:
    """What sandboxes of this process's attempts got, so that an engine is asked once for each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, tuple[frozenset[str], frozenset[str]]] = OrderedDict()  # sandbox ids, values

    def knows(self, attempt: int, sandbox: str) -> bool:
        with self._lock:
            return sandbox in self._kept.get(attempt, (frozenset(), frozenset()))[0]

    def values(self, attempt: int) -> frozenset[str]:
        with self._lock:
            return self._kept.get(attempt, (frozenset(), frozenset[str]()))[1]

    def add(self, attempt: int, sandbox: str, values: frozenset[str]) -> None:
        with self._lock:
            ids, known = self._kept.pop(attempt, (frozenset[str](), frozenset[str]()))
            self._kept[attempt] = ids | {sandbox}, known | values
            while len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)


_memory = _Memory()


def start(engine: Engine, spec: Spec, attempt: int) -> Sandbox:
    """Start it, and learn what it has: of one that stood already, that may be older than `spec`. As `Engine.start`."""
    sandbox = engine.start(spec)
    if spec.secret_files:
        learn(engine, sandbox, attempt)
    return sandbox


def learn(engine: Engine, sandbox: Sandbox, attempt: int) -> bool:
    """Before anything it prints is read. False: this process knew already. Raises SandboxGone, EngineDown."""
    if _memory.knows(attempt, sandbox.id):
        return False
    got = engine.read_secrets(sandbox)
    secret = {content.decode("utf-8", "replace").strip() for path, content in got.items() if _is_secret_path(path)}
    _memory.add(attempt, sandbox.id, frozenset(secret))
    return True


def _is_secret_path(path: str) -> bool:
    """Variables, which begin with `$`, repeat the files; what else they hold is no secret of a credential."""
    kind, _, rest = path.partition("/")
    if not rest:
        return False
    try:
        known = credentials.type_of(kind)
    except CredentialError:  # all of it is secret until somebody mends the file
        return True
    return known is None or known.is_secret(rest.rpartition("/")[2])


def redactor_of(attempt: Attempt, run: Run | None = None, spec: AgentSpec | None = None) -> Redactor:
    """Knows the model keys, the attempt's gateway secret, what its agent's credentials are now, and what this process
    has learned of its sandboxes. `run` and `spec` are the attempt's, where they have been read. Never raises for
    a credential."""
    run = run or attempt.run
    spec = spec or (run.version.shown() if run.version else None)
    now = resolved(spec, run.workspace.name) if spec and spec.credentials else frozenset()
    secret = attempt_keys.secret(attempt.run_id, attempt.number)
    return redactor(frozenset([*keys.all_values(), secret]) | now | _memory.values(attempt.pk))


def redactor_of_workspace(name: str) -> Redactor:
    """For what is no attempt's, such as the build of an image: knows the model keys and every credential that the
    workspace has, named by an agent or not. Never raises for a credential."""
    return redactor(frozenset(keys.all_values()) | _values(references.kept(name), name))


def resolved(spec: AgentSpec, workspace: str) -> frozenset[str]:
    """The values as far as they can be had; what cannot be had is nobody's secret."""
    return _values(references.parsed(spec.credentials), workspace)


def _values(wanted: Iterable[Reference], workspace: str) -> frozenset[str]:
    values: set[str] = set()
    for reference in wanted:
        try:
            found = credentials.find(reference, workspace=workspace)
            values |= {value for name, value in found.values.items() if _is_secret(found, name)} if found else set()
        except CredentialError:
            continue
    return frozenset(values)


@lru_cache(maxsize=512)
def redactor(values: frozenset[str]) -> Redactor:
    """Making one takes a millisecond for each few values, and steps of one run all need the same."""
    return Redactor(sorted(values))
