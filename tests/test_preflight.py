"""Preflight steps as they are written: what is refused, what is warned of, and what the shell is given."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.manifest import Faulty, parse
from agents.manifest.preflight import PROVIDERS
from runs import preflight

CONFIG = """\
network = "{network}"
models = ["m"]
[[preflight]]
provider = "{provider}"
[preflight.params]
{params}
"""


def read(provider: str, params: str, network: str = "open") -> list[str]:
    """What a step is warned of. Raises Faulty."""
    text = CONFIG.format(provider=provider, params=params, network=network)
    files = {
        "config.toml": b"[models.m]\nprovider = 'anthropic'\nmodel = 'm'\n",
        "agents/dev/config.toml": text.encode(),
        "agents/dev/SKILL.md": b"Do it.\n",
    }
    return [warning.message for warning in parse(files, project="p").warnings]


SOUND = [
    ("shell", "command = 'ls'\noutput = 'x'"),
    ("http", "url = 'https://x/${A}'\noutput = 'x'\nmethod = 'post'\nbody = ''\nheaders = {Accept = 'text/plain'}"),
    ("git-clone", "repo = 'acme/app'\ndest = 'app'\nbranch = 'main'\ndepth = 1"),
]


@pytest.mark.parametrize(("provider", "params"), SOUND)
def test_a_sound_step_is_taken_as_it_is(provider: str, params: str) -> None:
    assert read(provider, params) == []


@pytest.mark.parametrize(
    ("provider", "params", "message"),
    [
        ("git-clon", "", "there is no preflight provider git-clon: did you mean git-clone?"),
        ("ftp", "", "there is no preflight provider ftp: there are shell, http, git-clone"),
        ("shell", "", "a shell step needs params.command"),
        ("shell", "command = ''", "params.command must not be empty"),
        ("shell", "command = 1", "params.command must be text, not a number"),
        ("shell", "comand = 'x'", "shell has no param comand: did you mean command?"),
        ("http", "url = 'x'", "a http step needs params.output"),
        ("http", "url = 'x'\noutput = 'y'\nmethod = 'G'", "params.method must be one of GET, POST, PUT, PATCH, DELETE"),
        ("http", "url = 'x'\noutput = 'y'\nheaders = {A = 1}", "params.headers must be a table of texts"),
        (
            "http",
            "url = 'x'\noutput = 'y'\nheaders = {'A b' = ''}",
            "params.headers has a name that no header can have",
        ),
        ("git-clone", "repo = 'a/b'\ndest = 'x'\ndepth = 0", "params.depth must be a whole number above 0"),
        ("git-clone", "repo = 'a/b'\ndest = 'x'\ndepth = true", "params.depth must be a whole number above 0"),
        ("shell", f"command = '{'x' * 30_001}'", "params.command must have at most 30000 bytes"),
    ],
)
def test_what_cannot_be_carried_out_is_a_fault(provider: str, params: str, message: str) -> None:
    with pytest.raises(Faulty) as faulty:
        read(provider, params)
    assert any(message in str(fault) for fault in faulty.value.faults), faulty.value
    assert all(fault.line for fault in faulty.value.faults)


@pytest.mark.parametrize("network", ["none", "gateway"])
@pytest.mark.parametrize(
    ("provider", "params", "warned"),
    [
        ("git-clone", "repo = 'acme/app'\ndest = 'x'", True),
        ("http", "url = 'https://example.org'\noutput = 'x'", True),
        ("http", "url = 'http://localhost.example.org'\noutput = 'x'", True),
        ("http", "url = 'http://127.0.0.1:8000/x'\noutput = 'x'", False),
        ("git-clone", "repo = 'file:///tmp/x'\ndest = 'x'", False),
        ("shell", "command = 'curl https://example.org'", False),
    ],
)
def test_what_the_network_does_not_reach_is_warned_of(network: str, provider: str, params: str, warned: bool) -> None:
    found = read(provider, params, network)
    assert any(f"{provider} reaches nothing with network {network}" in message for message in found) is warned


def test_every_provider_that_may_be_written_is_carried_out() -> None:
    examples: dict[str, Any] = {"command": "x", "url": "x", "output": "x", "repo": "x", "dest": "x"}
    assert all(preflight.script(name, examples) for name in PROVIDERS)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["${A}", "${MISSING}", "$A", "$(echo x)", "`x`", "'", '"', "\\", "${A", "$", "{A}", "\n", " "]
            ),
            st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=3),
        ),
        max_size=6,
    )
)
def test_a_word_is_what_was_written_with_its_variables_filled_in(parts: list[str]) -> None:
    value = "it's $(touch x); \"`\\"
    text = "".join(parts)
    shown = subprocess.run(
        ["sh", "-c", f"printf '%s.' {preflight.word(text)}"],
        env={"A": value},
        capture_output=True,
        check=True,
    )
    assert shown.stdout.decode() == text.replace("${A}", value).replace("${MISSING}", "") + "."
