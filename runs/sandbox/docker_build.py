"""Building an image, by the engine's own builder, so that it can be ended at any moment."""

from __future__ import annotations

import contextlib
import io
import queue
import socket
import threading
from collections.abc import Generator, Iterable
from typing import Any, Self

from runs.sandbox.base import BuildFailed

LIMITS = {"memory": 4 * 2**30, "cpushares": 256}  # of each step: database, Redis and workers come first


class DockerBuild:
    """One build, on a connection of its own: closing that is how the engine is told to give it up."""

    LISTEN = 0.5  # seconds between two answers to whoever waits

    def __init__(self, client: Any) -> None:
        self._client = client
        self._answers: list[Any] = []
        self._said: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._client.hooks["response"].append(lambda answer, **_: self._answers.append(answer))
        return self

    def __exit__(self, *exc: object) -> None:
        for answer in self._answers:
            with contextlib.suppress(OSError, AttributeError):  # it has ended, and the socket is gone
                answer.raw._fp.fp.raw._sock.shutdown(socket.SHUT_RDWR)  # noqa: SLF001 - the SDK shows it to nobody
        self._client.close()

    def of(
        self, tag: str, context: bytes, *, args: dict[str, str], labels: dict[str, str]
    ) -> Generator[str, None, None]:
        """See `Engine.build_image`."""
        lines = self._client.build(
            fileobj=io.BytesIO(context), custom_context=True, tag=tag, buildargs=args, labels=labels,
            rm=True, forcerm=True, decode=True, container_limits=LIMITS,
        )  # fmt: skip
        threading.Thread(target=self._listen, args=[lines], name="image-build-lines", daemon=True).start()
        step = ""
        while (said := self._next()) is not None:
            if "error" in said:
                raise BuildFailed(f"{step}: {said['error']}" if step else said["error"])
            text = str(said.get("stream") or said.get("status") or "")
            step = text.partition(" :")[0] if text.startswith("Step ") else step
            yield text

    def _listen(self, lines: Iterable[dict[str, Any]]) -> None:
        try:
            for said in lines:
                self._said.put(said)
            self._said.put(None)
        except Exception as error:  # noqa: BLE001 - raised in the thread that reads the build
            self._said.put(error)

    def _next(self) -> dict[str, Any] | None:
        try:
            said = self._said.get(timeout=self.LISTEN)
        except queue.Empty:
            return {}
        if isinstance(said, Exception):
            raise said
        return said
