"""What every engine promises of the images it builds, asked of each of them."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runs.sandbox.base import BuildFailed, Engine
from runs.sandbox.docker import DockerEngine
from runs.sandbox.fake import FakeEngine

HOST = f"test-{secrets.token_hex(4)}"


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.engine)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    engine = DockerEngine(HOST) if request.param == "docker" else FakeEngine(tmp_path / "fake")
    yield engine
    for tag in engine.built_images():
        engine.remove_image(tag)
    engine.remove_remains()
    if isinstance(engine, DockerEngine):
        engine.close()


def build(engine: Engine, tag: str, *steps: str) -> Iterator[str]:
    """The double says what the steps echo, and fails where one does."""
    stage = f'FROM agentfleet-sandbox:latest\nLABEL agentfleet.fleet=default agentfleet.built-by="{HOST}"\n'
    text = "\n".join([stage, *(f"RUN {step}" for step in steps), ""]).encode()
    if isinstance(engine, FakeEngine):
        said = [step.removeprefix("echo ") for step in steps if step.startswith("echo ")]
        engine.will_say = [[*said, *([BuildFailed("exit 3")] if "exit 3" in steps else [])]]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return engine.build_image(tag, buffer.getvalue(), args={}, labels={})


@pytest.fixture
def tag() -> str:
    return f"agentfleet-{HOST}/made:{secrets.token_hex(4)}"


def test_a_build_says_what_it_does_and_its_image_is_there_until_it_is_removed(engine: Engine, tag: str) -> None:
    assert engine.has_image(tag) is None
    assert "hello" in "".join(build(engine, tag, "echo hello"))
    assert engine.has_image(tag) is not None
    assert engine.built_images() == [tag]
    ready = engine.prepare_image(tag)
    assert engine.remove_image(tag)
    assert [engine.has_image(name) for name in (tag, ready)] == [None, None]
    assert engine.built_images() == []


def test_a_build_that_fails_says_so_and_leaves_no_image(engine: Engine, tag: str) -> None:
    with pytest.raises(BuildFailed, match="3"):
        list(build(engine, tag, "echo hello", "exit 3"))
    assert engine.has_image(tag) is None
    assert engine.built_images() == []


def test_a_build_that_is_closed_ends_there(engine: Engine, tag: str) -> None:
    lines = build(engine, tag, "echo begun", "sleep 600")
    assert next(line for line in lines if "begun" in line)
    assert engine.names() == []  # what a build runs in is no sandbox, and nobody removes it as one
    lines.close()  # type: ignore[attr-defined]
    assert engine.has_image(tag) is None


def test_removing_what_is_not_there_is_fine(engine: Engine, tag: str) -> None:
    assert engine.remove_image(tag)


def test_another_hosts_images_are_not_ours(engine: Engine, tag: str, tmp_path: Path) -> None:
    list(build(engine, tag, "echo hello"))
    other = DockerEngine("another") if isinstance(engine, DockerEngine) else FakeEngine(tmp_path / "other")
    assert other.built_images() == []
    if isinstance(other, DockerEngine):
        other.close()
