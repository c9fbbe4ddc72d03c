"""Sandboxes as Docker containers, hardened by default. With the image builder, the only place that imports docker."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import select
import socket
import struct
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import docker
import docker.utils
import requests.exceptions
import urllib3.exceptions
from django.conf import settings
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import LogConfig, Mount

from runs.sandbox import network
from runs.sandbox.base import (
    USER,
    Command,
    Ending,
    Engine,
    EngineDown,
    Following,
    ImageMissing,
    Outcome,
    Refused,
    Sandbox,
    SandboxError,
    SandboxGone,
    Spec,
)

log = logging.getLogger(__name__)

KEEPER = Path(__file__).with_name("keeper.sh").read_text()
BOOT = Path(__file__).with_name("boot.sh").read_text()
LABEL = "agentfleet"
READY = "agentfleet.ready"  # on images whose /workspace already belongs to the sandbox's user
DIES_WITHIN = 1.0  # seconds from the end of a container's streams to the engine's knowing of it
VERIFY_FOR = 30.0  # seconds to wait for a removal to be true

# Nothing is mounted over an image's own files. `noexec` where nothing of the agent's ever lies.
_mine = f"uid={USER},gid={USER}"
TMPFS = {
    "/tmp": f"rw,exec,nosuid,size=2g,{_mine},mode=1777",  # noqa: S108 - a mount point
    "/run/agentfleet": f"rw,noexec,nosuid,size=192m,{_mine},mode=0700",
}


class DockerEngine(Engine):
    """One engine, reached as `docker` itself would reach it (`DOCKER_HOST` and its kin)."""

    def __init__(self, host_id: str) -> None:
        self._host_id = host_id  # labels what is ours: an engine may serve several installations
        self._ready: dict[str, tuple[float, str]] = {}

    @functools.cached_property
    def _client(self) -> docker.APIClient:
        with translated():
            return docker.APIClient(
                **docker.utils.kwargs_from_env(), version="auto", timeout=60, max_pool_size=256, num_pools=4
            )

    def close(self) -> None:
        """Let its connections go."""
        self._client.close()

    def ping(self) -> str:
        with translated():
            facts = self._client.version()
        return f"Docker {facts['Version']}"

    def prepare_image(self, image: str) -> str:
        seen_at, ready = self._ready.get(image, (0.0, ""))
        if time.monotonic() - seen_at > 10:
            with translated():
                ready = self._made_ready(image)
            self._ready[image] = (time.monotonic(), ready)
        return ready

    def start(self, spec: Spec) -> Sandbox:
        mode = network.docker_mode(spec.network, self)
        with translated():
            self._create(spec, mode)
            self._client.start(spec.name)
            return self._running(spec.name)

    def find(self, name: str) -> Sandbox:
        with translated():
            return self._running(name)

    def exec(self, sandbox: Sandbox, command: Command, *, offset: int = 0) -> Following:
        numbers = (command.timeout, command.output_limit, offset, len(command.stdin))
        words = ["run", command.call_id, *map(str, numbers), " ".join(command.forget)]
        return self._keeper(sandbox, [*words, *command.argv], env=dict(command.env), stdin=command.stdin)

    def stop_commands(self, sandbox: Sandbox, *, grace: int) -> None:
        with contextlib.suppress(SandboxGone):
            following = self._keeper(sandbox, ["stop", str(grace)])
            end = time.monotonic() + grace + 5
            while following.read(1.0) is not None and time.monotonic() < end:
                pass
            following.close()

    def remove(self, name: str) -> None:
        end = time.monotonic() + VERIFY_FOR
        while time.monotonic() < end:
            with translated():
                try:
                    self._client.remove_container(name, force=True)
                    self._client.inspect_container(name)
                except NotFound:
                    return
                except APIError as error:
                    if error.status_code != 409:  # 409: the engine is at it already
                        raise
            time.sleep(0.1)
        raise SandboxError(f"container {name} is still there {VERIFY_FOR:.0f} s after its removal was asked for")

    def remove_workspace(self, name: str) -> None:
        with translated(), contextlib.suppress(NotFound):
            self._client.remove_volume(workspace(name))

    def names(self) -> list[str]:
        mine = {"label": f"{LABEL}.host={self._host_id}"}
        with translated():
            containers = self._client.containers(all=True, filters=mine)
        return [names[0].lstrip("/") for container in containers if (names := container.get("Names"))]

    def _made_ready(self, image: str) -> str:
        try:
            facts = self._client.inspect_image(image)
        except ImageNotFound as error:
            raise ImageMissing(f"{error.explanation}: build it (`make image`) or pull it on this host") from error
        if (facts["Config"].get("Labels") or {}).get(READY):
            return image
        tag = f"{LABEL}-ready:{facts['Id'].removeprefix('sha256:')[:24]}"
        with contextlib.suppress(ImageNotFound):
            self._client.inspect_image(tag)
            return tag
        recipe = (
            f"FROM {facts['Id']}\nUSER 0:0\n"
            f"RUN mkdir -p /workspace && chown {USER}:{USER} /workspace\n"
            f"LABEL {READY}=1 {LABEL}.fleet={settings.FLEET}\n"
        )
        build = self._client.build(fileobj=io.BytesIO(recipe.encode()), tag=tag, rm=True, decode=True)
        for line in build:
            if "error" in line:
                raise ImageMissing(f"{image} cannot be used as a sandbox: {line['error']}")
        return tag

    def _create(self, spec: Spec, network_mode: str) -> None:
        """Create the container, or leave the one of that name if it can still be used."""
        body = _creation(self._client, spec, self.prepare_image(spec.image), network_mode, self._host_id)
        try:
            self._client.create_container_from_config(body, spec.name)
        except APIError as error:
            if error.status_code != 409:
                raise
            if self._client.inspect_container(spec.name)["State"]["Status"] in {"created", "running"}:
                return
            self.remove(spec.name)
            self._client.create_container_from_config(body, spec.name)
        if spec.files:
            self._client.put_archive(spec.name, "/workspace", _archive(spec.files))

    def _running(self, name: str) -> Sandbox:
        try:
            facts = self._client.inspect_container(name)
        except NotFound as error:
            raise SandboxGone(f"there is no container {name}") from error
        state = facts["State"]
        if not state["Running"]:
            raise SandboxGone(f"container {name} has ended: {_how_it_ended(state)}")
        return Sandbox(name, f"{facts['Id'][:12]}@{state['StartedAt']}")

    def _keeper(
        self, sandbox: Sandbox, words: list[str], *, env: dict[str, str] | None = None, stdin: bytes = b""
    ) -> DockerFollowing:
        argv = ["sh", "-c", KEEPER, "keeper.sh", *words]
        container = sandbox.id.partition("@")[0]
        with translated():
            made = self._client.exec_create(container, argv, stdin=bool(stdin), environment=env)
            stream = self._client.exec_start(made["Id"], socket=True)
        # The SDK wraps the socket in a reader; the socket itself can be waited for, and shut from any thread.
        raw: socket.socket = cast("Any", stream)._sock  # noqa: SLF001
        if stdin:
            with translated():
                raw.sendall(stdin)
                raw.shutdown(socket.SHUT_WR)
        return DockerFollowing(self, sandbox, stream, raw)


class DockerFollowing(Following):
    """Reads the engine's framed stream: 8 bytes of header (which stream, how long), then that many of data."""

    HEADER = struct.Struct(">BxxxL")
    STDOUT = 1

    def __init__(self, engine: DockerEngine, sandbox: Sandbox, stream: Any, raw: socket.socket) -> None:
        self._engine = engine
        self._sandbox = sandbox
        self._stream = stream
        self._raw = raw
        self._buffer = bytearray(_read_ahead(stream, raw))
        self._said = b""  # by the keeper, on stderr
        self._closed = False

    def read(self, timeout: float) -> bytes | None:
        if data := self._frames():
            return data
        try:
            waiting = select.poll()  # unlike select, at home with more than 1024 open files
            waiting.register(self._raw, select.POLLIN)
            if not waiting.poll(timeout * 1000):
                return b""
            received = self._raw.recv(256 * 1024)
        except (OSError, ValueError):  # closed by another thread, or the engine went away
            received = b""
        if not received:
            self._finish()
            return None
        self._buffer += received
        return self._frames()

    def outcome(self) -> Outcome:
        words = self._said.decode("utf-8", "replace").strip().rpartition("\n")[2].split()
        match words:
            case ["exit", code]:
                return Outcome(Ending.EXITED, int(code))
            case ["exit", code, "timeout"]:
                return Outcome(Ending.TIMEOUT, int(code))
            case ["exit", code, "output"]:
                return Outcome(Ending.OUTPUT_LIMIT, int(code))
            case ["lost"]:
                return Outcome(Ending.LOST)
        raise SandboxError(f"the command could not be started: {' '.join(words) or 'the engine gave no reason'}")

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def _frames(self) -> bytes:
        """The output in all complete frames received so far; the keeper's own words are put aside."""
        output = bytearray()
        while len(self._buffer) >= self.HEADER.size:
            kind, length = self.HEADER.unpack_from(self._buffer)
            end = self.HEADER.size + length
            if len(self._buffer) < end:
                break
            data = self._buffer[self.HEADER.size : end]
            if kind == self.STDOUT:
                output += data
            else:
                self._said = (self._said + data)[-2000:]
            del self._buffer[:end]
        return bytes(output)

    def _finish(self) -> None:
        """The stream's end is not the command's: without the keeper's last word, ask what became of the sandbox."""
        self._stream._response.close()  # noqa: SLF001 - or the connection would wait for the garbage collector
        self._raw.close()
        if self._closed or self._said:
            return
        # The stream of a dying container ends some milliseconds before the engine says that it has died.
        end = time.monotonic() + DIES_WITHIN
        while self._engine.find(self._sandbox.name) == self._sandbox:
            if time.monotonic() > end:
                self._said = b"lost"  # the container stands: only the keeper was killed
                return
            time.sleep(0.02)
        raise SandboxGone(f"container {self._sandbox.name} was started anew")


def _read_ahead(stream: Any, raw: socket.socket) -> bytes:
    """What came together with the head of the answer: the SDK's reader has it, and the socket has it no more."""
    timeout = raw.gettimeout()
    raw.setblocking(False)
    try:
        ahead: bytes = stream._response.raw._fp.fp.peek()  # noqa: SLF001 - the SDK shows it to nobody
    finally:
        raw.settimeout(timeout)
    return ahead


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """The SDK's exceptions as the contract's."""
    try:
        yield
    except SandboxError:
        raise
    except ImageNotFound as error:
        raise ImageMissing(str(error.explanation)) from error
    except APIError as error:
        words = str(error.explanation or error)
        if error.status_code in {404, 409}:
            raise SandboxGone(words) from error
        if error.status_code == 400:
            raise Refused(words) from error
        raise SandboxError(words) from error
    except (
        DockerException,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
    ) as error:
        raise EngineDown(f"the container engine does not answer: {error}") from error


def workspace(name: str) -> str:
    """The volume behind /workspace of the sandbox of that name."""
    return f"{name}-workspace"


def run_flags(spec: Spec, host_id: str) -> list[str]:
    """The same container as arguments of `docker run`: for people who want to look, and for the bench's floor."""
    labels = _labels(spec, host_id)
    flags = [
        "--name",
        spec.name,
        "--user",
        f"{USER}:{USER}",
        "--workdir",
        "/workspace",
        "--init",
        "--read-only",
    ]
    flags += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--network", "none"]
    flags += ["--pids-limit", str(spec.pids), "--memory", spec.memory, "--cpus", str(spec.cpus)]
    flags += ["--cpu-shares", "256", "--oom-score-adj", "500", "--log-driver", "none"]
    if settings.SANDBOX_RUNTIME:
        flags += ["--runtime", settings.SANDBOX_RUNTIME]
    if settings.EXTRA_CA_FILE:
        flags += ["--mount", f"type=bind,source={settings.EXTRA_CA_FILE},target={EXTRA_CA},readonly"]
    flags += [f"--tmpfs={path}:{options}" for path, options in TMPFS.items()]
    volume = [f"volume-label={key}={value}" for key, value in labels.items()]
    flags += ["--mount", ",".join([f"type=volume,source={workspace(spec.name)},target=/workspace", *volume])]
    flags += [f"--label={key}={value}" for key, value in labels.items()]
    return [*flags, *(f"--env={key}={value}" for key, value in _environment(spec).items())]


def _creation(client: docker.APIClient, spec: Spec, image: str, network_mode: str, host_id: str) -> dict[str, Any]:
    labels = _labels(spec, host_id)
    mounts = [Mount("/workspace", workspace(spec.name), type="volume", labels=labels)]
    if settings.EXTRA_CA_FILE:
        mounts.append(Mount(EXTRA_CA, settings.EXTRA_CA_FILE, type="bind", read_only=True))
    host: dict[str, Any] = client.create_host_config(
        init=True,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        network_mode=network_mode,
        pids_limit=spec.pids,
        mem_limit=spec.memory,
        nano_cpus=int(spec.cpus * 1_000_000_000),
        cpu_shares=256,  # database, Redis and workers come first
        oom_score_adj=500,
        tmpfs=TMPFS,
        mounts=mounts,
        log_config=LogConfig(type="none"),  # its own program says nothing; commands write to files
        runtime=settings.SANDBOX_RUNTIME or None,
    )
    body: dict[str, Any] = client.create_container_config(
        image,
        entrypoint=["sh", "-c", BOOT],
        command=[],
        user=f"{USER}:{USER}",
        working_dir="/workspace",
        environment=_environment(spec),
        labels=labels,
        host_config=cast("Any", host),
    )
    return body


EXTRA_CA = "/etc/agentfleet-extra-ca.crt"


def _environment(spec: Spec) -> dict[str, str]:
    environment = {"HOME": "/tmp", "AL_SIGNAL_DIR": "/tmp/signals", **spec.env}  # noqa: S108
    if settings.EXTRA_CA_FILE:
        for name in (
            "SSL_CERT_FILE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "GIT_SSL_CAINFO",
            "NODE_EXTRA_CA_CERTS",
        ):
            environment.setdefault(name, EXTRA_CA)
    return environment


def _labels(spec: Spec, host_id: str) -> dict[str, str]:
    return {f"{LABEL}.fleet": settings.FLEET, f"{LABEL}.host": host_id, **spec.labels}


def _archive(files: Any) -> bytes:
    """A tar with the files owned by root and 0444: the agent reads them and does not write them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode, entry.mtime = len(content), 0o444, int(time.time())
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _how_it_ended(state: dict[str, Any]) -> str:
    if state.get("OOMKilled"):
        return "out of memory"
    return str(state.get("Error") or f"{state.get('Status')}, exit code {state.get('ExitCode')}")
