"""Sandboxes as Docker containers, hardened by default. With the image builder, the only place that imports docker."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import socket
import tarfile
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import docker
import docker.utils
import requests.exceptions
import urllib3.exceptions
from django.conf import settings
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import LogConfig, Mount

from runs.sandbox import ready, secrets
from runs.sandbox.base import (
    USER,
    Command,
    Engine,
    EngineDown,
    Following,
    ImageMissing,
    Refused,
    Sandbox,
    SandboxError,
    SandboxGone,
    Spec,
)
from runs.sandbox.container import EXTRA_CA, LABEL, TMPFS, environment, labels_of, workspace
from runs.sandbox.docker_build import DockerBuild
from runs.sandbox.docker_stream import DockerFollowing
from runs.sandbox.network import Link, Networks

log = logging.getLogger(__name__)

KEEPER = Path(__file__).with_name("keeper.sh").read_text()
BOOT = Path(__file__).with_name("boot.sh").read_text()
BUILT_BY = "agentfleet.built-by"  # on images made for agents, and on what their builds leave: the host
IMAGE = "agentfleet.image"  # on images made for agents, and on what is made of them: the tag
VERIFY_FOR = 30.0  # seconds to wait for a removal to be true
GIVING = 30.0  # seconds that a sandbox may take to write its secrets, or to say them


_fillers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="sandbox-files")


class DockerEngine(Engine):
    """One engine, reached as `docker` itself would reach it (`DOCKER_HOST` and its kin)."""

    def __init__(self, host_id: str) -> None:
        self._host_id = host_id  # labels what is ours: an engine may serve several installations
        self._networks = Networks(host_id)
        self._ready: dict[str, tuple[float, str]] = {}

    @functools.cached_property
    def _client(self) -> docker.APIClient:
        with translated():
            return self._api()

    @staticmethod
    def _api() -> docker.APIClient:
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
        with translated():
            self._networks.keep(self._client)
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

    def remove_networks(self) -> None:
        with translated():
            self._networks.remove(self._client)

    def build_image(
        self, tag: str, context: bytes, *, args: Mapping[str, str], labels: Mapping[str, str]
    ) -> Generator[str, None, None]:
        of_image = {**self._ours(), IMAGE: tag, **labels}
        with translated(), DockerBuild(self._api()) as build:
            yield from build.of(tag, context, args=dict(args), labels=of_image)

    def has_image(self, image: str) -> str | None:
        with translated():
            try:
                found: str = self._client.inspect_image(image)["Id"]
            except ImageNotFound:
                return None
        return found

    def built_images(self) -> list[str]:
        ours = [f"{name}={value}" for name, value in self._ours().items()]
        with translated():
            found = self._client.images(filters={"label": [*ours, IMAGE]})
        return sorted({image["Labels"][IMAGE] for image in found})

    def remove_image(self, tag: str) -> bool:
        with translated():
            made = self._client.images(filters={"label": f"{IMAGE}={tag}"})
            names = [name for image in made for name in image["RepoTags"] or []]
            for name in sorted({*names, tag}, key=lambda name: name == tag):  # what was made of it goes first
                try:
                    self._client.remove_image(name)
                except ImageNotFound:
                    pass
                except APIError as error:
                    if error.status_code != 409:
                        raise
                    return False
        return True

    def remove_remains(self) -> None:
        ours = [f"{name}={value}" for name, value in self._ours().items()]
        with translated():
            self._client.prune_images(filters={"dangling": True, "label": ours})

    def _ours(self) -> dict[str, str]:
        """Not the labels of our sandboxes: containers inherit those of their image, and a build has containers too."""
        return {f"{LABEL}.fleet": settings.FLEET, BUILT_BY: self._host_id}

    def _made_ready(self, image: str) -> str:
        try:
            facts = self._client.inspect_image(image)
        except ImageNotFound as error:
            raise ImageMissing(f"{error.explanation}: build it (`make image`) or pull it on this host") from error
        version, config = ready.version(), facts["Config"]
        if (config.get("Labels") or {}).get(ready.LABEL) == version:
            return image
        tag = f"{LABEL}-ready:{facts['Id'].removeprefix('sha256:')[:24]}-{version}"
        with contextlib.suppress(ImageNotFound):
            self._client.inspect_image(tag)
            return tag
        labels = {ready.LABEL: version, f"{LABEL}.fleet": settings.FLEET}
        context = io.BytesIO(ready.context(facts["Id"], config.get("Env") or [], labels))
        for line in self._client.build(fileobj=context, custom_context=True, tag=tag, rm=True, decode=True):
            if "error" in line:
                raise ImageMissing(f"{image} cannot be used as a sandbox: {line['error']}")
        return tag

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
