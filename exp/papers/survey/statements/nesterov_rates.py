"""Nesterov's two methods and gradient descent, compared with the methods' bounds."""

import math
from collections.abc import Callable, Iterable

import numpy as np

from exp.report.judgement import judge_exact
from exp.report.rows import Row, Rows
from exp.theory.statement import Verdict

N, KAPPA = 101, 100.0
POINTS = (10, 50)
Vector = np.ndarray


def chain_slope(x: Vector) -> Vector:
    """Gradient of Nesterov's chain, (A x - e_1) / 4 with A the second difference: L = 1."""
    a = 2 * x
    a[1:] -= x[:-1]
    a[:-1] -= x[1:]
    a[0] -= 1
    return a / 4


def chain(x: Vector) -> float:
    """Nesterov's chain function, 0 at x = 0."""
    return float((x[0] ** 2 + ((x[1:] - x[:-1]) ** 2).sum() + x[-1] ** 2) / 8 - x[0] / 4)


def solution() -> Vector:
    """Return the minimizer of the chain function."""
    return 1 - np.arange(1, N + 1) / (N + 1)


def bowl(x: Vector) -> float:
    """(x^2 + KAPPA y^2) / 2."""
    return float(x[0] ** 2 + KAPPA * x[1] ** 2) / 2


def bowl_slope(x: Vector) -> Vector:
    """Return the gradient of `bowl`."""
    return np.array([1.0, KAPPA]) * x


def descent(slope: Callable[[Vector], Vector], x: Vector, rate: float, steps: int) -> list[Vector]:
    """Return the iterates of gradient descent."""
    path = [x]
    for _ in range(steps):
        path.append(path[-1] - rate * slope(path[-1]))
    return path


def nesterov(slope: Callable[[Vector], Vector], x: Vector, rate: float, steps: int,
             momentum: float | None = None) -> list[Vector]:
    """Return the iterates of Nesterov's method; without `momentum` the version for convex
    functions."""
    path, ahead, t = [x], x, 1.0
    for _ in range(steps):
        path.append(ahead - rate * slope(ahead))
        after = (1 + math.sqrt(1 + 4 * t**2)) / 2
        beta = (t - 1) / after if momentum is None else momentum
        ahead, t = path[-1] + beta * (path[-1] - path[-2]), after
    return path


def measure(seeds: list[int]) -> Iterable[Row]:
    """Yield errors and bounds after several numbers of steps; nothing is random."""
    least, root = chain(solution()), math.sqrt(KAPPA)
    zero, one = np.zeros(N), np.ones(2)
    errors = {
        "convex": ({"Nesterov": nesterov(chain_slope, zero, 1.0, POINTS[-1]),
                    "descent": descent(chain_slope, zero, 1.0, POINTS[-1])},
                   lambda x: chain(x) - least,
                   lambda k: 2 * float(solution() @ solution()) / (k + 1) ** 2),
        "strongly convex": (
            {"Nesterov": nesterov(bowl_slope, one, 1 / KAPPA, POINTS[-1], (root - 1) / (root + 1)),
             "descent": descent(bowl_slope, one, 2 / (1 + KAPPA), POINTS[-1])},
            lambda x: bowl(x) / bowl(one), lambda k: 2 * (1 - 1 / root) ** k)}
    for problem, (paths, error, bound) in errors.items():
        for k in POINTS:
            settings = {"problem": problem, "steps": k}
            yield Row("bound", 0, bound(k), settings=settings)
            for name, path in paths.items():
                yield Row(name, 0, error(path[k]), settings=settings)


def judge(rows: Rows) -> Verdict:
    """Judge by the bounds and gradient descent's errors."""
    tree = rows.tree("problem", "steps", "axis")
    ends = {problem: {axis: value for axis, (value,) in by[POINTS[-1]].items()}
            for problem, by in tree.items()}
    below = [all(point["Nesterov"][0] <= point["bound"][0]
                 and point["Nesterov"][0] < point["descent"][0] for point in by.values())
             for by in tree.values()]
    return Verdict(judge_exact(all(below)), (
        f"error after {POINTS[-1]} steps, Nesterov against gradient descent: ") + ", ".join(
        f"{end['Nesterov']:.3g} against {end['descent']:.3g} ({problem})"
        for problem, end in ends.items()))
