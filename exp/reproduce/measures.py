"""Measures: evidence for a claim from the runs of a table, in the claim's unit."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from exp.harness.task import LOSS
from exp.report.evidence import Evidence, exact, proportion, sample, unpaired
from exp.reproduce.claims import Claim
from exp.reproduce.plan import Table
from exp.reproduce.yardstick import PERCENT, Yardstick

SCALE_FREE = ("lead", "speedup", "delay", "evaluations")  # measures that compare two of our rows
LEAST_ROUNDS = 3  # of a benchmark, for a median time
FIT = 0.5  # nats
OVERHEADS = {"extra_compute": "ratio", "extra_memory": "memory_ratio"}  # keys of the benchmark

Runs = dict[tuple, dict]  # (seed, levels of the grid) -> run


@dataclass(frozen=True)
class Comparison:
    """Our runs of a claim's row and of the row that it is compared with (empty if there is none),
    by seed and levels. scale: factor that converts a metric to the claim's unit."""

    by: Yardstick
    ours: Runs
    other: Runs
    scale: float = 1.0

    @property
    def turned(self) -> "Comparison":
        """The same with the rows exchanged."""
        return replace(self, ours=self.other, other=self.ours)

    def sample(self, value: Callable[[dict], float], log: bool = False) -> Evidence:
        """A sample of `value` over our runs, in the claim's unit; nan (a run that diverged) becomes
        the worst value, infinite."""
        worst = -math.inf if self.by.metric.mode == "max" else math.inf
        values = [self.scale * value(run) for run in self.ours.values()]
        return sample([worst if math.isnan(v) else v for v in values], log)

    def pairs(self, value: Callable[[dict], float | None] | None = None
              ) -> list[tuple[float, float]]:
        """(other row's value, our value) in each configuration that both ran, in order; infinite
        for None. value: by default the epoch of the milestone."""
        both = ([math.inf if (of_run := (value or self.by.epoch)(run)) is None else of_run
                 for run in runs.values()] for runs in shared(self.other, self.ours))
        return list(zip(*both, strict=True))


def evidence(claim: Claim, table: Table, records: dict, scale: str, protocol: str
             ) -> Evidence | None:
    """Return the evidence of our runs of one scale and protocol, in the claim's unit; None if there
    are none.

    In a grid, rows are compared on the configurations that both ran. Raises ValueError for an
    unknown measure.
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
        by = replace(by, milestone=claim.measure, threshold=None)
        return sample([by.epoch(run) or math.inf for run in ours.values()], log=True)
    raise ValueError(f"claim {claim.id}: unknown measure {claim.measure!r}")


def overhead(claim: Claim, benches: Iterable[dict], configs: Iterable[str]) -> Evidence | None:
    """Time or memory beyond AdamW's in percent, from `exp.bench training`, the mean over configs;
    None if it was not measured. Time is one value per machine, from medians of LEAST_ROUNDS rounds
    or more. Memory is the same on every machine and varies between configs."""
    key = OVERHEADS.get(claim.measure)
    machines = []
    for bench in benches if key else ():
        rows = [bench["results"][config][claim.row] for config in configs
                if claim.row in bench.get("results", {}).get(config, {})]
        few = key == "ratio" and any(row["rounds"] < LEAST_ROUNDS for row in rows)
        if rows and not few:
            # Rounded, since a few bytes of step counts are no overhead; + 0.0 turns -0.0 into 0.0.
            machines.append([round(PERCENT * (row[key] - 1), 3) + 0.0 for row in rows])
    if not machines:
        return None
    if key == "memory_ratio":
        return exact(machines[0], len(machines))
    return sample([sum(ratios) / len(ratios) for ratios in machines])


def by_configuration(runs: Iterable[dict]) -> Runs:
    """Runs of one row by seed and levels, by which two rows are paired."""
    return {(run["seed"], *run.get("levels", ())): run for run in runs}


def shared(ours: Runs, other: Runs) -> tuple[Runs, Runs]:
    """Restrict both to the configurations that both have, in the order of the first."""
    keys = [key for key in ours if key in other]
    return {key: ours[key] for key in keys}, {key: other[key] for key in keys}


def _fit_loss(c: Comparison) -> Evidence:
    """The first epoch with a training loss of at most FIT, which ARS's README calls fitting."""
    by = Yardstick(replace(LOSS, name="train_loss"), threshold=FIT)
    return sample([by.epoch(run) or math.inf for run in c.ours.values()], log=True)


def _epochs_to_best(c: Comparison) -> Evidence:
    return replace(c, scale=1.0).sample(lambda run: 1 + c.by.curve(run).index(c.by.best(run)),
                                        log=True)


def _rebound(c: Comparison) -> Evidence:
    """Metric of the last epoch over that of the best epoch."""
    return replace(c, scale=1.0).sample(lambda run: c.by.last(run) / c.by.best(run), log=True)


def _ratios(c: Comparison) -> list[float]:
    """The other row's epochs to the milestone over ours, per configuration: infinite if only our
    row reaches it, 0 if only the other does, nan if neither does."""
    return [other / ours if math.isfinite(other) or math.isfinite(ours) else math.nan
            for other, ours in c.pairs()]


def _speedup(c: Comparison) -> Evidence:
    return sample(_ratios(c), log=True)


def _delay(c: Comparison) -> Evidence:
    """Delay behind the other row in percent of that row's time to the milestone; -infinite if that
    row did not reach it."""
    return sample([PERCENT * (ratio - 1) if ratio else -math.inf for ratio in _ratios(c.turned)])


def _lead(c: Comparison) -> Evidence:
    """Paired differences of the best epochs' values, positive where our row is better."""
    sign = c.scale * (1 if c.by.metric.mode == "max" else -1)
    ours, other = ([-math.inf if math.isnan(best := c.by.best(run)) else sign * best
                    for run in runs.values()] for runs in shared(c.ours, c.other))
    return sample([a - b for a, b in zip(ours, other, strict=True)],
                  reference=abs(sum(other) / len(other)) if other else 0.0)


def _lag(c: Comparison) -> Evidence:
    return _lead(c.turned)


def _evaluations(c: Comparison) -> Evidence:
    """The other row's second passes over ours: gradient evaluations per step beyond the first."""
    extra, base = ([run["curve"]["gradient_evaluations"][-1] / run["steps"] - 1
                    for run in runs.values() if run["steps"]] for runs in (c.ours, c.other))
    return sample([b / a for a, b in zip(extra, base, strict=False)], log=True)


def _mean_epoch(c: Comparison) -> Evidence:
    """The mean epoch of the milestone over configurations; a run that did not reach it counts with
    its last epoch."""
    return sample(c.by.capped_epochs(c.ours.values()))


def _sooner_by(c: Comparison) -> Evidence:
    """The other row's mean epoch minus ours, with Welch's unpaired interval over configurations;
    epochs as in _mean_epoch."""
    return unpaired(*map(c.by.capped_epochs, (c.other.values(), c.ours.values())))


def first_share(c: Comparison) -> Evidence:
    """Percentage of configurations in which our row is first to the milestone or, without one, ends
    lower, of those without a tie; a row that never reaches it is later than one that does."""
    sooner = [ours < other for other, ours in c.pairs(c.by.result) if ours != other]
    return proportion(sum(sooner), len(sooner), PERCENT)


def _paired_ratio(c: Comparison) -> Evidence:
    """Geometric mean of the other row's epochs over ours, over the configurations in which both
    reach the milestone."""
    return _of_both(c.pairs())


def _best_ratio(c: Comparison) -> Evidence:
    """As _paired_ratio, with each row at its best configuration: per seed and level of the grid's
    first factor, the least epochs over the configurations that both rows ran."""
    least: dict[tuple, tuple[float, float]] = {}
    for key, (other, ours) in zip(shared(c.other, c.ours)[0], c.pairs(), strict=True):
        before = least.get(key[:2], (other, ours))
        least[key[:2]] = min(other, before[0]), min(ours, before[1])
    return _of_both(least.values())


def _of_both(pairs: Iterable[tuple[float, float]]) -> Evidence:
    """A sample of a / b over the pairs of two finite numbers."""
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
