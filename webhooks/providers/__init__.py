"""Who may send us webhooks: one file each, and one line here. Both gone, the provider is gone."""

from __future__ import annotations

from webhooks.providers.base import BadSignature, Event, Handshake, Ignored, Provider, Request, Secrets
from webhooks.providers.discord import Discord
from webhooks.providers.generic import Generic
from webhooks.providers.github import GitHub
from webhooks.providers.gitlab import GitLab
from webhooks.providers.hmac import Hmac
from webhooks.providers.linear import Linear
from webhooks.providers.mintlify import Mintlify
from webhooks.providers.sentry import Sentry
from webhooks.providers.slack import Slack
from webhooks.providers.standardwebhooks import StandardWebhooks
from webhooks.providers.test import Test
from webhooks.providers.twitter import Twitter

PROVIDERS: dict[str, Provider] = {
    "github": GitHub(),
    "gitlab": GitLab(),
    "sentry": Sentry(),
    "linear": Linear(),
    "mintlify": Mintlify(),
    "slack": Slack(),
    "discord": Discord(),
    "twitter": Twitter(),
    "standardwebhooks": StandardWebhooks(),
    "hmac": Hmac(),
    "generic": Generic(),
    "test": Test(),
}


def parse(provider: str, request: Request, secrets: Secrets) -> Event | Ignored | Handshake:
    """The whole way for a request that has to be signed. Raises BadSignature, then BadBody."""
    if PROVIDERS[provider].signed_by(request, secrets) is None:
        raise BadSignature("signature validation failed")
    return PROVIDERS[provider].parse(request)
