"""What lies in the sandbox of an agent from its own folder, as of the version its run has.

In /workspace, to which /app/static leads, and read-only: instructions, `agent-config.json`, and whatever else is there.
"""

from __future__ import annotations

import json
from typing import Any

from agents.manifest import export
from agents.models import AgentFile
from agents.spec import AgentSpec, ModelSpec
from runs.models import Run

CONFIG = "agent-config.json"
INSTRUCTIONS = ("SKILL.md", "ACTIONS.md", "PLAYBOOK.md")
HIDDEN = "."  # a folder's own files never begin with it: what does is for images


def files(run: Run, spec: AgentSpec) -> dict[str, bytes]:
    """Path below /workspace to content."""
    stored = AgentFile.objects.filter(version_id=run.version_id).exclude(path__startswith=HIDDEN)
    unwanted = {"Dockerfile"} | {model.model for model in spec.models if model.provider == "scripted"}
    found = {path: bytes(content) for path, content in stored.values_list("path", "content") if path not in unwanted}
    if not any(name in found for name in INSTRUCTIONS):
        found["SKILL.md"] = spec.instructions.encode()
    return {**found, CONFIG: json.dumps(config(spec), indent=2, ensure_ascii=False).encode()}


def config(spec: AgentSpec) -> dict[str, Any]:
    """The definition as the seed writes it. Source: spec/action-llama.md 4.3, 7.1."""
    models = [as_written(model) for model in spec.models]
    said = {
        "name": spec.name,
        "description": spec.description,
        "credentials": list(spec.credentials),
        "model": models[0] if models else None,
        "models": models,
        **export.schedules(spec),
        "timezone": spec.timezone,
        "webhooks": [{"source": webhook.source, **webhook.filters} for webhook in spec.webhooks],
        "preflight": list(spec.preflight),
        "hooks": {"pre": list(spec.hooks_pre), "post": list(spec.hooks_post)},
    }
    told = {key: value for key, value in said.items() if value not in ("", None, [], {"pre": [], "post": []})}
    always = {"params": spec.params, "scale": spec.scale, "timeout": spec.limits.wall_seconds}
    return {"credentials": [], **told, **always}


def as_written(model: ModelSpec) -> dict[str, Any]:
    thinking = {"thinkingLevel": model.thinking} if model.thinking else {}
    return {"provider": model.provider, "model": model.model, "authType": model.auth_type, **thinking}
