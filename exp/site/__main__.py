"""Write the web page of results, outputs/paper/index.html, a page per optimizer, docs/optimizers,
and the reference of config keys, docs/config.md.

python -m exp.site [--output FILE]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from exp.site.options import PAPER, parse

if __name__ == "__main__":
    parse()  # answers --help and mistyped options before torch is imported

from exp.harness.arguments import BAD_INPUT, COMPLETED
from exp.harness.errors import ConfigError
from exp.report import web
from exp.report.jsonfile import read_json
from exp.report.rows import read_rows
from exp.report.tables import number
from exp.reproduce.papers import read_papers
from exp.reproduce.verdicts import INTRODUCTION, paper_claims
from exp.site import config, optimizers
from exp.site.curves import paper_curves
from exp.theory import statement
from exp.tune import page
from exp.tune.arms import NO_DECAY
from exp.tune.terms import IN_PROGRESS as UNFINISHED
from exp.tune.terms import SCHEMA

WHOLE, IN_PROGRESS = "arena", "arena/in_progress"  # folders of complete and unfinished boards


def read_boards(kept: Path = PAPER, folder: str = WHOLE) -> dict[str, dict]:
    """Read every complete board, or every one in progress: name -> board. Raises ValueError for a
    damaged file."""
    schema = {WHOLE: SCHEMA, IN_PROGRESS: UNFINISHED}[folder]
    return {path.stem: board for path in sorted((kept / folder).glob("*.json"))
            if (board := read_json(path)) and board.get("schema") == schema}


def site(kept: Path = PAPER) -> str:
    """Return the web page. Raises ValueError for a damaged record."""
    sections = {f"Board: {name}": board_section(board)
                for name, board in read_boards(kept).items()}
    sections |= {f"Board in progress: {name}": progress_section(board)
                 for name, board in read_boards(kept, IN_PROGRESS).items()}
    if not sections:
        sections["Boards"] = web.paragraphs(
            "No board is complete yet. `python -m exp.tune TASK` makes one; see docs/running.md.")
    for paper in read_papers():
        shown = [paper_curves(paper, kept),
                 *(web.table(title, lines) for title, lines in paper_claims(paper, kept))]
        body = [web.paragraphs(paper.note),
                web.details("How to read the claims", web.paragraphs(INTRODUCTION)), *shown]
        if any(shown):
            sections[f"Paper: {paper.title}"] = "\n".join(body)
    sections["Statements about training and geometry"] = statements(kept / "theory")
    return web.document(sections)


def board_section(board: dict) -> str:
    """Forest plot and table of a board; command, search space and winners of every arm."""
    rows = board["results"]["arms"]
    order = page.in_order(board)
    ratios = [(f"{page.SIGN[rows[name]['bound']]}{name}",
               *(rows[name][key] for key in ("ratio", "low", "high")))
              for name in order if "ratio" in rows[name]]
    bounds = "; ≥ and ≤ mark bounds" * any(rows[name].get("bound") for name in order)
    baseline = board["terms"].get("baseline", "adamw")
    return "\n".join([
        web.paragraphs(page.conclusion(board)),
        web.forest(f"cost relative to {baseline}, 95 % intervals; left is better{bounds}", ratios),
        web.table(f"{board['terms']['task']}: {board['terms']['metric']}", page.table(board)),
        web.details("How to read this board", web.paragraphs(
            f"{page.legend(board)}\n\n{page.facts(board)}")),
        web.details("All pairs", web.paragraphs(page.PAIRS)
                    + web.table("Adjusted p", page.pairs_table(board))),
        *(arm_details(board, name) for name in order)])


def progress_section(board: dict) -> str:
    """Table of a board in progress; command, search space and winners of every arm."""
    columns, names = page.interim_columns(board), sorted(board["results"]["arms"])
    lines = [("optimizer", *columns), *((name, *(column(board, name) for column
                                                 in columns.values())) for name in names)]
    return "\n".join([
        web.paragraphs(f"{page.progress(board)}\n\n{page.facts(board)}"),
        web.table(f"{board['terms']['task']}: {board['terms']['metric']}", lines),
        *(arm_details(board, name) for name in names)])


def arm_details(board: dict, name: str) -> str:
    """Collapsible details of one arm: command, search space, winning settings."""
    arm, task = board["arms"][name], board["terms"]["task"]
    axes = [("constant", "searched", "default"),
            *((key, _range(record), _value(key, arm["defaults"].get(key, "")))
              for key, record in arm["axes"].items())]
    winners = [study["trials"][study["winner"]]["params"] for study in arm["studies"]]
    settings = [("study", *arm["axes"]), *(
        (str(study["number"]), *(_value(key, params.get(key)) for key in arm["axes"]))
        for study, params in zip(arm["studies"], winners, strict=True))]
    return web.details(f"{name}: command, search space, winning settings", "\n".join([
        web.code(f"python -m exp.tune {task} --optimizers {name}"),
        web.table(f"Search space of {name}", axes),
        web.table(f"Winning settings of {name}, by study", settings)]))


def _range(record: list | dict) -> str:
    if isinstance(record, dict):
        return "one of " + ", ".join(map(str, record["choices"]))
    low, high, scale = record
    return f"{number(low)} to {number(high)}, {scale}"


def _value(key: str, value: object) -> str:
    if key == "decay_time" and value == NO_DECAY:
        return "no decay"
    return number(value) if isinstance(value, float | int) else str(value)


def statements(folder: Path) -> str:
    """Table of all statements with their verdicts and the commands that measure them."""
    lines = [("statement", "verdict", "numbers", "command")]
    for name in statement.statement_files():
        command = f"`python -m exp.theory {name}`"
        if not (folder / f"{name}.json").exists():
            lines.append((statement.says(name), "not yet run", "", command))
            continue
        rows, _ = read_rows(folder / f"{name}.json")
        module = statement.statement(name)
        verdict = statement.judged(module, rows) if hasattr(module, "judge") else None
        lines.append((statement.says(name), verdict.in_words(rows) if verdict else "measured",
                      verdict.numbers if verdict else "", command))
    return web.table("Verdicts; the thresholds of every rule were written before its run", lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages. Returns the exit status: 0, or 2 for a damaged record."""
    options = parse(arguments)
    try:
        text = site()
        if options.output.parent == PAPER:
            optimizers.write(read_boards())
            config.FILE.write_text(config.reference(), encoding="utf-8")
    except (ValueError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    print(f"written to {options.output}: {len(text) // 1024} KB")
    return COMPLETED


if __name__ == "__main__":
    sys.exit(main())
