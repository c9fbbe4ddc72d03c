"""The contract between the engine and whatever runs an agent's commands. One test suite holds every sandbox to it.

"The command failed" is a result; "the sandbox failed" is an exception. Names are the caller's and deterministic:
asking twice for the same sandbox adopts the first, asking twice for the same command follows the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

OUTPUT_LIMIT = 64 * 1024 * 1024  # bytes a command may print before it is killed
USER = 1000  # uid and gid of everything in a sandbox


class SandboxError(Exception):
    """The machinery failed; nothing is known about the work. The message is the engine's own words."""

    code = "SANDBOX_ERROR"


class EngineDown(SandboxError):
    """No engine answers. It may come back, and then everything is as it was left."""

    code = "ENGINE_DOWN"


class ImageMissing(SandboxError):
    """The engine does not have the image and cannot get it."""

    code = "IMAGE_MISSING"


class BuildFailed(SandboxError):
    """A Dockerfile could not be carried out. The message is the builder's last words."""

    code = "IMAGE_BUILD_FAILED"


class SandboxGone(SandboxError):
    """The sandbox does not exist, has ended, or was started again: whatever ran in it is lost."""

    code = "SANDBOX_LOST"


class Refused(SandboxError):
    """This sandbox cannot be had as asked for; asking again will not help."""

    code = "SANDBOX_REFUSED"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A sandbox to start."""

    name: str
    image: str
    network: str = "none"  # none | gateway | allowlist | open
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)  # path below /workspace -> content, read-only
    # Never in the engine's own records: written into memory of the running sandbox, before its first command.
    secret_files: Mapping[str, bytes] = field(default_factory=dict)  # path below /credentials -> content, read-only
    secret_env: Mapping[str, str] = field(default_factory=dict)  # for every command
    memory: str = "4g"
    cpus: float = 2.0
    pids: int = 1024


@dataclass(frozen=True)
class Sandbox:
    """A sandbox that was running. `id` is of this very start: a restart, which loses what ran, changes it."""

    name: str
    id: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command to run at most once. `call_id` is unique in its sandbox: letters, digits, dots and dashes."""

    call_id: str
    argv: Sequence[str]
    timeout: int  # seconds; the whole process group is killed then, also when nobody follows
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    output_limit: int = OUTPUT_LIMIT
    forget: Sequence[str] = ()  # calls whose results are stored: records with these ids, or these and a dot, may go


class Ending(StrEnum):
    EXITED = "exited"
    TIMEOUT = "timeout"
    OUTPUT_LIMIT = "output_limit"
    LOST = "lost"  # it may have run, wholly or in part; nobody can tell


@dataclass(frozen=True)
class Outcome:
    ending: Ending
    exit_code: int | None = None  # as a shell gives it: 128 + signal for a killed one
    signals: bool = False  # a signal file lies in the sandbox: exit, rerun or return, in $AL_SIGNAL_DIR


def outcome_of(last_line: str) -> Outcome:
    """What the keeper's last line says. Raises SandboxError if it is not the keeper's."""
    match last_line.split():
        case ["exit", code, *words]:
            why = {"timeout": Ending.TIMEOUT, "output": Ending.OUTPUT_LIMIT}
            ending = next((why[word] for word in words if word in why), Ending.EXITED)
            return Outcome(ending, int(code), signals="signals" in words)
        case ["lost"]:
            return Outcome(Ending.LOST)
    raise SandboxError(f"the command could not be started: {last_line.strip() or 'the engine gave no reason'}")


class Following(ABC):
    """One reader of a command's output. Leaving it, or being frozen, does nothing to the command."""

    @abstractmethod
    def read(self, timeout: float) -> bytes | None:
        """The next bytes of stdout and stderr, merged; b"" if none came within `timeout` seconds; None at the end.

        Raises SandboxGone or EngineDown if the stream broke off for that reason.
        """

    @abstractmethod
    def outcome(self) -> Outcome:
        """How the command ended; only after `read` gave None."""

    @abstractmethod
    def close(self) -> None:
        """Stop reading, from any thread and more than once. A `read` under way returns None."""


class Engine(ABC):
    """A sandbox engine on this host. Methods are safe to call from many threads."""

    @abstractmethod
    def ping(self) -> str:
        """The engine's name and version. Raises EngineDown."""

    @abstractmethod
    def prepare_image(self, image: str) -> str:
        """The reference to start for `image`: the same, made ready once if it was not. Raises ImageMissing."""

    @abstractmethod
    def start(self, spec: Spec) -> Sandbox:
        """A running sandbox with that name: a new one, or the one that is there.

        Raises ImageMissing, Refused (a policy that cannot be carried out is never widened), EngineDown.
        """

    @abstractmethod
    def find(self, name: str) -> Sandbox:
        """The running sandbox with that name. Raises SandboxGone with what is known of its end."""

    @abstractmethod
    def exec(self, sandbox: Sandbox, command: Command, *, offset: int = 0) -> Following:
        """Start the command unless it has been started, and follow its output from byte `offset`.

        Records wiped, or a command whose keeper died, give `Ending.LOST`. Raises SandboxGone, EngineDown.
        """

    @abstractmethod
    def read_secrets(self, sandbox: Sandbox) -> dict[str, bytes]:
        """What `start` gave it, whatever has changed since: paths below /credentials, and `$NAME`, to their content.

        Raises SandboxGone, EngineDown.
        """

    @abstractmethod
    def stop_commands(self, sandbox: Sandbox, *, grace: int) -> None:
        """TERM to every command still running, and up to `grace` seconds for them to end."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Kill and remove the sandbox, and look that it is gone. None by that name is fine. Keeps the workspace."""

    @abstractmethod
    def remove_workspace(self, name: str) -> None:
        """Remove what the sandbox of that name kept in /workspace. None is fine."""

    @abstractmethod
    def names(self) -> list[str]:
        """Every sandbox of this fleet that the engine has, running or not."""

    @abstractmethod
    def try_network(self, policy: str) -> None:
        """Make what a sandbox with that policy would stand on, and remove it again.

        Raises Refused with what is missing, and SandboxError in the engine's own words.
        """

    @abstractmethod
    def keep_networks(self) -> None:
        """See that what filters this host's sandboxes stands, and put it back where somebody has taken it away.

        Raises Refused, EngineDown.
        """

    @abstractmethod
    def remove_networks(self) -> None:
        """Remove what connects this host's sandboxes, where none stands on it, and what filters it."""

    @abstractmethod
    def build_image(
        self, tag: str, context: bytes, *, args: Mapping[str, str], labels: Mapping[str, str]
    ) -> Generator[str, None, None]:
        """Build what the Dockerfile in `context`, a tar, says, on this host alone; what the builder says, as it comes.

        An empty text when it has said nothing for a while: look at your clock. Closing it ends the build.
        Raises BuildFailed, EngineDown.
        """

    @abstractmethod
    def has_image(self, image: str) -> str | None:
        """The id of what `image` names on this host; None if there is no such image."""

    @abstractmethod
    def built_images(self) -> list[str]:
        """The tags that `build_image` has made for this installation and this host."""

    @abstractmethod
    def remove_image(self, tag: str) -> bool:
        """Remove what `build_image` has made as `tag`, and what was made of it. False: a sandbox stands on it."""

    @abstractmethod
    def remove_remains(self) -> None:
        """Remove what builds that failed or were ended have left. Not while one is under way."""
