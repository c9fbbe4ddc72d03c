"""`make chaos`: many runs, while parts of the installation are killed, stopped and cut off; then everything is counted.

    python -m chaos [--runs N] [--minutes M] [--seed S] [--database sqlite|postgresql] [--fault-every SECONDS]
                    [--engine]

stdout has one line, the verdict; everything else goes to stderr, and each fault to `chaos.log` in the work folder,
which stays if the verdict is bad. Exit code 1: something was lost, doubled, missing or left.
"""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import shutil
import signal
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from chaos import databases, engines, installation
from chaos.judge import Verdict, judge
from chaos.model import Player
from chaos.records import Evidence
from chaos.trial import Conditions, Trial
from chaos.work import plans
from tests.doubles.anthropic import MockAnthropic

log = logging.getLogger("chaos")

AGENTS = [f"agent-{number}" for number in range(1, 5)]
IMAGE = "agentfleet-sandbox:latest"
INTERRUPTED = 130  # exit code, as a shell gives it


def main(arguments: list[str]) -> int:
    chosen = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    installation.forget_settings()
    folder = Path(tempfile.mkdtemp(prefix="agentfleet-chaos-"))
    _log_to(folder / "chaos.log")
    try:
        evidence = _put_to_the_test(chosen, folder)
    except (KeyboardInterrupt, SystemExit):
        shutil.rmtree(folder)
        log.info("interrupted; everything it had started is gone")
        return INTERRUPTED
    verdict = judge(evidence)
    _tell(verdict)
    if verdict.good and not chosen.keep:
        shutil.rmtree(folder)
    else:
        (folder / "evidence.json").write_text(json.dumps(asdict(evidence), indent=1))
        log.info("look into %s: chaos.log, evidence.json, home/logs", folder)
    print(verdict.line(), flush=True)
    return 0 if verdict.good else 1


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=5.0, help="for how long runs are started and parts hurt")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--fault-every", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--scale", type=int, default=6, help=f"slots of each of the {len(AGENTS)} agents")
    parser.add_argument("--engine", action="store_true", help="an engine of its own, which is restarted as well (root)")
    parser.add_argument("--keep", action="store_true", help="leave the work folder also after a good verdict")
    return parser.parse_args(arguments)


def _log_to(file: Path) -> None:
    """Everything to the file, what people want to read meanwhile to stderr."""
    form = logging.Formatter("%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S")
    for handler, level in (
        (logging.FileHandler(file), logging.DEBUG),
        (logging.StreamHandler(sys.stderr), logging.INFO),
    ):
        handler.setFormatter(form)
        handler.setLevel(level)
        log.addHandler(handler)
    log.setLevel(logging.DEBUG)


def _put_to_the_test(chosen: argparse.Namespace, folder: Path) -> Evidence:
    seconds, fleet = chosen.minutes * 60, f"chaos-{secrets.token_hex(6)}"
    work = plans(chosen.seed, chosen.runs, seconds=seconds, agents=AGENTS)
    player = Player(work)
    log.info("%d runs in %.0f s on %s, seed %d, in %s", len(work), seconds, chosen.database, chosen.seed, folder)
    with (
        engines.own(IMAGE) if chosen.engine else nullcontext() as engine,
        databases.opened(chosen.database) as url,
        MockAnthropic(player.reply, remember=False) as mock,
        installation.installation(
            folder, fleet=fleet, model=mock.url, database=url, agents=AGENTS, scale=chosen.scale
        ) as box,
    ):
        conditions = Conditions(
            seed=chosen.seed,
            seconds=seconds,
            every=chosen.fault_every,
            fleet=fleet,
            database_url=url,
            engine=engine,
        )
        return Trial(conditions, box, work, player).hold()


def _tell(verdict: Verdict) -> None:
    for finding in verdict.findings:
        log.info("%s", finding)
    for code, count in verdict.ended_by_faults.items():
        log.info("ended by a killed sandbox: %d %s", count, code)
    log.info("commands lost with a killed sandbox, and the model told: %d", verdict.lost_commands)
    log.info("longest stall: %s", verdict.stall)
    log.info("second attempts %d", verdict.second_attempts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
