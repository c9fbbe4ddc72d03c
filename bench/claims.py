"""How long a claim takes where ten thousand runs stand in line: a program of its own, since Django is set up once.

python -m bench.claims RUNS CLAIMS     on the database of the environment; prints milliseconds as a JSON list
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from itertools import cycle, islice

from bench.figures import AtMost, Figure

WARM_UPS = 20
AGENTS = 5
SAME_KEY = 40  # runs of one claim key, of which one may be at work


def long_line(runs: int, claims: int, env: Mapping[str, str]) -> Generator[Figure, None, None]:
    """`claims` claims, one after the other, from lines that hold `runs` runs in all."""
    with tempfile.TemporaryDirectory(prefix="agentfleet-bench-") as home:
        argv = [sys.executable, "-m", "bench.claims", str(runs), str(claims)]
        settings = {**os.environ, **env, "AGENTFLEET_HOME": home}
        done = subprocess.run(argv, env=settings, capture_output=True, text=True, check=True)
    samples = json.loads(done.stdout.splitlines()[-1])
    yield Figure.of_samples("claim_in_long_line", "ms", samples, AtMost("p95", 20))


def main(runs: int, claims: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")
    import django  # noqa: PLC0415 - the home must be known first

    django.setup()
    from django.core.management import call_command  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    print(json.dumps(_measured(runs, claims)))


def _measured(runs: int, claims: int) -> list[float]:
    from agents import clock  # noqa: PLC0415
    from runs import lifecycle  # noqa: PLC0415
    from runs.models import Host  # noqa: PLC0415

    host = Host.objects.create(pk="bench", name="bench", last_seen_at=clock.now())
    agents = _lines(runs)
    samples = []
    for agent_id in islice(cycle(agents), WARM_UPS + claims):
        began = time.perf_counter()
        lease = lifecycle.claim(agent_id, owner="bench", host_id=host.pk)
        samples.append((time.perf_counter() - began) * 1000)
        assert lease is not None, "there is somebody in line, and a slot"
    return samples[WARM_UPS:]


def _lines(runs: int) -> list[int]:
    """Agents with lines of all priorities; some of the runs share claim keys."""
    from agents.models import Priority  # noqa: PLC0415
    from runs.models import Run, TriggerKind  # noqa: PLC0415
    from tests.making import make_agent  # noqa: PLC0415

    agents = [make_agent(f"agent-{number}", scale=1000, max_work_queue=100_000) for number in range(AGENTS)]
    Run.objects.bulk_create(
        (
            Run(
                agent=agent,
                workspace_id=agent.workspace_id,
                trigger=TriggerKind.WEBHOOK,
                input="x" * 2000,
                priority=priority,
                claim_key=f"issue {number % SAME_KEY}" if number % 3 == 0 else "",
                coalesce="queue" if number % 3 == 0 else "",
            )
            for number, (agent, priority) in enumerate(islice(zip(cycle(agents), cycle(Priority), strict=False), runs))
        ),
        batch_size=500,
    )
    return [agent.pk for agent in agents]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
