"""`agentfleet up` seen from another process: started in the background, found, and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from agentfleet import home
from agentfleet.children import CannotStart
from agents import private_files

DOWN_WITHIN = 25.0  # seconds: the supervisor ends its processes in two lots, ten seconds each at most
LINK = "log in once with"  # the last thing `up` says before it just serves


def detach(argv: list[str], folder: Path) -> str:
    """Run `agentfleet up` in the background; what it said once it serves. Raises CannotStart with its last words."""
    home.ensure(folder)
    log = folder / "up.log"
    with log.open("ab") as stream:  # one that is up already writes here too
        begin = stream.tell()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while LINK not in (said := _from(log, begin)):
            if process.poll() is not None:
                said = _from(log, begin).removeprefix("agentfleet: ")
                raise CannotStart(said or f"it ended with {process.returncode}")
            time.sleep(0.05)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    return said


def _from(log: Path, begin: int) -> str:
    return log.read_bytes()[begin:].decode(errors="replace").strip()


def down(folder: Path) -> bool:
    """Stop what `up` started for this home. False: nothing was up. Raises CannotStart if it would not stop."""
    pid = supervisor(folder)
    if pid is None or not _is_locked(folder / "up.lock"):  # a copied home names the process of the original
        return False
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + DOWN_WITHIN
    while supervisor(folder) == pid:
        if time.monotonic() > end:
            raise CannotStart(f"process {pid} did not stop; see {folder}/logs")
        time.sleep(0.05)
    return True


def supervisor(folder: Path) -> int | None:
    """The process of this home's `agentfleet up`; None if it is not up."""
    known = private_files.read_json(folder / "up.json")
    pid, started = known.get("pid"), known.get("started")
    # A pid alone may by now belong to anybody: the start time says whether it is still the same process.
    alive = isinstance(pid, int) and started is not None and started_at(pid) == started
    return pid if alive else None


def _is_locked(file: Path) -> bool:
    try:
        with private_files.locked(file):
            return False
    except private_files.Locked:
        return True


def started_at(pid: int) -> int | None:
    """The kernel's start time of a process, in ticks since the boot; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
