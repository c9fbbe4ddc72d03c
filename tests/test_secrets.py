"""What a run's sandbox is given of its agent's credentials, and that nothing of it is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.credentials import Reference
from agents.credentials.files import FileStore
from agents.credentials.rows import RowStore
from agents.models import Credential, Workspace
from agents.spec import AgentSpec
from runs import prompt, secrets
from runs.models import Event, Message, Run, Status, ToolCall
from tests.conftest import DrivenWorker, Points, other_worker
from tests.making import bash, make_agent, make_workspace, submit

TOKEN = "ghp_a-secret-of-forty-characters-012345"
KEY = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n-----END OPENSSH PRIVATE KEY-----"
)

Keep = Callable[..., None]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def keep(settings: Any, tmp_path: Path) -> Keep:
    """Put a credential into the home's files."""
    settings.HOME = tmp_path / "home"
    settings.HOME.mkdir(mode=0o700)
    store = FileStore(settings.HOME / "credentials")

    def keep(reference: str, **values: str) -> None:
        store.put(Reference.parse(reference), values)

    return keep


def given(*references: str) -> secrets.Given:
    return secrets.resolve(AgentSpec(name="dev", credentials=references), "default")


def agent_with(*references: str, turns: list[Any] | None = None, **changes: Any) -> Any:
    script = turns or [{"tools": [bash("true")]}, {"text": "done"}]
    return make_agent(turns=script, network="none", credentials=list(references), **changes)


def everything_stored(run: Run) -> str:
    """Every text that the database has of a run."""
    rows: list[Any] = [*Event.objects.filter(run=run).values_list("type", "data")]
    rows += [*Message.objects.filter(attempt__run=run).values_list("body")]
    rows += [*ToolCall.objects.filter(attempt__run=run).values_list("arguments", "result")]
    return repr([*rows, *Run.objects.filter(pk=run.pk).values_list()])


# --- what it is given -------------------------------------------------------------------------------------------


def test_files_lie_as_they_are_kept_each_with_an_end_of_line(keep: Keep) -> None:
    keep("github_token:bot", token=TOKEN)
    keep("unheard_of", anything="some text")
    assert given("github_token:bot", "unheard_of").files == {
        "github_token/bot/token": f"{TOKEN}\n".encode(),
        "unheard_of/default/anything": b"some text\n",
    }


def test_variables_are_those_of_the_types_and_an_unknown_type_has_none(keep: Keep) -> None:
    keep("linear_oauth", client_id="id", client_secret="secret", access_token="access")
    keep("unheard_of", token="t")
    assert given("linear_oauth", "unheard_of").env == {
        "LINEAR_CLIENT_ID": "id",
        "LINEAR_CLIENT_SECRET": "secret",
        "LINEAR_ACCESS_TOKEN": "access",
    }


def test_of_two_of_a_type_both_are_files_and_the_last_is_the_variable(keep: Keep) -> None:
    keep("sentry_token:one", token="first-value")
    keep("sentry_token:two", token="second-value")
    got = given("sentry_token:one", "sentry_token:two")
    assert sorted(got.files) == ["sentry_token/one/token", "sentry_token/two/token"]
    assert got.env == {"SENTRY_AUTH_TOKEN": "second-value"}


def test_both_namings_of_the_fields_of_x_are_taken(keep: Keep) -> None:
    keep("x_twitter_api:old", api_key="a", api_secret="b", bearer_token="c")
    keep("x_twitter_api:new", consumer_key="d", consumer_secret="e", bearer_token="f")
    assert given("x_twitter_api:old").env == {"X_API_KEY": "a", "X_API_SECRET": "b", "X_BEARER_TOKEN": "c"}
    assert given("x_twitter_api:new").env == {"X_CONSUMER_KEY": "d", "X_CONSUMER_SECRET": "e", "X_BEARER_TOKEN": "f"}


def test_githubs_token_has_two_names_and_answers_git_for_github_alone(keep: Keep) -> None:
    keep("github_token", token=TOKEN)
    env = given("github_token").env
    assert env["GITHUB_TOKEN"] == env["GH_TOKEN"] == TOKEN
    assert env["GIT_TERMINAL_PROMPT"] == "0"
    assert (env["GIT_CONFIG_COUNT"], env["GIT_CONFIG_KEY_0"]) == ("1", "credential.https://github.com.helper")
    assert TOKEN not in env["GIT_CONFIG_VALUE_0"]


def test_the_first_git_ssh_is_set_up_and_one_without_a_key_says_only_who_commits(keep: Keep) -> None:
    keep("git_ssh:me", username="Ada", email="ada@example.org")
    keep("git_ssh:other", id_rsa=KEY, username="Bob", email="bob@example.org")
    names = {"GIT_AUTHOR_NAME": "Ada", "GIT_COMMITTER_NAME": "Ada"}
    addresses = {"GIT_AUTHOR_EMAIL": "ada@example.org", "GIT_COMMITTER_EMAIL": "ada@example.org"}
    assert given("git_ssh:me", "git_ssh:other").env == names | addresses
    with_key = given("git_ssh:other", "git_ssh:me").env
    assert '-i "/credentials/git_ssh/other/id_rsa"' in with_key["GIT_SSH_COMMAND"]
    assert "IdentitiesOnly=yes" in with_key["GIT_SSH_COMMAND"]
    assert with_key["GIT_AUTHOR_NAME"] == "Bob"


@pytest.mark.parametrize(
    "reference", ["anthropic_key", "openai_key", "github_webhook_secret:work", "acme_webhook_secret", "gateway_api_key"]
)
def test_what_agentfleet_alone_uses_is_neither_given_nor_missed(keep: Keep, reference: str) -> None:
    assert given(reference) == secrets.NOTHING
    keep(reference, token=TOKEN, secret=TOKEN, key=TOKEN)
    assert given(reference) == secrets.NOTHING


def test_names_and_addresses_are_no_secrets(keep: Keep) -> None:
    keep("git_ssh", id_rsa=KEY, username="Ada Lovelace", email="ada@example.org")
    assert given("git_ssh").secrets == {KEY}


def test_the_prompt_tells_of_each_in_order_and_of_no_instance(keep: Keep) -> None:
    spec = AgentSpec(name="dev", credentials=("sentry_token:this-one", "unheard_of", "github_token:that-one"))
    text = prompt.build(spec, prompt.Trigger("manual", {}), given=secrets.described(spec))[0]["parts"][1]["text"]
    assert text.index("- `SENTRY_AUTH_TOKEN`") < text.index("- `GITHUB_TOKEN` and `GH_TOKEN`")
    assert "this-one" not in text
    assert "that-one" not in text
    assert "unheard_of" not in text


def test_an_agent_without_any_is_told_so(keep: Keep) -> None:
    assert secrets.described(AgentSpec(name="dev", credentials=("anthropic_key",))) is None
    assert secrets.described(AgentSpec(name="dev", credentials=("unheard_of",))) == []


# --- a run ------------------------------------------------------------------------------------------------------


def test_the_sandbox_is_given_what_the_agent_names(worker: DrivenWorker, keep: Keep) -> None:
    keep("github_token", token=TOKEN)
    run = worker.drive(submit(agent_with("github_token")))
    assert run.status == Status.FINISHED
    [spec] = worker.fake.specs.values()
    assert spec.secret_files == {"github_token/default/token": f"{TOKEN}\n".encode()}
    assert spec.secret_env["GH_TOKEN"] == TOKEN
    assert TOKEN not in repr((spec.env, spec.labels, spec.files))


@pytest.mark.parametrize(
    "changes", [{}, {"sandbox": "lazy"}, {"tools": ["set_status"]}, {"kind": "command", "command": "true"}]
)
def test_what_is_missing_fails_the_run_before_anything_is_spent(
    worker: DrivenWorker, keep: Keep, changes: dict[str, Any]
) -> None:
    run = worker.drive(submit(agent_with("github_token:bot", retry="always", **changes)))
    assert (run.status, run.turns, worker.fake.specs) == (Status.FAILED, 0, {})
    assert run.error is not None
    assert run.error["code"] == "CREDENTIAL_MISSING"
    assert "github_token:bot is missing: add it with `agentfleet creds add github_token:bot`" in run.error["message"]
    assert run.attempts.count() == 1
    assert not Event.objects.filter(run=run, type="model.start").exists()


def test_a_missing_field_is_named(worker: DrivenWorker, keep: Keep) -> None:
    keep("reddit_oauth", client_id="id", client_secret="s3cr3t", username="me", user_agent="x")
    run = worker.drive(submit(agent_with("reddit_oauth")))
    assert run.error is not None
    assert run.error["code"] == "CREDENTIAL_MISSING"
    assert "reddit_oauth has no password" in run.error["message"]


def test_a_file_that_others_may_read_fails_the_run_with_the_mend(
    worker: DrivenWorker, keep: Keep, settings: Any
) -> None:
    keep("github_token", token=TOKEN)
    file = settings.HOME / "credentials/github_token/default/token"
    file.chmod(0o644)
    run = worker.drive(submit(agent_with("github_token")))
    assert run.error is not None
    assert run.error["code"] == "CREDENTIAL_ERROR"
    assert f"chmod 600 {file}" in run.error["message"]
    assert TOKEN not in everything_stored(run)


def test_another_workspaces_credentials_and_the_homes_are_not_its_own(worker: DrivenWorker, keep: Keep) -> None:
    keep("github_token", token=TOKEN)
    other = Workspace.objects.create(name="other")
    agent = agent_with("github_token")
    agent.workspace = other
    agent.save()
    run = worker.drive(submit(agent))
    assert run.error is not None
    assert run.error["code"] == "CREDENTIAL_MISSING"
    RowStore("other").put(Reference("github_token"), {"token": "ghp_of-the-other-one"})
    assert worker.drive(submit(agent)).status == Status.FINISHED
    assert [spec.secret_env["GITHUB_TOKEN"] for spec in worker.fake.specs.values()] == ["ghp_of-the-other-one"]


def test_when_a_credential_was_last_given_is_remembered(worker: DrivenWorker, keep: Keep) -> None:
    keep("github_token", token=TOKEN)
    row = Credential.objects.create(workspace=make_workspace(), type="github_token")
    unused = Credential.objects.create(workspace=make_workspace(), type="github_token", instance="other")
    worker.drive(submit(agent_with("github_token")))
    row.refresh_from_db()
    unused.refresh_from_db()
    assert row.used_at is not None
    assert unused.used_at is None


# --- nothing is stored ------------------------------------------------------------------------------------------


def test_what_an_agent_prints_of_it_is_not_stored(worker: DrivenWorker, keep: Keep) -> None:
    keep("github_token", token=TOKEN)
    run = worker.drive(
        submit(agent_with("github_token", turns=[{"tools": [bash('echo "it is $GITHUB_TOKEN"')]}, {"text": "x"}]))
    )
    stored = everything_stored(run)
    assert "it is [redacted]" in stored
    assert TOKEN not in stored


def test_a_worker_that_takes_over_knows_what_the_sandbox_really_got(
    worker: DrivenWorker, keep: Keep, points: Points
) -> None:
    """The token was changed while the sandbox stood, and the new worker has never seen the old one."""
    keep("github_token", token=TOKEN)

    def die() -> None:
        keep("github_token", token="ghp_the-new-value-of-the-token")
        worker.die()
        secrets._memory._kept.clear()  # another process has another memory
        raise KeyboardInterrupt

    points.before("tool.start 1", die)
    turns = [{"tools": [bash('echo "it is $GITHUB_TOKEN"')]}, {"text": "x"}]
    run = submit(agent_with("github_token", turns=turns))
    with pytest.raises(KeyboardInterrupt):
        worker.drive(run)
    second = other_worker(worker)
    second.dead_owners()
    second.look(run.pk)
    second.handed.work()
    run = second.drive(run)
    stored = everything_stored(run)
    assert run.status == Status.FINISHED
    assert "it is [redacted]" in stored
    assert TOKEN not in stored


def test_an_agent_without_credentials_never_asks_the_engine_for_them(
    worker: DrivenWorker, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("nobody needs to know")

    monkeypatch.setattr(worker.fake, "read_secrets", refuse)
    assert worker.drive(submit(agent_with("anthropic_key"))).status == Status.FINISHED
