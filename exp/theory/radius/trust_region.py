"""Where the curvature is known: what TR-Muon's rules see of it, and what that buys.

python -m exp.theory.radius.trust_region [--steps N] [--seeds N]

Two problems whose Hessian is exact: a matrix quadratic with noise in its gradient, and softmax
regression on minibatches. Of every step the curvature along it, <s, H s> / <s, s>, is compared with
what each rule estimates from noisy evaluations; then each rule and RMSuon train at every rate of a
grid of two decades.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.radius.radius_sweep import GAIN, LINE
from optimizer import optimizer_class

OUTPUT = Path("outputs/paper/theory")
DOUBLE = torch.float64
RATES = tuple(10 ** (exponent / 2) for exponent in range(-6, 1))  # 1e-3 to 1
RULES = ("ratio", "curvature", "secant")
NOISES, BATCHES = (0.0, 0.1, 1.0, 10.0), (8, 64, 512)
ROWS, COLUMNS, EXAMPLES = 12, 20, 2048


@dataclass(frozen=True)
class Problem:
    """A loss of one matrix. draw(generator) -> the noise or rows of one step; value(W, drawn): the
    loss that the step sees; true(W): the loss without noise; product(W, S): its Hessian times S."""

    name: str
    start: Tensor
    draw: Callable
    value: Callable
    true: Callable
    product: Callable


def noisy_quadratic(noise: float, seed: int) -> Problem:
    """tr((W - T)^T A (W - T) B) / 2 plus <N, W>, N fresh at every step, of norm about `noise`
    times that of the first gradient; A and B have condition 30."""
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
    """Cross entropy of one layer against a noisy linear teacher, `batch` of the examples a step."""
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
    """All problems at all noise levels."""
    return [*(noisy_quadratic(noise, seed) for noise in NOISES),
            *(softmax_regression(batch, seed) for batch in BATCHES)]


def estimates(problem: Problem, steps: int, seed: int, lr: float = 0.03) -> dict[str, dict]:
    """For each rule: the median relative error of its curvature, and the correlation with the true
    one, over the steps of a run of that rule."""
    found = {}
    for rule in RULES:
        pairs = []
        for optimizer, w, before in walk(problem, "tr_muon", steps, seed, lr=lr, rule=rule,
                                         interval=1 if rule != "secant" else 10):
            step = w.detach() - before
            if not float(step.norm()):
                continue
            true = float((step * problem.product(before, step)).sum() / step.square().sum())
            key = "kappa_ratio" if rule == "ratio" else "kappa"
            pairs.append((true, optimizer.diagnostics[key]))
        true, seen = torch.tensor(pairs[1:], dtype=DOUBLE).T
        known = seen != 0
        errors = (seen[known] / true[known] - 1).abs()
        spread = torch.stack([true[known], seen[known]])
        found[rule] = {
            "error": float(errors.median()) if known.any() else None,
            "correlation": float(torch.corrcoef(spread)[0, 1]) if known.sum() > 2 else None}
    return found


def walk(problem: Problem, name: str, steps: int, seed: int, **settings):
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
    """The loss without noise after `steps` steps; infinite if it left the numbers."""
    for _, w, _ in walk(problem, name, steps, seed, **settings):
        if not torch.isfinite(w).all():
            return math.inf
    return float(problem.true(w.detach()))


CONTENDERS = {
    "RMSuon": ("rmsuon", {}),
    "TR-Muon ratio": ("tr_muon", {"rule": "ratio", **GAIN}),
    "TR-Muon secant": ("tr_muon", {"rule": "secant", "interval": 10, **GAIN}),
    "TR-Muon slope, line": ("tr_muon", {"rule": "slope", "interval": 1, **LINE}),
    "TR-Muon curvature, line": ("tr_muon", {"rule": "curvature", **LINE}),
}


def measure(steps: int, seeds: int) -> dict:
    """Both experiments: {"estimates": {problem: {rule: [...]}}, "losses": {problem: {...}}}."""
    seen: dict = {}
    losses: dict = {}
    for seed in range(1, seeds + 1):
        for problem in problems(seed):
            for rule, values in estimates(problem, steps, seed).items():
                for key, value in values.items():
                    seen.setdefault(problem.name, {}).setdefault(rule, {}).setdefault(
                        key, []).append(value)
            for label, (name, settings) in CONTENDERS.items():
                rows = losses.setdefault(problem.name, {}).setdefault(label, {})
                # Equal gradient evaluations: rules that look take fewer steps.
                share = 0.8 if settings.get("rule") in ("ratio", "curvature") else 1.0
                for lr in RATES:
                    value = final_loss(problem, name, round(share * steps), seed, lr=lr,
                                       **settings)
                    rows.setdefault(f"{lr:.3g}", []).append(
                        value if math.isfinite(value) else None)
    return {"steps": steps, "seeds": seeds, "estimates": seen, "losses": losses}


def render(found: dict) -> str:
    """The page, from its JSON."""
    head = ("problem", *(f"{rule}: {what}" for rule in RULES for what in ("error", "correlation")))
    lines = [head]
    for problem, rules in found["estimates"].items():
        lines.append((problem, *(
            _mean(rules[rule][key]) for rule in RULES for key in ("error", "correlation"))))
    parts = ["# TR-Muon where the curvature is known",
             f"`python -m exp.theory.radius.trust_region`: {found['steps']} gradient evaluations, "
             f"{found['seeds']} seeds, float64, CPU.",
             "## What each rule sees of the curvature along the step",
             "Median relative error over the steps of a run, and correlation with the true one, "
             "means over seeds. *ratio* and *curvature* look at both ends of the step on one "
             "batch, *secant* at averages ten steps apart.", markdown(lines),
             "## The loss without noise at the end, at equal gradient evaluations"]
    for problem, labels in found["losses"].items():
        rates = list(next(iter(labels.values())))
        lines = [(problem, *(f"lr {rate}" for rate in rates), "best", "worst over best")]
        for label, by_rate in labels.items():
            means = [_value(by_rate[rate]) for rate in rates]
            best, worst = min(means), max(means)
            lines.append((label, *(_cell(by_rate[rate]) for rate in rates), number(best),
                          number(worst / best) if math.isfinite(worst) else "diverged"))
        parts.append(markdown(lines))
    return "\n\n".join(parts) + "\n"


def _value(values: list) -> float:
    return math.inf if None in values else sum(values) / len(values)


def _cell(values: list) -> str:
    return "diverged" if None in values else interval(mean(values))


def _mean(values: list) -> str:
    known = [value for value in values if value is not None]
    return number(sum(known) / len(known)) if known else "–"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m exp.theory.radius.trust_region",
                                     description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="gradient evaluations of a run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    found = measure(options.steps, options.seeds)
    path = options.output / "trust_region.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(render(found), encoding="utf-8")
    print(f"written to {options.output}: trust_region.md, trust_region.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
