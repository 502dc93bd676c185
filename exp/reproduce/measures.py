"""Measures: what the runs of a table say about a claim, as an estimate in the claim's unit."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from exp.harness.task import LOSS
from exp.report import statistics
from exp.report.statistics import Estimate
from exp.reproduce.claims import Claim
from exp.reproduce.plan import Table
from exp.reproduce.yardstick import PERCENT, Yardstick

SCALE_FREE = ("lead", "speedup", "delay", "evaluations")  # measures that compare two of our rows
LEAST_ROUNDS = 3  # that a time is a median of
OVERHEADS = {"extra_compute": "ratio", "extra_memory": "memory_ratio"}  # in the benchmark's rows

Runs = dict[tuple, dict]  # (seed, levels of the grid) -> run


@dataclass(frozen=True)
class Comparison:
    """Our runs of a claim's row and of the row that it is compared with (empty if there is none),
    by seed and levels. scale: what a metric is multiplied by to be in the claim's unit."""

    by: Yardstick
    ours: Runs
    other: Runs
    scale: float = 1.0

    @property
    def turned(self) -> "Comparison":
        """The same with the rows exchanged."""
        return replace(self, ours=self.other, other=self.ours)

    def mean(self, value: Callable[[dict], float]) -> Estimate:
        """The mean of a value of our runs, in the claim's unit."""
        return statistics.mean([self.scale * value(run) for run in self.ours.values()])

    def pairs(self) -> list[tuple[float, float]]:
        """(other row's epoch, our epoch) to the milestone of each configuration that both ran, in
        order; infinite where it was not reached."""
        both = zip(*(runs.values() for runs in shared(self.other, self.ours)), strict=True)
        return [tuple(self.by.epoch(run) or math.inf for run in pair) for pair in both]


def estimate(claim: Claim, table: Table, records: dict, scale: str, protocol: str
             ) -> Estimate | None:
    """What our runs of one scale and protocol say about the claim, in its unit; None without any.

    Of a grid, rows are compared on the configurations that both ran. Raises ValueError for a
    measure that does not exist.
    """
    runs = [run for run in records["runs"]
            if (run["scale"], run["protocol"]) == (scale, protocol)
            and set(claim.where) <= set(run.get("levels", ()))]
    ours, other = (by_configuration(run for run in runs if run["row"] == row)
                   for row in (claim.row, claim.against))
    if table.grid and claim.against:
        ours, other = shared(ours, other)
    if not ours or (claim.against and not other):
        return None
    by = Yardstick.of(table, protocol)
    if claim.measure in MEASURES:
        unit = PERCENT if claim.unit in ("%", "points") else 1.0
        return MEASURES[claim.measure](Comparison(by, ours, other, unit))
    if claim.measure in next(iter(ours.values()))["milestones"]:
        own = replace(by, milestone=claim.measure, threshold=None)
        return statistics.median_time(*own.times(ours.values()))
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


def shared(ours: Runs, other: Runs) -> tuple[Runs, Runs]:
    """Both limited to the configurations that both have, in the order of the first."""
    keys = [key for key in ours if key in other]
    return {key: ours[key] for key in keys}, {key: other[key] for key in keys}


def _epochs_to_best(c: Comparison) -> Estimate:
    return replace(c, scale=1.0).mean(lambda run: 1 + c.by.curve(run).index(c.by.best(run)))


def _rebound(c: Comparison) -> Estimate:
    """The last epoch over the best one."""
    return replace(c, scale=1.0).mean(lambda run: c.by.last(run) / c.by.best(run))


def _speedup(c: Comparison) -> Estimate:
    """How many times sooner our row reaches the milestone: the ratio of median times."""
    slow, limits = c.by.times(c.other.values())
    return statistics.speedup(slow, c.by.times(c.ours.values())[0], limits)


def _delay(c: Comparison) -> Estimate:
    """How much later than the other row, in percent of its median time."""
    ratio = _speedup(c.turned)
    return Estimate(*(PERCENT * (end - 1) for end in (ratio.value, ratio.low, ratio.high)), ratio.n)


def _lead(c: Comparison) -> Estimate:
    """Mean paired difference of the best epochs, positive where our row is the better one."""
    sign = c.scale * (1 if c.by.metric.mode == "max" else -1)
    values = [{key: sign * c.by.best(run) for key, run in runs.items()}
              for runs in (c.ours, c.other)]
    return statistics.paired(*values)[0]


def _evaluations(c: Comparison) -> Estimate:
    """How many times fewer second passes: the ratio of gradient evaluations beyond one per step."""
    extra, base = ([run["curve"]["gradient_evaluations"][-1] / run["steps"] - 1
                    for run in runs.values()] for runs in (c.ours, c.other))
    return statistics.mean([b / a for a, b in zip(extra, base, strict=False)])


def _mean_epoch(c: Comparison) -> Estimate:
    """The mean epoch of the milestone over configurations; one that did not reach it counts at its
    last epoch."""
    return statistics.mean(c.by.capped_epochs(c.ours.values()))


def _sooner_by(c: Comparison) -> Estimate:
    """By how many epochs our mean is less than the other row's: Welch's unpaired interval over
    configurations, epochs as in _mean_epoch."""
    return statistics.welch(*map(c.by.capped_epochs, (c.other.values(), c.ours.values())))[0]


def first_share(c: Comparison) -> Estimate:
    """The percentage of configurations in which our row reaches the milestone in fewer epochs, of
    those in which one row does; reaching it at all is sooner than never."""
    sooner = [ours < other for other, ours in c.pairs() if ours != other]
    return statistics.share(sum(sooner), len(sooner), PERCENT)


def _paired_ratio(c: Comparison) -> Estimate:
    """The geometric mean, over the configurations in which both reach the milestone, of the other
    row's epochs over ours."""
    return _geometric_mean(c.pairs())


def _best_ratio(c: Comparison) -> Estimate:
    """As _paired_ratio, each row at its best configuration: per seed and level of the grid's first
    factor the least epochs over the configurations that both rows ran."""
    least: dict[tuple, tuple[float, float]] = {}
    for key, pair in zip(shared(c.other, c.ours)[0], c.pairs(), strict=True):
        least[key[:2]] = tuple(map(min, pair, least.get(key[:2], pair)))
    return _geometric_mean(least.values())


def _geometric_mean(pairs: Iterable[tuple[float, float]]) -> Estimate:
    """Of the ratios of finite pairs, with Student's t interval on the logarithms; nan of none."""
    logs = [math.log(a / b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    mean = statistics.mean(logs or [math.nan])
    return Estimate(*map(math.exp, (mean.value, mean.low, mean.high)), len(logs))


def _negative(ours: Estimate) -> Estimate:
    return Estimate(-ours.value, -ours.high, -ours.low, ours.n)


MEASURES: dict[str, Callable[[Comparison], Estimate]] = {
    "best": lambda c: c.mean(c.by.best), "final": lambda c: c.mean(c.by.last),
    "train_loss": lambda c: c.mean(Yardstick(replace(LOSS, name="train_loss")).last),
    "epochs_to_best": _epochs_to_best, "rebound": _rebound, "speedup": _speedup, "delay": _delay,
    "lead": _lead, "lag": lambda c: _negative(_lead(c)), "evaluations": _evaluations,
    "mean_epoch": _mean_epoch, "sooner_by": _sooner_by, "first_share": first_share,
    "paired_ratio": _paired_ratio, "best_ratio": _best_ratio,
}
