"""Who may send us webhooks: one file each, and one line here. Both gone, the provider is gone."""

from __future__ import annotations

from webhooks.providers.base import Provider
from webhooks.providers.github import GitHub

PROVIDERS: dict[str, Provider] = {
    "github": GitHub(),
}
