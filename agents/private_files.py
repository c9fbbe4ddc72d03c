"""Files that only their owner may read, written so that no reader ever sees a half. Text is UTF-8.

Standard library only: the supervisor and the command line use it without loading Django.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Locked(Exception):
    """Another living process holds the lock on this file."""


def write(file: Path, text: str) -> None:
    """Put `text` into `file`, mode 0600: a reader sees the old content or the new."""
    _draft(file, text).replace(file)


def write_json(file: Path, value: dict[str, Any]) -> None:
    write(file, json.dumps(value, indent=1) + "\n")


def write_once(file: Path, text: str) -> str:
    """The content of `file`; `text` if there was none, and then it holds that from now on.

    The draft is linked into place, so two processes that come first together agree on one value.
    """
    if not file.exists():
        draft = _draft(file, text)
        try:
            file.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return file.read_text(encoding="utf-8").strip()


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; an empty one if the file is missing or holds no JSON object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the kernel's lock on `file` for the length of the block. It goes with the process, however that ends.

    Raises Locked, at once, if another process holds it.
    """
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(str(file)) from error
        yield


def _draft(file: Path, text: str) -> Path:
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)  # or a power cut might leave the new name with nothing in it
    except BaseException:
        draft.unlink()
        raise
    return draft
