"""What the bench says: a figure, the bounds it has to keep, and its line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol


class Unmeasured(Exception):
    """Something did not happen that the figure needs; the message says what."""


class Bound(Protocol):
    """A part of a target. Its text stands in the figure's line."""

    def kept(self, figure: Figure) -> bool: ...


@dataclass(frozen=True)
class AtMost:
    measure: Literal["p50", "p95", "p99", "value"]
    limit: float  # in the figure's unit

    def __str__(self) -> str:
        return f"{self.measure} <= {self.limit:g}"

    def kept(self, figure: Figure) -> bool:
        measured: float = getattr(figure, self.measure)
        return measured <= self.limit


@dataclass(frozen=True)
class AtLeast:
    limit: float  # in the figure's unit

    def __str__(self) -> str:
        return f"value >= {self.limit:g}"

    def kept(self, figure: Figure) -> bool:
        assert figure.value is not None, "a least is asked of a value"
        return figure.value >= self.limit


@dataclass(frozen=True)
class AtLeastOfFloor:
    """The floor is what this machine does without us; `share` of it must be left."""

    share: float

    def __str__(self) -> str:
        return f"value >= {self.share:g} x floor"

    def kept(self, figure: Figure) -> bool:
        assert figure.value is not None, "a share of the floor is asked of a value"
        assert figure.floor is not None, "a share of the floor needs a floor"
        return figure.value >= self.share * figure.floor


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One result. `n` counts what was measured: requests, runs, lines, processes."""

    figure: str
    unit: str
    n: int
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    value: float | None = None
    floor: float | None = None
    target: tuple[Bound, ...] = ()
    everywhere: bool = False  # bound to its target on every database, and not on the first alone

    @classmethod
    def of_samples(cls, figure: str, unit: str, samples: Sequence[float], *target: Bound) -> Figure:
        p50, p95 = percentile(samples, 50), percentile(samples, 95)
        return cls(figure=figure, unit=unit, n=len(samples), p50=p50, p95=p95, target=target)

    @property
    def ok(self) -> bool | None:
        """Whether it keeps its target; None if it has none."""
        return all(bound.kept(self) for bound in self.target) if self.target else None

    def beside(self, suffix: str) -> Figure:
        """The same on another database: under another name and, unless it is bound everywhere, to nothing."""
        return replace(self, figure=self.figure + suffix, target=self.target if self.everywhere else ())

    def facts(self) -> dict[str, Any]:
        """The fields of its line, without those that do not apply."""
        numbers = {name: getattr(self, name) for name in ("p50", "p95", "p99", "value", "floor")}
        facts = {
            "figure": self.figure,
            "unit": self.unit,
            "n": self.n,
            **{name: round(number, 2) for name, number in numbers.items() if number is not None},
            "target": ", ".join(map(str, self.target)) or None,
            "ok": self.ok,
        }
        return {name: value for name, value in facts.items() if value is not None}

    def line(self) -> str:
        return json.dumps(self.facts())


def percentile(samples: Sequence[float], share: int) -> float:
    """The smallest sample that at least `share` percent of all do not exceed (nearest rank): always a real one."""
    return sorted(samples)[max(0, math.ceil(len(samples) * share / 100) - 1)]


def table(figures: Sequence[Figure]) -> str:
    """All of them for people, one row each."""
    columns = ("figure", "unit", "n", "p50", "p95", "p99", "value", "floor", "target", "ok")
    rows = [columns, *(tuple(_cell(figure.facts().get(name)) for name in columns) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "MISSED"
    return "" if value is None else str(value)
