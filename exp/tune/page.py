"""The page of a board, from its JSON alone."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exp.report.tables import markdown, number, page
from exp.tune.cells import read_ablation
from exp.tune.effects import section
from exp.tune.space import Range, axis_of
from exp.tune.terms import IN_PROGRESS

EDGE = 0.1  # the outermost part of an axis
VERDICTS = ("cheaper", "equal", "undecided", "dearer")
QUALITY = {"cheaper": "better", "dearer": "worse"}
SIGN = {"": "", "at least": "≥ ", "at most": "≤ ", "unknown": "? "}  # of a ratio that is a bound
FOLDER = Path(__file__).parent
RACE, ANNEAL, INTERIM = ((FOLDER / f"legend_{name}.md").read_text(encoding="utf-8").strip()
                         for name in ("race", "anneal", "interim"))


def render(board: dict) -> str:
    """The page."""
    if board["schema"] == IN_PROGRESS:
        return _interim(board)
    race = board["terms"]["regime"] == "race"
    columns = COLUMNS | (RACE_COLUMNS if race else ANNEAL_COLUMNS)
    lines = [("", *columns), *((name, *(column(board, name) for column in columns.values()))
                               for name in in_order(board))]
    return page(_title(board), conclusion(board), markdown(lines), _noise(board["results"]),
                "## How to read this board", RACE if race else ANNEAL, facts(board),
                *section(board, read_ablation(), SIGN.__getitem__), *_on_the_way(board))


def in_order(board: dict) -> list[str]:
    """The arms by rank, then by cost; those without a rank last."""
    rows = board["results"]["arms"]
    return sorted(rows, key=lambda name: (rows[name].get("rank", [math.inf])[0],
                                          rows[name]["cost"]))


def conclusion(board: dict) -> str:
    """Which optimizers are better or worse than the baseline, best first, with their ratios."""
    terms, rows = board["terms"], board["results"]["arms"]
    groups: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for name in sorted((name for name in rows if "verdict" in rows[name]),
                       key=lambda name: rows[name]["ratio"]):
        groups[rows[name]["verdict"]].append(name)
    lists = [f"- **{_verdict(board, names[0])}**: "
             + "; ".join(f"{name} {_ratio(board, name)}" for name in names)
             for names in groups.values() if names]
    return "\n".join([f"Against {terms['baseline']}, over {terms['studies']} paired studies: times "
                      "its cost, with 95 % intervals.", "", *lists]) if lists else ""


# --- columns: of a board and the name of an arm

Column = Callable[[dict, str], str]


def _of_row(key: str, text: Callable[[Any], str] = number) -> Column:
    def column(board: dict, name: str) -> str:
        row = board["results"]["arms"][name]
        return text(row[key]) if key in row else ""

    return column


def _ratio(board: dict, name: str) -> str:
    row = board["results"]["arms"][name]
    return "" if "ratio" not in row else SIGN[row["bound"]] + _interval(row)


def _budget(board: dict, name: str) -> str:
    """The budget of the baseline that is as good; beyond the ladder's rungs only that it is."""
    shares = board["terms"]["ladder"].values()

    def text(share: float) -> str:
        return (f"> {max(shares):g}" if share >= max(shares) else
                f"< {min(shares):g}" if share <= min(shares) else number(share))

    row = board["results"]["arms"][name]
    return "{} [{}, {}]".format(*map(text, row["budget"])) if "budget" in row else ""


def _verdict(board: dict, name: str) -> str:
    """In an annealed board, where the cost is a metric, cheaper is better."""
    if name in (board["terms"]["baseline"], *board["terms"].get("ladder", ())):
        return ""
    verdict = board["results"]["arms"][name].get("verdict", "noise floor")
    return verdict if board["terms"]["regime"] == "race" else QUALITY.get(verdict, verdict)


def _steadiness(board: dict, name: str) -> str:
    at, of = board["results"].get("steadiness", {}).get(name, (0, 0))
    return f"{at / of:.0%}" if of else ""


def _seconds(board: dict, name: str) -> str:
    cost = board["results"]["arms"][name]["cost"]
    return number(round(1e-3 * board["arms"][name]["ms_per_evaluation"] * cost, 2))


def _steps(board: dict, name: str) -> str:
    arm = board["arms"][name]
    return number(round(board["results"]["arms"][name]["cost"]
                        / arm["gradient_evaluations_per_step"]))


def _memory(board: dict, name: str) -> str:
    peaks = [run["peak_memory_bytes"] for study in board["arms"][name]["studies"]
             for run in study["fresh"]]
    return number(round(max(peaks) / 2**20))


def _test(board: dict, name: str) -> str:
    runs = [run for study in board["arms"][name]["studies"] for run in study["fresh"]]
    tested = [run["test"] for run in runs if "test" in run]
    return number(sum(tested) / len(tested)) if tested else ""


def _pace(board: dict, name: str) -> str:
    return number(board["arms"][name]["ms_per_evaluation"])


def edges(arm: dict) -> list[str]:
    """The axes at one end of which at least half of the winners lie."""
    names = []
    for key, record in arm["axes"].items():
        axis = axis_of(record)
        if isinstance(axis, Range):
            shares = [axis.share(study["trials"][study["winner"]]["params"][key])
                      for study in arm["studies"]]
            low, high = (sum(outside) for outside in zip(*(
                (share < EDGE, share > 1 - EDGE) for share in shares), strict=True))
            names += [key] if 2 * max(low, high) >= len(shares) else []
    return names


COLUMNS: dict[str, Column] = {
    "cost": _of_row("cost"), "reached": _of_row("reached", lambda pair: "{} of {}".format(*pair)),
    "times AdamW's": _ratio, "verdict": _verdict,
    "rank": _of_row("rank", lambda ends: "–".join(map(str, dict.fromkeys(ends)))),
    "wins": _of_row("wins_a_study", lambda share: f"{share:.2f}"),
    "needed": _of_row("studies_needed", str)}
REST: dict[str, Column] = {
    "ms an evaluation": _pace, "MiB": _memory,
    "edge": lambda board, name: ", ".join(edges(board["arms"][name])), "spent": _of_row("spent")}
RACE_COLUMNS = {"steady": _steadiness, "seconds": _seconds, "steps": _steps, **REST}
ANNEAL_COLUMNS = {"AdamW's budget": _budget, "equal steps": _of_row("equal_steps"),
                  "test": _test, **REST}


# --- paragraphs and further tables


def _interval(row: dict) -> str:
    return f"{number(row['ratio'])} [{number(row['low'])}, {number(row['high'])}]"


def _title(board: dict) -> str:
    terms = board["terms"]
    what = "Gradient evaluations to target" if terms["regime"] == "race" else (
        f"Quality after {terms['horizon']} gradient evaluations")
    return f"# {what}, after equal-budget tuning: {terms['task']}"


def facts(board: dict) -> str:
    terms = board["terms"]
    facts = {key: ", ".join(sorted({study.get(key) or "not recorded"
                                    for arm in board["arms"].values() for study in arm["studies"]}))
             for key in ("machine", "torch", "commit", "data")}
    better = "at least" if terms["mode"] == "max" else "at most"
    measured = (f"{terms['metric']} {better} {terms['main_target']:g} in {terms['hold']} readings "
                f"in a row, within {terms['cap']} gradient evaluations"
                if terms["regime"] == "race" else
                f"{terms['metric']} after {terms['horizon']} gradient evaluations; the learning "
                "rate falls to zero in the last fifth")
    changes = ", ".join(f"`{change}`" for change in terms["set"])
    return "\n".join([
        f"- {'Target' if terms['regime'] == 'race' else 'Measured'}: {measured}.",
        f"- Design: {terms['studies']} studies of {terms['trials']} trials, "
        f"{terms['fresh_seeds']} fresh seeds per study.",
        f"- Config: `{terms['config']}` with {changes}.",
        f"- Machine: {facts['machine']}; torch {facts['torch']}; commit {facts['commit']}; data "
        f"{facts['data']}.",
        f"- To add an optimizer: `python -m exp.tune {terms['task']} --optimizers NAME`."])


def _noise(results: dict) -> str:
    noise = results["noise"]
    if noise is None:
        return ""
    return (f"Noise floor: the baseline against itself on other studies, {_interval(noise)}, a "
            f"factor {number(noise['half_width'])} to either side. Pooled deviation of a paired "
            f"log ratio: {number(results['pooled_sd'])}.")


def _on_the_way(board: dict) -> tuple[str, ...]:
    """Costs to the other targets, and the arms whose side of AdamW depends on the target."""
    tables = board["results"].get("on_the_way", [])
    if not tables:
        return ()
    heads = [f"{table['target']:g}: {what}" for table in tables
             for what in ("cost", "times AdamW's")]
    lines = [("", *heads)]
    final = board["results"]["arms"]
    turning = []
    for name in tables[0]["arms"]:
        rows = [table["arms"][name] for table in tables]
        lines.append((name, *(text for row in rows for text in (
            f"{number(row['cost'])} ({row['reached'][0]} of {row['reached'][1]})",
            _interval(row) if "ratio" in row else ""))))
        signs = {math.copysign(1, math.log(row["ratio"])) for row in (*rows, final[name])
                 if row.get("ratio", 1) != 1}
        turning += [name] if len(signs) == 2 else []
    note = f"Depends on the target: {', '.join(turning)}." if turning else ""
    return "## On the way (not ranked)", markdown(lines), note


def interim_columns(board: dict) -> dict[str, Column]:
    """The columns of a board in progress: nothing is judged."""
    rows = board["results"]["arms"]
    return {
        "cost": COLUMNS["cost"], "reached": COLUMNS["reached"],
        f"times {board['terms']['baseline']}'s": lambda board, name: (
            f"{SIGN[rows[name]['bound']]}{number(rows[name]['ratio'])}"
            if "ratio" in rows[name] else ""),
        "anytime 95 %": _of_row("anytime", lambda ends: "[{}, {}]".format(*map(number, ends))),
        "e": _of_row("e"),
        **({"equal steps": _of_row("equal_steps")} if board["terms"]["regime"] == "anneal" else {}),
        "spent": _of_row("spent")}


def progress(board: dict) -> str:
    """How many of the announced studies a board in progress has, and how to read it."""
    count, announced = len(next(iter(board["arms"].values()))["studies"]), board["terms"]["studies"]
    verb = "is" if count == 1 else "are"
    return f"**{count} of the {announced} announced studies {verb} complete.** {INTERIM}"


def _interim(board: dict) -> str:
    """The page of a board in progress: arms in the order of their names."""
    columns = interim_columns(board)
    lines = [("", *columns), *((name, *(column(board, name) for column in columns.values()))
                               for name in sorted(board["results"]["arms"]))]
    return page(f"{_title(board)}, in progress", progress(board), markdown(lines), facts(board))
