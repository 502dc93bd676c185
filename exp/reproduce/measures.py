"""Measures: what the runs of a table say about a claim, as evidence in the claim's unit."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from exp.harness.task import LOSS
from exp.report.evidence import Evidence, exact, proportion, sample, unpaired
from exp.reproduce.claims import Claim
from exp.reproduce.plan import Table
from exp.reproduce.yardstick import PERCENT, Yardstick

SCALE_FREE = ("lead", "speedup", "delay", "evaluations")  # measures that compare two of our rows
LEAST_ROUNDS = 3  # that a time is a median of
FIT = 0.5  # nats
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

    def sample(self, value: Callable[[dict], float], log: bool = False) -> Evidence:
        """A value of each of our runs in the claim's unit, the worst there is of one that
        diverged."""
        lost = -math.inf if self.by.metric.mode == "max" else math.inf
        values = [self.scale * value(run) for run in self.ours.values()]
        return sample([lost if math.isnan(v) else v for v in values], log)

    def pairs(self) -> list[tuple[float, float]]:
        """(other row's epoch, our epoch) to the milestone of each configuration that both ran, in
        order; infinite where it was not reached."""
        both = zip(*(runs.values() for runs in shared(self.other, self.ours)), strict=True)
        return [(self.by.epoch(other) or math.inf, self.by.epoch(ours) or math.inf)
                for other, ours in both]


def evidence(claim: Claim, table: Table, records: dict, scale: str, protocol: str
             ) -> Evidence | None:
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
        return sample([own.epoch(run) or math.inf for run in ours.values()], log=True)
    raise ValueError(f"claim {claim.id}: no measure {claim.measure!r}")


def overhead(claim: Claim, benches: Iterable[dict], configs: Iterable[str]) -> Evidence | None:
    """Extra time or memory beyond AdamW's in percent, from `exp.bench training`, the mean over the
    configs; None where it was not measured. Time is one value a machine, of medians of at least
    LEAST_ROUNDS rounds; memory is the same on every machine, and between configs it varies."""
    key = OVERHEADS.get(claim.measure)
    machines = []
    for bench in benches if key else ():
        rows = [bench["results"][config][claim.row] for config in configs
                if claim.row in bench.get("results", {}).get(config, {})]
        few = key == "ratio" and any(row["rounds"] < LEAST_ROUNDS for row in rows)
        if rows and not few:
            # A few bytes of step counts are no overhead; + 0.0 makes of -0.0 a plain zero.
            machines.append([round(PERCENT * (row[key] - 1), 3) + 0.0 for row in rows])
    if not machines:
        return None
    if key == "memory_ratio":
        return exact(machines[0], len(machines))
    return sample([sum(ratios) / len(ratios) for ratios in machines])


def by_configuration(runs: Iterable[dict]) -> Runs:
    """Runs of one row by their seed and levels: what two rows are paired on."""
    return {(run["seed"], *run.get("levels", ())): run for run in runs}


def shared(ours: Runs, other: Runs) -> tuple[Runs, Runs]:
    """Both limited to the configurations that both have, in the order of the first."""
    keys = [key for key in ours if key in other]
    return {key: ours[key] for key in keys}, {key: other[key] for key in keys}


def _fit_loss(c: Comparison) -> Evidence:
    """The epoch at which the training loss falls below FIT: what ARS's README calls fitting."""
    by = Yardstick(replace(LOSS, name="train_loss"), threshold=FIT)
    return sample([by.epoch(run) or math.inf for run in c.ours.values()], log=True)


def _epochs_to_best(c: Comparison) -> Evidence:
    return replace(c, scale=1.0).sample(lambda run: 1 + c.by.curve(run).index(c.by.best(run)),
                                        log=True)


def _rebound(c: Comparison) -> Evidence:
    """The last epoch over the best one."""
    return replace(c, scale=1.0).sample(lambda run: c.by.last(run) / c.by.best(run), log=True)


def _ratios(c: Comparison) -> list[float]:
    """How many times sooner our row reaches the milestone in each configuration: infinite where
    the other never does, 0 where ours never does, nan where neither does."""
    return [other / ours if math.isfinite(other) or math.isfinite(ours) else math.nan
            for other, ours in c.pairs()]


def _speedup(c: Comparison) -> Evidence:
    return sample(_ratios(c), log=True)


def _delay(c: Comparison) -> Evidence:
    """How much later than the other row, in percent of its time; -infinite where that never got
    there."""
    return sample([PERCENT * (ratio - 1) if ratio else -math.inf for ratio in _ratios(c.turned)])


def _lead(c: Comparison) -> Evidence:
    """Paired differences of the best epochs, positive where our row is the better one."""
    sign = c.scale * (1 if c.by.metric.mode == "max" else -1)
    ours, other = ([-math.inf if math.isnan(best := c.by.best(run)) else sign * best
                    for run in runs.values()] for runs in shared(c.ours, c.other))
    return sample([a - b for a, b in zip(ours, other, strict=True)],
                  reference=abs(sum(other) / len(other)) if other else 0.0)


def _lag(c: Comparison) -> Evidence:
    return _lead(c.turned)


def _evaluations(c: Comparison) -> Evidence:
    """How many times fewer second passes: the ratio of gradient evaluations beyond one per step."""
    extra, base = ([run["curve"]["gradient_evaluations"][-1] / run["steps"] - 1
                    for run in runs.values()] for runs in (c.ours, c.other))
    return sample([b / a for a, b in zip(extra, base, strict=False)], log=True)


def _mean_epoch(c: Comparison) -> Evidence:
    """The mean epoch of the milestone over configurations; one that did not reach it counts at its
    last epoch."""
    return sample(c.by.capped_epochs(c.ours.values()))


def _sooner_by(c: Comparison) -> Evidence:
    """By how many epochs our mean is less than the other row's: Welch's unpaired interval over
    configurations, epochs as in _mean_epoch."""
    return unpaired(*map(c.by.capped_epochs, (c.other.values(), c.ours.values())))


def first_share(c: Comparison) -> Evidence:
    """The percentage of configurations in which our row reaches the milestone in fewer epochs, of
    those in which one row does; reaching it at all is sooner than never."""
    sooner = [ours < other for other, ours in c.pairs() if ours != other]
    return proportion(sum(sooner), len(sooner), PERCENT)


def _paired_ratio(c: Comparison) -> Evidence:
    """The geometric mean, over the configurations in which both reach the milestone, of the other
    row's epochs over ours."""
    return _of_both(c.pairs())


def _best_ratio(c: Comparison) -> Evidence:
    """As _paired_ratio, each row at its best configuration: per seed and level of the grid's first
    factor the least epochs over the configurations that both rows ran."""
    least: dict[tuple, tuple[float, float]] = {}
    for key, (other, ours) in zip(shared(c.other, c.ours)[0], c.pairs(), strict=True):
        before = least.get(key[:2], (other, ours))
        least[key[:2]] = min(other, before[0]), min(ours, before[1])
    return _of_both(least.values())


def _of_both(pairs: Iterable[tuple[float, float]]) -> Evidence:
    """Of the ratios of pairs that are both finite."""
    return sample([a / b for a, b in pairs if math.isfinite(a) and math.isfinite(b)] or [math.nan],
                  log=True)


MEASURES: dict[str, Callable[[Comparison], Evidence]] = {
    "best": lambda c: c.sample(c.by.best), "final": lambda c: c.sample(c.by.last),
    "fit_loss": _fit_loss,
    "train_loss": lambda c: c.sample(Yardstick(replace(LOSS, name="train_loss")).last),
    "epochs_to_best": _epochs_to_best, "rebound": _rebound, "speedup": _speedup, "delay": _delay,
    "lead": _lead, "lag": _lag, "evaluations": _evaluations,
    "mean_epoch": _mean_epoch, "sooner_by": _sooner_by, "first_share": first_share,
    "paired_ratio": _paired_ratio, "best_ratio": _best_ratio,
}
