"""Statements: what a paper says, measured as rows and judged by a rule that was written before.

A statement is one file, exp/papers/<paper>/statements/<name>.py. Its docstring is the page in
Markdown, or, where <name>.md is beside it, that file is:

    # What is said
    Source: where it is said
    Rule: the value of a seed, and the threshold beyond which the statement holds
    Prose about the method, in which {TABLE} is a table of that name and {NAME} the module's NAME.

(with an empty line between these). Its code is

    GRID                     column or setting -> levels; `measure` is called for each combination
    measure(seeds, **point)  -> rows; the columns and settings of the point are added to them
    judge(rows)              -> Verdict, by the tests of `exp.report.judgement`
    tables(rows)             name -> table or text; without it one table of all means
    figure(rows)             keywords of `exp.report.canvas.curves` for <name>.png; may be missing
    WITHDRAWN                what the authors say now, where they no longer say this

An experiment that settles no claim has neither rule nor `judge`.
"""

import importlib
import inspect
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from exp.harness.recipes import changes
from exp.report.canvas import curves
from exp.report.evidence import Evidence
from exp.report.judgement import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    Judgement,
    in_words,
    judge_above,
    judge_all,
)
from exp.report.rows import COLUMNS, Row, Rows, read_rows
from exp.report.tables import interval, older_code, page, table

PAPERS = Path(__file__).parents[1] / "papers"


HOW = (
    "How it is judged: each seed gives one value. One-sided tests at 5 % compare their mean with "
    "the threshold (Student's t unless stated otherwise; `exp/report/judgement.py`). A part of a "
    "rule holds if the mean is significantly beyond the threshold. It does not hold if the mean is "
    "significantly short of the threshold, or beyond it by significantly less than the least "
    "effect worth naming. Otherwise it is inconclusive; the page then states the number of seeds "
    "that would decide with 80 % power if the true mean were the measured one. A rule holds if all "
    "of its parts hold. Holm's correction applies where one of several parts decides: one failing "
    "part, or one alternative that holds.")
EXACT = "Nothing here is random: the numbers are exact, and no test is needed."


class Verdict(NamedTuple):
    """What the tests of a rule say, and the numbers behind it in a few words."""

    judgement: Judgement
    numbers: str

    @property
    def word(self) -> str:
        """"holds", "does not hold" or "inconclusive"."""
        return self.judgement.word

    def in_words(self, rows: Rows) -> str:
        """The verdict as pages have it, with the seeds that are missing."""
        return in_words(self.judgement, len(rows.levels("seed")))


def agreement_of(ranks: Mapping[str, Evidence], least: float) -> Verdict:
    """That the rank correlation of every task is above a bound; ranks: task -> correlation."""
    return Verdict(judge_all([judge_above(rank, least) for rank in ranks.values()]),
                   "rank correlation " + ", ".join(
                       f"{interval(rank.estimate)} ({task})" for task, rank in ranks.items()))


def tally(parts: Sequence[Judgement]) -> str:
    """How many of these tests hold, fail and are undecided."""
    count = Counter(part.word for part in parts)
    return (f"{count[HOLDS]} of {len(parts)} tests hold, {count[FAILS]} fail, "
            f"{count[INCONCLUSIVE]} undecided")


def statement_files() -> dict[str, Path]:
    """Name -> file of every statement of every paper."""
    files = PAPERS.glob("*/statements/[a-z]*.py")
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def statement(name: str) -> ModuleType:
    """The module of a statement."""
    paper = statement_files()[name].parts[-3]
    return importlib.import_module(f"exp.papers.{paper}.statements.{name}")


def text(name: str) -> list[str]:
    """The blocks of a statement's Markdown: "# title", "Source: ...", "Rule: ...", prose."""
    prose = statement_files()[name].with_suffix(".md")
    if prose.exists():
        return prose.read_text(encoding="utf-8").strip().split("\n\n")
    return (inspect.getdoc(statement(name)) or "").split("\n\n")


def says(name: str) -> str:
    """What a statement says, in one line."""
    return text(name)[0].removeprefix("# ")


def measure(module: ModuleType, seeds: Sequence[int]) -> Iterator[Row]:
    """All rows of a statement, one combination of its GRID after the other."""
    grid = getattr(module, "GRID", {})
    for levels in itertools.product(*grid.values()):
        point = dict(zip(grid, levels, strict=True))
        columns = {key: level for key, level in point.items() if key in COLUMNS}
        settings = {key: level for key, level in point.items() if key not in COLUMNS}
        for row in module.measure(list(seeds), **point):
            yield replace(row, settings={**settings, **row.settings}, **columns)


def render(folder: Path, name: str) -> str:
    """<name>.md and <name>.png from <name>.json; the verdict, "measured" without a rule.

    Raises ValueError for a missing or damaged file.
    """
    module = statement(name)
    rows, provenance = read_rows(folder / f"{name}.json")
    (folder / f"{name}.md").write_text(page_of(name, rows, provenance), encoding="utf-8")
    if hasattr(module, "figure"):
        curves(folder / f"{name}.png", **module.figure(rows))
    return judged(module, rows).word if hasattr(module, "judge") else "measured"


def judged(module: ModuleType, rows: Rows) -> Verdict:
    """What `judge` says; of a statement that its authors no longer make "withdrawn upstream"."""
    found = module.judge(rows)
    if not hasattr(module, "WITHDRAWN"):
        return found
    return Verdict(Judgement("withdrawn upstream", why=module.WITHDRAWN),
                   f"as first stated it {found.word}: {found.numbers}")


def page_of(name: str, rows: Rows, provenance: dict) -> str:
    """The page of one statement."""
    module = statement(name)
    title, source, *prose = text(name)
    parts = [title, f"{source}. `python -m exp.theory {name}`."]
    if hasattr(module, "judge"):
        rule, *prose = prose
        verdict = judged(module, rows)
        parts += [f"{verdict.in_words(rows)}. Measured: {verdict.numbers}.",
                  "The rule (its thresholds were written before the run): "
                  f"{rule.removeprefix('Rule: ')}",
                  HOW if any(row.seed for row in rows) else EXACT]
    content = module.tables(rows) if hasattr(module, "tables") else {"means": means_table(rows)}
    texts = {key: part if isinstance(part, str) else table(part) for key, part in content.items()}
    parts += [block.format_map({**vars(module), **texts}) for block in prose]
    if not any("{" in block for block in prose):  # no table has a place of its own
        parts += texts.values()
    torch = f", torch {provenance['torch']}" if "torch" in provenance else ""
    commit = f"commit {provenance['commit']}" if "commit" in provenance else "commit not recorded"
    data = "".join(f"; data of {task} {digest}"
                   for task, digest in provenance.get("data", {}).items())
    older = older_code([changes(provenance.get("recipes", {}))])
    return page(*parts, f"{provenance['device']}{torch}; {commit}; seeds {provenance['seeds']}"
                        f"{data}.", older)


def means_table(rows: Rows) -> list[tuple]:
    """A line for each task, optimizer and setting, the mean over seeds of each axis."""
    settings = dict.fromkeys(key for row in rows for key in row.settings)
    keys = tuple(key for key in ("task", "optimizer", *settings) if any(row[key] for row in rows))
    return rows.pivot(keys, "axis")


def summary(folder: Path) -> str:
    """The page of all statements that have been measured and judged, one line each."""
    lines = ["| statement | verdict | numbers | page |", "|---|---|---|---|"]
    for name in statement_files():
        path = folder / f"{name}.json"
        if path.exists() and hasattr(statement(name), "judge"):
            rows, _ = read_rows(path)
            verdict = judged(statement(name), rows)
            claim = says(name).replace("|", "\\|")
            lines.append(f"| {claim} | {verdict.in_words(rows)} | {verdict.numbers} | "
                         f"[{name}](../{folder.as_posix()}/{name}.md) |")
    return page("# Statements of papers, tested",
                "A statement is what a paper says about training or geometry. Each one is tested "
                "by a small experiment with a decision rule; its page has both. `python -m "
                "exp.theory --list` names the statements, `python -m exp.theory NAME` runs one. On "
                'the pages, "paper" is the paper on ARS2-Neo, "paper 002" the survey of '
                'optimizers by its authors, and "paper 003" their proposal of TR-Muon '
                "(dmf-archive/ARS).",
                "The thresholds of the rules were written before the runs. The statistical tests "
                "were chosen afterwards and are the same for all statements.",
                HOW, "\n".join(lines))
