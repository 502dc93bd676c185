"""The page of a board, from its JSON alone."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exp.report.tables import markdown, number, page
from exp.tune.cells import read_ablation
from exp.tune.effects import section
from exp.tune.inference import bound
from exp.tune.space import Range, axis_of
from exp.tune.terms import IN_PROGRESS, rung

EDGE = 0.1  # the outermost part of an axis
VERDICTS = ("cheaper", "equal", "undecided", "dearer")
QUALITY = {"cheaper": "better", "dearer": "worse"}
SIGN = {"": "", "at least": "≥ ", "at most": "≤ ", "unknown": "? "}  # of a ratio that is a bound
PAIRS = """\
p of each pair of optimizers: two-sided t test over paired studies, adjusted for all pairs after
Benjamini and Hochberg. In bold, at 5 %: the pairs that decide the ranks. The optimizer of the
column is then the cheaper (better) one of its row."""
FOLDER = Path(__file__).parent
RACE, ANNEAL, INTERIM = ((FOLDER / f"legend_{name}.md").read_text(encoding="utf-8").strip()
                         for name in ("race", "anneal", "interim"))


def render(board: dict) -> str:
    """The page."""
    if board["schema"] == IN_PROGRESS:
        return _interim(board)
    return page(_title(board), conclusion(board), markdown(table(board)), _noise(board),
                "## How to read this board", legend(board), facts(board),
                *section(board, read_ablation(), SIGN.__getitem__), *_on_the_way(board),
                *_all_pairs(board))


def table(board: dict) -> list[tuple[str, ...]]:
    """The lines of the board's table. Columns without an entry are left out."""
    of_regime = RACE_COLUMNS if board["terms"]["regime"] == "race" else ANNEAL_COLUMNS
    names = in_order(board)
    texts = {head: [column(board, name) for name in names]
             for head, column in (COLUMNS | of_regime | REST).items()}
    shown = {head: cells for head, cells in texts.items() if any(cells)}
    return [("", *shown), *zip(names, *shown.values(), strict=True)]


def legend(board: dict) -> str:
    """How to read the board: the text of its regime, without the items of columns left out."""
    text, heads = RACE if board["terms"]["regime"] == "race" else ANNEAL, table(board)[0]
    return re.sub(r"^- \*(.+?)\*:.*\n(  .*\n)*",
                  lambda item: item[0] if item[1] in heads else "", f"{text}\n",
                  flags=re.MULTILINE).strip()


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
             + "; ".join(f"{name} {ratio(board, name)}" for name in names)
             for names in groups.values() if names]
    cost = ("gradient evaluations" if terms["regime"] == "race" else
            _metric(terms) if terms["mode"] == "min" else "error")
    return "\n".join([f"Against {terms['baseline']}, over {terms['studies']} paired studies: times "
                      f"its {cost}, with 95 % intervals.", "", *lists]) if lists else ""


# --- columns: of a board and the name of an arm

Column = Callable[[dict, str], str]


def _of_row(key: str, text: Callable[[Any], str] = number) -> Column:
    def column(board: dict, name: str) -> str:
        row = board["results"]["arms"][name]
        return text(row[key]) if key in row else ""

    return column


def ratio(board: dict, name: str) -> str:
    """An arm's ratio to the baseline with its interval and, for a bound, its sign; else ""."""
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
    if name == board["terms"]["baseline"]:
        return ""
    if name in board["terms"].get("ladder", ()):
        return "reference only"
    verdict = board["results"]["arms"][name].get("verdict", "noise floor")
    return verdict if board["terms"]["regime"] == "race" else QUALITY.get(verdict, verdict)


def _steadiness(board: dict, name: str) -> str:
    at, of = board["results"].get("steadiness", {}).get(name, (0, 0))
    return f"{at / of:.0%}" if of else ""


def _evaluations(board: dict, name: str) -> float:
    """Gradient evaluations to the target, or of a whole annealed run."""
    terms = board["terms"]
    return (board["results"]["arms"][name]["cost"] if terms["regime"] == "race" else
            rung(terms, name)["cap"])


def _seconds(board: dict, name: str) -> str:
    milliseconds = board["arms"][name]["ms_per_evaluation"]
    return number(round(1e-3 * milliseconds * _evaluations(board, name), 2)) * _is_paced(board)


def _steps(board: dict, name: str) -> str:
    return number(round(_evaluations(board, name)
                        / board["arms"][name]["gradient_evaluations_per_step"]))


def _memory(board: dict, name: str) -> str:
    """On a CPU the recorded peak is that of the process, which says nothing of the optimizer."""
    peaks = [run["peak_memory_bytes"] for study in board["arms"][name]["studies"]
             if not study["machine"].startswith("CPU") for run in study["fresh"]]
    return number(round(max(peaks) / 2**20)) if peaks else ""


def _test(board: dict, name: str) -> str:
    runs = [run for study in board["arms"][name]["studies"] for run in study["fresh"]]
    tested = [run["test"] for run in runs if "test" in run]
    return number(sum(tested) / len(tested)) if tested else ""


def _pace(board: dict, name: str) -> str:
    return number(board["arms"][name]["ms_per_evaluation"]) * _is_paced(board)


def _is_paced(board: dict) -> bool:
    """Whether `--pace` has timed all arms together. Otherwise the times are those of the runs,
    which other work on the machine slowed."""
    return all(arm.get("paced") for arm in board["arms"].values())


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
    "times AdamW's": ratio, "verdict": _verdict, "p": _of_row("p_holm", "{:.2g}".format),
    "rank": _of_row("rank", lambda ends: "–".join(map(str, dict.fromkeys(ends)))),
    "wins": _of_row("wins_a_study", lambda share: f"{share:.2f}"),
    "needed": _of_row("studies_needed", str)}
RACE_COLUMNS: dict[str, Column] = {"steady": _steadiness}
ANNEAL_COLUMNS: dict[str, Column] = {
    "AdamW's budget": _budget, "equal steps": _of_row("equal_steps"), "test": _test}
REST: dict[str, Column] = {
    "steps": _steps, "seconds": _seconds, "ms an evaluation": _pace, "MiB": _memory,
    "edge": lambda board, name: ", ".join(edges(board["arms"][name])), "spent": _of_row("spent")}


# --- paragraphs and further tables


def _interval(row: dict) -> str:
    return f"{number(row['ratio'])} [{number(row['low'])}, {number(row['high'])}]"


def _title(board: dict) -> str:
    terms = board["terms"]
    what = ("Gradient evaluations to the target" if terms["regime"] == "race" else
            f"{_metric(terms).capitalize()} after {terms['horizon']} gradient evaluations")
    return f"# {what}, each optimizer tuned with the same budget: {terms['task']}"


def _metric(terms: dict) -> str:
    return terms["metric"].removeprefix("eval_").replace("_", " ")


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
        f"- To add an optimizer: `python -m exp.tune {terms['task']} --optimizers "
        f"{terms['baseline']},NAME`. NAME alone is a challenge, which has a page of its own."])


def _noise(board: dict) -> str:
    noise, arm = board["results"]["noise"], board["terms"]["noise_arm"]
    if noise is None:
        return f"Noise floor: unknown, {arm} is not on this board." if arm else ""
    return (f"Noise floor: the baseline against itself on other studies, {_interval(noise)}, a "
            f"factor {number(noise['half_width'])} to either side. Pooled deviation of a paired "
            f"log ratio: {number(board['results']['pooled_sd'])}.")


def _on_the_way(board: dict) -> tuple[str, ...]:
    """Costs to the other targets, and the arms whose order relative to the baseline changes."""
    targets, base = board["results"].get("on_the_way", []), board["terms"]["baseline"]
    if not targets:
        return ()
    lines = [("", *(f"{target['target']:g}: {what}" for target in targets
                    for what in ("cost", "times AdamW's")))]
    turning = []
    for name in targets[0]["arms"]:
        rows = [{**arms[name], "bound": bound(_has_misses(arms[name]), _has_misses(arms[base]))}
                for arms in (target["arms"] for target in targets)]
        lines.append((name, *(text for row in rows for text in (
            f"{number(row['cost'])} ({row['reached'][0]} of {row['reached'][1]})",
            SIGN[row["bound"]] + _interval(row) if "ratio" in row else ""))))
        sides = {_side(row) for row in (*rows, board["results"]["arms"][name]) if "ratio" in row}
        turning += [name] if {"cheaper", "dearer"} <= sides else []
    end = "cap" if board["terms"]["regime"] == "race" else "start of the rate's decay"
    note = (f"The order relative to {base} changes with the target (intervals on both sides of 1): "
            f"{', '.join(turning)}." if turning else "")
    return ("## On the way (not ranked)", "Gradient evaluations to other targets, and in brackets "
            f"the runs that reached them. A miss counts as the {end}; ≥ and ≤ mark the bounds that "
            "misses make.", markdown(lines), note)


def _has_misses(row: dict) -> bool:
    return row["reached"][0] < row["reached"][1]


def _side(row: dict) -> str:
    """The side of 1 on which the whole interval of a ratio lies; "" for none, or if misses could
    move it."""
    if row["high"] < 1 and row["bound"] in ("", "at most"):
        return "cheaper"
    return "dearer" if row["low"] > 1 and row["bound"] in ("", "at least") else ""


def _all_pairs(board: dict) -> tuple[str, ...]:
    return ("## All pairs", PAIRS, markdown(pairs_table(board))) if (
        board["results"]["pairs"]) else ()


def pairs_table(board: dict) -> list[tuple[str, ...]]:
    """The lines of a triangular table: the adjusted p of each pair, bold where it is ordered."""
    pairs = {frozenset((pair["a"], pair["b"])): pair for pair in board["results"]["pairs"]}
    rows = board["results"]["arms"]
    names = sorted(set().union(*pairs), key=lambda name: rows[name]["cost"])

    def cell(row: int, column: int) -> str:
        if column >= row:
            return ""
        pair = pairs[frozenset((names[row], names[column]))]
        return f"**{pair['p_bh']:.2g}**" if pair["ordered"] else f"{pair['p_bh']:.2g}"

    return [("", *names[:-1]), *((name, *(cell(row, column) for column in range(len(names) - 1)))
                                 for row, name in enumerate(names) if row)]


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
    if name := board["terms"].get("challenge"):
        return f"**{name}, after {count} of at most {announced} studies.** {INTERIM}"
    verb = "is" if count == 1 else "are"
    return f"**{count} of the {announced} announced studies {verb} complete.** {INTERIM}"


def _interim(board: dict) -> str:
    """The page of a board in progress: arms in the order of their names."""
    columns = interim_columns(board)
    lines = [("", *columns), *((name, *(column(board, name) for column in columns.values()))
                               for name in sorted(board["results"]["arms"]))]
    state = "a challenge" if "challenge" in board["terms"] else "in progress"
    return page(f"{_title(board)}, {state}", progress(board), markdown(lines), facts(board))
