"""`make bench`: the figures of this machine, each a line of JSON on stdout as soon as it is ready.

python -m bench [--only FIGURE]     exit code 1: a target was missed, or a figure could not be had

SQLite decides. The same on a PostgreSQL of its own is shown beside it, as figures without a target.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import containers, parts
from bench.figures import Figure, Unmeasured, table
from bench.installation import settings_of_its_own
from tests.postgres import cluster

log = logging.getLogger("bench")

RESULTS = Path(__file__).with_name("results.json")
INTERRUPTED = 130  # exit code, as a shell gives it

Tell = Callable[[Figure], None]


@dataclass(frozen=True)
class Database:
    """What an installation is measured on. `opened` gives its settings for as long as the database is there."""

    suffix: str
    opened: Callable[[], AbstractContextManager[Mapping[str, str]]]

    def shown(self, figure: Figure) -> Figure:
        return figure.beside(self.suffix) if self.suffix else figure


@contextlib.contextmanager
def _postgresql() -> Iterator[Mapping[str, str]]:
    """A fresh one that waits for its disk, as SQLite does."""
    with cluster(durable=True) as url:
        yield {"DATABASE_URL": url}


DATABASES = (Database("", lambda: nullcontext({})), Database("_postgresql", _postgresql))
NAMES = [name + database.suffix for database in DATABASES for names in parts.PARTS.values() for name in names]


def main(arguments: list[str]) -> int:
    chosen = _options(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    wanted = {chosen.only} if chosen.only else set(NAMES)
    figures: list[Figure] = []
    try:
        with settings_of_its_own():
            log.info(_machine())
            _measure_all(wanted, parts.QUICK if chosen.quick else parts.Sizes(), partial(_tell, figures))
    except KeyboardInterrupt:
        log.info("interrupted; everything it had started is gone")
        return INTERRUPTED
    except Unmeasured as error:
        log.error("nothing can be measured: %s", error)  # noqa: TRY400 - the sentence is enough
        return 1
    print(f"\n{table(figures)}", file=sys.stderr)
    return verdict(figures, wanted)


def verdict(figures: Collection[Figure], wanted: Collection[str]) -> int:
    """0 if all that was wanted is there and no target was missed."""
    missing = set(wanted) - {figure.figure for figure in figures}
    return 1 if missing or any(figure.ok is False for figure in figures) else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--only", choices=NAMES, metavar="FIGURE", help=", ".join(NAMES))
    # To see that the bench itself works, in a minute: its figures say nothing.
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _measure_all(wanted: Collection[str], sizes: parts.Sizes, tell: Tell) -> None:
    for database in DATABASES:
        for part, names in parts.PARTS.items():
            if here := {name + database.suffix for name in names}.intersection(wanted):
                _measure(part, sizes, database, here, tell)


def _measure(part: parts.Part, sizes: parts.Sizes, database: Database, wanted: Collection[str], tell: Tell) -> None:
    """Tell the part's figures that are wanted, and leave it after the last of them."""
    log.info("measuring %s", ", ".join(sorted(wanted)))
    missing = set(wanted)
    try:
        with database.opened() as env, contextlib.closing(part(sizes, env)) as figures:
            while missing:
                figure = database.shown(next(figures))
                if figure.figure in missing:
                    missing.remove(figure.figure)
                    tell(figure)
    except Exception:  # one part that cannot be measured must not hide the others
        log.exception("not measured: %s", ", ".join(sorted(missing)))


def _tell(figures: list[Figure], figure: Figure) -> None:
    figures.append(figure)
    print(figure.line(), flush=True)
    RESULTS.write_text(json.dumps([each.facts() for each in figures], indent=1) + "\n")


def _machine() -> str:
    """What a figure is worth nothing without."""
    facts = {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "engine": containers.docker("version", "--format", "{{.Server.Version}}").strip(),
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.2f}",
    }
    return ", ".join(f"{name} {value}" for name, value in facts.items())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
