"""What an installation needs before anything serves: keys, tables, a workspace, an operator, a token."""

from __future__ import annotations

import os
import secrets

import django
from django.core.management import call_command

from agents import private_files


def prepare() -> None:
    """Safe to repeat. Keys first: settings read them."""
    from agentfleet import home  # noqa: PLC0415

    folder = home.ensure(home.path())
    home.secret(folder, "secret_key")
    (folder / "credentials").mkdir(mode=0o700, exist_ok=True)
    private_files.write_once(folder / "host_id", secrets.token_hex(6))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")
    django.setup()
    call_command("migrate", verbosity=0, interactive=False)
    from agentfleet.login import operator  # noqa: PLC0415
    from agents.models import ApiToken, Workspace  # noqa: PLC0415

    workspace, _ = Workspace.objects.get_or_create(name="default")
    operator()
    token_file = folder / "token"
    if not token_file.exists() or ApiToken.find(token_file.read_text().strip()) is None:
        _, value = ApiToken.issue(workspace, "command line", is_operators=True)
        private_files.write(token_file, value)


if __name__ == "__main__":
    prepare()
    from agentfleet.login import link_path

    print(link_path())
