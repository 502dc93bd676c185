"""Claims beside our estimates, with their verdicts; verdicts.md, which has those of every paper."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from exp.report.statistics import Estimate
from exp.report.tables import interval, markdown, number
from exp.reproduce.claims import Claim, judge
from exp.reproduce.measures import SCALE_FREE, estimate, overhead
from exp.reproduce.papers import Paper
from exp.reproduce.plan import Table
from exp.reproduce.records import read_kept

DEVICES = ("cuda", "cpu-bf16", "cpu")  # of a benchmark's results, the first there is


def render_verdicts(papers: Iterable[Paper], kept: Path) -> str:
    """The text of verdicts.md, from the records in the folder `kept`."""
    parts = ["# Every claim and its verdict"]
    for paper in papers:
        parts += [f"## {paper.title}", paper.note, *_verdicts(paper, kept)]
    return "\n\n".join(parts) + "\n"


def _verdicts(paper: Paper, kept: Path) -> list[str]:
    """One paper's tables of claims, and what its overheads were measured on."""
    bench = _bench(paper, kept)
    measured = {claim.id: overhead(claim, bench, paper.overheads["configs"])
                for claim in paper.claims if bench}
    parts = []
    if bench:
        facts = bench["facts"]
        parts.append(f"Overheads in time and memory: {facts['processor']}, {facts['threads']} "
                     f"threads, torch {facts['versions']['torch']}; {paper.overheads['note']}.")
    tables = {table.name: table for table in paper.tables}
    for name in dict.fromkeys([*tables, *(claim.table for claim in paper.claims)]):
        claims = paper.claims_of(name)
        if claims:
            title = tables[name].title if name in tables else name or "Statements in the text"
            parts += [f"### {title}", claims_table(claims, tables.get(name),
                                                  read_kept(kept / f"{name}.json"), measured)]
    return parts


def _bench(paper: Paper, kept: Path) -> dict:
    """The benchmark's results that answer claims about cost, empty if there are none."""
    name = paper.overheads.get("bench")
    paths = [kept / "bench" / f"{name}_{device}.json" for device in DEVICES]
    return next((read_kept(path) for path in paths if path.exists()), {})


def claims_table(
    claims: Iterable[Claim], table: Table | None, records: dict,
    overheads: dict[str, Estimate | None] | None = None,
) -> str:
    """Claimed, logged, ours and the verdict, one line per claim.

    overheads: claim id -> estimate, for claims about time and memory, which no table answers.
    """
    lines = [("claim", "claimed", "its log", "ours, published", "ours, fixed", "verdict")]
    for claim in claims:
        scale, word = deciding_scale(claim, table, records)
        ours = (estimate(claim, table, records, scale, "published") if table
                else (overheads or {}).get(claim.id))
        fixed = estimate(claim, table, records, scale, "fixed") if table else None
        verdict = judge(claim, ours)
        if verdict == "not yet run" and table:
            word = " at full scale"
        elif table and table.other_data and claim.measure not in SCALE_FREE:
            verdict, claim = "cannot be tested here", replace(claim, cannot=table.other_data)
        elif table and table.grid:
            word = _so_far(table, records)
        logged = "" if claim.logged is None else f"{number(claim.logged)} "
        lines.append((f"{claim.says} <sub>{claim.id}</sub>",
                      f"{claim.comparator} {number(claim.value)} {claim.unit}",
                      f"{logged}({claim.log})" if claim.log else "",
                      shown(ours, claim.unit, _counted(table)),
                      shown(fixed, claim.unit, _counted(table)),
                      f"**{verdict}**{word}{_why(claim, verdict, ours)}"))
    return markdown(lines)


def _so_far(table: Table, records: dict) -> str:
    """How much of a grid a verdict is on, while it is not all of it."""
    ran = [{tuple(run["levels"]) for run in records["runs"] if run["row"] == row.label}
           for row in table.rows]
    done, total = len(set.intersection(*ran)), len({cell.levels for cell in table.cells()})
    return "" if done == total else f" on {done} of {total} configurations"


def _counted(table: Table | None) -> str:
    """What an estimate's n counts."""
    if table is None:
        return "round"
    return "run" if table.grid else "seed"


def _why(claim: Claim, verdict: str, ours: Estimate | None) -> str:
    if claim.cannot:
        return f": {claim.cannot}"
    if verdict != "does not hold" or claim.comparator in "<>" or math.isnan(ours.value):
        return ""
    return ": ours is higher" if ours.value > claim.value else ": ours is lower"


def deciding_scale(claim: Claim, table: Table | None, records: dict) -> tuple[str, str]:
    """The scale that decides a claim, and the words to add to its verdict."""
    full = {run["row"] for run in records["runs"] if run["scale"] == "full"}
    if claim.measure in SCALE_FREE and not {claim.row, claim.against} <= full and table:
        return "mini", " at mini scale"
    return "full", ""


def shown(ours: Estimate | None, unit: str, what: str) -> str:
    """An estimate with its interval and n times `what`."""
    if ours is None:
        return ""
    return f"{interval(ours, unit)}, {ours.n} {what}{'s' * (ours.n != 1)}"
