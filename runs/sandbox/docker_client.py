"""The connection to a Docker engine, and its exceptions as the contract's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import docker
import docker.utils
import requests.exceptions
import urllib3.exceptions
from docker.errors import APIError, DockerException, ImageNotFound

from runs.sandbox.base import EngineDown, ImageMissing, Refused, SandboxError, SandboxGone


def connected() -> docker.APIClient:
    """A connection as `docker` itself would make it (`DOCKER_HOST` and its kin). Raises EngineDown."""
    with translated():
        return docker.APIClient(
            **docker.utils.kwargs_from_env(), version="auto", timeout=60, max_pool_size=256, num_pools=4
        )


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
