"""Where credentials are kept: one contract for every store, their order, and keys that change."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from agents import credentials
from agents.credentials import CannotWrite, CredentialError, Reference, Store, cipher, rows
from agents.credentials.environment import EnvironmentStore, variable
from agents.credentials.files import FileStore
from agents.credentials.rows import RowStore
from agents.models import CredentialValue
from tests.making import make_workspace

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

BOT = Reference("github_token", "bot")
Fill = Callable[[Reference, Mapping[str, str]], None]


class KeptInMemory(Store):
    """What somebody else's store would look like."""

    name = "memory"
    values: dict[tuple[str, str, str], str]

    @classmethod
    def of(cls, workspace: str) -> KeptInMemory:
        return cls()

    def get(self, kind: str, instance: str, field: str) -> str | None:
        return "of a third party" if (kind, instance, field) == ("acme", "default", "token") else None

    def fields(self, kind: str, instance: str) -> list[str]:
        return ["token"] if (kind, instance) == ("acme", "default") else []

    def list(self) -> list[Reference]:
        return [Reference("acme")]


@pytest.fixture(autouse=True)
def home(settings: Any, tmp_path: Path) -> Path:
    make_workspace()
    settings.HOME = tmp_path
    return tmp_path


def in_environment(monkeypatch: pytest.MonkeyPatch) -> Fill:
    def fill(reference: Reference, values: Mapping[str, str]) -> None:
        for field, value in values.items():
            monkeypatch.setenv(variable(reference.type, reference.instance, field), value)

    return fill


@pytest.fixture(params=["files", "environment", "database"])
def store(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Fill]:
    """A store, and how to get something into it."""
    match request.param:
        case "files":
            files = FileStore(home / "credentials")
            return files, files.put
        case "database":
            database = RowStore("default")
            return database, database.put
    return EnvironmentStore(), in_environment(monkeypatch)


# --- the contract -----------------------------------------------------------------------------------------------


def test_a_value_comes_back_without_the_blanks_around_it(store: tuple[Store, Fill]) -> None:
    known, fill = store
    fill(BOT, {"token": "  ghp_ä secret\nof two lines \n\n"})
    assert known.get("github_token", "bot", "token") == "ghp_ä secret\nof two lines"


def test_what_was_never_put_there_is_none(store: tuple[Store, Fill]) -> None:
    known, fill = store
    assert (known.get("github_token", "bot", "token"), list(known.fields("github_token", "bot"))) == (None, [])
    assert list(known.list()) == []
    fill(BOT, {"token": "x"})
    assert known.get("github_token", "bot", "other") is None
    assert known.get("github_token", "other", "token") is None
    assert known.get("other", "bot", "token") is None


def test_blanks_are_no_value(store: tuple[Store, Fill]) -> None:
    known, fill = store
    fill(BOT, {"token": " \n"})
    assert known.get("github_token", "bot", "token") is None


def test_fields_and_credentials_are_listed_in_order(store: tuple[Store, Fill]) -> None:
    known, fill = store
    fill(Reference("reddit_oauth"), {"username": "u", "client_id": "c"})
    fill(BOT, {"token": "t"})
    assert list(known.list()) == [BOT, Reference("reddit_oauth")]
    assert list(known.fields("reddit_oauth", "default")) == ["client_id", "username"]


def test_names_with_dots_dashes_and_underscores_are_kept_apart(store: tuple[Store, Fill]) -> None:
    known, fill = store
    odd = Reference("cloudflare_origin_cert", "api-1.example.org")
    fill(odd, {"private_key": "x", "private-key": "y"})
    assert list(known.list()) == [odd]
    assert known.get(odd.type, odd.instance, "private_key") == "x"
    assert known.get(odd.type, odd.instance, "private-key") == "y"
    assert list(known.fields(odd.type, odd.instance)) == ["private-key", "private_key"]


def test_putting_replaces_these_fields_and_leaves_the_others(store: tuple[Store, Fill]) -> None:
    known, fill = store
    fill(Reference("reddit_oauth"), {"username": "old", "password": "kept"})
    fill(Reference("reddit_oauth"), {"username": "new"})
    assert known.get("reddit_oauth", "default", "username") == "new"
    assert known.get("reddit_oauth", "default", "password") == "kept"


@pytest.mark.parametrize("store", ["files", "database"], indirect=True)
def test_what_is_removed_is_gone_and_its_neighbours_are_not(store: tuple[Store, Fill]) -> None:
    known, fill = store
    fill(BOT, {"token": "one"})
    fill(Reference("github_token"), {"token": "two"})
    assert known.remove(BOT)
    assert not known.remove(BOT)
    assert list(known.list()) == [Reference("github_token")]


@pytest.mark.parametrize("store", ["environment"], indirect=True)
def test_a_store_that_is_only_read_says_so(store: tuple[Store, Fill]) -> None:
    known, _ = store
    with pytest.raises(CannotWrite, match="github_token:bot cannot be kept in environment"):
        known.put(BOT, {"token": "x"})
    with pytest.raises(CannotWrite, match="cannot be removed"):
        known.remove(BOT)


# --- each of them -----------------------------------------------------------------------------------------------


def test_files_are_where_action_llama_has_them_and_for_the_owner_alone(home: Path) -> None:
    old = os.umask(0)
    try:
        FileStore(home / "credentials").put(BOT, {"token": "ghp_x"})
    finally:
        os.umask(old)
    file = home / "credentials" / "github_token" / "bot" / "token"
    assert file.read_text() == "ghp_x\n"
    assert f"{file.stat().st_mode & 0o777:o}" == "600"
    assert {f"{place.stat().st_mode & 0o777:o}" for place in list(file.parents)[:3]} == {"700"}


def test_variables_are_written_as_action_llama_writes_them() -> None:
    assert variable("git_ssh", "work.one", "id_rsa") == "AL_SECRET_git_ssh__work_x2eone__id_rsa"


def test_the_database_holds_no_value_in_clear() -> None:
    RowStore("default").put(BOT, {"token": "ghp_in-clear"})
    [row] = CredentialValue.objects.all()
    assert "ghp_in-clear" not in row.ciphertext
    assert f"{cipher.key_file().stat().st_mode & 0o777:o}" == "600"


def test_without_the_key_a_value_is_not_read_and_the_message_says_where_it_belongs(home: Path) -> None:
    RowStore("default").put(BOT, {"token": "ghp_secret"})
    cipher.key_file().write_text(Fernet.generate_key().decode())
    cipher.key_file().chmod(0o600)
    with pytest.raises(CredentialError, match=r"token of github_token:bot cannot be decrypted: no key in .*fits"):
        credentials.find(BOT)


def test_a_key_file_that_others_may_read_is_refused() -> None:
    RowStore("default").put(BOT, {"token": "ghp_secret"})
    cipher.key_file().chmod(0o640)
    with pytest.raises(CredentialError, match="chmod 600"):
        credentials.read("github_token", "bot")


# --- keys that change -------------------------------------------------------------------------------------------


def test_rotating_encrypts_everything_anew_and_forgets_the_old_key() -> None:
    store = RowStore("default")
    for number in range(3):
        store.put(Reference("acme", f"n{number}"), {"token": f"value {number}"})
    first_keys = cipher.keys()
    before = set(CredentialValue.objects.values_list("ciphertext", flat=True))
    assert rows.rotate() == 3
    keys = cipher.keys()
    assert (len(first_keys), len(keys)) == (1, 1)
    assert keys != first_keys
    assert not before & set(CredentialValue.objects.values_list("ciphertext", flat=True))
    assert [store.get("acme", f"n{number}", "token") for number in range(3)] == [f"value {n}" for n in range(3)]


def test_a_rotation_that_broke_off_loses_nothing_and_is_finished_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "AT_ONCE", 2)
    store = RowStore("default")
    for number in range(5):
        store.put(Reference("acme", f"n{number}"), {"token": f"value {number}"})
    whole = rows._encrypt_anew
    done: list[Any] = []

    def once(ids: Any) -> int:
        if done:
            raise KeyboardInterrupt
        done.append(ids)
        return whole(ids)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(rows, "_encrypt_anew", once)
        rows.rotate()
    assert [store.get("acme", f"n{number}", "token") for number in range(5)] == [f"value {n}" for n in range(5)]
    assert len(cipher.keys()) == 2
    assert rows.rotate() == 5
    assert len(cipher.keys()) == 1
    assert [store.get("acme", f"n{number}", "token") for number in range(5)] == [f"value {n}" for n in range(5)]


def test_with_nothing_to_rotate_no_key_is_made() -> None:
    assert rows.rotate() == 0
    assert not cipher.key_file().exists()


# --- all of them together ---------------------------------------------------------------------------------------


def test_files_come_first_then_the_environment_then_the_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RowStore("default").put(BOT, {"token": "of the database"})
    assert credentials.read("github_token", "bot") == "of the database"
    in_environment(monkeypatch)(BOT, {"token": "of the environment"})
    assert credentials.read("github_token", "bot") == "of the environment"
    FileStore(home / "credentials").put(BOT, {"token": "of a file"})
    assert credentials.read("github_token", "bot") == "of a file"


def test_a_credential_is_never_put_together_from_two_stores(home: Path) -> None:
    reddit = Reference("reddit_oauth")
    RowStore("default").put(reddit, {"client_id": "database", "password": "database"})
    FileStore(home / "credentials").put(reddit, {"client_id": "file"})
    found = credentials.find(reddit)
    assert found is not None
    assert (found.store, found.values) == ("files", {"client_id": "file"})


def test_files_and_environment_serve_the_default_workspace_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace()
    FileStore(home / "credentials").put(BOT, {"token": "of a file"})
    in_environment(monkeypatch)(BOT, {"token": "of the environment"})
    RowStore("default").put(BOT, {"token": "of the default's database"})
    assert credentials.find(BOT, workspace="other") is None


def test_another_store_is_one_setting(settings: Any) -> None:
    settings.CREDENTIAL_STORES = ["agents.credentials.files.FileStore", f"{__name__}.KeptInMemory"]
    found = credentials.find(Reference("acme"))
    assert found is not None
    assert (found.store, found.values["token"]) == ("memory", "of a third party")
    assert credentials.read("acme") == "of a third party"


def test_what_is_found_does_not_show_its_values() -> None:
    RowStore("default").put(BOT, {"token": "ghp_in-clear"})
    assert "ghp_in-clear" not in repr(credentials.find(BOT))


@pytest.mark.parametrize("text", ["", ":x", "a/b", "../x", "a:b/c", "a b", "type:in:stance", ".x", "x" * 101])
def test_what_can_name_no_credential_is_refused(text: str) -> None:
    with pytest.raises(CredentialError, match="is no credential"):
        Reference.parse(text)


def test_a_reference_is_trimmed_and_without_an_instance_the_default() -> None:
    assert Reference.parse(" github_token ") == Reference.parse("github_token:default") == Reference("github_token")
    assert str(Reference.parse(" github_token : bot ")) == "github_token:bot"
