"""Measures: what the runs of a table say about a claim, as an estimate in the claim's unit."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from exp.report import statistics
from exp.report.statistics import Estimate
from exp.reproduce.claims import Claim
from exp.reproduce.plan import Table

SCALE_FREE = ("lead", "speedup", "delay", "evaluations")  # measures that compare two of our rows
PERCENT = 100.0
LEAST_ROUNDS = 3  # that a time is a median of
UNITS = {"eval_accuracy": "%", "eval_perplexity": "ppl", "eval_perplexity_padded": "ppl"}
OVERHEADS = {"extra_compute": "ratio", "extra_memory": "memory_ratio"}  # in the benchmark's rows

Runs = dict[tuple, dict]  # (seed, levels of the grid) -> run


@dataclass(frozen=True)
class Yardstick:
    """What runs are compared by: a metric, or the epoch of a milestone (see Table)."""

    metric: str
    mode: str
    milestone: str = ""
    threshold: float | None = None

    @classmethod
    def of(cls, table: Table, protocol: str) -> "Yardstick":
        """A table's, under a protocol."""
        return cls(table.metric_of(protocol), table.mode, table.milestone, table.threshold)

    @property
    def unit(self) -> str:
        """The unit of the metric on pages."""
        return UNITS[self.metric]

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be in that unit."""
        return PERCENT if self.unit == "%" else 1.0

    def best(self, run: dict) -> float:
        """The value of the best epoch; nan for a run that diverged before its first."""
        return chosen(run, self.metric, self.mode)

    def last(self, run: dict) -> float:
        """The value of the last epoch."""
        return number_or_nan(run["curve"].get(self.metric, [None])[-1])

    def epoch(self, run: dict) -> int | None:
        """The epoch of the milestone, None if it was not reached."""
        if self.threshold is None:
            return run["milestones"][self.milestone]
        sign = 1 if self.mode == "max" else -1
        return next((epoch for epoch, value in enumerate(run["curve"].get(self.metric, ()), 1)
                     if value is not None and sign * value >= sign * self.threshold), None)


def estimate(claim: Claim, table: Table, records: dict, scale: str, protocol: str
             ) -> Estimate | None:
    """What our runs of one scale and protocol say about the claim, in its unit; None without any.

    Raises ValueError for a measure that does not exist.
    """
    runs = [run for run in records["runs"]
            if (run["scale"], run["protocol"]) == (scale, protocol)
            and set(claim.where) <= set(run.get("levels", ()))]
    ours, other = (by_configuration(run for run in runs if run["row"] == row)
                   for row in (claim.row, claim.against))
    if not ours or (claim.against and not other):
        return None
    by = Yardstick.of(table, protocol)
    if claim.measure in MEASURES:
        return MEASURES[claim.measure](claim, by, ours, other)
    if claim.measure in next(iter(ours.values()))["milestones"]:
        return _arrival(Yardstick(by.metric, by.mode, claim.measure), ours)
    raise ValueError(f"claim {claim.id}: no measure {claim.measure!r}")


def overhead(claim: Claim, bench: dict, configs: Iterable[str]) -> Estimate | None:
    """Extra time or memory beyond AdamW's in percent, from `exp.bench training`: the mean over
    the configs, with the lowest and the highest (of a time, quartile); None where it was not
    measured, a time in fewer than LEAST_ROUNDS: one look is noise."""
    key = OVERHEADS.get(claim.measure)
    results = bench.get("results", {})
    rows = [results[config][claim.row] for config in configs
            if claim.row in results.get(config, {})]
    few = any(row["rounds"] < LEAST_ROUNDS for row in rows)
    if key is None or not rows or (few and claim.measure == "extra_compute"):
        return None
    low = min(row.get(f"{key}_low", row[key]) for row in rows)
    high = max(row.get(f"{key}_high", row[key]) for row in rows)
    value = sum(row[key] for row in rows) / len(rows)
    # A few bytes of step counts are no overhead; + 0.0 makes of -0.0 a plain zero.
    return Estimate(*(round(PERCENT * (ratio - 1), 3) + 0.0 for ratio in (value, low, high)),
                    min(row["rounds"] for row in rows))


def by_configuration(runs: Iterable[dict]) -> Runs:
    """Runs of one row by their seed and levels: what two rows are paired on."""
    return {(run["seed"], *run.get("levels", ())): run for run in runs}


def chosen(run: dict, metric: str, mode: str) -> float:
    """The value of the best epoch; nan for a run that diverged before its first."""
    values = [value for value in run["curve"].get(metric, ()) if value is not None]
    return (max if mode == "max" else min)(values) if values else math.nan


def watched(group: Iterable[dict], axis: str = "epochs") -> list[float]:
    """How long each run was watched for a milestone, in epochs or a cost of its curve; one that
    diverged as long as the longest: it would not have arrived later."""
    group = list(group)
    ends = [(along(run, axis) or [0])[-1] for run in group]
    return [max(ends) if run["status"] == "diverged" else end
            for run, end in zip(group, ends, strict=True)]


def along(run: dict, axis: str) -> list[float]:
    """What a run had spent at the end of each epoch, on an axis as in `watched`."""
    return list(range(1, run["epochs"] + 1)) if axis == "epochs" else run["curve"].get(axis, [])


def number_or_nan(value: float | None) -> float:
    """The value, nan for None: what a run that diverged recorded."""
    return math.nan if value is None else value


def _best(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    return _mean(claim, [by.best(run) for run in ours.values()])


def _final(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    return _mean(claim, [by.last(run) for run in ours.values()])


def _train_loss(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    return _final(claim, Yardstick("train_loss", "min"), ours, other)


def _epochs_to_best(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    return statistics.mean([1 + run["curve"][by.metric].index(by.best(run))
                            for run in ours.values()])


def _rebound(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    return statistics.mean([by.last(run) / by.best(run) for run in ours.values()])


def _arrival(by: Yardstick, ours: Runs) -> Estimate:
    return statistics.median_time([by.epoch(run) for run in ours.values()], watched(ours.values()))


def _speedup(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    slow, fast = ([by.epoch(run) for run in runs.values()] for runs in (other, ours))
    return statistics.speedup(slow, fast, watched(other.values()))


def _delay(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    """How much later than the other row, in percent of its median time."""
    ratio = _speedup(claim, by, other, ours)
    return Estimate(*(PERCENT * (end - 1) for end in (ratio.value, ratio.low, ratio.high)), ratio.n)


def _lead(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    """Mean paired difference of the best epochs, positive where our row is the better one."""
    sign = _unit(claim) * (1 if by.mode == "max" else -1)
    values = [{key: sign * by.best(run) for key, run in runs.items()} for runs in (ours, other)]
    return statistics.paired(*values)[0]


def _lag(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    lead = _lead(claim, by, ours, other)
    return Estimate(-lead.value, -lead.high, -lead.low, lead.n)


def _evaluations(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    """How many times fewer second passes: the ratio of gradient evaluations beyond one per step."""
    extra = [_extra_passes(run) for run in ours.values()]
    base = [_extra_passes(run) for run in other.values()]
    return statistics.mean([b / a for a, b in zip(extra, base, strict=False)])


def _extra_passes(run: dict) -> float:
    """Second passes per step: every step has one evaluation, a sharpness step two."""
    return run["curve"]["gradient_evaluations"][-1] / run["steps"] - 1


def _mean_epoch(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    """The mean epoch of the milestone over configurations; one that did not reach it counts at its
    last epoch."""
    return statistics.mean(capped_epochs(by, ours))


def _sooner_by(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    """By how many epochs our mean is less than the other row's: Welch's unpaired interval over
    configurations, epochs as in _mean_epoch."""
    return statistics.welch(capped_epochs(by, other), capped_epochs(by, ours))[0]


def _paired_ratio(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    """The geometric mean, over the configurations in which both get there, of the other row's
    epochs over ours."""
    pairs = [(by.epoch(other[key]), by.epoch(ours[key])) for key in ours.keys() & other.keys()]
    return _geometric_mean([theirs / mine for theirs, mine in pairs if theirs and mine])


def _best_ratio(claim: Claim, by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    """As _paired_ratio, each row at its best configuration: per seed and level of the grid's first
    factor the least epochs over the configurations that both rows ran."""
    least: dict[tuple, dict] = {}
    for key in ours.keys() & other.keys():
        for name, runs in (("ours", ours), ("other", other)):
            best = least.setdefault(key[:2], {"ours": math.inf, "other": math.inf})
            best[name] = min(best[name], by.epoch(runs[key]) or math.inf)
    return _geometric_mean([best["other"] / best["ours"] for best in least.values()
                            if math.isfinite(best["other"]) and math.isfinite(best["ours"])])


def _geometric_mean(ratios: list[float]) -> Estimate:
    """With Student's t interval on the logarithms; nan of none."""
    logs = statistics.mean(sorted(map(math.log, ratios)) or [math.nan])
    return Estimate(*map(math.exp, (logs.value, logs.low, logs.high)), len(ratios))


def capped_epochs(by: Yardstick, runs: Runs) -> list[float]:
    """The epoch of the milestone of every run, its last epoch where it was not reached."""
    ends = watched(runs.values())
    return [end if (epoch := by.epoch(run)) is None else epoch
            for run, end in zip(runs.values(), ends, strict=True)]


def first_share(by: Yardstick, ours: Runs, other: Runs) -> Estimate:
    """The percentage of configurations in which our row gets there first, of those in which one of
    the two does; reaching the milestone counts as before never reaching it."""
    decided = [answer for answer in who_is_first(by, ours, other) if answer]
    return statistics.share(decided.count(1), len(decided), PERCENT)


def who_is_first(by: Yardstick, ours: Runs, other: Runs) -> list[int]:
    """Of each configuration that both rows ran: 1 if ours gets to the milestone in fewer epochs,
    -1 if the other does, 0 for a tie or if neither does."""
    never = math.inf
    pairs = [(by.epoch(ours[key]) or never, by.epoch(other[key]) or never)
             for key in ours if key in other]
    return [(mine < theirs) - (theirs < mine) for mine, theirs in pairs]


def _mean(claim: Claim, values: list[float]) -> Estimate:
    return statistics.mean([_unit(claim) * value for value in values])


def _unit(claim: Claim) -> float:
    """What a metric is multiplied by to be in the claim's unit."""
    return PERCENT if claim.unit in ("%", "points") else 1.0


MEASURES: dict[str, Callable] = {
    "best": _best, "final": _final, "train_loss": _train_loss,
    "epochs_to_best": _epochs_to_best, "rebound": _rebound, "speedup": _speedup, "delay": _delay,
    "lead": _lead, "lag": _lag, "evaluations": _evaluations, "mean_epoch": _mean_epoch,
    "sooner_by": _sooner_by, "paired_ratio": _paired_ratio,
    "best_ratio": _best_ratio,
    "first_share": lambda claim, *rest: first_share(*rest),
}
