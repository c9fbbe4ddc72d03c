"""One step of one run: what it may read, the lease it writes under, and the halt it waits with."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from django.db import transaction
from django.db.models import Q

from agents import clock
from agents.models import AgentFile
from agents.redaction import Redactor
from agents.spec import AgentSpec
from runs import bells, events, images, leases, lifecycle, limits, outfit, reruns, retries, secrets, signals, slots
from runs.db import release_connection
from runs.halt import Halt, Why
from runs.leases import Lease, LeaseLost
from runs.models import Attempt, Run, SandboxState, WaitReason
from runs.sandbox.base import Engine, Sandbox, SandboxGone

SANDBOX_LOSSES = 3  # of one attempt; after that the run has no luck left

_starters = ThreadPoolExecutor(max_workers=16, thread_name_prefix="sandbox-start")


class Step:
    """Everything here that writes does so in a transaction that begins with the lease's guard."""

    def __init__(self, lease: Lease, engine: Engine, *, host_id: str) -> None:
        self.lease = lease
        self.engine = engine
        self.host_id = host_id
        self.halt = Halt()
        self.released = False  # the lease was let go, in the last transaction
        self.over = False  # the attempt has reached its end, mostly with its run
        self.progress_at = clock.now()  # when the model or a command last had something to say
        self.estimate = 0  # tokens that this step's model request sends
        self._redactor: Redactor | None = None
        self._starting: Future[Sandbox] | None = None

    @cached_property
    def run(self) -> Run:
        run = Run.objects.select_related("version", "agent").get(pk=self.lease.run_id)
        self.progress_at = run.progress_at or self.progress_at
        return run

    @cached_property
    def spec(self) -> AgentSpec:
        assert self.run.version is not None, "the claim pins a version"
        return self.run.version.read()

    @cached_property
    def attempt(self) -> Attempt:
        attempt = Attempt.objects.filter(run_id=self.lease.run_id).order_by("-number").first()
        assert attempt is not None, "the claim makes the first attempt"
        return attempt

    @property
    def redactor(self) -> Redactor:
        """Keeps out of what is stored whatever secret the sandbox may have; see `know_secrets`."""
        if self._redactor is None:
            self._redactor = secrets.redactor_of(self.attempt, self.run, self.__dict__.get("spec"))
        return self._redactor

    @contextmanager
    def write(self, *new: events.New, progress: bool = True, release: bool = False, **sets: Any) -> Iterator[None]:
        """A transaction of this step. Raises LeaseLost, and then nothing in it is stored.

        With `release` it is the step's last: the lease goes, and the doorbell rings for the next.
        """
        if progress:
            self.progress_at = clock.now()
            sets.update(takeovers=0, machinery_waits=0, progress_at=self.progress_at)
        if release:
            sets.update(leases.freed(clock.now()))
        guard = Q(lease_owner=self.lease.owner, lease_epoch=self.lease.epoch)
        with transaction.atomic(savepoint=False):  # whatever fails in it fails all of it
            if not events.append(self.lease.run_id, new, redactor=self.redactor, where=guard, **sets):
                raise LeaseLost(self.lease.run_id)
            yield
            if release:
                bells.ring_run(self.lease.run_id, self.run.host_id)
        self.released = self.released or release

    def conclude(self, output: str) -> None:
        """The agent has stopped by itself: the work is done, or what it has said of its end is so."""
        end = signals.conclusion(self.run)
        if end.code:
            self.give_up(end.code, end.message, exit_code=end.exit_code)
        else:
            self.finish(output, rerun=end.rerun)

    def finish(self, output: str, *also: events.New, exit_code: int | None = None, rerun: bool = False) -> None:
        """The work is done. With `rerun` there is more: the next run stands in line."""
        with transaction.atomic():
            lifecycle.finish(
                self.lease, self.redactor.text(output), redactor=self.redactor, also=also, exit_code=exit_code
            )
            if rerun:
                reruns.follow(self.run, self.spec)
        self.released = self.over = True

    def fail(self, code: str, message: str, *, lost_requests: int | None = None, exit_code: int | None = None) -> None:
        """The run has failed for good. `lost_requests`: see `close_request`; None if no answer came at all."""
        with transaction.atomic():
            if lost_requests is not None:
                self.close_request(lost_requests)
            details = {"iteration": self.run.turns}
            lifecycle.fail(self.lease, code, message, redactor=self.redactor, details=details, exit_code=exit_code)
        self.released = self.over = True

    def give_up(
        self, code: str, message: str, *, lost_requests: int | None = None, exit_code: int | None = None
    ) -> None:
        """The attempt has failed: the next one by the agent's policy, else as `fail`."""
        pause = retries.delay(self.run, self.spec, self.attempt, code)
        if pause is None:
            self.fail(code, message, lost_requests=lost_requests, exit_code=exit_code)
            return
        with transaction.atomic():
            if lost_requests is not None:
                self.close_request(lost_requests)
            error = {"code": code, "message": self.redactor.text(message)}
            wake_at = clock.now() + pause
            lifecycle.retry(self.lease, self.run, error, wake_at=wake_at, host_id=self.host_id, redactor=self.redactor)
        self.released = self.over = True

    def wait(self, reason: WaitReason, *also: events.New, **details: Any) -> None:
        """Park the run; the step is over."""
        lifecycle.wait(self.lease, reason, also=also, redactor=self.redactor, **details)
        self.released = True

    def pause(
        self, reason: WaitReason, note: dict[str, Any], *, wake_at: datetime, lost_requests: int | None = None
    ) -> None:
        """Park the run until the machinery may have recovered. It keeps its slot. `lost_requests`: as in `fail`."""
        with transaction.atomic():
            if lost_requests is not None:
                self.close_request(lost_requests)
            self.wait(reason, events.New("pause", note), wake_at=wake_at)

    def shut_down(self, error: dict[str, Any]) -> None:
        """The agent itself has asked for it: the run has failed, and nothing follows."""
        details = {**error, "iteration": self.run.turns}
        lifecycle.fail(self.lease, error["code"], error["message"], redactor=self.redactor, details=details)
        self.released = self.over = True

    def cancel(self) -> None:
        lifecycle.cancel(self.lease, redactor=self.redactor)
        self.released = self.over = True

    def progressed(self) -> None:
        """The model or a command has said something. From any thread; stored with the next write."""
        self.progress_at = clock.now()

    def overdue(self, now: datetime) -> Why | None:
        """Whether the run's time is up, as far as this step has read; for other threads, which must not query."""
        run: Run | None = self.__dict__.get("run")
        if run is None:
            return None
        if run.deadline_at is not None and now >= run.deadline_at:
            return Why.DEADLINE
        if "spec" not in self.__dict__:
            return None
        idle = limits.of(run, self.spec).idle_seconds
        return Why.IDLE if idle and now >= self.progress_at + timedelta(seconds=idle) else None

    def close_request(self, lost: int) -> None:
        """The provider has spoken. Of this step's requests `lost` broke off before an answer: they are spent."""
        with self.write(*self.lost_requests(lost), progress=False, **limits.unanswered(lost)):
            pass

    def lost_requests(self, lost: int) -> list[events.New]:
        """Says that `lost` of this step's requests were spent for no answer, and what on, as far as one can tell."""
        return [events.New("model.lost", {"estimatedTokens": self.estimate * lost})] if lost else []

    def move_to(self, host_id: str) -> None:
        """From now on the run's steps, and its sandbox, are that host's."""
        with self.write(progress=False, host=host_id):
            Attempt.objects.filter(pk=self.attempt.pk).update(host=host_id)
        self.run.host_id = self.attempt.host_id = host_id

    def stand_in_line(self) -> None:
        """The command that waited is over, and its slot is another's now: the run goes on when it gets one."""
        slots.give_up(self.lease)
        self.released = True

    def release(self) -> None:
        leases.release(self.lease)
        self.released = True

    def read_file(self, path: str) -> bytes | None:
        """A file of the agent's folder, as of the version this run has."""
        found = AgentFile.objects.filter(version_id=self.run.version_id, path=path).first()
        return bytes(found.content) if found else None

    # --- the sandbox -----------------------------------------------------------------------------------------

    @property
    def known_sandbox(self) -> Sandbox | None:
        """The sandbox as the database has it; nobody has asked the engine."""
        if self.attempt.sandbox_state != SandboxState.RUNNING:
            return None
        return Sandbox(self.attempt.sandbox_name, self.attempt.sandbox_id)

    @cached_property
    def given(self) -> secrets.Given:
        """The credentials of a sandbox that starts now. Raises secrets.Unusable."""
        return secrets.resolve(self.spec, self.run.workspace.name) if self.spec.credentials else secrets.NOTHING

    def check_credentials(self) -> None:
        """Before anything is spent. Raises secrets.Unusable."""
        _ = self.given

    def know_secrets(self, sandbox: Sandbox) -> None:
        """Before its output is read: what it really got may be older than what is stored now. Raises SandboxError."""
        if secrets.are_given(self.spec) and secrets.learn(self.engine, sandbox, self.attempt.pk):
            self._redactor = None

    def prepare_sandbox(self) -> str:
        """The image to start from. Raises SandboxError, ImageBuilding, secrets.Unusable, before anything is spent."""
        self.check_credentials()
        assert self.run.version is not None, "the claim pins a version"
        return images.ready(self.engine, self.host_id, self.run.version)

    def wait_for_image(self, needed: images.Need) -> None:
        """Park the run until its image is there, or cannot be had; the time does not count. It keeps its slot."""
        wait = events.New("image.wait", {"image": needed.tag})
        with transaction.atomic():
            self.wait(WaitReason.RETRY, wait, wake_at=clock.now() + images.LOOK_AGAIN)
            Attempt.objects.filter(pk=self.attempt.pk).update(image=needed.tag)
        if images.decided(self.host_id, needed):  # in this very moment: whoever wakes had not seen it wait
            lifecycle.wake(self.run.pk, WaitReason.RETRY)

    def sandbox_is_starting(self, image: str) -> None:
        """Commit, inside `write`, that the engine is about to be asked: whoever cleans up will look."""
        if self.attempt.sandbox_losses > SANDBOX_LOSSES:
            raise SandboxGone(f"the sandbox was lost {self.attempt.sandbox_losses} times")
        Attempt.objects.filter(pk=self.attempt.pk).update(
            sandbox_state=SandboxState.STARTING, image=image, sandbox_id="", has_workspace=True
        )
        self.attempt.sandbox_state = SandboxState.STARTING

    def start_sandbox(self, image: str) -> Future[Sandbox]:
        """Ask the engine, on another thread. The step must not end before the future has: see `settle`."""
        spec = outfit.spec_of(self.run, self.attempt, self.spec, image, self.given)
        secrets.note_use(self.given, self.run)
        self._starting = _starters.submit(secrets.start, self.engine, spec, self.attempt.pk)
        return self._starting

    def note_sandbox(self, box: Future[Sandbox], *, release: bool = False) -> None:
        """Store what came of starting it, when it has: it stands, or was lost while it was being filled.

        Raises Halted, SandboxError.
        """
        release_connection()
        self.halt.wait_first(box)
        if self.attempt.sandbox_state == SandboxState.STARTING:
            self._redactor = None  # it may be one that stood already
            try:
                self._note_ready(box.result(), release=release)
            except SandboxGone:
                self.engine.remove(self.attempt.sandbox_name)
                with self.write(events.New("sandbox.lost"), release=release):
                    self.sandbox_is_gone()
        elif release:
            self.release()

    def _note_ready(self, sandbox: Sandbox, *, release: bool) -> None:
        with self.write(events.New("sandbox.ready", {"id": sandbox.id}), release=release):
            self.sandbox_runs(sandbox)

    def sandbox_runs(self, sandbox: Sandbox) -> None:
        """Store, inside `write`, what the engine gave."""
        Attempt.objects.filter(pk=self.attempt.pk).update(sandbox_state=SandboxState.RUNNING, sandbox_id=sandbox.id)
        self.attempt.sandbox_state, self.attempt.sandbox_id = SandboxState.RUNNING, sandbox.id

    def sandbox_is_gone(self) -> None:
        """Store, inside `write`, that there is none any more; the next that needs one starts it."""
        self.attempt.sandbox_state, self.attempt.sandbox_id = SandboxState.GONE, ""
        self.attempt.sandbox_losses += 1
        self.attempt.save(update_fields=["sandbox_state", "sandbox_id", "sandbox_losses"])

    def settle(self) -> None:
        """Wait for a start that is under way: one that came after the clean-up would stand for ever."""
        if self._starting is not None:
            release_connection()
            self._starting.exception()
            self._starting = None
