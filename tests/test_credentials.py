"""Secrets in files: found by name, refused when they lie open; and the private files everything else is kept in."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from agents import credentials, private_files
from agents.credentials import CredentialError
from agents.private_files import Locked

Put = Callable[..., Path]


@pytest.fixture
def put(settings: Any, tmp_path: Path) -> Put:
    """Lay a credential out as it should be; its file."""
    settings.HOME = tmp_path

    def put(value: str | bytes, kind: str = "github_token", instance: str = "default", field: str = "token") -> Path:
        folder = tmp_path / "credentials"
        for name in ("", kind, instance):
            folder /= name
            folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / field
        file.write_bytes(value.encode() if isinstance(value, str) else value)
        file.chmod(0o600)
        return file

    return put


# --- credentials --------------------------------------------------------------------------------------------------


def test_a_value_is_read_without_the_blanks_around_it(put: Put) -> None:
    put("  ghp_ä secret\r\n\n")
    assert credentials.read("github_token") == "ghp_ä secret"


def test_instance_and_field_say_which(put: Put) -> None:
    put("one")
    put("two", instance="work")
    put("three", "git_ssh", "work", "id_rsa")
    assert credentials.read("github_token") == "one"
    assert credentials.read("github_token", "work") == "two"
    assert credentials.read("git_ssh", "work", "id_rsa") == "three"


def test_what_is_not_there_is_none(put: Put) -> None:
    assert credentials.read("github_token") is None, "not even the folder"
    put("one")
    assert credentials.read("slack_token") is None
    assert credentials.read("github_token", "work") is None
    assert credentials.read("github_token", "default", "secret") is None
    assert credentials.read("github_token", "default", "token.d") is None


@pytest.mark.parametrize("value", ["", "\n", "  \t\n"])
def test_an_empty_file_is_no_value(put: Put, value: str) -> None:
    put(value)
    assert credentials.read("github_token") is None


@pytest.mark.parametrize("word", ["", ".", "..", "../x", "a/b", "/etc", "-x", ".hidden", "a\n", "a\0", "a b", "é"])
def test_names_cannot_lead_out_of_the_store(put: Put, word: str) -> None:
    put("one")
    assert credentials.read(word) is None
    assert credentials.read("github_token", word) is None
    assert credentials.read("github_token", "default", word) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o666])
def test_a_file_that_others_may_read_is_refused(put: Put, mode: int) -> None:
    file = put("s3cr3t-value")
    file.chmod(mode)
    with pytest.raises(CredentialError, match=rf"token may be read by others \(mode {mode:o}\): chmod 600") as caught:
        credentials.read("github_token")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("up", [0, 1, 2])
def test_a_folder_that_others_may_enter_is_refused(put: Put, up: int) -> None:
    folder = put("s3cr3t-value").parents[up]
    folder.chmod(0o755)
    with pytest.raises(CredentialError, match=rf"{folder} may be read by others \(mode 755\): chmod 700"):
        credentials.read("github_token")


def test_a_link_is_as_open_as_what_it_points_to(put: Put, tmp_path: Path) -> None:
    file = put("old")
    target = tmp_path / "elsewhere"
    target.write_text("s3cr3t-value")
    file.unlink()
    file.symlink_to(target)
    target.chmod(0o644)
    with pytest.raises(CredentialError, match="may be read by others"):
        credentials.read("github_token")
    target.chmod(0o400)
    assert credentials.read("github_token") == "s3cr3t-value"


def test_a_file_that_is_no_text_is_named_and_not_quoted(put: Put) -> None:
    put(b"\xff\xfe\x00s3cr3t")
    with pytest.raises(CredentialError, match="token is not text") as caught:
        credentials.read("github_token")
    assert "s3cr3t" not in str(caught.value)


def test_a_folder_in_place_of_a_file_is_named(put: Put) -> None:
    file = put("one")
    file.unlink()
    file.mkdir(mode=0o700)
    with pytest.raises(CredentialError, match="token cannot be read: Is a directory"):
        credentials.read("github_token")


def test_a_file_that_is_somebody_elses_is_named(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("one")

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CredentialError, match="token cannot be read: Permission denied"):
        credentials.read("github_token")


# --- private files ------------------------------------------------------------------------------------------------


@pytest.fixture
def open_umask() -> Any:
    old = os.umask(0)
    yield
    os.umask(old)


@pytest.mark.usefixtures("open_umask")
def test_whatever_the_umask_only_the_owner_may_read(tmp_path: Path) -> None:
    private_files.write(tmp_path / "a", "ä")
    private_files.write_json(tmp_path / "b", {"key": "ä"})
    private_files.write_once(tmp_path / "c", "c")
    with private_files.locked(tmp_path / "d"):
        pass
    assert {file.name: f"{file.stat().st_mode & 0o777:o}" for file in tmp_path.iterdir()} == dict.fromkeys(
        "abcd", "600"
    )


def test_writing_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o644)
    with file.open() as reader:
        private_files.write(file, "new")
        assert reader.read() == "old", "who has it open reads on in the old one"
    assert file.read_text() == "new"
    assert f"{file.stat().st_mode & 0o777:o}" == "600"
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_content_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "file"
    private_files.write(file, "old")
    with pytest.raises(UnicodeEncodeError):
        private_files.write(file, "new \ud800")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_never_sees_a_half(tmp_path: Path) -> None:
    file = tmp_path / "file"
    private_files.write(file, "0" * 100_000)
    stop = threading.Event()

    def keep_writing() -> None:
        for number in range(200):
            private_files.write(file, str(number % 10) * 100_000)
        stop.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    seen = set()
    while not stop.is_set():
        text = file.read_text()
        seen.add((len(text), len(set(text))))
    writer.join()
    assert seen == {(100_000, 1)}


def test_what_is_written_once_stays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert private_files.write_once(file, "first\n") == "first"
    assert private_files.write_once(file, "second\n") == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_all_who_come_first_together_agree(tmp_path: Path) -> None:
    for attempt in range(20):
        file = tmp_path / str(attempt)
        gate = threading.Barrier(8)
        answers: list[str] = []

        def come(name: str, file: Path = file, gate: threading.Barrier = gate, answers: list[str] = answers) -> None:
            gate.wait()
            answers.append(private_files.write_once(file, name))

        threads = [threading.Thread(target=come, args=(f"thread {number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [file.read_text()] * 8
    assert len(list(tmp_path.iterdir())) == 20


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"3", b"\xff"])
def test_json_that_is_none_is_an_empty_object(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    assert private_files.read_json(file) == {}


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"url": "http://ä/", "pids": [1, 2], "none": None}
    private_files.write_json(tmp_path / "file", value)
    assert private_files.read_json(tmp_path / "file") == value


# --- locks --------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from agents.private_files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_for_the_length_of_the_block(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with private_files.locked(file), pytest.raises(Locked, match="lock"), private_files.locked(file):
        pass
    with private_files.locked(file):
        pass


def test_locking_leaves_the_content_alone(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text("content")
    with private_files.locked(file):
        assert file.read_text() == "content"
    assert file.read_text() == "content"


def test_a_lock_goes_with_its_process_however_that_ends(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Locked), private_files.locked(file):
            pass
        other.kill()
        other.wait()
        with private_files.locked(file):
            pass
