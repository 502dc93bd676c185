"""torch's SGD on a parabola at rates around 2 / L."""

from collections.abc import Iterable

import torch
from torch import nn

from exp.report.judgement import judge_exact
from exp.report.rows import Row, Rows
from exp.theory.statement import Verdict

H, STEPS = 4.0, 100
RATES = (0.5, 0.9, 0.99, 1.0, 1.01, 1.1)  # of 2 / L


def measure(seeds: list[int]) -> Iterable[Row]:
    """Yield |w| after STEPS steps at each rate; nothing is random."""
    for rate in RATES:
        yield Row("|w|", 0, abs(descend(rate)), settings={"rate": rate})


def descend(rate: float) -> float:
    """Return w after STEPS steps at `rate` times 2 / L."""
    w = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=rate * 2 / H)
    for _ in range(STEPS):
        w.grad = H * w.detach()
        optimizer.step()
    return float(w.detach())


def judge(rows: Rows) -> Verdict:
    """Judge by the final |w|."""
    ends = {rate: value for rate, (value,) in rows.tree("rate").items()}
    grows = all(value > 1 for rate, value in ends.items() if rate > 1)
    shrinks = all(value < 1 for rate, value in ends.items() if rate < 1)
    return Verdict(judge_exact(grows and shrinks and ends[1.0] == 1),
                   "final size of w, by rate in units of 2 / L: " + ", ".join(
                       f"{value:.3g} at {rate:g}" for rate, value in ends.items()))
