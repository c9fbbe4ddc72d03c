"""What kinds of credentials there are: their fields, what a sandbox gets of them, and how one is told to be good.

Data only. Source: spec/action-llama.md 5.2 to 5.4; where its documents and its code differ, both sets of fields do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Field:
    name: str
    env: str = ""  # the variable that holds it in a sandbox
    optional: bool = False
    secret: bool = True  # else it is a name or an address, and shown
    lines: bool = False  # it has several


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A request that only a good value gets a good answer to. `{field}` in its texts is that field's value."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    basic: Sequence[str] = ()  # user and password
    form: Mapping[str, str] = field(default_factory=dict)
    json: Any = None


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one field must look like."""

    field: str
    prefix: str = ""
    contains: str = ""
    shortest: int = 1


@dataclass(frozen=True, kw_only=True)
class CredentialType:
    """`field_sets`: of several the first that is complete counts."""

    name: str
    field_sets: Sequence[Sequence[Field]]
    help: str = ""
    context: str = ""  # what an agent is told that got it
    host_only: bool = False  # agentfleet itself uses it: no sandbox gets it
    shape: Shape | None = None
    probe: Probe | None = None
    custom: bool = False

    @property
    def fields(self) -> dict[str, Field]:
        """Of all sets, by name."""
        return {one.name: one for fields in self.field_sets for one in fields}

    def missing(self, there: Collection[str]) -> list[str]:
        """The fields that the set closest to complete still lacks; the first field if there is nothing at all."""
        known = set(there)
        lacking = [[f.name for f in fields if not f.optional and f.name not in known] for fields in self.field_sets]
        least = min(lacking, key=len)
        return least or ([] if known & self.fields.keys() else [next(iter(self.fields))])

    def is_secret(self, name: str) -> bool:
        known = self.fields.get(name)
        return known is None or known.secret


def _bearer(url: str, name: str = "token") -> Probe:
    return Probe(url=url, headers={"Authorization": f"Bearer {{{name}}}"})


def _token(name: str, env: str, context: str, **rest: Any) -> CredentialType:
    """One secret field called token, in one variable."""
    return CredentialType(name=name, field_sets=[[Field(name="token", env=env)]], context=context, **rest)


def _model_key(name: str, help: str, *, prefix: str = "", probe: Probe | None = None) -> CredentialType:  # noqa: A002
    shape = Shape(field="token", prefix=prefix) if prefix else None
    fields = [[Field(name="token")]]
    return CredentialType(name=name, field_sets=fields, help=help, host_only=True, shape=shape, probe=probe)


def _webhook_secret(name: str, help: str, **rest: Any) -> CredentialType:  # noqa: A002
    return CredentialType(name=name, field_sets=[[Field(name="secret")]], help=help, host_only=True, **rest)


OUTGOING = "outgoing_webhook"
_LINEAR_QUERY = {"query": "{ viewer { id } }"}
_LINEAR = "https://api.linear.app/graphql"

_ALL = [
    _token(
        "github_token",
        "GITHUB_TOKEN",
        "`GITHUB_TOKEN` and `GH_TOKEN`: use `gh`, and `git` over HTTPS with github.com",
        help="A personal access token of GitHub, fine-grained or classic: https://github.com/settings/tokens",
        probe=_bearer("https://api.github.com/user"),
    ),
    CredentialType(
        name="git_ssh",
        field_sets=[
            [
                Field(name="id_rsa", optional=True, lines=True),
                Field(name="username", optional=True, secret=False),
                Field(name="email", optional=True, secret=False),
            ]
        ],
        help="A private SSH key for git, and the name and address that commits carry. The key may be left out.",
        context="An SSH key in `GIT_SSH_COMMAND` and the name and address of commits: use `git`",
        shape=Shape(field="id_rsa", contains="PRIVATE KEY"),
    ),
    # --- models: the worker asks them, the sandbox never sees a key
    _model_key(
        "anthropic_key",
        "A key of Anthropic's API: https://console.anthropic.com/settings/keys",
        prefix="sk-ant-",
        probe=Probe(
            url="https://api.anthropic.com/v1/models",
            headers={"x-api-key": "{token}", "anthropic-version": "2023-06-01"},
        ),
    ),
    _model_key("openai_key", "A key of OpenAI's API.", prefix="sk-"),
    _model_key("groq_key", "A key of Groq's API.", prefix="gsk_"),
    _model_key("google_key", "A key of Google's Gemini API."),
    _model_key("xai_key", "A key of xAI's API.", prefix="xai-"),
    _model_key("mistral_key", "A key of Mistral's API."),
    _model_key("openrouter_key", "A key of OpenRouter.", prefix="sk-or-"),
    _model_key("custom_key", "The key of any endpoint that speaks OpenAI's protocol."),
    # --- services
    _token(
        "sentry_token",
        "SENTRY_AUTH_TOKEN",
        "`SENTRY_AUTH_TOKEN`: use `curl` with Sentry's API",
        help="An auth token of Sentry.",
        probe=_bearer("https://sentry.io/api/0/organizations/"),
    ),
    _token(
        "linear_token",
        "LINEAR_API_TOKEN",
        "`LINEAR_API_TOKEN`: use `curl` with Linear's GraphQL API",
        help="A personal API key of Linear.",
        probe=Probe(url=_LINEAR, method="POST", headers={"Authorization": "{token}"}, json=_LINEAR_QUERY),
    ),
    CredentialType(
        name="linear_oauth",
        field_sets=[
            [
                Field(name="client_id", env="LINEAR_CLIENT_ID", secret=False),
                Field(name="client_secret", env="LINEAR_CLIENT_SECRET"),
                Field(name="access_token", env="LINEAR_ACCESS_TOKEN"),
                Field(name="refresh_token", env="LINEAR_REFRESH_TOKEN", optional=True),
            ]
        ],
        help="An OAuth application of Linear and its tokens.",
        context="`LINEAR_CLIENT_ID`, `LINEAR_CLIENT_SECRET`, `LINEAR_ACCESS_TOKEN`: use `curl` with Linear's GraphQL "
        "API",
        probe=Probe(url=_LINEAR, method="POST", headers={"Authorization": "Bearer {access_token}"}, json=_LINEAR_QUERY),
    ),
    _token(
        "bugsnag_token",
        "BUGSNAG_AUTH_TOKEN",
        "`BUGSNAG_AUTH_TOKEN`: use `curl` with Bugsnag's API",
        help="A personal auth token of Bugsnag.",
        probe=Probe(url="https://api.bugsnag.com/user", headers={"Authorization": "token {token}"}),
    ),
    _token(
        "netlify_token",
        "NETLIFY_AUTH_TOKEN",
        "`NETLIFY_AUTH_TOKEN`: use `curl` or `netlify`",
        help="A personal access token of Netlify.",
        probe=_bearer("https://api.netlify.com/api/v1/user"),
    ),
    _token(
        "mintlify_token",
        "MINTLIFY_API_TOKEN",
        "`MINTLIFY_API_TOKEN`: use `curl` with Mintlify's API",
        help="An API key of Mintlify.",
    ),
    CredentialType(
        name="x_twitter_api",
        field_sets=[
            [
                Field(name="api_key", env="X_API_KEY"),
                Field(name="api_secret", env="X_API_SECRET"),
                Field(name="bearer_token", env="X_BEARER_TOKEN"),
                Field(name="access_token", env="X_ACCESS_TOKEN", optional=True),
                Field(name="access_token_secret", env="X_ACCESS_TOKEN_SECRET", optional=True),
            ],
            [
                Field(name="consumer_key", env="X_CONSUMER_KEY"),
                Field(name="consumer_secret", env="X_CONSUMER_SECRET"),
                Field(name="bearer_token", env="X_BEARER_TOKEN"),
            ],
        ],
        help="An application of X. Both namings of its keys are accepted: api_ and consumer_.",
        context="X's API: `X_BEARER_TOKEN`, and `X_API_KEY` and `X_API_SECRET` or `X_CONSUMER_KEY` and "
        "`X_CONSUMER_SECRET`: use `curl`",
        probe=_bearer("https://api.x.com/2/users/me", "bearer_token"),
    ),
    CredentialType(
        name="x_twitter_user_oauth1",
        field_sets=[
            [
                Field(name="access_token", env="X_ACCESS_TOKEN"),
                Field(name="access_token_secret", env="X_ACCESS_TOKEN_SECRET"),
            ]
        ],
        help="A user's OAuth 1.0a tokens of X.",
        context="`X_ACCESS_TOKEN` and `X_ACCESS_TOKEN_SECRET`: sign requests to X's API for the user",
    ),
    CredentialType(
        name="x_twitter_user_oauth2",
        field_sets=[
            [
                Field(name="client_id", env="X_OAUTH2_CLIENT_ID", secret=False),
                Field(name="client_secret", env="X_OAUTH2_CLIENT_SECRET"),
                Field(name="access_token", env="X_OAUTH2_ACCESS_TOKEN"),
                Field(name="refresh_token", env="X_OAUTH2_REFRESH_TOKEN"),
            ]
        ],
        help="A user's OAuth 2.0 tokens of X, with the application they are for.",
        context="`X_OAUTH2_ACCESS_TOKEN` and `X_OAUTH2_REFRESH_TOKEN`, with `X_OAUTH2_CLIENT_ID` and "
        "`X_OAUTH2_CLIENT_SECRET`: use `curl` with X's API",
        probe=_bearer("https://api.x.com/2/users/me", "access_token"),
    ),
    CredentialType(
        name="reddit_oauth",
        field_sets=[
            [
                Field(name="client_id", env="REDDIT_CLIENT_ID", secret=False),
                Field(name="client_secret", env="REDDIT_CLIENT_SECRET"),
                Field(name="username", env="REDDIT_USERNAME", secret=False),
                Field(name="password", env="REDDIT_PASSWORD"),
                Field(name="user_agent", env="REDDIT_USER_AGENT", secret=False),
            ]
        ],
        help="A script application of Reddit and the account it acts for.",
        context="`REDDIT_CLIENT_ID`, `REDDIT_CLIENT_SECRET`, `REDDIT_USERNAME`, `REDDIT_PASSWORD`, "
        "`REDDIT_USER_AGENT`: get a token with a POST to "
        "https://www.reddit.com/api/v1/access_token (password grant), then use `curl`",
        probe=Probe(
            url="https://www.reddit.com/api/v1/access_token",
            method="POST",
            headers={"User-Agent": "{user_agent}"},
            basic=["{client_id}", "{client_secret}"],
            form={"grant_type": "password", "username": "{username}", "password": "{password}"},
        ),
    ),
    CredentialType(
        name="discord_bot",
        field_sets=[
            [
                Field(name="application_id", env="DISCORD_APPLICATION_ID", secret=False),
                Field(name="public_key", env="DISCORD_PUBLIC_KEY", secret=False),
                Field(name="bot_token", env="DISCORD_BOT_TOKEN"),
            ]
        ],
        help="A bot of Discord.",
        context="`DISCORD_BOT_TOKEN` and `DISCORD_APPLICATION_ID`: use `curl` with Discord's API",
        probe=Probe(url="https://discord.com/api/v10/users/@me", headers={"Authorization": "Bot {bot_token}"}),
    ),
    _token(
        "slack_bot_token",
        "SLACK_BOT_TOKEN",
        "`SLACK_BOT_TOKEN`: use `curl` with Slack's API",
        help="The bot token of a Slack application.",
        shape=Shape(field="token", prefix="xoxb-"),
        probe=Probe(url="https://slack.com/api/auth.test", method="POST", headers={"Authorization": "Bearer {token}"}),
    ),
    # --- machines and clouds
    CredentialType(
        name="vultr_api_key",
        field_sets=[[Field(name="api_key", env="VULTR_API_KEY")]],
        help="A key of Vultr's API.",
        context="`VULTR_API_KEY`: set machines up with `curl` and Vultr's API",
        probe=_bearer("https://api.vultr.com/v2/account", "api_key"),
    ),
    CredentialType(
        name="hetzner_api_key",
        field_sets=[[Field(name="api_key", env="HETZNER_API_KEY")]],
        help="A token of Hetzner Cloud's API.",
        context="`HETZNER_API_KEY`: set machines up with `curl` and Hetzner Cloud's API",
        probe=_bearer("https://api.hetzner.cloud/v1/server_types", "api_key"),
    ),
    CredentialType(
        name="cloudflare_api_token",
        field_sets=[
            [Field(name="api_token", env="CLOUDFLARE_API_TOKEN")],
            [Field(name="token", env="CLOUDFLARE_API_TOKEN")],
        ],
        help="A token of Cloudflare's API. The field may be called api_token or token.",
        context="`CLOUDFLARE_API_TOKEN`: use `curl` with Cloudflare's API",
        probe=_bearer("https://api.cloudflare.com/client/v4/user/tokens/verify", "api_token"),
    ),
    CredentialType(
        name="aws",
        field_sets=[
            [
                Field(name="access_key_id", env="AWS_ACCESS_KEY_ID"),
                Field(name="secret_access_key", env="AWS_SECRET_ACCESS_KEY"),
                Field(name="default_region", env="AWS_DEFAULT_REGION", optional=True, secret=False),
            ]
        ],
        help="An access key of AWS. Only long-lived keys: no session token.",
        context="`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_DEFAULT_REGION`: use `aws`",
    ),
    CredentialType(
        name="gcp_service_account",
        field_sets=[[Field(name="key_json", env="GOOGLE_APPLICATION_CREDENTIALS_JSON", lines=True)]],
        help="The JSON key of a Google Cloud service account.",
        context="`GOOGLE_APPLICATION_CREDENTIALS_JSON`: the key's JSON itself, not a path",
        shape=Shape(field="key_json", contains="private_key"),
    ),
    CredentialType(
        name="vps_ssh",
        field_sets=[
            [Field(name="private_key", lines=True), Field(name="public_key", optional=True, secret=False)],
            [Field(name="id_rsa", lines=True)],
        ],
        help="An SSH key for machines. The field may be called private_key or id_rsa. It is only a file.",
        shape=Shape(field="private_key", contains="PRIVATE KEY"),
    ),
    CredentialType(
        name="cloudflare_origin_cert",
        field_sets=[[Field(name="certificate", secret=False, lines=True), Field(name="private_key", lines=True)]],
        help="A certificate of Cloudflare for one host, whose name is the instance.",
        host_only=True,
    ),
    # --- what requests from outside are checked with
    _webhook_secret("github_webhook_secret", "The secret that GitHub's webhooks are signed with."),
    _webhook_secret("sentry_client_secret", "The client secret of the Sentry integration that sends webhooks."),
    _webhook_secret(
        "linear_webhook_secret",
        "The secret that Linear's webhooks are signed with.",
        shape=Shape(field="secret", shortest=8),
    ),
    _webhook_secret("mintlify_webhook_secret", "The secret that Mintlify's webhooks are signed with."),
    _webhook_secret("slack_signing_secret", "The secret that Slack's requests are signed with."),
    _webhook_secret("gitlab_webhook_secret", "The secret token that GitLab sends with its webhooks."),
    _webhook_secret(
        "standard_webhook_secret", "The whsec_ secret, or whpk_ public key, of a standardwebhooks.com sender."
    ),
    _webhook_secret("hmac_webhook_secret", "The secret of a sender that signs with an HMAC in its own way."),
    CredentialType(
        name="generic_webhook_token",
        field_sets=[[Field(name="token")]],
        help="The token that requests to a source of type generic carry.",
        host_only=True,
    ),
    CredentialType(
        name=OUTGOING,
        field_sets=[[Field(name="secret", lines=True), Field(name="url", optional=True)], [Field(name="url")]],
        help="What messages about runs are signed with, whsec_ and base64, and the address if that is a secret itself.",
        host_only=True,
    ),
    CredentialType(
        name="gateway_api_key",
        field_sets=[[Field(name="key")]],
        help="Kept by Action Llama's own server. agentfleet has tokens instead and does not read it.",
        host_only=True,
    ),
]

BUILT_IN: Mapping[str, CredentialType] = {one.name: one for one in _ALL}
