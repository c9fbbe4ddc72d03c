"""Who makes an image, what is stored of it meanwhile, and when it goes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client

from agents import clock
from runs import builds, images
from runs.models import BuildState, Host, ImageBuild, Run
from runs.sandbox.base import BuildFailed
from tests.conftest import DrivenClock, DrivenWorker, other_worker
from tests.making import submit
from tests.test_images import GOOD, build_all, make_built, need, with_files
from tests.test_indexes import whole_tables_read

# --- who builds ---------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_two_workers_of_a_host_build_an_image_once(worker: DrivenWorker) -> None:
    make_built()
    second = other_worker(worker)
    worker.builder.tend()
    second.builder.tend()
    worker.handed.work()
    second.handed.work()
    assert len(worker.fake.builds) == 1


def test_a_host_builds_two_images_at_a_time(worker: DrivenWorker) -> None:
    for name in ("a", "b", "c", "d"):
        make_built(name, f"{GOOD}RUN {name}\n")
    worker.builder.tend()
    assert len(worker.handed.waiting) == builds.AT_ONCE
    worker.handed.work()
    assert len(worker.fake.builds) == 4


def test_what_a_builder_that_died_has_begun_is_begun_anew(worker: DrivenWorker) -> None:
    make_built()
    dying = other_worker(worker)

    def dies() -> Iterator[str]:
        yield "Step 1/2 : FROM base\n"
        dying.die()
        raise SystemExit

    worker.fake.will_say = [dies()]
    dying.builder.tend()
    with pytest.raises(SystemExit):
        dying.handed.work()
    row = ImageBuild.objects.get()
    assert (row.state, row.builder) == (BuildState.BUILDING, dying.owner)
    build_all(worker)
    row.refresh_from_db()
    assert (row.state, row.builder) == (BuildState.BUILT, worker.owner)


def test_what_a_living_builder_is_at_is_left_to_it(worker: DrivenWorker) -> None:
    make_built()
    second = other_worker(worker)

    def meanwhile() -> Iterator[str]:
        build_all(second)
        yield "Step 1/2 : FROM base\n"

    worker.fake.will_say = [meanwhile()]
    build_all(worker)
    assert len(worker.fake.builds) == 1


def test_a_worker_that_stops_gives_its_build_back(worker: DrivenWorker) -> None:
    make_built()

    def stops() -> Iterator[str]:
        yield "Step 1/2 : FROM base\n"
        worker.stopping.set()
        yield ""
        raise AssertionError("the build goes on")

    worker.fake.will_say = [stops()]
    build_all(worker)
    row = ImageBuild.objects.get()
    assert (row.state, row.builder) == (BuildState.PENDING, "")


def test_a_build_that_takes_too_long_has_failed(worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "LIMIT", 0)
    make_built()
    build_all(worker)
    row = ImageBuild.objects.get()
    assert row.state == BuildState.FAILED
    assert "was not done after" in row.error


def test_an_engine_that_does_not_answer_fails_nothing(worker: DrivenWorker) -> None:
    make_built()

    def goes_down() -> Iterator[str]:
        worker.fake.down = True
        yield from ()
        worker.fake.has_image("x")

    worker.fake.will_say = [goes_down()]
    build_all(worker)
    assert ImageBuild.objects.get().state == BuildState.PENDING
    worker.fake.down = False
    build_all(worker)
    assert ImageBuild.objects.get().state == BuildState.BUILT


@pytest.mark.django_db(transaction=True)
def test_tending_reads_no_table_whole(worker: DrivenWorker) -> None:
    worker.drive(submit(make_built()))
    assert worker.builder.has_work
    assert whole_tables_read(worker.builder.tend) == []
    assert whole_tables_read(lambda: worker.builder.wake(worker.builder.needs())) == []


# --- the log ------------------------------------------------------------------------------------------------------


def test_the_log_grows_as_it_is_said_and_holds_no_secret(worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-made-up-key")
    monkeypatch.setattr(builds, "STORE_EVERY", 0.0)
    make_built()
    seen: list[str] = []

    def said() -> Iterator[str]:
        yield "\x1b[91mkey sk-ant-ma"
        yield "de-up-key\x1b[0m\n"
        seen.append(ImageBuild.objects.get().log)
        raise BuildFailed("sk-ant-made-up-key is no key")

    worker.fake.will_say = [said()]
    build_all(worker)
    row = ImageBuild.objects.get()
    assert seen == ["key [redacted]\n"]
    assert row.error == "key [redacted]\n[redacted] is no key"


def test_of_a_very_long_log_the_end_is_kept(worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "LOG_KEPT", 10)
    make_built()
    worker.fake.will_say = [["0123456789\n", "the end\n"]]
    build_all(worker)
    assert ImageBuild.objects.get().log == "89\nthe end\n"[-10:]


# --- what is not needed any more ----------------------------------------------------------------------------------


def test_an_image_that_nothing_needs_goes_after_a_week(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = make_built()
    build_all(worker)
    old = need(worker, agent).tag
    with_files(agent, {"Dockerfile": f"{GOOD}RUN newer\n"})
    build_all(worker)
    builder = worker.builder
    for days, left in ((6, 2), (2, 1)):
        driven_clock.forward(timedelta(days=days).total_seconds())
        builder.prune(builder.needs())
        assert len(worker.fake.built) == left
    assert worker.fake.built == {need(worker, agent).tag} != {old}
    assert ImageBuild.objects.get().tag == need(worker, agent).tag


@pytest.mark.django_db(transaction=True)
def test_the_image_of_a_run_at_work_stays(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = make_built()
    build_all(worker)
    run = submit(agent)
    worker.answer_one()
    with_files(agent, {"Dockerfile": f"{GOOD}RUN newer\n"})
    driven_clock.forward(timedelta(days=30).total_seconds())
    worker.builder.prune(worker.builder.needs())
    assert Run.objects.get(pk=run.pk).has_slot
    assert len(worker.fake.built) == 1


def test_an_image_that_no_row_knows_is_removed(worker: DrivenWorker) -> None:
    worker.fake.built.add("agentfleet-default-default/gone:0")
    worker.builder.prune([])
    assert worker.fake.built == set()


def test_hosts_build_for_themselves(worker: DrivenWorker) -> None:
    other = Host.objects.create(pk="elsewhere", last_seen_at=clock.now())
    agent = make_built()
    images.order(other.pk, [need(worker, agent)])
    build_all(worker)
    states = dict(ImageBuild.objects.values_list("host", "state"))
    assert states == {"elsewhere": BuildState.PENDING, worker.host_id: BuildState.BUILT}


# --- the page -----------------------------------------------------------------------------------------------------


@pytest.fixture
def operator(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    return client


def test_the_agents_page_shows_a_build_while_it_runs(
    worker: DrivenWorker, operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "STORE_EVERY", 0.0)
    agent = make_built()
    seen: list[str] = []

    def said() -> Iterator[str]:
        yield "half way <script>\n"
        seen.append(operator.get(f"/admin/agents/agent/{agent.pk}/images/").content.decode())
        yield "done\n"

    worker.fake.will_say = [said()]
    build_all(worker)
    whole = operator.get(f"/admin/agents/agent/{agent.pk}/change/").content.decode()
    assert "half way &lt;script&gt;" in seen[0]
    assert "data-busy" in seen[0]
    assert "done" in whole
    assert need(worker, agent).tag in whole
    assert "data-busy" not in whole


def test_the_page_says_why_an_image_is_not_there_and_builds_it_again(worker: DrivenWorker, operator: Client) -> None:
    agent = make_built()
    place = f"/admin/agents/agent/{agent.pk}"
    worker.fake.will_say = [["x" * 30_000, BuildFailed("no network")]]
    build_all(worker)
    row = ImageBuild.objects.get()
    page = operator.get(f"{place}/images/").content.decode()
    assert "no network" in page
    assert f"{place}/images/build/" in page
    assert operator.get(f"{place}/images/{row.pk}/log/").content == b"x" * 30_000
    operator.post(f"{place}/images/build/")
    build_all(worker)
    row.refresh_from_db()
    assert row.state == BuildState.BUILT
    refused = operator.post(f"{place}/images/build/", follow=True)
    assert "no image of it has failed" in refused.content.decode()


def test_an_agents_page_shows_no_image_of_another(worker: DrivenWorker, operator: Client) -> None:
    one, two = make_built("one"), make_built("two", f"{GOOD}RUN two\n")
    build_all(worker)
    row = ImageBuild.objects.get(agent=two)
    assert row.tag not in operator.get(f"/admin/agents/agent/{one.pk}/change/").content.decode()
    assert operator.get(f"/admin/agents/agent/{one.pk}/images/{row.pk}/log/").status_code == 404
