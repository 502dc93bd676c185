"""Example of Reddi et al., arXiv 1904.09237: Adam goes to the worst point, AMSGrad to the best."""

import math
from collections.abc import Iterable, Iterator

from exp.report.judgement import judge_exact
from exp.report.rows import Row, Rows
from exp.theory.statement import Verdict

C = 4.0
STEPS = (3, 30, 300, 3000, 300_000)
GRID = {"optimizer": ("Adam", "AMSGrad")}


def measure(seeds: list[int], optimizer: str) -> Iterable[Row]:
    """Yield x and the mean regret after several numbers of steps; nothing is random."""
    regret = 0.0
    for step, (x, gradient, before) in enumerate(iterates(optimizer == "AMSGrad"), 1):
        regret += gradient * (before + 1)
        if step in STEPS:
            settings = {"steps": step}
            yield Row("x", 0, x, settings=settings)
            yield Row("mean regret", 0, regret / step, settings=settings)
        if step == STEPS[-1]:
            return


def iterates(amsgrad: bool) -> Iterator[tuple[float, float, float]]:
    """Yield (x after the step, gradient, x before the step) without end."""
    beta2 = 1 / (1 + C**2)
    rate = 1 / (2 * C * math.sqrt(1 - beta2))
    x, v, largest, step = 1.0, 0.0, 0.0, 0
    while True:
        step += 1
        gradient, before = C if step % 3 == 1 else -1.0, x
        v = beta2 * v + (1 - beta2) * gradient**2
        largest = max(largest, v)
        x -= rate / math.sqrt(step) * gradient / math.sqrt(largest if amsgrad else v)
        x = min(1.0, max(-1.0, x))
        yield x, gradient, before


def judge(rows: Rows) -> Verdict:
    """Judge by the final mean regrets."""
    (adam,), (amsgrad,) = (rows.tree("optimizer", "axis", "steps")[name]["mean regret"][STEPS[-1]]
                           for name in GRID["optimizer"])
    return Verdict(judge_exact(adam >= 1 and amsgrad < 0.01),
                   f"mean regret {adam:.4g} (Adam), {amsgrad:.4g} (AMSGrad)")
