"""Does the best learning rate grow in proportion to the batch?"""

import itertools
from collections.abc import Iterable

from exp.report.evidence import sample
from exp.report.judgement import (
    FAILS,
    HOLDS,
    Judgement,
    judge_above,
    judge_all,
    judge_any,
    judge_below,
)
from exp.report.rows import Row, Rows
from exp.report.tables import Lines, number
from exp.theory import sweeps
from exp.theory.statement import Verdict

BATCHES = (2, 8, 32, 128)
LINEAR, CONSTANT = 0.75, 0.25
# Optimizer -> lr -> [optimizer] table, and the first learning rate for the smallest batch.
RULES = {"SGD with momentum": (sweeps.sgd, 2**-4), "AdamW": (sweeps.adamw, 2**-8),
         "Muon": (sweeps.muon, 2**-6)}
GRID = {"optimizer": RULES}
KEYS = ("optimizer", "batch", "lr")


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Yield a grid per batch size, each started at the best rate of the previous one."""
    rule, start = RULES[optimizer]
    for batch in BATCHES:
        grid = sweeps.curve_sweep(rule, start, seeds, batch_size=batch)
        yield from sweeps.grid_rows(grid, seeds, batch=batch)
        start = sweeps.best_of_grid(grid)


def exponents(by_batch: dict[int, sweeps.Grid]) -> dict[tuple[int, int], list[float]]:
    """Map pairs of neighboring batch sizes to the exponent a per seed: lr ~ batch^a."""
    rates = {batch: sweeps.best_rates(grid) for batch, grid in by_batch.items()}
    return {(one, two): [sweeps.exponent((one, two), pair)
                         for pair in zip(rates[one], rates[two], strict=True)]
            for one, two in itertools.pairwise(by_batch)}


def tests(by_batch: dict[int, sweeps.Grid]) -> tuple[list[Judgement], list[Judgement]]:
    """Test per pair of neighboring sizes whether the rate grows linearly and whether it is
    constant."""
    slopes = list(map(sample, exponents(by_batch).values()))
    return ([judge_above(a, LINEAR) for a in slopes], [judge_below(a, CONSTANT) for a in slopes])


def judge(rows: Rows) -> Verdict:
    """Judge whether rates grow linearly up to some pair of sizes and are constant at the next."""
    trees = rows.tree(*KEYS)
    parts = []
    for linear, constant in map(tests, trees.values()):
        parts.append(judge_any([judge_all([*linear[:n], *constant[n:n + 1]])
                                for n in range(1, len(linear) + 1)]))
    return Verdict(judge_all(parts), "exponent a between neighbouring batch sizes: " + "; ".join(
        f"{name} {', '.join(number(sweeps.average(a)) for a in exponents(by_batch).values())}"
        for name, by_batch in trees.items()))


def laws(by_batch: dict[int, sweeps.Grid]) -> list[str]:
    """Return the test results of each pair of neighboring sizes, as text."""
    return ["linear" if linear.word == HOLDS else "constant" if constant.word == HOLDS
            else "between" if linear.word == constant.word == FAILS else "undecided"
            for linear, constant in zip(*tests(by_batch), strict=True)]


def tables(rows: Rows) -> dict:
    """Return tables of best rates (geometric means over seeds), and of the exponents between
    neighboring sizes."""
    batches = rows.levels("batch")
    rates: Lines = [("best lr at a batch of", *map(str, batches), *(f"loss, {b}" for b in batches))]
    slopes: Lines = [("a", *(f"{one} to {two}" for one, two in itertools.pairwise(batches)), "law")]
    for name, by_batch in rows.tree(*KEYS).items():
        grids = by_batch.values()
        rates.append((name, *map(sweeps.mean_best_rate, grids), *map(sweeps.lowest, grids)))
        slopes.append((name, *exponents(by_batch).values(), ", ".join(laws(by_batch))))
    return {"rates": rates, "slopes": slopes}


def figure(rows: Rows) -> dict:
    """Return mean loss over learning rate: one panel per optimizer, one line per batch size."""
    return sweeps.grids_figure(rows.tree(*KEYS), "batch {}", "held-out loss (nats)")
