"""What the bench asks the engine itself: when containers are gone, how fast it is without us, and to clear up."""

from __future__ import annotations

import queue
import secrets
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from django.conf import settings

from bench.figures import Unmeasured
from runs.sandbox.base import Spec
from runs.sandbox.container import run_flags

NOBODYS_HOST = "bench-floor"  # no worker's: else its sweep would remove what it does not know


class Removals:
    """Hears from the engine when a run's container of this fleet is gone: polling would disturb what is measured."""

    def __init__(self) -> None:
        self._heard: queue.SimpleQueue[float] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        argv = ["docker", "events", "--since", f"{time.time():.9f}", "--format", "{{.ID}}"]
        argv += ["--filter", "type=container", "--filter", "event=destroy"]
        argv += ["--filter", f"label=agentfleet.fleet={settings.FLEET}", "--filter", "label=agentfleet.run"]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait()

    def wait(self, count: int, *, within: float) -> float:
        """When the `count`-th from now was gone, as `time.time()`. Raises Unmeasured after `within` seconds."""
        end, at = time.monotonic() + within, 0.0
        for number in range(count):
            try:
                at = self._heard.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty as error:
                raise Unmeasured(f"{number} of {count} containers were gone within {within:.0f} s") from error
        return at

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            self._heard.put(time.time())


def floor(count: int, *, parallel: int) -> float:
    """Bare containers a second, with the image and the flags of a sandbox: run, one exec, remove.

    Their volumes are removed as well, outside the time.
    """
    batch = secrets.token_hex(4)
    names = [f"bench-floor-{batch}-{number}" for number in range(count)]
    pool = ThreadPoolExecutor(parallel)
    try:
        began = time.monotonic()
        list(pool.map(_one_by_hand, names))
        return count / (time.monotonic() - began)
    finally:
        pool.shutdown(cancel_futures=True)
        docker("rm", "-f", *names, check=False)
        docker("volume", "rm", "-f", *(f"{name}-workspace" for name in names), check=False)


def _one_by_hand(name: str) -> None:
    flags = run_flags(Spec(name=name, image=settings.SANDBOX_IMAGE), NOBODYS_HOST)
    docker("run", "-d", *flags, settings.SANDBOX_IMAGE, "tail", "-f", "/dev/null")
    docker("exec", name, "echo", "hello from the sandbox")
    docker("rm", "-f", name)


def left() -> list[str]:
    """Containers of this fleet that the engine still has."""
    return docker("ps", "-aq", "--filter", f"label=agentfleet.fleet={settings.FLEET}").split()


def remove_all() -> None:
    """Containers and volumes of this fleet, whoever left them."""
    if containers := left():
        docker("rm", "-f", *containers, check=False)
    volumes = docker("volume", "ls", "-q", "--filter", f"label=agentfleet.fleet={settings.FLEET}").split()
    if volumes:
        docker("volume", "rm", "-f", *volumes, check=False)


def docker(*words: str, check: bool = True) -> str:
    """What it printed. Raises Unmeasured with its own words."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise Unmeasured(f"docker {words[0]}: {done.stderr.strip()}")
    return done.stdout
