"""Making the images this host needs, in threads of its own and beside the runs.

A row of `ImageBuild` is claimed by one conditional UPDATE with the builder's name, so each is made once on a host. What
a builder that died has begun is begun anew; one that is stopped gives it back.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import time
from collections.abc import Collection, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db.models import Q, QuerySet
from pydantic import ValidationError

from agents import clock, private_files, storable
from agents.models import Agent, AgentVersion
from agents.redaction import RedactedStream, Redactor
from runs import alerts, images, lifecycle, line, secrets
from runs.db import release_connection
from runs.images import Need, Recipe
from runs.models import BuildState, ImageBuild, Run, Status, WaitReason
from runs.sandbox.base import Engine, EngineDown, ImageMissing, Refused, SandboxError

log = logging.getLogger(__name__)

AT_ONCE = 2
LIMIT = 30 * 60  # seconds for one image
STORE_EVERY = 0.5  # seconds between two looks of the page at a log that grows
LOG_KEPT = 256 * 1024  # characters of it
LAST_WORDS = 5  # lines of the log in an error
TRY_AGAIN = timedelta(days=1)  # what failed because of something outside may have passed
PRUNE_EVERY = 3600.0  # seconds

_terminal = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_builders_own = re.compile(r" ---> |Removing intermediate container |Step \d+/")


class Stopped(Exception):
    """This build goes no further here; somebody begins it anew."""


class Builder:
    """One in each worker. `tend` may be called from any thread."""

    def __init__(self, engine: Engine, *, host_id: str, owner: str, owners: Path, stopping: threading.Event) -> None:
        self.engine = engine
        self.host_id = host_id
        self.owner = owner
        self.pool: Executor = ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="image-build")
        self._owners = owners
        self._stopping = stopping
        self._lock = threading.Lock()
        self._at_work: dict[str, str] = {}  # tag -> Dockerfile
        self._pruned_at = time.monotonic()

    @property
    def rows(self) -> QuerySet[ImageBuild]:
        return ImageBuild.objects.filter(host=self.host_id)

    @property
    def has_work(self) -> bool:
        """Whether there is anything to tend: most installations have no Dockerfile."""
        return self.rows.exists() or bool(images.with_dockerfiles(current_versions()))

    def tend(self) -> None:
        """Order what is needed, begin what stands in line, wake who need not wait any more, and tell who must know."""
        if self._stopping.is_set():
            return
        try:
            needs = self.needs()
        except EngineDown:
            return
        images.order(self.host_id, needs)
        self.take_back(needs)
        self.begin(needs)
        self.wake(needs)
        alerts.settle(images.FAILED, failures())
        if time.monotonic() - self._pruned_at > PRUNE_EVERY:
            self._pruned_at = time.monotonic()
            self.prune(needs)

    def needs(self) -> list[Need]:
        """Of the agents as they are now, and of the runs that are at work on this host. Raises EngineDown."""
        at_work = Run.objects.filter(has_slot=True, host=self.host_id).order_by().values_list("version_id", flat=True)
        versions = images.with_dockerfiles({*current_versions(), *at_work})
        find_image = functools.cache(self.engine.has_image)  # most agents have the same base
        found = []
        for version in AgentVersion.objects.filter(pk__in=versions).order_by("pk"):
            try:
                needed = images.need(find_image, self.host_id, version)
            except (ImageMissing, Refused, ValidationError):  # the agent's runs say so
                continue
            found += [needed] if needed else []
        return found

    def take_back(self, needs: Collection[Need]) -> None:
        """What nobody is at is in line again. What has failed and is not wanted any more is forgotten."""
        for row in self.rows.filter(state=BuildState.BUILDING):
            if self._is_abandoned(row):
                self.rows.filter(pk=row.pk, state=BuildState.BUILDING, builder=row.builder).update(**IN_LINE)
        failed = self.rows.filter(state=BuildState.FAILED)
        failed.exclude(tag__in=tags_of(needs)).delete()
        failed.filter(ended_at__lt=clock.now() - TRY_AGAIN).update(**IN_LINE)

    def _is_abandoned(self, row: ImageBuild) -> bool:
        """Nobody is at it: its builder died, or is this one and could not store how it ended."""
        if row.builder == self.owner:
            return row.tag not in self._at_work
        return is_dead(self._owners, row.builder)

    def begin(self, needs: Iterable[Need]) -> None:
        """Hand to the pool what may be built now: what it stands on is there."""
        states = dict(self.rows.values_list("tag", "state"))
        for need in needs:
            built = [recipe for recipe in need.recipes if states.get(recipe.tag) == BuildState.BUILT]
            missing = [recipe for recipe in need.recipes if recipe not in built]
            if missing and states.get(missing[0].tag) == BuildState.PENDING:
                self._hand(next(filter(self._is_gone, built), missing[0]))

    def _is_gone(self, recipe: Recipe) -> bool:
        """What was made, and then removed by somebody, is in line again."""
        if self.engine.has_image(recipe.tag) is not None:
            return False
        return bool(self.rows.filter(tag=recipe.tag, state=BuildState.BUILT).update(**IN_LINE))

    def _hand(self, recipe: Recipe) -> None:
        """Unless enough is being built, or what reads the same, whose layers it will find when that is done."""
        with self._lock:
            if len(self._at_work) >= AT_ONCE or recipe.dockerfile in self._at_work.values():
                return
            self._at_work[recipe.tag] = recipe.dockerfile
        try:
            self.pool.submit(self._work, recipe)
        except RuntimeError:  # the process is ending
            self._stopping.set()

    def _work(self, recipe: Recipe) -> None:
        """The edge of the build's thread: whatever happens, the row says what became of it."""
        try:
            self.build(recipe)
        except Exception:
            log.exception("image %s", recipe.tag)  # the row is taken back by the next round
        finally:
            with self._lock:
                del self._at_work[recipe.tag]
        try:
            self.tend()
        except Exception:
            log.exception("images")
        finally:
            release_connection()

    def build(self, recipe: Recipe) -> None:
        """Make it, unless another process of this host is at it."""
        claim = {"state": BuildState.BUILDING, "builder": self.owner, "started_at": clock.now(), "ended_at": None}
        if not self.rows.filter(tag=recipe.tag, state=BuildState.PENDING).update(**claim, log="", error=""):
            return
        mine = self.rows.filter(tag=recipe.tag, state=BuildState.BUILDING, builder=self.owner)
        diary = Diary(mine, secrets.redactor_of_workspace(workspace_of(recipe)))
        try:
            self._follow(recipe, diary)
            diary.end(BuildState.BUILT)
        except (Stopped, EngineDown):
            mine.update(**IN_LINE)
        except SandboxError as error:
            diary.end(BuildState.FAILED, str(error))

    def _follow(self, recipe: Recipe, diary: Diary) -> None:
        """Raises Stopped, SandboxError."""
        context = recipe.context()
        release_connection()
        if self.engine.has_image(recipe.tag):
            return
        end = time.monotonic() + LIMIT
        lines = self.engine.build_image(recipe.tag, context, args=dict(recipe.args), labels=dict(recipe.labels))
        with contextlib.closing(lines):  # which ends the build, if it has not
            for text in lines:
                diary.note(text)
                if self._stopping.is_set():
                    raise Stopped
                if time.monotonic() > end:
                    raise SandboxError(f"it was not done after {LIMIT // 60} minutes")

    def wake(self, needs: Collection[Need]) -> None:
        """Runs that wait for an image, and have nothing left to wait for."""
        parked = Run.objects.filter(status=Status.WAITING, wait_reason=WaitReason.RETRY, host=self.host_id)
        for need in needs:
            of_image = parked.filter(attempts__ended_at=None, attempts__image=need.tag)
            for run_id, since in of_image.values_list("pk", "waiting_since"):
                if images.decided(self.host_id, need, since=since):
                    lifecycle.wake(run_id, WaitReason.RETRY)

    # --- what is not needed any more -------------------------------------------------------------------------

    def prune(self, needs: Collection[Need]) -> None:
        """Remove the images that nothing current needs and nothing has used lately, and what builds have left."""
        unused = self.rows.exclude(tag__in=tags_of(needs)).exclude(state=BuildState.BUILDING)
        before = clock.now() - timedelta(days=settings.IMAGE_DAYS)
        old = Q(used_at__lt=before) | Q(used_at=None, created_at__lt=before)
        for row in unused.filter(old):
            self._remove(row.tag)
        known = set(self.rows.values_list("tag", flat=True))
        for tag in set(self.engine.built_images()) - known:
            self._remove(tag)
        if not self.rows.filter(state=BuildState.BUILDING).exists():
            self.engine.remove_remains()

    def _remove(self, tag: str) -> None:
        release_connection()
        if self.engine.remove_image(tag):
            self.rows.filter(tag=tag).delete()


IN_LINE = {"state": BuildState.PENDING, "builder": "", "started_at": None, "ended_at": None}


class Diary:
    """The log of a build, stored as it grows: of a very long one the end, and nothing secret in it."""

    def __init__(self, row: QuerySet[ImageBuild], redactor: Redactor) -> None:
        self._row = row
        self._redactor = redactor
        self._stream = RedactedStream(redactor)
        self._text = self._stored = ""
        self._stored_at = 0.0

    def note(self, text: str) -> None:
        """Raises Stopped if the row is somebody else's now."""
        said = _terminal.sub("", text)
        self._text = (self._text + storable.text(self._stream.feed(said.encode())))[-LOG_KEPT:]
        if self._text != self._stored and time.monotonic() - self._stored_at >= STORE_EVERY:
            self._stored, self._stored_at = self._text, time.monotonic()
            mine = self._row.update(log=self._text)
            release_connection()
            if not mine:
                raise Stopped

    def end(self, state: BuildState, error: str = "") -> None:
        self._text = (self._text + storable.text(self._stream.feed(b"", last=True)))[-LOG_KEPT:]
        said = [text for text in self._text.splitlines() if text.strip() and not _builders_own.match(text)]
        words = [*said[-LAST_WORDS:], storable.text(self._redactor.text(error))] if error else []
        self._row.update(state=state, log=self._text, error="\n".join(words), ended_at=clock.now())


def is_dead(owners: Path, owner: str) -> bool:
    """Whether that process of this host is gone for certain: the file that it held locked is free, or gone."""
    file = owners / f"{owner}.owner"
    if not file.exists():
        return True
    try:
        with private_files.locked(file):
            return True
    except private_files.Locked:
        return False


def workspace_of(recipe: Recipe) -> str:
    return AgentVersion.objects.values_list("agent__workspace__name", flat=True).get(pk=recipe.version)


def current_versions() -> list[int | None]:
    """Of the agents as they are now."""
    return list(Agent.objects.filter(active=True).order_by().values_list("version_id", flat=True))


def tags_of(needs: Iterable[Need]) -> set[str]:
    return {tag for need in needs for tag in need.tags}


def failures() -> dict[str, str]:
    """Agent → what its operator must know, for each whose image cannot be had on a host that is alive."""
    alive = {"host__last_seen_at__gt": clock.now() - line.HOST_IS_DEAD}
    failed = list(ImageBuild.objects.filter(state=BuildState.FAILED, **alive).order_by("id"))
    own = {row.agent_id: row for row in failed if row.agent_id}
    shared = {row.tag.partition(":")[0]: row for row in failed if not row.agent_id}
    concerned = Q(pk__in=own) | (~Q(project="") if shared else Q(pk__in=[]))
    found = {}
    for agent in Agent.objects.filter(concerned, active=True).select_related("workspace") if failed else ():
        row = own.get(agent.pk) or shared.get(images.repository_of(agent, shared=True) if agent.project else "")
        if row is not None:
            found[str(agent.pk)] = f"the image {row.tag} of {agent.name} cannot be built: {row.error}"
    return found
