"""The Markdown page of a paper's table, made from its kept records alone."""

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
from exp.reproduce.yardstick import Yardstick, number_or_nan, watched

AXES = {"epochs": "epochs", "gradient_evaluations": "gradient evaluations", "seconds": "seconds"}
PROTOCOL_WORDS = {"published": "as published, flaws included", "fixed": "flaws mended"}

Groups = dict[str, list[dict]]  # row label -> its runs of one scale and protocol


def render(table: Table, records: dict, claims: Sequence[Claim]) -> str:
    """Return the page of one table. claims: those that the table decides."""
    scales = " or ".join(f"`--scale {scale}`" for scale in table.scales)
    parts = [f"# {table.title}", table.note,
             f"`python -m exp.reproduce {table.name}` with {scales}.",
             "Made by `exp.reproduce` from the JSON beside this page. Intervals are 95 % over "
             "seeds; p values are two-sided.",
             f"![{table.name}]({table.name}.png)"]
    for scale, protocol in sections(table, records):
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
    text = (f"Device {listed('device')}; {listed('threads')} thread(s) a run; torch "
            f"{listed('torch')}; commit {commits}; {data}seeds {seeds}.")
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
                     "evaluations", "seconds", f"best minus {table.baseline}", "p")]
    best = {row: {run["seed"]: by.scale * by.best(run) for run in group}
            for row, group in runs.items()}
    for row, group in runs.items():
        test = [by.scale * number_or_nan(run["best"].get(tested)) for run in group]
        compared = row != table.baseline and table.baseline in runs
        lines.append((
            row, len(group), list(best[row].values()),
            statistics.deviation(list(best[row].values())),
            _mean(by.scale * by.last(run) for run in group), *([test] if has_test else []),
            _mean(run["curve"]["gradient_evaluations"][-1] for run in group),
            _mean(run["curve"]["seconds"][-1] for run in group),
            *(statistics.paired(best[row], best[table.baseline]) if compared else ("", ""))))
    return markdown(lines)


def _equal_compute(by: Yardstick, runs: Groups) -> str:
    """Table of each row's best value within the total cost of the cheapest row, on each axis."""
    budgets = {axis: min(end for group in runs.values() for end in watched(group, axis))
               for axis in AXES}
    lines: Lines = [("at equal", *(f"{number(budgets[axis])} {word}"
                                   for axis, word in AXES.items()))]
    for row, group in runs.items():
        lines.append((row, *(_mean(by.scale * by.best(run, axis, budgets[axis])
                                   for run in group) for axis in AXES)))
    return (f"The best {by.metric.unit} that each row has reached within the budget of the row "
            "that needs least:\n\n" + markdown(lines))


def _milestones(by: Yardstick, runs: Groups) -> str:
    """Table of median epochs and gradient evaluations to each milestone, and seconds to the main
    one."""
    names = list(next(iter(runs.values()))[0]["milestones"])
    lines: Lines = [("", "seeds", *(f"{name}, epoch" for name in names), f"{by.milestone} reached",
                     *(f"{name}, evaluations" for name in names), f"{by.milestone}, seconds")]
    for row, group in runs.items():
        medians = {axis: {name: statistics.median_time(
            *replace(by, milestone=name).times(group, axis)) for name in names} for axis in AXES}
        reached = sum(by.epoch(run) is not None for run in group)
        lines.append((row, len(group), *medians["epochs"].values(), f"{reached} of {len(group)}",
                      *medians["gradient_evaluations"].values(),
                      medians["seconds"][by.milestone].value))
    return ("Kaplan-Meier medians; a seed that never got there counts as still waiting at its last "
            "epoch, and a median that was not reached reads never.\n\n" + markdown(lines))


def _sooner(baseline: str, by: Yardstick, runs: Groups) -> str:
    """Table of the speedup over the baseline on each axis, with the log-rank test."""
    if baseline not in runs:
        return ""
    base = {axis: by.times(runs[baseline], axis) for axis in AXES}
    lines: Lines = [("", *(f"times sooner than {baseline}, {word}" for word in AXES.values()),
                     "log-rank p (epochs)")]
    for row, group in runs.items():
        if row != baseline:
            ours = {axis: by.times(group, axis) for axis in AXES}
            lines.append((row, *(at_least(statistics.speedup(
                base[axis][0], ours[axis][0], base[axis][1])) for axis in AXES),
                statistics.logrank(*ours["epochs"], *base["epochs"])))
    return f"Time to {by.milestone}, median over median:\n\n" + markdown(lines)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
