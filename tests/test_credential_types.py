"""What kinds of credentials there are, the operator's own among them, and how one is told to be good."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from agents import credentials
from agents.credential_types import BUILT_IN
from agents.credentials import CredentialError
from agents.credentials.validation import fault

# Source: spec/action-llama.md 5.2 and 5.4.
ENV = {
    "github_token": {"token": "GITHUB_TOKEN"},
    "sentry_token": {"token": "SENTRY_AUTH_TOKEN"},
    "linear_token": {"token": "LINEAR_API_TOKEN"},
    "linear_oauth": {
        "client_id": "LINEAR_CLIENT_ID",
        "client_secret": "LINEAR_CLIENT_SECRET",
        "access_token": "LINEAR_ACCESS_TOKEN",
        "refresh_token": "LINEAR_REFRESH_TOKEN",
    },
    "git_ssh": {"id_rsa": "", "username": "", "email": ""},
    "bugsnag_token": {"token": "BUGSNAG_AUTH_TOKEN"},
    "netlify_token": {"token": "NETLIFY_AUTH_TOKEN"},
    "mintlify_token": {"token": "MINTLIFY_API_TOKEN"},
    "x_twitter_api": {
        "api_key": "X_API_KEY",
        "api_secret": "X_API_SECRET",
        "bearer_token": "X_BEARER_TOKEN",
        "access_token": "X_ACCESS_TOKEN",
        "access_token_secret": "X_ACCESS_TOKEN_SECRET",
        "consumer_key": "X_CONSUMER_KEY",
        "consumer_secret": "X_CONSUMER_SECRET",
    },
    "x_twitter_user_oauth1": {"access_token": "X_ACCESS_TOKEN", "access_token_secret": "X_ACCESS_TOKEN_SECRET"},
    "x_twitter_user_oauth2": {
        "client_id": "X_OAUTH2_CLIENT_ID",
        "client_secret": "X_OAUTH2_CLIENT_SECRET",
        "access_token": "X_OAUTH2_ACCESS_TOKEN",
        "refresh_token": "X_OAUTH2_REFRESH_TOKEN",
    },
    "reddit_oauth": {
        "client_id": "REDDIT_CLIENT_ID",
        "client_secret": "REDDIT_CLIENT_SECRET",
        "username": "REDDIT_USERNAME",
        "password": "REDDIT_PASSWORD",
        "user_agent": "REDDIT_USER_AGENT",
    },
    "discord_bot": {
        "application_id": "DISCORD_APPLICATION_ID",
        "public_key": "DISCORD_PUBLIC_KEY",
        "bot_token": "DISCORD_BOT_TOKEN",
    },
    "slack_bot_token": {"token": "SLACK_BOT_TOKEN"},
    "gcp_service_account": {"key_json": "GOOGLE_APPLICATION_CREDENTIALS_JSON"},
    "vultr_api_key": {"api_key": "VULTR_API_KEY"},
    "hetzner_api_key": {"api_key": "HETZNER_API_KEY"},
    "cloudflare_api_token": {"api_token": "CLOUDFLARE_API_TOKEN", "token": "CLOUDFLARE_API_TOKEN"},
    "vps_ssh": {"private_key": "", "public_key": "", "id_rsa": ""},
    "aws": {
        "access_key_id": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "default_region": "AWS_DEFAULT_REGION",
    },
}
PROVIDERS = ["anthropic", "openai", "groq", "google", "xai", "mistral", "openrouter", "custom"]
MODEL_KEYS = [f"{name}_key" for name in PROVIDERS]
SIGNING = ["github_webhook_secret", "sentry_client_secret", "linear_webhook_secret", "mintlify_webhook_secret"]
SIGNING += ["slack_signing_secret", "gitlab_webhook_secret", "standard_webhook_secret", "hmac_webhook_secret"]
SIGNING += ["generic_webhook_token", "outgoing_webhook"]
HOST_ONLY = [*MODEL_KEYS, *SIGNING, "gateway_api_key", "cloudflare_origin_cert"]


@pytest.fixture
def types_file(settings: Any, tmp_path: Path) -> Path:
    settings.HOME = tmp_path
    return tmp_path / "credential-types.toml"


def test_every_type_of_action_llama_is_there_with_its_variables_and_no_other() -> None:
    assert {name for name, kind in BUILT_IN.items() if not kind.host_only} == set(ENV)
    for name, env in ENV.items():
        assert {field.name: field.env for field in BUILT_IN[name].fields.values()} == env, name


def test_what_agentfleet_alone_uses_has_no_variables() -> None:
    assert {name for name, kind in BUILT_IN.items() if kind.host_only} == set(HOST_ONLY)
    assert not [name for name in HOST_ONLY if any(field.env for field in BUILT_IN[name].fields.values())]


def test_every_variable_that_an_agent_is_told_of_is_one_of_its_type() -> None:
    for kind in BUILT_IN.values():
        told = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", kind.context)) - {"GH_TOKEN", "GIT_SSH_COMMAND"}
        assert told <= {field.env for field in kind.fields.values()}, kind.name


def test_every_type_that_sets_something_up_tells_the_agent() -> None:
    silent = [kind.name for kind in BUILT_IN.values() if not (kind.host_only or kind.context)]
    assert silent == ["vps_ssh"], "which has none"


@pytest.mark.parametrize(
    ("name", "there", "missing"),
    [
        ("github_token", [], ["token"]),
        ("github_token", ["value"], ["token"]),
        ("git_ssh", [], ["id_rsa"]),
        ("git_ssh", ["username"], []),
        ("linear_oauth", ["client_id", "client_secret", "access_token"], []),
        ("reddit_oauth", ["client_id", "username", "user_agent"], ["client_secret", "password"]),
        ("x_twitter_api", ["consumer_key", "bearer_token"], ["consumer_secret"]),
        ("x_twitter_api", ["api_key", "api_secret", "bearer_token"], []),
        ("vps_ssh", ["id_rsa"], []),
        ("cloudflare_api_token", ["token"], []),
    ],
)
def test_what_is_missing_is_told_by_the_set_that_is_closest(name: str, there: list[str], missing: list[str]) -> None:
    assert BUILT_IN[name].missing(there) == missing


def test_every_type_is_told_with_its_fields_and_variables() -> None:
    page = (Path(__file__).parent.parent / "docs" / "credentials.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", page.partition("## Types")[2], re.MULTILINE)
    assert {name: re.findall(r"`(\w+)`( \(optional\))?", fields) for name, fields, _ in rows} == {
        kind.name: [(one.name, " (optional)" if one.optional else "") for fields in kind.field_sets for one in fields]
        for kind in BUILT_IN.values()
    }
    for name, _, told in rows:
        variables = {field.env for field in BUILT_IN[name].fields.values()} - {""}
        assert set(re.findall(r"`(\w+)`", told)) - {"GH_TOKEN"} == variables, name


# --- the operator's own -----------------------------------------------------------------------------------------


def test_a_type_of_the_operators_own(types_file: Path) -> None:
    types_file.write_text(
        '[stripe_token]\nfields = ["token", "account"]\noptional = ["account"]\npublic = ["account"]\n'
        'env = {token = "STRIPE_API_KEY"}\ncontext = "`STRIPE_API_KEY`:\\n use `curl`"\nhelp = "Of Stripe."\n'
    )
    kind = credentials.type_of("stripe_token")
    assert kind is not None
    assert {name: (field.env, field.optional, field.secret) for name, field in kind.fields.items()} == {
        "token": ("STRIPE_API_KEY", False, True),
        "account": ("", True, False),
    }
    assert (kind.context, kind.help, kind.host_only) == ("`STRIPE_API_KEY`: use `curl`", "Of Stripe.", False)
    assert credentials.type_of("github_token") == BUILT_IN["github_token"]


def test_a_changed_file_counts_at_once(types_file: Path) -> None:
    types_file.write_text('[one]\nfields = ["token"]\n')
    assert credentials.type_of("two") is None
    types_file.write_text('[one]\nfields = ["token"]\n[two]\nfields = ["token"]\n')
    assert credentials.type_of("two") is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[x", "cannot be read"),
        ("x = 1", "x: "),
        ("[x]\n", "x.fields: Field required"),
        ("[x]\nfields = []", "x.fields: "),
        ('[x]\nfields = ["a"]\nenviron = {}', "x.environ: "),
        ('[x]\nfields = ["a"]\nenv = {a = "1A"}', "x.env.a: "),
        ('[x]\nfields = ["a"]\nenv = {b = "A"}', r"\[x\] says something about b, which is none of its fields"),
        ('[x]\nfields = ["a/b"]', r"cannot have the name 'a/b'"),
        ('["../x"]\nfields = ["a"]', r"cannot have the name '../x'"),
        ('[github_token]\nfields = ["a"]', "is built in: choose another name"),
        ('[x]\nfields = ["a"]\nenv = {a = "PATH"}', "may not set PATH"),
        ('[x]\nfields = ["a"]\nenv = {a = "LD_PRELOAD"}', "may not set LD_PRELOAD"),
        ('[x]\nfields = ["a"]\nenv = {a = "SHUTDOWN_SECRET"}', "may not set SHUTDOWN_SECRET"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_the_place(types_file: Path, text: str, said: str) -> None:
    types_file.write_text(text)
    with pytest.raises(CredentialError, match=f"credential-types.toml.*{said}"):
        credentials.known_types()


# --- whether one is good ----------------------------------------------------------------------------------------


class Service:
    """Answers as told and remembers what it was asked."""

    def __init__(self, status: int = 200, answer: Any = None) -> None:
        self.asked: list[httpx.Request] = []
        self._status, self._answer = status, answer
        self.http = httpx.Client(transport=httpx.MockTransport(self._respond))

    def _respond(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return httpx.Response(self._status, json=self._answer or {})


@pytest.mark.parametrize(
    ("name", "values", "url", "authorization"),
    [
        ("github_token", {"token": "t"}, "https://api.github.com/user", "Bearer t"),
        ("bugsnag_token", {"token": "t"}, "https://api.bugsnag.com/user", "token t"),
        ("linear_token", {"token": "t"}, "https://api.linear.app/graphql", "t"),
        (
            "discord_bot",
            {"application_id": "a", "public_key": "p", "bot_token": "t"},
            "https://discord.com/api/v10/users/@me",
            "Bot t",
        ),
        ("cloudflare_api_token", {"token": "t"}, "https://api.cloudflare.com/client/v4/user/tokens/verify", "Bearer t"),
    ],
)
def test_the_service_is_asked_as_it_wants_to_be(
    name: str, values: dict[str, str], url: str, authorization: str
) -> None:
    service = Service()
    assert fault(BUILT_IN[name], values, service.http) == ""
    [request] = service.asked
    assert (str(request.url), request.headers["authorization"]) == (url, authorization)


def test_reddit_is_asked_for_a_token_with_the_password() -> None:
    values = {"client_id": "i", "client_secret": "s", "username": "u", "password": "{client_id}&", "user_agent": "ua"}
    service = Service(200, {"error": "invalid_grant"})
    assert fault(BUILT_IN["reddit_oauth"], values, service.http) == "www.reddit.com refuses it"
    [request] = service.asked
    assert request.headers["authorization"] == f"Basic {base64.b64encode(b'i:s').decode()}"
    assert request.content == b"grant_type=password&username=u&password=%7Bclient_id%7D%26"


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (401, {"message": "the token ghp_secret is bad"}, "api.github.com answered 401"),
        (302, {}, "api.github.com answered 302"),
        (200, {"errors": [{"message": "ghp_secret"}]}, "api.github.com refuses it"),
        (200, {"ok": False, "error": "x"}, "api.github.com refuses it"),
        (200, {"success": False}, "api.github.com refuses it"),
    ],
)
def test_a_refusal_is_told_and_neither_the_value_nor_the_answer(status: int, answer: Any, said: str) -> None:
    service = Service(status, answer)
    assert fault(BUILT_IN["github_token"], {"token": "ghp_secret"}, service.http) == said
    assert len(service.asked) == 1, "and no redirect followed"


def test_a_service_that_is_not_reached_is_named_and_the_value_is_not() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(f"no route for {request.headers['authorization']}")

    http = httpx.Client(transport=httpx.MockTransport(refuse))
    said = fault(BUILT_IN["github_token"], {"token": "ghp_secret"}, http)
    assert said == "api.github.com could not be asked: ConnectError"


def test_a_value_that_is_no_header_is_not_sent() -> None:
    service = Service()
    said = fault(BUILT_IN["github_token"], {"token": "ghp_\nInjected: yes ä"}, service.http)
    assert said.startswith("api.github.com could not be asked")
    assert not service.asked


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("openai_key", {"token": "pk-1"}, "token does not begin with sk-"),
        ("groq_key", {"token": "gsk_1"}, ""),
        ("git_ssh", {"id_rsa": "ssh-ed25519 AAAA"}, "id_rsa does not contain PRIVATE KEY"),
        ("git_ssh", {"username": "me"}, ""),
        ("linear_webhook_secret", {"secret": "1234567"}, "secret has fewer than 8 characters"),
        ("sentry_token", {}, "token is missing"),
        ("google_key", {"token": "anything"}, ""),
    ],
)
def test_a_shape_is_checked_without_asking_anybody(name: str, values: dict[str, str], said: str) -> None:
    assert fault(BUILT_IN[name], values) == said
    assert json.dumps(values) not in said
