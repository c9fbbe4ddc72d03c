"""Images in a Docker engine: made ready to be a sandbox, built for agents, and removed."""

from __future__ import annotations

import contextlib
import functools
import io
import time
from collections.abc import Generator, Mapping

import docker
from django.conf import settings
from docker.errors import APIError, ImageNotFound

from runs.sandbox import ready
from runs.sandbox.base import Engine, ImageMissing
from runs.sandbox.container import LABEL
from runs.sandbox.docker_build import DockerBuild
from runs.sandbox.docker_client import connected, translated

BUILT_BY = "agentfleet.built-by"  # on images made for agents, and on what their builds leave: the host
IMAGE = "agentfleet.image"  # on images made for agents, and on what is made of them: the tag


class DockerImages(Engine):
    """The half of an engine that is about images. Abstract: the other is `DockerEngine`."""

    def __init__(self, host_id: str) -> None:
        self._host_id = host_id  # labels what is ours: an engine may serve several installations
        self._ready: dict[str, tuple[float, str]] = {}

    @functools.cached_property
    def _client(self) -> docker.APIClient:
        return connected()

    def prepare_image(self, image: str) -> str:
        seen_at, ready = self._ready.get(image, (0.0, ""))
        if time.monotonic() - seen_at > 10:
            with translated():
                ready = self._made_ready(image)
            self._ready[image] = (time.monotonic(), ready)
        return ready

    def build_image(
        self, tag: str, context: bytes, *, args: Mapping[str, str], labels: Mapping[str, str]
    ) -> Generator[str, None, None]:
        of_image = {**self._ours(), IMAGE: tag, **labels}
        with translated(), DockerBuild(connected()) as build:
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
