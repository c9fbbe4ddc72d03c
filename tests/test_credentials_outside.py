"""Credentials over REST, in the admin, on the command line and at `apply`: values go in, names come out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from typer.testing import CliRunner

from agentfleet import creds_cli
from agents import credentials
from agents.credentials import Reference
from agents.credentials.files import FileStore
from agents.credentials.rows import RowStore
from agents.models import ApiToken, Credential, CredentialValue
from agents.spec import AgentSpec, ProjectSpec, SourceSpec
from tests.making import make_agent, make_workspace
from webhooks import projects
from webhooks.credentials import warnings

pytestmark = pytest.mark.django_db(transaction=True)

TOKEN = "ghp_a-secret-that-nobody-is-shown"
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(autouse=True)
def home(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settings.HOME = tmp_path
    monkeypatch.setenv("AGENTFLEET_HOME", str(tmp_path))
    make_workspace()
    return tmp_path


def asker(*, operator: bool) -> Ask:
    _, token = ApiToken.issue(make_workspace(), "test", is_operators=operator)

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"}
        data = "" if body is None else json.dumps(body)
        answer = Client().generic(method, f"/api/v1/{path}", data, content_type="application/json", headers=headers)
        return answer.status_code, json.loads(answer.content)

    return ask


@pytest.fixture
def operator() -> Ask:
    return asker(operator=True)


# --- REST -------------------------------------------------------------------------------------------------------


def test_a_value_goes_in_and_only_its_name_comes_out(operator: Ask) -> None:
    status, body = operator("PUT", "credentials/github_token:bot", {"values": {"token": f" {TOKEN}\n"}})
    assert (status, body["store"], body["fields"], body["state"]) == (200, "database", ["token"], "there")
    assert credentials.read("github_token", "bot") == TOKEN
    assert TOKEN not in json.dumps([body, operator("GET", "credentials")])


def test_whoever_uses_a_credential_is_listed_with_it_and_what_is_missing_stands_out(operator: Ask) -> None:
    make_agent("dev", credentials=["github_token:bot", "anthropic_key"])
    make_agent("ops", credentials=["github_token:bot"])
    _, body = operator("GET", "credentials")
    listed = {row["reference"]: (row["state"], row["store"], row["used_by"]) for row in body["credentials"]}
    assert listed["github_token:bot"] == ("missing", "", ["agent dev", "agent ops"])


def test_a_half_is_faulty_and_its_lack_is_named(operator: Ask) -> None:
    _, body = operator("PUT", "credentials/reddit_oauth", {"values": {"client_id": "x", "username": "me"}})
    assert (body["state"], body["fault"]) == ("faulty", "it has no client_secret, password, user_agent")


def test_only_the_operators_token_sees_or_changes_credentials() -> None:
    ask = asker(operator=False)
    for method, path, body in (
        ("GET", "credentials", None),
        ("PUT", "credentials/github_token", {"values": {"token": TOKEN}}),
        ("DELETE", "credentials/github_token", None),
    ):
        status, answer = ask(method, path, body)
        assert (status, answer["error"]["code"]) == (403, "FORBIDDEN")
    assert not CredentialValue.objects.exists()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("credentials/a b", {"values": {"token": "x"}}),
        ("credentials/github_token", {"values": {}}),
        ("credentials/github_token", {"values": {"../x": "x"}}),
        ("credentials/github_token", {"values": {"token": "  "}}),
        ("credentials/github_token", {"values": {"token": 7}}),
        ("credentials/github_token", {"values": {"token": "x"}, "also": 1}),
        ("credentials/github_token", {}),
    ],
)
def test_what_cannot_be_kept_is_refused(operator: Ask, path: str, body: Any) -> None:
    status, answer = operator("PUT", path, body)
    assert (status, answer["error"]["code"]) == (400, "VALIDATION_ERROR")
    assert not CredentialValue.objects.exists()


def test_what_is_removed_is_gone_once(operator: Ask) -> None:
    operator("PUT", "credentials/github_token", {"values": {"token": TOKEN}})
    assert operator("DELETE", "credentials/github_token") == (200, {"removed": True})
    assert operator("DELETE", "credentials/github_token") == (200, {"removed": False})
    assert credentials.read("github_token") is None


# --- apply ------------------------------------------------------------------------------------------------------


def a_project(*names: str) -> ProjectSpec:
    agents = (AgentSpec(name="dev", credentials=names),)
    return ProjectSpec(name="mine", agents=agents, sources=(SourceSpec(name="github", provider="github"),))


def test_applying_remembers_what_agents_and_sources_refer_to() -> None:
    for _ in range(2):
        projects.apply(make_workspace(), a_project("github_token:bot", "github_token:bot", "git_ssh"))
    assert [str(row) for row in Credential.objects.all()] == ["git_ssh", "github_token:bot", "github_webhook_secret"]


def test_applying_warns_of_what_is_missing_or_unknown(home: Path) -> None:
    FileStore(home / "credentials").put(Reference("git_ssh"), {"username": "me"})
    told = [fault.message for fault in warnings(make_workspace(), a_project("git_ssh", "github_token", "hashnode"))]
    missing = "no store has it: add it with `agentfleet creds add"
    assert told == [
        f"github_token, for agent dev: {missing} github_token`",
        f"github_webhook_secret, for source github: {missing} github_webhook_secret`",
        "type hashnode is not known: its files reach the sandbox, no variables",
        f"hashnode, for agent dev: {missing} hashnode`",
    ]


# --- the admin --------------------------------------------------------------------------------------------------


@pytest.fixture
def browser() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    return client


def test_a_credential_is_added_in_two_pages_and_never_shown(browser: Client) -> None:
    workspace = make_workspace()
    fields = {"workspace": workspace.pk, "type": "linear_oauth", "instance": "team"}
    page = browser.post("/admin/agents/credential/add/", fields, follow=True)
    row = Credential.objects.get()
    assert page.redirect_chain[-1][0] == f"/admin/agents/credential/{row.pk}/put/"
    assert page.content.decode().count('type="password"') == 3, "all but the client's id"
    values = {"client_id": "an-id", "client_secret": TOKEN, "access_token": f"{TOKEN}-2"}
    kept = browser.post(page.redirect_chain[-1][0], values, follow=True).content.decode()
    assert "linear_oauth:team is kept: access_token, client_id, client_secret" in kept
    pages = [kept, browser.get("/admin/agents/credential/").content.decode()]
    pages += [browser.get(f"/admin/agents/credential/{row.pk}/{name}/").content.decode() for name in ("put", "forget")]
    assert not [page for page in pages if TOKEN in page]
    assert credentials.read("linear_oauth", "team", "client_secret") == TOKEN


def test_what_was_typed_is_not_sent_back_with_a_fault(browser: Client) -> None:
    row = Credential.objects.create(workspace=make_workspace(), type="openai_key")
    page = browser.post(f"/admin/agents/credential/{row.pk}/put/", {"token": TOKEN}).content.decode()
    assert "This is no openai_key: token does not begin with sk-." in page
    assert TOKEN not in page
    assert not CredentialValue.objects.exists()


def test_a_key_keeps_its_lines_and_is_not_sent_back_either(browser: Client) -> None:
    row = Credential.objects.create(workspace=make_workspace(), type="git_ssh")
    key = "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----"
    refused = browser.post(f"/admin/agents/credential/{row.pk}/put/", {"id_rsa": "ssh-ed25519 AAAAC3"})
    assert "ssh-ed25519 AAAAC3" not in refused.content.decode()
    browser.post(f"/admin/agents/credential/{row.pk}/put/", {"id_rsa": key.replace("\n", "\r\n"), "email": "a@b.c"})
    assert credentials.read("git_ssh", field="id_rsa") == key


def test_the_list_says_who_uses_it_where_it_is_and_what_is_missing(browser: Client, home: Path) -> None:
    projects.apply(make_workspace(), a_project("github_token", "git_ssh"))
    FileStore(home / "credentials").put(Reference("git_ssh"), {"username": "me"})
    page = browser.get("/admin/agents/credential/").content.decode()
    assert page.count("missing") >= 2
    for text in ("git_ssh", "files", "agent dev", "source github"):
        assert text in page


def test_a_removed_credential_stays_listed_while_somebody_names_it(browser: Client) -> None:
    projects.apply(make_workspace(), a_project("github_token"))
    for reference in (Reference("github_token"), Reference("sentry_token")):
        RowStore("default").put(reference, {"token": TOKEN})
    for row in Credential.objects.filter(type__in=["github_token", "sentry_token"]):
        browser.post(f"/admin/agents/credential/{row.pk}/forget/")
    assert not CredentialValue.objects.exists()
    assert {row.type for row in Credential.objects.all()} == {"github_token", "github_webhook_secret"}


@pytest.mark.parametrize("path", ["add/", "{pk}/put/", "{pk}/forget/"])
def test_whoever_may_only_look_changes_nothing(path: str) -> None:
    RowStore("default").put(Reference("github_token"), {"token": TOKEN})
    row = Credential.objects.get()
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_credential"))
    client = Client()
    client.force_login(user)
    assert client.get("/admin/agents/credential/").status_code == 200
    assert client.post(f"/admin/agents/credential/{path.format(pk=row.pk)}", {"token": "x"}).status_code == 403
    assert credentials.read("github_token") == TOKEN


# --- the command line -------------------------------------------------------------------------------------------


def creds(*words: str, typed: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(creds_cli.app, list(words), input=typed)
    return done.exit_code, done.output


def test_a_value_is_read_from_standard_input_and_kept_in_a_file(home: Path) -> None:
    status, said = creds("add", "github_token:bot", typed=f"{TOKEN}\n")
    assert (status, said) == (0, "github_token:bot is kept: token\n")
    assert (home / "credentials/github_token/bot/token").read_text() == f"{TOKEN}\n"


def test_a_type_that_is_not_known_is_kept_and_said(home: Path) -> None:
    status, said = creds("add", "githb_token", typed=TOKEN)
    assert (status, said.splitlines()[0]) == (0, "githb_token is kept: token")
    assert "note: type githb_token is not known" in said
    assert creds("add", "github_token", typed=" ")[1] == "agentfleet: token has no value\n"


def test_several_values_come_as_json_and_long_ones_from_files(home: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n")
    assert creds("add", "git_ssh", "--from-file", f"id_rsa={key}")[0] == 0
    assert creds("add", "linear_oauth", typed='{"client_id": "c", "client_secret": "s", "access_token": "a"}')[0] == 0
    assert credentials.read("git_ssh", field="id_rsa") == key.read_text().strip()
    assert credentials.read("linear_oauth", field="access_token") == "a"


@pytest.mark.parametrize(
    ("words", "typed", "said"),
    [
        (["github_token", "--field", f"token={TOKEN}"], "", "a value in an argument could be read by everybody here"),
        (["github_token"], "", "has no value"),
        (["openai_key"], TOKEN, "this is no openai_key: token does not begin with sk-"),
        (["linear_oauth"], TOKEN, "standard input must be a JSON object with client_id"),
        (["a/b"], TOKEN, "'a/b' is no credential"),
        (["git_ssh", "--from-file", "id_rsa=/nowhere/at/all"], "", "/nowhere/at/all cannot be read"),
    ],
)
def test_what_cannot_be_kept_is_said_and_not_shown(home: Path, words: list[str], typed: str, said: str) -> None:
    status, output = creds("add", *words, typed=typed)
    assert (status, said in output) == (1, True), output
    assert TOKEN not in output
    assert not (home / "credentials").exists()


def test_a_credential_is_removed_once(home: Path) -> None:
    creds("add", "github_token", typed=TOKEN)
    assert creds("rm", "github_token") == (0, "github_token is forgotten\n")
    assert creds("rm", "github_token")[0] == 1


def test_without_a_server_the_files_are_listed() -> None:
    creds("add", "github_token:bot", typed=TOKEN)
    status, said = creds("ls")
    assert (status, "github_token:bot" in said, TOKEN in said) == (0, True, False)


def test_the_types_are_told_with_their_fields() -> None:
    assert "hetzner_api_key" in creds("types")[1]
    said = creds("types", "reddit_oauth")[1]
    assert "client_secret          $REDDIT_CLIENT_SECRET" in said
    assert "username               $REDDIT_USERNAME, shown" in said
    assert creds("types", "nothing")[0] == 1


def test_checking_says_what_is_wrong_and_never_the_value(home: Path) -> None:
    creds("add", "mintlify_token", typed=TOKEN)
    assert creds("check") == (0, "mintlify_token: ok\n")
    (home / "credentials/mintlify_token/default/token").chmod(0o644)
    status, said = creds("check", "mintlify_token")
    assert (status, "chmod 600" in said, TOKEN in said) == (1, True, False)
    assert creds("check", "github_token")[1] == "github_token: no store has it\n"


def test_rotating_on_the_command_line_says_how_many() -> None:
    RowStore("default").put(Reference("github_token"), {"token": TOKEN})
    status, said = creds("rotate")
    assert (status, said.startswith("1 values are encrypted with a new key")) == (0, True)
    assert credentials.read("github_token") == TOKEN
