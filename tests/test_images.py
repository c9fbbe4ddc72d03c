"""What agents run in: their Dockerfiles, on whose base, built once, by whom, and what comes of one that fails."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from django.conf import LazySettings

from agents import manifest
from agents.credentials import Reference
from agents.credentials.files import FileStore
from agents.models import Agent, AgentFile, AgentVersion
from runs import builds, images
from runs.models import Alert, BuildState, ImageBuild, Run, Status, WaitReason
from runs.sandbox.base import BuildFailed
from runs.sandbox.docker import DockerEngine
from runs.step import Step
from tests.conftest import DrivenClock, DrivenWorker, Rung
from tests.making import bash, make_agent, make_workspace, submit
from webhooks import projects

rings = pytest.mark.django_db(transaction=True)  # doorbells ring when a transaction commits

GOOD = "FROM al-agent:latest\nUSER root\nRUN echo x >/etc/y\nUSER node\n"
TURNS = [{"tools": [bash("echo hello")]}, {"text": "done"}]


def with_files(agent: Agent, files: Mapping[str, str], **changes: Any) -> Agent:
    """The agent's next version: the same definition but for `changes`, and these files beside its own."""
    old = agent.version
    assert old is not None
    whole = {file.path: bytes(file.content) for file in old.files.all()}
    whole |= {path: text.encode() for path, text in files.items()}
    spec = {**old.spec, **changes}
    agent.version = AgentVersion.objects.create(agent=agent, digest=secrets.token_hex(32), spec=spec)
    agent.save()
    AgentFile.objects.bulk_create(
        AgentFile(version=agent.version, path=path, content=content) for path, content in whole.items()
    )
    return agent


def make_built(name: str = "dev", dockerfile: str = GOOD, *, project: str = "", **changes: Any) -> Agent:
    """An agent with a Dockerfile of its own; `project` is that of its project."""
    files = ({"Dockerfile": dockerfile} if dockerfile else {}) | ({".project/Dockerfile": project} if project else {})
    agent = with_files(make_agent(name, turns=TURNS, **changes), files)
    agent.project = "shop"
    agent.save()
    return agent


def need(worker: DrivenWorker, agent: Agent) -> images.Need:
    assert agent.version is not None
    found = images.need(worker.fake.has_image, worker.host_id, agent.version)
    assert found is not None
    return found


def build_all(worker: DrivenWorker) -> None:
    worker.builder.tend()
    worker.handed.work()


def files_in(context: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(context)) as tar:
        return {entry.name: tar.extractfile(entry).read().decode() for entry in tar}  # type: ignore[union-attr]


# --- tags and what goes in ----------------------------------------------------------------------------------------


def test_equal_images_have_one_tag_and_any_change_makes_another(worker: DrivenWorker, settings: LazySettings) -> None:
    copying = f"{GOOD}ARG TOOL\nCOPY tool /usr/bin/\n"
    agent = with_files(make_built(dockerfile=copying, build_args={"TOOL": "1"}), {"tool": "a"})
    first = need(worker, agent).tag
    assert agent.version is not None
    tags = {first, need(worker, with_files(agent, {"tool": "b"})).tag}
    tags.add(need(worker, with_files(agent, {"tool": "a", "Dockerfile": f"{copying}RUN y\n"})).tag)
    assert need(worker, with_files(agent, {"tool": "a", "Dockerfile": copying})).tag == first
    other_host = images.need(worker.fake.has_image, "elsewhere", agent.version)  # of an installation on the same engine
    assert other_host is not None
    tags.add(other_host.tag)
    tags.add(need(worker, with_files(agent, {}, build_args={"TOOL": "2"})).tag)
    settings.SANDBOX_IMAGE = "another:latest"
    tags.add(need(worker, agent).tag)
    assert len(tags) == 6
    assert first.startswith("agentfleet-default-default/dev:")


def test_instructions_that_no_image_takes_make_no_new_image(worker: DrivenWorker) -> None:
    agent = make_built()
    tag = need(worker, agent).tag
    assert need(worker, with_files(agent, {"SKILL.md": "Do it better.\n"})).tag == tag


def test_a_build_gets_the_files_the_arguments_it_asks_for_and_labels(worker: DrivenWorker) -> None:
    dockerfile = f"{GOOD}ARG VERSION\nARG COLOR=red\nCOPY tool /usr/bin/\n"
    agent = make_built(dockerfile=dockerfile, build_args={"COLOR": "blue", "UNASKED": "x"})
    with_files(agent, {"tool": "#!/bin/sh\n", ".dockerignore": "script.yaml\n"})
    build_all(worker)
    (build,) = worker.fake.builds
    given = files_in(build.context)
    assert set(given) == {"Dockerfile", "tool", ".dockerignore"}
    assert given["Dockerfile"].startswith("FROM sha256:agentfleet-sandbox:latest\nLABEL ")
    assert build.args.keys() == {"COLOR", "VERSION"}
    assert build.args["COLOR"] == "blue"
    assert build.labels == {
        "agentfleet.fleet": "default",
        "agentfleet.built-by": worker.host_id,
        "agentfleet.workspace": "default",
        "agentfleet.agent": "dev",
    }


def test_the_fleets_own_certificates_are_there_during_a_build(
    worker: DrivenWorker, settings: LazySettings, tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_text("certificates")
    settings.EXTRA_CA_FILE = str(tmp_path / "ca.crt")
    make_built()
    build_all(worker)
    given = files_in(worker.fake.builds[0].context)
    assert given[images.CA_FILE] == "certificates"
    assert f"COPY {images.CA_FILE} /etc/agentfleet-extra-ca.crt" in given["Dockerfile"]
    assert "ARG SSL_CERT_FILE=/etc/agentfleet-extra-ca.crt" in given["Dockerfile"]


def test_a_dockerfile_written_for_alpine_finds_apk(worker: DrivenWorker) -> None:
    make_built(dockerfile="FROM al-agent\nUSER root\nRUN apk add --no-cache github-cli\nUSER node\n")
    build_all(worker)
    given = files_in(worker.fake.builds[0].context)
    assert given["Dockerfile"].index("/usr/local/sbin/apk") < given["Dockerfile"].index("RUN apk add")
    assert given[images.APK_FILE].startswith("#!/bin/sh")


def test_agents_share_their_projects_image_and_stand_on_it(worker: DrivenWorker) -> None:
    project = "FROM al-agent\nRUN p\n"
    one, two, plain = (make_built(name, text, project=project) for name, text in (("a", GOOD), ("b", GOOD), ("c", "")))
    build_all(worker)
    shared = need(worker, plain).tag
    assert [build.tag for build in worker.fake.builds] == [shared, need(worker, one).tag, need(worker, two).tag]
    assert files_in(worker.fake.builds[1].context)["Dockerfile"].startswith(f"FROM {shared}\n")
    assert set(ImageBuild.objects.values_list("state", flat=True)) == {BuildState.BUILT}


def test_agents_whose_dockerfiles_read_the_same_take_the_layers_of_the_first(worker: DrivenWorker) -> None:
    for name in ("a", "b", "c"):
        make_built(name)
    make_built("other", f"{GOOD}RUN other\n")
    worker.builder.tend()
    assert len(worker.handed.waiting) == 2  # a, and what is not as it
    worker.handed.work()
    names = [build.labels["agentfleet.agent"] for build in worker.fake.builds]
    assert names[:2] == ["a", "other"]
    assert sorted(names) == ["a", "b", "c", "other"]


# --- runs ---------------------------------------------------------------------------------------------------------


@rings
@pytest.mark.postgresql
def test_a_run_waits_for_its_image_and_starts_from_it(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = make_built(limits={"wall_seconds": 60})
    run = worker.drive(submit(agent))
    assert (run.status, run.wait_reason, run.has_slot) == (Status.WAITING, WaitReason.RETRY, True)
    assert run.input_tokens == 0
    waits = run.events.filter(type="image.wait").values_list("data", flat=True)
    assert list(waits) == [{"image": need(worker, agent).tag}]
    driven_clock.forward(500)  # more than the run itself may take
    worker.sweep()
    run = worker.drive(run)
    assert run.status == Status.FINISHED
    tag = need(worker, agent).tag
    assert [build.tag for build in worker.fake.builds] == [tag]
    assert {spec.image for spec in worker.fake.specs.values()} == {tag}
    assert ImageBuild.objects.get().used_at is not None


@rings
def test_a_run_that_parks_when_its_image_is_just_done_is_not_forgotten(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit(make_built())
    park = Step.wait_for_image

    def built_first(step: Step, needed: images.Need) -> None:
        build_all(worker)
        park(step, needed)

    monkeypatch.setattr(Step, "wait_for_image", built_first)
    assert worker.drive(run).status == Status.FINISHED


@rings
def test_a_second_run_needs_no_build(worker: DrivenWorker) -> None:
    agent = make_built()
    build_all(worker)
    for _ in range(2):
        assert worker.drive(submit(agent)).status == Status.FINISHED
    assert len(worker.fake.builds) == 1


@rings
def test_an_image_that_somebody_removed_is_built_again(worker: DrivenWorker) -> None:
    agent = make_built(project="FROM al-agent\nRUN p\n")
    build_all(worker)
    worker.fake.built.clear()
    run = worker.drive(submit(agent))
    assert run.status == Status.WAITING
    build_all(worker)
    assert worker.drive(run).status == Status.FINISHED
    assert len(worker.fake.builds) == 4


@rings
def test_a_run_keeps_the_image_of_its_own_version(worker: DrivenWorker) -> None:
    agent = make_built()
    old = need(worker, agent).tag
    run = worker.drive(submit(agent))
    with_files(agent, {"Dockerfile": f"{GOOD}RUN newer\n"})
    build_all(worker)
    worker.drive(run)
    assert {spec.image for spec in worker.fake.specs.values()} == {old}


@rings
def test_an_agent_without_a_dockerfile_builds_nothing(worker: DrivenWorker) -> None:
    assert worker.drive(submit(make_agent(turns=TURNS))).status == Status.FINISHED
    build_all(worker)
    assert not ImageBuild.objects.exists()


@rings
def test_an_image_that_cannot_be_built_fails_its_runs_alone(worker: DrivenWorker) -> None:
    bad, good = make_built("bad", f"{GOOD}RUN no\n"), make_built("good")
    worker.fake.will_say = [["Step 1/2 : RUN no\n", "no: not found\n", BuildFailed("RUN no: returned 127")]]
    failed, finished = submit(bad), submit(good)
    worker.drive(failed)
    build_all(worker)
    failed, finished = worker.drive(failed), worker.drive(finished)
    assert failed.status == Status.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "IMAGE_BUILD_FAILED"
    assert "no: not found\nRUN no: returned 127" in failed.error["message"]
    assert finished.status == Status.FINISHED
    assert not failed.attempts.get().has_workspace
    assert failed.input_tokens == 0


@rings
def test_a_projects_image_that_cannot_be_built_fails_the_runs_that_stand_on_it(worker: DrivenWorker) -> None:
    run = submit(make_built(project="FROM al-agent\nRUN no\n"))
    worker.fake.will_say = [[BuildFailed("RUN no: returned 127")]]
    worker.drive(run)
    build_all(worker)
    run = worker.drive(run)
    assert run.status == Status.FAILED
    assert run.error is not None
    assert "agentfleet-default-default/shop:" in run.error["message"]
    assert len(worker.fake.builds) == 1


@rings
def test_a_missing_base_is_said_by_the_run(worker: DrivenWorker) -> None:
    worker.fake.images = ()
    run = worker.drive(submit(make_built()))
    assert run.error is not None
    assert run.error["code"] == "IMAGE_MISSING"
    build_all(worker)
    assert not ImageBuild.objects.exists()


@rings
def test_a_run_says_which_file_of_certificates_is_not_there(
    worker: DrivenWorker, settings: LazySettings, tmp_path: Path
) -> None:
    settings.EXTRA_CA_FILE = str(tmp_path / "gone.crt")
    run = worker.drive(submit(make_built()))
    assert run.error is not None
    assert run.error["code"] == "SANDBOX_REFUSED"
    assert f"{tmp_path}/gone.crt, which AGENTFLEET_EXTRA_CA_FILE names, cannot be read" in run.error["message"]
    build_all(worker)
    assert not ImageBuild.objects.exists()


# --- alerts, and trying again -------------------------------------------------------------------------------------


def standing() -> list[str]:
    return list(Alert.objects.filter(kind=images.FAILED, cleared_at=None).values_list("subject", flat=True))


def test_a_failed_image_is_an_alert_until_the_next_good_one(worker: DrivenWorker) -> None:
    agent = make_built(dockerfile=f"{GOOD}RUN no\n")
    worker.fake.will_say = [[BuildFailed("no")]]
    build_all(worker)
    assert standing() == [str(agent.pk)]
    with_files(agent, {"Dockerfile": GOOD})
    build_all(worker)
    assert standing() == []


def test_build_again_builds_what_has_failed(worker: DrivenWorker) -> None:
    agent = make_built(project="FROM al-agent\nRUN p\n")
    worker.fake.will_say = [[BuildFailed("no network")]]
    build_all(worker)
    build_all(worker)
    assert len(worker.fake.builds) == 1
    assert images.build_again(agent) == 1
    build_all(worker)
    assert [row.state for row in images.rows_of(agent)] == [BuildState.BUILT] * 2


def test_what_failed_is_tried_again_a_day_later(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    make_built()
    worker.fake.will_say = [[BuildFailed("no network")]]
    build_all(worker)
    driven_clock.forward(builds.TRY_AGAIN.total_seconds() + 1)
    build_all(worker)
    assert ImageBuild.objects.get().state == BuildState.BUILT


def test_a_credential_that_a_dockerfile_prints_is_kept_out_of_its_log(
    worker: DrivenWorker, settings: LazySettings, tmp_path: Path
) -> None:
    token = "npm_0123456789abcdef"
    FileStore(tmp_path / "credentials").put(Reference.parse("npm_registry"), {"token": token})
    settings.HOME = tmp_path
    make_built(dockerfile=f"{GOOD}ARG NPM_TOKEN\nRUN echo $NPM_TOKEN\n", build_args={"NPM_TOKEN": token})

    def echo() -> Iterator[str]:
        yield f"using {worker.fake.builds[0].args['NPM_TOKEN']}\n"
        raise BuildFailed(f"{token} is not let in")

    worker.fake.will_say = [echo()]
    build_all(worker)
    row = ImageBuild.objects.get()
    assert row.log == "using [redacted]\n"
    assert row.error == "using [redacted]\n[redacted] is not let in"
    assert token not in repr(list(Alert.objects.values()))


# --- with a real engine -------------------------------------------------------------------------------------------


@pytest.fixture
def real(db: None, tmp_path: Path, rung: Rung) -> Iterator[DrivenWorker]:
    """A worker whose sandboxes, and their images, are Docker's."""
    host_id = f"test-{secrets.token_hex(4)}"
    (tmp_path / "host_id").write_text(host_id)
    engine = DockerEngine(host_id)
    yield DrivenWorker(cast("Any", engine), tmp_path, rung)
    for name in engine.names():
        engine.remove(name)
        engine.remove_workspace(name)
    for tag in engine.built_images():
        engine.remove_image(tag)
    engine.remove_remains()
    engine.close()


def settings_of(dockerfile: str, command: str) -> dict[str, str]:
    config = f'kind = "command"\nnetwork = "none"\ncommand = "{command}"\n'
    return {"SKILL.md": "Do it.\n", "config.toml": config, "tool": "#!/bin/sh\necho tool\n", "Dockerfile": dockerfile}


def output_of(worker: DrivenWorker, run: Run) -> str:
    for _ in range(3):  # its project's image, its own, and its work
        run = worker.drive(run)
        build_all(worker)
    return run.output or str(run.error)


@rings
@pytest.mark.engine
def test_agents_run_in_what_their_dockerfiles_say_and_one_that_fails_stops_no_other(real: DrivenWorker) -> None:
    agents = {
        "good": settings_of(f"{GOOD}COPY tool /usr/bin/tool\n", "tool; cat /etc/y /etc/project; id -u"),
        "plain": settings_of("FROM al-agent:latest\n", "cat /etc/project; test ! -e /etc/y"),
        "bad": settings_of("FROM al-agent\nUSER root\nRUN echo oh no; exit 3\n", "true"),
    }
    files = {"config.toml": "", "Dockerfile": "FROM al-agent:latest\nUSER root\nRUN echo p >/etc/project\nUSER node\n"}
    files |= {f"agents/{name}/{path}": text for name, inner in agents.items() for path, text in inner.items()}
    reading = manifest.parse({path: text.encode() for path, text in files.items()}, project="shop")
    projects.apply(make_workspace(), reading.project)
    runs = {agent.name: submit(agent) for agent in Agent.objects.all()}
    said = {name: output_of(real, run) for name, run in runs.items()}
    assert said["good"].split() == ["tool", "x", "p", "1000"]
    assert said["plain"] == "p\n"
    assert "IMAGE_BUILD_FAILED" in said["bad"]
    assert "oh no" in said["bad"]
    assert standing() == [str(Agent.objects.get(name="bad").pk)]
    repositories = Counter(tag.partition(":")[0] for tag in real.engine.built_images())
    assert repositories == {"agentfleet-default-default/shop": 1, "agentfleet-default-default/good": 1}
