"""What is asked every two seconds, or for every run, is answered by an index, however many runs have ended."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpRequest
from django.test.utils import CaptureQueriesContext

from runs import bells, dashboard, leases, lifecycle, sweep
from runs.models import Run
from tests.conftest import DrivenWorker
from tests.making import make_agent, submit

pytestmark = pytest.mark.django_db(transaction=True)

HISTORY = (
    *("runs_run", "runs_event", "runs_message", "runs_toolcall", "runs_approval", "runs_runinput", "runs_deadletter"),
    *("runs_outgoingmessage", "webhooks_delivery", "agents_agentevent"),
)


def whole_tables_read(act: Callable[[], object]) -> list[str]:
    """Which of the tables that only grow `act` reads from end to end, with the query that does."""
    with CaptureQueriesContext(connection) as captured:
        act()
    found = []
    for query in captured.captured_queries:
        if not query["sql"].startswith(("SELECT", "UPDATE", "DELETE")):
            continue
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {query['sql'].replace('%', '%%')}")
            plan = [row[3] for row in cursor.fetchall()]
        # A partial index read from end to end holds only what it is about; a plain one holds everything.
        scans = [step for step in plan if re.match(rf"SCAN ({'|'.join(HISTORY)})(?! USING .*INDEX runs_)", step)]
        found += [f"{step}: {query['sql'][:300]}" for step in scans]
    return found


def test_a_query_without_an_index_is_found_out() -> None:
    assert whole_tables_read(lambda: Run.objects.filter(output="x").exists())


def test_the_sweep_reads_no_table_whole(worker: DrivenWorker) -> None:
    submit(make_agent(schedule="* * * * *"))
    assert whole_tables_read(lambda: sweep.sweep(worker)) == []


def test_a_claim_reads_no_table_whole(worker: DrivenWorker) -> None:
    agent = make_agent()
    submit(agent)
    claim = whole_tables_read(lambda: lifecycle.claim(agent.pk, owner=worker.owner, host_id=worker.host_id))
    assert claim == []


def test_renewing_leases_and_choosing_a_host_reads_no_table_whole(worker: DrivenWorker) -> None:
    run = submit(make_agent())
    assert whole_tables_read(lambda: leases.renew(worker.owner, [run.pk])) == []
    assert whole_tables_read(lambda: leases.expire_of_dead(worker.home / "owners", worker.owner)) == []
    assert whole_tables_read(bells.live_hosts) == []


def test_a_step_reads_no_table_whole(worker: DrivenWorker) -> None:
    run = submit(make_agent(turns=[{"text": "done"}]))
    assert whole_tables_read(lambda: worker.drive(run)) == []


def test_the_front_page_reads_no_table_whole(worker: DrivenWorker) -> None:
    worker.drive(submit(make_agent(turns=[{"text": "done"}])))
    request = HttpRequest()
    request.user = User.objects.create_superuser("operator")
    assert whole_tables_read(lambda: dashboard.front_page(request, {})) == []
