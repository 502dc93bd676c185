"""Claims and verdicts. The rule, the same for wins and losses, written before the runs and made
stricter once after the first grokking seeds (being inside an interval used to hold in full, and
few seeds have intervals without an upper end):

    a number ("=", "~")   holds         our value is within the tolerance of its unit
                          holds partly  within two tolerances, or the claimed number is inside our
                                        95 % interval and that has two ends
    a bound (">", "<")    holds         our whole interval is beyond it
                          holds partly  our value is
    else it does not hold. (A milestone that no seed reached is beyond every bound as a whole.)

Tolerances: 0.5 points of accuracy, 5 % of a perplexity or loss, 20 % of a number of epochs, 10 %
of a ratio, 5 points of an overhead. A number is tested at full scale only; an order or a ratio of
two of our own runs also at mini scale, and then holds for that scale.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exp.harness.toml import read_toml
from exp.report import statistics
from exp.report.statistics import Estimate
from exp.reproduce.plan import Table

CLAIMS = Path(__file__).parent / "claims.toml"
SCALE_FREE = ("lead", "speedup", "delay", "evaluations")  # measures that compare two of our rows
MILESTONES = ("fit", "grok", "converged")
PERCENT = 100.0
LEAST_ROUNDS = 3  # that a time is a median of
OVERHEADS = {"extra_compute": "ratio", "extra_memory": "memory_ratio"}  # in the benchmark's rows
OVERHEAD_CONFIGS = ("lrp_cifar10_", "lrp_wikitext2_")  # the tasks of the paper's overhead table

Verdict = Literal["holds", "holds partly", "does not hold", "not yet run", "cannot be tested here"]


@dataclass(frozen=True)
class Claim:
    """One number of the paper. `against`: the row it is a comparison with. `logged`, `log`: what
    the paper's own log has, and whether that is this number. `cannot`: why it is not tested."""

    id: str
    says: str
    comparator: str
    value: float
    unit: str
    table: str = ""
    row: str = ""
    measure: str = ""
    against: str = ""
    logged: float | None = None
    log: str = ""
    cannot: str = ""

    @property
    def tolerance(self) -> float:
        """How far from a claimed number still counts as that number, in the claim's unit."""
        share = {"ppl": 0.05, "nats": 0.05, "epoch": 0.2, "epochs": 0.2, "x": 0.1}
        if self.unit in share:
            return share[self.unit] * abs(self.value)
        return 5.0 if self.measure.startswith("extra_") else 0.5


def read_claims() -> list[Claim]:
    """All of claims.toml, in the paper's order."""
    return [Claim(**entry) for entry in read_toml(CLAIMS)["claim"]]


def judge(claim: Claim, ours: Estimate | None) -> Verdict:
    """The verdict of the module's rule on our estimate. None is "not yet run"; nan, where our runs
    diverged or never got there, does not hold."""
    if claim.cannot:
        return "cannot be tested here"
    if ours is None:
        return "not yet run"
    if claim.comparator == "<":
        return _judge_bound(-ours.value, -ours.high, -claim.value)
    if claim.comparator == ">":
        return _judge_bound(ours.value, ours.low, claim.value)
    distance = abs(ours.value - claim.value)
    if distance <= claim.tolerance:
        return "holds"
    inside = ours.low <= claim.value <= ours.high < math.inf
    return "holds partly" if inside or distance <= 2 * claim.tolerance else "does not hold"


def _judge_bound(value: float, low: float, bound: float) -> Verdict:
    if low > bound:
        return "holds"
    return "holds partly" if value > bound else "does not hold"


def estimate(claim: Claim, table: Table, records: dict, scale: str, protocol: str
             ) -> Estimate | None:
    """What our runs of one scale and protocol say about the claim, in its unit; None without any.

    Raises ValueError for a measure that does not exist.
    """
    if claim.measure not in MEASURES:
        raise ValueError(f"claim {claim.id}: no measure {claim.measure!r}")
    runs = [run for run in records["runs"]
            if (run["scale"], run["protocol"]) == (scale, protocol)]
    ours = {run["seed"]: run for run in runs if run["row"] == claim.row}
    other = {run["seed"]: run for run in runs if run["row"] == claim.against}
    if not ours or (claim.against and not other):
        return None
    return MEASURES[claim.measure](claim, table.metric_of(protocol), table.mode, ours, other)


def overhead(claim: Claim, bench: dict) -> Estimate | None:
    """Extra time or memory beyond AdamW's in percent, from `exp.bench training --full`: the mean
    over the paper's two tasks, with the lowest and the highest (of a time, quartile); None where
    it was not measured, a time in fewer than LEAST_ROUNDS: one look is noise."""
    key = OVERHEADS.get(claim.measure)
    mode = claim.row.removeprefix("ARS2-Neo ")
    rows = [modes[mode] for config, modes in bench.get("results", {}).items()
            if config.startswith(OVERHEAD_CONFIGS) and mode in modes]
    few = any(row["rounds"] < LEAST_ROUNDS for row in rows)
    if key is None or not rows or (few and claim.measure == "extra_compute"):
        return None
    low = min(row.get(f"{key}_low", row[key]) for row in rows)
    high = max(row.get(f"{key}_high", row[key]) for row in rows)
    value = sum(row[key] for row in rows) / len(rows)
    # A few bytes of step counts are no overhead; + 0.0 makes of -0.0 a plain zero.
    return Estimate(*(round(PERCENT * (ratio - 1), 3) + 0.0 for ratio in (value, low, high)),
                    min(row["rounds"] for row in rows))


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


def _best(claim: Claim, metric: str, mode: str, ours: dict, other: dict) -> Estimate:
    return _mean(claim, [chosen(run, metric, mode) for run in ours.values()])


def _last(key: str | None) -> Callable:
    def last(claim: Claim, metric: str, mode: str, ours: dict, other: dict) -> Estimate:
        return _mean(claim, [_number(run["curve"].get(key or metric, [None])[-1])
                             for run in ours.values()])
    return last


def _epochs_to_best(claim: Claim, metric: str, mode: str, ours: dict, other: dict) -> Estimate:
    return statistics.mean([1 + run["curve"][metric].index(chosen(run, metric, mode))
                            for run in ours.values()])


def _rebound(claim: Claim, metric: str, mode: str, ours: dict, other: dict) -> Estimate:
    return statistics.mean([_number(run["curve"][metric][-1]) / chosen(run, metric, mode)
                            for run in ours.values()])


def _milestone(claim: Claim, metric: str, mode: str, ours: dict, other: dict) -> Estimate:
    times = [run["milestones"][claim.measure] for run in ours.values()]
    return statistics.median_time(times, watched(ours.values()))


def _speedup(claim: Claim, metric: str, mode: str, ours: dict, other: dict) -> Estimate:
    slow, fast = ([run["milestones"]["grok"] for run in runs.values()] for runs in (other, ours))
    return statistics.speedup(slow, fast, watched(other.values()))


def _delay(claim: Claim, metric: str, mode: str, ours: dict, other: dict) -> Estimate:
    """How much later than the other row, in percent of its median time."""
    ratio = _speedup(claim, metric, mode, other, ours)
    return Estimate(*(PERCENT * (end - 1) for end in (ratio.value, ratio.low, ratio.high)), ratio.n)


def _lead(claim: Claim, metric: str, mode: str, ours: dict, other: dict) -> Estimate:
    """Mean paired difference of the best epochs, positive where our row is the better one."""
    sign = (PERCENT if claim.unit in ("%", "points") else 1.0) * (1 if mode == "max" else -1)
    values = [{seed: sign * chosen(run, metric, mode) for seed, run in runs.items()}
              for runs in (ours, other)]
    return statistics.paired(*values)[0]


def _lag(claim: Claim, metric: str, mode: str, ours: dict, other: dict) -> Estimate:
    lead = _lead(claim, metric, mode, ours, other)
    return Estimate(-lead.value, -lead.high, -lead.low, lead.n)


def _evaluations(claim: Claim, metric: str, mode: str, ours: dict, other: dict) -> Estimate:
    """How many times fewer second passes: the ratio of gradient evaluations beyond one a step."""
    extra = [_extra_passes(run) for run in ours.values()]
    base = [_extra_passes(run) for run in other.values()]
    return statistics.mean([b / a for a, b in zip(extra, base, strict=False)])


def _extra_passes(run: dict) -> float:
    """Second passes per step: every step has one evaluation, a sharpness step two."""
    return run["curve"]["gradient_evaluations"][-1] / run["steps"] - 1


def _mean(claim: Claim, values: list[float]) -> Estimate:
    scale = PERCENT if claim.unit in ("%", "points") else 1.0
    return statistics.mean([scale * value for value in values])


def _number(value: float | None) -> float:
    return math.nan if value is None else value


MEASURES: dict[str, Callable] = {
    "best": _best, "final": _last(None), "train_loss": _last("train_loss"),
    "epochs_to_best": _epochs_to_best, "rebound": _rebound, "fit": _milestone,
    "grok": _milestone, "converged": _milestone, "speedup": _speedup, "delay": _delay,
    "lead": _lead, "lag": _lag, "evaluations": _evaluations,
}
