"""Sandboxes as Docker containers, hardened by default. Only this and the `docker_` modules beside it import docker."""

from __future__ import annotations

import contextlib
import io
import socket
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

import docker
from django.conf import settings
from docker.errors import APIError, NotFound
from docker.types import LogConfig, Mount

from runs.sandbox import secrets
from runs.sandbox.base import USER, Command, Following, Sandbox, SandboxError, SandboxGone, Spec
from runs.sandbox.container import EXTRA_CA, LABEL, TMPFS, environment, labels_of, workspace
from runs.sandbox.docker_client import translated
from runs.sandbox.docker_images import DockerImages
from runs.sandbox.docker_stream import DockerFollowing
from runs.sandbox.network import Link, Networks

KEEPER = Path(__file__).with_name("keeper.sh").read_text()
BOOT = Path(__file__).with_name("boot.sh").read_text()
VERIFY_FOR = 30.0  # seconds to wait for a removal to be true
GIVING = 30.0  # seconds that a sandbox may take to write its secrets, or to say them

_fillers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="sandbox-files")


class DockerEngine(DockerImages):
    """One engine: its sandboxes, on the networks of this host."""

    def __init__(self, host_id: str) -> None:
        super().__init__(host_id)
        self._networks = Networks(host_id)

    def close(self) -> None:
        """Let its connections go."""
        self._client.close()

    def ping(self) -> str:
        with translated():
            facts = self._client.version()
        return f"Docker {facts['Version']}"

    def start(self, spec: Spec) -> Sandbox:
        try:
            sandbox = self._started(spec)
        except SandboxGone:  # its network may be, which another worker of this host has taken along
            if spec.network == "none":
                raise
            self._networks.forget()
            self.remove(spec.name)
            sandbox = self._started(spec)
        self._fill(sandbox, spec)
        return sandbox

    def find(self, name: str) -> Sandbox:
        with translated():
            return self._running(name)

    def exec(self, sandbox: Sandbox, command: Command, *, offset: int = 0) -> Following:
        self.keep_networks()
        numbers = (command.timeout, command.output_limit, offset, len(command.stdin))
        words = ["run", command.call_id, *map(str, numbers), " ".join(command.forget)]
        return self._keeper(sandbox, [*words, *command.argv], env=dict(command.env), stdin=command.stdin)

    def read_secrets(self, sandbox: Sandbox) -> dict[str, bytes]:
        if self.find(sandbox.name) != sandbox:
            raise SandboxGone(f"container {sandbox.name} was started anew")
        return secrets.given(self._as_root(sandbox, ["sh", "-c", secrets.READ]))

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

    def try_network(self, policy: str) -> None:
        with translated():
            Networks(f"trial-{token_hex(4)}").try_out(policy, self._client)

    def keep_networks(self) -> None:
        with translated():
            self._networks.keep(self._client)

    def remove_networks(self) -> None:
        with translated():
            self._networks.remove(self._client)

    def _started(self, spec: Spec) -> Sandbox:
        with translated():
            self._create(spec, self._networks.link(spec.network, self._client))
            self._client.start(spec.name)
            return self._running(spec.name)

    def _create(self, spec: Spec, link: Link) -> None:
        """Create the container, or leave the one of that name if it can still be used."""
        body = _creation(self._client, spec, self.prepare_image(spec.image), link, self._host_id)
        try:
            self._client.create_container_from_config(body, spec.name)
        except APIError as error:
            if error.status_code != 409:
                raise
            if self._client.inspect_container(spec.name)["State"]["Status"] in {"created", "running"}:
                return
            self.remove(spec.name)
            self._client.create_container_from_config(body, spec.name)

    def _fill(self, sandbox: Sandbox, spec: Spec) -> None:
        """Files and secrets side by side: each takes the engine a process of its own. Also of one that was there."""
        files = _fillers.submit(self._put_files, spec) if spec.files else None
        try:
            if writing := secrets.script(spec):
                self._as_root(sandbox, ["sh", "-s"], stdin=writing)
        finally:
            if files is not None:
                files.result()

    def _put_files(self, spec: Spec) -> None:
        with translated():
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
        return self._exec(sandbox, argv, stdin=stdin, environment=env)

    def _as_root(self, sandbox: Sandbox, argv: list[str], *, stdin: bytes = b"") -> bytes:
        """What it printed. For what is agentfleet's own: root has no capabilities there, but owns its files."""
        saying = ["sh", "-c", '"$@"; echo "exit $?" >&2', "sh", *argv]
        following = self._exec(sandbox, saying, stdin=stdin, user="0:0")
        output, end = b"", time.monotonic() + GIVING
        while (data := following.read(1.0)) is not None:
            output += data
            if time.monotonic() > end:
                following.close()
        if (code := following.outcome().exit_code) != 0:
            raise SandboxError(f"the secrets of {sandbox.name} cannot be written or read: exit code {code}")
        return output

    def _exec(self, sandbox: Sandbox, argv: list[str], *, stdin: bytes = b"", **how: Any) -> DockerFollowing:
        container = sandbox.id.partition("@")[0]
        with translated():
            made = self._client.exec_create(container, argv, stdin=bool(stdin), **how)
            stream = self._client.exec_start(made["Id"], socket=True)
        # The SDK wraps the socket in a reader; the socket itself can be waited for, and shut from any thread.
        raw: socket.socket = cast("Any", stream)._sock  # noqa: SLF001
        if stdin:
            with translated():
                raw.sendall(stdin)
                raw.shutdown(socket.SHUT_WR)
        return DockerFollowing(self.find, sandbox, stream, raw)


def _creation(client: docker.APIClient, spec: Spec, image: str, link: Link, host_id: str) -> dict[str, Any]:
    labels = labels_of(spec, host_id)
    mounts = [Mount("/workspace", workspace(spec.name), type="volume", labels=labels)]
    if settings.EXTRA_CA_FILE:
        mounts.append(Mount(EXTRA_CA, settings.EXTRA_CA_FILE, type="bind", read_only=True))
    host: dict[str, Any] = client.create_host_config(
        init=True,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        network_mode=link.mode,
        extra_hosts=dict(link.hosts) or None,
        dns=list(link.dns) or None,
        dns_opt=list(link.dns_options) or None,
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
        environment=environment(spec),
        labels=labels,
        host_config=cast("Any", host),
    )
    return body


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
