"""Gradient descent on x^2 + 3 sin^2 x, and the sharp constant of its PL inequality."""

import math
from collections.abc import Iterable

from exp.report.judgement import judge_exact
from exp.report.rows import Row, Rows
from exp.theory.statement import Verdict

L, START, STEPS = 8.0, 3.0, 10
GRID_POINTS, HALVINGS = 20_000, 60


def f(x: float) -> float:
    """x^2 + 3 sin^2 x."""
    return x**2 + 3 * math.sin(x) ** 2


def slope(x: float) -> float:
    """The derivative of `f`."""
    return 2 * x + 3 * math.sin(2 * x)


def ratio(x: float) -> float:
    """f'^2 / (2 f)."""
    return slope(x) ** 2 / (2 * f(x))


def sharp_constant() -> tuple[float, float]:
    """Return the smallest ratio on (0, 20] and its x: a grid, then ternary search around its best
    point."""
    spacing = 20 / GRID_POINTS
    x = min((spacing * (i + 1) for i in range(GRID_POINTS)), key=ratio)
    low, high = x - spacing, x + spacing
    for _ in range(2 * HALVINGS):
        third = (high - low) / 3
        low, high = (low, high - third) if ratio(low + third) < ratio(high - third) \
            else (low + third, high)
    return ratio((low + high) / 2), (low + high) / 2


def measure(seeds: list[int]) -> Iterable[Row]:
    """Yield the constant, and f after every step; nothing is random."""
    mu, x = sharp_constant()
    yield Row("sharp mu", 0, mu)
    yield Row("at |x|", 0, x)
    x = START
    for step in range(STEPS + 1):
        yield Row("f", 0, f(x), settings={"step": step})
        x -= slope(x) / L


def judge(rows: Rows) -> Verdict:
    """Judge by the bound after every step."""
    values = [value for (value,) in rows.where(axis="f").tree("step").values()]
    mu = rows.values(axis="sharp mu")[0]
    below = all(value <= values[0] * (1 - mu / L) ** k * (1 + 1e-12)
                for k, value in enumerate(values))
    return Verdict(judge_exact(below), f"mu = {mu:.10f}, f after {STEPS} steps "
                   f"{values[-1]:.2g}, bound {values[0] * (1 - mu / L) ** STEPS:.3g}")
