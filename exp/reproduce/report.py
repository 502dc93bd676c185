"""A table of a paper as Markdown, made from its kept records and nothing else."""

import math
from collections.abc import Iterable

from exp.report import statistics
from exp.report.tables import at_least, interval, markdown, number
from exp.reproduce.claims import Claim
from exp.reproduce.grids import render_grid
from exp.reproduce.measures import PERCENT, along, chosen, number_or_nan, watched
from exp.reproduce.plan import PROTOCOLS, SCALES, Table
from exp.reproduce.verdicts import claims_table

AXES = {"epochs": "epochs", "gradient_evaluations": "gradient evaluations", "seconds": "seconds"}
UNITS = {"eval_accuracy": "%", "eval_perplexity": "ppl", "eval_perplexity_padded": "ppl"}
PROTOCOL_WORDS = {"published": "as published, flaws included", "fixed": "flaws mended"}


def render(table: Table, records: dict, claims: Iterable[Claim]) -> str:
    """The whole page of one table."""
    parts = [f"# {table.title}", table.note, _command(table),
             "Made by `exp.reproduce` from the JSON beside this page. Intervals are 95 % over "
             "seeds; p values are two-sided."]
    parts += [f"![{table.name}]({table.name}.png)"] if records["runs"] else ["Nothing was run yet."]
    for scale, protocol in sections(table, records):
        runs = select(records, scale, protocol)
        parts.append(f"## {scale.capitalize()} scale, {PROTOCOL_WORDS[protocol]}")
        parts.append(_provenance(runs))
        if table.grid:
            parts += render_grid(table, protocol, runs)
        elif table.milestone:
            parts += [_milestones(table, runs), _against_baseline_in_time(table, runs)]
        else:
            parts += [_values(table, protocol, runs), _equal_compute(table, protocol, runs)]
    own = [claim for claim in claims if claim.table == table.name]
    if own:
        parts += ["## Claims", claims_table(own, table, records)]
    return "\n\n".join(part for part in parts if part) + "\n"


def sections(table: Table, records: dict) -> list[tuple[str, str]]:
    """(scale, protocol) of everything that has at least one run, full scale first."""
    present = {(run["scale"], run["protocol"]) for run in records["runs"]}
    return [(scale, protocol) for scale in SCALES for protocol in PROTOCOLS
            if (scale, protocol) in present]


def select(records: dict, scale: str, protocol: str) -> dict[str, list[dict]]:
    """Row label -> its runs of one scale and protocol, in the table's order."""
    found: dict[str, list[dict]] = {}
    for run in records["runs"]:
        if (run["scale"], run["protocol"]) == (scale, protocol):
            found.setdefault(run["row"], []).append(run)
    return found


def _command(table: Table) -> str:
    scales = " or ".join(f"`--scale {scale}`" for scale in table.scales)
    return f"`python -m exp.reproduce {table.name}` with {scales}."


def _provenance(runs: dict[str, list[dict]]) -> str:
    every = [run for group in runs.values() for run in group]

    def listed(key: str) -> str:
        return ", ".join(sorted({str(run[key]) for run in every}))

    commits = ", ".join(sorted({str(run["commit"])[:7] + ("+" if run["uncommitted_changes"] else "")
                                for run in every}))
    seeds = ", ".join(map(str, sorted({run["seed"] for run in every})))
    diverged = [f"{run['row']} seed {run['seed']}" for run in every if run["status"] == "diverged"]
    text = (f"Device {listed('device')}; {listed('threads')} thread(s) a run; torch "
            f"{listed('torch')}; commit {commits}; seeds {seeds}.")
    return text + (f" Diverged: {', '.join(diverged)}." if diverged else "")


def _values(table: Table, protocol: str, runs: dict[str, list[dict]]) -> str:
    """Best and last epoch, the test split where one was kept apart, cost, and the difference from
    the baseline on equal seeds."""
    metric = table.metric_of(protocol)
    scale = PERCENT if UNITS[metric] == "%" else 1.0
    tested = "test_" + table.metric.removeprefix("eval_")
    has_test = any(tested in run["best"] for group in runs.values() for run in group)
    head = ["", "seeds", f"best epoch, {UNITS[metric]}", "± sd", "last epoch"]
    real = "" if metric == table.metric else ", padding not counted"
    head += [f"test split, {UNITS[metric]}{real}"] if has_test else []
    lines = [(*head, "evaluations", "seconds", f"best minus {table.baseline}", "p")]
    base = {run["seed"]: run for run in runs.get(table.baseline, [])}
    for row, group in runs.items():
        best = {run["seed"]: scale * chosen(run, metric, table.mode) for run in group}
        last = [scale * number_or_nan(run["curve"].get(metric, [None])[-1]) for run in group]
        cells = [row, str(len(group)), interval(statistics.mean(list(best.values()))),
                 number(statistics.deviation(list(best.values()))), number(_mean(last))]
        if has_test:
            cells.append(interval(statistics.mean(
                [scale * number_or_nan(run["best"].get(tested)) for run in group])))
        cells += [number(_mean([run["curve"]["gradient_evaluations"][-1] for run in group])),
                  number(_mean([run["curve"]["seconds"][-1] for run in group]))]
        if row == table.baseline or not base:
            cells += ["", ""]
        else:
            difference, p = statistics.paired(
                best, {seed: scale * chosen(run, metric, table.mode)
                       for seed, run in base.items()})
            cells += [interval(difference), number(p)]
        lines.append(tuple(cells))
    return markdown(lines)


def _equal_compute(table: Table, protocol: str, runs: dict[str, list[dict]]) -> str:
    """The best value that each row has shown by the time the cheapest row ends, on each axis."""
    metric = table.metric_of(protocol)
    scale = PERCENT if UNITS[metric] == "%" else 1.0
    budgets = {axis: min(end for group in runs.values() for end in watched(group, axis))
               for axis in AXES}
    head = ("at equal", *(f"{number(budgets[axis])} {word}" for axis, word in AXES.items()))
    lines = [head]
    for row, group in runs.items():
        lines.append((row, *(
            number(scale * _mean([best_within(run, metric, table.mode, axis, budgets[axis])
                                  for run in group])) for axis in AXES)))
    return (f"The best {UNITS[metric]} that each row has reached within the budget of the row that "
            "needs least:\n\n" + markdown(lines))


def best_within(run: dict, metric: str, mode: str, axis: str, budget: float) -> float:
    """The best value of the epochs that end within `budget` on an axis; nan if none does."""
    values = [value for value, cost in zip(run["curve"].get(metric, []), along(run, axis),
                                               strict=False)
              if cost <= budget and value is not None]
    return (max if mode == "max" else min)(values) if values else math.nan


def _milestones(table: Table, runs: dict[str, list[dict]]) -> str:
    """Median epochs and gradient evaluations to each milestone, and seconds to the main one."""
    names = list(next(iter(runs.values()))[0]["milestones"])
    lines = [("", "seeds", *(f"{name}, epoch" for name in names), f"{table.milestone} reached",
              *(f"{name}, evaluations" for name in names), f"{table.milestone}, seconds")]
    for row, group in runs.items():
        limits = watched(group)
        medians = [statistics.median_time([run["milestones"][name] for run in group], limits)
                   for name in names]
        reached = sum(run["milestones"][table.milestone] is not None for run in group)
        costs = [statistics.median_time(*_in_axis(name, group, "gradient_evaluations"))
                 for name in names]
        seconds = statistics.median_time(*_in_axis(table.milestone, group, "seconds"))
        lines.append((row, str(len(group)), *map(interval, medians), f"{reached} of {len(group)}",
                      *map(interval, costs), number(seconds.value)))
    return ("Kaplan-Meier medians; a seed that never got there counts as still waiting at its last "
            "epoch, and a median that was not reached reads never.\n\n" + markdown(lines))


def _against_baseline_in_time(table: Table, runs: dict[str, list[dict]]) -> str:
    """How many times sooner than the baseline, in each currency, with the log-rank test."""
    base = runs.get(table.baseline)
    if not base:
        return ""
    lines = [("", *(f"times sooner than {table.baseline}, {word}" for word in AXES.values()),
              "log-rank p (epochs)")]
    for row, group in runs.items():
        if row == table.baseline:
            continue
        ratios = []
        for axis in AXES:
            slow, limits = _in_axis(table.milestone, base, axis)
            fast, _ = _in_axis(table.milestone, group, axis)
            ratios.append(at_least(statistics.speedup(slow, fast, limits)))
        p = statistics.logrank(*_in_axis(table.milestone, group, "epochs"),
                               *_in_axis(table.milestone, base, "epochs"))
        lines.append((row, *ratios, number(p)))
    return f"Time to {table.milestone}, median over median:\n\n" + markdown(lines)


def _in_axis(milestone: str, group: list[dict], axis: str) -> tuple[list, list]:
    """Times to the milestone on an axis, None where not reached, and how far each was watched."""
    times = [None if (epoch := run["milestones"][milestone]) is None
             else along(run, axis)[epoch - 1] for run in group]
    return times, watched(group, axis)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
