"""What an agent runs in: its base, then its project's Dockerfile, then its own, each on top of the one before.

A tag is a hash of all that goes into an image: what is equal is built once, what has changed is another image, and no
two installations on one engine share any. The rows of `ImageBuild` say how far they are; `runs.builds` makes them.
Source: spec/action-llama.md 7.1.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import json
import re
import tarfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from django.conf import settings
from django.db.models import Q, QuerySet

from agents import clock, dockerfiles
from agents.models import Agent, AgentFile, AgentVersion
from agents.spec import AgentSpec
from runs.db import release_connection
from runs.models import BuildState, ImageBuild
from runs.sandbox import certificates
from runs.sandbox.base import BuildFailed, Engine, ImageMissing
from runs.sandbox.container import CA_VARIABLES, EXTRA_CA

USED = timedelta(hours=1)  # how exactly the last use of an image is known
LOOK_AGAIN = timedelta(minutes=10)  # a run that nobody has woken looks for its image itself
RECIPE = 1  # raise it when images are made in another way: all are built anew
FAILED = "image.failed"  # an alert
APK_FILE = "agentfleet-apk"  # in the context too, for Dockerfiles that were written for Alpine
APK = Path(__file__).parent / "sandbox" / "image" / "apk"
CA_FILE = "agentfleet-extra-ca.crt"  # in the context of a build, where the fleet has certificates of its own


@dataclass(frozen=True)
class Recipe:
    """One image to make from files of a version: its agent's own, or (`shared`) its project's."""

    tag: str
    version: int
    shared: bool
    dockerfile: str
    args: tuple[tuple[str, str], ...]
    labels: tuple[tuple[str, str], ...]

    def context(self) -> bytes:
        """A tar of what the build may take from, and its Dockerfile. The same files give the same bytes."""
        files = _folder(self.version, shared=self.shared)
        return _tar({**_wanted(files), **_ours(files), dockerfiles.NAME: self.dockerfile.encode()})


@dataclass(frozen=True)
class Need:
    """The images of one version of an agent on this host, the first of them on the base; it runs in the last."""

    agent: int
    workspace: int
    recipes: tuple[Recipe, ...]

    @property
    def tag(self) -> str:
        return self.recipes[-1].tag

    @property
    def tags(self) -> list[str]:
        return [recipe.tag for recipe in self.recipes]


class ImageBuilding(Exception):
    """The image is not there yet; the run goes on when it is, or when it cannot be had."""

    def __init__(self, needed: Need) -> None:
        super().__init__(f"the image {needed.tag} is being built")
        self.needed = needed


# --- what is needed -----------------------------------------------------------------------------------------------


def base_of(spec: AgentSpec) -> str:
    return spec.image or settings.SANDBOX_IMAGE


def need(find_image: Callable[[str], str | None], host_id: str, version: AgentVersion) -> Need | None:
    """`find_image` gives the id of an image of this host. None: the version runs in its base.

    Raises ImageMissing if that is not on this host, Refused without the fleet's certificates, EngineDown,
    ValidationError.
    """
    if not with_dockerfiles([version.pk]):
        return None
    base = base_of(version.read())
    base_id = find_image(base)
    if base_id is None:
        raise ImageMissing(f"No such image: {base}: build it (`make image`) or pull it on this host")
    needed = _need(version.pk, base_id, host_id, _certificates_digest())
    return needed if needed.recipes else None


def with_dockerfiles(versions: Collection[int | None]) -> list[int]:
    """Those of the versions that have a Dockerfile, their agent's or their project's."""
    paths = [dockerfiles.NAME, f"{dockerfiles.OF_PROJECT}{dockerfiles.NAME}"]
    return list(AgentFile.objects.filter(version__in=versions, path__in=paths).values_list("version", flat=True))


@functools.lru_cache(maxsize=1024)
def _need(version_id: int, base_id: str, host_id: str, certificates: str) -> Need:
    """Versions never change, and all else that counts is in the arguments."""
    version = AgentVersion.objects.select_related("agent__workspace").get(pk=version_id)
    recipes: list[Recipe] = []
    for shared in (True, False):
        files = _folder(version_id, shared=shared)
        if dockerfiles.does_something(_text(files)):
            base = recipes[-1].tag if recipes else base_id
            recipes.append(_recipe(version, files, base, host_id, shared=shared))
    return Need(version.agent_id, version.agent.workspace_id, tuple(recipes))


def _recipe(version: AgentVersion, files: Mapping[str, bytes], base: str, host_id: str, *, shared: bool) -> Recipe:
    agent = version.agent
    labels = {"agentfleet.fleet": settings.FLEET, "agentfleet.built-by": host_id}
    text = _rewritten(files, base, labels)
    labels["agentfleet.workspace"] = agent.workspace.name
    if not shared:
        labels["agentfleet.agent"] = agent.name
    args = _arguments(files, version.read().build_args)
    digest = _digest([RECIPE, text, labels, args], {**_wanted(files), **_ours(files)})
    tag = f"{repository_of(agent, shared=shared)}:{digest}"
    return Recipe(tag, version.pk, shared, text, tuple(args.items()), tuple(labels.items()))


def repository_of(agent: Agent, *, shared: bool) -> str:
    """What the tags of an agent's image, or its project's, begin with: the installation, the workspace, the name."""
    name = agent.project if shared else agent.name
    parts = (settings.FLEET[:30], agent.workspace.name)
    return f"agentfleet-{'-'.join(map(_slug, parts))}/{_slug(name)[:63].strip('-')}"


def _slug(name: str) -> str:
    """As names of images are written."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


# --- what goes in -------------------------------------------------------------------------------------------------


def _folder(version: int, *, shared: bool) -> dict[str, bytes]:
    """Path in the folder of the agent, or of its project, to content."""
    of_project = Q(path__startswith=dockerfiles.OF_PROJECT)
    rows = AgentFile.objects.filter(of_project if shared else ~of_project, version=version)
    prefix = dockerfiles.OF_PROJECT if shared else ""
    return {row.path.removeprefix(prefix): bytes(row.content) for row in rows}


def _wanted(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Without the Dockerfile, and nothing at all where it takes nothing: then no change of them is one of the image."""
    if not dockerfiles.takes_files(_text(files)):
        return {}
    kept = dockerfiles.not_ignored(files)
    return {path: content for path, content in kept.items() if path != dockerfiles.NAME}


def _text(files: Mapping[str, bytes]) -> str:
    return files.get(dockerfiles.NAME, b"").decode("utf-8", "replace")


def _rewritten(files: Mapping[str, bytes], base: str, labels: Mapping[str, str]) -> str:
    """Every stage is labelled, so that what a failed build leaves can be told from that of others."""
    lines = ["LABEL " + " ".join(f'{name}="{value}"' for name, value in labels.items())]
    if settings.EXTRA_CA_FILE:
        lines += [f"COPY {CA_FILE} {EXTRA_CA}", *(f"ARG {name}={EXTRA_CA}" for name in CA_VARIABLES)]
    if _speaks_of_apk(files):
        lines.append(f"COPY {APK_FILE} /usr/local/sbin/apk")
    return dockerfiles.rewritten(_text(files), base, after_from=lines)


def _arguments(files: Mapping[str, bytes], said: Mapping[str, str]) -> dict[str, str]:
    """Of what the agent and its project say, and of ours, what the Dockerfile asks for."""
    content = hashlib.sha256(_tar(files)).hexdigest()[:8]
    given = {"GIT_SHA": content, "VERSION": importlib.metadata.version("agentfleet"), **said}
    return {name: given[name] for name in sorted(dockerfiles.arguments(_text(files)) & given.keys())}


def _ours(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What a build is given besides its folder."""
    return {**_certificates(), **({APK_FILE: APK.read_bytes()} if _speaks_of_apk(files) else {})}


def _speaks_of_apk(files: Mapping[str, bytes]) -> bool:
    """The seed's base is an Alpine, and the Dockerfiles that were written for it install with `apk`."""
    return re.search(r"\bapk\b", _text(files)) is not None


def _certificates() -> dict[str, bytes]:
    """Raises Refused."""
    return {CA_FILE: certificates.read(settings.EXTRA_CA_FILE)} if settings.EXTRA_CA_FILE else {}


def _certificates_digest() -> str:
    return hashlib.sha256(b"".join(_certificates().values())).hexdigest()


def _digest(stuff: Sequence[object], files: Mapping[str, bytes]) -> str:
    contents = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    whole = json.dumps([stuff, contents], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:24]


def _tar(files: Mapping[str, bytes]) -> bytes:
    """Of root, and programs can be run: what begins with `#!`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o755 if content.startswith(b"#!") else 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


# --- what a run gets ----------------------------------------------------------------------------------------------


def ready(engine: Engine, host_id: str, version: AgentVersion) -> str:
    """The reference to start a sandbox of that version from.

    Raises ImageBuilding, and BuildFailed where a build has; ImageMissing, Refused, EngineDown.
    """
    needed = need(engine.has_image, host_id, version)
    release_connection()  # the first time an image may be made ready, which takes minutes
    if needed is None:
        return engine.prepare_image(base_of(version.read()))
    if engine.has_image(needed.tag) is None:
        raise_as_it_stands(host_id, needed)
    _use(host_id, needed.tag)
    return engine.prepare_image(needed.tag)


def raise_as_it_stands(host_id: str, needed: Need) -> None:
    """Why the image is not there. Whatever was not asked for yet is from now on."""
    order(host_id, [needed])
    rows = ImageBuild.objects.filter(host=host_id, tag__in=needed.tags)
    failed = rows.filter(state=BuildState.FAILED).order_by("id").first()
    if failed is not None:
        raise BuildFailed(f"the image {failed.tag} could not be built:\n{failed.error}")
    rows.filter(tag=needed.tag, state=BuildState.BUILT).update(state=BuildState.PENDING)  # removed by somebody
    raise ImageBuilding(needed)


def order(host_id: str, needs: Collection[Need]) -> None:
    """A row for each image that has none."""
    wanted = {recipe.tag: (need, recipe) for need in needs for recipe in need.recipes}
    known = ImageBuild.objects.filter(host=host_id, tag__in=wanted).values_list("tag", flat=True)
    ImageBuild.objects.bulk_create(
        [_row(host_id, *wanted[tag]) for tag in wanted.keys() - set(known)], ignore_conflicts=True
    )


def _row(host_id: str, need: Need, recipe: Recipe) -> ImageBuild:
    agent = None if recipe.shared else need.agent
    return ImageBuild(host_id=host_id, workspace_id=need.workspace, agent_id=agent, tag=recipe.tag)


def decided(host_id: str, needed: Need, *, since: datetime | None = None) -> bool:
    """Whether a run has nothing left to wait for: its image is there, or one below it cannot be had."""
    rows = ImageBuild.objects.filter(host=host_id, **({"ended_at__gte": since} if since else {}))
    over = Q(tag=needed.tag, state=BuildState.BUILT) | Q(tag__in=needed.tags, state=BuildState.FAILED)
    return rows.filter(over).exists()


def rows_of(agent: Agent) -> QuerySet[ImageBuild]:
    """The images made for an agent: its own, and those it shares with the others of its project."""
    of_project = Q(agent=None, workspace=agent.workspace_id, tag__startswith=f"{repository_of(agent, shared=True)}:")
    return ImageBuild.objects.filter(Q(agent=agent) | (of_project if agent.project else Q()))


def build_again(agent: Agent) -> int:
    """Those that have failed, on every host, at once; how many."""
    return rows_of(agent).filter(state=BuildState.FAILED).update(state=BuildState.PENDING)


def _use(host_id: str, tag: str) -> None:
    now = clock.now()
    lately = Q(used_at=None) | Q(used_at__lt=now - USED)
    ImageBuild.objects.filter(lately, host=host_id, tag=tag).update(used_at=now)
