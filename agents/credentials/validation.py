"""Whether a credential is good: complete, of the right shape, and taken by the service it is for.

What is said about one never holds a value, nor what the service answered, which may repeat it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agents.credential_types import CredentialType, Probe

if TYPE_CHECKING:
    import httpx

WITHIN = 15.0  # seconds


def fault(kind: CredentialType, values: Mapping[str, str], http: httpx.Client | None = None) -> str:
    """What is wrong, in words; empty: nothing that can be found out. Without `http` nobody is asked."""
    if lacking := kind.missing(values):
        return f"{', '.join(lacking)} is missing"
    return shape_fault(kind, values) or (
        _refusal(kind.probe, _by_any_name(kind, values), http) if kind.probe and http else ""
    )


def shape_fault(kind: CredentialType, values: Mapping[str, str]) -> str:
    shape = kind.shape
    value = values.get(shape.field) if shape else None
    if shape is None or value is None:
        return ""
    if not value.startswith(shape.prefix):
        return f"{shape.field} does not begin with {shape.prefix}"
    if shape.contains not in value:
        return f"{shape.field} does not contain {shape.contains}"
    if len(value) < shape.shortest:
        return f"{shape.field} has fewer than {shape.shortest} characters"
    return ""


def _refusal(probe: Probe, values: Mapping[str, str], http: httpx.Client) -> str:
    request = _filled(probe, values)
    import httpx  # noqa: PLC0415 - a part of every web, for the few who ask a service

    where = httpx.URL(probe.url).host
    try:
        answer = http.request(probe.method, probe.url, timeout=WITHIN, follow_redirects=False, **request)
    except (httpx.HTTPError, UnicodeEncodeError, ValueError) as error:
        return f"{where} could not be asked: {type(error).__name__}"
    if not answer.is_success:
        return f"{where} answered {answer.status_code}"
    return f"{where} refuses it" if _says_no(answer) else ""


def _says_no(answer: httpx.Response) -> bool:
    """Some answer 200 and an error."""
    try:
        said = answer.json()
    except ValueError:
        return False
    if not isinstance(said, dict):
        return False
    return bool(said.get("error") or said.get("errors")) or False in (said.get("ok"), said.get("success"))


def _filled(probe: Probe, values: Mapping[str, str]) -> dict[str, Any]:
    filled: dict[str, Any] = {
        "headers": {name: _fill(text, values) for name, text in probe.headers.items()},
    }
    if probe.basic:
        filled["auth"] = tuple(_fill(text, values) for text in probe.basic)
    if probe.form:
        filled["data"] = {name: _fill(text, values) for name, text in probe.form.items()}
    if probe.json is not None:
        filled["json"] = probe.json
    return filled


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Every {field} by its value, in one go: a value is never looked into."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], ""), text)


def _by_any_name(kind: CredentialType, values: Mapping[str, str]) -> dict[str, str]:
    """Fields with one variable are one thing under two names."""
    by_env = {known.env: values[name] for name, known in kind.fields.items() if known.env and name in values}
    named = {name: by_env[known.env] for name, known in kind.fields.items() if known.env in by_env}
    return {**values, **named}
