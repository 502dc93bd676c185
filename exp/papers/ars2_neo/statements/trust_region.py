"""TR-Muon's curvature estimates compared with the exact curvature, and the losses they lead to.

Two problems have an exact Hessian: a matrix quadratic with noise in its gradient, and softmax
regression on minibatches. For every step s the curvature <s, H s> / <s, s> is compared with each
rule's estimate from noisy evaluations. Then each rule and RMSuon train at every rate of a grid. The
experiment tests no claim of a paper and has no verdict.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exp.papers.ars2_neo.statements.radius_sweep import GAIN, LINE
from exp.report.rows import Row, Rows
from exp.report.tables import Lines, table
from exp.theory.sweeps import Grid, average, finite
from optimizer import optimizer_class

DOUBLE = torch.float64
RATES = tuple(10 ** (exponent / 2) for exponent in range(-6, 1))  # 1e-3 to 1
EVALUATIONS = 200  # gradients of a run
RULES = ("ratio", "curvature", "secant")
NOISES, BATCHES = (0.0, 0.1, 1.0, 10.0), (8, 64, 512)
ROWS, COLUMNS, EXAMPLES = 12, 20, 2048
# Label -> optimizer, its settings.
CONTENDERS: dict[str, tuple[str, dict]] = {
    "RMSuon": ("rmsuon", {}),
    "TR-Muon ratio": ("tr_muon", {"rule": "ratio", **GAIN}),
    "TR-Muon secant": ("tr_muon", {"rule": "secant", "interval": 10, **GAIN}),
    "TR-Muon slope, line": ("tr_muon", {"rule": "slope", "interval": 1, **LINE}),
    "TR-Muon curvature, line": ("tr_muon", {"rule": "curvature", **LINE}),
}


def measure(seeds: list[int]) -> Iterable[Row]:
    """Yield the curvature estimates of each rule, and the loss of each contender at every rate."""
    for seed in seeds:
        for problem in problems(seed):
            shared = {"problem": problem.name, "evaluations": EVALUATIONS}
            for rule in RULES:
                for axis, value in zip(("error", "correlation"), estimates(
                        problem, rule, EVALUATIONS, seed), strict=True):
                    yield Row(axis, seed, value, settings={**shared, "rule": rule})
            for label, (name, settings) in CONTENDERS.items():
                # Equal gradient evaluations: rules that take additional ones take fewer steps.
                share = 0.8 if settings.get("rule") in ("ratio", "curvature") else 1.0
                for lr in RATES:
                    loss = final_loss(problem, name, round(share * EVALUATIONS), seed, lr=lr,
                                      **settings)
                    yield Row("loss", seed, loss, optimizer=label, settings={**shared, "lr": lr})


@dataclass(frozen=True)
class Problem:
    """A loss of one matrix. draw(generator) returns the noise or rows of one step; value(W, drawn)
    the loss in the step; true(W) the loss without noise; product(W, S) the Hessian times S."""

    name: str
    start: Tensor
    draw: Callable
    value: Callable
    true: Callable
    product: Callable


def noisy_quadratic(noise: float, seed: int) -> Problem:
    """tr((W - T)^T A (W - T) B) / 2 plus <N, W>, with N redrawn in every step and of norm about
    `noise` times that of the first gradient; A and B have condition number 30."""
    generator = torch.Generator().manual_seed(seed)

    def spd(size: int) -> Tensor:
        q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=DOUBLE))[0]
        return (q * torch.logspace(0, -math.log10(30), size, dtype=DOUBLE)) @ q.T

    a, b = spd(ROWS), spd(COLUMNS)
    target = torch.randn(ROWS, COLUMNS, generator=generator, dtype=DOUBLE)
    start = torch.zeros(ROWS, COLUMNS, dtype=DOUBLE)
    scale = noise * float((a @ target @ b).norm()) / (ROWS * COLUMNS) ** 0.5

    def true(w: Tensor) -> Tensor:
        return ((a @ (w - target) @ b) * (w - target)).sum() / 2

    return Problem(f"quadratic, noise {noise:g}", start,
                   lambda g: scale * torch.randn(ROWS, COLUMNS, generator=g, dtype=DOUBLE),
                   lambda w, drawn: true(w) + (drawn * w).sum(), true, lambda w, s: a @ s @ b)


def softmax_regression(batch: int, seed: int) -> Problem:
    """Cross entropy of one layer on labels of a noisy linear teacher, `batch` examples per step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(EXAMPLES, COLUMNS, generator=generator, dtype=DOUBLE)
    x = x * torch.logspace(0, -1, COLUMNS, dtype=DOUBLE)
    teacher = 3 * torch.randn(ROWS, COLUMNS, generator=generator, dtype=DOUBLE)
    labels = torch.distributions.Gumbel(0.0, 1.0)
    torch.manual_seed(seed)
    y = (x @ teacher.T + labels.sample((EXAMPLES, ROWS)).to(DOUBLE)).argmax(1)

    def value(w: Tensor, rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x[rows] @ w.T, y[rows])

    def true(w: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x @ w.T, y)

    def product(w: Tensor, s: Tensor) -> Tensor:
        return torch.autograd.functional.hvp(true, w, s)[1]

    return Problem(f"softmax regression, batch {batch}", torch.zeros(ROWS, COLUMNS, dtype=DOUBLE),
                   lambda g: torch.randint(0, EXAMPLES, (batch,), generator=g), value, true,
                   product)


def problems(seed: int) -> list[Problem]:
    """Return all problems at all noise levels."""
    return [*(noisy_quadratic(noise, seed) for noise in NOISES),
            *(softmax_regression(batch, seed) for batch in BATCHES)]


def estimates(problem: Problem, rule: str, steps: int, seed: int, lr: float = 0.03
              ) -> tuple[float, float]:
    """Return (error, correlation) over the steps of one run: the median relative error of a rule's
    curvature estimate, and its correlation with the true curvature; NaN without estimates."""
    pairs = []
    for optimizer, w, before in walk(problem, "tr_muon", steps, seed, lr=lr, rule=rule,
                                     interval=1 if rule != "secant" else 10):
        step = w.detach() - before
        if float(step.norm()):
            true = float((step * problem.product(before, step)).sum() / step.square().sum())
            key = "kappa_ratio" if rule == "ratio" else "kappa"
            pairs.append((true, optimizer.diagnostics[key]))
    true, estimated = torch.tensor(pairs[1:], dtype=DOUBLE).T
    known = estimated != 0
    errors = (estimated[known] / true[known] - 1).abs()
    both = torch.stack([true[known], estimated[known]])
    return (float(errors.median()) if known.any() else math.nan,
            float(torch.corrcoef(both)[0, 1]) if known.sum() > 2 else math.nan)


def walk(problem: Problem, name: str, steps: int, seed: int, **settings: object) -> Iterator[tuple]:
    """Yield (optimizer, weight, weight before) after each of `steps` steps."""
    w = nn.Parameter(problem.start.clone())
    optimizer = optimizer_class(name)([w], weight_decay=0.0, **settings)
    generator = torch.Generator().manual_seed(1000 + seed)
    for _ in range(steps):
        drawn = problem.draw(generator)

        def closure(drawn=drawn):
            optimizer.zero_grad()
            loss = problem.value(w, drawn)
            loss.backward()
            return loss.detach()

        before = w.detach().clone()
        optimizer.step(closure)
        yield optimizer, w, before


def final_loss(problem: Problem, name: str, steps: int, seed: int, **settings) -> float:
    """Return the loss without noise after `steps` steps; infinity if it is not finite."""
    for _, w, _ in walk(problem, name, steps, seed, **settings):
        if not torch.isfinite(w).all():
            return math.inf
    return float(problem.true(w.detach()))


def tables(rows: Rows) -> dict:
    """Return tables of errors and correlations, and of each problem's losses over the rates."""
    by_problem = rows.tree("problem", "rule", "axis")
    lines: Lines = [("problem", *(f"{rule}: {axis}" for rule in RULES
                                  for axis in ("error", "correlation")))]
    for problem, by_rule in by_problem.items():
        means = [[value for value in by_rule[rule][axis] if value is not None]
                 for rule in RULES for axis in ("error", "correlation")]
        lines.append((problem, *(average(values) if values else None for values in means)))
    losses = {problem: [(problem, *(f"lr {lr:.3g}" for lr in next(iter(by_label.values()))),
                         "best", "worst over best"),
                        *((label, *_over_rates(by_rate)) for label, by_rate in by_label.items())]
              for problem, by_label in rows.tree("problem", "optimizer", "lr").items()}
    return {"evaluations": f"{rows[0]['evaluations']}", "estimates": lines,
            "losses": "\n\n".join(map(table, losses.values()))}


def _over_rates(by_rate: Grid) -> tuple:
    """Return table cells: the loss at each rate, the best, and the worst relative to the best."""
    whole = finite(by_rate)
    means = [average(whole[lr]) if lr in whole else math.inf for lr in by_rate]
    best, worst = min(means), max(means)
    return (*("diverged" if None in losses else losses for losses in by_rate.values()), best,
            worst / best if math.isfinite(worst) else "diverged")
