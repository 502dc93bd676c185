"""Statements of papers: measure them as rows and judge them by a rule written before the run.

A statement is one file, exp/papers/<paper>/statements/<name>.py. Its page is the Markdown in
<name>.md beside it, or else in its docstring, in these blocks, separated by empty lines:

    # The statement
    Source: where the paper says it
    Rule: the value per seed, and the threshold beyond which the statement holds
    Prose about the method; {TABLE} inserts the table of that name, {NAME} the module's constant.

The module defines

    GRID                     column or setting -> levels; `measure` is called per combination
    measure(seeds, **point)  -> rows; the columns and settings of the point are added to them
    judge(rows)              -> Verdict, by the tests of `exp.report.judgement`
    tables(rows)             -> name -> table or text; optional, default: one table of all means
    figure(rows)             -> keywords of `exp.report.canvas.curves` for <name>.png; optional
    WITHDRAWN                the authors' present wording, if they no longer make the statement

An experiment that tests no claim has neither a rule nor `judge`.
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
    """The result of a rule's tests, and a short text with the measured numbers."""

    judgement: Judgement
    numbers: str

    @property
    def word(self) -> str:
        """"holds", "does not hold" or "inconclusive"."""
        return self.judgement.word

    def in_words(self, rows: Rows) -> str:
        """The verdict in the wording of pages, with the number of seeds needed if undecided."""
        return in_words(self.judgement, len(rows.levels("seed")))


def agreement_of(ranks: Mapping[str, Evidence], least: float) -> Verdict:
    """Judge whether every task's rank correlation is above `least`; ranks: task -> correlation."""
    return Verdict(judge_all([judge_above(rank, least) for rank in ranks.values()]),
                   "rank correlation " + ", ".join(
                       f"{interval(rank.estimate)} ({task})" for task, rank in ranks.items()))


def tally(parts: Sequence[Judgement]) -> str:
    """Return how many of these tests hold, fail and are undecided, as text."""
    count = Counter(part.word for part in parts)
    return (f"{count[HOLDS]} of {len(parts)} tests hold, {count[FAILS]} fail, "
            f"{count[INCONCLUSIVE]} undecided")


def statement_files() -> dict[str, Path]:
    """Map the name of every statement of every paper to its file."""
    files = PAPERS.glob("*/statements/[a-z]*.py")
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def statement(name: str) -> ModuleType:
    """Import and return the module of a statement."""
    paper = statement_files()[name].parts[-3]
    return importlib.import_module(f"exp.papers.{paper}.statements.{name}")


def text(name: str) -> list[str]:
    """Return the blocks of a statement's Markdown: "# title", "Source: ...", "Rule: ...", prose."""
    prose = statement_files()[name].with_suffix(".md")
    if prose.exists():
        return prose.read_text(encoding="utf-8").strip().split("\n\n")
    return (inspect.getdoc(statement(name)) or "").split("\n\n")


def says(name: str) -> str:
    """Return the statement itself, the title of its page, in one line."""
    return text(name)[0].removeprefix("# ")


def measure(module: ModuleType, seeds: Sequence[int]) -> Iterator[Row]:
    """Measure all combinations of a statement's GRID and yield their rows."""
    grid = getattr(module, "GRID", {})
    for levels in itertools.product(*grid.values()):
        point = dict(zip(grid, levels, strict=True))
        columns = {key: level for key, level in point.items() if key in COLUMNS}
        settings = {key: level for key, level in point.items() if key not in COLUMNS}
        for row in module.measure(list(seeds), **point):
            yield replace(row, settings={**settings, **row.settings}, **columns)


def render(folder: Path, name: str) -> str:
    """Write <name>.md and <name>.png from <name>.json; return the verdict, "measured" without a
    rule.

    Raises ValueError for a missing or damaged file.
    """
    module = statement(name)
    rows, provenance = read_rows(folder / f"{name}.json")
    (folder / f"{name}.md").write_text(page_of(name, rows, provenance), encoding="utf-8")
    if hasattr(module, "figure"):
        curves(folder / f"{name}.png", **module.figure(rows))
    return judged(module, rows).word if hasattr(module, "judge") else "measured"


def judged(module: ModuleType, rows: Rows) -> Verdict:
    """Return the verdict of `judge`, or "withdrawn upstream" if the authors withdrew the
    statement."""
    verdict = module.judge(rows)
    if not hasattr(module, "WITHDRAWN"):
        return verdict
    return Verdict(Judgement("withdrawn upstream", why=module.WITHDRAWN),
                   f"as first stated it {verdict.word}: {verdict.numbers}")


def page_of(name: str, rows: Rows, provenance: dict) -> str:
    """Return the page of one statement as Markdown."""
    module = statement(name)
    title, source, *prose = text(name)
    parts = [title, f"{source}. To repeat the measurement: `python -m exp.theory {name}`."]
    if hasattr(module, "judge"):
        rule, *prose = prose
        verdict = judged(module, rows)
        parts += [f"Verdict: {verdict.in_words(rows)}. Measured: {verdict.numbers}.",
                  "Rule, with thresholds written before the run: "
                  f"{rule.removeprefix('Rule: ')}",
                  HOW if any(row.seed for row in rows) else EXACT]
    content = module.tables(rows) if hasattr(module, "tables") else {"means": means_table(rows)}
    texts = {key: part if isinstance(part, str) else table(part) for key, part in content.items()}
    parts += [block.format_map({**vars(module), **texts}) for block in prose]
    if not any("{" in block for block in prose):  # the prose places no table: append them all
        parts += texts.values()
    torch = f", torch {provenance['torch']}" if "torch" in provenance else ""
    commit = f"commit {provenance['commit']}" if "commit" in provenance else "commit not recorded"
    data = "".join(f"; data of {task} {digest}"
                   for task, digest in provenance.get("data", {}).items())
    older = older_code([changes(provenance.get("recipes", {}))])
    seeds = ", ".join(map(str, provenance["seeds"]))
    return page(*parts, f"Run on {provenance['device']}{torch}; {commit}; seeds {seeds}{data}.",
                older)


def means_table(rows: Rows) -> list[tuple]:
    """Return a table with one line per task, optimizer and setting: means over seeds per axis."""
    settings = dict.fromkeys(key for row in rows for key in row.settings)
    keys = tuple(key for key in ("task", "optimizer", *settings) if any(row[key] for row in rows))
    return rows.pivot(keys, "axis")


def summary(folder: Path) -> str:
    """Return the page of all measured and judged statements, one line each, as Markdown."""
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
