"""A Docker engine of our own beside this machine's: its restarts cost nobody else a container. Needs root.

It shares nothing with the other: not its folders, not its bridge, and it leaves the firewall alone. The filter of the
network that our sandboxes stand on is agentfleet's own, and no rule of the engine's is needed for it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ANSWERS_WITHIN = 60.0  # seconds
ENDS_WITHIN = 60.0  # seconds from TERM; it ends its containers first
CONTAINERS_END_WITHIN = 2  # seconds


class NoEngine(Exception):
    """It did not start, or did not end; the message says which, and where its log is."""


class Engine:
    """dockerd with its own containerd, and everything of theirs in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.host = f"unix://{folder}/docker.sock"
        self._folder = folder
        self._bridge = f"chaos{secrets.token_hex(4)}"
        self._process: subprocess.Popen[bytes] | None = None

    def make_bridge(self) -> None:
        """Raises CalledProcessError."""
        subnet = f"10.213.{secrets.randbelow(255)}.1/24"
        for words in (
            ["link", "add", "name", self._bridge, "type", "bridge"],
            ["addr", "add", subnet, "dev", self._bridge],
        ):
            subprocess.run(["ip", *words], check=True)

    def remove_bridge(self) -> None:
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)

    def start(self) -> None:
        """Raises NoEngine."""
        places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
        argv = ["dockerd", "--host", self.host, "--bridge", self._bridge]
        argv += [f"--{option}={self._folder / name}" for option, name in places.items()]
        argv += ["--iptables=false", "--ip6tables=false", "--ip-masq=false"]
        argv += ["--shutdown-timeout", str(CONTAINERS_END_WITHIN)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + ANSWERS_WITHIN
        while subprocess.run(["docker", "-H", self.host, "info"], capture_output=True, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                raise NoEngine(f"dockerd does not answer at {self.host}: see {self._folder}/log")
            time.sleep(0.1)

    def stop(self) -> None:
        """Raises NoEngine."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            raise NoEngine(f"dockerd did not end within {ENDS_WITHIN:.0f} s: see {self._folder}/log") from error

    def take(self, image: str) -> None:
        """A copy of an image of this machine's usual engine. Raises CalledProcessError."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as save:
            subprocess.run(
                ["docker", "-H", self.host, "load", "-q"], stdin=save.stdout, capture_output=True, check=True
            )


@contextlib.contextmanager
def own(image: str) -> Iterator[Engine]:
    """An engine that has this image. Until the end of the block it is the one every `docker` here talks to."""
    folder = Path(tempfile.mkdtemp(prefix="agentfleet-engine-"))
    engine = Engine(folder)
    try:
        engine.make_bridge()
        engine.start()
        engine.take(image)
        os.environ["DOCKER_HOST"] = engine.host
        yield engine
    finally:
        os.environ.pop("DOCKER_HOST", None)
        engine.stop()
        engine.remove_bridge()
        shutil.rmtree(folder, ignore_errors=True)
