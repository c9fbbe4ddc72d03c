"""The documented double of a sandbox: folders and local processes, no isolation whatever. For tests only.

It runs the same keeper script as the real ones, so what it proves about commands is proved about the script.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.ids import new_id
from runs.sandbox import secrets
from runs.sandbox.base import (
    Command,
    Engine,
    EngineDown,
    Following,
    ImageMissing,
    Outcome,
    Sandbox,
    SandboxError,
    SandboxGone,
    Spec,
    outcome_of,
)
from runs.sandbox.ready import BIN

KEEPER = Path(__file__).with_name("keeper.sh")
BOOT = Path(__file__).with_name("boot.sh")


@dataclass(frozen=True)
class Build:
    """What `build_image` was asked for."""

    tag: str
    context: bytes
    args: Mapping[str, str]
    labels: Mapping[str, str]


class FakeEngine(Engine):
    """Sandboxes below `root` (default: $AGENTFLEET_FAKE_ROOT, else a new folder); any process with it sees them."""

    def __init__(self, root: Path | None = None, *, host_id: str = "", images: tuple[str, ...] | None = None) -> None:
        named = os.environ.get("AGENTFLEET_FAKE_ROOT")
        self.root = root or (Path(named) if named else Path(tempfile.mkdtemp(prefix="agentfleet-fake-")))
        self.root.mkdir(parents=True, exist_ok=True)
        self.images = images  # None: every image exists
        self.down = False
        self.builds: list[Build] = []  # what it was asked to build, in order
        self.built: set[str] = set()
        self.will_say: list[Iterable[str | Exception]] = []  # of the next builds
        self.specs: dict[str, Spec] = {}  # what this object was asked to start
        self.commands: list[Command] = []  # what it was asked to run, in order

    def ping(self) -> str:
        self._answer()
        return "fake"

    def prepare_image(self, image: str) -> str:
        self._answer()
        if self.images is not None and image not in self.images:
            raise ImageMissing(f"No such image: {image}")
        return image

    def start(self, spec: Spec) -> Sandbox:
        self._answer()
        self.prepare_image(spec.image)
        self.specs[spec.name] = spec
        try:
            self.find(spec.name)
        except SandboxGone:
            self._boot(spec)
        if writing := secrets.script(spec):
            self._write(spec.name, writing)
        return self.find(spec.name)

    def _write(self, name: str, writing: bytes) -> None:
        done = subprocess.run(["sh", "-s"], env=self._env(name), input=writing, capture_output=True, check=False)
        if done.returncode != 0:
            self.find(name)  # killed with its sandbox, most of all
            raise SandboxError(f"the secrets could not be written: {done.stderr.decode(errors='replace')}")

    def _boot(self, spec: Spec) -> None:
        home = self._home(spec.name)
        for folder in (home / "run", home / "tmp", home / "credentials", self._workspace(spec.name)):
            folder.mkdir(parents=True, exist_ok=True)
        for path, content in spec.files.items():
            file = self._workspace(spec.name) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        boot = subprocess.Popen(["sh", str(BOOT)], env=self._env(spec.name), start_new_session=True)
        threading.Thread(target=boot.wait, daemon=True).start()
        (home / "boot").write_text(f"{boot.pid} {new_id('fake')}")

    def find(self, name: str) -> Sandbox:
        self._answer()
        try:
            pid, _, boot_id = (self._home(name) / "boot").read_text().partition(" ")
            os.kill(int(pid), 0)
        except (OSError, ValueError) as error:
            raise SandboxGone(f"there is no sandbox {name}") from error
        return Sandbox(name, boot_id)

    def exec(self, sandbox: Sandbox, command: Command, *, offset: int = 0) -> Following:
        self.commands.append(command)
        numbers = (command.timeout, command.output_limit, offset, len(command.stdin))
        words = ["run", command.call_id, *map(str, numbers), " ".join(command.forget)]
        return self._keeper(sandbox, [*words, *command.argv], env=dict(command.env), stdin=command.stdin)

    def read_secrets(self, sandbox: Sandbox) -> dict[str, bytes]:
        if self.find(sandbox.name) != sandbox:
            raise SandboxGone(f"sandbox {sandbox.name} was started anew")
        reading = ["sh", "-c", secrets.READ]
        return secrets.given(
            subprocess.run(reading, env=self._env(sandbox.name), capture_output=True, check=True).stdout
        )

    def stop_commands(self, sandbox: Sandbox, *, grace: int) -> None:
        with contextlib.suppress(SandboxGone):
            following = self._keeper(sandbox, ["stop", str(grace)])
            while following.read(1.0) is not None:
                pass

    def remove(self, name: str) -> None:
        self._answer()
        home = self._home(name)
        self._kill(name)
        while home.exists():  # what was being born in that moment writes on
            shutil.rmtree(home, ignore_errors=True)
            self._kill(name)

    def _kill(self, name: str) -> None:
        for pid in self._processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove_workspace(self, name: str) -> None:
        self._answer()
        shutil.rmtree(self._workspace(name), ignore_errors=True)

    def names(self) -> list[str]:
        self._answer()
        return [folder.name for folder in self.root.iterdir() if not folder.name.endswith(".workspace")]

    def try_network(self, policy: str) -> None:
        self._answer()

    def keep_networks(self) -> None:
        self._answer()

    def remove_networks(self) -> None:
        self._answer()

    def build_image(
        self, tag: str, context: bytes, *, args: Mapping[str, str], labels: Mapping[str, str]
    ) -> Generator[str, None, None]:
        """Nothing is run: of `will_say`, what the test has put there for this build, texts are said, errors raised."""
        self._answer()
        self.builds.append(Build(tag, context, dict(args), dict(labels)))
        for said in self.will_say.pop(0) if self.will_say else ["Step 1/1 : FROM base\n"]:
            if isinstance(said, Exception):
                raise said
            yield said
        self.built.add(tag)

    def has_image(self, image: str) -> str | None:
        self._answer()
        if image in self.built:
            return f"sha256:{image}"
        foreign = not image.startswith("agentfleet-") or "/" not in image
        return f"sha256:{image}" if foreign and (self.images is None or image in self.images) else None

    def built_images(self) -> list[str]:
        self._answer()
        return sorted(self.built)

    def remove_image(self, tag: str) -> bool:
        self._answer()
        self.built.discard(tag)
        return True

    def remove_remains(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.down:
            raise EngineDown("the container engine does not answer: told to be down")

    def _home(self, name: str) -> Path:
        return self.root / name

    def _workspace(self, name: str) -> Path:
        return self.root / f"{name}.workspace"

    def _env(self, name: str) -> dict[str, str]:
        home = self._home(name)
        return {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(home / "tmp"),
            "AGENTFLEET_RECORDS": str(home / "run"),
            "AL_CREDENTIALS_PATH": str(home / "credentials"),
            "AL_ENV_FILE": str(home / "tmp" / "env.sh"),
            "AL_SIGNAL_DIR": str(home / "tmp" / "signals"),
        }

    def _processes(self, name: str) -> Iterator[int]:
        """Everything that runs in the sandbox, also what has lost its records: known by the records' place."""
        marked = f"AGENTFLEET_RECORDS={self._home(name) / 'run'}\0".encode()
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if marked in environment.read_bytes() + b"\0":
                    yield int(environment.parent.name)

    def _keeper(
        self, sandbox: Sandbox, words: list[str], *, env: dict[str, str] | None = None, stdin: bytes = b""
    ) -> Following:
        if self.find(sandbox.name) != sandbox:
            raise SandboxGone(f"sandbox {sandbox.name} was started anew")
        spec = self.specs.get(sandbox.name)
        process = subprocess.Popen(
            ["sh", str(KEEPER), *words],
            cwd=self._workspace(sandbox.name),
            env={**self._env(sandbox.name), **(dict(spec.env) if spec else {}), **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(stdin)
            process.stdin.close()
        return FakeFollowing(self, sandbox, process)


class FakeFollowing(Following):
    def __init__(self, engine: FakeEngine, sandbox: Sandbox, process: subprocess.Popen[bytes]) -> None:
        self._engine = engine
        self._sandbox = sandbox
        self._process = process
        self._closed = threading.Event()
        self._pipes = threading.Lock()  # closed by nobody while somebody reads: the number may soon be another's
        self._said = ""

    def read(self, timeout: float) -> bytes | None:
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        while not self._closed.is_set():
            with self._pipes:
                if self._process.stdout.closed:
                    return None
                if select.select([self._process.stdout], [], [], 0.02)[0]:
                    data = os.read(self._process.stdout.fileno(), 256 * 1024)
                    if not data:
                        self._finish()
                        return None
                    return data
            if time.monotonic() > end:
                return b""
        return None

    def outcome(self) -> Outcome:
        return outcome_of(self._said)

    def close(self) -> None:
        """The reader of the pipes goes; the keeper behind them lives on, as a container's does."""
        self._closed.set()
        with self._pipes:
            for pipe in (self._process.stdout, self._process.stderr):
                assert pipe is not None
                pipe.close()
        threading.Thread(target=self._process.wait, daemon=True).start()

    def _finish(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._said = self._process.stderr.read().decode().strip().rpartition("\n")[2]
        self._process.stdout.close()
        self._process.stderr.close()
        self._process.wait()
        if self._engine.find(self._sandbox.name) != self._sandbox:
            raise SandboxGone(f"sandbox {self._sandbox.name} was started anew")
