"""Dockerfiles written for Alpine on a base that has apt: what `apk` asks apt-get for. No package is touched here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from runs.images import APK


def asked(folder: Path, *words: str, installed: str = "none", code: int = 0) -> list[str]:
    """The lines that programs were called with, or what `apk` says when it fails. `installed`: as in `case`."""
    for name in ("apt-get", "rm"):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    query = folder / "dpkg-query"
    query.write_text(
        f"#!/bin/sh\nfor name; do :; done\ncase $name in {installed}) printf installed ;; *) exit 1 ;; esac\n"
    )
    query.chmod(0o755)
    sed = shutil.which("sed")
    assert sed
    (folder / "sed").symlink_to(sed)
    done = subprocess.run(
        ["/bin/sh", str(APK), *words], env={"PATH": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return [line.replace("-q -o Dpkg::Use-Pty=0 ", "") for line in (done.stderr if code else done.stdout).splitlines()]


@pytest.mark.parametrize(
    ("words", "packages"),
    [
        ("--no-cache github-cli", "gh"),
        ("--update --no-cache nodejs npm py3-pip", "nodejs npm python3-pip"),
        ("python3~=3.11 build-base>=1 .deps", "python3 python-is-python3 build-essential"),
        ("-q --virtual .deps openssl-dev openjdk17-jre", "libssl-dev openjdk-17-jre"),
    ],
)
def test_packages_are_installed_by_debians_names(tmp_path: Path, words: str, packages: str) -> None:
    update, install, lists = asked(tmp_path, "add", *words.split())
    assert update == "apt-get update"
    assert install == f"apt-get install -y --no-install-recommends {packages}"
    assert lists.startswith("rm -rf /var/lib/apt/lists/")


def test_what_every_debian_has_needs_no_package(tmp_path: Path) -> None:
    assert asked(tmp_path, "add", "--no-cache", "libc6-compat", "coreutils") == []


def test_what_the_base_has_already_is_left_as_it_is(tmp_path: Path) -> None:
    assert asked(tmp_path, "add", "ripgrep", "jq", installed="ripgrep | jq") == []


def test_only_what_is_missing_is_installed(tmp_path: Path) -> None:
    _, install, _ = asked(tmp_path, "add", "--no-cache", "github-cli", "jq", installed="jq")
    assert install == "apt-get install -y --no-install-recommends gh"


def test_what_the_base_has_is_brought_up_to_date_where_that_is_asked_for(tmp_path: Path) -> None:
    _, install, _ = asked(tmp_path, "add", "--upgrade", "jq", installed="jq")
    assert install == "apt-get install -y --no-install-recommends jq"


@pytest.mark.parametrize(
    ("words", "calls"),
    [
        ("update", ["apt-get update"]),
        ("--no-cache upgrade", ["apt-get update", "apt-get upgrade -y --no-install-recommends"]),
        ("del curl .deps", ["apt-get purge -y --autoremove curl"]),
    ],
)
def test_the_other_commands_are_apts(tmp_path: Path, words: str, calls: list[str]) -> None:
    assert asked(tmp_path, *words.split()) == calls


@pytest.mark.parametrize(
    "words", ["search git", "add --repository http://example.com/edge x", "add font-noto", "add --root /x y"]
)
def test_what_cannot_be_done_is_said_and_fails(tmp_path: Path, words: str) -> None:
    [said] = asked(tmp_path, *words.split(), code=1)
    assert said.startswith("apk: ")
