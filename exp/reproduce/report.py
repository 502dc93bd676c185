"""The Markdown page of a paper's table, made from its kept records alone."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from exp.report import statistics
from exp.report.tables import Lines, at_least, number, older_code, page
from exp.report.tables import table as markdown
from exp.reproduce.claims import Claim
from exp.reproduce.grids import render_grid
from exp.reproduce.options import PROTOCOLS, SCALES
from exp.reproduce.plan import Table
from exp.reproduce.records import outdated
from exp.reproduce.verdicts import claims_table
from exp.reproduce.yardstick import Yardstick, number_or_nan, spent, watched

AXES = {"epochs": "epochs", "gradient_evaluations": "gradient evaluations", "seconds": "seconds"}
PROTOCOL_WORDS = {"published": "published protocol, flaws included",
                  "fixed": "fixed protocol, flaws corrected"}
READING = {
    "full": "Full scale is the size that the table declares, the paper's own where it states one.",
    "mini": "Mini scale is a smaller model on less data, for two CPU cores.",
    "published": "The published protocol keeps the authors' settings, flaws included.",
    "fixed": "The fixed protocol corrects flaws of data and parameter routing; it does not tune "
             "learning rates.",
}
INTERVALS = ("An estimate is followed by its 95 % interval in brackets, p values are two-sided, "
             "and a dash stands for a value that does not exist.")

Groups = dict[str, list[dict]]  # row label -> its runs of one scale and protocol


def render(table: Table, records: dict, claims: Sequence[Claim]) -> str:
    """Return the page of one table. claims: those that the table decides."""
    shown = sections(table, records)
    scale = shown[0][0] if shown else next(iter(table.scales))
    present = {name for place in shown for name in place}
    parts = [f"# {table.title}",
             "The results of our runs of this table"
             + ", and verdicts on the paper's claims that they decide" * bool(claims)
             + f". `{table.name}.json` beside this page has every number. To run them again: "
             f"`python -m exp.reproduce {table.name} --scale {scale} --outputs /tmp/again`.",
             table.note,
             " ".join(["How to read:", *(text for name, text in READING.items()
                                         if name in present), INTERVALS]),
             f"![{table.name}]({table.name}.png)"]
    for scale, protocol in shown:
        runs, by = select(records, scale, protocol), Yardstick.of(table, protocol)
        parts += [f"## {scale.capitalize()} scale, {PROTOCOL_WORDS[protocol]}", _provenance(runs),
                  _outdated(table, runs)]
        if table.grid:
            parts += render_grid(table, by, runs)
        elif table.milestone:
            parts += [_milestones(by, runs), _sooner(table.baseline, by, runs)]
        else:
            parts += [_values(table, by, runs), _equal_compute(by, runs)]
    if claims:
        parts += ["## Claims", claims_table(claims, table, records)]
    return page(*parts)


def sections(table: Table, records: dict) -> list[tuple[str, str]]:
    """Every (scale, protocol) that has at least one run, full scale first."""
    present = {(run["scale"], run["protocol"]) for run in records["runs"]}
    return [(scale, protocol) for scale in SCALES for protocol in PROTOCOLS
            if (scale, protocol) in present]


def select(records: dict, scale: str, protocol: str) -> Groups:
    """The runs of one scale and protocol, in the table's order of rows."""
    groups: Groups = {}
    for run in records["runs"]:
        if (run["scale"], run["protocol"]) == (scale, protocol):
            groups.setdefault(run["row"], []).append(run)
    return groups


def _provenance(runs: dict[str, list[dict]]) -> str:
    every = [run for group in runs.values() for run in group]

    def listed(key: str) -> str:
        return ", ".join(sorted({str(run[key]) for run in every}))

    commits = ", ".join(sorted({str(run["commit"])[:7] + ("+" if run["uncommitted_changes"] else "")
                                for run in every}))
    seeds = ", ".join(map(str, sorted({run["seed"] for run in every})))
    diverged = [f"{run['row']} seed {run['seed']}" for run in every if run["status"] == "diverged"]
    digests = ", ".join(sorted({run["data"] for run in every if run.get("data")}))
    data = f"data {digests}; " if digests else ""  # older runs recorded none
    text = (f"Run on {listed('device')}; threads per run: {listed('threads')}; torch "
            f"{listed('torch')}; commit {commits}; {data}seeds {seeds}.")
    text += " A + after a commit: with uncommitted changes." * ("+" in commits)
    return text + (f" Diverged: {', '.join(diverged)}." if diverged else "")


def _outdated(table: Table, runs: Groups) -> str:
    changes = outdated(table, [run for group in runs.values() for run in group])
    return older_code(f"{row}, seeds {', '.join(map(str, sorted(set(seeds))))}: {changed}"
                      for row, of_row in changes.items() for changed, seeds in of_row.items())


def _values(table: Table, by: Yardstick, runs: Groups) -> str:
    """Table of best and last epoch, test split if there is one, cost, and the difference from the
    baseline on equal seeds."""
    primary, unit = table.metric("fixed"), by.metric.unit
    tested = "test_" + primary.name.removeprefix("eval_")
    has_test = any(tested in run["best"] for group in runs.values() for run in group)
    real = "" if by.metric == primary else ", padding not counted"
    lines: Lines = [("", "seeds", f"best epoch, {unit}", "± sd", "last epoch",
                     *([f"test split, {unit}{real}"] if has_test else []),
                     "gradient evaluations", "seconds", f"best minus {table.baseline}", "p")]
    best = {row: {run["seed"]: by.scale * by.best(run) for run in group}
            for row, group in runs.items()}
    for row, group in runs.items():
        test = [by.scale * number_or_nan(run["best"].get(tested)) for run in group]
        compared = row != table.baseline and table.baseline in runs
        lines.append((
            row, len(group), list(best[row].values()),
            statistics.deviation(list(best[row].values())),
            _mean(by.scale * by.last(run) for run in group), *([test] if has_test else []),
            _mean(cost for run in group for cost in spent(run, "gradient_evaluations")[-1:]),
            _mean(cost for run in group for cost in spent(run, "seconds")[-1:]),
            *(statistics.paired(best[row], best[table.baseline]) if compared else ("", ""))))
    return (f"Best epoch: the epoch with the best {by.metric.label} on the evaluation data"
            + "; the test split is read at that epoch" * has_test
            + f". The last two columns compare best epochs with {table.baseline}'s on equal seeds "
            "(paired permutation test; p is at least 0.25 with three seeds):\n\n"
            + markdown(lines))


def _equal_compute(by: Yardstick, runs: Groups) -> str:
    """Table of each row's best value within the total cost of the cheapest row, on each axis."""
    budgets = {axis: min((end for group in runs.values() for end in watched(group, axis) if end),
                         default=math.nan) for axis in AXES}
    lines: Lines = [("at equal", *(f"{number(budgets[axis])} {word}"
                                   for axis, word in AXES.items()))]
    for row, group in runs.items():
        lines.append((row, *(_mean(by.scale * by.best(run, axis, budgets[axis])
                                   for run in group) for axis in AXES)))
    return (f"At equal cost: the best {by.metric.label}, {by.metric.unit}, that each row reaches "
            "within the total cost of the cheapest row, for three measures of cost:\n\n"
            + markdown(lines))


def _milestones(by: Yardstick, runs: Groups) -> str:
    """Table of median epochs and gradient evaluations to each milestone, and seconds to the main
    one."""
    names = list(next(iter(runs.values()))[0]["milestones"])
    lines: Lines = [("", "seeds", *(f"{name}, epoch" for name in names), f"{by.milestone} reached",
                     *(f"{name}, gradient evaluations" for name in names),
                     f"{by.milestone}, seconds")]
    for row, group in runs.items():
        medians = {axis: {name: statistics.median_time(
            *replace(by, milestone=name).times(group, axis)) for name in names} for axis in AXES}
        reached = sum(by.epoch(run) is not None for run in group)
        lines.append((row, len(group), *medians["epochs"].values(), f"{reached} of {len(group)}",
                      *medians["gradient_evaluations"].values(),
                      medians["seconds"][by.milestone].value))
    return ("Time to each milestone, as Kaplan-Meier medians over seeds. A seed that missed the "
            "milestone is censored at its last epoch; *never* means that the median was not "
            "reached.\n\n" + markdown(lines))


def _sooner(baseline: str, by: Yardstick, runs: Groups) -> str:
    """Table of the speedup over the baseline on each axis, with the log-rank test."""
    if baseline not in runs:
        return ""
    base = {axis: by.times(runs[baseline], axis) for axis in AXES}
    lines: Lines = [("", *(f"speedup over {baseline}, {word}" for word in AXES.values()),
                     "log-rank p (epochs)")]
    for row, group in runs.items():
        if row != baseline:
            ours = {axis: by.times(group, axis) for axis in AXES}
            lines.append((row, *(at_least(statistics.speedup(
                base[axis][0], ours[axis][0], base[axis][1])) for axis in AXES),
                statistics.logrank(*ours["epochs"], *base["epochs"])))
    return (f"Speedup: {baseline}'s median time to {by.milestone} over the row's. > marks a lower "
            f"bound, where {baseline}'s median was not reached:\n\n" + markdown(lines))


def _mean(values: Iterable[float]) -> float:
    """Mean of the values, nan without any: a run may diverge in its first epoch."""
    values = list(values)
    return sum(values) / len(values) if values else math.nan
