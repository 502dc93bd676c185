"""How do the best weight decays of Lion and AdamW compare?"""

from collections.abc import Iterable

from exp.report.evidence import Evidence, sample
from exp.report.judgement import judge_above, judge_all, judge_below
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory import sweeps
from exp.theory.statement import Verdict

LOW, HIGH = 3.0, 10.0
START = 1.0
DECAYS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RULES = {"AdamW": 2**-7, "Lion": 2**-10}  # optimizer -> first learning rate of its grid
GRID = {"optimizer": RULES}
KEYS = ("optimizer", "lr", "decay")


def table(optimizer: str, lr: float, decay: float) -> dict:
    """Return the [optimizer] table."""
    return {"name": optimizer.lower(), "lr": lr, "weight_decay": decay,
            "betas": [0.9, 0.95] if optimizer == "AdamW" else [0.9, 0.99]}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Yield losses over weight decays at the best rate."""
    rates = sweeps.curve_sweep(lambda lr: table(optimizer, lr, START), RULES[optimizer], seeds[:1])
    lr = sweeps.best_of_grid(rates)
    grid = {decay: [sweeps.curve(table(optimizer, lr, decay), seed)[-1] for seed in seeds]
            for decay in DECAYS}
    for decay, losses in grid.items():
        for seed, loss in zip(seeds, losses, strict=True):
            yield Row("loss", seed, loss, settings={"lr": lr, "decay": decay})


def grids(rows: Rows) -> dict[str, tuple[float, sweeps.Grid]]:
    """Map each optimizer to its rate, and to decay -> losses."""
    return {name: next(iter(by_rate.items())) for name, by_rate in rows.tree(*KEYS).items()}


def ratio(rows: Rows) -> Evidence:
    """Return Lion's best decay over AdamW's, paired by seed."""
    best = {name: sweeps.best_rates(grid) for name, (_, grid) in grids(rows).items()}
    return sample([a / b for a, b in zip(best["Lion"], best["AdamW"], strict=True)], log=True)


def judge(rows: Rows) -> Verdict:
    """Judge by the ratio of the best decays."""
    best_ratio = ratio(rows)
    return Verdict(judge_all([judge_above(best_ratio, LOW), judge_below(best_ratio, HIGH)]),
                   f"Lion's best decay is {interval(best_ratio.estimate)} times AdamW's")


def tables(rows: Rows) -> dict:
    """Return tables of losses over decays, and of the best decays (geometric means over seeds)."""
    lines = [("rule", "lr", *(f"decay {d:g}" for d in DECAYS), "best decay")]
    return {"losses": [*lines, *((name, f"{lr:g}", *grid.values(), sweeps.mean_best_rate(grid))
                                 for name, (lr, grid) in grids(rows).items())]}
