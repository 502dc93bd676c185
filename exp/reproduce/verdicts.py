"""Tables of claims, our estimates and verdicts; verdicts.md, which has those of every paper."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from exp.report.evidence import Evidence
from exp.report.judgement import FAILS, HOLDS, INCONCLUSIVE, Judgement, corrected, in_words
from exp.report.tables import interval, markdown, number
from exp.reproduce.claims import NOT_RUN, Claim, judge
from exp.reproduce.measures import SCALE_FREE, evidence, overhead
from exp.reproduce.papers import Paper
from exp.reproduce.plan import Table
from exp.reproduce.records import read_kept

Line = tuple[str, ...]

INTRODUCTION = """\
What the papers claim, what our runs give, and the verdict on each claim.

How to read: *claimed* is the paper's number. *Authors' log* is the value in the authors' own log \
and whether it agrees with the claim (*match*, *approx*, *contradicted*; *mislabelled*: the number \
belongs to another run; *unsupported*: there is no run or log). *Ours* is our estimate with its \
95 % interval and the number of seeds, under the published protocol (the authors' settings, flaws \
included) and under the fixed one (flaws of data and parameter routing corrected). The rules that \
give a verdict are in `exp/report/judgement.py`, the tolerances in `exp/reproduce/claims.py`."""
DECIDED = (HOLDS, FAILS, INCONCLUSIVE)  # verdicts of claims that were run


def render_verdicts(papers: Iterable[Paper], kept: Path) -> str:
    """Return the text of verdicts.md, from the records in the folder `kept`."""
    parts = ["# Every claim and its verdict", INTRODUCTION]
    for paper in papers:
        parts += [f"## {paper.title}", paper.note, *_verdicts(paper, kept)]
    return "\n\n".join(parts) + "\n"


def _verdicts(paper: Paper, kept: Path) -> list[str]:
    """One paper's tables of claims, and the machines on which its overheads were measured."""
    parts = []
    for bench in _benches(paper, kept):
        facts = bench["facts"]
        parts.append(f"Overheads in time and memory were measured on {facts['processor']}, "
                     f"{facts['threads']} threads, torch {facts['versions']['torch']}: "
                     f"{paper.overheads['note']}.")
    for title, lines in paper_claims(paper, kept):
        parts += [f"### {title}", markdown(lines)]
    return parts


def paper_claims(paper: Paper, kept: Path) -> Iterator[tuple[str, list[Line]]]:
    """Yield (title, lines) of each table of claims of a paper; the first line is the head."""
    benches = _benches(paper, kept)
    measured = {claim.id: overhead(claim, benches, paper.overheads["configs"])
                for claim in paper.claims if benches}
    tables = {table.name: table for table in paper.tables}
    titles = {"": "Statements in the text", **paper.headings,
              **{name: table.title for name, table in tables.items()}}
    for name in dict.fromkeys([*tables, *(claim.table for claim in paper.claims)]):
        claims = paper.claims_of(name)
        if claims:
            yield titles[name], claims_lines(claims, tables.get(name),
                                             read_kept(kept / f"{name}.json"), measured)


def _benches(paper: Paper, kept: Path) -> list[dict]:
    """Results of the benchmark that decides claims about cost, one per kind of machine."""
    name = paper.overheads.get("bench")
    return [read_kept(path) for path in sorted((kept / "bench").glob(f"{name}_*.json"))]


def claims_table(claims: Iterable[Claim], table: Table, records: dict) -> str:
    """`claims_lines` as a Markdown table."""
    return markdown(claims_lines(claims, table, records))


def claims_lines(
    claims: Iterable[Claim], table: Table | None, records: dict,
    overheads: dict[str, Evidence | None] | None = None,
) -> list[Line]:
    """Claimed and logged value, ours, and the verdict, one line per claim. Holm's correction is
    over the claims that were run.

    overheads: claim id -> evidence, for claims about time and memory, which no table decides.
    """
    lines: list[tuple[str, ...]] = [
        ("claim", "claimed", "authors' log", "ours, published", "ours, fixed", "verdict")]
    for claim, verdict, ours, word in _judged(claims, table, records, overheads or {}):
        fixed = evidence(claim, table, records, deciding_scale(claim, table, records)[0], "fixed") \
            if table else None
        logged = "" if claim.logged is None else f"{number(claim.logged)} "
        lines.append((f"{claim.says} <sub>{claim.id}</sub>",
                      f"{claim.comparator} {number(claim.value)} {claim.unit}",
                      f"{logged}({claim.log})" if claim.log else "",
                      shown(ours, claim.unit, _counted(table)),
                      shown(fixed, claim.unit, _counted(table)),
                      in_words(verdict, ours.n if ours else 0, _counted(table), word)))
    return lines


def _judged(claims: Iterable[Claim], table: Table | None, records: dict,
            overheads: dict[str, Evidence | None]
            ) -> list[tuple[Claim, Judgement, Evidence | None, str]]:
    """(claim, verdict, our evidence, words to add to the verdict) of each claim."""
    rows = []
    for claim in claims:
        scale, word = deciding_scale(claim, table, records)
        ours = (evidence(claim, table, records, scale, "published") if table
                else overheads.get(claim.id))
        if ours and table and table.other_data and claim.measure not in SCALE_FREE:
            claim = replace(claim, cannot=table.other_data)
        verdict = judge(claim, ours)
        if verdict.word not in DECIDED:
            word = " at full scale" if verdict.word == NOT_RUN and table else ""
        elif table and table.grid:
            word = _so_far(table, records)
        rows.append((claim, verdict, ours, word))
    run = [row for row in rows if row[1].word in DECIDED]
    after = iter(corrected([verdict for _, verdict, *_ in run]))
    return [(claim, next(after) if verdict.word in DECIDED else verdict, ours, word)
            for claim, verdict, ours, word in rows]


def _so_far(table: Table, records: dict) -> str:
    """Words for the share of a grid on which a verdict is based; "" if it is the whole grid."""
    ran = [{tuple(run["levels"]) for run in records["runs"] if run["row"] == row.label}
           for row in table.rows]
    done, total = len(set.intersection(*ran)), len({cell.levels for cell in table.cells()})
    return "" if done == total else f" on {done} of {total} configurations"


def _counted(table: Table | None) -> str:
    """The noun for what the evidence's n counts."""
    if table is None:
        return "machine"
    return "run" if table.grid else "seed"


def deciding_scale(claim: Claim, table: Table | None, records: dict) -> tuple[str, str]:
    """Return the scale that decides a claim, and the words to add to its verdict."""
    full = {run["row"] for run in records["runs"] if run["scale"] == "full"}
    if claim.measure in SCALE_FREE and not {claim.row, claim.against} <= full and table:
        return "mini", " at mini scale"
    return "full", ""


def shown(ours: Evidence | None, unit: str, what: str) -> str:
    """Text of the evidence: estimate with its 95 % interval, n and the noun `what`."""
    if ours is None:
        return ""
    return f"{interval(ours.estimate, unit)}, {ours.n} {what}{'s' * (ours.n != 1)}"
