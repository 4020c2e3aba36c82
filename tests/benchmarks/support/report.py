"""Figures of all rounds, their medians, and the tables made from them."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from attrs import asdict, define, field, frozen

Row = Sequence[str]

DIRECT, NGINX, ROUTER, STOCK = "direct", "nginx", "router", "hypercorn alone"


@define
class Case:
    """The figures of one case: per target and quantity one per round."""

    name: str
    kind: str  # which of the tables it belongs to
    figures: dict[str, dict[str, list[float]]] = field(factory=dict)

    def add(self, target: str, **quantities: float) -> None:
        for quantity, figure in quantities.items():
            self.figures.setdefault(target, {}).setdefault(quantity, []).append(figure)

    def median(self, target: str, quantity: str) -> float | None:
        rounds = self.figures.get(target, {}).get(quantity)
        return statistics.median(rounds) if rounds else None


@frozen
class Wanted:
    """A goal: a share of what `of` reaches (at least), or an amount (at most)."""

    quantity: str
    share: float | None = None
    of: str | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        if self.share is not None:
            return f">= {self.share:.2f} of {self.of}"
        return f"<= {self.at_most:g} MB"

    def seen(self, case: Case) -> float | None:
        """Shares are taken round by round, so that a machine with other work misleads less."""
        if self.share is None:
            return case.median(ROUTER, self.quantity)
        ours = case.figures.get(ROUTER, {}).get(self.quantity, [])
        others = case.figures.get(self.of or "", {}).get(self.quantity, [])
        shares = [our / other for our, other in zip(ours, others, strict=False)]
        return statistics.median(shares) if shares else None

    def met(self, case: Case) -> bool | None:
        seen = self.seen(case)
        if seen is None:
            return None
        return seen >= self.share if self.share is not None else seen <= (self.at_most or 0)


# docs/performance.md says where these come from.
WANTED: dict[str, Wanted] = {
    "1 connection": Wanted("per_second", 0.6, STOCK),
    "8 connections": Wanted("per_second", 0.75, STOCK),
    "32 connections": Wanted("per_second", 0.75, STOCK),
    "2 MB, 8 connections": Wanted("gb_per_second", 0.35, DIRECT),
    "100 MB": Wanted("gb_per_second", 0.45, DIRECT),
    "4 x 200 MB in parallel": Wanted("growth_mb", at_most=32),
    "500 MB, reader stalled": Wanted("growth_mb", at_most=48),
    "64 MB upload, worker stalled": Wanted("growth_mb", at_most=48),
    "5,000 idle clients, in all": Wanted("rss_mb", at_most=180),
}


# The machine in words; nothing that names it. Read before anybody is pinned to cores.
MACHINE = {
    "system": platform.system(),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "python": platform.python_version(),
}


def as_json(cases: Sequence[Case], about: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for case in cases:
        row = asdict(case)
        row["medians"] = {
            target: {quantity: case.median(target, quantity) for quantity in quantities}
            for target, quantities in case.figures.items()
        }
        wanted = WANTED.get(case.name)
        if wanted is not None:
            row["wanted"] = {"text": str(wanted), "seen": wanted.seen(case)}
            row["wanted"]["met"] = wanted.met(case)
        rows.append(row)
    return {"machine": MACHINE, "command": command(), **about, "cases": rows}


def command() -> str:
    """How to get such figures again."""
    return " ".join(["python", "tests/benchmarks/relay.py", *sys.argv[1:]])


def tables(cases: Sequence[Case], *, markdown: bool) -> str:
    """One table per kind of case; columns are aligned in either form."""
    parts = []
    for kind, header, cells in (
        ("tiny", _TINY, _tiny_cells),
        ("throughput", _THROUGHPUT, _throughput_cells),
        ("memory", _MEMORY, _memory_cells),
    ):
        rows = [cells(case) for case in cases if case.kind == kind]
        if rows:
            parts.append(_table(header, rows, markdown=markdown))
    return "\n\n".join(parts)


_TINY = (
    "tiny POST, requests/s", "direct", "nginx", "router", "hypercorn alone",
    "CPU us: router / hypercorn", "router p50 / p99 ms", "added p50 / p99 ms", "seen", "wanted",
)  # fmt: skip
_THROUGHPUT = ("GB/s", "direct", "nginx", "router", "seen", "wanted")
_MEMORY = ("growth of memory, MB", "nginx", "router", "seen", "wanted")


def _tiny_cells(case: Case) -> Row:
    rates = [_number(case.median(t, "per_second"), 0) for t in (DIRECT, NGINX, ROUTER, STOCK)]
    cost = "{} / {}".format(*(_number(case.median(t, "cpu_us"), 0) for t in (ROUTER, STOCK)))
    ours = [case.median(ROUTER, q) for q in ("p50", "p99")]
    direct = [case.median(DIRECT, q) for q in ("p50", "p99")]
    added = [
        a - b if a is not None and b is not None else None
        for a, b in zip(ours, direct, strict=True)
    ]
    return [case.name, *rates, cost, _pair(ours), _pair(added), *_verdict(case)]


def _throughput_cells(case: Case) -> Row:
    rates = [_number(case.median(t, "gb_per_second"), 2) for t in (DIRECT, NGINX, ROUTER)]
    return [case.name, *rates, *_verdict(case)]


def _memory_cells(case: Case) -> Row:
    wanted = WANTED.get(case.name)
    quantity = wanted.quantity if wanted else "growth_mb"
    amounts = [_number(case.median(t, quantity), 0) for t in (NGINX, ROUTER)]
    return [case.name, *amounts, *_verdict(case)]


def _verdict(case: Case) -> tuple[str, str]:
    wanted = WANTED.get(case.name)
    if wanted is None:
        return "", ""
    seen = _number(wanted.seen(case), 2 if wanted.share is not None else 0)
    return seen if wanted.met(case) is not False else f"{seen} (missed)", str(wanted)


def _number(figure: float | None, digits: int) -> str:
    return "-" if figure is None else f"{figure:,.{digits}f}"


def _pair(figures: Sequence[float | None]) -> str:
    return " / ".join(_number(figure, 2) for figure in figures)


def _table(header: Row, rows: Sequence[Row], *, markdown: bool) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    left, between, right = ("| ", " | ", " |") if markdown else ("", "  ", "")

    def line(cells: Row) -> str:
        padded = [
            cell.ljust(width) if position == 0 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return (left + between.join(padded) + right).rstrip()

    rule = ["-" * width for width in widths]
    if markdown:
        rule = [rule[0], *(dashes[:-1] + ":" for dashes in rule[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])
